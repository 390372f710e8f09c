"""Whether any module or tensor was changed other than in its values: one token for the whole process.

    changes.now       an object; another one after every change
    changes.note()    said by whoever changes an attribute, a parameter, a buffer, a mode or a hook of a module, or what a tensor
                      is (its memory, whether it requires a gradient, its hooks)

Who checked something that such changes could spoil keeps the token of that moment; while `changes.now` is still that object, the
check still holds. Tokens are objects and not counts, so that two threads can't note two changes as one.
"""

from __future__ import annotations


class Changes:
    """The token in force."""

    __slots__ = ("now",)

    def __init__(self) -> None:
        self.now = object()

    def note(self) -> None:
        self.now = object()


changes = Changes()


class Noted:
    """Base of what notes the changes of its attributes."""
