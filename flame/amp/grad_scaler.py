"""`GradScaler`: the loss is multiplied by a scale that adapts, so that small float16 gradients do not vanish.

A step whose gradients hold infinities or NaN is skipped, and the scale made smaller; after `growth_interval` steps in a row without
any it is made larger. In a compiled function everything stays in the graph but for the one question whether to step, which reads
`found_inf`: a skipped step must not advance what an optimizer counts in Python.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

from flame import cuda
from flame.autograd.modes import no_grad
from flame.autograd.tape import assign
from flame.dtypes import float16, float32, float64, int32
from flame.functions.elementwise import PUBLIC
from flame.functions.promotion import to_dtype
from flame.primitive import interpreting
from flame.tensor import Tensor

_HINT = "This may indicate your script did not use scaler.scale(loss or outputs) earlier in the iteration."


class _OptimizerState:
    """What happened to one optimizer since the last update(): it is "ready", "unscaled" or "stepped"."""

    def __init__(self) -> None:
        self.stage = "ready"
        self.found_inf: Tensor | None = None


class GradScaler:
    """Scales losses, unscales gradients, skips steps that overflowed: `scale`, `unscale_` (optional), `step`, `update`.

    device: where the scale lives, "cpu" or "cuda"; for "cuda" without a GPU it warns and is disabled, and then passes everything
    through. init_scale, growth_factor (> 1), backoff_factor (< 1), growth_interval: how the scale begins and moves.
    Raises AssertionError for factors out of range, and where methods are called out of order (RuntimeError for calling one twice).
    """

    def __init__(
        self,
        device: str = "cuda",
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
    ) -> None:
        self._device = str(device)
        self._enabled = bool(enabled)
        if enabled and self._device.startswith("cuda") and not cuda.is_available():
            warnings.warn("GradScaler is enabled for CUDA, but CUDA is not available. Disabling.", stacklevel=2)
            self._enabled = False
        if not self._enabled:
            return
        if growth_factor <= 1.0:
            raise AssertionError(f"The growth factor must be > 1.0, but it is {growth_factor}.")
        if backoff_factor >= 1.0:
            raise AssertionError(f"The backoff factor must be < 1.0, but it is {backoff_factor}.")
        self._init_scale = float(init_scale)
        self._init_growth_tracker = 0
        self._growth_factor = growth_factor
        self._backoff_factor = backoff_factor
        self._growth_interval = growth_interval
        self._scale: Tensor | None = None  #: made by the first scale()
        self._growth_tracker: Tensor | None = None
        self._states: dict[int, _OptimizerState] = {}

    # ---------------------------------------------------------------- an iteration

    def scale(self, outputs: Any) -> Any:
        """A tensor, or tensors in an iterable (of iterables), times the scale. Raises ValueError for anything else."""
        if not self._enabled:
            return outputs
        if self._scale is None:
            with interpreting(None):  # (outside of any capture, so that the first call is recorded as all others are)
                self._scale = PUBLIC["full"]((), self._init_scale, dtype=float32)
                self._growth_tracker = PUBLIC["full"]((), self._init_growth_tracker, dtype=int32)
        return self._scaled(outputs)

    def _scaled(self, outputs: Any) -> Any:
        if isinstance(outputs, Tensor):
            return outputs * self._scale  # type: ignore[operator]
        if isinstance(outputs, Iterable):
            several = map(self._scaled, outputs)
            return type(outputs)(several) if isinstance(outputs, list | tuple) else several  # type: ignore[call-arg]
        raise ValueError(f"outputs must be a Tensor or an iterable of Tensors, but got {type(outputs).__name__}")

    def unscale_(self, optimizer: Any) -> None:
        """Divide the gradients of an optimizer's parameters by the scale, so that they can be clipped; at most once a step.

        Raises RuntimeError where that happened already, ValueError for float16 gradients.
        """
        if not self._enabled:
            return
        scale, _ = self._check("unscale_")
        state = self._state(optimizer)
        if state.stage == "unscaled":
            raise RuntimeError("unscale_() has already been called on this optimizer since the last update().")
        if state.stage == "stepped":
            raise RuntimeError("unscale_() is being called after step().")
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        for g in grads:
            if g.dtype is float16:
                raise ValueError(
                    "Attempting to unscale FP16 gradients: keep parameters in float32, and let autocast cast what is computed."
                )
        with no_grad():
            inverse = to_dtype(PUBLIC["reciprocal"](to_dtype(scale, float64)), float32)
            found: Any = None
            for g in grads:
                bad = PUBLIC["any"](~PUBLIC["isfinite"](g))
                found = bad if found is None else found | bad
                assign(g, g * to_dtype(inverse, g.dtype))
            state.found_inf = None if found is None else to_dtype(found, float32)
        state.stage = "unscaled"

    def step(self, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        """`optimizer.step(*args, **kwargs)` on unscaled gradients, unless one of them is infinite or NaN: then None.

        Raises RuntimeError for a closure and for a second step before update(), AssertionError where no gradient was found.
        """
        if not self._enabled:
            return optimizer.step(*args, **kwargs)
        if "closure" in kwargs:
            raise RuntimeError("Closure use is not currently supported if GradScaler is enabled.")
        self._check("step")
        state = self._state(optimizer)
        if state.stage == "stepped":
            raise RuntimeError("step() has already been called since the last update().")
        if state.stage == "ready":
            self.unscale_(optimizer)
        if state.found_inf is None:
            state.stage = "ready"
            raise AssertionError("No inf checks were recorded for this optimizer: none of its parameters has a gradient.")
        result = None if state.found_inf.item() else optimizer.step(*args, **kwargs)  # type: ignore[attr-defined]
        state.stage = "stepped"
        return result

    def update(self, new_scale: Any = None) -> None:
        """Move the scale by what was found since the last update, or set it to `new_scale` (a float or a 1-element tensor)."""
        if not self._enabled:
            return
        scale, tracker = self._check("update")
        with no_grad():
            if new_scale is not None:
                if isinstance(new_scale, Tensor):
                    if new_scale.numel() != 1 or new_scale.requires_grad:
                        raise AssertionError(
                            "new_scale should be a float or a 1-element float tensor with requires_grad=False."
                        )
                    assign(scale, PUBLIC["reshape"](to_dtype(new_scale, float32), ()))
                else:
                    scale.fill_(float(new_scale))  # type: ignore[attr-defined]
            else:
                self._move(scale, tracker)
        self._states = {}

    def _move(self, scale: Any, tracker: Any) -> None:
        found = [s.found_inf for s in self._states.values() if s.found_inf is not None]
        if not found:
            raise AssertionError("No inf checks were recorded prior to update.")
        overflowed: Any = sum(found[1:], start=found[0]) > 0  # type: ignore[operator, arg-type]
        where = PUBLIC["where"]
        count = where(overflowed, 0, tracker + 1)
        grows = count == self._growth_interval
        larger = scale * self._growth_factor
        larger = where(PUBLIC["isfinite"](larger), larger, scale)
        assign(scale, where(overflowed, scale * self._backoff_factor, where(grows, larger, scale)))
        assign(tracker, to_dtype(where(grows, 0, count), int32))

    def _state(self, optimizer: Any) -> _OptimizerState:
        return self._states.setdefault(id(optimizer), _OptimizerState())

    def _check(self, method: str) -> tuple[Tensor, Tensor]:
        if self._scale is None or self._growth_tracker is None:
            raise AssertionError(f"Attempted {method} but _scale is None.  {_HINT}")
        return self._scale, self._growth_tracker

    # ---------------------------------------------------------------- settings and state

    def get_scale(self) -> float:
        """The scale; 1.0 where disabled."""
        if not self._enabled:
            return 1.0
        return self._init_scale if self._scale is None else float(self._scale.item())  # type: ignore[attr-defined]

    def get_growth_factor(self) -> float:
        return self._growth_factor

    def set_growth_factor(self, new_factor: float) -> None:
        self._growth_factor = new_factor

    def get_backoff_factor(self) -> float:
        return self._backoff_factor

    def set_backoff_factor(self, new_factor: float) -> None:
        self._backoff_factor = new_factor

    def get_growth_interval(self) -> int:
        return self._growth_interval

    def set_growth_interval(self, new_interval: int) -> None:
        self._growth_interval = new_interval

    def _get_growth_tracker(self) -> int:
        if not self._enabled:
            return 0
        t = self._growth_tracker
        return self._init_growth_tracker if t is None else int(t.item())  # type: ignore[attr-defined]

    def is_enabled(self) -> bool:
        return self._enabled

    def state_dict(self) -> dict[str, Any]:
        """Scale, factors, interval and tracker, as PyTorch lays them out; empty where disabled."""
        if not self._enabled:
            return {}
        return {
            "scale": self.get_scale(),
            "growth_factor": self._growth_factor,
            "backoff_factor": self._backoff_factor,
            "growth_interval": self._growth_interval,
            "_growth_tracker": self._get_growth_tracker(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what `state_dict()` gave. Raises RuntimeError for an empty one, which a disabled scaler saved."""
        if not self._enabled:
            return
        if not state_dict:
            raise RuntimeError(
                "The source state dict is empty, possibly because it was saved from a disabled instance of GradScaler."
            )
        self._init_scale, self._init_growth_tracker = float(state_dict["scale"]), int(state_dict["_growth_tracker"])
        self._growth_factor = state_dict["growth_factor"]
        self._backoff_factor = state_dict["backoff_factor"]
        self._growth_interval = state_dict["growth_interval"]
        if self._scale is not None and self._growth_tracker is not None:
            self._scale.fill_(self._init_scale)  # type: ignore[attr-defined]
            self._growth_tracker.fill_(self._init_growth_tracker)  # type: ignore[attr-defined]

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        if self._enabled:
            if self._states:
                raise AssertionError(
                    "A GradScaler instance may only be pickled at the beginning of an iteration, or at the end after "
                    "scaler.update()."
                )
            state["_init_scale"], state["_init_growth_tracker"] = self.get_scale(), self._get_growth_tracker()
            state["_scale"] = state["_growth_tracker"] = None
        return state
