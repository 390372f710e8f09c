"""The safetensors format: a table of named arrays, written atomically and read with nothing taken on trust.

    file   ::= length of header (8 bytes, little endian), header (JSON), data
    header ::= {name: {"dtype": .., "shape": [..], "data_offsets": [begin, end]}, .., "__metadata__": {string: string}}

The data is one array after the other, without holes. flame adds two entries of metadata: SHA-256 of each array's bytes, and of the
header itself. Files without them (from other programs) are read too. The safetensors library is not used for this, because its
NumPy part knows no bfloat16 and keeps a second copy of what it writes; the tests hold both to each other.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap as memory_map
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flame import dtypes

_NAMES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "F32": "float32", "F64": "float64", "C64": "complex64", "C128": "complex128",
}  # fmt: skip
_SPELLED = {name: short for short, name in _NAMES.items()}
CHECKSUMS, DIGEST = "flame.checksums", "flame.digest"
MOST_HEADER = 100_000_000  #: bytes; the limit that the safetensors library has


class FileFormatError(RuntimeError):
    """A file is not what it should be: damaged, cut off, or made to harm. The message says where."""


@dataclass(frozen=True)
class Entry:
    """Where one array stands: `begin` and `end` count from the start of the data."""

    dtype: Any
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    entries: dict[str, Entry]
    metadata: dict[str, str]
    start: int  #: the data's place in the file
    checksums: dict[str, str]  #: of arrays, where the file has them


# -------------------------------------------------------------------- writing


def _canonical(header: Mapping[str, Any]) -> bytes:
    return json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def _digest(header: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(header)).hexdigest()


def _bytes(a: np.ndarray) -> memoryview:
    """An array's bytes in row-major order, without a copy where it lies so."""
    flat: Any = np.ascontiguousarray(a).reshape(-1).view(np.uint8)
    return memoryview(flat) if a.size else memoryview(b"")


def write(file: Any, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write a whole file to something that has `write`. The widest dtypes come first, so that every array is aligned."""
    order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    header: dict[str, Any] = {}
    sums, at = {}, 0
    for name in order:
        a = arrays[name]
        data = _bytes(a)
        sums[name] = hashlib.sha256(data).hexdigest()
        short = _SPELLED[dtypes.from_numpy_dtype(a.dtype).name]
        header[name] = {"dtype": short, "shape": list(a.shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
    header["__metadata__"] = {**metadata, CHECKSUMS: json.dumps(sums, sort_keys=True)}
    header["__metadata__"][DIGEST] = _digest(header)
    text = _canonical(header)
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)
    for name in order:
        file.write(_bytes(arrays[name]))


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Any]:
    """A new file that takes the place of `path` at once when all is written, and of nothing if anything fails."""
    target = Path(path)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~mask)
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise
    if hasattr(os, "O_DIRECTORY"):  # the new name is on the disk as well
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


# -------------------------------------------------------------------- reading


class Source:
    """The bytes of a file, or of something that has `read`; `name` is for messages."""

    def __init__(self, f: Any) -> None:
        self.path: Path | None = None
        if isinstance(f, str | os.PathLike):
            self.path = Path(f)
            self.name = str(f)
            self._file: Any = open(f, "rb")
            self.size = os.fstat(self._file.fileno()).st_size
            self._data = memoryview(b"")
        elif hasattr(f, "read"):
            self.name, self._file = str(getattr(f, "name", type(f).__name__)), None
            self._data = memoryview(f.read())
            self.size = len(self._data)
        else:
            raise TypeError(f"expected a path or a file opened for reading in binary mode, got {type(f).__name__}")

    def read(self, begin: int, end: int) -> bytes:
        if self._file is None:
            return bytes(self._data[begin:end])
        self._file.seek(begin)
        return self._file.read(end - begin)

    def fill(self, begin: int, into: memoryview) -> None:
        """Read as many bytes as `into` holds. Raises FileFormatError where there are fewer."""
        if self._file is None:
            got = self._data[begin : begin + len(into)]
            into[: len(got)] = got
            n = len(got)
        else:
            self._file.seek(begin)
            n = self._file.readinto(into)
        if n != len(into):
            raise FileFormatError(f"{self.name}: the file ends after {begin + n} of {begin + len(into)} bytes")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def parsed(text: bytes | str, name: str, what: str) -> Any:
    """JSON in which no key comes twice. Raises FileFormatError for anything else."""

    def once(pairs: list[tuple[str, Any]]) -> dict:
        got = dict(pairs)
        if len(got) != len(pairs):
            raise ValueError("a name comes twice")
        return got

    try:
        return json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as e:
        raise FileFormatError(f"{name}: {what} is damaged: {e}") from None


def _is_count(x: Any) -> bool:
    return type(x) is int and 0 <= x < 1 << 62


def _entry(name: str, key: str, e: Any) -> Entry:
    """One entry of the header, if it agrees with itself."""
    if not isinstance(e, dict) or set(e) != {"dtype", "shape", "data_offsets"}:
        raise FileFormatError(f"{name}: the entry of {key!r} is damaged")
    kind, shape, offsets = e["dtype"], e["shape"], e["data_offsets"]
    if not (isinstance(shape, list) and all(map(_is_count, shape)) and len(shape) <= 64):
        raise FileFormatError(f"{name}: the shape of {key!r} is damaged: {shape!r}")
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(map(_is_count, offsets)) and offsets[0] <= offsets[1]):
        raise FileFormatError(f"{name}: the place of {key!r} is damaged: {offsets!r}")
    d = dtypes.BY_NAME.get(_NAMES.get(kind, "")) if isinstance(kind, str) else None
    if d is None:
        raise FileFormatError(f"{name}: {key!r} is of dtype {kind!r}, which flame does not have")
    if math.prod(shape) * d.itemsize != offsets[1] - offsets[0]:
        raise FileFormatError(
            f"{name}: {key!r} of shape {shape} and dtype {kind} should take {math.prod(shape) * d.itemsize} bytes, but has "
            f"{offsets[1] - offsets[0]}"
        )
    return Entry(d, tuple(shape), *offsets)


def read_header(source: Source) -> Header:
    """The table of a file, checked: every array lies inside of the file, behind the one before it, and nothing is left over.

    Raises FileFormatError.
    """
    name = source.name
    if source.size < 8:
        raise FileFormatError(f"{name}: {source.size} bytes are too few for a safetensors file")
    length = int.from_bytes(source.read(0, 8), "little")
    if length > min(source.size - 8, MOST_HEADER):
        raise FileFormatError(f"{name}: not a safetensors file, or cut off: a header of {length} bytes in {source.size - 8}")
    table = parsed(source.read(8, 8 + length), name, "the header")
    if not isinstance(table, dict):
        raise FileFormatError(f"{name}: the header is damaged: not a table")
    metadata = table.pop("__metadata__", {})
    if not (isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())):
        raise FileFormatError(f"{name}: the header's metadata is damaged")
    entries = {key: _entry(name, key, e) for key, e in table.items()}
    at = 0
    for key, e in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if e.begin != at:
            raise FileFormatError(f"{name}: {key!r} begins at byte {e.begin} of the data, where {at} was expected")
        at = e.end
    if 8 + length + at != source.size:
        raise FileFormatError(f"{name}: the file has {source.size} bytes, but its header describes {8 + length + at}")
    checksums: dict[str, str] = {}
    if DIGEST in metadata:
        rest = {k: v for k, v in metadata.items() if k != DIGEST}
        if _digest({**table, "__metadata__": rest}) != metadata[DIGEST]:
            raise FileFormatError(f"{name}: the header does not agree with its checksum: the file is damaged")
        checksums = parsed(metadata.get(CHECKSUMS, ""), name, "the table of checksums")
        if not isinstance(checksums, dict) or set(checksums) != set(entries):
            raise FileFormatError(f"{name}: the table of checksums is damaged")
    return Header(entries, metadata, 8 + length, checksums)


def _checked(a: np.ndarray, key: str, header: Header, name: str, verify: bool) -> np.ndarray:
    if a.dtype == np.bool_ and a.size and int(a.reshape(-1).view(np.uint8).max()) > 1:
        raise FileFormatError(f"{name}: {key!r} holds bytes that are no booleans")
    if verify and key in header.checksums and hashlib.sha256(_bytes(a)).hexdigest() != header.checksums[key]:
        raise FileFormatError(f"{name}: {key!r} does not agree with its checksum: the file is damaged")
    return a


def read_array(source: Source, header: Header, key: str, verify: bool = True) -> np.ndarray:
    """One array, in memory of its own."""
    e = header.entries[key]
    a = np.empty(e.shape, e.dtype.numpy)
    if a.size:
        source.fill(header.start + e.begin, _bytes(a))
    return _checked(a, key, header, source.name, verify)


def map_arrays(source: Source, header: Header, verify: bool = False) -> dict[str, np.ndarray]:
    """All arrays over the file itself, read when they are used; what is written to them stays in this process.

    Those that are not aligned for their dtype are copied.
    """
    if source.path is None:
        raise ValueError("mmap=True needs the path of a file")
    with open(source.path, "rb") as file:
        whole = np.frombuffer(memory_map.mmap(file.fileno(), 0, access=memory_map.ACCESS_COPY), np.uint8)
    out = {}
    for key, e in header.entries.items():
        a = whole[header.start + e.begin : header.start + e.end]
        a = a.copy() if (header.start + e.begin) % e.dtype.itemsize else a
        out[key] = _checked(a.view(e.dtype.numpy).reshape(e.shape), key, header, source.name, verify)
    return out
