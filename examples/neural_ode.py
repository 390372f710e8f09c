"""A neural differential equation (Chen et al., 2018) that learns a spiral: python examples/neural_ode.py --compile

dx/dt = f(x) is integrated by Runge and Kutta's fourth-order method; gradients flow back through all its steps. Eagerly that is a
few thousand small operations a training step; compiled it is one program.
"""

from __future__ import annotations

import numpy as np
from common import compiled, draws, options, train

import flame
import flame.nn as nn


def integrate(f, x, dt: float, steps: int):
    """x at 0, dt, 2 dt, ...: [steps + 1, *x.shape]."""
    path = [x]
    for _ in range(steps):
        k1 = f(x)
        k2 = f(x + 0.5 * dt * k1)
        k3 = f(x + 0.5 * dt * k2)
        k4 = f(x + dt * k3)
        x = x + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        path.append(x)
    return flame.stack(path)


class Field(nn.Module):
    """The right-hand side: a small network of the cubes of the place."""

    def __init__(self, width: int):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 2))

    def forward(self, x):
        return self.net(x**3)


def main(argv: list[str] | None = None, after=None) -> dict[str, float]:
    args = options(__doc__.splitlines()[0], argv, steps=500, batch=32, horizon=10, width=50, lr=5e-3)
    flame.manual_seed(args.seed)
    if args.small:
        args.batch, args.horizon, args.width = 4, 3, 8
    matrix = flame.tensor([[-0.1, 2.0], [-2.0, -0.1]])
    with flame.no_grad():
        truth = integrate(lambda x: x**3 @ matrix, flame.tensor([[2.0, 0.0]]), 0.025, 100 if args.small else 1000)[:, 0]
    field = Field(args.width)
    optimizer = flame.optim.Adam(field.parameters(), lr=args.lr)

    def learn(start, path):
        optimizer.zero_grad()
        loss = (integrate(field, start, 0.025, args.horizon) - path).abs().mean()
        loss.backward()
        optimizer.step()
        return loss

    run = compiled(learn, args)

    def step(i: int) -> dict:
        at = draws(args, i).integers(0, len(truth) - args.horizon, args.batch)
        rows = flame.tensor(at[None, :] + np.arange(args.horizon + 1)[:, None])
        path = truth[rows]
        return {"loss": run(path[0], path)}

    return train(args, {"field": field, "optimizer": optimizer}, step, after)


if __name__ == "__main__":
    main()
