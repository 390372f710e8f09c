"""Proximal policy optimisation (Schulman et al., 2017) on CartPole: python examples/ppo_cartpole.py --compile

The cart and its pole (Barto, Sutton and Anderson, 1983) are simulated here, many at once; `--gym` uses gymnasium's CartPole-v1.
"""

from __future__ import annotations

import numpy as np
from common import compiled, draws, options, train

import flame
import flame.nn as nn
import flame.nn.functional as F


class CartPoles:
    """`n` carts at once: `reset(r)` and `step(actions)` as gymnasium's CartPole-v1, which ends an episode after 500 steps."""

    def __init__(self, n: int):
        self.n = n

    def reset(self, r: np.random.Generator) -> np.ndarray:
        self.r = r
        self.state = r.uniform(-0.05, 0.05, (self.n, 4))
        self.age = np.zeros(self.n, int)
        return self.state.astype(np.float32)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What is seen now, the rewards, and whose episode ended (and began anew)."""
        x, v, angle, spin = self.state.T
        force = np.where(actions == 1, 10.0, -10.0)
        push = (force + 0.05 * spin**2 * np.sin(angle)) / 1.1
        turn = (9.8 * np.sin(angle) - np.cos(angle) * push) / (0.5 * (4 / 3 - 0.1 * np.cos(angle) ** 2 / 1.1))
        speed = push - 0.05 * turn * np.cos(angle) / 1.1
        self.state = self.state + 0.02 * np.stack([v, speed, spin, turn], 1)
        self.age += 1
        over = (np.abs(self.state[:, 0]) > 2.4) | (np.abs(self.state[:, 2]) > 0.2095) | (self.age >= 500)
        self.state[over] = self.r.uniform(-0.05, 0.05, (int(over.sum()), 4))
        self.age[over] = 0
        return self.state.astype(np.float32), np.ones(self.n, np.float32), over


class Gym:
    """The same over gymnasium."""

    def __init__(self, n: int):
        import gymnasium

        self.n = n
        self.envs = [gymnasium.make("CartPole-v1") for _ in range(n)]

    def reset(self, r: np.random.Generator) -> np.ndarray:
        return np.stack([e.reset(seed=int(r.integers(2**31)))[0] for e in self.envs])

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        seen, rewards, over = [], [], []
        for e, a in zip(self.envs, actions, strict=True):
            s, reward, dead, cut, _ = e.step(int(a))
            over.append(dead or cut)
            rewards.append(reward)
            seen.append(e.reset()[0] if over[-1] else s)
        return np.stack(seen), np.array(rewards, np.float32), np.array(over)


class Policy(nn.Module):
    """Logits of the two actions, and how much is still to come."""

    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
        self.actor, self.critic = nn.Linear(width, 2), nn.Linear(width, 1)
        nn.init.orthogonal_(self.actor.weight, 0.01)

    def forward(self, x):
        h = self.body(x)
        return self.actor(h), self.critic(h).squeeze(-1)


def advantages(rewards, values, over, last, gamma=0.99, trace=0.95):
    """How much better each step went than was expected (generalised advantage estimation)."""
    found, running, following = np.zeros_like(rewards), 0.0, last
    for t in reversed(range(len(rewards))):
        alive = 1.0 - over[t]
        running = rewards[t] + gamma * following * alive - values[t] + gamma * trace * alive * running
        found[t], following = running, values[t]
    return found


def main(argv: list[str] | None = None, after=None) -> dict[str, float]:
    args = options(__doc__.splitlines()[0], argv, steps=60, envs=16, horizon=128, epochs=4, parts=4, lr=2.5e-3, gym=False)
    flame.manual_seed(args.seed)
    if args.small:
        args.envs, args.horizon, args.epochs, args.parts = 4, 16, 1, 2
    world: CartPoles | Gym = Gym(args.envs) if args.gym else CartPoles(args.envs)
    policy = Policy(16 if args.small else 64)
    optimizer = flame.optim.Adam(policy.parameters(), lr=args.lr, eps=1e-5)

    def learn(seen, actions, before, better, returns):
        optimizer.zero_grad()
        logits, values = policy(seen)
        log = F.log_softmax(logits, -1)
        chosen = log.gather(1, actions[:, None]).squeeze(1)
        ratio = (chosen - before).exp()
        better = (better - better.mean()) / (better.std() + 1e-8)
        gain = flame.minimum(ratio * better, ratio.clamp(0.8, 1.2) * better).mean()
        entropy = -(log.exp() * log).sum(1).mean()
        loss = -gain + 0.5 * F.mse_loss(values, returns) - 0.01 * entropy
        loss.backward()
        nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
        optimizer.step()
        return loss, entropy

    def act(seen):
        logits, value = policy(seen)
        return F.log_softmax(logits, -1), value

    run, look = compiled(learn, args), compiled(act, args)

    def step(i: int) -> dict:
        r = draws(args, i)
        seen = world.reset(r)
        rows: dict[str, list] = {k: [] for k in ("seen", "actions", "before", "values", "rewards", "over")}
        with flame.no_grad():
            for _ in range(args.horizon):
                log, value = (v.numpy() for v in look(flame.tensor(seen)))
                actions = (r.random(args.envs) < np.exp(log[:, 1])).astype(np.int64)
                after_it, rewards, over = world.step(actions)
                chosen = np.take_along_axis(log, actions[:, None], 1)[:, 0]
                for k, v in zip(rows, (seen, actions, chosen, value, rewards, over.astype(np.float32)), strict=True):
                    rows[k].append(v)
                seen = after_it
            last = look(flame.tensor(seen))[1].numpy()
        data = {k: np.stack(v) for k, v in rows.items()}
        better = advantages(data["rewards"], data["values"], data["over"], last).astype(np.float32)
        columns = [data["seen"], data["actions"], data["before"], better, better + data["values"]]
        flat = [c.reshape(-1, *c.shape[2:]) for c in columns]
        for _ in range(args.epochs):
            order = r.permutation(len(flat[0])).reshape(args.parts, -1)
            for part in order:
                loss, entropy = run(*[flame.tensor(c[part]) for c in flat])
        lives = data["over"].sum() + args.envs
        return {"length": args.envs * args.horizon / lives, "loss": loss, "entropy": entropy}

    return train(args, {"policy": policy, "optimizer": optimizer}, step, after)


if __name__ == "__main__":
    main()
