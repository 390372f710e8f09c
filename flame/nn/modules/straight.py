"""Modules whose `forward` is one function, or such modules one after the other: followed as one call (see `Module.__call__`)."""

from __future__ import annotations

from typing import Any, Final

from flame.capture import native
from flame.capture.run import Run
from flame.changes import changes
from flame.nn.modules.registry import Registry
from flame.precision import casting
from flame.primitive import placement
from flame.tensor import Tensor

#: a call that is not followed as a whole
MISSED: Final = object()
#: no arguments by name; nobody writes to it
_NOTHING: dict[str, Any] = {}


class Straight:
    """That `forward(input)` of a class is `public(input, *attributes)` and no more, where `public` is a composite: while somebody
    follows what runs, the call of a module is then the call of that function, with no Python in between."""

    __slots__ = ("forward", "function", "home", "key", "name", "names", "public")

    def __init__(self, forward: Any, public: Any, names: tuple[str, ...], home: Any) -> None:
        itself, self.function, self.name = public.composite
        if itself is not public:
            raise TypeError(f"{public.__name__} is more than its composite")
        self.forward, self.public, self.names = forward, public, names
        self.home, self.key = vars(home), public.__name__  #: where forward finds the function

    def arguments(self, forward: Any, x: Any, d: dict) -> list | None:
        """What the function is called with for an instance with the `__dict__` d; None where something was put in the place of
        any of this, or functions are called in another way just now."""
        if forward is not self.forward or "forward" in d or casting.threads or placement.gpu or not isinstance(x, Tensor):
            return None
        if self.home[self.key] is not self.public:
            return None
        given: list = [x]
        try:
            for name in self.names:
                given.append(d[name])
        except KeyError:
            return None
        return given

    def follow(self, run: Run, forward: Any, x: Any, d: dict) -> Any:
        """The result of the call; MISSED where it is to be made step by step."""
        given = self.arguments(forward, x, d)
        return MISSED if given is None else run.composite(self.function, self.name, given, _NOTHING)


class Chained:
    """Several functions one after the other, as one: `f(x, *all their further arguments)`. There is one for each list of them, so
    that what capture knows of a call of it depends on its arguments alone."""

    __slots__ = ("parts",)

    def __init__(self, parts: tuple[tuple[Any, int], ...]) -> None:
        self.parts = parts  #: functions, and how many arguments each takes besides the first

    def __call__(self, x: Any, *given: Any) -> Any:
        at = 0
        for public, n in self.parts:
            x = public(x, *given[at : at + n])
            at += n
        return x


_chained: Final[dict[tuple, Chained]] = {}


class Links:
    """What the modules of one container were when they were looked at."""

    __slots__ = ("calls", "dicts", "flags", "function", "homes", "modules", "places", "token")

    def __init__(self) -> None:
        self.token: Any = None  #: of the moment when they were looked at last
        self.function: Chained | None = None  #: None: they are no chain
        self.modules: list[tuple] = []  #: module, class
        self.dicts: list[dict] = []  #: theirs
        self.calls: list[tuple] = []  #: class, its `forward`, its `__call__`
        self.homes: list[tuple] = []  #: namespace, name, the function there
        self.places: list[tuple] = []  #: of the further arguments: `__dict__`, name
        self.flags: list[tuple] = []  #: attributes, likewise, that make a module write or draw random numbers


class Chain:
    """That `forward(input)` of a class calls its `_modules` one after the other. While all of these are straight, the call of
    such a module is one call of what they come to. Attributes whose changes are noted are looked at after changes alone; what
    nobody notes changes of, at every call."""

    __slots__ = ("base", "forward")

    def __init__(self, base: Any, forward: Any) -> None:
        self.base, self.forward = base, forward  #: `base.__call__` is how modules are called

    def follow(self, run: Run, forward: Any, x: Any, d: dict) -> Any:
        """The result of the call; MISSED where it is to be made step by step."""
        if forward is not self.forward or "forward" in d or casting.threads or placement.gpu or not isinstance(x, Tensor):
            return MISSED
        modules: Any = d["_modules"]
        if type(modules) is not Registry:
            return MISSED
        links: Links = modules.chain
        token = changes.now
        if links is None or (links.token is not token and not self._same_modules(links, token)):
            links = self.linked(modules)
        if links.function is None:
            return MISSED
        given = self.arguments(links, x)
        return MISSED if given is None else run.composite(links.function, "", given, _NOTHING)

    def _same_modules(self, links: Links, token: Any) -> bool:
        """Whether the modules are what they were, called without hooks as before."""
        if links.function is None:
            return False
        for m, _ in links.modules:
            if not m._plain:
                return False
        for d, name in links.flags:
            if d[name]:
                return False
        links.token = token
        return True

    def arguments(self, links: Links, x: Any) -> list | None:
        """What the modules' functions are called with; None where something was put in the place of any of this."""
        given: list = [x]
        for cls, forward, call in links.calls:
            if cls.forward is not forward or cls.__call__ is not call:
                return None
        for m, cls in links.modules:
            if type(m) is not cls:
                return None
        try:
            for home, name, public in links.homes:
                if home[name] is not public:
                    return None
            for d in links.dicts:
                if "forward" in d:
                    return None
            for d, name in links.places:
                given.append(d[name])
        except KeyError:
            return None
        return given

    def linked(self, modules: Any) -> Links:
        """Look at the modules, and remember what they are."""
        links = Links()
        links.token = changes.now
        parts: list[tuple[Any, int]] = []
        if all(self._link(links, parts, m) for m in modules.values()) and len(parts) > 1:
            links.function = _chained.setdefault(tuple(parts), Chained(tuple(parts)))
        else:
            links.modules, links.dicts, links.places, links.flags = [], [], [], []
        modules.chain = links
        return links

    def _link(self, links: Links, parts: list, m: Any) -> bool:
        """Take a module in; whether it is straight, and does nothing but compute its result."""
        straight, cls = getattr(m, "_straight", None), type(m)
        if type(straight) is not Straight or not m._plain or cls.__call__ is not self.base.__call__:
            return False
        d = vars(m)
        if cls.forward is not straight.forward or not d.keys() >= set(straight.names):
            return False
        flags = [(d, name) for name in ("training", "inplace") if name in straight.names]
        if any(d[name] for d, name in flags):
            return False
        call = (cls, straight.forward, cls.__call__)
        if call not in links.calls:
            links.calls.append(call)
            links.homes.append((straight.home, straight.key, straight.public))
        links.modules.append((m, cls))
        links.dicts.append(d)
        links.places += [(d, name) for name in straight.names]
        links.flags += flags
        parts.append((straight.public, len(straight.names)))
        return True


native.also(Straight, "arguments follow")
native.also(Chain, "follow _same_modules arguments", (Links,))
