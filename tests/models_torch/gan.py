"""A DCGAN with spectral normalisation: weights by module name, losses of both players, a gradient penalty of second order."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import autograd
from torch.nn.utils import spectral_norm


def weights_init(m):
    classname = m.__class__.__name__
    if classname.find("Conv") != -1 and hasattr(m, "weight"):
        nn.init.normal_(m.weight.data, 0.0, 0.2)
    elif classname.find("BatchNorm") != -1:
        nn.init.normal_(m.weight.data, 1.0, 0.02)
        nn.init.constant_(m.bias.data, 0)


class Generator(nn.Module):
    def __init__(self, nz=5, ngf=4, nc=1):
        super().__init__()
        self.main = nn.Sequential(
            nn.ConvTranspose2d(nz, ngf * 2, 4, 1, 0, bias=False),
            nn.BatchNorm2d(ngf * 2),
            nn.ReLU(True),
            nn.ConvTranspose2d(ngf * 2, nc, 4, 2, 1, bias=False),
            nn.Tanh(),
        )

    def forward(self, input):
        return self.main(input)


class Discriminator(nn.Module):
    def __init__(self, ndf=4, nc=1):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(nc, ndf, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True))
        self.score = spectral_norm(nn.Linear(ndf * 16, 1), n_power_iterations=1)

    def forward(self, input):
        return self.score(self.features(input).flatten(1)).view(-1)


class GAN(nn.Module):
    def __init__(self):
        super().__init__()
        self.netG, self.netD = Generator(), Discriminator()
        self.apply(weights_init)

    def gradient_penalty(self, real, fake, alpha):
        interpolates = (alpha * real + (1 - alpha) * fake.detach()).requires_grad_(True)
        scores = self.netD(interpolates)
        gradients = autograd.grad(
            outputs=scores, inputs=interpolates, grad_outputs=torch.ones_like(scores), create_graph=True, retain_graph=True,
            only_inputs=True,
        )[0]  # fmt: skip
        gradients = gradients.view(gradients.size(0), -1)
        return ((gradients.norm(2, dim=1) - 1) ** 2).mean()

    def forward(self, real, z, alpha):
        fake = self.netG(z)
        penalty = self.gradient_penalty(real, fake, alpha)
        d_real, d_fake = self.netD(real), self.netD(fake.detach())
        loss_d = F.softplus(-d_real).mean() + F.softplus(d_fake).mean() + 10.0 * penalty
        label = torch.full((real.size(0),), 1.0, dtype=torch.float)
        loss_g = F.binary_cross_entropy_with_logits(self.netD(fake), label)
        return loss_d, loss_g, fake


def build():
    return GAN().eval()


def batch(r):
    return (
        r.standard_normal((3, 1, 8, 8)).astype("float32"),
        r.standard_normal((3, 5, 1, 1)).astype("float32"),
        r.random((3, 1, 1, 1)).astype("float32"),
    )


def loss(model, real, z, alpha):
    loss_d, loss_g, fake = model(real, z, alpha)
    return loss_d + loss_g, [loss_d, loss_g, fake]
