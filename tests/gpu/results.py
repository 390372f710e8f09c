"""What the GPU suite found: a line for every test as soon as it is known, and a table of its parts at the end."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gpu.parts import part_of

OUTCOMES = ("passed", "failed", "skipped")


class Results:
    """A plugin: writes `suite.jsonl` and `suite.md` into a folder, if it is given one, and shows the table."""

    def __init__(self, folder: Path | None):
        self.folder = folder
        self.parts: dict[str, Counter[str]] = {}
        self.seconds: defaultdict[str, float] = defaultdict(float)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "suite.jsonl").write_text("", encoding="utf-8")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        part = part_of(report.nodeid).name
        self.seconds[part] += report.duration
        if report.when != "call" and report.passed:
            return
        self.parts.setdefault(part, Counter())[report.outcome] += 1
        if self.folder is not None:
            about = {"test": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 3)}
            if not report.passed:
                about["why"] = report.longreprtext[-6000:]
            if report.capstdout:
                about["said"] = report.capstdout[-2000:]
            with open(self.folder / "suite.jsonl", "a", encoding="utf-8") as f:
                f.write(json.dumps(about) + "\n")
            (self.folder / "suite.md").write_text(self.table() + "\n", encoding="utf-8")

    def table(self) -> str:
        lines = [f"| part | {' | '.join(OUTCOMES)} | seconds |", "|---|" + "---:|" * (len(OUTCOMES) + 1)]
        for part, found in self.parts.items():
            lines.append(f"| {part} | {' | '.join(str(found[o]) for o in OUTCOMES)} | {self.seconds[part]:.0f} |")
        return "\n".join(lines)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Iterator[None]:
        """After all that pytest has to say."""
        yield
        terminal: pytest.TerminalReporter | None = session.config.pluginmanager.get_plugin("terminalreporter")
        if self.parts and terminal is not None:
            terminal.write_line(self.table())
