"""Recurrent networks as functions: `rnn_tanh`, `rnn_relu`, `lstm`, `gru` over sequences, and one step of each as `..._cell`.

    layer ::= input projection of all steps in one product, then for each step one product with the state and the cell's gates:
              one primitive (`flame.ops.recurrent`) where all steps have one size, else step by step

A batch is [T, N, F] (or [N, T, F] with `batch_first`), or packed: rows [sum of batch sizes, F] and the number of sequences
that are still running at each step, never growing. Both run the same loop: a padded batch has the same size at every step. A
direction that runs backward over a packed batch takes further sequences in as it goes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from flame.functions.elementwise import PUBLIC
from flame.nn.functional.activation import dropout, linear
from flame.primitive import composite, registered
from flame.tensor import Tensor

TANH, SIGMOID, RELU, SLICE, CAT = map(registered, ("tanh", "sigmoid", "relu", "slice", "cat"))
RECURRENT, RESHAPE, FULL = map(registered, ("recurrent", "reshape", "full"))

State = tuple[Tensor, ...]  #: what a cell hands on: (hidden,), or (hidden, cell) for an LSTM


def _rows(x: Tensor, start: int, stop: int) -> Tensor:
    """x[start:stop]; x itself where that is all of it."""
    if start == 0 and stop == x.shape[0]:
        return x
    rest = tuple(x.shape[1:])
    return SLICE(x, starts=(start, *[0] * len(rest)), stops=(stop, *rest), steps=(1,) * x.ndim)


def _split(x: Tensor, parts: int) -> list[Tensor]:
    """The gates that lie side by side in the last dimension."""
    return list(x.chunk(parts, -1))


# -------------------------------------------------------------------- cells: (projected input, state, weights) -> state


@dataclass(frozen=True)
class Weights:
    """The parameters of one layer and direction."""

    input: Tensor
    hidden: Tensor
    input_bias: Tensor | None = None
    hidden_bias: Tensor | None = None
    projection: Tensor | None = None


def _simple(activation: Any) -> Callable[[Tensor, State, Weights], State]:
    def cell(gi: Tensor, state: State, w: Weights) -> State:
        return (activation(gi + linear(state[0], w.hidden, w.hidden_bias)),)

    return cell


def _lstm(gi: Tensor, state: State, w: Weights) -> State:
    """Hochreiter and Schmidhuber (1997) with forget gates; `projection` as in Sak et al. (2014)."""
    h, c = state
    i, f, g, o = _split(gi + linear(h, w.hidden, w.hidden_bias), 4)
    c = SIGMOID(f) * c + SIGMOID(i) * TANH(g)
    h = SIGMOID(o) * TANH(c)
    return (h if w.projection is None else linear(h, w.projection), c)


def _gru(gi: Tensor, state: State, w: Weights) -> State:
    """Cho et al. (2014), the reset gate behind the hidden product."""
    (h,) = state
    (ri, zi, ni), (rh, zh, nh) = _split(gi, 3), _split(linear(h, w.hidden, w.hidden_bias), 3)
    z = SIGMOID(zi + zh)
    n = TANH(ni + SIGMOID(ri + rh) * nh)
    return (n + z * (h - n),)


CELLS: dict[str, Callable[[Tensor, State, Weights], State]] = {
    "RNN_TANH": _simple(TANH),
    "RNN_RELU": _simple(RELU),
    "LSTM": _lstm,
    "GRU": _gru,
}


# -------------------------------------------------------------------- one layer, one direction


def _even(x: Tensor, sizes: Sequence[int], state: State, w: Weights) -> bool:
    """Are all steps of one size, and of a kind that one primitive runs? (A GPU has no routine for it: its kernels are those of
    single steps.)"""
    steps = len(sizes)
    if steps < 2 or w.projection is not None or x.device.type != "cpu" or not all(n == sizes[0] for n in sizes):
        return False
    given = [x, *state, w.input, w.hidden, *(b for b in (w.input_bias, w.hidden_bias) if b is not None)]
    return x.dtype.is_floating_point and all(y.dtype is x.dtype for y in given)


def _at_once(mode: str, x: Tensor, steps: int, state: State, w: Weights, backward: bool) -> tuple[Tensor, State]:
    """`_sweep` of steps of one size, by the primitive."""
    size = w.hidden.shape[1]
    if mode == "GRU":
        bias = FULL(0.0, shape=(w.hidden.shape[0],), dtype=x.dtype) if w.hidden_bias is None else w.hidden_bias
        projected, state = linear(x, w.input, w.input_bias), (*state, bias)
    else:
        bias = None if w.input_bias is None or w.hidden_bias is None else w.input_bias + w.hidden_bias
        projected = linear(x, w.input, bias)
    rows = state[0].shape[0]
    gi = RESHAPE(projected, shape=(steps, rows, w.hidden.shape[0]))
    found = RECURRENT(gi, w.hidden, *state, mode=mode, reverse=backward)
    y = found[0] if isinstance(found, tuple) else found
    end = 0 if backward else steps - 1
    h = RESHAPE(_rows(y, end, end + 1), shape=(rows, size))
    return RESHAPE(y, shape=(steps * rows, size)), (h, found[1]) if mode == "LSTM" else (h,)


def _sweep(mode: str, x: Tensor, sizes: Sequence[int], state: State, w: Weights, backward: bool) -> tuple[Tensor, State]:
    """Rows x [sum(sizes), F] through one layer in one direction -> (rows of hidden states, the last state of each sequence)."""
    if _even(x, sizes, state, w):
        return _at_once(mode, x, len(sizes), state, w, backward)
    cell = CELLS[mode]
    projected = linear(x, w.input, w.input_bias)
    starts = [0]
    for n in sizes:
        starts.append(starts[-1] + n)
    first = state
    steps = range(len(sizes) - 1, -1, -1) if backward else range(len(sizes))
    state = tuple(_rows(s, 0, sizes[steps[0]]) for s in first)
    ended: list[State] = []  # of sequences that are shorter than the longest, the shortest first
    outputs: list[Any] = [None] * len(sizes)
    for t in steps:
        now, before = sizes[t], state[0].shape[0]
        if now < before:
            ended.append(tuple(_rows(s, now, before) for s in state))
            state = tuple(_rows(s, 0, now) for s in state)
        elif now > before:
            state = tuple(CAT(s, _rows(f, before, now), dim=0) for s, f in zip(state, first, strict=True))
        state = cell(_rows(projected, starts[t], starts[t + 1]), state, w)
        outputs[t] = state[0]
    if ended:
        state = tuple(CAT(*parts, dim=0) for parts in zip(state, *reversed(ended), strict=True))
    return outputs[0] if len(outputs) == 1 else CAT(*outputs, dim=0), state


def _grouped(params: Sequence[Tensor], has_biases: bool, projected: bool, op: str, wanted: int) -> list[Weights]:
    """The flat list of parameters, one record a layer and direction."""
    n = (4 if has_biases else 2) + projected
    if len(params) != n * wanted:
        raise RuntimeError(f"{op}: expected {n * wanted} parameter tensors ({n} a layer and direction), but got {len(params)}")
    out = []
    for k in range(0, len(params), n):
        p = list(params[k : k + n])
        last = p.pop() if projected else None
        input_bias, hidden_bias = p[2:] if has_biases else (None, None)
        out.append(Weights(p[0], p[1], input_bias, hidden_bias, last))
    return out


def _layers(
    mode: str, x: Tensor, sizes: Sequence[int], initial: State, params: Sequence[Tensor], has_biases: bool, num_layers: int,
    rate: float, train: bool, bidirectional: bool,
) -> tuple[Tensor, State]:  # fmt: skip
    """Rows x through all layers -> (rows of the last layer's hidden states, last states stacked [layers x directions, N, H])."""
    op, directions = mode.lower(), 2 if bidirectional else 1
    count = num_layers * directions
    for s in initial:
        if s.shape[0] != count or s.shape[1] != (sizes[0] if sizes else 0):
            raise RuntimeError(
                f"{op}: expected initial states of {count} layers and directions for a batch of {sizes[0] if sizes else 0}, but "
                f"got {list(s.shape)}"
            )
    projected = mode == "LSTM" and initial[0].shape[2] != initial[1].shape[2]
    weights = _grouped(params, has_biases, projected, op, count)
    last: list[State] = []
    for layer in range(num_layers):
        results = []
        for direction in range(directions):
            k = layer * directions + direction
            rows, state = _sweep(mode, x, sizes, tuple(s[k] for s in initial), weights[k], direction == 1)
            results.append(rows)
            last.append(state)
        x = results[0] if directions == 1 else CAT(*results, dim=1)
        if rate and train and layer < num_layers - 1:
            x = dropout(x, rate)
    return x, tuple(PUBLIC["stack"](list(parts)) for parts in zip(*last, strict=True))


def _sequence_function(mode: str) -> Callable:
    name = mode.lower()
    two = mode == "LSTM"

    # The composite is told the sizes as numbers: a composite reads no values, and sizes are values of a tensor.
    def rows_of(x: Tensor, sizes: Sequence[int], hx: State, params: Sequence[Tensor], *settings: Any) -> tuple[Tensor, ...]:
        rows, last = _layers(mode, x, sizes, hx, params, *settings)
        return (rows, *last)

    rows_of.__name__ = rows_of.__qualname__ = name
    sweep = composite(rows_of)

    def run(*args: Any, **kwargs: Any) -> Any:
        names = ("input", "hx", "params", "has_biases", "num_layers", "dropout", "train", "bidirectional", "batch_first")
        packed = "batch_sizes" in kwargs or (len(args) > 3 and isinstance(args[3], list | tuple))
        if packed:
            names = ("data", "batch_sizes", "hx", "params", "has_biases", "num_layers", "dropout", "train", "bidirectional")
        given = dict(zip(names, args, strict=False)) | kwargs
        if len(args) > len(names) or set(given) != set(names):
            raise TypeError(f"{name}() takes {', '.join(names)}; got {len(args)} by position and {sorted(kwargs)} by name")
        hx = tuple(given["hx"]) if two else (given["hx"],)
        settings = [given[k] for k in ("params", "has_biases", "num_layers", "dropout", "train", "bidirectional")]
        if packed:
            return sweep(given["data"], given["batch_sizes"].tolist(), hx, *settings)
        x = given["input"]
        if x.ndim != 3:
            raise RuntimeError(f"{name}: Expected a batch of 3 dimensions, but got input of size {list(x.shape)}")
        if given["batch_first"]:
            x = x.transpose(0, 1)
        t, n, f = x.shape
        if not t:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        rows, *last = sweep(x.reshape(t * n, f), [n] * t, hx, *settings)
        y = rows.reshape(t, n, rows.shape[1])
        return (y.transpose(0, 1) if given["batch_first"] else y, *last)

    run.__name__ = run.__qualname__ = name
    states = "(h, c), both" if two else "h"
    run.__doc__ = (
        f"{name}(input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first), or for a packed batch "
        f"{name}(data, batch_sizes, hx, params, has_biases, num_layers, dropout, train, bidirectional).\n\n"
        f"`hx` is {states} [layers x directions, N, H]; `params` lists weight_ih, weight_hh and, with biases, bias_ih, bias_hh"
        f"{' (then weight_hr, with projections)' if two else ''} of each layer and direction. Returns (output, last states...).\n"
        "Raises RuntimeError for shapes or numbers of parameters that do not fit."
    )
    return run


rnn_tanh, rnn_relu = _sequence_function("RNN_TANH"), _sequence_function("RNN_RELU")
lstm, gru = _sequence_function("LSTM"), _sequence_function("GRU")


# -------------------------------------------------------------------- one step


def _fitting(x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, gates: int, op: str) -> None:
    hidden = w_hh.shape[1]
    if x.ndim != 2 or x.shape[1] != w_ih.shape[1]:
        raise RuntimeError(f"{op}: input has inconsistent input_size: got {list(x.shape)}, expected [N, {w_ih.shape[1]}]")
    if tuple(h.shape) != (x.shape[0], hidden):
        raise RuntimeError(f"{op}: hidden has inconsistent hidden_size: got {list(h.shape)}, expected {[x.shape[0], hidden]}")
    if w_ih.shape[0] != gates * hidden or w_hh.shape[0] != gates * hidden:
        raise RuntimeError(f"{op}: expected weights of {gates * hidden} rows, but got {w_ih.shape[0]} and {w_hh.shape[0]}")


def _cell_function(mode: str, name: str, gates: int) -> Callable:
    def run(input: Tensor, hx: Any, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None) -> Any:
        state = tuple(hx) if mode == "LSTM" else (hx,)
        for s in state:
            _fitting(input, s, w_ih, w_hh, gates, name)
        got = CELLS[mode](linear(input, w_ih, b_ih), state, Weights(w_ih, w_hh, b_ih, b_hh))
        return got if mode == "LSTM" else got[0]

    run.__name__ = run.__qualname__ = name
    run.__doc__ = (
        f"One step: input [N, F] and {'(h, c)' if mode == 'LSTM' else 'h'} [N, H] with w_ih [{gates} H, F], w_hh [{gates} H, H] "
        f"-> {'(h, c)' if mode == 'LSTM' else 'h'}. Raises RuntimeError for shapes that do not fit."
    )
    return composite(run)


rnn_tanh_cell, rnn_relu_cell = _cell_function("RNN_TANH", "rnn_tanh_cell", 1), _cell_function("RNN_RELU", "rnn_relu_cell", 1)
lstm_cell, gru_cell = _cell_function("LSTM", "lstm_cell", 4), _cell_function("GRU", "gru_cell", 3)

#: what stands directly under `flame`
FLAME_NAMES = {
    f.__name__: f for f in (rnn_tanh, rnn_relu, lstm, gru, rnn_tanh_cell, rnn_relu_cell, lstm_cell, gru_cell)
}  # fmt: skip
