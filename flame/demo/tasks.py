"""What the demo trains: `digits_task()` and `text_task()`, each a `Task` at one of two sizes.

A task hands out its own batches by step number, so that an eager and a compiled run see the same data in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

import flame
import flame.nn as nn
import flame.nn.functional as F
from flame import Tensor
from flame.demo.data import Images, Text, digits, python_topics
from flame.demo.models import CharGPT, DigitNet


@dataclass(frozen=True)
class Task:
    """One training problem. `batch(step)` gives NumPy inputs and targets of the same shapes at every step.

    A compiled run takes `steps`, an eager one the first `eager_steps` of them: enough to compare without a wait.
    """

    name: str
    title: str
    steps: int
    eager_steps: int
    learning_rate: float
    model: Callable[[], nn.Module]
    batch: Callable[[int], tuple[np.ndarray, np.ndarray]]
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor]
    #: what the trained model can do, in words: an accuracy, or a text that it wrote
    result: Callable[[nn.Module], str]


def digits_task(quick: bool, seed: int = 0) -> Task:
    """Handwritten digits, by a convolutional network with batch normalisation."""
    images = digits(seed)
    size, per_epoch = 64, len(images.train_x) // 64
    channels = 16 if quick else 32
    epochs = 6 if quick else 12

    def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
        epoch, place = divmod(step, per_epoch)
        order = np.random.default_rng((seed, epoch)).permutation(len(images.train_x))
        rows = order[place * size : (place + 1) * size]
        return images.train_x[rows], images.train_y[rows]

    return Task(
        name="digits",
        title="a convolutional classifier on handwritten digits",
        steps=epochs * per_epoch,
        eager_steps=3 * per_epoch if quick else epochs * per_epoch,
        learning_rate=2e-3,
        model=lambda: DigitNet(channels),
        batch=batch,
        loss=lambda model, x, y: F.cross_entropy(model(x), y),
        result=lambda model: f"{accuracy(model, images):.2%} of {len(images.test_x)} held-out images",
    )


def text_task(quick: bool, seed: int = 0) -> Task:
    """The Python reference's English, character by character, by a GPT."""
    text = python_topics()
    size, context = (16, 48) if quick else (16, 64)
    vocabulary = len(text.characters)

    def model() -> CharGPT:
        if quick:
            return CharGPT(vocabulary, context, width=64, heads=4, layers=2)
        return CharGPT(vocabulary, context, width=128, heads=4, layers=3)

    def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
        starts = np.random.default_rng((seed, step)).integers(0, len(text.codes) - context, size)
        rows = text.codes[starts[:, None] + np.arange(context + 1)]
        return rows[:, :-1], rows[:, 1:]

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x).view(-1, vocabulary), y.reshape(-1))

    return Task(
        name="text",
        title="a character-level GPT on English text",
        steps=150 if quick else 800,
        eager_steps=30 if quick else 200,
        learning_rate=3e-3 if quick else 2e-3,
        model=model,
        batch=batch,
        loss=loss,
        result=lambda model: write(model, text, "The ", 160 if quick else 400, seed=seed),
    )


def accuracy(model: nn.Module, images: Images) -> float:
    """The part of the held-out images that the model names right."""
    device = next(model.parameters()).device
    model.eval()
    with flame.no_grad():
        logits = model(flame.tensor(images.test_x, device=device))
    model.train()
    return float((logits.cpu().numpy().argmax(1) == images.test_y).mean())


def write(model: nn.Module, text: Text, prompt: str, length: int, temperature: float = 0.7, seed: int = 0) -> str:
    """`prompt` and `length` more characters, each drawn from the model's distribution sharpened by `temperature`."""
    assert isinstance(model, CharGPT)
    device = next(model.parameters()).device
    draw = np.random.default_rng(seed)
    codes = list(text.encode(prompt))
    model.eval()
    with flame.no_grad():
        for _ in range(length):
            x = np.array([codes[-model.context :]], np.int64)
            logits = model(flame.tensor(x, device=device))[0, -1].cpu().numpy().astype(np.float64) / temperature
            odds = np.exp(logits - logits.max())
            codes.append(int(draw.choice(len(odds), p=odds / odds.sum())))
    model.train()
    return text.decode(np.array(codes))
