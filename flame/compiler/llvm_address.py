"""Addresses of a kernel's loads and stores, and the integers that they are computed in."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from flame.compiler.index_math import Div, E, Mod, extreme, simplify
from flame.compiler.kernel import IndexOf, Kernel, Load, Store, flat

_addresses: WeakKeyDictionary[Kernel, dict[tuple, E]] = WeakKeyDictionary()


def address(kernel: Kernel, s: Load | Store) -> E:
    """The address of a load or store in elements, simplified; worked out once a kernel."""
    known = _addresses.setdefault(kernel, {})
    key = (s.buffer, s.index)
    if key not in known:
        known[key] = simplify(flat(kernel, s), kernel.bounds)
    return known[key]


def index_type(kernel: Kernel) -> str:
    """i32 where every index expression and everything inside it provably fits, else i64."""

    def fits(e: E) -> bool:
        ends = extreme(e, 1, kernel.bounds), extreme(e, -1, kernel.bounds)
        if any(x is None or x.const is None or abs(x.const) >= 1 << 31 for x in ends):
            return False
        inner = [x for m, _ in e.terms for a in m if isinstance(a, Div | Mod) for x in (a.numerator, a.divisor)]
        return all(fits(x) for x in inner)

    for s in kernel.statements:
        if isinstance(s, Load | Store):
            if not fits(address(kernel, s)) or not all(fits(c.expr) for c in s.mask):
                return "i64"
        elif isinstance(s, IndexOf) and not fits(s.expr):
            return "i64"
    return "i32"
