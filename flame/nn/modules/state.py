"""`state_dict` and `load_state_dict`, in PyTorch's layout: an ordered dict of dotted names, with module versions beside it."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from collections.abc import Callable, Mapping
from typing import Any

from flame.autograd import no_grad
from flame.autograd.attributes import RemovableHandle
from flame.nn.parameter import Parameter
from flame.tensor import Tensor

_EXTRA = "_extra_state"


class IncompatibleKeys(namedtuple("IncompatibleKeys", ["missing_keys", "unexpected_keys"])):
    """What `load_state_dict` did not find, and what it did not know."""

    __slots__ = ()

    def __repr__(self) -> str:
        return super().__repr__() if self.missing_keys or self.unexpected_keys else "<All keys matched successfully>"


class StateDict:
    """The part of Module that saves and loads."""

    _version = 1
    _state_hooks: Any = None  #: dict: kind -> {key: hook}, made with the first one

    # ---------------------------------------------------------------- saving

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """Every parameter and persistent buffer under its dotted name; detached (sharing memory) unless `keep_vars`."""
        if args:
            destination = args[0]
            prefix = args[1] if len(args) > 1 else prefix
            keep_vars = args[2] if len(args) > 2 else keep_vars
        if destination is None:
            destination = OrderedDict()
            destination._metadata = OrderedDict()
        local = {"version": self._version}
        if hasattr(destination, "_metadata"):
            destination._metadata[prefix[:-1]] = local
        for hook in self._hooks_of("state_dict_pre"):
            hook(self, prefix, keep_vars)
        self._save_to_state_dict(destination, prefix, keep_vars)
        for name, child in self._modules.items():  # type: ignore[attr-defined]
            if child is not None:
                child.state_dict(destination=destination, prefix=prefix + name + ".", keep_vars=keep_vars)
        for hook in self._hooks_of("state_dict"):
            got = hook(self, destination, prefix, local)
            if got is not None:
                destination = got
        return destination

    def _saved_buffers(self) -> dict[str, Tensor | None]:
        skip = self._non_persistent_buffers_set  # type: ignore[attr-defined]
        return {k: v for k, v in self._buffers.items() if k not in skip}  # type: ignore[attr-defined]

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """This module's own part, without its children's."""
        for registry in (self._parameters, self._saved_buffers()):  # type: ignore[attr-defined]
            for name, t in registry.items():
                if t is not None:
                    destination[prefix + name] = t if keep_vars else t.detach()
        if type(self).get_extra_state is not StateDict.get_extra_state:
            destination[prefix + _EXTRA] = self.get_extra_state()

    def get_extra_state(self) -> Any:
        """Override together with `set_extra_state` to save more than tensors."""
        raise RuntimeError("Reached a code path in Module.get_extra_state() that should never be called.")

    def set_extra_state(self, state: Any) -> None:
        raise RuntimeError("Reached a code path in Module.set_extra_state() that should never be called.")

    # ---------------------------------------------------------------- loading

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> IncompatibleKeys:
        """Copy tensors in by name (with `assign`, take them as they are). Raises RuntimeError that lists all that does not fit."""
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"Expected state_dict to be dict-like, got {type(state_dict)}.")
        missing: list[str] = []
        unexpected: list[str] = []
        errors: list[str] = []
        metadata = getattr(state_dict, "_metadata", None)
        state = OrderedDict(state_dict)

        def load(module: Any, prefix: str) -> None:
            local = {} if metadata is None else metadata.get(prefix[:-1], {})
            local = {**local, "assign_to_params_buffers": assign} if assign else local
            module._load_from_state_dict(state, prefix, local, True, missing, unexpected, errors)
            for name, child in module._modules.items():
                if child is not None:
                    load(child, prefix + name + ".")
            keys = IncompatibleKeys(missing, unexpected)
            for hook in module._hooks_of("load_post"):
                if hook(module, keys) is not None:
                    raise AssertionError(
                        "Hooks registered with ``register_load_state_dict_post_hook`` are not expected to return new values"
                    )

        load(self, "")
        if strict:
            quoted = lambda names: ", ".join(f'"{k}"' for k in names)
            if unexpected:
                errors.insert(0, f"Unexpected key(s) in state_dict: {quoted(unexpected)}. ")
            if missing:
                errors.insert(0, f"Missing key(s) in state_dict: {quoted(missing)}. ")
        if errors:
            raise RuntimeError(f"Error(s) in loading state_dict for {type(self).__name__}:\n\t" + "\n\t".join(errors))
        return IncompatibleKeys(missing, unexpected)

    def _load_from_state_dict(
        self, state_dict: dict, prefix: str, local_metadata: dict, strict: bool, missing_keys: list, unexpected_keys: list,
        error_msgs: list,
    ) -> None:  # fmt: skip
        """This module's own part, without its children's. What does not fit is added to the last three."""
        for hook in self._hooks_of("load_pre"):
            hook(self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        assign = local_metadata.get("assign_to_params_buffers", False)
        own = {**self._parameters, **self._saved_buffers()}  # type: ignore[attr-defined]
        own = {k: v for k, v in own.items() if v is not None}
        for name, have in own.items():
            key = prefix + name
            if key not in state_dict:
                if strict:
                    missing_keys.append(key)
                continue
            given = state_dict[key]
            problem = _misfit(key, have, given)
            if problem:
                error_msgs.append(problem)
                continue
            if assign:
                self._take(name, have, given)
                continue
            with no_grad():
                if have.ndim == 0 and given.ndim == 1:  # scalars were saved so once
                    given = given[0]
                have.copy_(given)
        extra = prefix + _EXTRA
        if type(self).set_extra_state is not StateDict.set_extra_state:
            if extra in state_dict:
                self.set_extra_state(state_dict[extra])
            elif strict:
                missing_keys.append(extra)
        elif strict and extra in state_dict:
            unexpected_keys.append(extra)
        if strict:
            for key in state_dict:
                if key.startswith(prefix) and key != extra:
                    first, _, rest = key[len(prefix) :].partition(".")
                    if rest:
                        if first not in self._modules:  # type: ignore[attr-defined]
                            unexpected_keys.append(key)
                    elif first not in own:
                        unexpected_keys.append(key)

    def _take(self, name: str, have: Tensor, given: Tensor) -> None:
        if isinstance(have, Parameter):
            if not isinstance(given, Parameter):
                given = Parameter(given, requires_grad=have.requires_grad)  # type: ignore[attr-defined]
            else:
                given.requires_grad_(have.requires_grad)  # type: ignore[attr-defined]
        setattr(self, name, given)

    # ---------------------------------------------------------------- hooks

    def _hooks_of(self, kind: str) -> list[Callable]:
        return [] if self._state_hooks is None else list(self._state_hooks.get(kind, {}).values())

    def _state_hook(self, kind: str, hook: Callable) -> RemovableHandle:
        if self._state_hooks is None:
            self.__dict__["_state_hooks"] = {}
        key = object()
        hooks = self._state_hooks.setdefault(kind, {})
        hooks[key] = hook
        return RemovableHandle(lambda: hooks.pop(key, None))

    def register_state_dict_pre_hook(self, hook: Callable) -> RemovableHandle:
        """Call `hook(module, prefix, keep_vars)` before saving."""
        return self._state_hook("state_dict_pre", hook)

    def register_state_dict_post_hook(self, hook: Callable) -> RemovableHandle:
        """Call `hook(module, state_dict, prefix, local_metadata)` after saving; it changes the dict in place."""
        return self._state_hook("state_dict", hook)

    def _register_state_dict_hook(self, hook: Callable) -> RemovableHandle:
        return self._state_hook("state_dict", hook)

    def register_load_state_dict_pre_hook(self, hook: Callable) -> RemovableHandle:
        """Call `hook(module, state_dict, prefix, local_metadata, strict, missing, unexpected, errors)` before loading."""
        return self._state_hook("load_pre", hook)

    def register_load_state_dict_post_hook(self, hook: Callable) -> RemovableHandle:
        """Call `hook(module, incompatible_keys)` after loading; it may change the lists of keys in place."""
        return self._state_hook("load_post", hook)


def _misfit(key: str, have: Tensor, given: Any) -> str:
    """Why a value can't be loaded, or nothing."""
    if not isinstance(given, Tensor):
        return (
            f'While copying the parameter named "{key}", expected flame.Tensor or Tensor-like object from checkpoint but received '
            f"{type(given)}"
        )
    if have.ndim == 0 and tuple(given.shape) == (1,):
        return ""
    if have.shape != given.shape:
        return (
            f"size mismatch for {key}: copying a param with shape {given.shape!r} from checkpoint, the shape in current model is "
            f"{have.shape!r}."
        )
    return ""
