"""The differential fuzzer of capture: past findings as they were minimised, and fresh programs from fixed seeds for a while."""

from __future__ import annotations

import pickle
import random
import threading
import time
from typing import Any

import pytest

import flame
from tests import fuzz_capture, fuzz_gradients, fuzz_models
from tests.fuzz_capture import EVERYTHING, FORMS, Program, check, difference, generate
from tests.fuzz_switches import HOW

#: Programs that once differed. An operation that is chosen by value (a, b, c) keeps its numbers.
PAST: list[tuple[str, Program]] = [
    (
        "a custom function after a break, differentiated after the call",
        [("numpy_peek", 0.916, 0.786, 0.828), ("custom_pair", 0.76, 0.16, 0.192)],
    ),
    (
        "what is detached lies as it did",
        [
            ("expanded_write", 0.367, 0.198, 0.118), ("custom", 0.784, 0.115, 0.604), ("detach", 0.545, 0.01, 0.1),
            ("flags", 0.997, 0.787, 0.908),
        ],
    ),
    (
        "a view from outside is asked for its history while its base has pending writes",
        [
            ("shape_text", 0.253, 0.418, 0.404), ("tensor_hook", 0.889, 0.6, 0.686), ("add_", 0.26, 0.996, 0.266),
            ("outer_window", 0.165, 0.335, 0.157), ("sum_into", 0.386, 0.609, 0.337), ("given_cotangent", 0.846, 0.289, 0.799),
            ("given_cotangent", 0.66, 0.286, 0.689),
        ],
    ),
    (
        "what was a copy is one where written memory lies otherwise",
        [
            ("out_of", 0.951, 0.412, 0.819), ("flag", 0.138, 0.187, 0.076), ("transposed_write", 0.909, 0.3, 0.783),
            ("custom_pair", 0.817, 0.875, 0.301), ("weak", 0.253, 0.034, 0.603),
        ],
    ),
    (
        "which refusal of the tape comes first",
        [
            ("view_of_view", 0.05, 0.4, 0.71), ("transpose", 0.1, 0.68, 0.52), ("clamp", 0.82, 0.95, 0.55),
            ("setrow", 0.56, 0.18, 0.87), ("backward", 0.63, 0.18, 0.51),
        ],
    ),
    ("an argument that was given a history is no leaf", [("history_write", 0.22, 0.38, 0.85), ("flags", 0.22, 0.68, 0.6)]),
    (
        "a view of a view of a leaf is not written after a break",
        [("leaf_view", 0.72, 0.01, 0.89), ("inner_leaf", 0.83, 0.31, 0.33), ("iadd_row", 0.53, 0.98, 0.82)],
    ),
    (
        "a gradient that does not go through all of an earlier segment",
        [("history_write", 0.97, 0.58, 0.09), ("grad", 0.72, 0.47, 0.2)],
    ),
    (
        "a written result that backward does not read",
        [("keep_loss", 0.68, 0.49, 0.49), ("numpy_peek", 0.36, 0.79, 0.04), ("view_of_view", 0.78, 0.64, 0.77)],
    ),
    (
        "writing through a view of a view made before a break",
        [
            ("add", 0.18, 0.3, 0.39), ("add", 0.57, 0.29, 0.55), ("relu", 0.83, 0.3, 0.06), ("slice", 0.49, 0.79, 0.14),
            ("truth", 0.17, 0.98, 0.93), ("expand", 0.89, 0.98, 0.29), ("setslice", 0.68, 0.93, 0.65),
        ],
    ),
    (
        "a view of a leaf that was made and written under no_grad has the leaf's history",
        [("leaf_view", 0.97, 0.67, 0.23), ("no_grad_view", 0.99, 0.79, 0.02), ("custom", 0.61, 0.3, 0.1)],
    ),
    (
        "a hook on a result that other results of the segment depend on",
        [("expand", 0.28, 0.5, 0.52), ("outer_hook", 0.66, 0.45, 0.9)],
    ),
    (
        "a derivative of a derivative, after an input was written that no rule reads",
        [("scalar", 0.0, 0.63, 0.25), ("outer_double", 0.43, 0.56, 0.54), ("mask_write", 0.0, 1.0, 0.9)],
    ),
    ("a write between forward and backward, then another path", [("write_between", 0.948, 0.888, 0.693)]),
    ("leaf hooks when grad() is followed", [("unused", 0.565, 0.96, 0.846), ("leaf_hook", 0.31, 0.662, 0.481)]),
    ("a graph freed through its second derivative", [("double", 0.638, 0.714, 0.505), ("outer_double", 0.186, 0.688, 0.349)]),
    (
        "what another result of a segment came from is not freed",
        [
            ("int_of_value", 0.521, 0.679, 0.649), ("leaf_hook", 0.478, 0.326, 0.059), ("custom_pair", 0.216, 0.219, 0.052),
            ("retain_backward", 0.418, 0.249, 0.021), ("boolean", 0.161, 0.099, 0.366),
        ],
    ),
    (
        "what is retained is not freed by a later backward through another result",
        [("tensor_hook", 0.063, 0.153, 0.281), ("loop", 0.07, 0.359, 0.452), ("custom_between", 0.502, 0.762, 0.119)],
    ),
    (
        "memory that backward recomputes from, written by an operation without a temporary",
        [("history_write", 0.08, 0.452, 0.92), ("keep_loss", 0.651, 0.897, 0.604), ("outer_write", 0.29, 0.258, 0.108)],
    ),
    (
        "a result that can't be differentiated refuses whoever asks for its gradient alone",
        [("mul", 0.291, 0.056, 0.64), ("outer_double", 0.829, 0.671, 0.103), ("second_argument", 0.891, 0.197, 0.485)],
    ),
    (
        "memory that is guarded because a view of it was saved",
        [
            ("transpose", 0.841, 0.747, 0.326), ("layer_norm", 0.071, 0.792, 0.549), ("penalty", 0.779, 0.165, 0.1),
            ("new_data", 0.506, 0.008, 0.576), ("mask_write", 0.168, 0.653, 0.001),
        ],
    ),
    (
        "history written through a tensor whose memory came in through a detached one",
        [
            ("leaf_hook", 0.08, 0.01, 0.302), ("several_losses", 0.79, 0.825, 0.858), ("write_twice", 0.652, 0.037, 0.091),
            ("matmul", 0.361, 0.663, 0.854), ("grow_dict", 0.957, 0.911, 0.149),
        ],
    ),
    ("second derivatives while sizes are symbolic", [("penalty_of_weights", 0.149, 0.675, 0.607)]),
    (
        "cotangents whose sizes are symbolic",
        [("delete_base", 0.125, 0.285, 0.293), ("given_cotangent", 0.599, 0.689, 0.633), ("given_cotangent", 0.333, 0.692, 0.489)],
    ),
    (
        "the strides of an empty tensor",
        [("batches", 0.374, 0.792, 0.801), ("half", 0.359, 0.79, 0.176), ("shape_text", 0.909, 0.583, 0.811)],
    ),
    ("data assigned between forward and backward", [("into_inputs", 0.152, 0.491, 0.743), ("new_data", 0.648, 0.083, 0.502)]),
    (
        "memory that NumPy shares, written between forward and backward",
        [
            ("shape_arange", 0.499, 0.246, 0.662), ("replaced_weight", 0.352, 0.101, 0.424), ("power", 0.405, 0.726, 0.612),
            ("view_of_view", 0.362, 0.153, 0.525), ("numpy_peek", 0.233, 0.382, 0.904),
        ],
    ),
    (
        "a view made under no_grad, written with gradients by an operation without a temporary",
        [("replaced_weight", 0.625, 0.986, 0.784), ("no_grad_view", 0.766, 0.109, 0.996), ("hook_free_exp", 0.785, 0.475, 0.507)],
    ),
    (
        "another tensor of memory that was written, when the path is left",
        [
            ("detach", 0.52, 0.2, 0.67), ("retained", 0.155, 0.913, 0.274), ("raise_after_effects", 0.016, 0.744, 0.339),
            ("shape_arithmetic", 0.566, 0.474, 0.366),
        ],
    ),
    (
        "what saved nothing can be differentiated when the rest is freed",
        [("layer_norm", 0.309, 0.189, 0.365), ("outer_retain", 0.762, 0.62, 0.022), ("outer_inputs", 0.507, 0.072, 0.822)],
    ),
    (
        "a custom function saves an argument that was written before it",
        [("copy_", 0.078, 0.325, 0.275), ("custom", 0.064, 0.24, 0.309)],
    ),
    (
        "NumPy writes what the tape saved of a path that was left",
        [
            ("outer_numpy", 0.66, 0.578, 0.685), ("mul", 0.544, 0.337, 0.514), ("new_data", 0.645, 0.924, 0.424),
            ("exp", 0.57, 0.346, 0.664),
        ],
    ),
    (
        "the tape of a path with a custom function is made anew",
        [("custom_between", 0.174, 0.713, 0.296), ("param_no_grad", 0.286, 0.388, 0.929), ("moving_average", 0.899, 0.139, 0.873)],
    ),
    (
        "a freed result of a custom function is written",
        [("staged_custom", 0.865, 0.579, 0.194), ("write_twice", 0.451, 0.249, 0.367)],
    ),
    (
        "a backward pass that begins outside, while hooks wait for one inside",
        [("custom_raises", 0.227, 0.296, 0.466), ("late_backward", 0.819, 0.931, 0.138), ("keep_loss", 0.935, 0.63, 0.988)],
    ),
    (
        "a part of a backward pass while sizes are symbolic",
        [("shape_loop", 0.021, 0.594, 0.573), ("retained", 0.106, 0.64, 0.434), ("given_cotangent", 0.579, 0.093, 0.284)],
    ),
    (
        "a leaf that was frozen in between has one end of the tape, with its hook",
        [
            ("add", 0.868, 0.862, 0.893), ("post_hook", 0.505, 0.132, 0.503), ("stack_unbind", 0.739, 0.392, 0.533),
            ("toggled", 0.82, 0.866, 0.392),
        ],
    ),
    (
        "a whole view made without gradient is written with it, beside one of a size that varies",
        [
            ("modes", 0.24, 0.154, 0.821), ("no_grad_view", 0.75, 0.844, 0.614), ("new_data", 0.019, 0.778, 0.541),
            ("shape_loop", 0.688, 0.285, 0.151), ("broadcast_write", 0.505, 0.248, 0.361),
        ],
    ),
    (
        "an input beside one whose sizes are not known on this path",
        [
            ("numbers", 0.726, 0.819, 0.418), ("called_under", 0.346, 0.747, 0.983), ("batched", 0.863, 0.326, 0.229),
            ("shape_zeros", 0.161, 0.789, 0.526),
        ],
    ),
    (
        "another path from its first step on, where nothing new is to be compiled",
        [("called_in_stance", 0.667, 0.13, 0.589), ("int_of_value", 0.229, 0.669, 0.921)],
    ),
    (
        "the same where data was assigned",
        [("called_in_stance", 0.925, 0.311, 0.441), ("new_data", 0.405, 0.823, 0.183), ("new_data", 0.007, 0.276, 0.966)],
    ),
    (
        "an out= without elements",
        [("batches", 0.641, 0.918, 0.152), ("transformed", 0.015, 0.213, 0.588), ("out_of", 0.855, 0.645, 0.426)],
    ),
]  # fmt: skip

#: Programs that differed in kernels, by the rounding of 16-bit numbers that kernels do not store.
ROUNDED: list[Program] = [
    [("autocast", 0.307, 0.557, 0.814), ("leaf_hook", 0.327, 0.834, 0.801)],
    [("autocast", 0.638, 0.6, 0.027)],
    [("autocast", 0.388, 0.72, 0.241)],
]

SECONDS = 30
SEEDS = range(9000, 9900)


def test_every_operation_is_drawn() -> None:
    drawn = {op for seed in SEEDS[:400] for op, *_ in generate(random.Random(seed))}
    assert drawn == {*EVERYTHING, *FORMS}


@pytest.mark.parametrize("name, program", PAST, ids=[name for name, _ in PAST])
def test_past_findings(name: str, program: Program) -> None:
    assert not check(program), name


def _lost(*given: Any, **named: Any) -> None:
    """What a planted error makes of something."""


def _pickled(data: Any) -> Any:
    found = pickle._loads(data)  # type: ignore[attr-defined]
    return {**found, "t": found["t"] * 2.0}


def _only_here(f: Any, backend: str, **how: Any) -> Any:
    return lambda *a: f(*a) if threading.current_thread() is threading.main_thread() else a[0] + a[1]


def _stale(f: Any, backend: str, **how: Any) -> Any:
    """A function that is replayed whatever it reads."""
    before: dict = {}
    return lambda *a: before.setdefault(tuple(a[0].shape), f(*a)) if how else f(*a)


def _doubled(module: Any, given: Any, result: Any) -> Any:
    return result * 2.0


_LSTM, _GRU = flame.nn.LSTM.forward, flame.nn.GRU.forward

#: Operations with the numbers that they are drawn with, and what is put in the place of what while the function is compiled.
PLANTED: list[tuple[Program, Any, str, Any]] = [
    ([("learn", 0.5, 0.0, 0.6)], flame.nn.utils, "clip_grad_norm_", lambda ps, most: [p.grad.mul_(2.0) for p in ps]),
    ([("learn", 0.5, 0.0, 0.1)], flame.optim.lr_scheduler.ExponentialLR, "step", _lost),
    (
        [("learn", 0.5, 0.0, 0.1), ("outer_model", 0.5, 0.1, 0.1)],
        flame.optim.SGD,
        "load_state_dict",
        lambda o, s: o.state.clear(),
    ),
    ([("predict", 0.5, 0.0, 0.6)], flame.nn.Module, "eval", _lost),
    ([("called_functionally", 0.5, 0.1, 0.7)], flame.func, "functional_call", lambda module, given, args: module(*args)),
    ([("transformed", 0.5, 0.1, 0.1)], flame.func, "jvp", lambda f, x, v: (f(*x), f(*x))),
    ([("transformed", 0.5, 0.1, 0.3)], flame.func, "jacrev", lambda f: lambda x: f(x).diag()),
    ([("pickled", 0.5, 0.1, 0.1)], pickle, "loads", _pickled),
    ([("copied_module", 0.5, 0.1, 0.1)], fuzz_models.copy, "deepcopy", lambda x: x),
    ([("strange_views", 0.5, 0.1, 0.3)], flame.Tensor, "as_strided", lambda t, *how: t.clone()[:2, :2]),
    ([("other_thread", 0.5, 0.1, 0.1)], flame, "compile", _only_here),
    ([("outer_threads", 0.5, 0.1, 0.1)], flame, "compile", _only_here),
    ([("outer_replay", 0.5, 0.1, 0.1)], flame, "compile", _stale),
    ([("outer_global", 0.5, 0.1, 0.1)], flame, "compile", _stale),
    ([("outer_limit", 0.5, 0.1, 0.1)], flame, "compile", lambda f, backend, **how: lambda x, *n: f(x, *[min(i, 3) for i in n])),
    ([("outer_sizes", 0.5, 0.1, 0.1)], flame, "compile", _stale),
    ([("outer_sizes", 0.5, 0.1, 0.9)], flame, "compile", _stale),
    (
        [("outer_module", 0.5, 0.1, 0.1)],
        flame,
        "compile",
        lambda f, backend, **how: lambda *x: getattr(f, "eval", lambda: f)()(*x),
    ),
    ([("outer_module", 0.5, 0.1, 0.9)], flame.nn.Module, "compile", lambda net, **how: net.register_forward_hook(_doubled)),
    ([("outer_crowd", 0.5, 0.1, 0.1)], flame, "compile", _only_here),
    ([("outer_background", 0.5, 0.1, 0.1)], flame, "compile", _stale),
    ([("no_break_wanted", 0.5, 0.1, 0.1)], flame.compiler, "error_on_graph_break", lambda on: flame.no_grad()),
    ([("recurrent", 0.5, 0.1, 0.1)], flame.nn.LSTM, "forward", lambda net, x, state=None: _LSTM(net, x)),
    ([("recurrent", 0.5, 0.6, 0.6)], flame.nn.GRU, "forward", lambda net, x, state=None: _GRU(net, x)),
    ([("cached_rows", 0.1, 0.1, 0.1)], flame, "cat", lambda ts, dim: ts[-1] * 1.0),
    ([("cached_rows", 0.1, 0.1, 0.9)], flame.Tensor, "__setitem__", _lost),
    ([("cached_rows", 0.1, 0.9, 0.9)], flame.Tensor, "index_copy_", _lost),
    ([("called_in_stance", 0.5, 0.1, 0.1), ("mul", 0.1, 0.1, 0.1)], flame.compiler, "set_stance", lambda to: flame.no_grad()),
    *[([("compiled_with", (i + 0.5) / len(HOW), 0.1, 0.1)], flame, "compile", _stale) for i in range(len(HOW))],
]


@pytest.mark.parametrize("program, owner, name, wrong", PLANTED, ids=lambda x: x[-1][0] if isinstance(x, list) else "")
def test_planted_errors_are_found(program: Program, owner: Any, name: str, wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not check(program)
    real = fuzz_capture.run

    def run(program: Program, wrap: Any) -> list:
        with monkeypatch.context() as m:
            if wrap.__name__ == "wrap":
                m.setattr(owner, name, wrong)
            return real(program, wrap)

    monkeypatch.setattr(fuzz_capture, "run", run)
    found = check(program)
    assert found and not found.startswith("crash"), found


def test_random_programs() -> None:
    """As many seeds as the time allows, at least forty: which ones fail never depends on the clock, only how many are tried."""
    stats: dict = {}
    stop = time.monotonic() + SECONDS
    for done, seed in enumerate(SEEDS):
        if done >= 40 and time.monotonic() > stop:
            break
        found = check(generate(random.Random(seed)), "eager", stats)
        assert not found, f"seed {seed}: {found}  (python -m tests.fuzz_capture {seed} {seed + 1} minimises it)"
    assert stats["followed"] > stats["calls"], "capture followed next to nothing"


def test_random_programs_compiled() -> None:
    stats: dict = {}
    for seed in range(25):
        found = check(generate(random.Random(seed)), "llvm", stats)
        assert not found, f"seed {seed}: {found}  (python -m tests.fuzz_capture {seed} {seed + 1} --backend llvm minimises it)"


def test_rounding_is_told_by_eager_itself() -> None:
    """A sum that is rounding alone is no finding; a number that is not what eager gives from inputs alike is one."""
    near = [[1.0, 5e-4], [1.0, -3e-4], [1.0, 2e-4]]
    assert not difference([1.0, -2e-4], [1.0, -6e-4], "", near)
    assert difference([1.0, -2e-4], [1.0, -6e-4]) == "[1]: -0.0002 / -0.0006"
    assert difference([1.0, -2e-4], [1.0, -6e-2], "", near)
    assert difference([1.0, -2e-4], [1.1, -2e-4], "", near)


@pytest.mark.parametrize("program", ROUNDED)
def test_rounding_of_16_bits_is_no_finding_and_no_excuse(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eager rounds every result under autocast, kernels those that they store. A result that is off by more is still found."""
    assert not check(program, "llvm")

    def wrong(f: Any, backend: str, **how: Any) -> Any:
        def called(*args: Any) -> Any:
            with monkeypatch.context() as m:
                m.setattr(fuzz_gradients, "rounded", lambda x: x * 1.03)
                return f(*args)

        return called

    monkeypatch.setattr(flame, "compile", wrong)
    assert check(program, "llvm")
