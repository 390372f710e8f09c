"""Models that `cpu_rows.py` measures, written against PyTorch's names: each takes the framework (or its nn and functional).

`pinn`, `gan` and `unet` give a loss to be differentiated and its parameters; the others give a Module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def gpt(torch: Any, width: int, heads: int, layers: int, vocabulary: int) -> Any:
    nn, F = torch.nn, torch.nn.functional

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x: Any) -> Any:
            n, t, c = x.shape
            q, k, v = (part.view(n, t, heads, -1).transpose(1, 2) for part in self.qkv(self.norm1(x)).split(c, dim=2))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(y.transpose(1, 2).reshape(n, t, c))
            return x + self.down(F.gelu(self.up(self.norm2(x))))

    parts = [nn.Embedding(vocabulary, width), *(Block() for _ in range(layers)), nn.LayerNorm(width)]
    return nn.Sequential(*parts, nn.Linear(width, vocabulary, bias=False))


def residual(nn: Any, F: Any) -> Any:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = (nn.Conv2d(64, 64, 3, padding=1, bias=False) for _ in range(2))
            self.norm1, self.norm2 = nn.BatchNorm2d(64), nn.BatchNorm2d(64)

        def forward(self, x: Any) -> Any:
            y = F.relu(self.norm1(self.conv1(x)))
            return F.relu(self.norm2(self.conv2(y)) + x)

    return Block()


def inverted(nn: Any, F: Any) -> Any:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Conv2d(24, 144, 1, bias=False), nn.Conv2d(144, 24, 1, bias=False)
            self.each = nn.Conv2d(144, 144, 3, padding=1, groups=144, bias=False)
            self.norm1, self.norm2, self.norm3 = nn.BatchNorm2d(144), nn.BatchNorm2d(144), nn.BatchNorm2d(24)

        def forward(self, x: Any) -> Any:
            y = F.relu6(self.norm1(self.up(x)))
            return x + self.norm3(self.down(F.relu6(self.norm2(self.each(y)))))

    return Block()


def policy(torch: Any) -> Any:
    nn = torch.nn
    return nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 4), nn.Softmax(-1))


def tagger(torch: Any, width: int, hidden: int, classes: int) -> Any:
    nn = torch.nn

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.recurrent, self.out = nn.LSTM(width, hidden, batch_first=True), nn.Linear(hidden, classes)

        def forward(self, x: Any) -> Any:
            return self.out(self.recurrent(x)[0])

    return Tagger()


def pinn(torch: Any, randn: Callable) -> tuple[Callable[[], Any], list]:
    """The residual of Burgers' equation, u_t + u u_x - nu u_xx, at random points."""
    nn = torch.nn
    net = nn.Sequential(
        nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)
    )
    at = randn(1024, 2).requires_grad_()

    def loss() -> Any:
        u = net(at)
        (du,) = torch.autograd.grad(u.sum(), at, create_graph=True)
        (d2u,) = torch.autograd.grad(du[:, 0].sum(), at, create_graph=True)
        return (du[:, 1] + u[:, 0] * du[:, 0] - 0.01 * d2u[:, 0]).square().mean()

    return loss, list(net.parameters())


def gan(torch: Any, randn: Callable) -> tuple[Callable[[], Any], list]:
    """Both players' losses on one batch, each with the other's part held still."""
    nn, F = torch.nn, torch.nn.functional
    make = nn.Sequential(nn.Linear(64, 256), nn.LeakyReLU(0.2), nn.Linear(256, 784), nn.Tanh())
    judge = nn.Sequential(nn.Linear(784, 256), nn.LeakyReLU(0.2), nn.Linear(256, 1))
    noise, real = randn(64, 64), randn(64, 784)

    def loss() -> Any:
        made = make(noise)
        fooled = F.softplus(-judge(made)).mean()
        told = F.softplus(-judge(real)).mean() + F.softplus(judge(made.detach())).mean()
        return fooled + told

    return loss, [*make.parameters(), *judge.parameters()]


def unet(torch: Any, randn: Callable) -> tuple[Callable[[], Any], list]:
    """Two scales, group norms, one skip: the denoiser of a small diffusion model."""
    nn, F = torch.nn, torch.nn.functional

    class Block(nn.Module):
        def __init__(self, c: int, o: int) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(c, o, 3, padding=1), nn.Conv2d(o, o, 3, padding=1)
            self.norm1, self.norm2 = nn.GroupNorm(8, o), nn.GroupNorm(8, o)

        def forward(self, x: Any) -> Any:
            return F.silu(self.norm2(self.conv2(F.silu(self.norm1(self.conv1(x))))))

    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.deep, self.leave = Block(3, 32), Block(32, 64), Block(96, 32)
            self.down, self.out = nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.Conv2d(32, 3, 1)

        def forward(self, x: Any) -> Any:
            high = self.enter(x)
            low = F.interpolate(self.deep(self.down(high)), scale_factor=2.0, mode="nearest")
            return self.out(self.leave(torch.cat([high, low], 1)))

    net, x, noise = UNet(), randn(4, 3, 32, 32), randn(4, 3, 32, 32)
    return lambda: F.mse_loss(net(x + noise), noise), list(net.parameters())
