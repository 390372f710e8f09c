"""The disk cache: what was stored comes back exactly or not at all, whatever happens to the disk."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flame.knobs import Knobs, knobs
from flame.runtime import cache
from flame.runtime.cache import DiskCache, key

POSIX = pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
NAME = key("something")
PAYLOAD = bytes(range(256)) * 40


def entry_file(store: DiskCache, name: str = NAME) -> Path:
    return store.folder / name[:2] / name[2:]


@pytest.fixture
def store(tmp_path: Path) -> DiskCache:
    made = DiskCache(tmp_path / "cache")
    made.put(NAME, PAYLOAD)
    assert not made.disabled
    return made


def test_a_payload_comes_back(store: DiskCache) -> None:
    assert store.get(NAME) == PAYLOAD
    assert DiskCache(store.folder.parent).get(NAME) == PAYLOAD
    assert store.get(key("another")) is None
    assert (store.hits, store.misses) == (1, 1)


def test_whether_an_entry_is_there_is_told_without_reading_it(store: DiskCache) -> None:
    assert store.holds(NAME) and not store.holds(key("another"))
    assert (store.hits, store.misses) == (0, 0)
    assert not DiskCache(None).holds(NAME)
    assert not DiskCache(store.folder.parent / "nowhere").holds(NAME)


def test_an_empty_payload_is_a_payload(store: DiskCache) -> None:
    store.put(key("empty"), b"")
    assert store.get(key("empty")) == b""


def test_a_later_entry_replaces_an_earlier_one(store: DiskCache) -> None:
    store.put(NAME, b"new")
    assert store.get(NAME) == b"new"


def test_keys_tell_parts_apart() -> None:
    assert len({key("ab", "c"), key("a", "bc"), key("abc"), key("abc", ""), key(b"abc", b"", b"")}) == 5
    assert key("x", b"y") == key(b"x", "y")


@pytest.mark.parametrize("cut", [0, 1, 13, 14, 40, 77, 78, 79, 100, len(PAYLOAD) + 77])
def test_a_truncated_entry_is_ignored_and_removed(store: DiskCache, cut: int) -> None:
    path = entry_file(store)
    path.write_bytes(path.read_bytes()[:cut])
    assert store.get(NAME) is None
    assert not path.exists()
    store.put(NAME, PAYLOAD)
    assert store.get(NAME) == PAYLOAD


def test_no_flipped_bit_goes_unseen(store: DiskCache) -> None:
    path = entry_file(store)
    good = path.read_bytes()
    for at in [*range(0, 96), *range(96, len(good), 997), len(good) - 1]:
        data = bytearray(good)
        data[at] ^= 1 << at % 8
        path.write_bytes(data)
        assert store.get(NAME) is None, f"byte {at}"
    path.write_bytes(good + b"\0")
    assert store.get(NAME) is None
    path.write_bytes(good)
    assert store.get(NAME) == PAYLOAD


def test_an_entry_under_another_name_is_not_taken(store: DiskCache) -> None:
    other = key("other")
    target = entry_file(store, other)
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(entry_file(store).read_bytes())
    assert store.get(other) is None


@POSIX
def test_the_folder_and_its_entries_are_private(store: DiskCache) -> None:
    assert stat.S_IMODE(os.stat(store.folder).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(entry_file(store)).st_mode) == 0o600


@POSIX
@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_an_entry_that_others_can_write_is_not_trusted(store: DiskCache, mode: int) -> None:
    entry_file(store).chmod(mode)
    assert store.get(NAME) is None


@POSIX
@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777])
def test_a_folder_that_others_can_write_is_not_used(store: DiskCache, mode: int) -> None:
    store.folder.chmod(mode)
    fresh = DiskCache(store.folder.parent)
    assert fresh.get(NAME) is None
    fresh.put(key("x"), b"x")
    assert "only this user" in fresh.disabled
    assert not entry_file(fresh, key("x")).exists()


@POSIX
def test_what_belongs_to_somebody_else_is_not_trusted(store: DiskCache, monkeypatch: pytest.MonkeyPatch) -> None:
    somebody = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: somebody)
    assert store.get(NAME) is None  # the folder was checked before; the entry is checked each time
    fresh = DiskCache(store.folder.parent)
    assert fresh.get(NAME) is None
    assert "only this user" in fresh.disabled


@POSIX
def test_links_and_pipes_are_not_followed(store: DiskCache, tmp_path: Path) -> None:
    path = entry_file(store)
    moved = tmp_path / "elsewhere"
    path.rename(moved)
    path.symlink_to(moved)
    assert store.get(NAME) is None
    path.unlink()
    os.mkfifo(path, 0o600)
    assert store.get(NAME) is None
    folder = tmp_path / "linked"
    folder.mkdir()
    (folder / "compiled").symlink_to(store.folder)
    assert DiskCache(folder).get(NAME) is None


def test_a_full_disk_ends_writing_and_nothing_else(store: DiskCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*a: object, **k: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as m:
        m.setattr(os, "replace", full)
        store.put(key("x"), b"x")
    assert "No space left" in store.disabled
    assert not list(store.folder.rglob(".new-*")), "the temporary file was left"
    store.put(key("y"), b"y")
    assert store.get(key("y")) is None
    assert DiskCache(store.folder.parent).get(NAME) == PAYLOAD


def test_a_read_error_is_a_miss(store: DiskCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*a: object, **k: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as m:
        m.setattr(os, "fstat", broken)
        assert store.get(NAME) is None
    assert store.get(NAME) == PAYLOAD


def test_a_folder_that_cannot_be_made_disables_the_cache(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    store = DiskCache(tmp_path / "file" / "below")
    assert store.get(NAME) is None
    store.put(NAME, PAYLOAD)
    assert store.disabled
    assert store.get(NAME) is None
    assert not capsys.readouterr().err


def test_no_folder_is_no_cache() -> None:
    store = DiskCache(None)
    store.put(NAME, PAYLOAD)
    assert store.get(NAME) is None
    assert store.disabled


@pytest.mark.skipif(sys.platform != "linux", reason="other platforms have other folders")
def test_the_knobs_say_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FLAME_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Knobs().cache_dir == str(tmp_path / "flame")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert Knobs().cache_dir == ""
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert Knobs().cache_dir == str(tmp_path / "home" / ".cache" / "flame")
    monkeypatch.setenv("FLAME_CACHE_DIR", str(tmp_path / "mine"))
    assert Knobs().cache_dir == str(tmp_path / "mine")
    for folder, kept, disabled in ((str(tmp_path / "mine"), True, False), ("", True, True), (str(tmp_path), False, True)):
        monkeypatch.setattr(cache, "_shared", None)
        monkeypatch.setattr(knobs, "cache_dir", folder)
        monkeypatch.setattr(knobs, "cache", kept)
        assert bool(cache.shared().disabled) == disabled


def test_the_folder_stays_within_its_limit_and_keeps_what_was_used_last(tmp_path: Path) -> None:
    store = DiskCache(tmp_path, limit=100_000)
    names = [key(str(i)) for i in range(40)]
    for i, name in enumerate(names):
        store.put(name, bytes(10_000))
        if entry_file(store, name).exists():
            os.utime(entry_file(store, name), (1_000_000 + i, 1_000_000 + i))
        assert store.get(names[0]) is not None, f"the entry in use went when entry {i} came"  # reading makes it recent
    total = sum(p.stat().st_size for p in store.folder.rglob("*") if p.is_file())
    assert 20_000 < total <= 100_000
    assert store.get(names[-1]) is not None
    assert store.get(names[1]) is None
    assert not store.disabled


def test_what_is_larger_than_the_limit_is_not_stored(tmp_path: Path) -> None:
    store = DiskCache(tmp_path, limit=1000)
    store.put(NAME, bytes(2000))
    assert store.get(NAME) is None
    assert not store.disabled


def test_what_dead_processes_left_is_removed(tmp_path: Path) -> None:
    store = DiskCache(tmp_path)
    store.put(NAME, PAYLOAD)
    old, young = (entry_file(store).parent / f".new-{n}" for n in ("old", "young"))
    for p in (old, young):
        p.write_bytes(b"half")
    os.utime(old, (time.time() - 1e5,) * 2)
    fresh = DiskCache(tmp_path)
    fresh.put(key("x"), b"x")
    assert not old.exists()
    assert young.exists()


def test_what_others_are_writing_is_not_removed_to_make_room(tmp_path: Path) -> None:
    store = DiskCache(tmp_path, limit=1000)
    store.put(NAME, b"x" * 100)
    theirs = entry_file(store).parent / ".new-theirs"
    theirs.write_bytes(b"half")
    os.utime(theirs, (time.time() - 60,) * 2)  # older than all entries
    for i in range(40):
        store.put(key(str(i)), b"y" * 200)
    assert theirs.exists() and not store.disabled
    assert store.get(NAME) is None, "nothing was removed at all"


def test_processes_share_a_folder_while_it_is_being_cleared(tmp_path: Path) -> None:
    """Three writers with a small limit: all the time entries appear, are read, and are removed by others."""
    script = """
import sys
from pathlib import Path
from flame.runtime.cache import DiskCache, key
store = DiskCache(Path(sys.argv[1]), limit=60_000)
seed = int(sys.argv[2])
for i in range(120):
    n = (i * 7 + seed) % 30
    want = key("payload", str(n)).encode() * 50
    got = store.get(key(str(n)))
    assert got is None or got == want, n
    store.put(key(str(n)), want)
    assert not store.disabled, store.disabled
print("done", store.hits)
"""
    run = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path), str(i)], stdout=-1, stderr=-1) for i in range(3)]
    for p in run:
        out, err = p.communicate(timeout=60)
        assert p.returncode == 0 and out.startswith(b"done"), err.decode()
    assert not list(tmp_path.rglob(".new-*"))
