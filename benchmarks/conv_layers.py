"""The layers that `benchmarks/conv.py` measures: convolutions of well-known networks, as (channels, size, filters, window, stride).

A window of -c is a depthwise one of c; transposed ones are named in `TRANSPOSED`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

IMAGES = 2
LAYERS: dict[str, list[tuple[int, int, int, int, int]]] = {
    "ResNet": [
        (3, 224, 64, 7, 2), (64, 56, 64, 3, 1), (64, 56, 128, 3, 2), (128, 28, 128, 3, 1), (128, 28, 256, 3, 2),
        (256, 14, 256, 3, 1), (256, 14, 512, 3, 2), (512, 7, 512, 3, 1), (64, 56, 256, 1, 1), (256, 56, 64, 1, 1),
        (256, 56, 512, 1, 2), (512, 28, 128, 1, 1), (128, 28, 512, 1, 1), (1024, 14, 256, 1, 1), (256, 14, 1024, 1, 1),
        (2048, 7, 512, 1, 1),
    ],
    "MobileNetV2": [
        (3, 224, 32, 3, 2), (32, 112, 32, -3, 1), (16, 112, 96, 1, 1), (96, 112, 96, -3, 2), (24, 56, 144, 1, 1),
        (144, 56, 144, -3, 1), (144, 56, 24, 1, 1), (192, 28, 192, -3, 1), (192, 28, 32, 1, 1), (384, 14, 384, -3, 1),
        (384, 14, 64, 1, 1), (576, 14, 576, -3, 2), (960, 7, 960, -3, 1), (320, 7, 1280, 1, 1),
    ],
    "U-Net": [
        (3, 128, 64, 3, 1), (64, 128, 64, 3, 1), (64, 64, 128, 3, 1), (128, 64, 128, 3, 1), (256, 32, 256, 3, 1),
        (512, 32, 256, 3, 1),
    ],
}  # fmt: skip
TRANSPOSED = [(256, 32, 128), (128, 64, 64)]  #: windows of 2 x 2, stride 2


def layers(F: Any, randn: Callable, forward: Callable, training: Callable) -> dict[str, Callable[[], Any]]:
    """The rows of a framework, by its functional namespace and what measures a function of tensors."""
    rows: dict[str, Callable[[], Any]] = {}

    def add(name: str, f: Callable, x: tuple[int, ...], w: tuple[int, ...]) -> None:
        rows[name] = lambda: forward(f, randn(*x), randn(*w))
        rows[f"{name}, training"] = lambda: training(f, randn(*x, grad=True), randn(*w, grad=True))

    for network, found in LAYERS.items():
        for c, size, o, window, s in found:
            k, groups = abs(window), c if window < 0 else 1

            def f(x: Any, w: Any, s: int = s, k: int = k, groups: int = groups) -> Any:
                return F.conv2d(x, w, None, s, k // 2, 1, groups)

            kind = "depthwise" if window < 0 else f"-> {o}"
            name = f"{network}: {c} x {size} x {size} {kind}, {k}x{k}{f' / {s}' if s > 1 else ''}"
            add(name, f, (IMAGES, c, size, size), (o, c // groups, k, k))
    for c, size, o in TRANSPOSED:
        name = f"U-Net: {c} x {size} x {size} -> {o}, 2x2 / 2, transposed"
        add(name, lambda x, w: F.conv_transpose2d(x, w, None, 2), (IMAGES, c, size, size), (c, o, 2, 2))
    return rows
