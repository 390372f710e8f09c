"""Model files as people write them for PyTorch, brought by changing the import: `torch` becomes `flame` in their source.

Each file of `models_torch` has `build()`, `batch(r)` (NumPy arrays) and `loss(model, *batch)`, which gives a loss and whatever
else is to be equal. Where PyTorch is installed, both run with the same weights.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import flame

HERE = Path(__file__).parent / "models_torch"
NAMES = sorted(p.stem for p in HERE.glob("*.py"))


def brought(name: str, framework: str) -> ModuleType:
    """The file's module, with the import changed."""
    path = HERE / f"{name}.py"
    module = sys.modules[f"models_torch_{name}_{framework}"] = ModuleType(f"models_torch_{name}_{framework}")
    exec(compile(re.sub(r"\btorch\b", framework, path.read_text()), str(path), "exec"), vars(module))
    return module


def values(found: list) -> list[np.ndarray]:
    return [x.detach().numpy().copy() if hasattr(x, "detach") else np.asarray(x) for x in found]


def step(module: ModuleType, model: Any, batch: list) -> tuple[Any, list]:
    """Loss and results; gradients lie in the parameters."""
    for p in model.parameters():
        p.grad = None
    loss, more = module.loss(model, *batch)
    loss.backward()
    return loss, more


def result(model: Any, got: tuple[Any, list]) -> list[np.ndarray]:
    gradients = [p.grad for _, p in sorted(model.named_parameters()) if p.grad is not None]
    return values([got[0], *got[1], *gradients])


def same(got: list[np.ndarray], want: list[np.ndarray], close: float) -> None:
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        size = np.abs(b[np.isfinite(b)]).max(initial=1e-3) if b.dtype.kind == "f" else 0.0
        np.testing.assert_allclose(a, b, rtol=close, atol=close * size)


def built(name: str, framework: Any) -> tuple[ModuleType, Any, list]:
    module = brought(name, framework.__name__)
    framework.manual_seed(3)
    return module, module.build(), [framework.from_numpy(a) for a in module.batch(np.random.default_rng(5))]


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning:torch")
@pytest.mark.parametrize("name", NAMES)
def test_a_model_file_gives_what_it_gives_in_pytorch(torch: Any, name: str) -> None:
    theirs, model, batch = built(name, torch)
    ours, mine, our_batch = built(name, flame)
    state = model.state_dict()
    assert list(mine.state_dict()) == list(state)
    mine.load_state_dict({k: flame.from_numpy(v.numpy().copy()) for k, v in state.items()})
    want = result(model, step(theirs, model, batch))
    got = result(mine, step(ours, mine, our_batch))
    assert [n for n, p in model.named_parameters() if p.grad is None] == [
        n for n, p in mine.named_parameters() if p.grad is None
    ]
    same(got, want, 2e-4)


#: what takes long to compile is compiled in the phase that has time for it
LONG = {
    *"unet_diffusion llama seq2seq nanogpt mixture_of_experts efficientnet t5 vit gan mamba bert clip wgan_gp detector".split()
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.oracle] if n in LONG else []) for n in NAMES])
def test_a_model_file_gives_compiled_what_it_gives_eagerly(name: str) -> None:
    module, model, batch = built(name, flame)
    kept = {k: v.clone() for k, v in model.state_dict().items()}

    def again(run: Any) -> list[np.ndarray]:
        model.load_state_dict(kept)
        return result(model, run(module, model, batch))

    want = again(step)
    compiled = flame.compile(step)
    for _ in range(2):
        same(again(compiled), want, 2e-4)
