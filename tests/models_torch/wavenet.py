"""A WaveNet: dilated causal convolutions with gates, weight normalisation, skip connections, mu-law audio."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.utils import weight_norm


def mu_law_encode(x, quantization_channels=16):
    mu = torch.tensor(quantization_channels - 1.0, dtype=x.dtype)
    x_mu = torch.sign(x) * torch.log1p(mu * torch.abs(x)) / torch.log1p(mu)
    return ((x_mu + 1) / 2 * mu + 0.5).to(torch.int64)


class CausalConv1d(nn.Conv1d):
    def __init__(self, in_channels, out_channels, kernel_size, dilation=1, **kwargs):
        super().__init__(in_channels, out_channels, kernel_size, padding=0, dilation=dilation, **kwargs)
        self.left = (kernel_size - 1) * dilation

    def forward(self, x):
        return super().forward(F.pad(x, (self.left, 0)))


class ResidualLayer(nn.Module):
    def __init__(self, channels, dilation):
        super().__init__()
        self.conv = weight_norm(CausalConv1d(channels, 2 * channels, 2, dilation=dilation))
        self.res, self.skip = nn.Conv1d(channels, channels, 1), nn.Conv1d(channels, channels, 1)

    def forward(self, x):
        a, b = self.conv(x).chunk(2, dim=1)
        z = torch.tanh(a) * torch.sigmoid(b)
        return (x + self.res(z)) * math.sqrt(0.5), self.skip(z)


class WaveNet(nn.Module):
    def __init__(self, classes=16, channels=5, cycles=2, depth=3):
        super().__init__()
        self.classes = classes
        self.front = nn.Conv1d(classes, channels, kernel_size=1)
        self.layers = nn.ModuleList(ResidualLayer(channels, 2**i) for _ in range(cycles) for i in range(depth))
        self.end = nn.Sequential(nn.ReLU(), nn.Conv1d(channels, channels, 1), nn.ReLU(), nn.Conv1d(channels, classes, 1))

    def forward(self, audio):
        codes = mu_law_encode(audio, self.classes)
        x = self.front(F.one_hot(codes, self.classes).permute(0, 2, 1).float())
        skips = 0
        for layer in self.layers:
            x, skip = layer(x)
            skips = skips + skip
        return self.end(skips * (1.0 / len(self.layers)) ** 0.5), codes


def build():
    return WaveNet()


def batch(r):
    return (r.uniform(-1, 1, (2, 24)).astype("float32"),)


def loss(model, audio):
    logits, codes = model(audio)
    return F.cross_entropy(logits[:, :, :-1], codes[:, 1:]), [logits, codes]
