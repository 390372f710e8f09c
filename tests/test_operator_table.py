"""docs/operators.md is what the registry gives, and docs/surface.md what this tree has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("page", ["operators", "surface"])
def test_generated_pages_are_what_the_tree_gives(page: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / f"{page}.py"), "--check"], cwd=ROOT, env=None, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
