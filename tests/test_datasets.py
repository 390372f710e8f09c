"""Bundled data sets: what their items are, that the two parts are the whole, and what is raised without scikit-learn."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

import flame
from flame import datasets
from flame.errors import MissingTargetError
from flame.utils.data import DataLoader
from flame.utils.transforms import Normalize

#: name -> items, the shape of one, and its classes or how many numbers are to be predicted
SETS: dict[str, tuple[int, tuple[int, ...], Any]] = {
    "Digits": (1797, (1, 8, 8), 10),
    "Iris": (150, (4,), ["setosa", "versicolor", "virginica"]),
    "Wine": (178, (13,), ["class_0", "class_1", "class_2"]),
    "BreastCancer": (569, (30,), ["malignant", "benign"]),
    "Diabetes": (442, (10,), (1,)),
    "Linnerud": (20, (3,), (3,)),
}


@pytest.mark.parametrize("name", SETS)
def test_items_are_what_is_promised(name: str) -> None:
    pytest.importorskip("sklearn")
    n, shape, targets = SETS[name]
    kind = getattr(datasets, name)
    train, test, whole = kind(True), kind(False), kind(None)
    assert len(whole) == n and len(train) + len(test) == n and len(test) == n // 5
    rows = lambda d: sorted(
        map(bytes, np.concatenate([d.data.reshape(len(d), -1).numpy(), d.targets.reshape(len(d), -1).numpy()], 1))
    )
    assert sorted(rows(train) + rows(test)) == rows(whole)
    x, y = train[0]
    assert tuple(x.shape) == shape and x.dtype is flame.float32 and bool(flame.isfinite(train.data).all())
    if isinstance(targets, tuple):
        assert tuple(y.shape) == targets and y.dtype is flame.float32 and len(train.target_names) == targets[0]
    else:
        assert y.dtype is flame.int64 and y.ndim == 0
        assert train.classes == targets if isinstance(targets, list) else len(train.classes) == targets
        assert set(train.targets.tolist()) == set(range(len(train.classes)))
    if name == "Digits":
        assert float(whole.data.min()) == 0 and float(whole.data.max()) == 1
    else:
        known = kind(True, standardize=True)
        np.testing.assert_allclose(known.data.mean(0).numpy(), 0, atol=1e-5)
        np.testing.assert_allclose(known.data.std(0, correction=0).numpy(), 1, atol=1e-4)
        assert len(train.feature_names) == shape[0]
    with pytest.raises(IndexError, match=str(len(test))):
        test[len(test)]
    assert test[-1][0].tolist() == test[len(test) - 1][0].tolist()


def test_transforms_and_batches() -> None:
    pytest.importorskip("sklearn")
    ds = datasets.Digits(False, transform=Normalize([0.5], [0.5]), target_transform=lambda y: y + 100)
    x, y = next(iter(DataLoader(ds, batch_size=32)))
    assert tuple(x.shape) == (32, 1, 8, 8) and tuple(y.shape) == (32,) and int(y.min()) >= 100
    np.testing.assert_allclose(x.numpy(), ds.data[:32].numpy() * 2 - 1)
    with pytest.raises(TypeError, match="train must be"):
        datasets.Digits("test")  # type: ignore[arg-type]


def test_a_table_can_be_learned() -> None:
    pytest.importorskip("sklearn")
    train, test = datasets.Wine(True, standardize=True), datasets.Wine(False, standardize=True)
    flame.manual_seed(0)
    model = flame.nn.Linear(13, 3)
    optimizer = flame.optim.Adam(model.parameters(), 0.1)
    for _ in range(5):
        for x, y in DataLoader(train, batch_size=48, shuffle=True):
            optimizer.zero_grad()
            flame.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    assert float((model(test.data).argmax(1) == test.targets).float().mean()) > 0.9


def test_text_in_windows() -> None:
    train, test = datasets.PythonTopics(True, 50), datasets.PythonTopics(False, 50, stride=7)
    x, y = train[3]
    assert x.tolist()[1:] == y.tolist()[:-1] and x.dtype is flame.int64 and len(x) == 50
    assert train.decode(x) == datasets.python_topics()[150:200] and train.encode(train.decode(x)).tolist() == x.tolist()
    last, after = test[len(test) - 1]
    assert len(last) == len(after) == 50 and len(train) > 5000
    with pytest.raises(IndexError):
        test[len(test)]
    with pytest.raises(ValueError, match="block_size"):
        datasets.PythonTopics(True, 10**9)
    with pytest.raises(ValueError, match="not found"):
        train.encode("\0")


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets.bundled.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingTargetError, match=r"flame-jit\[datasets\]"):
        datasets.Iris()
