"""Sources and binaries of GPU kernels as bytes: for the disk, and for the pipes to processes that compile.

    binary ::= length of header (8 bytes) | header, JSON | assembly text | machine code
    source ::= JSON of all that compiling depends on (a source read back cannot be launched: it has no grid)

Nothing is ever unpickled.
"""

from __future__ import annotations

import json
from typing import Any, Final

from flame.compiler.to_triton import Grid, Parameter, TritonSource
from flame.dtypes import BITS, BY_NAME
from flame.runtime.triton_tools import Binary

_FIELDS: Final = (
    "entry",
    "arch",
    "shared",
    "threads",
    "registers",
    "stack",
    "spills",
    "scratch_pointers",
    "scratch",
    "scratch_align",
)
_PLAIN: Final = ("text", "entry", "constexprs", "warps", "stages", "fp_fusion", "wide", "descriptors")


def written(b: Binary) -> bytes:
    about: dict[str, Any] = {name: getattr(b, name) for name in _FIELDS}
    about["warnings"] = list(b.warnings)
    text = b.asm.encode()
    about["text"] = len(text)
    header = json.dumps(about).encode()
    return len(header).to_bytes(8, "little") + header + text + b.code


def read(payload: bytes) -> Binary | None:
    """The binary of an entry, or None where another version wrote something else."""
    try:
        size = int.from_bytes(payload[:8], "little")
        about = json.loads(payload[8 : 8 + size])
        end = 8 + size + about["text"]
        text = payload[8 + size : end].decode()
        return Binary(code=payload[end:], asm=text, warnings=tuple(about["warnings"]), **{n: about[n] for n in _FIELDS})
    except (ValueError, KeyError, TypeError):
        return None


def source_written(s: TritonSource) -> bytes:
    about: dict[str, Any] = {name: getattr(s, name) for name in _PLAIN}
    about["parameters"] = [(p.name, p.dtype.name, p.buffer, p.symbol) for p in s.parameters]
    return json.dumps(about).encode()


def source_read(payload: bytes) -> TritonSource:
    about = json.loads(payload)
    kinds = BY_NAME | {d.name: d for d in BITS}
    parameters = tuple(Parameter(name, kinds[d], buffer, symbol) for name, d, buffer, symbol in about["parameters"])
    return TritonSource(parameters=parameters, grid=Grid(()), counted=(), **{name: about[name] for name in _PLAIN})
