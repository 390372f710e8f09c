"""`flame.save` and `flame.load`: any nesting of plain containers with tensors in it, as one safetensors file."""

from __future__ import annotations

import json
import os
from typing import Any

from flame.serialization.format import FileFormatError, Source, map_arrays, parsed, read_array, read_header, replacing, write
from flame.serialization.places import mover
from flame.serialization.structure import Decoder, Encoder

STRUCTURE, VERSION = "flame.structure", "flame.version"


def save(obj: Any, f: str | os.PathLike | Any, **refused: Any) -> None:
    """Write `obj` to the path `f` (whole or not at all), or to a file opened in binary mode.

    `obj` is made of tensors, parameters, NumPy arrays, numbers, strings, bytes, None, dtypes, devices, and dicts, lists, tuples,
    sets of these: state_dicts of modules, optimizers and schedulers, random states, and what surrounds them. The file is a
    safetensors file: its tensors can be read by other programs, under the dotted path that leads to them.

    Raises TypeError for an object that is none of these (save a module's `state_dict()`), ValueError for a container that holds
    itself, OSError where the file can't be written.
    """
    if refused:
        raise TypeError(f"save() got {sorted(refused)}: files are safetensors files, and there is no pickling to choose from")
    encoder = Encoder()
    structure = json.dumps(encoder.node(obj), separators=(",", ":"), allow_nan=False)
    metadata = {"format": "flame", VERSION: "1", STRUCTURE: structure}
    if isinstance(f, str | os.PathLike):
        with replacing(f) as file:
            write(file, encoder.arrays, metadata)
    elif hasattr(f, "write"):
        write(f, encoder.arrays, metadata)
    else:
        raise TypeError(f"save: expected a path or a file opened for writing in binary mode, got {type(f).__name__}")


def load(
    f: str | os.PathLike | Any, map_location: Any = None, *, weights_only: bool = True, mmap: bool | None = None,
    verify: bool | None = None, **refused: Any,
) -> Any:  # fmt: skip
    """What `save` wrote to the path or binary file `f`; of any other safetensors file, a dict of its tensors by name.

    Tensors come to the device that they were saved from, or where `map_location` says: a device for all, a dict from devices to
    devices, or a callable (`flame.serialization.places`). With `mmap` tensors stand over the file and are read when they are used;
    what is written to them stays in this process. Every tensor is held to its checksum (with `mmap` only if `verify` is True).
    `weights_only` changes nothing: nothing in a file is ever executed. Damaged or hostile files raise FileFormatError (a
    RuntimeError), and so do PyTorch's own files, which `flame.serialization.load_pytorch` reads.
    """
    if refused:
        raise TypeError(f"load() got {sorted(refused)}: files are safetensors files, and there is no pickling to choose from")
    move = mover(map_location)
    with Source(f) as source:
        try:
            header = read_header(source)
        except FileFormatError:
            if source.read(0, 4) not in (b"PK\x03\x04", b"\x80\x02\x8a\x0a"):
                raise
            raise FileFormatError(
                f"{source.name}: this looks like a file of PyTorch's, not a safetensors file: read it with "
                "flame.serialization.load_pytorch, which takes tensors and plain containers from it and executes nothing"
            ) from None
        if mmap:
            mapped = map_arrays(source, header, bool(verify)) if header.entries else {}
            array = mapped.__getitem__
        else:
            array = lambda name: read_array(source, header, name, verify is not False)
        decoder = Decoder(array, header.entries, source.name, move)
        if STRUCTURE not in header.metadata:
            return {name: decoder.tensor(name) for name in header.entries}
        if header.metadata.get(VERSION) != "1":
            raise FileFormatError(
                f"{source.name}: written in version {header.metadata.get(VERSION)!r} of the format; this version of flame reads 1"
            )
        return decoder.object(parsed(header.metadata[STRUCTURE], source.name, "the description of the contents"))
