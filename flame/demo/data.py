"""The demo's two data sets, both real and neither downloaded: `digits()` and `python_topics()`.

Handwritten digits come with scikit-learn. The English text is the part of the Python language reference that the standard
library carries for `help()`: about half a megabyte, there wherever Python is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flame import datasets


@dataclass(frozen=True)
class Images:
    """Grey images in [0, 1], shape (n, 1, 8, 8), with their labels, parted for training and testing."""

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray


@dataclass(frozen=True)
class Text:
    """A text as int64 character codes; `characters[code]` is the character."""

    codes: np.ndarray
    characters: str

    def encode(self, text: str) -> np.ndarray:
        """The codes of `text`. Raises ValueError at a character that the text does not have."""
        return np.array([self.characters.index(c) for c in text], np.int64)

    def decode(self, codes: np.ndarray) -> str:
        return "".join(self.characters[c] for c in codes)


def digits(seed: int = 0, held_out: int = 360) -> Images:
    """scikit-learn's 1797 handwritten digits, shuffled; `held_out` of them are kept for testing.

    Raises MissingTargetError where scikit-learn is not installed.
    """
    found = datasets.bundled("digits")
    x, y = found.data, found.target
    order = np.random.default_rng(seed).permutation(len(x))
    x = (x[order] / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    y = y[order].astype(np.int64)
    return Images(x[held_out:], y[held_out:], x[:held_out], y[:held_out])


def python_topics() -> Text:
    """The language reference as `help()` has it, in the order of its topics' names, without indentation, rulers and tables."""
    text = datasets.python_topics()
    characters = "".join(sorted(set(text)))
    table = np.zeros(128, np.int64)
    table[[ord(c) for c in characters]] = np.arange(len(characters))
    return Text(table[np.frombuffer(text.encode("ascii"), np.uint8)], characters)
