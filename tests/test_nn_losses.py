"""Losses: against PyTorch, against eager when compiled, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import flame
import flame.nn as nn
import flame.nn.functional as F
from tests.test_nn import close

# -------------------------------------------------------------------- losses


def classes(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(0, 5, shape)


def probabilities(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.random(shape).astype(np.float32)


def signs(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.choice(np.float32([-1, 1]), shape)


#: name, shapes of floating inputs, target's maker and shape, settings
LOSSES: list[tuple[str, tuple, Callable | None, tuple, dict]] = [
    ("cross_entropy", ((6, 5),), classes, (6,), {}),
    ("cross_entropy", ((5,),), classes, (), {}),
    ("cross_entropy", ((6, 5),), classes, (6,), dict(ignore_index=1, label_smoothing=0.2)),
    ("cross_entropy", ((2, 5, 3, 4),), classes, (2, 3, 4), dict(label_smoothing=0.1, weight=5)),
    ("cross_entropy", ((2, 5, 3),), classes, (2, 3), dict(weight=5, ignore_index=2)),
    ("cross_entropy", ((4, 5),), probabilities, (4, 5), dict(label_smoothing=0.1, weight=5)),
    ("cross_entropy", ((4, 5, 2),), probabilities, (4, 5, 2), {}),
    ("nll_loss", ((6, 5),), classes, (6,), dict(weight=5, ignore_index=3)),
    ("nll_loss", ((2, 5, 3, 4),), classes, (2, 3, 4), {}),
    ("mse_loss", ((3, 4),), probabilities, (3, 4), {}),
    ("l1_loss", ((3, 4),), probabilities, (3, 4), {}),
    ("smooth_l1_loss", ((3, 4),), probabilities, (3, 4), dict(beta=0.5)),
    ("smooth_l1_loss", ((3, 4),), probabilities, (3, 4), dict(beta=0.0)),
    ("huber_loss", ((3, 4),), probabilities, (3, 4), dict(delta=0.7)),
    ("binary_cross_entropy_with_logits", ((3, 5),), probabilities, (3, 5), dict(pos_weight=5)),
    ("binary_cross_entropy_with_logits", ((3, 5),), probabilities, (3, 5), dict(weight=5)),
    ("kl_div", ((3, 4),), probabilities, (3, 4), {}),
    ("kl_div", ((3, 4),), probabilities, (3, 4), dict(log_target=True)),
    ("poisson_nll_loss", ((3, 4),), classes, (3, 4), dict(full=True)),
    ("soft_margin_loss", ((3, 4),), signs, (3, 4), {}),
    ("hinge_embedding_loss", ((3, 4),), signs, (3, 4), dict(margin=0.5)),
    ("margin_ranking_loss", ((6,), (6,)), signs, (6,), dict(margin=0.2)),
    ("cosine_embedding_loss", ((6, 4), (6, 4)), signs, (6,), dict(margin=0.1)),
    ("triplet_margin_loss", ((6, 4), (6, 4), (6, 4)), None, (), dict(swap=True)),
    ("triplet_margin_with_distance_loss", ((6, 4), (6, 4), (6, 4)), None, (), {}),
    ("multi_margin_loss", ((4, 5),), classes, (4,), dict(p=2, weight=5)),
    ("multi_margin_loss", ((5,),), classes, (), {}),
    ("multilabel_soft_margin_loss", ((3, 5),), probabilities, (3, 5), dict(weight=5)),
]


def drawn(case: tuple, rng: np.random.Generator) -> tuple[list[np.ndarray], list[np.ndarray], dict]:
    _, shapes, target, shape, settings = case
    arrays = [rng.standard_normal(s).astype(np.float32) for s in shapes]
    targets = [] if target is None else [np.asarray(target(rng, *shape))]
    settings = {k: rng.random(v).astype(np.float32) + 0.5 if k in ("weight", "pos_weight") else v for k, v in settings.items()}
    return arrays, targets, settings


def as_tensors(tensor: Callable, settings: dict) -> dict:
    return {k: tensor(v) if isinstance(v, np.ndarray) else v for k, v in settings.items()}


@pytest.mark.oracle
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("case", LOSSES, ids=lambda c: f"{c[0]}{list(c[4])}")
@pytest.mark.filterwarnings("ignore:reduction. 'mean'")
def test_losses_agree_with_pytorch(torch: Any, case: tuple, reduction: str, rng: np.random.Generator) -> None:
    arrays, targets, settings = drawn(case, rng)
    results = []
    for functional, tensor in ((F, flame.tensor), (torch.nn.functional, torch.tensor)):
        xs = [tensor(a, requires_grad=True) for a in arrays]
        ts = [tensor(t) for t in targets]
        y = getattr(functional, case[0])(*xs, *ts, reduction=reduction, **as_tensors(tensor, settings))
        (y * y).sum().backward()
        results.append((y, [x.grad for x in xs]))
    close(results[0][0], results[1][0])
    for g, h in zip(results[0][1], results[1][1], strict=True):
        close(g, h, 1e-4)


@pytest.mark.parametrize("case", LOSSES, ids=lambda c: f"{c[0]}{list(c[4])}")
def test_losses_compiled_are_the_eager_ones(case: tuple, rng: np.random.Generator) -> None:
    arrays, targets, settings = drawn(case, rng)
    settings = as_tensors(flame.tensor, settings)
    f = getattr(F, case[0])

    def loss_and_grads(*xs: Any) -> Any:
        y = f(*xs, *map(flame.tensor, targets), **settings)
        y.backward()
        return y

    g = flame.compile(loss_and_grads)
    for i in range(3):
        xs = [[flame.tensor(a * (1 + i / 3), requires_grad=True) for a in arrays] for _ in range(2)]
        close(g(*xs[0]), loss_and_grads(*xs[1]))
        for a, b in zip(*xs, strict=True):
            close(a.grad, b.grad)


@pytest.mark.oracle
def test_binary_cross_entropy_at_and_between_the_ends(torch: Any) -> None:
    p = np.float32([0.0, 1.0, 0.0, 1.0, 0.3, 1e-13, 0.7])
    t = np.float32([0.0, 1.0, 1.0, 0.0, 0.6, 1.0, 0.0])
    x, z = flame.tensor(p, requires_grad=True), torch.tensor(p, requires_grad=True)
    a = F.binary_cross_entropy(x, flame.tensor(t), reduction="none")
    b = torch.nn.functional.binary_cross_entropy(z, torch.tensor(t), reduction="none")
    close(a, b)
    a.sum().backward()
    b.sum().backward()
    close(x.grad, z.grad)


@pytest.mark.oracle
def test_gaussian_and_multilabel_losses(torch: Any, rng: np.random.Generator) -> None:
    x, t, v = (rng.standard_normal((3, 4)).astype(np.float32) for _ in range(3))
    v = np.abs(v) + np.float32(1e-9)
    v[0, 0] = 0
    args = [f(x) for f in (flame.tensor, torch.tensor)]
    ours = F.gaussian_nll_loss(args[0], flame.tensor(t), flame.tensor(v), full=True)
    close(ours, torch.nn.functional.gaussian_nll_loss(args[1], torch.tensor(t), torch.tensor(v), full=True), 1e-4)
    labels = np.array([[2, 0, -1, 1], [3, 1, 2, 0], [-1, 0, 1, 2]])
    results = []
    for f, tensor in ((F, flame.tensor), (torch.nn.functional, torch.tensor)):
        z = tensor(x, requires_grad=True)
        y = f.multilabel_margin_loss(z, tensor(labels), reduction="none")
        y.sum().backward()
        results.append((y, z.grad))
    close(results[0][0], results[1][0])
    close(results[0][1], results[1][1])


MODULE_LOSSES = (
    "L1Loss MSELoss SmoothL1Loss HuberLoss NLLLoss CrossEntropyLoss BCELoss BCEWithLogitsLoss KLDivLoss PoissonNLLLoss "
    "SoftMarginLoss HingeEmbeddingLoss MultiLabelSoftMarginLoss"
).split()


@pytest.mark.oracle
@pytest.mark.parametrize("name", MODULE_LOSSES)
@pytest.mark.filterwarnings("ignore:reduction. 'mean'")
def test_loss_modules_agree_with_pytorch(torch: Any, name: str, rng: np.random.Generator) -> None:
    x = rng.random((6, 5)).astype(np.float32)
    t = rng.integers(0, 5, 6) if name in ("NLLLoss", "CrossEntropyLoss") else rng.random((6, 5)).astype(np.float32)
    for settings in ({}, {"reduction": "sum"}):
        ours, theirs = getattr(nn, name)(**settings), getattr(torch.nn, name)(**settings)
        assert repr(ours) == repr(theirs)
        close(ours(flame.tensor(x), flame.tensor(t)), theirs(torch.tensor(x), torch.tensor(t)))


def test_weights_of_losses_are_buffers() -> None:
    m = nn.CrossEntropyLoss(weight=flame.tensor([1.0, 2.0]))
    assert list(m.state_dict()) == ["weight"]
    m = nn.BCEWithLogitsLoss(pos_weight=flame.ones(3))
    assert list(m.state_dict()) == ["pos_weight"]
    assert nn.CrossEntropyLoss(size_average=False).reduction == "sum"


def test_losses_refuse_what_does_not_fit() -> None:
    x = flame.randn(4, 5)
    with pytest.raises(ValueError, match="maximum is not a valid value for reduction"):
        F.mse_loss(x, x, reduction="maximum")
    with pytest.raises(ValueError, match="to match target batch_size"):
        F.cross_entropy(x, flame.tensor([1, 2]))
    with pytest.raises(RuntimeError, match="weight tensor should be defined"):
        F.cross_entropy(x, flame.tensor([1, 2, 3, 4]), weight=flame.ones(4))
    with pytest.raises(RuntimeError, match="expected scalar type Long"):
        F.cross_entropy(x, flame.ones(4))
    with pytest.raises(ValueError, match="must be the same as input size"):
        F.binary_cross_entropy_with_logits(x, flame.ones(4, 4))
    with pytest.raises(RuntimeError, match="label_smoothing"):
        F.cross_entropy(x, flame.tensor([1, 2, 3, 4]), label_smoothing=1.5)


def test_cross_entropy_where_all_targets_are_ignored_is_nan() -> None:
    assert np.isnan(F.cross_entropy(flame.randn(2, 3), flame.tensor([-100, -100])).item())
    assert F.cross_entropy(flame.randn(2, 3), flame.tensor([-100, -100]), reduction="sum").item() == 0


def test_cross_entropy_survives_large_logits() -> None:
    x = flame.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    y = F.cross_entropy(x, flame.tensor([1]))
    y.backward()
    assert y.item() == 2e4
    assert x.grad.tolist() == [[1, -1, 0]]
