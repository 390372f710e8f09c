"""How much memory training takes on a CPU: `python -m benchmarks.memory [--only TEXT] [--python torch=PATH] [--out FOLDER]`.

Training steps of small models on batches that are large beside their parameters, in flame (eager and compiled) and in PyTorch
where it is installed (in this Python, or in the one that --python names), each in a process of its own. A figure is the most
memory that the process had resident during three steps, after four that warm it up, beyond what it had when the framework was
imported: parameters, gradients, the optimizer's state, what a step holds at its largest, what allocators keep, and what is left
of compiling. Beside it what compiling itself took at its largest, and the bytes of the compiled programs' arenas. Only Linux says
how much a process had during a while. Nothing is asserted. `--out` writes memory-DATE.md and .json there.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
if not __package__:
    sys.path.insert(0, str(HERE.parent))

from benchmarks import cpu_models  # noqa: E402
from benchmarks.capture import machine  # noqa: E402

Made = tuple[Callable[[], Any], Any]  #: a loss and an optimizer
ENGINES = ("flame", "flame eager", "torch eager")


def mlp(torch: Any) -> Made:
    nn = torch.nn
    model = nn.Sequential(nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 512), nn.GELU(), nn.Linear(512, 10))
    x, y = torch.randn(8192, 256), torch.randint(0, 10, (8192,))
    return lambda: nn.functional.cross_entropy(model(x), y), torch.optim.AdamW(model.parameters())


def residual(torch: Any) -> Made:
    nn, F = torch.nn, torch.nn.functional
    model = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), *(cpu_models.residual(nn, F) for _ in range(2)))
    x = torch.randn(16, 3, 32, 32)
    return lambda: model(x).square().mean(), torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


def gpt(torch: Any) -> Made:
    model = cpu_models.gpt(torch, 256, 4, 4, 1024)
    codes = torch.randint(0, 1024, (8, 257))
    x, y = codes[:, :-1], codes[:, 1:].reshape(-1)
    return lambda: torch.nn.functional.cross_entropy(model(x).view(-1, 1024), y), torch.optim.AdamW(model.parameters())


def lstm(torch: Any) -> Made:
    model = cpu_models.tagger(torch, 64, 128, 10)
    x, y = torch.randn(64, 64, 64), torch.randint(0, 10, (64 * 64,))
    return lambda: torch.nn.functional.cross_entropy(model(x).view(-1, 10), y), torch.optim.AdamW(model.parameters())


def unet(torch: Any) -> Made:
    loss, parameters = cpu_models.unet(torch, lambda n, *rest: torch.randn(8 * n if n == 4 else n, *rest))
    return loss, torch.optim.AdamW(parameters)


PROGRAMS: dict[str, Callable[[Any], Made]] = {
    "MLP 256-512-512-10, batch 8192": mlp,
    "2 residual blocks of 64, 16 images of 32 x 32": residual,
    "GPT, 4 blocks of 256, 8 x 256 tokens": gpt,
    "LSTM 64 -> 128, batch 64, 64 steps": lstm,
    "U-Net, 32 images of 32 x 32": unet,
}


def resident(which: str) -> int:
    """Bytes: VmRSS, those resident now; VmHWM, at most since `forget`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(which):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"this system does not say {which}")


def forget() -> None:
    """From now on VmHWM counts anew."""
    Path("/proc/self/clear_refs").write_text("5")


def run(framework: str, variant: str, program: str) -> dict[str, Any]:
    torch: Any = importlib.import_module(framework)
    if framework == "torch":
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    torch.manual_seed(0)
    torch.ones(8).add(1).sum().item()
    imported = resident("VmRSS")
    loss, optimizer = PROGRAMS[program](torch)

    def step() -> Any:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        return value.detach()

    call: Any = torch.compile(step) if variant == "" else step
    forget()
    for _ in range(4):
        call()
    warming = resident("VmHWM") - imported
    forget()
    for _ in range(3):
        call()
    facts: dict[str, Any] = {"step": resident("VmHWM") - imported, "warming": warming, "version": torch.__version__}
    if variant == "":
        facts["arenas"] = max(e._arena_bytes for c in call.compiled_graphs() for e in c.executables())
        facts["fallbacks"] = sum(call.stats.fallbacks.values())
    return facts


def measure(engine: str, python: str, program: str) -> dict[str, Any] | None:
    framework, _, variant = engine.partition(" ")
    with tempfile.TemporaryDirectory() as cache:
        limits = {"OMP_NUM_THREADS": "1", "FLAME_NUM_THREADS": "1", "FLAME_NEVER_SLOWER": "0", "FLAME_CACHE_DIR": cache}
        command = [python, str(Path(__file__).resolve()), "--run", framework, variant, program]
        done = subprocess.run(command, env={**os.environ, **limits}, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        print(f"{engine}: {program} fails: {last}", file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def table(found: dict[str, dict[str, dict[str, Any]]]) -> str:
    engines = [e for e in ENGINES if any(e in got for got in found.values())]
    lines = [
        f"| MB | {' | '.join(engines)} | flame / torch eager | arena | flame, while compiling |",
        "|---|" + "---:|" * (len(engines) + 3),
    ]
    for program, got in found.items():
        cells = [f"{got[e]['step'] / 1e6:.0f}" if e in got else "" for e in engines]
        own, peer = got.get("flame"), got.get("torch eager")
        cells.append(f"{own['step'] / peer['step']:.2f}" if own and peer else "")
        cells += [f"{own['arenas'] / 1e6:.0f}", f"{own['warming'] / 1e6:.0f}"] if own else ["", ""]
        lines.append(f"| {program} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="programs whose names contain this")
    parser.add_argument("--python", action="append", default=[], metavar="FRAMEWORK=PATH", help="another Python that has it")
    parser.add_argument("--out", type=Path, help="folder for memory-DATE.md and memory-DATE.json")
    parser.add_argument("--run", nargs=3, metavar=("FRAMEWORK", "VARIANT", "PROGRAM"), help="one program in this process")
    given = parser.parse_args()
    if given.run:
        print(json.dumps(run(*given.run)))
        return
    pythons = dict(p.split("=", 1) for p in given.python)
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for program in (p for p in PROGRAMS if given.only in p):
        got = {e: measure(e, pythons.get(e.split()[0], sys.executable), program) for e in ENGINES}
        found[program] = {e: f for e, f in got.items() if f is not None}
        print(f"{program} is done", file=sys.stderr)
    versions = sorted({f"{e.split()[0]} {f['version']}" for got in found.values() for e, f in got.items()})
    about = [*(f"- {what}: {value}" for what, value in machine().items()), f"- measured: {', '.join(versions)}; 1 thread each"]
    text = "\n".join(
        ["# What training takes of memory", "", *(__doc__ or "").splitlines()[2:], "", *about, "", table(found), ""]
    )
    print(text)
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        stem = given.out / f"memory-{datetime.date.today().isoformat()}"
        stem.with_suffix(".md").write_text(text, encoding="utf-8")
        kept = {"machine": machine(), "versions": versions, "found": found}
        stem.with_suffix(".json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
