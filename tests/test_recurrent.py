"""Recurrent layers as one primitive: its routine against its steps, sizes that are met, derivatives, and where it is used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import pytest

import flame
from flame import nn
from flame.compiler.target_cpu import CpuTarget
from flame.dtypes import float32, float64
from flame.ops.recurrent import GATES, recurrent
from flame.primitive import Spec, registered
from flame.runtime import cpu
from flame.runtime.routines import routine

MODES = {"RNN_TANH": nn.RNN, "LSTM": nn.LSTM, "GRU": nn.GRU}


def given(mode: str, t: int, n: int, size: int, dtype: Any = flame.float32) -> list[flame.Tensor]:
    flame.manual_seed(t + 7 * n + 31 * size)
    gates = GATES[mode]
    shapes = [(t, n, gates * size), (gates * size, size), (n, size)]
    shapes += [(n, size)] if mode == "LSTM" else [(3 * size,)] if mode == "GRU" else []
    return [(0.5 * flame.randn(*s, dtype=flame.float64)).to(dtype).requires_grad_() for s in shapes]


def with_gradients(mode: str, reverse: bool, xs: list[flame.Tensor]) -> Callable[[], list[flame.Tensor]]:
    def run() -> list[flame.Tensor]:
        found = recurrent(*xs, mode=mode, reverse=reverse)
        y, *kept = found if isinstance(found, tuple) else (found,)
        loss = (y.double() * flame.arange(y.numel(), dtype=flame.float64).reshape(y.shape).cos()).sum()
        if mode == "LSTM":
            loss = loss + kept[0].double().square().sum()
        return [y.detach(), *flame.autograd.grad(loss, xs)]

    return run


@pytest.mark.parametrize("mode", GATES)
@pytest.mark.parametrize("t, n, size", [(2, 1, 1), (5, 13, 33), (2, 19, 64)])
def test_the_routine_computes_what_the_steps_do(mode: str, t: int, n: int, size: int) -> None:
    reverse = bool((t + n) % 2)
    run = with_gradients(mode, reverse, given(mode, t, n, size))
    compiled = flame.compile(run)
    for _ in range(3):
        got = compiled()
    exact = with_gradients(mode, reverse, given(mode, t, n, size, flame.float64))()
    for g, eager, want in zip(got, run(), exact, strict=True):
        error, allowed = (np.abs(x.double().numpy() - want.numpy()).max() for x in (g, eager))
        assert error <= 2 * allowed + 2e-6 * max(1, np.abs(want.numpy()).max())


@pytest.mark.parametrize(
    "mode, name, tolerance", [("LSTM", "float64", 1e-12), ("RNN_TANH", "bfloat16", 1e-1), ("GRU", "float16", 2e-2)]
)
def test_every_floating_dtype(mode: str, name: str, tolerance: float) -> None:
    run = with_gradients(mode, True, given(mode, 4, 9, 20, getattr(flame, name)))
    compiled = flame.compile(run)
    for _ in range(3):
        got = compiled()
    for g, want in zip(got, run(), strict=True):
        np.testing.assert_allclose(g.double().numpy(), want.double().numpy(), rtol=tolerance, atol=tolerance)


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    run = flame.compile(with_gradients("LSTM", False, given("LSTM", 6, 40, 48)))
    threads, found = flame.get_num_threads(), []
    try:
        for n in (1, 2, 5):
            flame.set_num_threads(n)
            for _ in range(3):
                got = run()
            found.append([g.numpy().tobytes() for g in got])
    finally:
        flame.set_num_threads(threads)
    assert found[0] == found[1] == found[2]


def test_registers_and_vectors_of_other_machines() -> None:
    host = cpu.host()
    for lanes, registers in ((4, 16), (8, 16), (8, 32), (16, 32)):
        target = CpuTarget(host.triple, host.name, host.features, lanes, registers)
        for mode, gates in GATES.items():
            operands = [Spec((3, 7, gates * 20), float32), Spec((gates * 20, 20), float32), Spec((7, 20), float32)]
            made = routine(registered("recurrent"), operands, {"mode": mode, "reverse": False}, target)
            assert made is not None and made.workspace > 0 and "recurrent_tile" in made.source.text
            llvm.parse_assembly(made.source.text).verify()


@pytest.mark.parametrize("mode", ["RNN_TANH", "LSTM", "GRU"])
def test_second_derivatives(mode: str) -> None:
    xs = given(mode, 2, 1, 2, flame.float64)

    def f(*xs: flame.Tensor) -> Any:
        found = recurrent(*xs, mode=mode, reverse=False)
        return found[0] if isinstance(found, tuple) else found

    assert flame.autograd.gradgradcheck(f, xs)


@pytest.mark.parametrize("mode", MODES)
def test_layers_run_as_one_call_and_agree_with_single_steps(mode: str) -> None:
    """Two layers both ways, without biases too; a packed batch of uneven lengths goes step by step, to the same states."""
    flame.manual_seed(0)
    for bias in (True, False)[: 2 if mode == "GRU" else 1]:
        net = MODES[mode](5, 12, num_layers=2, bidirectional=True, batch_first=True, bias=bias)
        x = flame.randn(6, 7, 5)
        compiled = flame.compile(net)
        with flame.no_grad():
            for _ in range(3):
                y, last = compiled(x)
            short = nn.utils.rnn.pack_padded_sequence(flame.cat([x, x[:1]]), flame.tensor([7] * 6 + [4]), batch_first=True)
            rows, _ = net(short)
        back, _ = nn.utils.rnn.pad_packed_sequence(rows, batch_first=True)
        np.testing.assert_allclose(y.numpy(), back[:6].numpy(), rtol=1e-5, atol=1e-6)
        assert sum("recurrent" in str(c.program) for c in compiled.compiled_graphs()) >= 1
        h = last[0] if mode == "LSTM" else last
        np.testing.assert_allclose(h[2].numpy(), y[:, -1, :12].numpy(), rtol=1e-6)
        np.testing.assert_allclose(h[3].numpy(), y[:, 0, 12:].numpy(), rtol=1e-6)


def test_examples_with_weights_of_their_own() -> None:
    gi, w, h = (flame.randn(3, *x.shape) for x in given("RNN_TANH", 4, 2, 3))
    run = lambda gi, w, h: recurrent(gi, w, h, mode="RNN_TANH", reverse=False)
    got = flame.func.vmap(run)(gi, w, h)
    want = flame.stack([run(gi[i], w[i], h[i]) for i in range(3)])
    np.testing.assert_allclose(got.numpy(), want.numpy(), rtol=1e-6)
    got = flame.func.vmap(run, in_dims=(0, None, None))(gi, w[0], h[0])
    np.testing.assert_allclose(got.numpy(), flame.stack([run(gi[i], w[0], h[0]) for i in range(3)]).numpy(), rtol=1e-6)


def test_shapes_that_do_not_fit_are_told() -> None:
    gi, w, h = Spec((4, 2, 3), float32), Spec((3, 3), float32), Spec((2, 3), float32)
    assert recurrent.infer(gi, w, h, mode="RNN_TANH", reverse=False) == gi
    with pytest.raises(RuntimeError, match=r"expected for RNN_TANH \[T, N, 1 H\]"):
        recurrent.infer(gi, w, Spec((1, 3), float32), mode="RNN_TANH", reverse=False)
    with pytest.raises(RuntimeError, match="one floating dtype"):
        recurrent.infer(gi, Spec((3, 3), float64), h, mode="RNN_TANH", reverse=False)
