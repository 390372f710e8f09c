"""Models that `gpu_rows.py` measures, written against PyTorch's names. Each gives (Module, its vocabulary or the side of its
images); `small` has the same parts at sizes that an interpreter can run."""

from __future__ import annotations

from typing import Any

from benchmarks.cpu_models import gpt


def gpt2(torch: Any, small: bool) -> tuple[Any, int]:
    """GPT-2's shape at 124 million parameters, without learned positions."""
    vocabulary = 32 if small else 50304
    return gpt(torch, *((16, 2, 1) if small else (768, 12, 12)), vocabulary), vocabulary


def llama(torch: Any, small: bool) -> tuple[Any, int]:
    """Llama's blocks at 1.2 billion parameters: RMS norms, rotary positions, grouped queries, gated feed-forward."""
    nn, F = torch.nn, torch.nn.functional
    width, heads, groups, hidden, layers, vocabulary = (16, 2, 1, 32, 1, 32) if small else (2048, 32, 8, 8192, 16, 32768)
    size = width // heads

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
            self.q, self.out = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
            self.kv = nn.Linear(width, 2 * groups * size, bias=False)
            self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
            self.down = nn.Linear(hidden, width, bias=False)

        def forward(self, x: Any, cos: Any, sin: Any) -> Any:
            n, t, _ = x.shape
            y = self.norm1(x)
            q = self.q(y).view(n, t, heads, size).transpose(1, 2)
            k, v = self.kv(y).view(n, t, 2, groups, size).permute(2, 0, 3, 1, 4).unbind(0)

            def turned(z: Any) -> Any:
                a, b = z.chunk(2, -1)
                return z * cos + torch.cat([-b, a], -1) * sin

            k, v = (z.repeat_interleave(heads // groups, 1) for z in (turned(k), v))
            z = F.scaled_dot_product_attention(turned(q), k, v, is_causal=True)
            x = x + self.out(z.transpose(1, 2).reshape(n, t, width))
            y = self.norm2(x)
            return x + self.down(F.silu(self.gate(y)) * self.up(y))

    class Llama(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(vocabulary, width)
            self.blocks = nn.ModuleList([Block() for _ in range(layers)])
            self.norm, self.head = nn.RMSNorm(width), nn.Linear(width, vocabulary, bias=False)

        def forward(self, tokens: Any) -> Any:
            x = self.embed(tokens)
            t = torch.arange(tokens.shape[1], device=tokens.device).float()
            rates = 10000.0 ** (-torch.arange(0, size, 2, device=tokens.device).float() / size)
            angle = torch.outer(t, rates)
            angle = torch.cat([angle, angle], -1)
            cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
            for block in self.blocks:
                x = block(x, cos, sin)
            return self.head(self.norm(x[:, -1:]))

    return Llama(), vocabulary


def resnet50(torch: Any, small: bool) -> tuple[Any, int]:
    nn, F = torch.nn, torch.nn.functional
    depths, base, side = ((1, 1), 2, 16) if small else ((3, 4, 6, 3), 64, 224)

    class Bottleneck(nn.Module):
        def __init__(self, into: int, width: int, stride: int) -> None:
            super().__init__()
            self.convs = nn.ModuleList(
                [
                    nn.Conv2d(into, width, 1, bias=False),
                    nn.Conv2d(width, width, 3, stride, 1, bias=False),
                    nn.Conv2d(width, 4 * width, 1, bias=False),
                ]
            )
            self.norms = nn.ModuleList([nn.BatchNorm2d(width), nn.BatchNorm2d(width), nn.BatchNorm2d(4 * width)])
            self.short = None
            if stride != 1 or into != 4 * width:
                self.short = nn.Sequential(nn.Conv2d(into, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width))

        def forward(self, x: Any) -> Any:
            y = x
            for i, (conv, norm) in enumerate(zip(self.convs, self.norms)):
                y = norm(conv(y))
                y = F.relu(y) if i < 2 else y
            return F.relu(y + (x if self.short is None else self.short(x)))

    parts = [nn.Conv2d(3, base, 7, 2, 3, bias=False), nn.BatchNorm2d(base), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    channels = base
    for stage, depth in enumerate(depths):
        for i in range(depth):
            width = base << stage
            parts.append(Bottleneck(channels, width, 2 if stage and not i else 1))
            channels = 4 * width
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000)), side


def vit(torch: Any, small: bool) -> tuple[Any, int]:
    """ViT-B/16: patches by a strided convolution, pre-norm blocks, the mean over tokens."""
    nn, F = torch.nn, torch.nn.functional
    width, heads, layers, patch, side = (16, 2, 1, 4, 8) if small else (768, 12, 12, 16, 224)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x: Any) -> Any:
            n, t, c = x.shape
            q, k, v = self.qkv(self.norm1(x)).view(n, t, 3, heads, c // heads).permute(2, 0, 3, 1, 4).unbind(0)
            x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, c))
            return x + self.down(F.gelu(self.up(self.norm2(x))))

    class ViT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, width, patch, patch)
            self.positions = nn.Parameter(torch.zeros(1, (side // patch) ** 2, width))
            self.blocks = nn.Sequential(*[Block() for _ in range(layers)])
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 1000)

        def forward(self, x: Any) -> Any:
            x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
            return self.head(self.norm(self.blocks(x)).mean(1))

    return ViT(), side


def unet(torch: Any, small: bool) -> tuple[Any, int]:
    """A diffusion U-Net's shape: three levels of residual blocks with group norm, and skips across."""
    nn, F = torch.nn, torch.nn.functional
    base, side = (4, 8) if small else (128, 64)

    class Block(nn.Module):
        def __init__(self, into: int, out: int) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.GroupNorm(4, into), nn.GroupNorm(4, out)
            self.conv1, self.conv2 = nn.Conv2d(into, out, 3, padding=1), nn.Conv2d(out, out, 3, padding=1)
            self.short = nn.Conv2d(into, out, 1)

        def forward(self, x: Any) -> Any:
            y = self.conv1(F.silu(self.norm1(x)))
            return self.conv2(F.silu(self.norm2(y))) + self.short(x)

    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            a, b, c = base, 2 * base, 4 * base
            self.first, self.last = nn.Conv2d(4, a, 3, padding=1), nn.Conv2d(a, 4, 3, padding=1)
            self.down1, self.down2, self.middle = Block(a, a), Block(a, b), Block(b, c)
            self.up2, self.up1 = Block(c + b, b), Block(b + a, a)

        def forward(self, x: Any) -> Any:
            x = self.down1(self.first(x))
            y = self.down2(F.avg_pool2d(x, 2))
            z = self.middle(F.avg_pool2d(y, 2))
            z = self.up2(torch.cat([F.interpolate(z, scale_factor=2.0), y], 1))
            z = self.up1(torch.cat([F.interpolate(z, scale_factor=2.0), x], 1))
            return self.last(z)

    return UNet(), side
