"""Import order is reading order: each layer imports only from itself and from those before it, and the compiler is pure."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "flame"

#: the layers, lowest first. A module belongs to the longest name that is its own or a package around it.
LAYERS = (
    "flame.knobs",
    "flame.changes",
    "flame.errors",
    "flame.reasons",
    "flame.dtypes",
    "flame.formats",
    "flame.symbol",
    "flame.precision",
    "flame.primitive",
    "flame.interpreting",
    "flame.ops",
    "flame.compiler",
    "flame.runtime",
    "flame.native",
    "flame.slots",
    "flame.printing",
    "flame.tensor",
    "flame.autograd",
    "flame.functions",
    "flame.linalg",
    "flame.fft",
    "flame.array_api",
    "flame.sparse",
    "flame.capture",
    "flame.kernels",
    "flame.jit",
    "flame.nn",
    "flame.optim",
    "flame.serialization",
    "flame.special",
    "flame.func",
    "flame.testing",
    "flame.signal",
    "flame.backends",
    "flame.accelerator",
    "flame.random",
    "flame.legacy",
    "flame.absent",
    "flame.distributions",
    "flame.utils",
    "flame.datasets",
    "flame.cuda",
    "flame.amp",
    "flame.drawing",
    "flame.numbered",
    "flame.namespace",
    "flame.snapshot",
    "flame.explanation_text",
    "flame.explain",
    "flame.profiler",
    "flame.autograd.profiler",
    "flame",
    "flame.doctor",
    "flame.demo",
    "flame.cli",
    "flame.__main__",
)

#: what a pure function of its arguments has no use for: clocks, files, processes, threads, the environment, drivers.
#: (A lock around a table of interned objects is allowed: it makes a function's purity hold under threads.)
IMPURE = frozenset(
    "os sys time datetime pathlib shutil tempfile io subprocess multiprocessing concurrent asyncio signal socket "
    "ctypes random secrets llvmlite triton cuda mmap importlib".split()
)


@dataclass(frozen=True)
class Import:
    """One import of `module` by `importer`; `top` if it runs when the importer is imported."""

    importer: str
    module: str
    line: int
    top: bool
    typing_only: bool


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(p): p for p in sorted(PACKAGE.rglob("*.py"))}


def imports(module: str, path: Path) -> Iterator[Import]:
    """Every import in a file. `from flame import nn` counts as an import of flame.nn, not of flame, where that is a module."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]

    def visit(node: ast.AST, top: bool, typing_only: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                continue  # holds no statements
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(module, alias.name, child.lineno, top, typing_only)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    around = package.split(".")[: len(package.split(".")) - child.level + 1]
                    base = ".".join([*around, base] if base else around)
                for alias in child.names:
                    inner = f"{base}.{alias.name}"
                    yield Import(module, inner if inner in MODULES else base, child.lineno, top, typing_only)
            else:
                function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
                typing = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
                yield from visit(child, top and not function, typing_only or typing)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")), True, False)


def ours(module: str) -> bool:
    return module == "flame" or module.startswith("flame.")


def layer(module: str) -> int:
    """The layer's place; raises KeyError for a module that no layer names."""
    name = module
    while name not in LAYERS or (name == "flame" and module != "flame"):
        name, _, last = name.rpartition(".")
        if not name or not last:
            raise KeyError(module)
    return LAYERS.index(name)


@cache
def all_imports() -> list[Import]:
    return [i for module, path in MODULES.items() for i in imports(module, path)]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_every_module_stands_in_a_layer(module: str) -> None:
    try:
        layer(module)
    except KeyError:
        pytest.fail(f"{module} is in no layer: say in LAYERS, in {Path(__file__).name}, what it may import")


def test_every_layer_is_there() -> None:
    assert set(LAYERS) <= set(MODULES)


def test_imports_point_down() -> None:
    up = [
        f"{i.importer}:{i.line} imports {i.module}, a layer above it"
        for i in all_imports()
        if ours(i.module) and layer(i.module) > layer(i.importer)
    ]
    assert not up, "\n".join(up)


def test_no_import_waits_inside_a_function() -> None:
    """An import of flame's own inside a function hides a cycle. (A slow or optional package may wait there.)"""
    late = [f"{i.importer}:{i.line} imports {i.module}" for i in all_imports() if ours(i.module) and not i.top]
    assert not late, "\n".join(late)


def test_modules_import_each_other_in_no_circle() -> None:
    # A member that names a sibling through its own package is no circle: the package's names are there when it runs.
    graph = nx.DiGraph(
        (i.importer, i.module)
        for i in all_imports()
        if ours(i.module) and i.top and not i.typing_only and not i.importer.startswith(i.module + ".")
    )
    circles = [sorted(c) for c in nx.strongly_connected_components(graph) if len(c) > 1]
    assert not circles, "\n".join(" <-> ".join(c) for c in circles)


def test_the_compiler_is_pure() -> None:
    impure = [
        f"{i.importer}:{i.line} imports {i.module}"
        for i in all_imports()
        if i.importer.startswith("flame.compiler") and not i.typing_only and i.module.split(".")[0] in IMPURE
    ]
    for module, path in MODULES.items():
        if module.startswith("flame.compiler"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("open", "print", "exec"):
                    impure.append(f"{module}:{node.lineno} calls {node.func.id}()")
                if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "threading" and node.attr != "Lock":
                    impure.append(f"{module}:{node.lineno} uses threading.{node.attr}")
    assert not impure, "\n".join(impure)


def test_the_reader_of_imports_sees_every_form(tmp_path: Path) -> None:
    """The tests above can only fail if this holds."""
    source = tmp_path / "sample.py"
    source.write_text(
        "import flame.knobs\nfrom . import graph\nfrom .graph import Graph\nfrom flame import tensor as t\n"
        "if TYPE_CHECKING:\n    from flame.tensor import Tensor\n"
        "def f():\n    from flame.errors import Refused\n",
        encoding="utf-8",
    )
    found = [(i.module, i.top, i.typing_only) for i in imports("flame.compiler.sample", source)]
    assert found == [
        ("flame.knobs", True, False),
        ("flame.compiler.graph", True, False),
        ("flame.compiler.graph", True, False),
        ("flame.tensor", True, False),
        ("flame.tensor", True, True),
        ("flame.errors", False, False),
    ]
    assert layer("flame.tensor") > layer("flame.compiler.graph") > layer("flame.knobs")
    with pytest.raises(KeyError):
        layer("flame.somewhere_new")
