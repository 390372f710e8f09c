"""`Optimizer`: groups of parameters with settings, state for each parameter, and one step over all of them.

A subclass gives `_update(p, g, state, group)`: by which rule one parameter moves, and what the rule is given. Parameters that move
by one rule and the same numbers are moved together, by one `flame.autograd.tape.update`, so that capture follows all of them in one
check and the compiler sees them side by side: this is PyTorch's `foreach`, always. A subclass may also give `_step(group)`, which
moves a whole group. Counts of steps are Python floats while in use, so that no captured step has to read them; `state_dict` shows
them as PyTorch does, as float32 tensors. What changes from step to step (bias corrections, the learning rate) enters operations as
numbers, which capture turns into run-time scalars.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from flame import dtypes
from flame.autograd import enable_grad, no_grad
from flame.autograd.attributes import RemovableHandle
from flame.autograd.tape import update
from flame.functions.elementwise import PUBLIC
from flame.functions.promotion import to_dtype
from flame.primitive import interpreting
from flame.tensor import Tensor


def check(fits: bool, what: str, value: Any) -> None:
    if not fits:
        raise ValueError(f"Invalid {what}: {value}")


def check_rate(lr: Any) -> None:
    """A learning rate is a number of at least 0, or a tensor of one element."""
    if isinstance(lr, Tensor):
        if lr.numel() != 1:
            raise ValueError("Tensor lr must be 1-element")
    else:
        check(lr >= 0.0, "learning rate", lr)


#: numbers in a parameter's state that PyTorch keeps as tensors. All but counts are shown in float64, so that nothing is lost.
COUNTS = frozenset({"step", "mu_product", "eta", "mu"})


#: overwrites some of the tensors that it is given, whole, by what it makes of them and of the numbers
Rule = Callable[[Sequence[Any], tuple], None]


def each(width: int, move: Callable[..., None]) -> Rule:
    """The rule that does `move(*tensors, *numbers)` for each `width` tensors in turn. Capture knows rules by identity: a rule is
    made once, and what it is made for (is there momentum?) is all that `move` knows besides its arguments."""

    def rule(tensors: Sequence[Any], numbers: tuple) -> None:
        for i in range(0, len(tensors), width):
            move(*tensors[i : i + width], *numbers)

    return rule


class Optimizer:
    """Base of optimizers. `params`: tensors, (name, tensor) pairs, or dicts with "params" and settings of their own."""

    def __init__(self, params: Any, defaults: dict[str, Any]) -> None:
        if isinstance(params, Tensor):
            raise TypeError(
                f"params argument given to the optimizer should be an iterable of Tensors or dicts, but got {params.type()}"
            )  # type: ignore[attr-defined]
        if defaults.get("differentiable"):
            raise ValueError(
                f"{type(self).__name__}: differentiable=True is not supported: steps are taken outside of the graph"
            )
        self.defaults = defaults
        self.state: defaultdict[Any, dict[str, Any]] = defaultdict(dict)
        self.param_groups: list[dict[str, Any]] = []
        self._pre_hooks: dict = {}
        self._post_hooks: dict = {}
        self._state_hooks: dict[str, dict] = {"save_pre": {}, "save_post": {}, "load_pre": {}, "load_post": {}}
        self._step_count = 0
        groups = list(params)
        if not groups:
            raise ValueError("optimizer got an empty parameter list")
        if not isinstance(groups[0], dict):
            groups = [{"params": groups}]
        for group in groups:
            self.add_param_group(dict(group))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with settings of their own; what is not set is the optimizer's default."""
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, but got {type(param_group)}")
        params = param_group["params"]
        if isinstance(params, Tensor):
            params = [params]
        elif isinstance(params, set):
            raise TypeError(
                "optimizer parameters need to be organized in ordered collections, but the ordering of tensors in sets will change "
                "between runs. Please use a list instead."
            )
        params = list(params)
        if params and isinstance(params[0], tuple):
            param_group["param_names"] = [name for name, _ in params]
            params = [p for _, p in params]
        for p in params:
            if not isinstance(p, Tensor):
                raise TypeError(f"optimizer can only optimize Tensors, but one of the params is {type(p).__name__}")
            if not (p.is_leaf or p.retains_grad):  # type: ignore[attr-defined]
                raise ValueError("can't optimize a non-leaf Tensor")
        if len({id(p) for p in params}) != len(params):
            raise ValueError("some parameters appear more than once in one parameter group")
        known = {id(p) for g in self.param_groups for p in g["params"]}
        if any(id(p) in known for p in params):
            raise ValueError("some parameters appear in more than one parameter group")
        param_group["params"] = params
        for name, default in self.defaults.items():
            param_group.setdefault(name, default)
        self.param_groups.append(param_group)

    # ---------------------------------------------------------------- stepping

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of all parameters, or fill them with zeros."""
        for group in self.param_groups:
            for p in group["params"]:
                if set_to_none:
                    p._grad = None
                elif p.grad is not None:
                    p.grad.detach_().zero_()

    @no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every parameter that has a gradient. `closure` computes the loss anew (and its gradients) and is returned."""
        for hook in list(self._pre_hooks.values()):
            hook(self, (closure,), {})
        loss = None
        if closure is not None:
            with enable_grad():
                loss = closure()
        self._step_count += 1
        for group in self.param_groups:
            self._step(group)
        for hook in list(self._post_hooks.values()):
            hook(self, (closure,), {})
        return loss

    def _step(self, group: dict[str, Any]) -> None:
        """Move the parameters of one group that have a gradient."""
        together: dict[tuple[Rule, tuple], list[Tensor]] = {}
        for p, g in moving(group):
            rule, given, numbers = self._update(p, g, self.state[p], group)
            together.setdefault((rule, numbers), []).extend(given)
        for (rule, numbers), tensors in together.items():
            update(rule, tensors, numbers)

    def _update(self, p: Tensor, g: Any, state: dict[str, Any], group: dict[str, Any]) -> tuple[Rule, tuple, tuple]:
        """What moves a parameter by its gradient: a rule (see `each`), its tensors, its numbers. Begins and counts the state."""
        raise NotImplementedError(f"{type(self).__name__} does not say how a parameter moves")

    def register_step_pre_hook(self, hook: Callable) -> RemovableHandle:
        """Call `hook(optimizer, args, kwargs)` before each step."""
        return _registered(self._pre_hooks, hook)

    def register_step_post_hook(self, hook: Callable) -> RemovableHandle:
        """Call `hook(optimizer, args, kwargs)` after each step."""
        return _registered(self._post_hooks, hook)

    # ---------------------------------------------------------------- saving and loading

    def state_dict(self) -> dict[str, Any]:
        """{"state": {index: state}, "param_groups": [settings with indices for parameters]}, PyTorch's layout."""
        for hook in list(self._state_hooks["save_pre"].values()):
            hook(self)
        index = {id(p): i for i, p in enumerate(chain.from_iterable(g["params"] for g in self.param_groups))}
        groups = [
            {**{k: v for k, v in g.items() if k != "params"}, "params": [index[id(p)] for p in g["params"]]}
            for g in self.param_groups
        ]
        state = {index[id(p)] if isinstance(p, Tensor) else p: _shown(s) for p, s in self.state.items() if s}
        saved: dict[str, Any] = {"state": state, "param_groups": groups}
        for hook in list(self._state_hooks["save_post"].values()):
            got = hook(self, saved)
            saved = saved if got is None else got
        return saved

    @no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take state and settings. Raises ValueError where the groups are not of the same sizes."""
        state_dict = dict(state_dict)
        for hook in list(self._state_hooks["load_pre"].values()):
            got = hook(self, state_dict)
            state_dict = state_dict if got is None else got
        groups = [dict(g) for g in state_dict["param_groups"]]
        if len(groups) != len(self.param_groups):
            raise ValueError("loaded state dict has a different number of parameter groups")
        if any(len(a["params"]) != len(b["params"]) for a, b in zip(groups, self.param_groups, strict=True)):
            raise ValueError("loaded state dict contains a parameter group that doesn't match the size of optimizer's group")
        place = {
            i: p
            for saved, own in zip(groups, self.param_groups, strict=True)
            for i, p in zip(saved["params"], own["params"], strict=True)
        }
        self.state = defaultdict(dict)
        for k, s in state_dict["state"].items():
            if k in place:
                self.state[place[k]] = {name: _taken(name, v, place[k]) for name, v in s.items()}
            else:
                self.state[k] = copy.deepcopy(s)
        for saved, own in zip(groups, self.param_groups, strict=True):
            own.update({k: v for k, v in saved.items() if k != "params"})
        for hook in list(self._state_hooks["load_post"].values()):
            hook(self)

    def register_state_dict_pre_hook(self, hook: Callable, prepend: bool = False) -> RemovableHandle:
        """Call `hook(optimizer)` before each state_dict()."""
        return _registered(self._state_hooks["save_pre"], hook, prepend)

    def register_state_dict_post_hook(self, hook: Callable, prepend: bool = False) -> RemovableHandle:
        """Call `hook(optimizer, state_dict)` after each state_dict(); what it returns (if not None) takes its place."""
        return _registered(self._state_hooks["save_post"], hook, prepend)

    def register_load_state_dict_pre_hook(self, hook: Callable, prepend: bool = False) -> RemovableHandle:
        """Call `hook(optimizer, state_dict)` before loading; what it returns (if not None) is loaded instead."""
        return _registered(self._state_hooks["load_pre"], hook, prepend)

    def register_load_state_dict_post_hook(self, hook: Callable, prepend: bool = False) -> RemovableHandle:
        """Call `hook(optimizer)` after loading."""
        return _registered(self._state_hooks["load_post"], hook, prepend)

    def __getstate__(self) -> dict[str, Any]:
        hooks: dict[str, Any] = {"_pre_hooks": {}, "_post_hooks": {}, "_state_hooks": {k: {} for k in self._state_hooks}}
        return {**self.__dict__, **hooks}

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} ("]
        for i, group in enumerate(self.param_groups):
            lines.append(f"Parameter Group {i}")
            lines += [f"    {k}: {group[k]}" for k in sorted(group) if k != "params"]
        return "\n".join([*lines, ")"])


def _registered(hooks: dict, hook: Callable, prepend: bool = False) -> RemovableHandle:
    key = object()
    before = dict(hooks) if prepend else {}
    if prepend:
        hooks.clear()
    hooks[key] = hook
    hooks.update(before)
    return RemovableHandle(lambda: hooks.pop(key, None))


def _shown(state: Any) -> Any:
    """A parameter's state as PyTorch keeps it."""
    if not isinstance(state, dict):
        return state
    tensor = PUBLIC["tensor"]
    shown = lambda k, v: tensor(float(v), dtype=dtypes.float32 if k == "step" else dtypes.float64) if k in COUNTS else v
    return {k: shown(k, v) for k, v in state.items()}


def _taken(name: str, value: Any, p: Tensor) -> Any:
    """A saved entry of a parameter's state, in that parameter's dtype."""
    if name in COUNTS:
        return float(value)
    if not isinstance(value, Tensor):
        return copy.deepcopy(value)
    value = value.detach().clone()  # type: ignore[attr-defined]
    return to_dtype(value, p.dtype) if p.dtype.is_floating_point else value


def moving(group: dict[str, Any]) -> list[tuple[Tensor, Any]]:
    """The parameters of a group that have a gradient, with it (its negative to maximize)."""
    found = [(p, g) for p in group["params"] if (g := p._grad) is not None]
    return [(p, -g) for p, g in found] if group.get("maximize") else found


def filled(p: Tensor, value: float = 0.0, shape: tuple[int, ...] | None = None) -> Tensor:
    """An entry of a parameter's state before its first step, of the parameter's shape or of another. Made outside of any capture,
    so that the first step is recorded as all others are."""
    with interpreting(None):
        return PUBLIC["full"](tuple(p.shape) if shape is None else shape, value, dtype=p.dtype, device=p.device)
