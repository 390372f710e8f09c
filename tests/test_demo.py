"""The demo: its data are real and repeatable, its plots and report well formed, and both ways of training agree."""

from __future__ import annotations

import io
import math
import xml.etree.ElementTree as ET
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import flame
from flame.cli import main
from flame.demo.data import digits, python_topics
from flame.demo.main import both_ways, show
from flame.demo.report import kernel_to_show, rows, write_files
from flame.demo.svg import Series, bar_chart, line_chart, ticks
from flame.demo.tasks import Task, digits_task, text_task
from flame.demo.train import Outcome, Run, train
from flame.doctor import facts
from flame.errors import MissingTargetError

SVG = "{http://www.w3.org/2000/svg}"


@dataclass
class Kernel:
    """What the report reads of a kernel."""

    name: str
    triton: str
    llvm: str = "; ModuleID"


def outcome(task: Task, kernels: list[Kernel]) -> Outcome:
    eager = Run(False, [3.0, 2.0, 1.0], [0.2, 0.1, 0.1], result="<eager> & more")
    compiled = Run(True, [3.0, 2.0, 1.25], [0.3, 0.4, 0.05], 1, kernels, "compiled")
    return Outcome(task, eager, compiled)


class TestData:
    def test_digits_are_all_there_once(self) -> None:
        images = digits(seed=3)
        assert images.train_x.shape == (1437, 1, 8, 8) and images.test_x.shape == (360, 1, 8, 8)
        assert images.train_x.dtype == np.float32 and images.train_y.dtype == np.int64
        assert images.train_x.min() == 0 and images.train_x.max() == 1
        assert sorted(set(images.test_y)) == list(range(10))
        again = digits(seed=3)
        assert np.array_equal(images.train_x, again.train_x) and np.array_equal(images.test_y, again.test_y)
        assert not np.array_equal(images.test_y, digits(seed=4).test_y)

    def test_text_is_long_english_and_comes_back_from_its_codes(self) -> None:
        text = python_topics()
        assert len(text.codes) > 300_000
        whole = text.decode(text.codes[:20_000])
        assert set(text.characters) <= {"\n", *map(chr, range(32, 127))}
        assert whole.count(" the ") > 100
        assert np.array_equal(text.encode(whole), text.codes[:20_000])
        with pytest.raises(ValueError):
            text.encode("\u1234")

    @pytest.mark.parametrize("make", [digits_task, text_task])
    @pytest.mark.parametrize("quick", [True, False])
    def test_batches_depend_on_seed_and_step_alone(self, make, quick: bool) -> None:
        task, again = make(quick, seed=5), make(quick, seed=5)
        shapes = {tuple(a.shape for a in task.batch(i)) for i in (0, 1, task.steps - 1)}
        assert len(shapes) == 1
        for i in (7, 0):
            assert all(np.array_equal(a, b) for a, b in zip(task.batch(i), again.batch(i)))
        assert not np.array_equal(task.batch(0)[0], task.batch(1)[0])

    def test_an_epoch_shows_each_digit_at_most_once(self) -> None:
        task = digits_task(quick=True)
        seen = np.concatenate([task.batch(i)[0].reshape(64, -1) for i in range(22)])
        assert len(np.unique(seen, axis=0)) == len(seen) == 1408


class TestPlots:
    @pytest.mark.parametrize(
        ("low", "high", "expected"),
        [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0, 100, [0, 20, 40, 60, 80, 100]), (2, 2, [2]), (-1, 1, [-1, -0.5, 0, 0.5, 1])],
    )
    def test_ticks_are_round(self, low: float, high: float, expected: list[float]) -> None:
        assert ticks(low, high) == pytest.approx(expected)

    @pytest.mark.parametrize("y", [[], [1.0], [2.0, 2.0], [3.0, 1.0, 2.0], [math.nan, 1.0, math.inf, 2.0, 0.5], [math.nan]])
    def test_lines_stay_inside_and_gaps_stay_open(self, y: list[float]) -> None:
        drawn = ET.fromstring(line_chart("a < b & c", [Series("one", y), Series("two", y)], "x", "y"))
        width, height = map(float, drawn.attrib["viewBox"].split()[2:])
        lines = drawn.findall(f"{SVG}polyline")
        assert len(lines) == 2 * (0 if not any(map(math.isfinite, y)) else 2 if math.inf in y else 1)
        for line in lines:
            for point in line.attrib["points"].split():
                px, py = map(float, point.split(","))
                assert 0 <= px <= width and 0 <= py <= height

    def test_bars_are_as_tall_as_their_values(self) -> None:
        drawn = ET.fromstring(bar_chart("t", ["a", "b"], [("eager", [4.0, 2.0]), ("compiled", [1.0, math.nan])], "ms"))
        bars = [float(r.attrib["height"]) for r in drawn.findall(f"{SVG}rect") if "rx" in r.attrib]
        assert bars[0] == pytest.approx(2 * bars[2], rel=0.01) and bars[0] == pytest.approx(4 * bars[1], rel=0.01)
        assert bars[3] == 0


class TestReport:
    def test_the_table_says_what_was_measured(self) -> None:
        _, [row] = rows([outcome(digits_task(True), [Kernel("k", "")])])
        assert row == ["digits", "10.0", "20.0", "2.00x", "0.70 s", "1", "2.5e-01"]

    def test_a_run_that_never_compiled_says_so(self) -> None:
        o = outcome(digits_task(True), [])
        o.compiled.first_compiled = None
        assert rows([o])[1][0][4] == "never"
        assert kernel_to_show([o]) is None

    def test_the_kernel_shown_has_a_reduction_and_fits(self) -> None:
        short = Kernel("short", "x\n" * 10)
        good = Kernel("good", "tl.sum(x)\n" * 40)
        long = Kernel("long", "tl.sum(x)\n" * 400)
        assert kernel_to_show([outcome(digits_task(True), [short, long, good])]) is good
        assert kernel_to_show([outcome(digits_task(True), [short, long])]) is short

    def test_the_page_needs_no_other_file(self, tmp_path: Path) -> None:
        kernels = [Kernel("add <1>", "x = a < b & c\n"), Kernel("add <1>", "other\n")]
        (tmp_path / "kernels" / "digits").mkdir(parents=True)
        stale = tmp_path / "kernels" / "digits" / "99_old.py"
        stale.write_text("")
        written = write_files(tmp_path, [outcome(digits_task(True), kernels)], facts())
        assert not stale.exists()
        names = sorted(p.name for p in (written["kernels"] / "digits").iterdir())
        assert names == ["00_add_1.ll", "00_add_1.py", "01_add_1.ll", "01_add_1.py"]
        assert sorted(p.name for p in written["plots"].iterdir()) == ["loss_digits.svg", "step_time.svg"]
        page = written["report"].read_text(encoding="utf-8")
        assert "&lt;eager&gt; &amp; more" in page and "x = a &lt; b &amp; c" in page
        links: list[str] = []
        open_tags: list[str] = []

        class Reader(HTMLParser):
            def handle_starttag(self, tag: str, attrs: list) -> None:
                links.extend(v for k, v in attrs if k in ("src", "href"))
                if tag not in ("meta", "line", "rect", "polyline"):
                    open_tags.append(tag)

            def handle_endtag(self, tag: str) -> None:
                if open_tags and open_tags[-1] == tag:
                    open_tags.pop()

        Reader().feed(page)
        assert links == [] and open_tags == []


class TestTraining:
    @pytest.mark.parametrize("make", [digits_task, text_task])
    def test_eager_and_compiled_agree_from_the_same_seed(self, make, tmp_path: Path) -> None:
        task = replace(make(True), steps=6, eager_steps=5, result=lambda model: "done")
        console = Console(file=io.StringIO(), width=160)
        o = both_ways(task, "cpu", 0, console)
        assert (len(o.eager.losses), len(o.compiled.losses)) == (5, 6)
        assert all(math.isfinite(v) for v in o.eager.losses)
        assert o.eager.losses[-1] < o.eager.losses[0]
        assert o.largest_loss_difference < 1e-3
        assert o.compiled.first_compiled is not None and o.compiled.kernels
        show([o], "cpu", console)
        assert "speed-up" in console.file.getvalue()  # type: ignore[attr-defined]
        written = write_files(tmp_path, [o], facts())
        assert written["report"].stat().st_size > 10_000

    def test_the_same_seed_gives_the_same_losses(self) -> None:
        task = replace(digits_task(True), eager_steps=3)
        first, again = (train(task, compiled=False, seed=2)[0].losses for _ in range(2))
        assert first == again
        assert train(task, compiled=False, seed=3)[0].losses != first


class TestCommand:
    def test_version(self, capsys: pytest.CaptureFixture) -> None:
        with pytest.raises(SystemExit) as end:
            main(["--version"])
        assert end.value.code == 0
        assert capsys.readouterr().out.strip() == f"flame {flame.__version__}"

    def test_doctor_lists_what_was_found(self, capsys: pytest.CaptureFixture) -> None:
        assert main(["doctor"]) == 0
        out = capsys.readouterr().out
        assert "llvmlite" in out and "numpy" in out

    def test_a_missing_package_is_one_line_and_not_a_traceback(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
    ) -> None:
        def refuse(**asked: object) -> None:
            raise MissingTargetError("install it")

        monkeypatch.setattr("flame.cli.demo", refuse)
        assert main(["demo", "--quick"]) == 1
        assert capsys.readouterr().err == "flame: install it\n"

    @pytest.mark.parametrize("wrong", [[], ["dance"], ["demo", "--seed", "x"]])
    def test_a_wrong_command_line_shows_the_usage(self, wrong: list[str], capsys: pytest.CaptureFixture) -> None:
        with pytest.raises(SystemExit) as end:
            main(wrong)
        assert end.value.code == 2
        assert "usage: flame" in capsys.readouterr().err
