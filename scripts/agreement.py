"""Write docs/agreement.md: PyTorch's own table of operators, gone through here and there. Needs PyTorch (the extra `oracle`).

`op_db`, which PyTorch installs with its testing tools, has sample calls of every operator. For each operator, in this order:

    values        its samples, in each of several dtypes: values, dtypes, shapes, and whether memory is shared
    errors        the calls that its own tests expect to raise: the type of the exception
    wrong calls   its first sample with one argument made wrong (shape, dtype, dim, type): the type of the exception, where PyTorch
                  raises
    gradients     gradcheck and gradgradcheck of its samples in float64 and complex128, in one random direction

`python scripts/agreement.py [values|errors|wrong|gradients ...]` does these or all, `--list FILE` writes every difference down.
It takes some twenty minutes, and is no part of CI: tests/test_sweep.py there goes through values and errors of two dtypes, and
tests/test_gradchecks.py through the gradients of every primitive.
"""

from __future__ import annotations

import argparse
import itertools
import json
import signal
import sys
import types
import unittest
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import flame

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from test_sweep import Untold, brought, difference, ours, tensors  # type: ignore[import-not-found]  # noqa: E402

PAGE, FIGURES = ROOT / "docs" / "agreement.md", ROOT / "docs" / "agreement.json"
PARTS = ("values", "errors", "wrong", "gradients")
DTYPES = ("float32", "float64", "int64", "bool", "complex64")
SAMPLES = 2  #: of each operator and dtype
SECONDS = 30  #: for one call
#: whose wrong calls end PyTorch's process
FATAL = {"lu_unpack"}
#: draws of random numbers, which are other ones, and memory of any content: shapes and dtypes are compared
DRAWS = set(
    """bernoulli cauchy empty empty_like empty_permuted empty_strided exponential feature_alpha_dropout fractional_max_pool3d
    geometric log_normal multi_head_attention_forward multinomial new_empty new_empty_strided normal pca_lowrank rand_like randint
    randint_like randn randn_like rrelu svd_lowrank uniform""".split()
)
#: parts of names of what is no operator for users: PyTorch's inner ones, and those of other devices
INNER = ("_", "torch.", "native_", "jiterator", "unsafe_", "alias_copy", "max_pool2d_with_indices", "masked.", "segment_reduce")


class TooLong(Exception):
    """A call took more than SECONDS."""


def timed(f: Callable[[], Any]) -> Any:
    def ring(*_: Any) -> None:
        raise TooLong

    signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        return f()
    finally:
        signal.alarm(0)


def outcome(f: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return timed(f), None
    except Exception as e:
        return None, e


class Tally:
    """How many calls agreed, by part and kind, and what differed."""

    def __init__(self) -> None:
        self.right: Counter[tuple[str, str]] = Counter()
        self.calls: Counter[tuple[str, str]] = Counter()
        self.told: list[str] = []
        self.differ: Counter[tuple[str, str, str]] = Counter()

    def count(self, part: str, kind: str, name: str, told: str) -> None:
        self.calls[part, kind] += 1
        self.right[part, kind] += not told
        if told:
            self.differ[part, kind, name] += 1
            self.told.append(f"{part} {kind} {name}: {told}"[:240].replace("\n", " "))


def calls_of(torch: Any, samples: Iterator, memo: Callable[[], dict]) -> Iterator[tuple[Any, dict, tuple]]:
    for s in samples:
        known = memo()
        try:
            yield s, known, tuple(brought(v, torch, known) for v in (s.input, s.args, s.kwargs))
        except Untold:
            continue


def values(torch: Any, op: Any, f: Any, tally: Tally) -> None:
    for name in DTYPES:
        d = getattr(torch, name)
        if d not in op.supported_dtypes("cpu"):
            continue
        for s, memo, (x, args, kwargs) in calls_of(torch, itertools.islice(op.sample_inputs("cpu", d), SAMPLES), dict):
            want, failed = outcome(partial(op.op, s.input, *s.args, **s.kwargs))
            if failed is not None:
                continue
            got, failed = outcome(partial(f, x, *args, **kwargs))
            told = f"{type(failed).__name__}: {failed}" if failed else difference(got, want, memo, torch)
            told = "" if told == "values" and op.name.removeprefix("nn.functional.") in DRAWS else told
            tally.count("values", name, op.name, told)


def raised(torch: Any, op: Any, f: Any, call: tuple, kind: str, part: str, tally: Tally) -> None:
    """Counts a call that PyTorch refuses: right where flame raises an exception of that type."""
    memo: dict = {}
    try:
        x, args, kwargs = (brought(v, torch, memo) for v in call)
    except Untold:
        return
    _, want = outcome(partial(op.op, call[0], *call[1], **call[2]))
    if want is None:
        return
    _, got = outcome(partial(f, x, *args, **kwargs))
    # (an AttributeError is what PyTorch's own Python code falls over; here the argument is named)
    fits = isinstance(got, type(want)) or isinstance(want, AttributeError) and isinstance(got, TypeError)
    tally.count(part, kind, op.name, "" if fits else f"{type(got).__name__} for {type(want).__name__}: {got} | {want}")


def errors(torch: Any, op: Any, f: Any, tally: Tally) -> None:
    for e in op.error_inputs("cpu") if op.error_inputs_func is not None else ():
        s = e.sample_input
        raised(torch, op, f, (s.input, s.args, s.kwargs), "of its tests", "errors", tally)


def spoiled(torch: Any, s: Any) -> Iterator[tuple[str, tuple]]:
    """(kind, call) for each way to make one argument wrong."""
    line, named = [s.input, *s.args], dict(s.kwargs)

    def other(place: int | str, v: Any) -> tuple:
        if isinstance(place, str):
            return line[0], tuple(line[1:]), {**named, place: v}
        now = [*line[:place], v, *line[place + 1 :]]
        return now[0], tuple(now[1:]), named

    for place in [*range(len(line)), *named]:
        v = named[place] if isinstance(place, str) else line[place]
        wrong: list[tuple[str, Any]] = []
        match v:
            case torch.Tensor():
                v = v.detach()
                wrong = [("shape", torch.ones(shape).to(v.dtype)) for shape in ((7, 11, 3), (0,))]
                number = torch.int64 if v.dtype.is_floating_point else torch.float32
                wrong += [("dtype", v.to(d)) for d in (torch.bool, number, torch.complex64)]
                wrong += [("type", "x")] + ([("type", None)] if v.ndim else [])
            case bool() | float():
                wrong = [("type", "x")]
            case int():
                wrong = [("dim", 97), ("dim", -97), ("type", "x"), ("type", 1.5)]
            case tuple() | list() if v and all(isinstance(n, int) for n in v):
                wrong = [("dim", type(v)([97] * len(v))), ("type", "x")]
            case str():
                wrong = [("type", "no such"), ("type", 3)]
        for kind, w in wrong:
            yield kind, other(place, w)


def wrong(torch: Any, op: Any, f: Any, tally: Tally) -> None:
    if op.name in FATAL:
        return
    d = torch.float32 if torch.float32 in op.supported_dtypes("cpu") else next(iter(op.supported_dtypes("cpu")))
    for s in itertools.islice(op.sample_inputs("cpu", d), 1):
        for kind, call in spoiled(torch, s):
            raised(torch, op, f, call, f"wrong {kind}", "wrong", tally)


def gradients(torch: Any, op: Any, f: Any, tally: Tally) -> None:
    for name in ("float64", "complex128"):
        d = getattr(torch, name)
        if not op.supports_autograd or d not in op.supported_backward_dtypes("cpu"):
            continue
        samples = itertools.islice(op.sample_inputs("cpu", d, requires_grad=True), SAMPLES)
        for _, memo, (x, args, kwargs) in calls_of(torch, samples, dict):
            leaves = [mine.requires_grad_() for t, mine in memo.values() if t.requires_grad and 0 < mine.numel() < 300]
            if not leaves:
                continue

            def g(*xs: Any, x: Any = x, args: Any = args, kwargs: Any = kwargs, leaves: Any = leaves) -> list:
                now = dict(zip(map(id, leaves), xs, strict=True))

                def put(v: Any) -> Any:
                    match v:
                        case flame.Tensor():
                            return now.get(id(v), v)
                        case list() | tuple():
                            return type(v)(map(put, v))
                        case dict():
                            return {k: put(u) for k, u in v.items()}
                    return v

                flame.manual_seed(0)
                wrap = op.gradcheck_wrapper  # (symmetric operands and the like)
                y = wrap(f, put(x), *put(args), **put(kwargs))
                return [t for t in tensors(y, flame.Tensor) if t.requires_grad]

            for order, check in (("first", flame.autograd.gradcheck), ("second", flame.autograd.gradgradcheck)):
                if order == "second" and not op.supports_gradgrad:
                    continue
                how: dict[str, Any] = {"fast_mode": True, "atol": 1e-4 if order == "first" else 1e-3, "nondet_tol": 1e-12}
                _, failed = outcome(partial(check, g, leaves, **how))
                told = f"{type(failed).__name__}: {failed}" if failed else ""
                tally.count("gradients", f"{order} derivatives, {name}", op.name, told)


HEAD = """# Agreement with PyTorch

PyTorch's own table of operators, gone through here and there: made by `python scripts/agreement.py` with PyTorch {version}.
{there} of its {all} entries that are meant for users are there. What is counted: sample calls in several dtypes (values, dtype,
shape, and whether memory is shared); calls that PyTorch's tests expect to raise; samples with one argument made wrong, where
PyTorch raises (right: an exception of that type); and `gradcheck` and `gradgradcheck` of samples, in one random direction.

"""
#: what differs on purpose or is refused: (part, or its kind, or everywhere; a part of names) -> why
REASONS = {
    ("values", "sort kthvalue topk"): "places of equal elements, which may be any of them",
    ("values", "to_sparse"): "a class of its own, which holds no dense tensor",
    ("bool", "sum_to_size"): "booleans where nothing is summed, not integers",
    ("values", "eig"): "vectors are free up to a factor",
    (
        "values",
        "pixel_ sum_to_size histogram to",
    ): "what is given is what comes out: not copied, or not as often",
    ("values", "as_strided"): "of a view: strides are counted in memory of its own",
    ("values", "chalf"): "no complex numbers of half precision",
    ("values", "avg_pool local_response_norm"): "means of integers are fractions here",
    ("values", "logaddexp logcumsumexp sigmoid silu normal uniform"): "complex numbers are refused",
    ("wrong", "lu_factor"): "a singular matrix is told of by what solves with it",
    ("wrong", "sparse.mm"): "there is no third argument, a reduction",
    ("wrong shape", "index_put"): "the values' shape is told of before the index",
    ("wrong dtype", "round"): "integers with `decimals=0`, which PyTorch takes without it",
    ("wrong type", "max_unpool interpolate loss"): "a TypeError names the argument before another mistake is told",
    ("wrong type", "trapz trapezoid roll stft histogram to ctc_loss adaptive_max_pool"): "what Python takes as it finds it",
    ("errors", "take cat"): "memory that operands share, which the copies that are compared have not",
}


def reasons(figures: dict) -> str:
    """What differs, one by one: operators by part, each with the reason that the table above has for it."""
    lines = []
    named: dict[tuple[str, str], dict[str, list[str]]] = {}
    for part, kind, name, n in figures["differ"]:
        why = next(
            (
                w
                for (where, names), w in REASONS.items()
                if where in (part, kind) and any(k in name for k in names.split() or [""])
            ),
            "another type of exception, or of a value" if part != "values" else "",
        )
        named.setdefault((part, kind), {}).setdefault(why, []).append(f"`{name}`" + (f" ({n})" if n > 1 else ""))
    for (part, kind), by_reason in named.items():
        told = "; ".join(f"{', '.join(sorted(names))}" + (f": {why}" if why else "") for why, names in by_reason.items())
        lines.append(f"- {part}, {kind}: {told}.")
    return "\n".join(lines) + "\n"


FOOT = """
Of draws of random numbers and memory of any content, values count shape and dtype. Gradients (whose calls are not named here)
differ through vectors of eigenvalues, free up to a factor, through casts to narrower floats, in which steps of 1e-6 cannot be
seen, and in `max_unpool` at places that repeat. Where else the two differ, operators by name, with how many calls where more than
one:

"""


def page(figures: dict) -> str:
    rows = [f"| {part} | {kind} | {n} | {right} |" for part, kind, n, right in figures["rows"]]
    table = "| what | of which kind | calls | agree |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"
    absent = ", ".join(f"`{n}`" for n in figures["absent"])
    return HEAD.format(**figures) + table + FOOT + reasons(figures) + f"\nNot there: {absent}.\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="values, errors, wrong, gradients")
    parser.add_argument("--list", type=Path, help="a file for what differs")
    parser.add_argument("--only", default="", help="operators whose name has this in it; writes no page")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    np.seterr(all="ignore")
    if "expecttest" not in sys.modules:  # of which the table needs a class that nothing here calls
        stub = types.ModuleType("expecttest")
        stub.TestCase = unittest.TestCase  # type: ignore[attr-defined]
        sys.modules["expecttest"] = stub
    import torch  # type: ignore[import-not-found,unused-ignore]
    from torch.testing._internal.common_methods_invocations import (  # type: ignore[import-not-found,unused-ignore]
        op_db,
    )

    table = [op for op in op_db if not op.name.startswith(INNER)]
    found = [(op, f) for op in table if (f := ours(op)) is not None]
    absent = sorted({op.name for op in table} - {op.name for op, _ in found})
    tally, doing = Tally(), {"values": values, "errors": errors, "wrong": wrong, "gradients": gradients}
    for op, f in found:
        for part in given.parts or PARTS if given.only in op.name else ():
            try:
                doing[part](torch, op, f, tally)
            except Exception as e:  # of the table's own making
                tally.told.append(f"{part} {op.name}: not gone through: {type(e).__name__}: {e}")
    rows = [[part, kind, n, tally.right[part, kind]] for (part, kind), n in tally.calls.items()]
    if given.list:
        given.list.write_text("\n".join(tally.told))
    for row in rows:
        print(*row)
    if given.only:
        return
    old = json.loads(FIGURES.read_text()) if FIGURES.exists() else {"rows": [], "differ": []}
    done = {r[0] for r in rows}
    rows = sorted([*rows, *(r for r in old["rows"] if r[0] not in done)], key=lambda r: PARTS.index(r[0]))
    differ = [[*key, n] for key, n in tally.differ.items()] + [r for r in old.get("differ", []) if r[0] not in done]
    differ = [r for r in sorted(differ, key=lambda r: (PARTS.index(r[0]), *r[1:])) if r[0] != "gradients"]
    figures = {"version": torch.__version__, "all": len(table), "there": len(found), "rows": rows}
    figures |= {"differ": differ, "absent": absent}
    FIGURES.write_text(json.dumps(figures, indent=1) + "\n")
    PAGE.write_text(page(figures))


if __name__ == "__main__":
    main()
