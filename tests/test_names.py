"""Names of PyTorch's that stand beside tensors: how they print, memory of others, defaults, NaN found in backward, functions of the
top namespace that are spelled in another way than in nn.functional, and what says that it is not there."""

from __future__ import annotations

import array
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import flame
from flame import absent, printing

F = flame.nn.functional


# -------------------------------------------------------------------- printing

VALUES = [
    np.linspace(-2, 2, 7), np.arange(24.0).reshape(2, 3, 4), np.array([1e-9, 1.0, 1e9]), np.array([np.nan, np.inf, 1.5]),
    np.arange(30), np.array(3.14159), np.zeros((0, 2)), np.array([True, False]), np.array([1e6, 2.0]),
]  # fmt: skip
OPTIONS: list[dict[str, Any]] = [
    dict(precision=2), dict(precision=0), dict(threshold=5), dict(threshold=5, edgeitems=1), dict(linewidth=30),
    dict(sci_mode=True), dict(sci_mode=False), dict(profile="short"), dict(profile="full"), dict(profile="short", precision=6),
]  # fmt: skip


@pytest.mark.oracle
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options_of_printing_are_pytorchs(torch: Any, options: dict) -> None:
    torch.set_printoptions(**options)
    try:
        with printing.printoptions(**options):
            for a in VALUES:
                want = repr(torch.tensor(a)).replace("torch.", "flame.")
                assert repr(flame.tensor(a)) == want
    finally:
        torch.set_printoptions(profile="default")
    assert printing.get_printoptions() == dict(precision=4, threshold=1000, edgeitems=3, linewidth=80, sci_mode=None)


def test_wrong_options_change_nothing() -> None:
    before = flame.get_printoptions()
    for wrong, words in ((dict(profile="wide"), "default, short, full"), (dict(precision=3, linewidth=-1), "linewidth")):
        with pytest.raises(ValueError, match=words):
            flame.set_printoptions(**wrong)  # type: ignore[arg-type]
    assert flame.get_printoptions() == before


# -------------------------------------------------------------------- memory of others, defaults


def test_a_buffer_is_shared_and_bytes_are_copied() -> None:
    held = array.array("f", [1, 2, 3, 4])
    t = flame.frombuffer(held, dtype=flame.float32, offset=4, count=2)
    t.mul_(10)
    assert held.tolist() == [1, 20, 30, 4]
    held[1] = 5
    assert t.tolist() == [5, 30]
    assert flame.frombuffer(b"\x01\x00\x02\x00", dtype=flame.int16).add_(1).tolist() == [2, 3]
    assert flame.frombuffer(bytearray(8), dtype=flame.float64, requires_grad=True).requires_grad


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("buffer", "given"),
    [
        (b"", {}), (b"abc", {}), (b"abcd", dict(count=2)), (b"abcd", dict(offset=7)), (b"abcd", dict(offset=-1)), (3, {}),
        (b"abcd", dict(count=0)), (b"abcdefgh", dict(count=1)), (b"abcdefgh", dict(count=-1, offset=4)),
        (b"abcdefghi", dict(count=1, offset=5)), (b"abcd", dict(requires_grad=True)),
    ],
)  # fmt: skip
def test_buffers_are_taken_and_refused_as_pytorch_does(torch: Any, buffer: Any, given: dict) -> None:
    outcome = []
    for t in (flame, torch):
        try:
            outcome.append(t.frombuffer(buffer, dtype=t.int32, **given).tolist())
        except (ValueError, RuntimeError, TypeError) as e:
            outcome.append(type(e))
    assert outcome[0] == outcome[1]


def test_a_default_dtype_by_its_constructor() -> None:
    try:
        for t in (flame.DoubleTensor, "torch.HalfTensor", "flame.FloatTensor"):
            flame.set_default_tensor_type(t)
            name = t.rpartition(".")[2] if isinstance(t, str) else "DoubleTensor"
            assert flame.tensor(1.0).dtype is getattr(flame, name).dtype
        for wrong, error in ((flame.LongTensor, TypeError), ("torch.Bad", AttributeError), (flame.float32, TypeError)):
            with pytest.raises(error):
                flame.set_default_tensor_type(wrong)
    finally:
        flame.set_default_dtype(flame.float32)


@pytest.mark.parametrize("name", ["uint16", "uint32", "uint64"])
def test_wide_unsigned_numbers_are_kept_to_the_last_bit(name: str) -> None:
    d = getattr(flame, name)
    most = flame.iinfo(d).max
    t = flame.tensor([0, 1, most], dtype=d)
    assert t.dtype is d and t.tolist() == [0, 1, most] == t.clone().numpy().tolist()
    assert (t & 1).tolist() == [0, 1, 1] and (t == most).tolist() == [False, False, True]


# -------------------------------------------------------------------- NaN found in backward


@pytest.fixture
def detecting() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Anomaly Detection has been enabled")
        yield
    assert not flame.is_anomaly_enabled()


def root_of_a_negative(x: flame.Tensor) -> flame.Tensor:
    return (x.sqrt() * 0).sum()  # the line that is told of


@pytest.mark.usefixtures("detecting")
@pytest.mark.parametrize("compiled", [False, True])
def test_the_operation_whose_gradient_is_nan_is_named(compiled: bool) -> None:
    def step(x: flame.Tensor) -> None:
        root_of_a_negative(x).backward()

    f = flame.compile(step, backend="llvm") if compiled else step
    x = flame.tensor([-1.0, 4.0], requires_grad=True)
    for _ in range(3):  # (as compiled code from the second on)
        f(x)
    assert x.grad is not None and x.grad[0].isnan()
    with flame.autograd.detect_anomaly(), pytest.warns(UserWarning, match="root_of_a_negative"):
        with pytest.raises(RuntimeError, match="Function 'SqrtBackward0' returned nan values in its 0th output"):
            f(x)
    f(x)


@pytest.mark.usefixtures("detecting")
def test_what_was_recorded_before_is_looked_at_too() -> None:
    x = flame.tensor([-1.0], requires_grad=True)
    y = root_of_a_negative(x)
    with flame.autograd.set_detect_anomaly(True), pytest.warns(UserWarning, match="No forward pass information"):
        with pytest.raises(RuntimeError, match="SqrtBackward0"):
            y.backward()
    z = root_of_a_negative(x)
    with flame.autograd.detect_anomaly(check_nan=False):
        assert flame.is_anomaly_enabled() and not flame.is_anomaly_check_nan_enabled()
        z.backward()
    flame.autograd.set_detect_anomaly(True)
    assert flame.is_anomaly_check_nan_enabled()
    flame.autograd.set_detect_anomaly(False)


@pytest.mark.usefixtures("detecting")
def test_a_compiled_function_looks_for_itself() -> None:
    @flame.compile(backend="llvm")
    def step(x: flame.Tensor) -> flame.Tensor:
        with flame.autograd.detect_anomaly():
            y = (x.exp() * 2).sum()
            y.backward()
        return y * 2

    x = flame.tensor([0.0, 1.0], requires_grad=True)
    for _ in range(3):
        x.grad = None
        step(x)
        assert x.grad is not None and flame.allclose(x.grad, 2 * x.detach().exp())

    @flame.compile(backend="llvm")
    def wrong(x: flame.Tensor) -> flame.Tensor:
        flame.autograd.set_detect_anomaly(True)
        return x * 2

    for _ in range(2):
        with pytest.raises(RuntimeError, match="outside of the compiled function"):
            wrong(x)


@pytest.mark.usefixtures("detecting")
def test_gradients_are_the_same_while_nan_is_looked_for() -> None:
    flame.manual_seed(0)
    m = flame.nn.Sequential(flame.nn.Linear(5, 8), flame.nn.GELU(), flame.nn.LayerNorm(8), flame.nn.Linear(8, 3))
    x, target = flame.randn(40, 5), flame.randint(0, 3, (40,))
    grads = []
    for on in (False, True):
        with flame.autograd.set_detect_anomaly(on):
            m.zero_grad()
            F.cross_entropy(m(x), target).backward()
        grads.append([p.grad for p in m.parameters()])
    assert all(flame.equal(a, b) for a, b in zip(*grads, strict=True))


# -------------------------------------------------------------------- linear at a point


def test_linearize_is_jvp_at_a_point() -> None:
    x, y = flame.randn(3, 2, dtype=flame.float64), flame.randn(2, dtype=flame.float64)
    f = lambda x, y: {"product": (x @ y).tanh(), "sum": (x.exp().sum(), y)}
    out, push = flame.func.linearize(f, x, y)
    for _ in range(2):
        v, w = flame.randn_like(x), flame.randn_like(y)
        want_out, want = flame.func.jvp(f, (x, y), (v, w))
        flame.testing.assert_close(out["product"], want_out["product"])
        got = push(v, w)
        for a, b in zip((got["product"], *got["sum"]), (want["product"], *want["sum"]), strict=True):
            flame.testing.assert_close(a, b)
    rows = flame.vmap(lambda u: flame.func.linearize(lambda z: z.sin(), x)[1](u))(flame.stack([v, x]))
    flame.testing.assert_close(rows[0], v * x.cos())
    with pytest.raises(RuntimeError, match="tangents like the primals"):
        push(w, v)


# -------------------------------------------------------------------- the top namespace's spelling

LOSSES: dict[str, Any] = {
    "kl_div": lambda t, f, x, y, k: f(x.log_softmax(1), y.softmax(1), *k),
    "binary_cross_entropy_with_logits": lambda t, f, x, y, k: f(x, y.sigmoid(), None, y[0].exp(), *k),
    "cosine_embedding_loss": lambda t, f, x, y, k: f(x, y, x[:, 0].sign(), 0.1, *k),
    "hinge_embedding_loss": lambda t, f, x, y, k: f(x, y.sign(), 0.7, *k),
    "margin_ranking_loss": lambda t, f, x, y, k: f(x, y, x.sign(), 0.2, *k),
    "poisson_nll_loss": lambda t, f, x, y, k: f(x, y.exp(), True, False, 1e-8, *(k or (1,))),
    "triplet_margin_loss": lambda t, f, x, y, k: f(x, y, y.flip(0), 1.0, 2.0, 1e-6, True, *k),
    "ctc_loss": lambda t, f, x, y, k: f(
        t.stack([x, y, x, y]).log_softmax(-1), t.tensor([[1, 2], [2, 1], [1, 1]]), (4, 4, 4), (2, 2, 1), 0, *k
    ),
    "instance_norm": lambda t, f, x, y, k: f(x[None], None, None, y.mean(1), y.var(1), True, 0.1, 1e-5, False),
    "norm_except_dim": lambda t, f, x, y, k: f(t.stack([x, y]), 2, (-1, 0, 1, 2)[sum(k)]),
    "feature_dropout": lambda t, f, x, y, k: f(x[None], 0.5, False),
    "feature_alpha_dropout": lambda t, f, x, y, k: f(x[None], 0.5, False),
}


@pytest.mark.oracle
@pytest.mark.parametrize("reduction", [(), (0,), (1,), (2,)], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_the_top_namespace_agree_with_pytorch(torch: Any, name: str, reduction: tuple) -> None:
    r = np.random.default_rng(0)
    a, b = r.standard_normal((2, 3, 5))
    got, want = (LOSSES[name](t, getattr(t, name), t.tensor(a), t.tensor(b), reduction) for t in (flame, torch))
    np.testing.assert_allclose(got.numpy(), want.numpy(), 1e-9, 1e-12)


def test_reductions_are_numbers() -> None:
    x = flame.ones(2)
    for wrong, error in ((3, ValueError), (-1, ValueError), ("mean", TypeError), (True, TypeError)):
        with pytest.raises(error, match="0 .*none.*1 .*mean.*2 .*sum"):
            flame.kl_div(x, x, wrong)
    dropped = flame.feature_dropout(flame.ones(6, 7, 3, 2), 0.5, True)
    assert set(dropped.unique().tolist()) == {0.0, 2.0} and flame.equal(dropped, dropped[:, :, :1, :1].expand(6, 7, 3, 2))


# -------------------------------------------------------------------- what is not there


@pytest.mark.parametrize("name", [*absent.NAMES, *(f"{m}.{n}" for m, names in absent.WITHIN.items() for n in names)])
def test_what_is_not_there_names_what_to_use(name: str) -> None:
    where, _, last = f"flame.{name}".rpartition(".")
    place = flame if where == "flame" else getattr(flame, where.removeprefix("flame."))
    assert not hasattr(place, last)
    with pytest.raises(AttributeError, match=rf"^{where}\.{last} is not there: use \w"):
        getattr(place, last)


def test_functions_that_are_not_there_raise_when_called() -> None:
    for f, words in (
        (flame.onnx.export, "explain"), (flame.hub.load_state_dict_from_url, "flame.load"),
        (flame.distributed.init_process_group, "is_available"), (flame.ones(1).chalf, "cfloat"),
    ):  # fmt: skip
        with pytest.raises(NotImplementedError, match=words):
            f()
    assert not flame.distributed.is_available()
    with pytest.raises(AttributeError, match="^module 'flame.nn' has no attribute 'no_such_layer'$"):
        getattr(flame.nn, "no_such_layer")  # noqa: B009 (for its error)
