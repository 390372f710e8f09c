"""docs/operators.md is what the registry gives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_operator_table_is_the_registry() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "operators.py"), "--check"], cwd=ROOT, env=None, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
