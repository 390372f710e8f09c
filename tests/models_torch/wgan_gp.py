"""A Wasserstein critic with a gradient penalty: derivatives of derivatives, spectral norm, an average of weights kept beside."""

import copy

import numpy as np
import torch
from torch import autograd, nn
from torch.nn.utils import spectral_norm


class Critic(nn.Module):
    def __init__(self, channels: int = 1, width: int = 4) -> None:
        super().__init__()

        def block(i, o):
            return nn.Sequential(
                nn.Conv2d(i, o, 3, 2, 1, bias=False), nn.InstanceNorm2d(o, affine=True), nn.LeakyReLU(0.2, inplace=True)
            )

        self.net = nn.Sequential(nn.Conv2d(channels, width, 3, 1, 1), nn.LeakyReLU(0.2), block(width, 2 * width))
        self.head = spectral_norm(nn.Linear(2 * width * 16, 1))

    def forward(self, x):
        return self.head(torch.flatten(self.net(x), 1)).view(-1)


class Generator(nn.Module):
    def __init__(self, z: int = 5, width: int = 4) -> None:
        super().__init__()
        self.z = z
        self.net = nn.Sequential(
            nn.ConvTranspose2d(z, 2 * width, 4, 1, 0, bias=False), nn.GroupNorm(2, 2 * width), nn.ReLU(True),
            nn.ConvTranspose2d(2 * width, 1, 4, 2, 1), nn.Tanh(),
        )  # fmt: skip

    def forward(self, z):
        return self.net(z.view(z.size(0), self.z, 1, 1))


class EMA:
    def __init__(self, model, decay=0.9):
        self.decay, self.shadow = decay, copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model):
        for kept, now in zip(self.shadow.parameters(), model.parameters()):
            kept.mul_(self.decay).add_(now.data, alpha=1 - self.decay)
        return torch.cat([p.flatten() for p in self.shadow.parameters()])


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator, self.critic = Generator(), Critic()


def gradient_penalty(critic, real, fake, alpha):
    mixed = (alpha * real.data + (1 - alpha) * fake.data).requires_grad_(True)
    scores = critic(mixed)
    (gradients,) = autograd.grad(
        outputs=scores, inputs=mixed, grad_outputs=torch.ones_like(scores), create_graph=True, retain_graph=True,
        only_inputs=True,
    )  # fmt: skip
    return ((gradients.reshape(len(gradients), -1).norm(2, dim=1) - 1) ** 2).mean()


def build():
    return Pair()


def batch(r):
    return [
        a.astype(np.float32) for a in (r.standard_normal((3, 1, 8, 8)), r.standard_normal((3, 5)), r.uniform(size=(3, 1, 1, 1)))
    ]


def loss(model, real, z, alpha):
    model.critic.head.eval()  # (its vectors stay what they are)
    fake = model.generator(z)
    penalty = gradient_penalty(model.critic, real, fake, alpha)
    value = model.critic(fake.detach()).mean() - model.critic(real).mean() + 10.0 * penalty - 0.1 * model.critic(fake).mean()
    return value, [fake, penalty, EMA(model.generator).update(model.generator)]
