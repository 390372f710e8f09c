"""The pages of docs/: their programs run, their links lead somewhere, their pictures are drawn; notebooks show what they draw."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
RUN = ["index", "coming-from-pytorch", "how-compile-works", "extending"]


@pytest.mark.parametrize("name", RUN)
def test_the_programs_of_a_page_run_one_after_the_other(name, tmp_path):
    """In a process of their own: some of them register primitives."""
    page = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"(?ms)^```python\n(.*?)^```", page)
    assert blocks
    script = tmp_path / "page.py"
    script.write_text("\n".join(blocks), encoding="utf-8")
    got = subprocess.run(
        [sys.executable, "-W", "error", str(script)], capture_output=True, text=True, cwd=ROOT, env=_environment()
    )
    assert got.returncode == 0, got.stderr[-2000:]


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_links_lead_somewhere(page):
    text = re.sub(r"(?ms)^```.*?^```", "", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor and file.suffix == ".md":
            heads = re.findall(r"(?m)^#+ (.*)$", file.read_text(encoding="utf-8"))
            known = {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in heads}
            assert anchor in known, f"{page.name}: {target}"


def test_pictures_are_drawn_and_there():
    spec = importlib.util.spec_from_file_location("pictures", ROOT / "scripts" / "pictures.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, text in module.pictures().items():
        ET.fromstring(text)
        assert (ROOT / "docs" / "pictures" / f"{name}.svg").exists()
    used = {m for p in PAGES for m in re.findall(r"\(pictures/(\w+)\.svg\)", p.read_text(encoding="utf-8"))}
    assert used == {p.stem for p in (ROOT / "docs" / "pictures").glob("*.svg")}


@pytest.mark.parametrize("page", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_notebooks_show_what_they_print_and_draw(page):
    text = page.read_text(encoding="utf-8")
    cells = [c for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
    assert [c["execution_count"] for c in cells] == list(range(1, len(cells) + 1)), "run scripts/run_notebook.py --keep"
    shown = [o for c in cells for o in c["outputs"]]
    assert not [o for o in shown if o["output_type"] == "error" or o.get("name") == "stderr"]
    assert any(kind.startswith("image/") for o in shown for kind in o.get("data", ()))
    assert not re.search(r"(/home/|/root/|/Users/|/tmp/)", text)
