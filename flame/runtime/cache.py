"""What was compiled once, kept on disk: a content-addressed store that can fail in any way without stopping a run.

    store ::= <folder>/<two digits>/<key>         entry ::= magic | key | SHA-256 of payload | payload
    key   ::= SHA-256 over everything that the payload was made from (`key`)

An entry proves when read that it is the one asked for and that no byte of it has changed; whatever fails that is ignored,
removed and made anew. Nothing is ever unpickled. The folder is the user's own (mode 0700), and folders or entries that
belong to somebody else, or that others could write, are not trusted: object code is executed. Entries appear at once
(temporary file, then rename), so that any number of processes may share a folder; the oldest unused go when it grows past
its limit. Every OSError is absorbed: on reading it is a miss, on writing the last write of this process (`disabled` says why).
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from flame.knobs import knobs
from flame.runtime.locks import Lock

_MAGIC: Final = b"flame-entry-1\n"
_HEADER: Final = len(_MAGIC) + 32 + 32
_LIMIT: Final = 512 << 20
_LARGEST_ENTRY: Final = 64 << 20
_STALE_SECONDS: Final = 3600.0  #: a temporary file this old was left by a process that died
_TOUCH_SECONDS: Final = 3600.0  #: how exact "least recently used" is: an entry read again within this time is not touched


def key(*parts: str | bytes) -> str:
    """The name of what is made from `parts`, which are told apart even where their concatenations agree."""
    h = hashlib.sha256()
    for p in parts:
        data = p.encode() if isinstance(p, str) else p
        h.update(len(data).to_bytes(8, "little"))
        h.update(data)
    return h.hexdigest()


class DiskCache:
    """The store in `folder` (None: no store). Holds at most about `limit` bytes."""

    def __init__(self, folder: Path | None, limit: int = _LIMIT):
        #: why nothing is read or written; empty where all is well
        self.disabled = "" if folder is not None else "there is no cache folder"
        self.folder = folder / "compiled" if folder is not None else Path()
        self.limit = limit
        self.hits = self.misses = 0
        self._room = -1  #: bytes that may be written before the folder is measured again; -1: not measured yet
        self._checked = False
        self._lock = Lock()

    def get(self, name: str) -> bytes | None:
        """The payload stored under a `key`, or None."""
        if not self._usable(create=False):
            self.misses += 1
            return None
        path = self._path(name)
        try:
            payload = self._read(path, name)
        except OSError:
            payload = None
        if payload is None:
            self.misses += 1
        else:
            self.hits += 1
        return payload

    def holds(self, name: str) -> bool:
        """Whether there is an entry under a `key`, without looking into it."""
        return self._usable(create=False) and os.path.exists(self._path(name))

    def put(self, name: str, payload: bytes) -> None:
        """Store `payload` under a `key`; of several writers of one key, any one's entry stays."""
        if len(payload) > min(self.limit, _LARGEST_ENTRY) or not self._usable(create=True):
            return
        path = self._path(name)
        try:
            self._make_room(len(payload) + _HEADER)
            path.parent.mkdir(mode=0o700, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=".new-", dir=path.parent)
            try:
                with os.fdopen(handle, "wb") as f:
                    f.write(_MAGIC + bytes.fromhex(name) + hashlib.sha256(payload).digest())
                    f.write(payload)
                os.replace(temporary, path)
            except BaseException:
                _remove(temporary)
                raise
        except OSError as error:
            self._disable(f"{path}: {error.strerror or error}")

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / name[2:]

    def _read(self, path: Path, name: str) -> bytes | None:
        # O_NONBLOCK: opening a FIFO that somebody put there must not hang
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(handle, "rb") as f:
            state = os.fstat(f.fileno())
            if not stat.S_ISREG(state.st_mode) or not _is_private(state) or state.st_size > _LARGEST_ENTRY + _HEADER:
                return None
            data = f.read()
        head, payload = data[:_HEADER], data[_HEADER:]
        if head != _MAGIC + bytes.fromhex(name) + hashlib.sha256(payload).digest():
            _remove(path)
            return None
        if time.time() - state.st_mtime > _TOUCH_SECONDS:
            os.utime(path)
        return payload

    def _usable(self, create: bool) -> bool:
        if self.disabled:
            return False
        if self._checked:
            return True
        try:
            if create:
                self.folder.parent.mkdir(parents=True, exist_ok=True)
                self.folder.mkdir(mode=0o700, exist_ok=True)
            state = os.lstat(self.folder)
        except FileNotFoundError as error:
            if create:
                self._disable(str(error))
            return False
        except OSError as error:
            self._disable(f"{self.folder}: {error.strerror or error}")
            return False
        if not stat.S_ISDIR(state.st_mode) or not _is_private(state):
            self._disable(f"{self.folder} is not a folder that only this user can write")
            return False
        self._checked = True
        return True

    def _disable(self, reason: str) -> None:
        self.disabled = reason
        if "cache" in knobs.log:
            print(f"flame: cache: nothing more is kept on disk: {reason}", file=sys.stderr)

    def _make_room(self, size: int) -> None:
        """Remove the entries unused for longest where the folder would grow past its limit."""
        with self._lock:
            if 0 <= size <= self._room:
                self._room -= size
                return
            found = []
            now = time.time()
            for folder in _listed(self.folder):
                for entry in _listed(folder.path) if folder.is_dir(follow_symlinks=False) else ():
                    try:
                        state = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue  # another process was faster
                    if entry.name.startswith(".new-"):  # of another process, which is about to rename it, or died
                        if now - state.st_mtime > _STALE_SECONDS:
                            _remove(entry.path)
                    else:
                        found.append((state.st_mtime, state.st_size, entry.path))
            total = sum(s for _, s, _ in found)
            if total + size > self.limit:
                for _, s, path in sorted(found):
                    _remove(path)
                    total -= s
                    if total + size <= self.limit * 3 // 4:
                        break
            # Other processes write too: look again after at most an eighth of the limit.
            self._room = max(0, min(self.limit - total - size, self.limit // 8))


def _is_private(state: os.stat_result) -> bool:
    """Owned by this user, and nobody else can write it. Windows keeps its own access lists on a user's folders."""
    return not hasattr(os, "geteuid") or (state.st_uid == os.geteuid() and not state.st_mode & 0o022)


def _listed(folder: Path | str) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        return []


def _remove(path: str | os.PathLike) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass


_shared: DiskCache | None = None


def shared() -> DiskCache:
    """The process's store, by the knobs `cache` and `cache_dir` when it was first asked for."""
    global _shared
    if _shared is None:
        _shared = DiskCache(Path(knobs.cache_dir) if knobs.cache and knobs.cache_dir else None)
    return _shared
