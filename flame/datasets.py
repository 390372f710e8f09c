"""Small real data sets, none of them downloaded: handwritten digits, five tables, and a text.

Each is a `Dataset`: `len`, items by index, a place in `DataLoader`. Images and tables come with scikit-learn (the extra
`flame-jit[datasets]`; without it they raise `MissingTargetError` when they are made); the text is the part of the Python language
reference that the standard library carries for `help()`.

    Digits(train)                            1797 grey images [1, 8, 8] in [0, 1], ten classes
    Iris, Wine, BreastCancer(train)          150, 178, 569 rows of 4, 13, 30 numbers, three, three, two classes
    Diabetes, Linnerud(train)                442, 20 rows of 10, 3 numbers, one and three numbers to predict
    PythonTopics(train, block_size)          windows of a text of half a megabyte and their continuation, by characters

`train` chooses one of two parts: 4/5 of the items after a shuffle with a fixed seed, or the rest; `None` is all of them in order.
`transform` and `target_transform` are called with each item's tensor and target.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

from flame import dtypes
from flame.errors import MissingTargetError
from flame.functions import PUBLIC
from flame.tensor import Tensor
from flame.utils.data import Dataset

__all__ = ["BreastCancer", "Diabetes", "Digits", "Iris", "Linnerud", "PythonTopics", "Wine", "python_topics"]

_HELD_OUT = 5  #: one item of so many is for testing


@cache
def bundled(name: str) -> Any:
    """scikit-learn's bunch of that name."""
    try:
        datasets = import_module("sklearn.datasets")  # slow to import, and an extra
    except ModuleNotFoundError as missing:
        raise MissingTargetError(
            f"the data set {name!r} comes with scikit-learn, which is not installed: pip install 'flame-jit[datasets]'"
        ) from missing
    return getattr(datasets, f"load_{name}")()


def _part(n: int, train: bool | None) -> np.ndarray:
    """Which of n items, in which order."""
    if train is None:
        return np.arange(n)
    if not isinstance(train, bool):
        raise TypeError(f"train must be True, False or None (all items), but got {train!r}")
    order = np.random.default_rng(0).permutation(n)
    return order[n // _HELD_OUT :] if train else order[: n // _HELD_OUT]


class _Items(Dataset):
    """Tensors `data` [n, ...] and `targets` [n, ...], one item a row."""

    data: Tensor
    targets: Tensor

    def __init__(self, transform: Callable | None, target_transform: Callable | None) -> None:
        self.transform, self.target_transform = transform, target_transform

    def __len__(self) -> int:
        return self.data.shape[0]

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{type(self).__name__} has {len(self)} items, but got the index {index}")
        x, y = self.data[index], self.targets[index]
        return (
            x if self.transform is None else self.transform(x),
            y if self.target_transform is None else self.target_transform(y),
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} items of {list(self.data.shape[1:])})"


class Digits(_Items):
    """Handwritten digits (Alpaydin and Kaynak, 1998): float32 images [1, 8, 8] in [0, 1], and the digit as int64.

    Raises MissingTargetError where scikit-learn is not installed.
    """

    classes = [str(d) for d in range(10)]

    def __init__(
        self, train: bool | None = True, transform: Callable | None = None, target_transform: Callable | None = None
    ) -> None:
        super().__init__(transform, target_transform)
        found = bundled("digits")
        rows = _part(len(found.target), train)
        images = (found.images[rows] / 16).astype(np.float32)
        self.data = PUBLIC["from_numpy"](images[:, None].copy())
        self.targets = PUBLIC["from_numpy"](found.target[rows].astype(np.int64))


class _Table(_Items):
    """Rows of numbers as float32. `standardize` subtracts from each column the mean over the training part, and divides by the
    standard deviation there. `feature_names` are the columns'; `classes` (or `target_names`) those of what is to be predicted."""

    _name = ""
    _is_regression = False

    def __init__(
        self, train: bool | None = True, transform: Callable | None = None, target_transform: Callable | None = None, *,
        standardize: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(transform, target_transform)
        found = bundled(self._name)
        rows = np.asarray(found.data, np.float64)
        if standardize:
            known = rows[_part(len(rows), True)]
            rows = (rows - known.mean(0)) / known.std(0)
        keep = _part(len(rows), train)
        self.feature_names = [str(n) for n in found.feature_names]
        self.data = PUBLIC["from_numpy"](rows[keep].astype(np.float32))
        targets = np.asarray(found.target)[keep]
        if self._is_regression:
            self.target_names = [str(n) for n in found.get("target_names", ["progression"])]
            targets = targets.reshape(len(keep), -1).astype(np.float32)
        else:
            self.classes = [str(n) for n in found.target_names]
            targets = targets.astype(np.int64)
        self.targets = PUBLIC["from_numpy"](targets)


class Iris(_Table):
    """Three kinds of iris by the sizes of sepals and petals (Fisher, 1936)."""

    _name = "iris"


class Wine(_Table):
    """Three growers' wines by chemical analysis (Aeberhard and Forina, 1991)."""

    _name = "wine"


class BreastCancer(_Table):
    """Malignant and benign tumours by the shapes of cell nuclei (Wolberg, Mangasarian, Street and Street, 1993)."""

    _name = "breast_cancer"


class Diabetes(_Table):
    """The progression of diabetes within a year, by ten measurements (Efron, Hastie, Johnstone and Tibshirani, 2004)."""

    _name, _is_regression = "diabetes", True


class Linnerud(_Table):
    """Weight, waist and pulse of twenty people, by three exercises (Tenenhaus, 1998)."""

    _name, _is_regression = "linnerud", True


#: typographic characters of the text and their plain forms; what is not printable ASCII after this is left out
_PLAIN = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "–": "-", "—": "-", "…": "...", "\u00a0": " ", "\t": "    "})


@cache
def python_topics() -> str:
    """The language reference as `help()` has it, in the order of its topics' names, without indentation, rulers and tables."""
    topics = import_module("pydoc_data.topics").topics  # large: read where it is wanted
    text = "\n\n".join(topics[name].strip() for name in sorted(topics)).translate(_PLAIN)
    text = re.sub(r"\n(?:([*=~^-])\1{3,}|[|+][^\n]*)(?=\n)", "", re.sub(r" {2,}", " ", re.sub(r"\n +", "\n", text)))
    return "".join(c for c in text if c == "\n" or " " <= c <= "~")


class PythonTopics(Dataset):
    """`python_topics()` in windows: item i is `block_size` character codes from place i * stride on, int64, and the codes one place
    further. The first 9/10 of the text are for training, the rest for testing.

    `characters[code]` is the character. Raises ValueError for a block that is longer than the text.
    """

    def __init__(self, train: bool | None = True, block_size: int = 64, stride: int | None = None) -> None:
        text = python_topics()
        self.characters = "".join(sorted(set(text)))
        self.block_size, self.stride = block_size, block_size if stride is None else stride
        table = np.zeros(128, np.int64)
        table[[ord(c) for c in self.characters]] = np.arange(len(self.characters))
        codes = table[np.frombuffer(text.encode("ascii"), np.uint8)]
        cut = len(codes) * 9 // 10
        codes = codes if train is None else codes[:cut] if train else codes[cut:]
        if not 0 < block_size < len(codes) or self.stride < 1:
            raise ValueError(
                f"PythonTopics: block_size must be between 1 and {len(codes) - 1} and stride at least 1, "
                f"but got block_size={block_size}, stride={self.stride}"
            )
        self.codes = PUBLIC["from_numpy"](codes.copy())

    def __len__(self) -> int:
        return (self.codes.shape[0] - 1 - self.block_size) // self.stride + 1

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"PythonTopics has {len(self)} windows, but got the index {index}")
        at = (index + len(self) if index < 0 else index) * self.stride
        return self.codes[at : at + self.block_size], self.codes[at + 1 : at + 1 + self.block_size]

    def encode(self, text: str) -> Tensor:
        """The codes of `text`. Raises ValueError at a character that the text does not have."""
        return PUBLIC["tensor"]([self.characters.index(c) for c in text], dtype=dtypes.int64)

    def decode(self, codes: Any) -> str:
        """The text of codes, a tensor or a list of them."""
        return "".join(self.characters[int(c)] for c in (codes.tolist() if isinstance(codes, Tensor) else codes))
