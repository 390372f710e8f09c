"""Checkpoints of several files with an index, laid out as Hugging Face's: `model-00001-of-00003.safetensors`, `..index.json`.

    index ::= {"metadata": {"total_size": bytes}, "weight_map": {tensor name: file name}}

A checkpoint that fits into one file is `model.safetensors` without an index. Files are written before the index that names them,
and the index says which contents it means, so that a half-replaced checkpoint is not mistaken for a whole one.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flame.serialization.format import (
    DIGEST,
    FileFormatError,
    Source,
    map_arrays,
    parsed,
    read_array,
    read_header,
    replacing,
    write,
)
from flame.serialization.places import Mover, mover
from flame.serialization.structure import Decoder
from flame.tensor import Tensor

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
CONTENTS = "flame.contents"


def _bytes(size: int | str) -> int:
    """A number of bytes, or a text as "5GB" or "200 MiB"."""
    if isinstance(size, str):
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)", size.strip())
        if match is None or match[2].upper() not in _UNITS:
            raise ValueError(f"max_shard_size: expected a number of bytes or a text as '5GB', got {size!r}")
        size = int(float(match[1]) * _UNITS[match[2].upper()])
    if size <= 0:
        raise ValueError(f"max_shard_size: expected a positive size, got {size}")
    return size


def save_sharded(
    state_dict: Mapping[str, Tensor], folder: str | os.PathLike, *, max_shard_size: int | str = "5GB", name: str = "model"
) -> list[Path]:
    """Write tensors by name into `folder` (made if need be), in files of at most `max_shard_size` (or one tensor each).

    Returns the paths written. Files of an earlier checkpoint of the same `name` that are no part of this one are removed. Raises
    TypeError for anything but a flat dict of tensors.
    """
    most, place = _bytes(max_shard_size), Path(folder)
    if not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(f"save_sharded: expected a name of letters, digits, '-', '_' and '.', got {name!r}")
    shards: list[dict[str, Any]] = [{}]
    room, total = most, 0
    for key, t in state_dict.items():
        if not isinstance(key, str) or not isinstance(t, Tensor):
            raise TypeError(f"save_sharded: expected tensors by name, got {key!r}: {type(t).__name__}")
        a = t._read()
        if a.nbytes > room and shards[-1]:
            shards.append({})
            room = most
        shards[-1][key] = a
        room -= a.nbytes
        total += a.nbytes
    place.mkdir(parents=True, exist_ok=True)
    index = place / f"{name}.safetensors.index.json"
    metadata = {"format": "flame"}
    if len(shards) == 1:
        paths = [place / f"{name}.safetensors"]
        with replacing(paths[0]) as file:
            write(file, shards[0], metadata)
        index.unlink(missing_ok=True)
    else:
        names = [f"{name}-{k + 1:05}-of-{len(shards):05}.safetensors" for k in range(len(shards))]
        contents = {}
        for shard, file_name in zip(shards, names, strict=True):
            with replacing(place / file_name) as file:
                write(file, shard, metadata)
            with Source(place / file_name) as source:
                contents[file_name] = read_header(source).metadata[DIGEST]
        table = {
            "metadata": {"total_size": total, CONTENTS: contents},
            "weight_map": {key: file_name for shard, file_name in zip(shards, names, strict=True) for key in shard},
        }
        with replacing(index) as file:
            file.write(json.dumps(table, indent=2).encode())
        paths = [*(place / n for n in names), index]
    _tidy(place, name, {p.name for p in paths})
    return paths


def _tidy(place: Path, name: str, keep: set[str]) -> None:
    """Remove what an earlier checkpoint of this name left."""
    pattern = re.compile(re.escape(name) + r"(-\d{5}-of-\d{5})?\.safetensors")
    for path in place.iterdir():
        if pattern.fullmatch(path.name) and path.name not in keep:
            path.unlink()


def load_sharded(
    folder: str | os.PathLike, *, name: str = "model", map_location: Any = None, mmap: bool = False, verify: bool | None = None
) -> dict[str, Tensor]:
    """The tensors by name of a checkpoint that `save_sharded`, or Hugging Face's libraries, wrote into `folder`.

    `mmap` and `verify` are those of `flame.load`. Raises FileNotFoundError where there is no checkpoint, FileFormatError where
    files and index do not agree.
    """
    move = mover(map_location, "load_sharded")
    place = Path(folder)
    index, single = place / f"{name}.safetensors.index.json", place / f"{name}.safetensors"
    if not index.exists():
        if not single.exists():
            raise FileNotFoundError(f"load_sharded: neither {index.name} nor {single.name} is in {place}")
        return _tensors(single, None, None, mmap, verify, move)
    table = parsed(index.read_bytes(), str(index), "the index")
    where = table.get("weight_map") if isinstance(table, dict) else None
    if not isinstance(where, dict) or not all(isinstance(v, str) for v in where.values()):
        raise FileFormatError(f"{index}: the index is damaged: no table of files")
    meta = table.get("metadata")
    contents = meta.get(CONTENTS, {}) if isinstance(meta, dict) else {}
    found: dict[str, Tensor] = {}
    for file_name in sorted(set(where.values())):
        if file_name != os.path.basename(file_name) or file_name in (".", "..", "") or "\\" in file_name:
            raise FileFormatError(f"{index}: {file_name!r} does not name a file beside the index")
        expected = {key for key, v in where.items() if v == file_name}
        digest = contents.get(file_name) if isinstance(contents, dict) else None
        found.update(_tensors(place / file_name, expected, digest, mmap, verify, move))
    return {key: found[key] for key in where}


def _tensors(
    path: Path, expected: set[str] | None, digest: Any, mmap: bool, verify: bool | None, move: Mover
) -> dict[str, Tensor]:
    """The tensors of one file, which are those that the index expects."""
    if not path.exists():
        raise FileFormatError(f"{path}: the index names this file, but it is not there")
    with Source(path) as source:
        header = read_header(source)
        if expected is not None and set(header.entries) != expected:
            names = ", ".join(sorted(set(header.entries) ^ expected)[:5])
            raise FileFormatError(f"{path}: the file and the index disagree on {names}")
        if digest is not None and header.metadata.get(DIGEST) != digest:
            raise FileFormatError(f"{path}: this is not the file that the index was written for")
        if mmap and header.entries:
            array: Any = map_arrays(source, header, bool(verify)).__getitem__
        else:
            array = lambda key: read_array(source, header, key, verify is not False)
        decoder = Decoder(array, header.entries, str(path), move)
        return {key: decoder.tensor(key) for key in header.entries}
