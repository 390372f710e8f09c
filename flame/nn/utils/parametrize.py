"""Parametrizations: a parameter (or buffer) of a module that is computed from others each time it is read.

`register_parametrization(module, "weight", p)` moves `weight` to `module.parametrizations.weight.original` and makes
`module.weight` a property: p(original). The module gets a class of its own kind, "ParametrizedLinear" for a Linear, which has the
property; such a class is made once for a base class and a set of names. What is trained, saved and loaded is the original.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from flame.autograd import no_grad
from flame.nn.modules.container import ModuleDict, ModuleList
from flame.nn.modules.module import Module
from flame.nn.parameter import Parameter
from flame.tensor import Tensor

_classes: dict[tuple[type, tuple[str, ...]], type] = {}
_cache: dict[tuple[int, str], Tensor] = {}
_caching = 0


@contextmanager
def cached() -> Iterator[None]:
    """In this context each parametrized tensor is computed once, at its first use."""
    global _caching
    _caching += 1
    try:
        yield
    finally:
        _caching -= 1
        if not _caching:
            _cache.clear()


class ParametrizationList(ModuleList):
    """The parametrizations of one tensor, applied in order to `original` (or `original0`, `original1`, ..)."""

    original: Tensor

    def __init__(self, modules: Sequence[Module], original: Tensor, unsafe: bool = False) -> None:
        if not modules:
            raise ValueError("ParametrizationList requires one or more modules.")
        super().__init__(modules)
        self.unsafe = unsafe
        shape, dtype = tuple(original.shape), original.dtype
        with no_grad():
            new = self._inverted(original)
        self.is_tensor = isinstance(new, Tensor)
        self.ntensors = 1 if self.is_tensor else len(new)
        if self.is_tensor:
            if new.dtype is not dtype:
                raise ValueError(
                    "When `right_inverse` outputs one tensor, it may not change the dtype.\n"
                    f"original.dtype: {dtype!r}\nright_inverse(original).dtype: {new.dtype!r}"
                )
            if new is not original:
                with no_grad():
                    original.data = new
            if isinstance(original, Parameter):
                self.register_parameter("original", original)
            else:
                self.register_buffer("original", original)
        else:
            for i, part in enumerate(new):
                if not isinstance(part, Tensor):
                    raise ValueError(
                        f"`right_inverse` must return a Tensor or a Sequence of tensors. Got element {i} of the sequence with type "
                        f"{type(part)}."
                    )
                if isinstance(original, Parameter):
                    grad = original.requires_grad and part.dtype.is_floating_point
                    self.register_parameter(f"original{i}", Parameter(part.detach().clone(), requires_grad=grad))
                else:
                    self.register_buffer(f"original{i}", part)
        if not unsafe:
            got = self()
            if not isinstance(got, Tensor):
                raise ValueError(f"A parametrization must return a tensor. Got {type(got).__name__}.")
            if got.dtype is not dtype:
                raise ValueError(
                    f"Registering a parametrization may not change the dtype of the tensor, unless `unsafe` flag is enabled.\n"
                    f"unparametrized dtype: {dtype!r}\nparametrized dtype: {got.dtype!r}"
                )
            if tuple(got.shape) != shape:
                raise ValueError(
                    f"Registering a parametrization may not change the shape of the tensor, unless `unsafe` flag is enabled.\n"
                    f"unparametrized shape: {list(shape)}\nparametrized shape: {list(got.shape)}"
                )

    def _inverted(self, value: Any) -> Any:
        """What the originals must be to give `value`, as far as parametrizations say."""
        for module in reversed(list(self)):
            inverse = getattr(module, "right_inverse", None)
            if inverse is not None:
                value = inverse(value)
            elif not isinstance(value, Tensor):
                raise RuntimeError(f"parametrization {type(module).__name__} has no right_inverse and takes several tensors")
        return value

    @property
    def originals(self) -> list[Tensor]:
        return [self.original] if self.is_tensor else [getattr(self, f"original{i}") for i in range(self.ntensors)]

    def right_inverse(self, value: Tensor) -> None:
        """Set the originals so that the tensor becomes `value`."""
        with no_grad():
            for module in reversed(list(self)):
                if not hasattr(module, "right_inverse"):
                    raise RuntimeError(
                        f"parametrization {type(module).__name__} does not implement right_inverse, so that its tensor can't be "
                        "assigned to"
                    )
            new = self._inverted(value)
            for old, part in zip(self.originals, [new] if self.is_tensor else new, strict=True):
                if old.shape != part.shape:
                    raise ValueError(f"right_inverse gives shape {list(part.shape)}, where the original has {list(old.shape)}")
                old.copy_(part)

    def forward(self) -> Tensor:
        modules = list(self)
        x = modules[0](*self.originals)
        for module in modules[1:]:
            x = module(x)
        return x


# -------------------------------------------------------------------- modules with properties


def _property(name: str) -> property:
    def read(self: Any) -> Tensor:
        if not _caching:
            return self.parametrizations[name]()
        key = (id(self.parametrizations), name)
        if key not in _cache:
            _cache[key] = self.parametrizations[name]()
        return _cache[key]

    def write(self: Any, value: Tensor) -> None:
        self.parametrizations[name].right_inverse(value)

    return property(read, write)


def _rebuilt(base: type, names: tuple[str, ...]) -> Any:
    return object.__new__(_class(base, names))


def _class(base: type, names: tuple[str, ...]) -> type:
    """The class of modules of class `base` whose tensors `names` are computed."""
    if not names:
        return base
    made = _classes.get((base, names))
    if made is None:
        body: dict[str, Any] = {name: _property(name) for name in names}
        body["_parametrized"] = (base, names)
        body["__reduce_ex__"] = lambda self, protocol: (_rebuilt, type(self)._parametrized, self.__getstate__())
        body["__module__"] = base.__module__
        body["__setattr__"] = _set
        made = _classes[base, names] = type(f"Parametrized{base.__name__}", (base,), body)
    return made


def _set(self: Any, name: str, value: Any) -> None:
    """Assigning to a computed tensor goes to its parametrizations, everything else to the module."""
    base, names = type(self)._parametrized
    if name in names:
        object.__setattr__(self, name, value)
    else:
        base.__setattr__(self, name, value)


def is_parametrized(module: Module, tensor_name: str | None = None) -> bool:
    """Whether any tensor of the module (or this one) is computed."""
    names = getattr(type(module), "_parametrized", (None, ()))[1]
    return bool(names) if tensor_name is None else tensor_name in names


def type_before_parametrizations(module: Module) -> type:
    """The class that the module was made of."""
    return getattr(type(module), "_parametrized", (type(module),))[0]


def register_parametrization(module: Module, tensor_name: str, parametrization: Module, *, unsafe: bool = False) -> Module:
    """Compute the parameter or buffer `tensor_name` by `parametrization` (after those it has already). Returns the module.

    A parametrization with `right_inverse` says what the original must be; it may be several tensors. Unless `unsafe`, shape and
    dtype stay. Raises ValueError for a tensor that is not there or a parametrization that changes it.
    """
    parametrization.train(module.training)
    if is_parametrized(module, tensor_name):
        parts: Any = module.parametrizations[tensor_name]
        if not unsafe:
            before = getattr(module, tensor_name)
            after = parametrization(before)
            inverse = getattr(parametrization, "right_inverse", None)
            back = before if inverse is None else inverse(before)
            for what, got in (("may not change", after), ("has a right_inverse that may not change", back)):
                if not isinstance(got, Tensor) or got.shape != before.shape or got.dtype is not before.dtype:
                    raise ValueError(f"Registering a parametrization: it {what} the tensor's shape and dtype")
        if hasattr(parametrization, "right_inverse"):
            with no_grad():
                value = getattr(module, tensor_name)
                parts.append(parametrization)
                if parts.is_tensor and all(hasattr(m, "right_inverse") for m in parts):
                    parts.right_inverse(value)
        else:
            parts.append(parametrization)
        return module
    if tensor_name not in module._parameters and tensor_name not in module._buffers:
        raise ValueError(
            f"Module '{module}' does not have a parameter, a buffer, or a parametrized element with name '{tensor_name}'"
        )
    original = getattr(module, tensor_name)
    made = ParametrizationList([parametrization], original, unsafe)
    delattr(module, tensor_name)
    base, names = getattr(type(module), "_parametrized", (type(module), ()))
    if not names:
        module.parametrizations = ModuleDict()
    module.parametrizations[tensor_name] = made
    module.__class__ = _class(base, (*names, tensor_name))
    return module


def remove_parametrizations(module: Module, tensor_name: str, leave_parametrized: bool = True) -> Module:
    """Make the tensor an ordinary one again: with its computed value, or (not `leave_parametrized`) with its original's."""
    if not is_parametrized(module, tensor_name):
        raise ValueError(f"Module {module} does not have a parametrization on {tensor_name}")
    parts: Any = module.parametrizations[tensor_name]
    if not parts.is_tensor and not leave_parametrized:
        raise ValueError(
            "Cannot leave unparametrized (`leave_parametrized=False`) a tensor parametrized in terms of a sequence of tensors."
        )
    trained = any(isinstance(t, Parameter) for t in parts.originals)
    with no_grad():
        value = getattr(module, tensor_name).detach().clone()
        if parts.is_tensor:
            kept = parts.original
            if leave_parametrized:
                kept.data = value
        else:
            grad = any(t.requires_grad for t in parts.originals)
            kept = Parameter(value, requires_grad=grad) if trained else value
    base, names = type(module)._parametrized  # type: ignore[attr-defined]
    rest = tuple(n for n in names if n != tensor_name)
    module.__class__ = _class(base, rest)
    del module.parametrizations[tensor_name]
    if not rest:
        del module.parametrizations
    if trained:
        module.register_parameter(tensor_name, kept)
    else:
        module.register_buffer(tensor_name, kept)
    return module


def transfer_parametrizations_and_params(from_module: Module, to_module: Module, tensor_name: str | None = None) -> Module:
    """Give `to_module` the parametrizations of `from_module` (of one tensor or of all), and their originals' values."""
    if not is_parametrized(from_module):
        return to_module
    wanted = list(from_module.parametrizations) if tensor_name is None else [tensor_name]
    for name in wanted:
        if not hasattr(to_module, name):
            setattr(to_module, name, Parameter(getattr(from_module, name).detach().clone()))
        source: Any = from_module.parametrizations[name]
        for parametrization in source:
            register_parametrization(to_module, name, parametrization)
        with no_grad():
            for new, old in zip(to_module.parametrizations[name].originals, source.originals, strict=True):
                new.copy_(old)
    return to_module
