"""How a program runs on this machine, as data that another process can take up: what `Executable` is made from.

    recipe ::= name inputs owned results updated arena_bytes use* largest
    use    ::= native (a phase of a stored kernel, the places of its buffers, its chunks)
             | call (a primitive by name, its arguments' and results' places)
             | guard (an array of one bool: where it is true, the rest is not run)
    place  ::= a spec, and where the array is: number k >= 0 among the call's arrays (inputs, then owned outputs),
               or below 0 in the arena, at -1 - k bytes

Kernels are named by their keys in the disk cache (`flame.runtime.cpu`); recipes have a JSON form, in which nothing but numbers,
strings, dtypes and tuples can stand. Steps that run by the kernels' definition in NumPy have none: such a program is not kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from flame.compiler.program import Decision
from flame.dtypes import BY_NAME, dtype
from flame.primitive import REGISTRY, Number, Primitive, Spec


class Unencodable(ValueError):
    """A part of a recipe that has no JSON form; or JSON that is no recipe."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an array of a call is."""

    at: int
    spec: Spec


@dataclass(frozen=True, slots=True)
class View:
    """An array seen through primitives that NumPy answers without a copy."""

    place: Place
    views: tuple[tuple[Primitive, dict[str, Any]], ...] = ()


@dataclass(frozen=True, slots=True)
class NativeUse:
    """One phase of a kernel. `chunks`, `parallel` and `microseconds` are `entry.NativeStep`'s."""

    kernel: str
    phase: int
    places: tuple[int, ...]
    chunks: int
    parallel: bool
    symbols: tuple[int, ...]
    microseconds: float


@dataclass(frozen=True, slots=True)
class CallUse:
    """A primitive's eager function. `told` is the step in words, `source` the user's line: what an error shows."""

    primitive: Primitive
    params: dict[str, Any]
    arguments: tuple[View | Number, ...]
    results: tuple[Place | None, ...]
    specs: tuple[Spec, ...]
    told: str
    source: str


@dataclass(frozen=True, slots=True)
class InterpretedUse:
    """A kernel by its definition; `run` is given the arrays by buffer."""

    run: Callable[[dict[str, Any]], Any]
    places: dict[str, Place]


@dataclass(frozen=True, slots=True)
class GuardUse:
    """The array number `at` of the call is looked at: where it is true, the program stops."""

    at: int


Use = NativeUse | CallUse | InterpretedUse | GuardUse


@dataclass(frozen=True, slots=True)
class Recipe:
    """`results` gives, for each result, its array's number and whether that is an input that stays the caller's; `updated`
    are the numbers of the inputs that results are written over. `runs` says by what each step of the program is run: "native",
    "library", "call" or "interpreted". `largest` are the arrays that weigh most, as (bytes, words): what an error shows."""

    name: str
    inputs: tuple[Spec, ...]
    owned: tuple[Spec, ...]
    results: tuple[tuple[int, bool], ...]
    updated: tuple[int, ...]
    arena_bytes: int
    uses: tuple[Use, ...]
    runs: tuple[str, ...] = ()
    decisions: tuple[Decision, ...] = ()
    largest: tuple[tuple[int, str], ...] = ()

    @property
    def kernels(self) -> tuple[str, ...]:
        """The stored kernels, each once."""
        return tuple(dict.fromkeys(u.kernel for u in self.uses if isinstance(u, NativeUse)))


# ---- JSON


def encoded(recipe: Recipe) -> str:
    """Raises Unencodable where the recipe has no JSON form."""
    kernels = {k: i for i, k in enumerate(recipe.kernels)}
    uses: list[Any] = []
    for u in recipe.uses:
        match u:
            case NativeUse():
                uses.append([kernels[u.kernel], u.phase, u.places, u.chunks, u.parallel, u.symbols, u.microseconds])
            case CallUse():
                arguments = [
                    {"at": _place(a.place), "views": [[_name(p), _params(q)] for p, q in a.views]}
                    if isinstance(a, View)
                    else _static(a)
                    for a in u.arguments
                ]
                results = [None if r is None else _place(r) for r in u.results]
                specs = [_spec(s) for s in u.specs]
                uses.append(
                    {
                        "call": _name(u.primitive),
                        "params": _params(u.params),
                        "arguments": arguments,
                        "results": results,
                        "specs": specs,
                        "told": u.told,
                        "source": u.source,
                    }
                )
            case GuardUse():
                uses.append(u.at)
            case InterpretedUse():
                raise Unencodable("a step that is interpreted")
    facts = {
        "name": recipe.name,
        "inputs": [_spec(s) for s in recipe.inputs],
        "owned": [_spec(s) for s in recipe.owned],
        "results": recipe.results,
        "updated": recipe.updated,
        "arena": recipe.arena_bytes,
        "kernels": list(kernels),
        "uses": uses,
        "runs": recipe.runs,
        "decisions": [[d.verdict, d.what, d.reason] for d in recipe.decisions],
        "largest": recipe.largest,
    }
    return json.dumps(facts, separators=(",", ":"))


def decoded(text: str | bytes) -> Recipe:
    """The reverse. Raises Unencodable for anything that `encoded` does not write, or that reaches outside its arrays."""
    try:
        facts = json.loads(text)
        kernels = [str(k) for k in facts["kernels"]]
        inputs = tuple(map(_as_spec, facts["inputs"]))
        owned = tuple(map(_as_spec, facts["owned"]))
        count, arena = len(inputs) + len(owned), int(facts["arena"])

        def inside(at: int) -> int:
            if type(at) is not int or at >= count or -1 - at > arena:
                raise Unencodable(f"the place {at} is outside of {count} arrays and {arena} bytes")
            return at

        def array(at: int) -> int:
            if inside(at) < 0:
                raise Unencodable(f"the place {at} is no array of the call")
            return at

        def place(found: Sequence[Any]) -> Place:
            return Place(inside(found[0]), _as_spec(found[1]))

        def argument(a: Any) -> View | Number:
            if isinstance(a, dict) and "at" in a:
                return View(place(a["at"]), tuple((REGISTRY[p], _as_params(q)) for p, q in a["views"]))
            return _as_static(a)

        uses: list[Use] = []
        for u in facts["uses"]:
            if isinstance(u, int):
                uses.append(GuardUse(array(u)))
            elif isinstance(u, list):
                k, phase, places, chunks, parallel, symbols, microseconds = u
                bound = tuple(inside(at) for at in places)
                uses.append(
                    NativeUse(
                        kernels[k],
                        int(phase),
                        bound,
                        int(chunks),
                        bool(parallel),
                        tuple(map(int, symbols)),
                        float(microseconds),
                    )
                )
            else:
                uses.append(
                    CallUse(
                        REGISTRY[u["call"]],
                        _as_params(u["params"]),
                        tuple(map(argument, u["arguments"])),
                        tuple(None if r is None else place(r) for r in u["results"]),
                        tuple(map(_as_spec, u["specs"])),
                        str(u["told"]),
                        str(u["source"]),
                    )
                )
        results = tuple((array(k), bool(given)) for k, given in facts["results"])
        updated = tuple(map(array, facts["updated"]))
        decisions = tuple(Decision(*map(str, d)) for d in facts["decisions"])
        runs = tuple(map(str, facts["runs"]))
        largest = tuple((int(n), str(told)) for n, told in facts["largest"])
        return Recipe(str(facts["name"]), inputs, owned, results, updated, arena, tuple(uses), runs, decisions, largest)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise Unencodable(f"no recipe: {type(error).__name__}: {error}") from None


def _place(p: Place) -> list[Any]:
    return [p.at, _spec(p.spec)]


def _spec(s: Spec) -> list[Any]:
    if not all(type(n) is int for n in s.shape):
        raise Unencodable(f"the shape of {s}")
    return [s.dtype.name, *s.shape]


def _as_spec(found: Sequence[Any]) -> Spec:
    name, *shape = found
    if not all(type(n) is int and n >= 0 for n in shape):
        raise Unencodable(f"the shape {shape}")
    return Spec(tuple(shape), BY_NAME[name])


def _name(p: Primitive) -> str:
    if REGISTRY.get(p.name) is not p:
        raise Unencodable(f"the primitive {p.name}, which is not in the registry")
    return p.name


def _params(params: dict[str, Any]) -> dict[str, Any]:
    return {k: _static(v) for k, v in params.items()}


def _as_params(found: dict[str, Any]) -> dict[str, Any]:
    return {k: _as_static(v) for k, v in found.items()}


def _static(x: Any) -> Any:
    """A parameter: numbers, strings and None are themselves, a tuple is a list, a dtype an object."""
    kind = type(x)
    if kind is int or kind is float or kind is bool or kind is str or x is None:
        return x
    if isinstance(x, tuple):
        return [_static(y) for y in x]
    if kind is dtype:
        return {"dtype": x.name}
    raise Unencodable(f"{x!r} ({kind.__name__})")


def _as_static(found: Any) -> Any:
    if isinstance(found, list):
        return tuple(map(_as_static, found))
    return BY_NAME[found["dtype"]] if isinstance(found, dict) else found
