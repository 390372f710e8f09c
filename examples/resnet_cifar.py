"""A ResNet (He et al., 2015) on images of CIFAR's shape: python examples/resnet_cifar.py --compile

With `--data DIR` it reads CIFAR-10's Python files (`data_batch_1`, ... as they come from its archive, which are pickles: use a copy
that you trust). Without it, classes are coloured gratings at random angles and places, which take a network to tell apart.
"""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import numpy as np
from common import compiled, draws, options, train

import flame
import flame.nn as nn
import flame.nn.functional as F
from flame.utils import transforms


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, channels: int, out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != out:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x):
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def resnet(width: int, blocks: tuple[int, ...], classes: int = 10) -> nn.Sequential:
    """A stem, stages of blocks that each halve the plane and double the channels, an average, a linear layer."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    channels = width
    for stage, count in enumerate(blocks):
        for i in range(count):
            out = width * 2**stage
            layers.append(Block(channels, out, 2 if stage and not i else 1))
            channels = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def gratings(n: int, r: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 3, 32, 32) in [0, 1] of ten kinds of gratings: two frequencies by five colours."""
    labels = r.integers(0, 10, n)
    y, x = np.mgrid[0:32, 0:32] / 32
    angle, phase = r.uniform(0, math.pi, (n, 1, 1)), r.uniform(0, 6.3, (n, 1, 1))
    wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * (20 + 25 * (labels % 2))[:, None, None] + phase)
    hue = (labels // 2)[:, None] * 1.26 + np.array([0, 2.1, 4.2])
    colour = (1 + np.cos(hue))[:, :, None, None] / 2
    images = 0.5 + 0.25 * wave[:, None] * colour + 0.1 * r.standard_normal((n, 3, 32, 32))
    return np.clip(images, 0, 1).astype(np.float32), labels.astype(np.int64)


def cifar(folder: str) -> tuple[np.ndarray, np.ndarray]:
    """CIFAR-10's training images and labels."""
    files = sorted(Path(folder).glob("data_batch_*"))
    if not files:
        raise SystemExit(f"{folder} has no files data_batch_1, ...: unpack CIFAR-10's Python archive there")
    parts = [pickle.loads(f.read_bytes(), encoding="bytes") for f in files]
    images = np.concatenate([p[b"data"] for p in parts]).reshape(-1, 3, 32, 32)
    return images.astype(np.float32) / 255, np.concatenate([p[b"labels"] for p in parts]).astype(np.int64)


def main(argv: list[str] | None = None, after=None) -> dict[str, float]:
    args = options(__doc__.splitlines()[0], argv, steps=600, data="", batch=64, lr=0.1)
    flame.manual_seed(args.seed)
    images, labels = cifar(args.data) if args.data else gratings(256 if args.small else 8192, draws(args, 10**9))
    batch = 8 if args.small else args.batch
    model = resnet(4, (1, 1)) if args.small else resnet(16, (2, 2, 2, 2))
    optimizer = flame.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
    scheduler = flame.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=max(args.steps, 2))
    augment = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4, padding_mode="reflect"),
            transforms.RandomHorizontalFlip(),
            transforms.Normalize((0.49, 0.48, 0.45), (0.25, 0.24, 0.26)),
        ]
    )

    def learn(x, t):
        optimizer.zero_grad()
        logits = model(x)
        loss = F.cross_entropy(logits, t, label_smoothing=0.1)
        loss.backward()
        optimizer.step()
        return loss, (logits.argmax(1) == t).float().mean()

    run = compiled(learn, args)

    def step(i: int) -> dict:
        rows = draws(args, i).integers(0, len(images), batch)
        loss, accuracy = run(augment(flame.tensor(images[rows])), flame.tensor(labels[rows]))
        scheduler.step()
        return {"loss": loss, "accuracy": accuracy}

    return train(args, {"model": model, "optimizer": optimizer, "scheduler": scheduler}, step, after)


if __name__ == "__main__":
    main()
