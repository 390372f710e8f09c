"""Named parts of a module: a dict whose entries are also attributes of the instance that it belongs to."""

from __future__ import annotations

from typing import Any

from flame.changes import changes

REGISTRIES = ("_parameters", "_buffers", "_modules")


class Registry(dict):
    """A dict that keeps its entries in its owner's `__dict__` too.

    Reading `module.weight` then needs no `__getattr__`, which costs 0.5 us and more where it stands behind a failed look-up; a
    small compiled model reads more attributes than it runs operations.
    """

    __slots__ = ("_owner", "chain")

    def __init__(self, owner: dict[str, Any], entries: Any = ()) -> None:
        self._owner = owner
        self.chain: Any = (
            None  #: what is known of these modules, called one after the other (`flame.nn.modules.straight.Chain`)
        )
        self.update(entries)

    def _changes(self) -> None:
        changes.note()
        self.chain = None

    def __setitem__(self, name: str, value: Any) -> None:
        self._changes()
        dict.__setitem__(self, name, value)
        self._owner[name] = value

    def __delitem__(self, name: str) -> None:
        self._changes()
        dict.__delitem__(self, name)
        self._owner.pop(name, None)

    def update(self, *entries: Any, **more: Any) -> None:
        for name, value in dict(*entries, **more).items():
            self[name] = value

    def pop(self, name: str, *default: Any) -> Any:
        self._changes()
        if name in self:
            self._owner.pop(name, None)
        return dict.pop(self, name, *default)

    def popitem(self) -> tuple[str, Any]:
        self._changes()
        name, value = dict.popitem(self)
        self._owner.pop(name, None)
        return name, value

    def setdefault(self, name: str, default: Any = None) -> Any:
        if name not in self:
            self[name] = default
        return self[name]

    def clear(self) -> None:
        self._changes()
        for name in self:
            self._owner.pop(name, None)
        dict.clear(self)

    def __ior__(self, other: Any) -> Registry:  # type: ignore[override, misc]
        self.update(other)
        return self

    def __reduce__(self) -> tuple:
        return (dict, (dict(self),))
