"""Out of memory on the CPU: the error says how much was wanted, for what, at which line, and who holds it; nothing else changes.

The limits are real ones (RLIMIT_AS), so each runs in a process of its own; what the error is made of is tested in this one.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs_for_tests import transformer

from flame.compiler.memory import lifetimes
from flame.compiler.memory_peak import largest
from flame.compiler.pipeline import compile_graph
from flame.errors import OutOfMemoryError
from flame.runtime import cpu, memory, recipe
from flame.runtime.executable import Executable

SCRIPT = """
import json, resource, sys
from pathlib import Path
from typing import Any
import flame
from flame.profiler import memory

def limit(more):
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + more if more else -1, -1))

def caught(f):
    try:
        f()
    except flame.cuda.OutOfMemoryError as error:
        return str(error)
    return "nothing was raised"

def normed(x):
    y = x.softmax(1) @ x  # the product's line
    return (y.t() @ y.relu()).tanh()

said = {}
flame.set_num_threads(1)
compiled, replayed = flame.compile(normed), flame.compile(normed, mode="replay")
x = flame.rand(1024, 1024)
w = flame.rand(1024, 1024, requires_grad=True)
for _ in range(5):
    before = compiled(x), replayed(x)
for _ in range(2):
    compiled(w).sum().backward()
grad = w.grad.clone()
y = flame.ones(3000, 3000)
flame.runtime.memory.shared.release()
limit(6 << 20)
said["compiled"] = caught(lambda: compiled(x))
said["replayed"] = caught(lambda: replayed(x))
said["training"] = caught(lambda: compiled(w).sum().backward())
said["unary"] = caught(lambda: flame.neg(y))
said["native"] = caught(lambda: y.exp())
said["method"] = caught(lambda: [y * 2 for _ in range(4)])
said["made"] = caught(lambda: flame.zeros(1 << 40))
said["matrix"] = caught(lambda: y @ y)
limit(80 << 20)
with memory.watching():
    held = y + 1
    said["watched"] = caught(lambda: [y + 2 for _ in range(4)])
    said["watched program"] = caught(lambda: [compiled(x) for _ in range(30)])
    del held
limit(0)
same = [flame.equal(compiled(x), before[0]), flame.equal(replayed(x), before[1]), flame.equal(w.grad, grad)]
compiled(w).sum().backward()
same.append(flame.allclose(w.grad, 1.5 * grad))
print(json.dumps([said, same]))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], list[bool]]:
    if not sys.platform.startswith("linux"):
        pytest.skip("no limit of a process's memory that is kept to")
    script = tmp_path_factory.mktemp("script") / "user.py"
    script.write_text(SCRIPT, encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1", "FLAME_NEVER_SLOWER": "0"}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    found, same = json.loads(done.stdout)
    return found, same


def line(text: str) -> int:
    """The number of the line of the script that has this text."""
    (found,) = [n for n, at in enumerate(SCRIPT.splitlines(), 1) if text in at]
    return found


@pytest.mark.parametrize("how", ["compiled", "replayed", "training", "watched program"])
def test_a_compiled_program_names_its_largest_arrays_by_line(said: tuple[dict[str, str], list[bool]], how: str) -> None:
    text = said[0][how]
    assert text.startswith("CPU out of memory. Tried to allocate ") and " for compiled normed (" in text
    assert re.search(
        rf"Its largest arrays:\n(.*\n)*  4.00 MiB: float32\[1024, 1024\] of matmul, .*user.py:{line('the product')}\n", text
    )


@pytest.mark.parametrize(
    ("how", "wanted"),
    [
        ("unary", "34.33 MiB for neg(float32[3000, 3000]), which makes float32[3000, 3000]"),
        ("method", "34.33 MiB for mul(float32[3000, 3000], 2), which makes float32[3000, 3000]"),
        ("made", "4.00 TiB for full(0), which makes float32[1099511627776]"),
        ("matrix", "34.33 MiB for matmul(float32[3000, 3000], float32[3000, 3000]), which makes float32[3000, 3000]"),
    ],
)
def test_an_eager_operation_names_size_and_shape(said: tuple[dict[str, str], list[bool]], how: str, wanted: str) -> None:
    text = said[0][how]
    assert text.startswith(f"CPU out of memory. Tried to allocate {wanted}, at "), text
    assert f'user.py:{line(f"""said["{how}"]""")}' in text


def test_a_native_eager_operation_names_size_and_shape(said: tuple[dict[str, str], list[bool]]) -> None:
    assert " for compiled exp_float32 (" in said[0]["native"]
    assert "34.33 MiB: float32[9000000] of exp_float32\n" in said[0]["native"]


def test_while_somebody_watches_memory_it_says_who_holds_it(said: tuple[dict[str, str], list[bool]]) -> None:
    for how in ("watched", "watched program"):
        _, _, holders = said[0][how].partition("Most is held by what was made at:\n")
        assert "before watching: " in holders and f"user.py:{line('held = y + 1')}: 34.33 MiB" in holders
    assert "watching()" in said[0]["unary"] and "Most is held" not in said[0]["unary"]


def test_everything_goes_on_as_before(said: tuple[dict[str, str], list[bool]]) -> None:
    assert said[1] == [True] * 4


# ---- what it is made of


def test_the_largest_arrays_are_those_of_the_step_where_most_is_there() -> None:
    graph = transformer(batch=2, length=8, width=16, heads=2)
    program = compile_graph(graph, cpu.target())
    live, slots = lifetimes(program), program.slots
    by_step = [sum(slots[i].bytes for i, (a, b) in live.items() if a <= k <= b) for k in range(len(program.steps))]
    results = sum(s.bytes for s in slots if s.kind == "output")
    everything = largest(program, 10**6)
    assert sum(n for n, _ in everything) == max(by_step) + results
    assert [n for n, _ in everything] == sorted((n for n, _ in everything), reverse=True)
    assert largest(program, 3) == everything[:3]


def test_a_recipe_keeps_them(tmp_path: Path) -> None:
    made = Executable(compile_graph(transformer(batch=2, length=8, width=16, heads=2), cpu.target())).recipe
    assert made.largest and recipe.decoded(recipe.encoded(made)).largest == made.largest


def test_free_blocks_go_first_and_accounts_stay_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room is made before anything is refused; what is refused is counted nowhere."""
    room = 10 << 20
    real: Any = memory.Block
    made: list[Any] = []

    class Tight(real):  # type: ignore[misc]
        def __init__(self, size: int):
            if size + sum(b.size for b in made if b.raw is not None) > room:
                raise MemoryError
            super().__init__(size)
            made.append(self)

    allocator = memory.Allocator()
    monkeypatch.setattr(memory, "Block", Tight)
    drop = allocator.release

    def release() -> None:
        drop()
        made.clear()

    monkeypatch.setattr(allocator, "release", release)
    allocator.empty((6 << 20,), np.dtype(np.uint8))  # given back at once, and kept
    kept = allocator.statistics()
    assert kept.cached == memory.size_class(6 << 20)
    held = allocator.empty((7 << 20,), np.dtype(np.uint8))
    after = allocator.statistics()
    assert after.cached == 0 and after.live == memory.size_class(7 << 20)
    refused: list[int] = []

    def refuse(size: int) -> Exception:
        refused.append(size)
        return OutOfMemoryError("no more")

    made.append(real(7 << 20))
    monkeypatch.setattr(allocator, "release", drop)
    with pytest.raises(OutOfMemoryError, match="no more"):
        allocator.maker((5 << 20,), np.dtype(np.uint8), refuse)()
    with pytest.raises(OutOfMemoryError, match="no more"):
        allocator.take_arena(5 << 20, refuse)
    with pytest.raises(MemoryError):
        allocator.take_arena(5 << 20)
    assert refused == [memory.size_class(5 << 20)] * 2
    assert allocator.statistics() == after or allocator.statistics().live == after.live
    del held
