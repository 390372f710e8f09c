"""A PPO agent in CleanRL's manner: orthogonal layers, distributions of actions, advantages by a backward loop, a clipped loss."""

import torch
import torch.nn as nn
from torch.distributions.categorical import Categorical
from torch.distributions.normal import Normal


def layer_init(layer, std=2**0.5, bias_const=0.0):
    torch.nn.init.orthogonal_(layer.weight, std)
    torch.nn.init.constant_(layer.bias, bias_const)
    return layer


class Agent(nn.Module):
    def __init__(self, observations=5, actions=3, continuous=2):
        super().__init__()
        self.critic = nn.Sequential(
            layer_init(nn.Linear(observations, 8)), nn.Tanh(), layer_init(nn.Linear(8, 8)), nn.Tanh(),
            layer_init(nn.Linear(8, 1), std=1.0),
        )  # fmt: skip
        self.actor = nn.Sequential(
            layer_init(nn.Linear(observations, 8)), nn.Tanh(), layer_init(nn.Linear(8, actions), std=0.01)
        )
        self.actor_mean = layer_init(nn.Linear(observations, continuous), std=0.01)
        self.actor_logstd = nn.Parameter(torch.zeros(1, continuous))

    def get_value(self, x):
        return self.critic(x)

    def get_action_and_value(self, x, action, force):
        probs = Categorical(logits=self.actor(x))
        action_mean = self.actor_mean(x)
        normal = Normal(action_mean, torch.exp(self.actor_logstd.expand_as(action_mean)))
        log_prob = probs.log_prob(action) + normal.log_prob(force).sum(1)
        return log_prob, probs.entropy() + normal.entropy().sum(1), self.critic(x)


def advantages_of(rewards, values, dones, next_value, gamma=0.99, gae_lambda=0.95):
    with torch.no_grad():
        advantages = torch.zeros_like(rewards)
        lastgaelam = 0
        for t in reversed(range(len(rewards))):
            nextvalues = next_value if t == len(rewards) - 1 else values[t + 1]
            nextnonterminal = 1.0 - dones[t]
            delta = rewards[t] + gamma * nextvalues * nextnonterminal - values[t]
            advantages[t] = lastgaelam = delta + gamma * gae_lambda * nextnonterminal * lastgaelam
        return advantages, advantages + values


def build():
    return Agent()


def batch(r):
    n = 6
    return (
        r.standard_normal((n, 5)).astype("float32"), r.integers(0, 3, (n,)), r.standard_normal((n, 2)).astype("float32"),
        r.standard_normal((n,)).astype("float32"), (r.random(n) < 0.2).astype("float32"),
        r.standard_normal((n,)).astype("float32"),
    )  # fmt: skip


def loss(agent, obs, action, force, rewards, dones, old_logprob, clip_coef=0.2, ent_coef=0.01, vf_coef=0.5):
    newlogprob, entropy, newvalue = agent.get_action_and_value(obs, action, force)
    newvalue = newvalue.view(-1)
    old_values = newvalue.detach() + 0.1
    b_advantages, b_returns = advantages_of(rewards, old_values, dones, agent.get_value(obs[-1:]).reshape(-1))
    logratio = newlogprob - old_logprob
    ratio = logratio.exp()
    with torch.no_grad():
        approx_kl = ((ratio - 1) - logratio).mean()
        clipfrac = ((ratio - 1.0).abs() > clip_coef).float().mean().item()
    mb_advantages = (b_advantages - b_advantages.mean()) / (b_advantages.std() + 1e-8)
    pg_loss1 = -mb_advantages * ratio
    pg_loss2 = -mb_advantages * torch.clamp(ratio, 1 - clip_coef, 1 + clip_coef)
    pg_loss = torch.max(pg_loss1, pg_loss2).mean()
    v_clipped = old_values + torch.clamp(newvalue - old_values, -clip_coef, clip_coef)
    v_loss = 0.5 * torch.max((newvalue - b_returns) ** 2, (v_clipped - b_returns) ** 2).mean()
    return pg_loss - ent_coef * entropy.mean() + v_loss * vf_coef, [newlogprob, b_returns, approx_kl, clipfrac]
