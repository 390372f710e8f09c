"""Wrong calls of public functions: a string where a tensor or a number belongs is a TypeError that names the argument."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

import flame
from flame.functions.refusing import GUARDED

PLACES = {"": flame, "nn.functional": flame.nn.functional, "linalg": flame.linalg, "fft": flame.fft, "special": flame.special}
#: what looks at nothing but the type of its argument, and answers
ANSWERS = {"is_tensor", "is_storage", "typename", "set_rng_state"}


def functions() -> list[tuple[str, Any]]:
    """Public functions whose first parameter is a tensor."""
    found = []
    for place, module in PLACES.items():
        for n in sorted(vars(module)):
            f = getattr(module, n)
            if (
                n.startswith("_")
                or not inspect.isfunction(f)
                or n in ANSWERS
                or f.__module__.startswith("flame.nn.functional") != (place == "nn.functional")
            ):
                continue
            if place and not f.__module__.startswith(f"flame.{place}"):
                continue
            first = next(iter(inspect.signature(f).parameters.values()), None)
            if first is not None and str(first.annotation) == "Tensor" and first.kind is first.POSITIONAL_OR_KEYWORD:
                found.append((f"{place}.{n}".lstrip("."), f))
    return found


FILLED = {"int": 1, "float": 0.5, "bool": True, "str": "mean", "Tensor": flame.ones(2, 2)}
IN_TURN = {"index": flame.zeros(1, dtype=flame.int64), "equation": "ij->i"}


def filled(p: inspect.Parameter) -> Any:
    return IN_TURN.get(p.name, FILLED.get(str(p.annotation), 1))


def test_a_string_is_no_tensor() -> None:
    wrong = []
    for name, f in functions():
        rest = [p for p in list(inspect.signature(f).parameters.values())[1:]
                if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]  # fmt: skip
        positional = [filled(p) for p in rest if p.kind is p.POSITIONAL_OR_KEYWORD]
        keywords = {p.name: filled(p) for p in rest if p.kind is p.KEYWORD_ONLY}
        for bad in ("x", None):
            try:
                f(bad, *positional, **keywords)
            except TypeError:
                continue
            except Exception as e:
                wrong.append(f"{name}({bad!r}): {type(e).__name__}: {e}")
            else:
                wrong.append(f"{name}({bad!r}): nothing raised")
    assert not wrong, "\n".join(wrong)
    assert len(functions()) > 300


F: Any = flame.nn.functional
X = flame.ones(1, 1, 4)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: flame.as_strided(X, (1,), (1,), "x"), TypeError, "storage_offset"),
        (lambda: F.conv1d(X, X, stride="x"), TypeError, "'stride'"),
        (lambda: F.conv1d(X, X, padding="all"), RuntimeError, "Invalid padding"),
        (lambda: F.pad(X, (1, 1), mode=3), TypeError, "'mode'.*must be str, not int"),
        (lambda: flame.gather(X, 0, "x"), TypeError, "'index'"),
        (lambda: flame.reshape(X, (3,)), RuntimeError, "invalid for input"),
        (lambda: F.layer_norm(X, ["x"]), TypeError, "normalized_shape"),
        (lambda: flame.linspace("x", 1, 3), TypeError, "'start'"),
        (lambda: X.view_as("x"), TypeError, "must be Tensor, not str"),
        (lambda: flame.exp2(X).bool().lgamma_(), RuntimeError, "can't be cast"),
        (lambda: flame.maximum(X.to(flame.complex64), X), NotImplementedError, "not implemented for flame.complex64"),
        (lambda: X.unfold(2, 5, 1), RuntimeError, "maximum size"),
        (lambda: F.pixel_shuffle(flame.ones(2), 2), RuntimeError, "at least 3"),
        (lambda: F.interpolate(X, (2, 2), mode="bilinear"), ValueError, "same number of spatial"),
        (lambda: F.nll_loss(flame.ones(7, 11, 3), flame.zeros(2).long()), ValueError, "match target batch_size"),
        (lambda: F.margin_ranking_loss(X, X[0], X), RuntimeError, "same dimension"),
        (lambda: F.conv_transpose1d(X, X, padding=97), RuntimeError, "too small"),
        (lambda: flame.index_reduce(X, 2, flame.tensor([0]), X, "prod"), RuntimeError, "Number of indices"),
        (lambda: flame.index_copy(X, 2, flame.tensor([0]), X), IndexError, "Number of indices"),
        (lambda: flame.put(X, flame.tensor([0]), flame.ones(2)), IndexError, "same number of elements"),
        (lambda: flame.tensordot(X, X, -1), RuntimeError, "dims"),
        (lambda: flame.special.airy_ai(flame.ones(2).half()), NotImplementedError, "airy_ai"),
        (lambda: flame.special.nothing, AttributeError, "no attribute 'nothing'"),
        (lambda: flame.linalg.ldl_factor(flame.zeros(3, 3)), flame.linalg.LinAlgError, "zero at place 1"),
        (lambda: flame.linalg.ldl_solve(flame.eye(3), flame.ones(2, dtype=flame.int32), flame.ones(3, 1)), RuntimeError, "pivots"),
        (lambda: flame.grid_sampler_2d(flame.ones(1, 1, 2, 2, 2), flame.ones(1, 1, 1, 3), 0, 0, True), RuntimeError, "4D"),
        (lambda: flame.grid_sampler(flame.ones(1, 1, 2, 2), flame.ones(1, 1, 1, 2), 3, 0, True), ValueError, "interpolation_mode"),
        (lambda: flame.hash_tensor(flame.ones(2), mode=1), RuntimeError, "mode"),
        (lambda: flame.hash_tensor(flame.ones(2, 0), 1), IndexError, "non-zero size"),
        (lambda: flame.ones(2).to_sparse_csr(), NotImplementedError, "to_sparse"),
        (lambda: flame.ones(2).dequantize(), NotImplementedError, "quantised"),
        (lambda: flame.ones(2).untyped_storage(), NotImplementedError, "data_ptr"),
        (lambda: flame.repeat_interleave(X, -1), RuntimeError, "non-negative"),
    ],
)  # fmt: skip
def test_wrong_calls_say_what_is_wrong(call: Any, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        call()


def test_guarded_functions_look_like_themselves_and_capture() -> None:
    for n in GUARDED["nn.functional"].split():
        assert inspect.signature(getattr(F, n)) and getattr(F, n).__name__ == n
    compiled = flame.compile(lambda x: F.layer_norm(flame.reshape(x, (2, 2)), (2,)), fullgraph=True)
    for _ in range(2):
        assert compiled(flame.arange(4.0)).shape == (2, 2)
    with pytest.raises(TypeError, match="must be Tensor"):
        flame.compile(lambda: F.layer_norm("x", (2,)))()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: F.dropout(X, 0.5, "x"), "dropout.*'training' must be bool, not str"),
        (lambda: F.avg_pool1d(X, 2, ceil_mode="x"), "'ceil_mode' must be bool"),
        (lambda: F.batch_norm(X, None, None, training="x"), "'training' must be bool"),
        (lambda: F.kl_div(X, X, log_target="x"), "'log_target' must be bool"),
        (lambda: flame.linalg.cholesky(flame.eye(2), upper="x"), "'upper' must be bool"),
        (lambda: flame.linalg.svd(flame.eye(2), full_matrices="x"), "'full_matrices' must be bool"),
        (lambda: flame.nonzero(X, as_tuple="x"), "'as_tuple' must be bool"),
        (lambda: flame.empty(2, requires_grad="x"), "'requires_grad' must be bool"),
        (lambda: flame.signal.windows.hann(4, requires_grad="x"), "'requires_grad' must be bool"),
        (lambda: flame.narrow(X, 2, 1.5, 1), "'start' must be int"),
        (lambda: flame.diff(X, 1.5), "'n' must be int, not float"),
        (lambda: flame.tril_indices(2.5, 3), "'row' must be int, not float"),
        (lambda: X.unfold(2, 2, 1.5), "'step' must be int, not float"),
        (lambda: F.pad(X, "x"), "'pad'"),
        (lambda: flame.isin("x", X), "'elements'"),
    ],
)  # fmt: skip
def test_a_flag_is_no_word_and_a_whole_number_no_fraction(call: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        call()
