"""`Module`: a tree of named parameters, buffers and submodules around a `forward`.

Assigning a Parameter, a Buffer or a Module to an attribute registers it; everything else is an ordinary attribute. What
registers lives in `_parameters`, `_buffers` and `_modules`, and is shown in the instance's `__dict__` as well, so that
reading `self.weight` costs what reading any attribute costs (see `registry.py`). Saving and loading is in `state.py`, other
dtypes and devices are in `conversion.py`, hooks around the backward pass in `hooks.py`. `compile()` and
`flame.compile(module)` put a compiled function in the place of `_call_impl`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from flame.autograd.attributes import RemovableHandle
from flame.capture import native
from flame.capture.run import Run
from flame.changes import Noted, changes
from flame.jit import compile as compile_function
from flame.nn.modules.conversion import Conversion
from flame.nn.modules.hooks import around_backward
from flame.nn.modules.registry import REGISTRIES, Registry
from flame.nn.modules.state import StateDict
from flame.nn.modules.straight import MISSED, Chain, Straight
from flame.nn.parameter import Buffer, Parameter
from flame.primitive import force
from flame.tensor import Tensor

Self = TypeVar("Self", bound="Module")

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


class Module(StateDict, Conversion, Noted):
    """Base of all layers and models. Subclasses call `super().__init__()` first and define `forward`."""

    training: bool
    _parameters: dict[str, Parameter | None]
    _buffers: dict[str, Tensor | None]
    _modules: dict[str, Module | None]
    _hooked = False  #: whether any hook around the call is registered
    _compiled_call: Any = None
    _plain = True  #: neither hooked nor compiled
    _straight: Straight | Chain | None = None
    call_super_init = False

    def __init__(self) -> None:
        d = dict(self.__dict__)  # (one of its own: those that share their keys with their likes are read more slowly)
        object.__setattr__(self, "__dict__", d)
        put = d.__setitem__
        put("training", True)
        for name in REGISTRIES:
            if name in d:  # a second call, by way of another base class, starts anew
                d[name].clear()
            put(name, Registry(d))
        for name in _HOOKS:
            put(name, {})
        put("_non_persistent_buffers_set", set())

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f'Module [{type(self).__name__}] is missing the required "forward" function')

    # ---------------------------------------------------------------- the call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._plain:
            straight: Any = self._straight
            if straight is not None and len(args) == 1 and not kwargs:
                run: Run = force.interpreter
                if run is not None:
                    got = straight.follow(run, type(self).forward, args[0], self.__dict__)
                    if got is not MISSED:
                        return got
            return self.forward(*args, **kwargs)
        call = self._compiled_call
        if call is not None:
            return call(*args, **kwargs)
        return self._call_impl(*args, **kwargs)

    def _call_impl(self, *args: Any, **kwargs: Any) -> Any:
        """`forward` with the hooks around it."""
        if not self._hooked:
            return self.forward(*args, **kwargs)
        finished = False
        try:
            for hook, with_kwargs, _ in list(self._forward_pre_hooks.values()):
                if with_kwargs:
                    got = hook(self, args, kwargs)
                    if got is not None:
                        if not (isinstance(got, tuple) and len(got) == 2):
                            raise RuntimeError(
                                f"forward pre-hook must return None or a tuple of (new_args, new_kwargs), but got {got}."
                            )
                        args, kwargs = got
                else:
                    got = hook(self, args)
                    if got is not None:
                        args = got if isinstance(got, tuple) else (got,)
            leave: Callable = lambda result: result
            if self._backward_hooks or self._backward_pre_hooks:
                args, leave = around_backward(self, args)
            result = self.forward(*args, **kwargs)
            for hook, with_kwargs, _ in list(self._forward_hooks.values()):
                got = hook(self, args, kwargs, result) if with_kwargs else hook(self, args, result)
                if got is not None:
                    result = got
            finished = True
            return leave(result)
        finally:
            if not finished:
                for hook, with_kwargs, always in list(self._forward_hooks.values()):
                    if always:
                        hook(self, args, kwargs, None) if with_kwargs else hook(self, args, None)

    def _hook(self, where: str, hook: Callable, with_kwargs: bool = False, prepend: bool = False, always: bool = False) -> Any:
        key = object()
        hooks = self.__dict__[where]
        before = list(hooks.items()) if prepend else []
        if prepend:
            hooks.clear()
        hooks[key] = (hook, with_kwargs, always)
        hooks.update(before)
        self._count_hooks()

        def remove() -> None:
            hooks.pop(key, None)
            self._count_hooks()

        return RemovableHandle(remove)

    def _count_hooks(self) -> None:
        """To be called when there are other hooks, or another compiled call."""
        changes.note()
        d = self.__dict__
        d["_hooked"] = any(d[h] for h in _HOOKS)
        d["_plain"] = not d["_hooked"] and d.get("_compiled_call") is None

    def register_forward_pre_hook(self, hook: Callable, *, prepend: bool = False, with_kwargs: bool = False) -> RemovableHandle:
        """Call `hook(module, args)` before forward; what it returns (if not None) replaces the arguments."""
        return self._hook("_forward_pre_hooks", hook, with_kwargs, prepend)

    def register_forward_hook(
        self, hook: Callable, *, prepend: bool = False, with_kwargs: bool = False, always_call: bool = False
    ) -> RemovableHandle:
        """Call `hook(module, args, output)` after forward; what it returns (if not None) replaces the output."""
        return self._hook("_forward_hooks", hook, with_kwargs, prepend, always_call)

    def register_full_backward_pre_hook(self, hook: Callable, prepend: bool = False) -> RemovableHandle:
        """Call `hook(module, grad_output)` before the gradients enter the module; it may return others."""
        return self._hook("_backward_pre_hooks", hook, prepend=prepend)

    def register_full_backward_hook(self, hook: Callable, prepend: bool = False) -> RemovableHandle:
        """Call `hook(module, grad_input, grad_output)` when both are known; it may return another grad_input."""
        return self._hook("_backward_hooks", hook, prepend=prepend)

    # ---------------------------------------------------------------- compiling

    def compile(self, **options: Any) -> None:
        """Compile this module's call in place; `options` are those of `flame.compile`."""
        self.__dict__["_compiled_call"] = compile_function(self._as_function(), **options)
        self._count_hooks()

    def _as_function(self) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._plain:  # (and then not compiled itself)
                return Module.__call__(self, *args, **kwargs)
            return self._call_impl(*args, **kwargs)

        call.__name__ = call.__qualname__ = type(self).__name__
        return call

    def _compile_with(self, wrap: Callable[[Callable], Any]) -> Module:
        """A module that is this one in all its state (one `__dict__`, the same state_dict keys) and calls `wrap`ped code.

        `_orig_mod` is this module; what the wrapped function offers (statistics, kernels) is found on the result too.
        """
        return _compiled_view(self, wrap)

    # ---------------------------------------------------------------- attributes

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def __init_subclass__(cls, **more: Any) -> None:
        """`__getattr__` is there from the first subclass on that has one of its own, which may ask for this one: a class with a
        `__getattr__` reads every attribute of its instances five times as slowly."""
        super().__init_subclass__(**more)
        if "__getattr__" not in Module.__dict__ and getattr(cls, "__getattr__", _view_attribute) is not _view_attribute:
            Module.__getattr__ = _registered  # type: ignore[method-assign]

    def __setattr__(self, name: str, value: Any) -> None:
        d = self.__dict__
        if isinstance(value, Tensor):
            parameters = d.get("_parameters")
            if isinstance(value, Parameter):
                if parameters is None:
                    raise AttributeError("cannot assign parameters before Module.__init__() call")
                self._forget(name, d, parameters)
                self.register_parameter(name, value)
                return
            if parameters and name in parameters:
                raise TypeError(
                    f"cannot assign '{_type_name(value)}' as parameter '{name}' (flame.nn.Parameter or None expected)"
                )
            if isinstance(value, Buffer) or name in d.get("_buffers", ()):
                if "_buffers" not in d:
                    raise AttributeError("cannot assign buffer before Module.__init__() call")
                persistent = value.persistent if isinstance(value, Buffer) else name not in d["_non_persistent_buffers_set"]
                self._forget(name, d, d["_buffers"])
                self.register_buffer(name, value, persistent)
                return
            if name in d.get("_modules", ()):
                raise TypeError(
                    f"cannot assign '{_type_name(value)}' as child module '{name}' (flame.nn.Module or None expected)"
                )
        elif isinstance(value, Module):
            modules = d.get("_modules")
            if modules is None:
                raise AttributeError("cannot assign module before Module.__init__() call")
            self._forget(name, d, modules)
            modules[name] = value
            return
        elif "_parameters" in d:
            for registry, kind, wanted in (
                ("_parameters", "parameter", "flame.nn.Parameter"),
                ("_modules", "child module", "flame.nn.Module"),
                ("_buffers", "buffer", "flame.Tensor"),
            ):
                if name in d[registry]:
                    if value is not None:
                        raise TypeError(f"cannot assign '{_type_name(value)}' as {kind} '{name}' ({wanted} or None expected)")
                    d[registry][name] = None
                    return
        if name in REGISTRIES:
            entries = dict(value)
            d[name].clear()
            d[name].update(entries)
            return
        if d.get(name, d) is not value:
            changes.note()
        object.__setattr__(self, name, value)

    @staticmethod
    def _forget(name: str, d: dict, keep: dict) -> None:
        """Take `name` out of every place but `keep`."""
        if name not in keep:
            d.pop(name, None)
        for registry in (d["_parameters"], d["_buffers"], d["_modules"]):
            if registry is not keep:
                registry.pop(name, None)
        d["_non_persistent_buffers_set"].discard(name)

    def __delattr__(self, name: str) -> None:
        for registry in (self._parameters, self._buffers, self._modules):
            if name in registry:
                del registry[name]
                self._non_persistent_buffers_set.discard(name)
                return
        changes.note()
        object.__delattr__(self, name)

    def __dir__(self) -> list[str]:
        own = [*object.__dir__(self), *self._parameters, *self._buffers, *self._modules]
        return sorted(k for k in set(own) if not k[0].isdigit())

    def _check_name(self, name: str, kind: str, registry: dict) -> None:
        if "_parameters" not in self.__dict__:
            raise AttributeError(f"cannot assign {kind} before Module.__init__() call")
        if not isinstance(name, str):
            raise TypeError(f"{kind} name should be a string. Got {type(name).__name__}")
        if "." in name:
            raise KeyError(f'{kind} name can\'t contain "."' + (f", got: {name}" if kind == "module" else ""))
        if name == "":
            raise KeyError(f'{kind} name can\'t be empty string ""')
        if name not in registry and hasattr(self, name):
            raise KeyError(f"attribute '{name}' already exists")

    def register_parameter(self, name: str, param: Parameter | None) -> None:
        """Add a parameter (or a place for one: None). Raises KeyError for a name that is taken or can't be one."""
        self._check_name(name, "parameter", self.__dict__.get("_parameters", {}))
        if param is not None and not isinstance(param, Parameter):
            raise TypeError(
                f"cannot assign '{_type_name(param)}' object to parameter '{name}' (flame.nn.Parameter or None required)"
            )
        if param is not None and param.grad_fn is not None:  # type: ignore[attr-defined]
            raise ValueError(
                f"Cannot assign non-leaf Tensor to parameter '{name}'. Model parameters must be created explicitly. To express "
                f"'{name}' as a function of another Tensor, compute the value in the forward() method."
            )
        self._parameters[name] = param

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Add state that is not trained; it is in the state_dict if `persistent`."""
        self._check_name(name, "buffer", self.__dict__.get("_buffers", {}))
        if tensor is not None and not isinstance(tensor, Tensor):
            raise TypeError(f"cannot assign '{_type_name(tensor)}' object to buffer '{name}' (flame Tensor or None required)")
        self._buffers[name] = tensor
        (self._non_persistent_buffers_set.discard if persistent else self._non_persistent_buffers_set.add)(name)

    def add_module(self, name: str, module: Module | None) -> None:
        """Add a submodule, seen as the attribute `name`."""
        if module is not None and not isinstance(module, Module):
            raise TypeError(f"{_type_name(module)} is not a Module subclass")
        self._check_name(name, "module", self.__dict__.get("_modules", {}))
        self._modules[name] = module

    register_module = add_module

    # ---------------------------------------------------------------- walking the tree

    def named_modules(
        self, memo: set | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Module]]:
        """This module and all below it, with dotted names; each once unless `remove_duplicate` is False."""
        memo = set() if memo is None else memo
        if self in memo:
            return
        if remove_duplicate:
            memo.add(self)
        yield prefix, self
        for name, child in self._modules.items():
            if child is not None:
                yield from child.named_modules(memo, f"{prefix}.{name}" if prefix else name, remove_duplicate)

    def modules(self) -> Iterator[Module]:
        for _, m in self.named_modules():
            yield m

    def named_children(self) -> Iterator[tuple[str, Module]]:
        seen = set()
        for name, child in self._modules.items():
            if child is not None and child not in seen:
                seen.add(child)
                yield name, child

    def children(self) -> Iterator[Module]:
        for _, m in self.named_children():
            yield m

    def _named_members(self, registry: str, prefix: str, recurse: bool, remove_duplicate: bool) -> Iterator[tuple[str, Any]]:
        seen: set = set()
        modules = self.named_modules(prefix=prefix, remove_duplicate=remove_duplicate) if recurse else [(prefix, self)]
        for place, m in modules:
            for name, t in m.__dict__[registry].items():
                if t is None or id(t) in seen:
                    continue
                if remove_duplicate:
                    seen.add(id(t))
                yield f"{place}.{name}" if place else name, t

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        return self._named_members("_parameters", prefix, recurse, remove_duplicate)

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        for _, p in self.named_parameters(recurse=recurse):
            yield p

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        return self._named_members("_buffers", prefix, recurse, remove_duplicate)

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        for _, b in self.named_buffers(recurse=recurse):
            yield b

    def get_submodule(self, target: str) -> Module:
        """The module of a dotted name ("" is this one). Raises AttributeError where there is none."""
        m: Module = self
        for part in target.split(".") if target else ():
            if not hasattr(m, part):
                raise AttributeError(f"{type(m).__name__} has no attribute `{part}`")
            m = getattr(m, part)
            if not isinstance(m, Module):
                raise AttributeError(f"`{part}` is not an nn.Module")
        return m

    def set_submodule(self, target: str, module: Module, strict: bool = False) -> None:
        """Put a module in the place of a dotted name; with `strict` only where there is one. Raises ValueError for ""."""
        path, _, name = target.rpartition(".")
        if not name:
            raise ValueError("Cannot set the submodule without a target name!")
        if not isinstance(module, Module):
            raise ValueError(f"`module` is not an nn.Module, found {type(module)}")
        parent = self.get_submodule(path)
        if strict and not hasattr(parent, name):
            raise AttributeError(f"{type(parent).__name__} has no attribute `{name}`")
        if hasattr(parent, name) and not isinstance(getattr(parent, name), Module):
            raise AttributeError(f"`{name}` is not an nn.Module")
        parent._modules[name] = module

    def get_parameter(self, target: str) -> Parameter:
        path, _, name = target.rpartition(".")
        m = self.get_submodule(path)
        if not isinstance(getattr(m, name, None), Parameter):
            raise AttributeError(f"{type(m).__name__} has no parameter `{name}`")
        return getattr(m, name)

    def get_buffer(self, target: str) -> Tensor:
        path, _, name = target.rpartition(".")
        m = self.get_submodule(path)
        if m._buffers.get(name) is None:
            raise AttributeError(f"{type(m).__name__} has no buffer `{name}`")
        return getattr(m, name)

    def apply(self: Self, fn: Callable[[Module], None]) -> Self:
        """Call `fn` on every submodule, then on this one."""
        for child in self.children():
            child.apply(fn)
        fn(self)
        return self

    # ---------------------------------------------------------------- modes

    def train(self: Self, mode: bool = True) -> Self:
        """Set training (or evaluation) mode here and below."""
        if not isinstance(mode, bool):
            raise ValueError("training mode is expected to be boolean")
        for m in self.modules():
            m.training = mode
        return self

    def eval(self: Self) -> Self:
        return self.train(False)

    def requires_grad_(self: Self, requires_grad: bool = True) -> Self:
        for p in self.parameters():
            p.requires_grad_(requires_grad)  # type: ignore[attr-defined]
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of all parameters, or fill them with zeros."""
        for p in self.parameters():
            if p.grad is None:  # type: ignore[attr-defined]
                continue
            if set_to_none:
                p.grad = None  # type: ignore[attr-defined]
            else:
                p.grad.detach_().zero_()  # type: ignore[attr-defined]

    # ---------------------------------------------------------------- printing

    def extra_repr(self) -> str:
        """What stands between the parentheses of this module's line."""
        return ""

    def _get_name(self) -> str:
        return self.__class__.__name__

    def __repr__(self) -> str:
        extra = self.extra_repr().split("\n") if self.extra_repr() else []
        children = [f"({name}): " + "\n  ".join(repr(m).split("\n")) for name, m in self._modules.items()]
        if not children and len(extra) <= 1:
            return f"{self._get_name()}({''.join(extra)})"
        return "\n  ".join([f"{self._get_name()}(", *extra, *children]) + "\n)"

    # ---------------------------------------------------------------- copying

    def __getstate__(self) -> dict:
        """Everything once: what is registered stands in its place alone."""
        d = self.__dict__
        places = {name: dict(d[name]) for name in REGISTRIES if name in d}
        registered = {k for place in places.values() for k in place}
        return {**{k: v for k, v in d.items() if k not in registered and k not in ("_compiled_call", "_plain")}, **places}

    def __setstate__(self, state: dict) -> None:
        d = dict(self.__dict__)
        object.__setattr__(self, "__dict__", d)
        d.update((k, v) for k, v in state.items() if k not in REGISTRIES)
        d["_plain"] = not d.get("_hooked")
        for name in REGISTRIES:
            if name in state:
                d[name] = Registry(d, state[name])


native.also(Module, "__call__")


def _registered(self: Module, name: str) -> Any:
    """`Module.__getattr__`: what is registered by that name. Raises AttributeError where nothing is."""
    for registry in REGISTRIES:
        entries = self.__dict__.get(registry, {})
        if name in entries:
            return entries[name]
    raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")


def _type_name(x: object) -> str:
    t = type(x)
    return t.__qualname__ if t.__module__ == "builtins" else f"{t.__module__}.{t.__qualname__}"


# -------------------------------------------------------------------- compiled views

_views: dict[type, type] = {}


def _compiled_view(original: Module, wrap: Callable[[Callable], Any]) -> Module:
    """See `Module._compile_with`. The view's class derives from the module's, so that isinstance and methods hold."""
    cls = type(original)
    view = _views.get(cls)
    if view is None:
        body = {
            "__slots__": ("_orig_mod", "_compiled", "_wrap"),
            "__call__": lambda self, *args, **kwargs: self._compiled(*args, **kwargs),
            "__getattr__": _view_attribute,
            "__reduce_ex__": lambda self, protocol: (_same, (self._orig_mod,)),
            "__copy__": lambda self: _compiled_view(copy.copy(self._orig_mod), self._wrap),
            "__deepcopy__": lambda self, memo: _compiled_view(copy.deepcopy(self._orig_mod, memo), self._wrap),
            "__module__": cls.__module__,
            "__qualname__": cls.__qualname__,
            "_compile_with": lambda self, again: _compiled_view(self._orig_mod, again),
        }
        view = _views[cls] = type(cls.__name__, (cls,), body)
    got: Any = object.__new__(view)
    put = object.__setattr__
    put(got, "__dict__", original.__dict__)
    put(got, "_orig_mod", original)
    put(got, "_wrap", wrap)
    put(got, "_compiled", wrap(original._as_function()))
    return got


def _same(module: Module) -> Module:
    """A compiled view is pickled as the module it shows."""
    return module


def _view_attribute(self: Any, name: str) -> Any:
    try:
        return getattr(type(self._orig_mod), "__getattr__", _registered)(self, name)
    except AttributeError:
        if name.startswith("__") or not hasattr(self._compiled, name):
            raise
        return getattr(self._compiled, name)
