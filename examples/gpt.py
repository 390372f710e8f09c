"""A GPT on text, character by character: python examples/gpt.py --compile --dtype bfloat16 --checkpoint gpt.flame

The text is the Python reference that comes with every Python, or any file by `--text`. With a narrow dtype, products are computed
in it and everything else in float32 (`flame.autocast`). `--accumulate N` takes N batches to a step, of which one program is made.
`--sample` writes some text at the end.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from common import compiled, draws, options, train

import flame
import flame.nn as nn
import flame.nn.functional as F
from flame.demo.data import python_topics
from flame.demo.models import CharGPT


def codes_of(path: str) -> tuple[np.ndarray, str]:
    """A text as codes, and its characters."""
    if not path:
        text = python_topics()
        return text.codes, text.characters
    content = Path(path).read_text(encoding="utf-8")
    characters = "".join(sorted(set(content)))
    place = {c: i for i, c in enumerate(characters)}
    return np.array([place[c] for c in content], np.int64), characters


def warm_cosine(warm: int, total: int, least: float = 0.1):
    """A rate that rises for `warm` steps and falls along a cosine to `least` of itself."""

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        along = min(1.0, (step - warm) / max(1, total - warm))
        return least + (1 - least) * 0.5 * (1 + math.cos(math.pi * along))

    return factor


def main(argv: list[str] | None = None, after=None) -> dict[str, float]:
    args = options(
        __doc__.splitlines()[0], argv, steps=1000, text="", dtype="float32", batch=16, context=128, width=192, heads=6, layers=4,
        lr=2e-3, accumulate=1, sample=False,
    )  # fmt: skip
    flame.manual_seed(args.seed)
    if args.small:
        args.batch, args.context, args.width, args.heads, args.layers = 4, 16, 16, 2, 1
    codes, characters = codes_of(args.text)
    held_out = codes[-len(codes) // 20 :]
    codes = codes[: -len(held_out)]
    model = CharGPT(len(characters), args.context, args.width, args.heads, args.layers)
    decay = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = flame.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95))
    scheduler = flame.optim.lr_scheduler.LambdaLR(optimizer, warm_cosine(min(100, args.steps // 10 + 1), args.steps))
    cast = flame.autocast("cpu", dtype=getattr(flame, args.dtype), enabled=args.dtype != "float32")

    def loss_of(x, y):
        with cast:
            return F.cross_entropy(model(x).flatten(0, 1), y.flatten())

    def learn(x, y):
        optimizer.zero_grad()
        total = 0.0
        for a, b in zip(x.chunk(args.accumulate), y.chunk(args.accumulate), strict=True):
            loss = loss_of(a, b) / args.accumulate
            loss.backward()
            total = total + loss.detach()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return total, norm

    run = compiled(learn, args)

    def batch(source: np.ndarray, step: int) -> tuple[flame.Tensor, flame.Tensor]:
        starts = draws(args, step).integers(0, len(source) - args.context, args.batch * args.accumulate)
        rows = source[starts[:, None] + np.arange(args.context + 1)]
        return flame.tensor(rows[:, :-1]), flame.tensor(rows[:, 1:])

    def step(i: int) -> dict:
        loss, norm = run(*batch(codes, i))
        scheduler.step()
        return {"loss": loss, "gradient": norm}

    measured = train(args, {"model": model, "optimizer": optimizer, "scheduler": scheduler}, step, after)
    with flame.no_grad():
        held = float(np.mean([loss_of(*batch(held_out, 10**6 + i)).item() for i in range(1 if args.small else 8)]))
    print(f"held-out loss {held:.4f}")
    if args.sample:
        print(write(model, characters, 200, args.seed))
    return {**measured, "held out": held}


def write(model: CharGPT, characters: str, length: int, seed: int) -> str:
    """Characters drawn one after the other."""
    r = np.random.default_rng(seed)
    codes = [characters.index(" ") if " " in characters else 0]
    with flame.no_grad():
        for _ in range(length):
            odds = F.softmax(model(flame.tensor([codes[-model.context :]]))[0, -1].double() / 0.8, -1).numpy()
            codes.append(int(r.choice(len(odds), p=odds / odds.sum())))
    return "".join(characters[c] for c in codes)


if __name__ == "__main__":
    main()
