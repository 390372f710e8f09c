"""`device`: where a tensor lives, spelled and compared as in PyTorch.

    device ::= "cpu" | "cuda" [":" index]

A device is only a name: naming one asks nothing of the machine. Whoever is about to use one asks `flame.runtime.cuda.gpu` for it,
which raises MissingTargetError where the machine or the installation lacks what it needs.

As a context manager a device is the default one for a while: `with device("cuda"): model = Net()`.
"""

from __future__ import annotations

from typing import Final

TYPES: Final = ("cpu", "cuda")


class device:
    """`device("cpu")`, `device("cuda:1")`, `device("cuda", 1)`, `device(1)` (that is cuda:1) or `device(another device)`.

    `index` is None where none was given. Raises RuntimeError for an unknown type or a malformed string, as PyTorch does.
    """

    __slots__ = ("type", "index")
    type: str
    index: int | None

    def __init__(self, type: str | int | device, index: int | None = None):
        if isinstance(type, device):
            if index is not None:
                raise TypeError("device(): an index cannot be given beside a device")
            kind, index = type.type, type.index
        elif isinstance(type, bool) or not isinstance(type, str | int):
            raise TypeError(f"device(): argument 'type' must be str, int or device, not {type.__class__.__name__}")
        elif isinstance(type, int):
            if index is not None:
                raise TypeError("device(): an index cannot be given twice")
            kind, index = "cuda", type
        else:
            kind, colon, digits = type.partition(":")
            if colon:
                if not digits.isascii() or not digits.isdigit() or (len(digits) > 1 and digits[0] == "0"):
                    raise RuntimeError(f"Invalid device string: '{type}'")
                if index is not None:
                    raise RuntimeError(f"'type' must not include an index because index was passed explicitly: {type}")
                index = int(digits)
            if kind not in TYPES:
                raise RuntimeError(f"Expected one of {', '.join(TYPES)} device type at start of device string: {type}")
        if index is not None:
            if isinstance(index, bool) or not isinstance(index, int):
                raise TypeError(f"device(): argument 'index' must be int, not {index.__class__.__name__}")
            if index < 0:
                raise RuntimeError(f"Device index must not be negative, got {index}")
            if kind == "cpu" and index != 0:
                raise RuntimeError(f"CPU device index must be -1 or zero, got {index}")
        object.__setattr__(self, "type", kind)
        object.__setattr__(self, "index", index)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"attribute '{name}' of 'device' objects is not writable")

    __delattr__ = __setattr__  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, device) and self.type == other.type and self.index == other.index

    def __hash__(self) -> int:
        return hash((self.type, self.index))

    def __str__(self) -> str:
        return self.type if self.index is None else f"{self.type}:{self.index}"

    def __repr__(self) -> str:
        index = "" if self.index is None else f", index={self.index}"
        return f"device(type={self.type!r}{index})"

    def __reduce__(self) -> tuple:
        return (device, (self.type, self.index))

    def __enter__(self) -> device:
        _before.append(DEFAULT[0])
        DEFAULT[0] = CPU if self.type == "cpu" else self
        return self

    def __exit__(self, *error: object) -> None:
        DEFAULT[0] = _before.pop()


CPU: Final = device("cpu")
#: where tensors are made that no device is given for
DEFAULT: Final[list[device]] = [CPU]
_before: Final[list[device]] = []


def as_device(d: device | str | int | None) -> device:
    """What users may write for a device; None is the CPU."""
    if d is None:
        return CPU
    return d if isinstance(d, device) else device(d)
