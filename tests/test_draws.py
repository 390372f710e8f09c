"""Every function that draws: its draws follow the distribution that it names, and are the same numbers compiled.

Which functions draw is derived from the package: public ones from whose code random bits can be reached.
Each is held to a distribution function of SciPy (Kolmogorov and Smirnov), or to the probabilities of what it may give; the
distributions themselves are in test_distributions.py.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import flame
from flame.functions import PUBLIC
from flame.functions import random as R
from flame.nn import functional as F
from flame.nn import init

N = 20000
FAR = 1.95 / math.sqrt(N)  #: a distance between distribution functions that one run in a thousand has by chance
PLACES: dict[str, Any] = {"flame": flame, "Tensor": flame.Tensor, "F": F, "init": init}


def reaches_bits(f: Any, seen: set[int]) -> bool:
    """Whether a function, or one that it names, asks for random bits."""
    f = inspect.unwrap(f)
    code = getattr(f, "__code__", None)
    if code is None or id(f) in seen:
        return False
    seen.add(id(f))
    if f in (R.bits, R.rejected):
        return True
    cells = [c.cell_contents for c in f.__closure__ or ()]
    named = [g for n in code.co_names for g in (f.__globals__.get(n), vars(flame.Tensor).get(n))]
    named += [PUBLIC.get(c) for c in code.co_consts if isinstance(c, str)]
    return any(reaches_bits(g, seen) for g in [*named, *cells] if inspect.isfunction(g))


def drawing() -> set[str]:
    """Names of public functions that draw."""
    return {
        f"{place}.{n}"
        for place, module in PLACES.items()
        for n, f in vars(module).items()
        if not n.startswith("_") and inspect.isfunction(f) and reaches_bits(f, set())
    }


def full(v: float) -> Any:
    return flame.full((N,), v, dtype=flame.float64)


def empty(*shape: int) -> Any:
    return flame.zeros(*(shape or (N,)), dtype=flame.float64)


def of_weights(name: str, *args: Any) -> Callable:
    return lambda: getattr(init, name)(empty(100, 200), *args)


def dropped(name: str, dims: int) -> Callable:
    return lambda: getattr(F, name)(full(0.6).reshape(N, 1, *[1] * dims), 0.4)


#: name -> the draw, and its distribution function or the probabilities of 0, 1, 2, ...
DRAWS: dict[str, tuple[Callable[[], Any], Any]] = {
    "flame.rand": (lambda: flame.rand(N), lambda s: s.uniform()),
    "flame.rand_like": (lambda: flame.rand_like(empty()), lambda s: s.uniform()),
    "flame.randn": (lambda: flame.randn(N), lambda s: s.norm()),
    "flame.randn_like": (lambda: flame.randn_like(empty()), lambda s: s.norm()),
    "flame.normal": (lambda: flame.normal(full(1.0), full(2.0)), lambda s: s.norm(1, 2)),
    "flame.bernoulli": (lambda: flame.bernoulli(full(0.3)), [0.7, 0.3]),
    "flame.randint": (lambda: flame.randint(0, 5, (N,)), [0.2] * 5),
    "flame.randint_like": (lambda: flame.randint_like(empty(), 4), [0.25] * 4),
    "flame.randperm": (lambda: flame.randperm(N), lambda s: s.randint(0, N)),
    "flame.multinomial": (lambda: flame.multinomial(flame.tensor([1.0, 2.0, 5.0]), N, True), [0.125, 0.25, 0.625]),
    "Tensor.multinomial": (lambda: flame.tensor([[3.0, 1.0, 0.0]]).expand(N, 3).multinomial(1)[:, 0], [0.75, 0.25, 0]),
    "flame.poisson": (lambda: flame.poisson(full(3.5)), lambda s: s.poisson(3.5)),
    "flame.binomial": (lambda: flame.binomial(full(9.0), full(0.4)), lambda s: s.binom(9, 0.4)),
    "flame.dropout": (lambda: flame.dropout(full(0.6), 0.4, True), [0.4, 0.6]),
    "flame.rrelu": (lambda: flame.rrelu(full(-1.0), 0.2, 0.6, True), lambda s: s.uniform(-0.6, 0.4)),
    **{f"F.{n}": (dropped(n, k), [0.4, 0.6]) for k, n in enumerate(("dropout", "dropout1d", "dropout2d", "dropout3d"))},
    "F.rrelu": (lambda: F.rrelu(full(-1.0), 0.2, 0.6, True), lambda s: s.uniform(-0.6, 0.4)),
    "F.rrelu_": (lambda: F.rrelu_(full(-1.0), 0.2, 0.6, True), lambda s: s.uniform(-0.6, 0.4)),
    # what is dropped becomes -a b', what stays a x + b: which of the two, of zeros
    "F.alpha_dropout": (lambda: (F.alpha_dropout(full(0.0), 0.3, True) > 0).double(), [0.3, 0.7]),
    "F.feature_alpha_dropout": (lambda: (F.feature_alpha_dropout(empty(N, 1, 1), 0.3, True) > 0).double(), [0.3, 0.7]),
    "Tensor.bernoulli": (lambda: full(0.3).bernoulli(), [0.7, 0.3]),
    "Tensor.bernoulli_": (lambda: empty().bernoulli_(0.9), [0.1, 0.9]),
    "Tensor.uniform_": (lambda: empty().uniform_(-1, 3), lambda s: s.uniform(-1, 4)),
    "Tensor.normal_": (lambda: empty().normal_(-1, 3), lambda s: s.norm(-1, 3)),
    "Tensor.cauchy_": (lambda: empty().cauchy_(1, 2), lambda s: s.cauchy(1, 2)),
    "Tensor.exponential_": (lambda: empty().exponential_(2), lambda s: s.expon(scale=0.5)),
    "Tensor.geometric_": (lambda: empty().geometric_(0.3), lambda s: s.geom(0.3)),
    "Tensor.log_normal_": (lambda: empty().log_normal_(0.5, 0.7), lambda s: s.lognorm(0.7, scale=math.exp(0.5))),
    "Tensor.random_": (lambda: empty().random_(2, 5) - 2, [1 / 3] * 3),
    "init.uniform_": (of_weights("uniform_", -1.0, 1.0), lambda s: s.uniform(-1, 2)),
    "init.normal_": (of_weights("normal_", 0.5, 2.0), lambda s: s.norm(0.5, 2)),
    "init.trunc_normal_": (of_weights("trunc_normal_", 0.0, 1.0, -1.0, 2.0), lambda s: s.truncnorm(-1, 2)),
    "init.xavier_uniform_": (of_weights("xavier_uniform_"), lambda s: s.uniform(-math.sqrt(0.02), 2 * math.sqrt(0.02))),
    "init.xavier_normal_": (of_weights("xavier_normal_"), lambda s: s.norm(0, math.sqrt(2 / 300))),
    "init.kaiming_uniform_": (of_weights("kaiming_uniform_"), lambda s: s.uniform(-math.sqrt(0.03), 2 * math.sqrt(0.03))),
    "init.kaiming_normal_": (of_weights("kaiming_normal_"), lambda s: s.norm(0, 0.1)),
    "init.sparse_": (lambda: (init.sparse_(empty(100, 200), 0.25) != 0).double(), [0.25, 0.75]),
}  # fmt: skip
DRAWS["F.gumbel_softmax"] = (
    lambda: F.gumbel_softmax(flame.tensor([3.0, 1.0]).log().expand(N, 2), hard=True)[:, 1],
    [0.75, 0.25],
)
#: what draws without a distribution of its own: whose test holds it
ELSEWHERE = {
    "flame.svd_lowrank": "where a subspace search begins: tests/test_surface.py",
    "flame.pca_lowrank": "where a subspace search begins: tests/test_surface.py",
    "init.orthogonal_": "a matrix of normals, made orthogonal: tests/test_nn_utils.py",
    "F.fractional_max_pool2d": "where windows begin: tests/test_nn_functions.py",
    "F.fractional_max_pool3d": "where windows begin: tests/test_nn_functions.py",
    "F.fractional_max_pool2d_with_indices": "where windows begin: tests/test_nn_functions.py",
    "F.fractional_max_pool3d_with_indices": "where windows begin: tests/test_nn_functions.py",
    **{f"flame.{n}": "dropout between layers: tests/test_nn_sequences.py" for n in ("gru", "lstm", "rnn_relu", "rnn_tanh")},
    "F.multi_head_attention_forward": "dropout of its weights: tests/test_nn.py",
    "F.scaled_dot_product_attention": "dropout of its weights: tests/test_attention.py",
}


def test_no_function_that_draws_is_forgotten() -> None:
    old = {n for n in drawing() if n.startswith("init.") and n + "_" in DRAWS.keys() | ELSEWHERE.keys()}  # (deprecated names)
    assert drawing() - old - DRAWS.keys() == ELSEWHERE.keys()


def values(x: Any) -> np.ndarray:
    return np.asarray(x.detach().numpy(), np.float64).reshape(-1)


@pytest.mark.parametrize("name", DRAWS)
def test_draws_follow_what_the_function_names(name: str) -> None:
    flame.manual_seed(21)
    draw, known = DRAWS[name]
    x = np.sort(values(draw()))
    assert x.size == N
    if isinstance(known, list):
        counts = np.bincount(x.astype(np.int64), minlength=len(known)) / N
        assert (x == np.rint(x)).all() and counts.size == len(known)
        p = np.asarray(known)
        assert (np.abs(counts - p) <= 4 * np.sqrt(p * (1 - p) / N)).all()
        return
    stats = pytest.importorskip("scipy.stats")
    at = np.unique(x)
    of = known(stats)
    below, under = np.searchsorted(x, at, side="right") / N, np.searchsorted(x, at, side="left") / N
    before = of.cdf(at) - (of.pmf(at) if hasattr(of.dist, "pmf") else 0)
    assert max(np.abs(below - of.cdf(at)).max(), np.abs(under - before).max()) < FAR


@pytest.mark.parametrize("name", [n for n in DRAWS if n != "init.sparse_"])
def test_draws_are_the_same_numbers_compiled(name: str) -> None:
    draw = DRAWS[name][0]
    compiled = flame.compile(draw)
    for seed in range(2):
        flame.manual_seed(seed)
        want = [values(draw()), values(flame.rand(2))]
        flame.manual_seed(seed)
        got = [values(compiled()), values(flame.rand(2))]
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-9)
