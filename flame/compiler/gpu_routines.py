"""Which primitives have a routine on a GPU, beyond those that are kernels of the IR.

    routine = gpu_routine(primitive, operands' specs or numbers, params, target)       raises Refused with the reason

What is refused is what has no GPU form at all: factorisations, complex numbers. `reason_why_not(primitive)` has the words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flame.compiler import triton_grouped, triton_scan, triton_scatter, triton_sort
from flame.compiler.gpu_routine import Array, GpuRoutine, Making
from flame.compiler.graph import infer_specs
from flame.compiler.target import Target
from flame.errors import Refused
from flame.primitive import REGISTRY, Number, Primitive, Spec

Arrays = Sequence[Array | Number]
Specs = Sequence[Spec | Number]
Write = Callable[[Making, str, Arrays, Specs, Mapping[str, Any], Sequence[Array]], None]


def gpu_routine(
    primitive: Primitive,
    operands: Sequence[Spec | Number],
    params: Mapping[str, Any],
    target: Target,
    deterministic: bool = False,
) -> GpuRoutine:
    """The routine that runs a primitive on arrays of these specs. Raises Refused where it has none."""
    making = Making(target, deterministic, _call)
    arrays: list[Array | Number] = [Array("operand", i) if isinstance(x, Spec) else x for i, x in enumerate(operands)]
    results = infer_specs(primitive, list(operands), dict(params))
    _call(making, primitive, arrays, operands, params, [Array("result", i) for i in range(len(results))])
    return making.routine()


def has_routine(primitive: Primitive) -> bool:
    return primitive.name in _ROUTINES


def reason_why_not(primitive: Primitive) -> str:
    """Why a primitive runs on no GPU; empty where it does."""
    if primitive.scalar is not None or primitive.lower is not None or has_routine(primitive):
        return ""
    return primitive.refused.get("lower") or primitive.refused.get("scalar") or "it has no kernel form"


def _call(
    making: Making,
    primitive: Primitive,
    arrays: Sequence[Array | Number],
    specs: Sequence[Spec | Number],
    params: Mapping[str, Any],
    out: Sequence[Array],
) -> None:
    write = _ROUTINES.get(primitive.name)
    if write is None:
        raise Refused(f"{primitive.name} has no routine for a GPU: {reason_why_not(primitive)}")
    write(making, primitive.name, arrays, specs, params, out)


def _scan(making: Making, name: str, arrays: Arrays, specs: Specs, params: Mapping[str, Any], out: Sequence[Array]) -> None:
    ((x, spec),) = _pairs(arrays, specs)
    (result,) = infer_specs(REGISTRY[name], [spec], dict(params))
    triton_scan.scan(making, name, x, spec, params["dim"], out[0], result.dtype)


def _sort(making: Making, name: str, arrays: Arrays, specs: Specs, params: Mapping[str, Any], out: Sequence[Array]) -> None:
    ((x, spec),) = _pairs(arrays, specs)
    triton_sort.sort(making, x, spec, params["dim"], params["descending"], out[0], name == "sort")


def _search(making: Making, name: str, arrays: Arrays, specs: Specs, params: Mapping[str, Any], out: Sequence[Array]) -> None:
    rows, x = _pairs(arrays, specs)
    triton_sort.search(making, rows, x, params["right"], out[0])


def _scatter(making: Making, name: str, arrays: Arrays, specs: Specs, params: Mapping[str, Any], out: Sequence[Array]) -> None:
    x, index, src = _pairs(arrays, specs)
    how = {"scatter": "put", "scatter_add": "add"}.get(name) or params["reduce"]
    triton_scatter.scatter(making, name, x, index, src, params["dim"], how, out[0])


def _index_add(
    making: Making, name: str, arrays: Arrays, specs: Specs, params: Mapping[str, Any], out: Sequence[Array]
) -> None:
    x, index, src = _pairs(arrays, specs)
    triton_scatter.index_add(making, x, index, src, params["dim"], out[0])


def _index_put(
    making: Making, name: str, arrays: Arrays, specs: Specs, params: Mapping[str, Any], out: Sequence[Array]
) -> None:
    x, v, *indices = _pairs(arrays, specs)
    triton_scatter.index_put(making, x, v, indices, params["dims"], params["accumulate"], out[0])


def _strided(making: Making, name: str, arrays: Arrays, specs: Specs, params: Mapping[str, Any], out: Sequence[Array]) -> None:
    x, v = _pairs(arrays, specs)
    triton_scatter.strided(making, x, v, dict(params), out[0])


def _grouped(making: Making, name: str, arrays: Arrays, specs: Specs, params: Mapping[str, Any], out: Sequence[Array]) -> None:
    a, b, offs = _pairs(arrays, specs)
    triton_grouped.grouped(making, a, b, offs, params.get("turned", (False, False)), out[0])


def _pairs(arrays: Arrays, specs: Specs) -> list[tuple[Array, Spec]]:
    """The operands, which are arrays, with their specs."""
    out = []
    for a, s in zip(arrays, specs, strict=True):
        if not isinstance(a, Array) or not isinstance(s, Spec):
            raise Refused(f"the number {a} stands for an array: make it one")
        out.append((a, s))
    return out


_ROUTINES: dict[str, Write] = {
    **dict.fromkeys(("cumsum", "cumprod", "logcumsumexp", "cummax_index", "cummin_index"), _scan),
    **dict.fromkeys(("sort", "argsort"), _sort),
    "searchsorted": _search,
    **dict.fromkeys(("scatter", "scatter_add", "scatter_reduce"), _scatter),
    "grouped_mm": _grouped,
    "index_add": _index_add,
    "index_put": _index_put,
    "as_strided_scatter": _strided,
}
