"""Recurrent layers, packed sequences and Transformers: beside PyTorch on its own weights, compiled beside eager, and refusals."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import flame
import flame.nn as nn
from flame.nn.utils import rnn as packing

Leaves = list[Any]

pytestmark = [
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),  # PyTorch's word on itself
    pytest.mark.filterwarnings("ignore:enable_nested_tensor is True"),
]


def leaves(x: Any) -> Leaves:
    """The tensors of nested tuples, first to last."""
    if isinstance(x, tuple | list):
        return [t for part in x for t in leaves(part)]
    return [] if x is None else [x]


def weighted(y: Any, like: Any) -> Any:
    """A sum that every element of every result enters in its own way."""
    total: Any = 0.0
    for t in leaves(y):
        if str(t.dtype).endswith("float32"):
            w = np.cos(np.arange(t.numel(), dtype=np.float32)).reshape(tuple(t.shape))
            total = total + (t * like(w)).sum()
    return total


def close(a: Any, b: Any, tol: float = 2e-5) -> None:
    x, y = (np.asarray(t.detach().numpy(), np.float64) for t in (a, b))
    assert x.shape == y.shape
    np.testing.assert_allclose(x, y, rtol=tol, atol=tol)


def load_into(torch: Any, theirs: Any, ours: nn.Module) -> None:
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict({k: torch.tensor(v.numpy().copy()) for k, v in ours.state_dict().items()})


def agree(m: Any, other: Any, run: Callable, run_other: Callable, like: Callable, like_other: Callable) -> None:
    """Results and gradients of two modules: `run(m)` gives (result, inputs that want gradients)."""
    (y, xs), (z, zs) = run(m), run_other(other)
    assert len(leaves(y)) == len(leaves(z))
    for a, b in zip(leaves(y), leaves(z), strict=True):
        close(a, b)
    for p in (*m.parameters(), *other.parameters()):
        p.grad = None
    weighted(y, like).backward()
    weighted(z, like_other).backward()
    for a, b in zip((*xs, *m.parameters()), (*zs, *other.parameters()), strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            close(a.grad, b.grad, 1e-4)


def arrays(*shapes: tuple[int, ...], seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(s).astype(np.float32) for s in shapes]


# -------------------------------------------------------------------- recurrent layers

#: (class, constructor arguments, input shape, whether a first state is given)
RECURRENT: list[tuple[str, dict, tuple, bool]] = [
    ("RNN", dict(), (5, 2, 3), False),
    ("RNN", dict(nonlinearity="relu", num_layers=2, bias=False), (4, 2, 3), True),
    ("RNN", dict(bidirectional=True, batch_first=True), (2, 1, 3), True),
    ("LSTM", dict(), (5, 2, 3), True),
    ("LSTM", dict(num_layers=2, bidirectional=True, batch_first=True), (2, 4, 3), False),
    ("LSTM", dict(proj_size=2, num_layers=2, bidirectional=True, bias=False), (3, 2, 3), True),
    ("LSTM", dict(bidirectional=True), (6, 3), True),
    ("GRU", dict(), (1, 1, 3), False),
    ("GRU", dict(num_layers=3, bidirectional=True), (4, 2, 3), True),
    ("GRU", dict(batch_first=True), (5, 3), False),
]
ids = lambda v: "-".join(f"{k}={w}" for k, w in v.items()) if isinstance(v, dict) else str(v)


def inputs(name: str, settings: dict, shape: tuple, state: bool) -> list[np.ndarray]:
    """The input, and the first states."""
    n = settings.get("num_layers", 1) * (2 if settings.get("bidirectional") else 1)
    batch = () if len(shape) == 2 else (shape[0 if settings.get("batch_first") else 1],)
    widths = [settings.get("proj_size") or 4] + ([4] if name == "LSTM" else [])
    return arrays(shape, *((n, *batch, w) for w in widths if state))


def runner(tensor: Callable, xs: list[np.ndarray], name: str) -> Callable:
    def run(m: Any) -> Any:
        ts = [tensor(x, requires_grad=True) for x in xs]
        state = None if len(ts) == 1 else tuple(ts[1:]) if name.startswith("LSTM") else ts[1]
        return m(ts[0], state), ts

    return run


@pytest.mark.oracle
@pytest.mark.parametrize(("name", "settings", "shape", "state"), RECURRENT, ids=ids)
def test_recurrent_layers_agree_with_pytorch(torch: Any, name: str, settings: dict, shape: tuple, state: bool) -> None:
    ours, theirs = getattr(nn, name)(3, 4, **settings), getattr(torch.nn, name)(3, 4, **settings)
    load_into(torch, theirs, ours)
    assert repr(ours) == repr(theirs)
    xs = inputs(name, settings, shape, state)
    agree(ours, theirs, runner(flame.tensor, xs, name), runner(torch.tensor, xs, name), flame.tensor, torch.tensor)


#: short ones: every step is compiled
COMPILED: list[tuple[str, dict, tuple, bool]] = [
    ("RNN", dict(bidirectional=True, batch_first=True), (2, 1, 3), True),
    ("LSTM", dict(proj_size=2), (2, 2, 3), True),
    ("GRU", dict(num_layers=2), (2, 2, 3), False),
]


@pytest.mark.parametrize(("name", "settings", "shape", "state"), COMPILED, ids=ids)
def test_compiled_recurrent_layers_are_the_eager_ones(name: str, settings: dict, shape: tuple, state: bool) -> None:
    eager = getattr(nn, name)(3, 4, **settings)
    compiled = flame.compile(copy.deepcopy(eager))
    for seed in range(3):
        xs = [x + seed for x in inputs(name, settings, shape, state)]
        agree(compiled, eager, *[runner(flame.tensor, xs, name)] * 2, *[flame.tensor] * 2)
    assert compiled.stats.compiled


@pytest.mark.oracle
@pytest.mark.parametrize("shape", [(2, 3), (3,)])
@pytest.mark.parametrize("state", [True, False])
@pytest.mark.parametrize(
    ("name", "settings"),
    [("RNNCell", {}), ("RNNCell", {"nonlinearity": "relu", "bias": False}), ("LSTMCell", {}), ("GRUCell", {"bias": False})],
    ids=ids,
)
def test_recurrent_cells_agree_with_pytorch(torch: Any, name: str, settings: dict, state: bool, shape: tuple) -> None:
    ours, theirs = getattr(nn, name)(3, 4, **settings), getattr(torch.nn, name)(3, 4, **settings)
    load_into(torch, theirs, ours)
    assert repr(ours) == repr(theirs)
    h = (*shape[:-1], 4)
    xs = arrays(shape, *([h, h] if name == "LSTMCell" else [h])[: 2 * state])
    agree(ours, theirs, runner(flame.tensor, xs, name), runner(torch.tensor, xs, name), flame.tensor, torch.tensor)


@pytest.mark.oracle
@pytest.mark.parametrize("lengths", [[5, 3, 3, 1], [1, 4, 2, 4], [2, 2, 2, 2]], ids=str)
@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_packed_batches_agree_with_pytorch(torch: Any, name: str, lengths: list[int]) -> None:
    settings: dict[str, Any] = dict(num_layers=2, bidirectional=True)
    if name == "LSTM":
        settings["proj_size"] = 2
    ours, theirs = getattr(nn, name)(3, 4, **settings), getattr(torch.nn, name)(3, 4, **settings)
    load_into(torch, theirs, ours)
    xs = inputs(name, settings, (5, 4, 3), True)

    def packed(tensor: Callable, utils: Any) -> Callable:
        def run(m: Any) -> Any:
            ts = [tensor(x, requires_grad=True) for x in xs]
            p = utils.pack_padded_sequence(ts[0], lengths, enforce_sorted=False)
            y, last = m(p, tuple(ts[1:]) if name == "LSTM" else ts[1])
            full, n = utils.pad_packed_sequence(y, padding_value=0.5, total_length=6)
            assert n.tolist() == lengths and p.batch_sizes.tolist() == y.batch_sizes.tolist()
            return (full, last), ts

        return run

    agree(ours, theirs, packed(flame.tensor, packing), packed(torch.tensor, torch.nn.utils.rnn), flame.tensor, torch.tensor)


def test_compiled_packed_batches_are_the_eager_ones() -> None:
    eager = nn.RNN(3, 4, bidirectional=True)
    (x,) = arrays((3, 3, 3))

    def step(m: Any) -> Callable:
        def f(x: flame.Tensor) -> Any:
            y, h = m(packing.pack_padded_sequence(x, [3, 2, 1]))
            return packing.pad_packed_sequence(y)[0], h

        return f

    f, g = flame.compile(step(eager)), step(eager)
    for k in range(3):
        for a, b in zip(leaves(f(flame.tensor(x + k))), leaves(g(flame.tensor(x + k))), strict=True):
            close(a, b)


def test_compiled_packed_batches_follow_their_lengths() -> None:
    """Batches of the same number of rows and steps whose sizes alone differ are different programs."""
    m = nn.RNN(2, 3)
    f = flame.compile(lambda p: m(p)[1])
    for lengths in ([4, 2, 2], [4, 3, 1], [4, 2, 2], [4, 3, 1], [4, 2, 2]):
        p = packing.pack_padded_sequence(flame.randn(4, 3, 2), lengths)
        assert p.data.shape[0] == 8 and len(p.batch_sizes) == 4
        close(f(p), m(p)[1])


@pytest.mark.oracle
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("lengths", [[4, 3, 1], [2, 5, 3], [1]], ids=str)
def test_packing_utilities_agree_with_pytorch(torch: Any, lengths: list[int], batch_first: bool) -> None:
    xs = arrays(*((n, 2) for n in lengths))
    both = []
    for tensor, utils in ((flame.tensor, packing), (torch.tensor, torch.nn.utils.rnn)):
        ts = [tensor(x) for x in xs]
        padded = utils.pad_sequence(ts, batch_first=batch_first, padding_value=-1.0)
        left = utils.pad_sequence(ts, batch_first=batch_first, padding_side="left")
        p = utils.pack_padded_sequence(padded, tensor(lengths), batch_first=batch_first, enforce_sorted=False)
        q = utils.pack_sequence(ts, enforce_sorted=False)
        back = utils.pad_packed_sequence(p, batch_first=batch_first)
        both.append(
            [
                padded,
                left,
                *p,
                *q,
                *back,
                *utils.unpack_sequence(q),
                *utils.unpad_sequence(padded.clone(), tensor(lengths), batch_first),
            ]
        )
    for a, b in zip(*both, strict=True):
        close(a, b, 0)
    assert [
        x.numpy().tolist() for x in packing.unpack_sequence(packing.pack_sequence([flame.tensor(x) for x in xs], False))
    ] == [x.tolist() for x in xs]


def test_packing_refuses_what_does_not_fit() -> None:
    x = flame.randn(4, 3, 2)
    for lengths, words in (
        ([1, 2, 3], "sorted in decreasing order"),
        ([4, 2], "equal to batch_size"),
        ([4, 2, 0], "greater than 0"),
    ):
        with pytest.raises(RuntimeError, match=words):
            packing.pack_padded_sequence(x, lengths)
    with pytest.raises(RuntimeError, match="a length of 5 is more than the 4 steps"):
        packing.pack_padded_sequence(x, [5, 2, 1])
    with pytest.raises(ValueError, match="total_length"):
        packing.pad_packed_sequence(packing.pack_padded_sequence(x, [4, 2, 1]), total_length=3)
    with pytest.raises(RuntimeError, match="Expected iterable"):
        packing.pad_sequence(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="padding_side"):
        packing.pad_sequence([x], padding_side="up")


def test_recurrent_layers_refuse_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="hidden_size must be greater than zero"):
        nn.LSTM(3, 0)
    with pytest.raises(TypeError, match="hidden_size should be of type int"):
        nn.LSTM(3, 2.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="proj_size has to be smaller"):
        nn.LSTM(3, 4, proj_size=4)
    with pytest.raises(ValueError, match="Unknown nonlinearity"):
        nn.RNN(3, 4, nonlinearity="sigmoid")
    with pytest.raises(ValueError, match=r"dropout should be a number in range \[0, 1\]"):
        nn.GRU(3, 4, dropout=1.5)
    with pytest.warns(UserWarning, match="num_layers greater than 1"):
        nn.GRU(3, 4, dropout=0.5)
    m = nn.LSTM(3, 4)
    for x, error, words in (
        (flame.randn(5, 2, 2), RuntimeError, "Expected 3, got 2"),
        (flame.randn(3), ValueError, "2D or 3D"),
        (flame.randn(5, 2, 3).double(), ValueError, "does not match weight dtype"),
    ):
        with pytest.raises(error, match=words):
            m(x)
    h = flame.zeros(1, 3, 4)
    with pytest.raises(RuntimeError, match=re.escape("Expected hidden[0] size (1, 2, 4), got [1, 3, 4]")):
        m(flame.randn(5, 2, 3), (h, h))
    with pytest.raises(RuntimeError, match="hx should also be 3-D"):
        m(flame.randn(5, 2, 3), (h[0], h[0]))
    with pytest.raises(ValueError, match="1D or 2D"):
        nn.GRUCell(3, 4)(flame.randn(1, 2, 3))
    with pytest.raises(RuntimeError, match="inconsistent hidden_size"):
        nn.GRUCell(3, 4)(flame.randn(2, 3), flame.randn(2, 5))


def test_dropout_between_recurrent_layers_is_for_training() -> None:
    m = nn.LSTM(3, 4, num_layers=2, dropout=0.5)
    x = flame.randn(5, 2, 3)
    flame.manual_seed(1)
    run = lambda: m(x)[0].detach().numpy()
    a = run()
    flame.manual_seed(1)
    assert np.array_equal(a, run()) and not np.array_equal(a, run())
    m.eval()
    assert np.array_equal(run(), run())


@pytest.mark.oracle
def test_recurrent_functions_stand_under_the_top_name(torch: Any) -> None:
    x, h, w, v, b = arrays((4, 2, 3), (1, 2, 5), (5, 3), (5, 5), (5,))
    both = [
        t.rnn_tanh(*map(t.tensor, (x, h)), [t.tensor(p) for p in (w, v, b, b)], True, 1, 0.0, False, False, False)
        for t in (flame, torch)
    ]
    for a, c in zip(*both, strict=True):
        close(a, c)
    close(*[t.rnn_relu_cell(*map(t.tensor, (x[0], h[0], w, v, b, b))) for t in (flame, torch)])
    with pytest.raises(RuntimeError, match="expected 4 parameter tensors"):
        flame.gru(flame.tensor(x), flame.tensor(h), [flame.tensor(w)], True, 1, 0.0, False, False, False)
    with pytest.raises(TypeError, match="lstm\\(\\) takes input, hx, params"):
        flame.lstm(flame.tensor(x))


# -------------------------------------------------------------------- Transformers

MODELS: dict[str, tuple[str, dict]] = {
    "encoder layer": ("TransformerEncoderLayer", dict(batch_first=True)),
    "encoder layer, norm first, gelu, no bias": (
        "TransformerEncoderLayer", dict(norm_first=True, activation="gelu", bias=False, layer_norm_eps=1e-3),
    ),
    "decoder layer": ("TransformerDecoderLayer", dict()),
    "decoder layer, norm first": ("TransformerDecoderLayer", dict(norm_first=True, batch_first=True, activation="gelu")),
}  # fmt: skip


def built(library: Any, key: str) -> Any:
    name, settings = MODELS[key]
    return getattr(library, name)(8, 2, 16, 0.0, **settings)


def attended(library: Any, tensor: Callable, key: str, masks: bool) -> Callable:
    """Run a layer on two sequences, with masks of both kinds."""
    first = MODELS[key][1].get("batch_first")
    x, memory = arrays((2, 5, 8), (2, 4, 8))
    x, memory = (x, memory) if first else (x.swapaxes(0, 1).copy(), memory.swapaxes(0, 1).copy())
    causal = np.triu(np.ones((5, 5), bool), 1)
    padding = np.array([[False] * 5, [False, False, False, True, True]])

    def run(m: Any) -> Any:
        a, b = tensor(x, requires_grad=True), tensor(memory, requires_grad=True)
        if "encoder" in key:
            return m(a, tensor(causal), tensor(padding)) if masks else m(a), [a]
        more = dict(tgt_mask=tensor(causal), memory_key_padding_mask=tensor(padding[:, 1:])) if masks else {}
        return m(a, b, **more), [a, b]

    return run


@pytest.mark.oracle
@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("key", MODELS)
def test_transformer_layers_agree_with_pytorch(torch: Any, key: str, masks: bool) -> None:
    ours, theirs = built(nn, key), built(torch.nn, key)
    load_into(torch, theirs, ours)
    plain = lambda m: re.sub(r"(LayerNorm\(.*?), bias=\w+\)", r"\1)", repr(m))  # shown by some versions alone
    assert plain(ours) == plain(theirs)
    agree(
        ours, theirs, attended(nn, flame.tensor, key, masks), attended(torch.nn, torch.tensor, key, masks), flame.tensor,
        torch.tensor,
    )  # fmt: skip


@pytest.mark.parametrize("key", ["encoder layer", "decoder layer, norm first"])
def test_compiled_transformer_layers_are_the_eager_ones(key: str) -> None:
    eager = built(nn, key)
    compiled = flame.compile(copy.deepcopy(eager))
    for _ in range(3):
        agree(compiled, eager, *[attended(nn, flame.tensor, key, True)] * 2, *[flame.tensor] * 2)


@pytest.mark.oracle
@pytest.mark.parametrize("norm_first", [True, False])
def test_whole_transformers_agree_with_pytorch(torch: Any, norm_first: bool) -> None:
    settings: dict[str, Any] = dict(
        d_model=8, nhead=2, num_encoder_layers=2, num_decoder_layers=2, dim_feedforward=16, dropout=0.0, norm_first=norm_first
    )
    ours = nn.Transformer(**settings)
    theirs = torch.nn.Transformer(**settings)
    load_into(torch, theirs, ours)
    src, tgt = arrays((6, 2, 8), (4, 2, 8))

    def run(tensor: Callable, library: Any) -> Callable:
        def f(m: Any) -> Any:
            a, b = tensor(src, requires_grad=True), tensor(tgt, requires_grad=True)
            mask = library.Transformer.generate_square_subsequent_mask(4)
            return m(a, b, tgt_mask=mask, tgt_is_causal=True), [a, b]

        return f

    agree(ours, theirs, run(flame.tensor, nn), run(torch.tensor, torch.nn), flame.tensor, torch.tensor)


def test_transformers_refuse_what_does_not_fit() -> None:
    m = nn.Transformer(8, 2, 1, 1, 16)
    with pytest.raises(RuntimeError, match="batch number of src and tgt"):
        m(flame.randn(3, 2, 8), flame.randn(3, 1, 8))
    with pytest.raises(RuntimeError, match=r"d_model \(8\)"):
        m(flame.randn(3, 2, 6), flame.randn(3, 2, 8))
    with pytest.raises(RuntimeError, match="relu/gelu"):
        nn.TransformerEncoderLayer(8, 2, activation="tanh")
    assert nn.Transformer.generate_square_subsequent_mask(2).tolist() == [[0.0, float("-inf")], [0.0, 0.0]]
    layer = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2)
    assert not np.array_equal(*[p.self_attn.in_proj_weight.data_ptr() for p in layer.layers])
