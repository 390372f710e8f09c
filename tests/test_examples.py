"""The example scripts: each trains, is killed, goes on, and ends with the parameters of a run that was not killed."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import flame

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SCRIPTS = sorted(p.stem for p in EXAMPLES.glob("*.py") if p.stem != "common")


class Killed(BaseException):
    """What ends a run without its leave."""


def _tensors(x, path=""):
    if isinstance(x, flame.Tensor):
        yield path, x.numpy()
    elif isinstance(x, dict):
        for k, v in x.items():
            yield from _tensors(v, f"{path}.{k}")
    elif isinstance(x, list | tuple):
        for i, v in enumerate(x):
            yield from _tensors(v, f"{path}.{i}")


@pytest.fixture(params=SCRIPTS)
def main(request, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module(request.param).main


def test_a_run_that_was_killed_ends_as_one_that_was_not(main, tmp_path, capsys):
    def kill(i: int) -> None:
        if i == 2:
            raise Killed

    def run(file, after=None):
        return main(["--small", "--steps", "4", "--save-every", "2", "--checkpoint", str(tmp_path / file)], after)

    with pytest.raises(Killed):
        run("killed", kill)
    capsys.readouterr()
    last = run("killed")
    assert "goes on from step 2" in capsys.readouterr().out
    assert run("whole") == last
    a, b = (dict(_tensors(flame.load(tmp_path / f)["parts"])) for f in ("killed", "whole"))
    assert a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def test_compiled_it_learns_the_same(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    run = importlib.import_module("neural_ode").main
    eager, compiled = (run(["--small", "--steps", "5", *more]) for more in ([], ["--compile"]))
    assert eager.keys() == compiled.keys()
    np.testing.assert_allclose(list(eager.values()), list(compiled.values()), rtol=1e-3)


def test_a_process_is_killed_and_another_goes_on(tmp_path):
    command = [sys.executable, str(EXAMPLES / "neural_ode.py"), "--small", "--save-every", "1"]
    command += ["--checkpoint", str(tmp_path / "c")]
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}
    first = subprocess.Popen([*command, "--steps", "100000"], stdout=subprocess.PIPE, text=True, env=environment)
    assert first.stdout is not None
    with first.stdout:
        seen = next(line for line in first.stdout if "saved step 2 " in line)
        first.send_signal(signal.SIGKILL)
        first.wait(60)
    done = flame.load(tmp_path / "c")["step"]
    assert seen and done >= 2
    second = subprocess.run([*command, "--steps", str(done + 1)], capture_output=True, text=True, env=environment, check=True)
    assert f"goes on from step {done} " in second.stdout and f"saved step {done + 1} " in second.stdout


def test_a_checkpoint_of_something_else_is_refused(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    common = importlib.import_module("common")
    flame.save({"step": 1, "rng": flame.get_rng_state(), "parts": {"other": {}}}, tmp_path / "c")
    args = common.options("", ["--checkpoint", str(tmp_path / "c")], 2)
    with pytest.raises(SystemExit, match="something else: model, other"):
        common.train(args, {"model": flame.nn.Linear(1, 1)}, lambda i: {})


def test_the_readme_lists_every_script():
    text = (EXAMPLES / "README.md").read_text()
    assert all(f"`{s}.py`" in text for s in SCRIPTS) and len(SCRIPTS) >= 6
