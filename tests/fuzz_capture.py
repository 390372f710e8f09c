"""Random programs, eager against compiled: values, side effects, gradients, errors, over several calls.

A program is a list of (operation, three random numbers) that an interpreter below runs on a list of tensors, some from outside
(`tests.fuzz_world`), some views of others. The operations here are those of tensors; `tests.fuzz_features` has those of the Python
around them, `tests.fuzz_gradients` of the gradients, `tests.fuzz_models` of whole models, `tests.fuzz_switches` of how things are
compiled. Together they cover

    memory      views of views, aliases, overlapping windows, writes through all of them, `out=`, NumPy's share, `.data`, deepcopy
    Python      globals, attributes, closures, lists and dicts that grow, generators (also suspended ones), recursion, contexts,
                exceptions raised and caught after effects, weak references, `del`
    numbers     that vary from call to call, in value and kind; made from shapes (arithmetic, slices, arange, loops, branches) and
                from values; first dimensions that vary, 0 and 1 among them
    gradients   backward and grad inside, outside and across segments; several losses, unused and undefined gradients, inputs,
                accumulation, retain_graph, create_graph up to third order, penalties; hooks on leaves, results and inner tensors;
                custom Functions, in backward passes inside too; autocast; vmap; checkpoints; writes between forward and backward;
                grad modes in each other
    the rest    modules with buffers and hooks, freezing, state_dict, optimizers with schedules, clipping, random streams,
                dtypes, small networks of all kinds: training steps and predictions in turn, their state pickled; functional
                calls, jvp, vjp, jacobians; threads; replayed functions; modules compiled as a whole and in place, limits,
                dynamic sizes on and off, stances, the background, generation with caches, compiled functions in each other,
                calls under no_grad and inference_mode, what happens to results between calls

Run as

    python -m tests.fuzz_capture FIRST LAST [--backend eager|interpret|llvm] [--seconds N]     seeds FIRST to LAST - 1

A program that differs is minimised, and shown as it can be given to `check`: findings go to the corpus in `tests/test_fuzz.py`. The
default backend runs the captured graph by its primitives, which tests capture alone and takes some 75 ms a program.

Not compared: how far a backward pass came that raised, which of two refusals is named, when memory that nobody holds is let go.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

import flame
import tests.fuzz_features as fuzz_features
from flame.nn.functional.activation import softmax
from flame.nn.functional.normalisation import layer_norm
from tests import fuzz_gradients, fuzz_models, fuzz_switches, fuzz_world  # noqa: F401  (enter their operations)
from tests.fuzz_features import INSIDE, OUTSIDE, Scene
from tests.fuzz_world import NUMBERS, SIZES, Halved, World, aside, tensor

Program = list[tuple[str, float, float, float]]

OPERATIONS = """add mul tanh exp relu view slice row column transpose detach add_ mul_ copy_ setrow setslice no_grad_add_ no_grad_op
param_no_grad matmul scalar item truth backward grad double dropout rand escape delete layer_norm flag branch sgd zero_grad
chain_view_write detached_write sum_into mean where cat stack_unbind index_tensor mask_write numpy_peek numpy_write shape_scale
alias_write clone clamp max_ error hook_free_exp iadd_row broadcast_write param_grad_read list_state dict_state late_leaf
retain_backward write_twice view_of_view cast softmax expand loop kwargs hook flags power data_write no_grad_view custom stop
history_write leaf_view given_cotangent set_grad grad_alias out late_backward half boolean gather disabled seed detach_ inner_leaf
keep_loss""".split()  # fmt: skip


#: what a call is given, and under what it is made: at the front of some programs
FORMS = ("batches", "numbers", "called_under", "compiled_with", "called_in_stance")

EVERYTHING = [*OPERATIONS, *INSIDE, *OUTSIDE]


def generate(rnd: random.Random) -> Program:
    """Half of the programs draw from all operations, the others from a few, so that these meet each other often."""
    names = EVERYTHING if rnd.random() < 0.5 else rnd.sample(EVERYTHING, 9)
    front = [(name, rnd.random(), rnd.random(), rnd.random()) for name in FORMS if rnd.random() < 0.35]
    return front + [(rnd.choice(names), rnd.random(), rnd.random(), rnd.random()) for _ in range(rnd.randint(3, 14))]


def body(world: World, program: Program, x: Any, k: Any, flag: bool) -> Any:
    """Run a program once. What it may use of `world.weights` is looked up anew at every operation: programs replace them."""
    have: list = [x, world.weights[0] * 1.0, world.buffer]
    log: list = []

    def matrix(u: float) -> Any:
        c = [t for t in have if t.ndim == 2 and t.shape[1] == 3 and t.dtype is flame.float32]
        return c[int(u * len(c))]

    def vector(u: float) -> Any:
        c = [t for t in have if t.ndim == 1 and t.shape[0] == 3 and t.dtype is flame.float32]
        return c[int(u * len(c))]

    scene = Scene(world, x, k, flag, have, log, matrix, vector)
    for op, a, b, c in program:
        t = matrix(a)
        w0, w1, w2 = world.weights
        match op:
            case "add":
                have.append(t + vector(b))
            case "mul":
                have.append(t * w0)
            case "tanh":
                have.append(t.tanh())
            case "exp":
                have.append((t * 0.1).exp())
            case "relu":
                have.append(t.relu())
            case "view":
                have.append(t.view(-1, 3))
            case "slice":
                have.append(t[0 : t.shape[0]] if c < 0.3 else t[1:])
            case "row" if t.shape[0]:
                have.append(t[0])
            case "column":
                have.append(t[:, 1:2].expand(-1, 3))
            case "transpose":
                have.append((w1 @ t.t()).t())
            case "detach":
                have.append(t.detach())
            case "add_":
                t.add_(w0 if c < 0.3 else k)
            case "mul_":
                t.mul_(1.25)
            case "copy_":
                t.copy_(vector(b) if c < 0.6 else matrix(b)[:1])
            case "setrow" if t.shape[0]:
                t[0] = k if c < 0.5 else w2
            case "setslice":
                t[:, 1] = 0.5 if c < 0.5 else t[:, 0].detach()
            case "no_grad_add_":
                with flame.no_grad():
                    t.add_(0.5)
            case "no_grad_op":
                with flame.no_grad():
                    have.append(t * w0)
            case "param_no_grad":
                with flame.no_grad():
                    w0.mul_(0.9)
            case "matmul":
                have.append(t @ w1)
            case "scalar":
                have.append(t * k - 1)
            case "item":
                log.append(t.sum().item())
            case "truth":
                log.append(bool(t.sum() > 0))
                have.append(t * 2 if log[-1] else t - 1)
            case "backward" | "retain_backward":
                loss = (t * w0).sum()
                loss.backward(retain_graph=op == "retain_backward")
                if c < 0.3:
                    loss.backward()
            case "grad":
                g = flame.autograd.grad((t * w0).tanh().sum(), [w0, w1], allow_unused=True)
                have.append(t * g[0])
            case "double":
                (g,) = flame.autograd.grad(((t.detach() * w0) ** 3).sum(), w0, create_graph=True)
                if c < 0.5:
                    (g * g).sum().backward()
                else:
                    have.append(t + g)
            case "dropout":
                keep = flame.rand(*t.shape) > 0.5
                have.append(flame.where(keep, t * 2.0, 0.0))
            case "rand":
                have.append(t + flame.randn(3))
            case "escape":
                world.escaped.append(t)
            case "delete" if len(have) > 4:
                del have[3]
            case "layer_norm":
                have.append(layer_norm(t, (3,), w0, w2))
            case "softmax":
                have.append(softmax(t, -1))
            case "flag":
                have.append(t * 3 if flag else t + 3)
            case "branch" if flag:
                have.append(t * t)
            case "sgd":
                with flame.no_grad():
                    for p, m in zip(world.weights, world.momenta, strict=True):
                        if p.grad is not None:
                            m.mul_(0.9).add_(p.grad)
                            p.sub_(m, alpha=world.rate)
                world.rate *= 0.9
            case "zero_grad":
                for p in world.weights:
                    if c < 0.5:
                        p.grad = None
                    elif p.grad is not None:
                        p.grad.zero_()
            case "chain_view_write" if t.shape[0] > 1:
                t[1:][0].mul_(2.0)
            case "view_of_view" if t.shape[0] > 1:
                v = t.view(-1)[3:]
                have.append(v[:3] * 1.0)
                t.add_(1.0)
                have.append(v[:3] + 1.0)
            case "detached_write":
                t.detach().mul_(0.5)
            case "sum_into":
                world.buffer.add_(t.detach().sum() * 0.01)
            case "mean":
                have.append(t - t.mean(0))
            case "where":
                have.append(flame.where(t > 0, t, k))
            case "cat":
                have.append(flame.cat([t[:1], matrix(b)], 0))
            case "stack_unbind" if t.shape[0]:
                p, q = flame.stack([t[0], w2]).unbind(0)
                have.append(p + q)
            case "index_tensor" if t.shape[0]:
                have.append(t[flame.tensor([0, 0])])
            case "mask_write":
                t[t > 0.5] = 0.25
            case "numpy_peek":
                log.append(float(t.detach().numpy().sum()))
            case "numpy_write":
                world.array[0] += 1.0
                have.append(world.shared * 2.0)
                if c < 0.5:
                    world.shared.mul_(0.5)
            case "shape_scale":
                have.append(t * t.shape[0])
            case "alias_write":
                y = t.detach()
                y[:, 0] = 1.5
                have.append(t + y)
            case "clone":
                y = t.clone()
                y.add_(1.0)
                have.append(y)
            case "clamp":
                have.append(t.clamp(-0.5, k))
            case "max_":
                have.append(t.max(0).values)
            case "error":
                try:
                    t @ flame.ones(5, 2)
                except RuntimeError as e:
                    log.append(type(e).__name__)
            case "hook_free_exp":
                have.append(t.exp_() if not t.requires_grad else t.exp())
            case "iadd_row" if t.shape[0]:
                t[0] += 1.0
            case "broadcast_write":
                t.copy_(flame.ones(3) * k)
            case "param_grad_read":
                if w0.grad is not None:
                    have.append(t + w0.grad)
            case "list_state":
                world.listed.append(t.sum().detach())
                if len(world.listed) > 2:
                    have.append(t + world.listed.pop(0))
            case "dict_state":
                before = world.named.get("x")
                world.named["x"] = t.detach().sum(0)
                if before is not None:
                    have.append(t - before)
            case "late_leaf":
                y = flame.zeros(3, requires_grad=True)
                (y * t.detach().sum(0)).sum().backward()
                have.append(t + y.grad)
            case "write_twice":
                t.add_(1.0)
                have.append(t * 1.0)
                t.mul_(0.5)
            case "cast":
                have.append(t.double().sum(0).float())
            case "expand":
                have.append(vector(b).expand(2, 3))
            case "loop":
                for i in range(1 + int(c * 3)):
                    t = t * 0.9 + i
                have.append(t)
            case "hook":
                y = t * 1.0
                if y.requires_grad:
                    y.register_hook(lambda g: g * 2.0)
                have.append(y)
            case "flags":
                log.append([(v.requires_grad, v.is_leaf, tuple(v.shape), v.is_contiguous()) for v in have])
            case "power":
                have.append((t.abs() + 0.5) ** k * 0.5)
            case "data_write":
                w2.data.mul_(0.9)
            case "no_grad_view":
                with flame.no_grad():
                    y = t[0 : t.shape[0]]
                    if c < 0.3:
                        y.add_(1.0)
                have.append(y)
            case "custom":
                have.append(Halved.apply(t))
            case "stop" if not flag and c < 0.5:
                raise ValueError("stop")
            case "history_write" if t.shape[0]:
                t.view(-1)[0:3].mul_(w2 if c < 0.5 else vector(b).tanh())
            case "leaf_view":
                have.append(w1.t() if c < 0.5 else w1[:2])
            case "given_cotangent":
                (t * w0).backward(flame.ones_like(t) * k)
            case "set_grad":
                w2.grad = t.detach().sum(0)
            case "grad_alias":
                w0.grad = world.scratch[0]
            case "out" if t.shape[0] == 4:
                flame.add(t.detach(), k, out=world.scratch)
                have.append(world.scratch * w0)
            case "late_backward" if world.losses:
                world.losses.pop(0).backward(retain_graph=c < 0.3)
            case "keep_loss":
                world.losses.append((t.detach() * w0).tanh().sum() + w2.sum())
            case "half":
                have.append((t.half() * 2).float())
            case "boolean":
                have.append(flame.where((t > 0) + (t < -0.5) * (t < k), t, -t))
            case "gather" if t.shape[0]:
                have.append(t.gather(1, t.argmax(1, keepdim=True)).expand(-1, 3))
            case "disabled":
                have.append(aside(t))
            case "seed":
                flame.manual_seed(int(c * 9))
            case "detach_":
                y = t * 1.0
                y.detach_()
                have.append(y)
            case "inner_leaf":
                y = t.detach().clone().requires_grad_()
                (y * w0).sum().backward()
                have.append(t + y.grad)
            case "kwargs":
                have.append(flame.add(t, vector(b), alpha=k))
            case _ if op in INSIDE:
                made = INSIDE[op](scene, t, b, c)
                if made is not None:
                    have.append(made)
    total: Any = 0.0
    for t in have:
        total = t.sum() + total
    return total, have[-1], have[3:5], log


def observe(x: Any) -> Any:
    """Everything that can be seen of a result, as plain data."""
    if isinstance(x, flame.Tensor):
        # clones: memory that was handed to NumPy would be treated differently from then on
        grad = None if x.grad is None else x.grad.detach().clone().cpu().numpy()
        return ("t", x.requires_grad, x.is_leaf, tuple(x.stride()), x.detach().clone().cpu().numpy(), grad)
    if isinstance(x, list | tuple):
        return [observe(y) for y in x]
    if isinstance(x, dict):
        return {k: observe(v) for k, v in x.items()}
    return x


CALLS = 7
ERRORS = (RuntimeError, TypeError, IndexError, ValueError, AttributeError, ZeroDivisionError, OverflowError)


@contextmanager
def called_under(c: float | None, call: int) -> Iterator[None]:
    """The gradient mode of a call, where it is not the usual one."""
    if c is None or call not in (1, 4, 5):
        yield
        return
    with (flame.no_grad, flame.inference_mode)[int(c * 2)]():
        yield


def run(program: Program, wrap: Callable[..., Callable]) -> list:
    """What is seen of a program over several calls."""
    flame.manual_seed(0)
    fuzz_features.counter = 0
    world = World(wrap)
    chosen = {op: a for op, a, _, _ in program if op in FORMS}
    with_ = chosen.get("compiled_with")
    how = {} if with_ is None else fuzz_switches.HOW[int(with_ * len(fuzz_switches.HOW))]
    f = wrap(lambda x, k, flag: body(world, program, x, k, flag), **how)
    sizes, numbers = (
        kinds[int(chosen.get(name, 0.0) * len(kinds))] for name, kinds in (("batches", SIZES), ("numbers", NUMBERS))
    )
    seen: list = []
    for i in range(CALLS):
        x = tensor(sizes[i], 3, seed=100 + i)
        try:
            with called_under(chosen.get("called_under"), i), fuzz_switches.stance(chosen.get("called_in_stance"), i):
                total, last, some, log = f(x, numbers[i], i not in (2, 5))
            for op, _, _, c in program:
                if op in OUTSIDE:
                    OUTSIDE[op](world, [total, last, some, x], i, c)
            if i % 2 == 0:
                now = [total, last, some, log, x, *world.shown()]
                (total + last.sum()).backward()
                seen.append(observe(now))
            else:
                seen.append(observe([total, last, some, log, x, *world.shown()]))
        except ERRORS as e:
            seen.append(f"{type(e).__name__}: {str(e)[:60]}")
            world.forget_gradients()  # how far a failing backward came is not part of the promise
        seen.append(observe([world.weights, world.buffer]))
        if i == 3:
            for w in world.weights:
                w.grad = None
    return seen


def difference(a: Any, b: Any, path: str = "", near: list | None = None, *, rtol: float = 2e-3, atol: float = 1e-4) -> str:
    """Where two observations differ, or the empty string. Numbers may differ by rounding, those of 16 bits by more of it; and
    where `near` are observations of eager runs from inputs that differ in their last digits, by several times what these do."""
    near = near or []
    if type(a) is not type(b):
        return f"{path}: {str(a)[:80]} / {str(b)[:80]}"
    if isinstance(a, np.ndarray):
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"{path}: {a.dtype}{a.shape} / {b.dtype}{b.shape}"
        if a.tobytes() == b.tobytes():
            return ""
        short = a.dtype.itemsize == 2 and a.dtype.kind not in "iu"
        if a.dtype.kind in "biu":
            ok = np.array_equal(a, b)
        else:
            kind = np.complex128 if a.dtype.kind == "c" else np.float64
            ok = close(
                a.astype(kind), b.astype(kind), near, max(rtol, 2e-2) if short else rtol, max(atol, 1e-2) if short else atol
            )
        return "" if ok else f"{path}: {a.ravel()[:6]} / {b.ravel()[:6]}"
    if isinstance(a, list | tuple):
        if len(a) != len(b):
            return f"{path}: {len(a)} / {len(b)} entries"
        near = [n for n in near if type(n) is type(a) and len(n) == len(a)]
        for i, (p, q) in enumerate(zip(a, b, strict=True)):
            d = difference(p, q, f"{path}[{i}]", [n[i] for n in near], rtol=rtol, atol=atol)
            if d:
                return d
        return ""
    if isinstance(a, dict):
        near = [list(n.items()) for n in near if isinstance(n, dict)]
        return difference(list(a.items()), list(b.items()), path, near, rtol=rtol, atol=atol)
    if isinstance(a, float):
        return "" if a == b or close(np.asarray(a), np.asarray(b), near, rtol, atol) else f"{path}: {a} / {b}"
    return "" if a == b or (refused(a) and refused(b)) else f"{path}: {a!r} / {b!r}"


def close(a: np.ndarray, b: np.ndarray, near: list, rtol: float, atol: float) -> bool:
    """Whether numbers are equal but for rounding. Where all of a result is what rounding left of something larger, no tolerance
    tells that from the numbers: the runs `near` do."""
    with np.errstate(all="ignore"):
        if np.allclose(a, b, rtol=rtol, atol=atol, equal_nan=True):
            return True
        alike = [n for n in near if np.shape(n) == a.shape and getattr(n, "dtype", None) == getattr(near[0], "dtype", None)]
        if len(alike) < 2:
            return False
        moved = np.max([np.abs(np.asarray(n, a.dtype) - a) for n in alike], axis=0)
        return bool(np.all(np.isclose(a, b, rtol=rtol, atol=atol, equal_nan=True) | (np.abs(a - b) <= 10 * moved)))


def refused(x: Any) -> bool:
    """Whether an observation is the tape's refusal. Which of two reasons is named depends on the order in which they are met."""
    return isinstance(x, str) and x.startswith(
        ("RuntimeError: one of the variables needed", "RuntimeError: Trying to backward")
    )


MOST = 1e6  #: beyond it rounding decides


def settle(found: list) -> list:
    """Cut after the first observation in which values have grown so large that rounding decides."""
    at = next((i for i, x in enumerate(found) if grown(x)), len(found))
    return found[: at + 1]


def grown(x: Any) -> bool:
    """Whether some number in an observation is that large, or none at all."""
    if isinstance(x, np.ndarray):
        return bool(x.dtype.kind in "fc" and x.size and not float(np.abs(x).max()) < MOST)
    if isinstance(x, list | tuple):
        return any(map(grown, x))
    if isinstance(x, dict):
        return any(map(grown, x.values()))
    return isinstance(x, float) and not abs(x) < MOST


def near(program: Program) -> list:
    """What eager sees from inputs that differ in their last digits."""
    found = []
    for fuzz_world.shaken in (1, 2, 3, 4):
        found.append(run(program, lambda f, **how: f))
    fuzz_world.shaken = 0
    return found


def check(program: Program, backend: str = "eager", stats: dict | None = None) -> str:
    """The first difference between eager and compiled, or the empty string."""
    compiled: list = []

    def wrap(f: Callable, **how: Any) -> Callable:
        compiled.append(flame.compile(f, backend=backend, **how))
        return compiled[-1]

    want = run(program, lambda f, **how: f)
    try:
        got = run(program, wrap)
    except Exception as e:  # a crash inside capture is a finding like any other
        return f"crash: {type(e).__name__}: {e}"
    if stats is not None:
        for s in [f.stats for f in compiled]:
            for name in ("calls", "followed", "recorded", "flushed", "compiled"):
                stats[name] = stats.get(name, 0) + getattr(s, name)
            stats["breaks"] = stats.get("breaks", 0) + sum(s.breaks.values())
            stats["diverged"] = stats.get("diverged", 0) + sum(s.diverged.values())
    want = settle(want)
    found = difference(want, got[: len(want)])
    return found and difference(want, got[: len(want)], "", [n[: len(want)] for n in near(program)])


def minimise(program: Program, backend: str = "eager") -> Program:
    """The program without every operation that the difference does not need."""
    again = True
    while again:
        again = False
        for i in range(len(program)):
            less = program[:i] + program[i + 1 :]
            if check(less, backend):
                program, again = less, True
                break
    return program


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("first", type=int)
    parser.add_argument("last", type=int)
    parser.add_argument("--backend", default="eager")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    given = parser.parse_args()
    stats: dict = {}
    gc.freeze()  # (collections would walk all of flame's own objects, a seventh of the time)
    gc.set_threshold(20_000, 20, 50)
    bad = done = 0
    started = time.perf_counter()
    for seed in range(given.first, given.last):
        if time.perf_counter() - started > given.seconds:
            break
        program = generate(random.Random(seed))
        found = check(program, given.backend, stats)
        done += 1
        if found:
            bad += 1
            small = minimise(program, given.backend)
            print(f"seed {seed}: {found[:300]}")
            print(
                f"    {[(o, round(a, 3), round(b, 3), round(c, 3)) for o, a, b, c in small]}: {check(small, given.backend)[:200]}"
            )
            sys.stdout.flush()
    print(f"{done} programs, {bad} mismatches, {stats}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
