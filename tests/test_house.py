"""Rules of the house that a program can check: see the names of the tests."""

from __future__ import annotations

import ast
import linecache
import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

import flame

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "flame").rglob("*.py"))
LONGEST = 620  #: lines; a longer file holds more than one idea
RIVALS = frozenset({"torch", "jax", "jaxlib", "tensorflow", "cupy", "paddle", "mxnet"})
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported(path: Path) -> set[str]:
    """The top-level names of all that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").split(".")[0])
    return found


@pytest.mark.parametrize("path", SOURCES, ids=name)
class TestEveryFile:
    def test_imports_no_other_framework(self, path: Path) -> None:
        assert not imported(path) & RIVALS

    def test_never_unpickles(self, path: Path) -> None:
        assert not imported(path) & {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve"}

    def test_holds_one_idea(self, path: Path) -> None:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= LONGEST, f"{lines} lines: split it by idea"

    def test_opens_with_what_it_holds(self, path: Path) -> None:
        assert not path.read_text(encoding="utf-8").strip() or ast.get_docstring(tree(path)), "no docstring on top"

    def test_leaves_nothing_unfinished(self, path: Path) -> None:
        marks = re.findall(r"\b(?:TODO|FIXME|XXX|HACK)\b", path.read_text(encoding="utf-8"))
        assert not marks

    def test_reads_no_environment_but_in_knobs(self, path: Path) -> None:
        if path.name == "knobs.py":
            return
        reads = [
            node.lineno
            for node in ast.walk(tree(path))
            if (isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv"))
            or (isinstance(node, ast.Name) and node.id in ("environ", "getenv"))
        ]
        assert not reads, f"the environment is read on lines {reads}: make it a field of Knobs"


def test_the_source_is_utf8_without_tabs() -> None:
    for path in [*SOURCES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]:
        assert "\t" not in path.read_text(encoding="utf-8"), f"{name(path)} has a tab"


def test_what_stands_beside_the_source_holds_one_idea_a_file() -> None:
    beside = [path for folder in ("tests", "scripts", "benchmarks", "examples") for path in (ROOT / folder).rglob("*.py")]
    long = {name(path): n for path in beside if (n := len(path.read_text(encoding="utf-8").splitlines())) > LONGEST}
    assert not long, "split them by idea"


def run(*command: str) -> None:
    got = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert got.returncode == 0, got.stdout[-6000:] + got.stderr[-2000:]


needs_ruff = pytest.mark.skipif(find_spec("ruff") is None, reason="ruff is not installed: pip install 'flame-jit[test]'")
needs_mypy = pytest.mark.skipif(find_spec("mypy") is None, reason="mypy is not installed: pip install 'flame-jit[test]'")


@needs_ruff
def test_ruff_finds_nothing() -> None:
    run("ruff", "check", ".")


@needs_ruff
def test_the_code_is_formatted() -> None:
    run("ruff", "format", "--check", ".")


@needs_mypy
def test_the_types_hold() -> None:
    run("mypy")


def test_the_versions_agree() -> None:
    assert flame.__version__ == PROJECT["version"]
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_dependencies_have_lower_bounds_only() -> None:
    extras = [r for listed in PROJECT["optional-dependencies"].values() for r in listed]
    for requirement in [*PROJECT["dependencies"], *extras]:
        assert re.fullmatch(r"[A-Za-z0-9_.-]+>=[0-9.]+(?:; .+)?", requirement), requirement


def test_import_is_light() -> None:
    """`import flame` starts no compiler: Triton alone takes a second to import, and a program may never need it."""
    heavy = "triton matplotlib sklearn scipy IPython rich.console"
    code = f"import sys, flame; print([m for m in {heavy.split()!r} if m in sys.modules])"
    got = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert got.stdout.strip() == "[]"


def test_the_readme_has_the_commands_that_ci_runs() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert "pip install -e '.[demo]' && flame demo" in lines
    assert "pip install -e '.[test]' && pytest -n auto --dist worksteal" in lines
    for extra in ("demo", "test"):
        assert sum(f"pip install -e '.[{extra}]'" in line for line in lines) == 1
        assert extra in PROJECT["optional-dependencies"]


def test_links_between_the_documents_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md"), ROOT / "benchmarks" / "README.md"]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{name(page)} links to {target}, which is not there"


def test_the_readme_example_runs(capsys: pytest.CaptureFixture) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    [example] = re.findall(r"```python\n(.*?)```", readme, flags=re.S)
    source = readme_source(example)
    exec(compile(example, source, "exec"), {"__name__": "__readme__"})
    out = capsys.readouterr().out
    losses = [float(line.split()[1]) for line in out.splitlines()[:5]]
    assert losses == sorted(losses, reverse=True) and len(set(losses)) == 5
    assert "@triton.jit" in out
    [shown] = re.findall(r"```text\n(.*?)```", readme, flags=re.S)
    printed = [line.split("#")[0].rstrip() for line in out.splitlines()]
    for line in shown.splitlines():
        assert line.split("#")[0].rstrip() in printed, line


def readme_source(text: str) -> str:
    """A file name under which tracebacks and the compiler find the lines of `text`."""
    source = "<README.md>"
    linecache.cache[source] = (len(text), None, text.splitlines(keepends=True), source)
    return source


def test_lines_of_code_are_counted(tmp_path: Path) -> None:
    (tmp_path / "flame").mkdir()
    (tmp_path / "flame" / "a.py").write_text(
        '"""Words\nand words."""\n\nx = """text\nthat is code"""  # and a word\n# a word\n'
    )
    command = [sys.executable, ROOT / "scripts" / "lines.py", tmp_path]
    got = subprocess.run(command, capture_output=True, text=True, check=True)
    assert got.stdout.splitlines()[-1].split() == ["total", "1", "2", "3"]
