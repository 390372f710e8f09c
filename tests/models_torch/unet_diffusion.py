"""A denoising U-Net with sinusoidal times, and the noise schedule of a diffusion model around it."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F


class SinusoidalPositionEmbeddings(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.dim = dim

    def forward(self, time):
        device = time.device
        half_dim = self.dim // 2
        embeddings = math.log(10000) / (half_dim - 1)
        embeddings = torch.exp(torch.arange(half_dim, device=device) * -embeddings)
        embeddings = time[:, None] * embeddings[None, :]
        return torch.cat((embeddings.sin(), embeddings.cos()), dim=-1)


class ResBlock(nn.Module):
    def __init__(self, dim, dim_out, time_dim, groups=2):
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(time_dim, dim_out * 2))
        self.block1 = nn.Sequential(nn.GroupNorm(groups, dim), nn.SiLU(), nn.Conv2d(dim, dim_out, 3, padding=1))
        self.norm2 = nn.GroupNorm(groups, dim_out)
        self.conv2 = nn.Conv2d(dim_out, dim_out, 3, padding="same")
        self.res_conv = nn.Conv2d(dim, dim_out, 1) if dim != dim_out else nn.Identity()

    def forward(self, x, t):
        scale, shift = self.mlp(t)[:, :, None, None].chunk(2, dim=1)
        h = self.norm2(self.block1(x)) * (scale + 1) + shift
        return self.conv2(F.silu(h)) + self.res_conv(x)


class SpatialAttention(nn.Module):
    def __init__(self, dim, heads=2):
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(1, dim)
        self.qkv, self.out = nn.Conv2d(dim, dim * 3, 1, bias=False), nn.Conv2d(dim, dim, 1)

    def forward(self, x):
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, 3, self.heads, c // self.heads, h * w).unbind(1)
        out = F.scaled_dot_product_attention(q.mT, k.mT, v.mT).mT.reshape(b, c, h, w)
        return x + self.out(out)


class Unet(nn.Module):
    def __init__(self, dim=4, channels=1, mults=(1, 2)):
        super().__init__()
        dims = [dim, *map(lambda m: dim * m, mults)]
        in_out = list(zip(dims[:-1], dims[1:]))
        time_dim = dim * 4
        self.init_conv = nn.Conv2d(channels, dim, 7, padding=3)
        self.time_mlp = nn.Sequential(
            SinusoidalPositionEmbeddings(dim), nn.Linear(dim, time_dim), nn.GELU(), nn.Linear(time_dim, time_dim)
        )
        self.downs, self.ups = nn.ModuleList([]), nn.ModuleList([])
        for i, (a, b) in enumerate(in_out):
            last = i >= len(in_out) - 1
            down = nn.Conv2d(b, b, 3, padding=1) if last else nn.Conv2d(b, b, 4, 2, 1)
            self.downs.append(nn.ModuleList([ResBlock(a, b, time_dim), down]))
        self.mid1, self.mid_attn = ResBlock(dims[-1], dims[-1], time_dim), SpatialAttention(dims[-1])
        for i, (a, b) in enumerate(reversed(in_out)):
            last = i == len(in_out) - 1
            up = nn.Conv2d(a, a, 3, padding=1) if last else nn.ConvTranspose2d(a, a, 4, 2, 1)
            self.ups.append(nn.ModuleList([ResBlock(b * 2, a, time_dim), up]))
        self.final_conv = nn.Sequential(nn.GroupNorm(2, dim), nn.SiLU(), nn.Conv2d(dim, channels, 1))

    def forward(self, x, time):
        x = self.init_conv(x)
        t = self.time_mlp(time)
        h = []
        for block, downsample in self.downs:
            x = block(x, t)
            h.append(x)
            x = downsample(x)
        x = self.mid_attn(self.mid1(x, t))
        for block, upsample in self.ups:
            skip = h.pop()
            if x.shape[-2:] != skip.shape[-2:]:
                x = F.interpolate(x, size=skip.shape[-2:], mode="nearest")
            x = upsample(block(torch.cat((x, skip), dim=1), t))
        x = F.interpolate(x, size=(8, 8), mode="bilinear", align_corners=False)
        return self.final_conv(x)


class Diffusion(nn.Module):
    def __init__(self, model, timesteps=20):
        super().__init__()
        self.model, self.num_timesteps = model, timesteps
        betas = torch.linspace(1e-4, 0.02, timesteps, dtype=torch.float64)
        alphas_cumprod = torch.cumprod(1.0 - betas, axis=0)
        self.register_buffer("sqrt_alphas_cumprod", torch.sqrt(alphas_cumprod).to(torch.float32))
        self.register_buffer("sqrt_one_minus", torch.sqrt(1.0 - alphas_cumprod).float())
        self.register_buffer("prev", F.pad(alphas_cumprod[:-1], (1, 0), value=1.0).float())

    def extract(self, a, t, x_shape):
        out = a.gather(-1, t)
        return out.reshape(t.shape[0], *((1,) * (len(x_shape) - 1)))

    def forward(self, x_start, t, noise):
        shape = x_start.shape
        x = self.extract(self.sqrt_alphas_cumprod, t, shape) * x_start + self.extract(self.sqrt_one_minus, t, shape) * noise
        predicted = self.model(x, t)
        value = F.mse_loss(predicted, noise, reduction="none").flatten(1).mean(1) * (1 + self.extract(self.prev, t, (1,)))
        return value.mean(), predicted


def build():
    return Diffusion(Unet())


def batch(r):
    images = r.standard_normal((2, 2, 1, 8, 8)).astype("float32")
    return images[0], r.integers(0, 20, (2,)), images[1]


def loss(model, x, t, noise):
    value, predicted = model(x, t, noise)
    return value, [predicted]
