"""Habits that PyTorch's users have: indices, promotion and views by any program (hypothesis), `axis` and `keepdims`, `out=`,
results with names, sizes, generators, empty tensors, formats of memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hn

import flame

SHAPES = hn.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4)
DTYPES = (
    "bool",
    "uint8",
    "int8",
    "int16",
    "int32",
    "int64",
    "float16",
    "bfloat16",
    "float32",
    "float64",
    "complex64",
    "complex128",
)


def counted(shape: tuple[int, ...]) -> np.ndarray:
    return np.arange(np.prod(shape, dtype=int), dtype=np.float64).reshape(shape)


# -------------------------------------------------------------------- indices and views


@st.composite
def indexed(draw: Any, basic: bool) -> tuple[tuple[int, ...], Any]:
    shape = draw(hn.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=4))
    if basic:
        key = draw(hn.basic_indices(shape, allow_newaxis=True, max_dims=6))
    else:
        key = draw(hn.integer_array_indices(shape, result_shape=hn.array_shapes(min_dims=1, max_dims=2, max_side=3)))
    return shape, key


def forward(key: Any) -> bool:
    """Whether no slice of the key has a negative step."""
    return all(not isinstance(k, slice) or k.step is None or k.step > 0 for k in (key if isinstance(key, tuple) else (key,)))


def key_of(key: Any) -> Any:
    """The key with tensors for arrays."""
    change = lambda k: flame.tensor(k) if isinstance(k, np.ndarray) else k
    return tuple(map(change, key)) if isinstance(key, tuple) else change(key)


@given(indexed(True))
def test_basic_indices_are_numpys_and_share_memory(case: tuple) -> None:
    shape, key = case
    a = counted(shape)
    x = flame.tensor(a)
    if not forward(key):
        with pytest.raises(ValueError, match="step must be greater than zero"):
            x[key]
        return
    got, want = x[key], a[key]
    assert tuple(got.shape) == np.shape(want) and np.array_equal(got.numpy(), want)
    a[key] = -1
    got.fill_(-1)
    assert np.array_equal(x.numpy(), a)
    a[key] = 5
    x[key] = 5
    assert np.array_equal(x.numpy(), a)


@given(indexed(False))
def test_indices_of_tensors_are_numpys_and_copy(case: tuple) -> None:
    shape, key = case
    a = counted(shape)
    x = flame.tensor(a, requires_grad=True)
    got = x[key_of(key)]
    assert np.array_equal(got.detach().numpy(), a[key])
    got.detach().zero_()
    assert np.array_equal(x.detach().numpy(), a)
    got.sum().backward()
    counts = np.zeros(shape)
    np.add.at(counts, key, 1)
    assert x.grad is not None and np.array_equal(x.grad.numpy(), counts)


def turned(x: Any, steps: list[tuple[int, int, int]], numpy: bool) -> Any:
    """A chain of views, the same ones for a tensor and for an array."""
    for kind, i, j in steps:
        d, e = i % x.ndim, j % x.ndim
        match kind:
            case 0:
                x = x.swapaxes(d, e) if numpy else x.transpose(d, e)
            case 1:
                cut = slice(min(1, x.shape[d]), None, 1 + j % 2)
                x = x[(slice(None),) * d + (cut,)]
            case 2:
                x = np.expand_dims(x, d) if numpy else x.unsqueeze(d)
            case 3 if x.shape[d] == 1 and x.ndim > 1:
                x = x.squeeze(d)
            case 4:
                x = np.moveaxis(x, d, e) if numpy else x.movedim(d, e)
            case 5 if x.ndim > 1 and x.shape[d]:
                x = x[(slice(None),) * d + (0,)]
    return x


@given(SHAPES, st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)), max_size=5))
def test_chains_of_views_are_numpys(shape: tuple[int, ...], steps: list) -> None:
    a = counted(shape)
    x = flame.tensor(a)
    got, want = turned(x, steps, False), turned(a, steps, True)
    assert tuple(got.shape) == want.shape and np.array_equal(got.numpy(), want)
    assert got.is_contiguous() == (want.flags.c_contiguous or not want.size)
    if want.size:
        assert all(s == t // 8 for s, t, n in zip(got.stride(), want.strides, want.shape, strict=True) if n > 1)
    want += 100
    got.add_(100)
    assert np.array_equal(x.numpy(), a), "a write through the view is a write to the base"
    copy = got.contiguous().clone()
    copy.zero_()
    assert np.array_equal(x.numpy(), a)


# -------------------------------------------------------------------- promotion


@pytest.mark.oracle
@given(st.data())
def test_what_operands_become_is_pytorchs(torch: Any, data: Any) -> None:
    kinds = st.one_of(st.tuples(st.sampled_from(DTYPES), st.sampled_from([(), (2,)])), st.sampled_from([True, 2, 1.5, 1j]))
    first, second = data.draw(st.tuples(st.sampled_from(DTYPES), st.sampled_from([(), (2,)]))), data.draw(kinds)
    made = lambda t, k: t.ones(k[1], dtype=getattr(t, k[0])) if isinstance(k, tuple) else k
    ours, theirs = ((t.result_type(made(t, first), made(t, second)), made(t, first) + made(t, second)) for t in (flame, torch))
    assert ours[0] is ours[1].dtype and repr(ours[0]) == repr(theirs[0]).replace("torch", "flame")
    if isinstance(second, tuple):
        a, b = ((getattr(t, first[0]), getattr(t, second[0])) for t in (flame, torch))
        assert repr(flame.promote_types(*a)) == repr(torch.promote_types(*b)).replace("torch", "flame")
        assert flame.can_cast(*a) == torch.can_cast(*b)


# -------------------------------------------------------------------- words of calls

REDUCTIONS = "sum mean prod amax amin any all argmax argmin logsumexp var std max min median cumsum cumprod softmax".split()


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "name",
    "sum mean prod amax amin argmax argmin logsumexp var std max min median nanmedian nansum nanmean mode any all softmax "
    "log_softmax cumsum cumprod cummax logcumsumexp sort argsort count_nonzero aminmax diff unbind squeeze".split(),
)
def test_reductions_take_axis_and_keepdims_where_pytorch_does(torch: Any, name: str) -> None:
    a = np.random.default_rng(0).standard_normal((3, 4))

    def outcome(t: Any, **words: Any) -> Any:
        try:
            got = getattr(t, name)(t.tensor(a), **words)
        except (TypeError, RuntimeError) as e:
            return type(e)
        got = got if isinstance(got, tuple | list) else (got,)
        return [np.round(g.numpy().astype(float), 10).tolist() for g in got]

    for words in ({"axis": 1}, {"axis": -2, "keepdims": True}, {"dim": 0, "keepdim": True}, {"dim": 0, "keepdims": True}):
        assert outcome(flame, **words) == outcome(torch, **words), words


WORDS: dict[str, tuple] = {
    "sum": (), "prod": (), "amax": (), "argmin": (), "logsumexp": (), "var": (), "max": (), "median": (), "softmax": (), "sort": (),
    "any": (), "cumsum": (), "cummax": (), "quantile": (0.5,), "topk": (2,), "unbind": (), "unsqueeze": (), "chunk": (2,),
}  # fmt: skip


@pytest.mark.parametrize("name", WORDS)
def test_axis_is_dim(name: str) -> None:
    """As a function, as a method, and in what is compiled."""
    x = flame.tensor(np.random.default_rng(0).standard_normal((3, 4)))
    calls = [
        lambda **words: getattr(flame, name)(x, *WORDS[name], **words),
        lambda **words: getattr(x, name)(*WORDS[name], **words),
    ]
    calls += [flame.compile(f, backend="eager") for f in calls]
    for f in calls:
        for _ in range(2):
            got, want = (y if isinstance(y, tuple | list) else (y,) for y in (f(axis=1), f(dim=1)))
            assert len(got) == len(want)
            for a, b in zip(got, want, strict=True):
                np.testing.assert_array_equal(a.numpy(), b.numpy())
        with pytest.raises(TypeError):
            f(axis=1, dim=1)
        with pytest.raises(TypeError):
            f(axes=1)


NAMED: dict[str, Any] = {
    "max": lambda t, x: t.max(x, 0), "min": lambda t, x: x.min(1), "sort": lambda t, x: t.sort(x),
    "topk": lambda t, x: t.topk(x, 2),
    "median": lambda t, x: t.median(x, 1), "mode": lambda t, x: t.mode(x), "kthvalue": lambda t, x: t.kthvalue(x, 2),
    "cummax": lambda t, x: t.cummax(x, 0), "aminmax": lambda t, x: t.aminmax(x), "frexp": lambda t, x: t.frexp(x),
    "svd": lambda t, x: t.linalg.svd(x), "eigh": lambda t, x: t.linalg.eigh(x @ x.mT), "qr": lambda t, x: t.linalg.qr(x),
    "slogdet": lambda t, x: t.linalg.slogdet(x @ x.mT), "lu_factor": lambda t, x: t.linalg.lu_factor(x @ x.mT),
    "lstsq": lambda t, x: t.linalg.lstsq(x.mT, x.mT), "histogram": lambda t, x: t.histogram(x, 4),
}  # fmt: skip


@pytest.mark.oracle
@pytest.mark.parametrize("name", NAMED)
def test_results_have_pytorchs_names(torch: Any, name: str) -> None:
    a = np.random.default_rng(0).standard_normal((3, 4))
    got, want = (NAMED[name](t, t.tensor(a)) for t in (flame, torch))
    fields = [n for n in dir(want) if not n.startswith(("_", "n_")) and n not in ("count", "index")]
    assert len(got) == len(want)
    for n in fields:
        assert tuple(getattr(got, n).shape) == tuple(getattr(want, n).shape), n


def test_out_is_written_resized_and_given_back() -> None:
    x, y = flame.arange(4.0), flame.ones(4)
    for f, args in ((flame.add, (x, y)), (flame.exp, (x,)), (flame.cumsum, (x, 0)), (flame.matmul, (x[None], y[:, None]))):
        want = f(*args)
        out = flame.empty_like(want)
        assert f(*args, out=out) is out and flame.equal(out, want)
    values, indices = flame.empty(1), flame.empty(1, dtype=flame.int64)
    got = flame.topk(x, 1, out=(values, indices))
    assert got.values is values and got.indices is indices and indices.tolist() == [3]
    with pytest.raises(RuntimeError, match="can't be cast"):
        flame.exp(x, out=flame.empty(4, dtype=flame.int64))


# -------------------------------------------------------------------- sizes, generators, nothing at all


def test_a_size_is_a_tuple_that_counts() -> None:
    s = flame.ones(2, 3).shape
    assert isinstance(s, flame.Size) and isinstance(s, tuple) and s == (2, 3) and flame.Size(s).numel() == 6
    assert isinstance(s[:1], flame.Size) and isinstance(s + (4,), flame.Size) and repr(s) == "flame.Size([2, 3])"
    assert flame.Size([0, 5]).numel() == 0 and flame.Size().numel() == 1 and hash(s) == hash((2, 3))


def test_generators_and_states_give_the_same_numbers_again() -> None:
    g = flame.Generator()
    assert g.manual_seed(7) is g and g.initial_seed() == 7
    first = flame.randn(5, generator=g)
    state = g.get_state()
    second = flame.rand(3, generator=g)
    g.set_state(state)
    assert flame.equal(flame.rand(3, generator=g), second)
    assert flame.equal(flame.randn(5, generator=flame.Generator().manual_seed(7)), first)
    flame.manual_seed(3)
    with flame.random.fork_rng():
        inside = flame.randn(4)
    assert flame.equal(flame.randn(4), inside), "what is drawn inside leaves no trace"
    kept = flame.get_rng_state()
    after = flame.randperm(9)
    flame.set_rng_state(kept)
    assert flame.equal(flame.randperm(9), after) and kept.dtype is flame.uint8


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "name", [*REDUCTIONS, "norm", "sort", "unique", "nonzero", "cat", "matmul", "einsum", "std_mean", "flip"]
)
def test_empty_tensors_give_what_pytorch_gives(torch: Any, name: str) -> None:
    calls: dict[str, Any] = {
        "cat": lambda t, f, x: f([x, x]), "matmul": lambda t, f, x: f(x, x.mT), "einsum": lambda t, f, x: f("ij,kj->ik", x, x),
        "flip": lambda t, f, x: f(x, [0]), "cumsum": lambda t, f, x: f(x, 0), "cumprod": lambda t, f, x: f(x, 1),
        "softmax": lambda t, f, x: f(x, 1), "logsumexp": lambda t, f, x: f(x, 1),
    }  # fmt: skip

    def outcome(t: Any, shape: tuple, **words: Any) -> Any:
        try:
            got = calls.get(name, lambda t, f, x: f(x, **words))(t, getattr(t, name), t.zeros(shape))
        except (RuntimeError, IndexError, ValueError) as e:
            return type(e)
        several = got if isinstance(got, tuple) else (got,)
        return [(tuple(g.shape), str(g.dtype)[6:], np.nan_to_num(g.numpy(), nan=-7).tolist()) for g in several]

    for shape in ((0, 3), (3, 0), (0, 0)):
        assert outcome(flame, shape) == outcome(torch, shape), shape
        if name in REDUCTIONS[:10]:
            for d in (0, 1):
                assert outcome(flame, shape, dim=d) == outcome(torch, shape, dim=d), (shape, d)


@pytest.mark.oracle
def test_channels_last_goes_through_operations_as_in_pytorch(torch: Any) -> None:
    for f in (
        lambda t, x: x + 1, lambda t, x: x * x, lambda t, x: x.exp(), lambda t, x: x.clone(), lambda t, x: t.empty_like(x),
        lambda t, x: x.contiguous(), lambda t, x: x.double(), lambda t, x: x.permute(0, 2, 3, 1), lambda t, x: t.zeros_like(x),
        lambda t, x: x.to(memory_format=t.contiguous_format),
    ):  # fmt: skip
        got, want = (f(t, t.ones(2, 3, 4, 5).to(memory_format=t.channels_last)) for t in (flame, torch))
        assert tuple(got.shape) == tuple(want.shape)
        assert got.is_contiguous(memory_format=flame.contiguous_format) or got.stride() == want.stride()
