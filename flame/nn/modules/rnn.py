"""Recurrent layers: `RNN`, `LSTM`, `GRU` over sequences, padded or packed, and single steps: `RNNCell`, `LSTMCell`, `GRUCell`.

Parameters are named, ordered and shaped as PyTorch's: `weight_ih_l0`, `weight_hh_l0`, `bias_ih_l0`, `bias_hh_l0` (`weight_hr_l0`
with projections), then the same with `_reverse`, then the next layer's.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

from flame.functions.elementwise import PUBLIC
from flame.nn import init
from flame.nn.functional import recurrent
from flame.nn.modules.linear import fresh
from flame.nn.modules.module import Module
from flame.nn.utils.rnn import PackedSequence
from flame.tensor import Tensor

_GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}


class RNNBase(Module):
    """What the recurrent layers share; `mode` is "LSTM", "GRU", "RNN_TANH" or "RNN_RELU"."""

    def __init__(
        self, mode: str, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True, batch_first: bool = False,
        dropout: float = 0.0, bidirectional: bool = False, proj_size: int = 0, device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if mode not in _GATES:
            raise ValueError(f"Unrecognized RNN mode: {mode}")
        if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout <= 1:
            raise ValueError(
                "dropout should be a number in range [0, 1] representing the probability of an element being zeroed"
            )
        for name, n in (("hidden_size", hidden_size), ("num_layers", num_layers)):
            if isinstance(n, bool) or not isinstance(n, int):
                raise TypeError(f"{name} should be of type int, got: {type(n).__name__}")
            if n <= 0:
                raise ValueError(f"{name} must be greater than zero")
        if proj_size < 0:
            raise ValueError("proj_size should be a positive integer or zero to disable projections")
        if proj_size >= hidden_size:
            raise ValueError("proj_size has to be smaller than hidden_size")
        if proj_size and mode != "LSTM":
            raise ValueError(f"proj_size argument is only supported for LSTM, not RNN or GRU (here {mode})")
        if dropout > 0 and num_layers == 1:
            warnings.warn(
                "dropout option adds dropout after all but last recurrent layer, so non-zero dropout expects num_layers greater "
                f"than 1, but got dropout={dropout} and num_layers={num_layers}",
                UserWarning,
                stacklevel=3,
            )
        self.mode, self.input_size, self.hidden_size, self.num_layers = mode, input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.dropout, self.bidirectional = bias, batch_first, float(dropout), bidirectional
        self.proj_size = proj_size
        rows, given = _GATES[mode] * hidden_size, proj_size or hidden_size
        self._all_weights: list[list[str]] = []
        for layer in range(num_layers):
            for suffix in ("", "_reverse") if bidirectional else ("",):
                width = input_size if layer == 0 else given * (1 + bool(bidirectional))
                shapes: dict[str, tuple[int, ...]] = {"weight_ih": (rows, width), "weight_hh": (rows, given)}
                if bias:
                    shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
                if proj_size:
                    shapes["weight_hr"] = (proj_size, hidden_size)
                names = []
                for kind, shape in shapes.items():
                    names.append(f"{kind}_l{layer}{suffix}")
                    self.register_parameter(names[-1], fresh(*shape, dtype=dtype, device=device))
                self._all_weights.append(names)
        self.reset_parameters()

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The parameters, a list for each layer and direction."""
        return [[getattr(self, name) for name in names] for names in self._all_weights]

    @property
    def _flat_weights(self) -> list[Tensor]:
        d = self.__dict__
        return [d[name] if name in d else getattr(self, name) for names in self._all_weights for name in names]

    def flatten_parameters(self) -> None:
        """Nothing to do: parameters need not lie side by side in memory."""

    def reset_parameters(self) -> None:
        """Uniform within 1 / sqrt(hidden_size)."""
        bound = 1.0 / math.sqrt(self.hidden_size)
        for w in self.parameters():
            init.uniform_(w, -bound, bound)

    def _initial(self, x: Tensor, batch: int) -> Any:
        n = self.num_layers * (1 + bool(self.bidirectional))
        zeros = lambda width: PUBLIC["zeros"](n, batch, width, dtype=x.dtype, device=x.device)
        h = zeros(self.proj_size or self.hidden_size)
        return (h, zeros(self.hidden_size)) if self.mode == "LSTM" else h

    def _check_input(self, x: Tensor, packed: bool) -> None:
        if not x.dtype.is_floating_point or x.dtype is not self._flat_weights[0].dtype:
            raise ValueError(f"RNN input dtype ({x.dtype!r}) does not match weight dtype ({self._flat_weights[0].dtype!r}).")
        allowed = (2,) if packed else (2, 3)
        if x.ndim not in allowed:
            wanted = "2-D" if packed else "2D or 3D"
            error = RuntimeError if packed else ValueError
            raise error(f"{type(self).__name__}: Expected input to be {wanted}, got {x.ndim}D instead")
        if x.shape[-1] != self.input_size:
            raise RuntimeError(f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {x.shape[-1]}")

    def _check_state(self, h: Any, batch: int) -> None:
        n = self.num_layers * (1 + bool(self.bidirectional))
        widths = (self.proj_size or self.hidden_size, self.hidden_size)
        parts = h if self.mode == "LSTM" else (h,)
        if len(parts) != (2 if self.mode == "LSTM" else 1):
            raise RuntimeError(f"{type(self).__name__}: expected (h_0, c_0) as hx, got {len(parts)} tensors")
        for part, width, name in zip(
            parts, widths, ("hidden[0]" if self.mode == "LSTM" else "hidden", "hidden[1]"), strict=False
        ):
            if tuple(part.shape) != (n, batch, width):
                raise RuntimeError(f"Expected {name} size {(n, batch, width)}, got {list(part.shape)}")

    def forward(self, input: Any, hx: Any = None) -> Any:
        """input [T, N, F] ([N, T, F] with `batch_first`), [T, F], or a PackedSequence -> (output, last state).

        The state is [layers x directions, N, H] (without N where the input has none), for an LSTM a pair (h, c).
        """
        pair = self.mode == "LSTM"
        run = getattr(recurrent, self.mode.lower())
        settings = (self._flat_weights, self.bias, self.num_layers, self.dropout, self.training, self.bidirectional)
        if isinstance(input, PackedSequence):
            data, sizes, order, back = input
            self._check_input(data, True)
            batch = int(sizes[0])
            if hx is None:
                hx = self._initial(data, batch)
            elif order is not None:
                hx = tuple(h.index_select(1, order) for h in hx) if pair else hx.index_select(1, order)
            self._check_state(hx, batch)
            y, *last = run(data, sizes, hx, *settings)
            if back is not None:
                last = [h.index_select(1, back) for h in last]
            return PackedSequence(y, sizes, order, back), tuple(last) if pair else last[0]
        self._check_input(input, False)
        single = input.ndim == 2
        x = input.unsqueeze(0 if self.batch_first else 1) if single else input
        batch = x.shape[0 if self.batch_first else 1]
        if hx is None:
            hx = self._initial(x, batch)
        else:
            for h in hx if pair else (hx,):
                if h.ndim != input.ndim:
                    raise RuntimeError(
                        f"For {'unbatched 2-D' if single else 'batched 3-D'} input, hx should also be {input.ndim}-D but got "
                        f"{h.ndim}-D tensor"
                    )
            if single:
                hx = tuple(h.unsqueeze(1) for h in hx) if pair else hx.unsqueeze(1)
        self._check_state(hx, batch)
        y, *last = run(x, hx, *settings, self.batch_first)
        if single:
            y, last = y.squeeze(0 if self.batch_first else 1), [h.squeeze(1) for h in last]
        return y, tuple(last) if pair else last[0]

    def extra_repr(self) -> str:
        text = f"{self.input_size}, {self.hidden_size}"
        shown = dict(proj_size=0, num_layers=1, bias=True, batch_first=False, dropout=0, bidirectional=False)
        for name, default in shown.items():
            if getattr(self, name) != default:
                text += f", {name}={getattr(self, name)}"
        return text


class RNN(RNNBase):
    """h' = tanh(W x + b + V h + c) (or relu, by `nonlinearity`), over sequences (Elman, 1990)."""

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, nonlinearity: str = "tanh", bias: bool = True,
        batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False, device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
        super().__init__(
            f"RNN_{nonlinearity.upper()}", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            device=device, dtype=dtype,
        )  # fmt: skip
        self.nonlinearity = nonlinearity


class LSTM(RNNBase):
    """Long short-term memory (Hochreiter and Schmidhuber, 1997); `proj_size` projects the hidden state (Sak et al., 2014)."""

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True, batch_first: bool = False,
        dropout: float = 0.0, bidirectional: bool = False, proj_size: int = 0, device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__(
            "LSTM", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype
        )


class GRU(RNNBase):
    """Gated recurrent units (Cho et al., 2014)."""

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True, batch_first: bool = False,
        dropout: float = 0.0, bidirectional: bool = False, device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__(
            "GRU", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device=device, dtype=dtype
        )


class RNNCellBase(Module):
    """What the single steps share: `weight_ih`, `weight_hh`, `bias_ih`, `bias_hh` with `num_chunks` gates."""

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool, num_chunks: int, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        self.input_size, self.hidden_size, self.bias = input_size, hidden_size, bias
        rows = num_chunks * hidden_size
        make = lambda *shape: fresh(*shape, dtype=dtype, device=device)
        self.weight_ih, self.weight_hh = make(rows, input_size), make(rows, hidden_size)
        self.register_parameter("bias_ih", make(rows) if bias else None)
        self.register_parameter("bias_hh", make(rows) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform within 1 / sqrt(hidden_size)."""
        bound = 1.0 / math.sqrt(self.hidden_size) if self.hidden_size > 0 else 0
        for w in self.parameters():
            init.uniform_(w, -bound, bound)

    def _step(self, run: Any, input: Tensor, hx: Any, pair: bool) -> Any:
        name = type(self).__name__
        if input.ndim not in (1, 2):
            raise ValueError(f"{name}: Expected input to be 1D or 2D, got {input.ndim}D instead")
        parts = () if hx is None else tuple(hx) if pair else (hx,)
        for k, h in enumerate(parts):
            if h.ndim not in (1, 2):
                raise ValueError(f"{name}: Expected hx{f'[{k}]' if pair else ''} to be 1D or 2D, got {h.ndim}D instead")
        single = input.ndim == 1
        x = input.unsqueeze(0) if single else input
        if hx is None:
            parts = (PUBLIC["zeros"](x.shape[0], self.hidden_size, dtype=x.dtype, device=x.device),) * (1 + pair)
        elif single:
            parts = tuple(h.unsqueeze(0) for h in parts)
        got = run(x, parts if pair else parts[0], self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        if not single:
            return got
        return tuple(h.squeeze(0) for h in got) if pair else got.squeeze(0)

    def extra_repr(self) -> str:
        text = f"{self.input_size}, {self.hidden_size}"
        if self.bias is not True:
            text += f", bias={self.bias}"
        if getattr(self, "nonlinearity", "tanh") != "tanh":
            text += f", nonlinearity={self.nonlinearity}"
        return text


class RNNCell(RNNCellBase):
    """One step of an RNN: input [N, F] and h [N, H] -> h; all without N too."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, 1, device, dtype)
        self.nonlinearity = nonlinearity

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        if self.nonlinearity not in ("tanh", "relu"):
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        run = recurrent.rnn_tanh_cell if self.nonlinearity == "tanh" else recurrent.rnn_relu_cell
        return self._step(run, input, hx, False)


class LSTMCell(RNNCellBase):
    """One step of an LSTM: input [N, F] and (h, c) [N, H] -> (h, c); all without N too."""

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, device: Any = None, dtype: Any = None) -> None:
        super().__init__(input_size, hidden_size, bias, 4, device, dtype)

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        return self._step(recurrent.lstm_cell, input, hx, True)


class GRUCell(RNNCellBase):
    """One step of a GRU: input [N, F] and h [N, H] -> h; all without N too."""

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, device: Any = None, dtype: Any = None) -> None:
        super().__init__(input_size, hidden_size, bias, 3, device, dtype)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        return self._step(recurrent.gru_cell, input, hx, False)
