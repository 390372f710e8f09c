"""Saving and loading: what went in comes out, other programs read the same, and files that are damaged or hostile say so."""

from __future__ import annotations

import collections
import io
import json
import math
import os
import stat
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import flame
import flame.nn as nn
from flame import dtypes
from flame.serialization import FileFormatError, load_pytorch, load_sharded, safe_globals, save_sharded
from flame.serialization.pytorch_file import Machine


def same(a: Any, b: Any) -> None:
    """Equal in types, values, dtypes and gradient flags, NaN to NaN."""
    assert type(a) is type(b), (type(a), type(b))
    if isinstance(a, flame.Tensor):
        assert a.dtype is b.dtype and a.shape == b.shape and a.requires_grad == b.requires_grad
        assert a.detach().numpy().tobytes() == b.detach().numpy().tobytes()
    elif isinstance(a, np.ndarray | np.generic):
        assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for k in a:
            same(a[k], b[k])
    elif isinstance(a, list | tuple | collections.deque):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same(x, y)
    elif isinstance(a, float) and math.isnan(a):
        assert math.isnan(b)
    else:
        assert a == b


def everything() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    draw = lambda d, *shape: flame.tensor(rng.standard_normal(shape) * 3).to(d)
    return {
        "tensors": {d.name: draw(d, 3, 5) for d in dtypes.ALL},
        "shapes": [draw(flame.float32), draw(flame.bfloat16, 0, 3), draw(flame.float32, 2, 3, 4).mT, draw(flame.int64, 1)],
        "grad": draw(flame.float32, 2).requires_grad_(),
        "parameter": nn.Parameter(draw(flame.float32, 2)),
        "frozen": nn.Parameter(draw(flame.float32, 2), requires_grad=False),
        "buffer": nn.Buffer(draw(flame.float32, 2), persistent=False),
        "array": np.arange(6, dtype=np.int16).reshape(2, 3),
        "scalar": np.float64(2.5),
        "numbers": [0, -1, 2**70, 1.5, -0.0, math.inf, -math.inf, math.nan, 1e-320, 1 + 2j, True, None],
        "text": ["", "ä\n\0\ud800", b"\x00\xff", bytearray(b"x")],
        "containers": [(1, (2,)), {1, 2}, frozenset({3}), {}, [], (), {1: "a", (2, 3): None, None: 0, 1.5: 1}],
        "collections": [
            collections.OrderedDict(b=1, a=2), collections.Counter("abca"), collections.defaultdict(list, {1: [2]}),
            collections.deque([1, 2], 5),
        ],
        "ours": [flame.float16, flame.device("cpu"), flame.Size([2, 3]), range(1, 9, 2), slice(None, 3)],
    }  # fmt: skip


@pytest.mark.parametrize("way", ["path", "file", "mmap"])
def test_what_is_saved_is_loaded(way: str, tmp_path: Path) -> None:
    x = everything()
    if way == "file":
        f = io.BytesIO()
        flame.save(x, f)
        f.seek(0)
        same(flame.load(f), x)
    else:
        flame.save(x, tmp_path / "x.flame")
        got = flame.load(str(tmp_path / "x.flame"), mmap=way == "mmap")
        same(got, x)
        got["tensors"]["float32"].add_(1.0)  # over a file too, this is the process's own
        same(flame.load(tmp_path / "x.flame"), x)
    for top in (None, 3, flame.ones(2), []):
        flame.save(top, tmp_path / "y")
        same(flame.load(tmp_path / "y", mmap=way == "mmap"), top)


def test_training_goes_on_where_it_was_saved(tmp_path: Path) -> None:
    def made() -> tuple:
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 1))
        optimizer = flame.optim.Adam(model.parameters(), lr=0.1)
        return model, optimizer, flame.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4])

    def train(model: Any, optimizer: Any, schedule: Any, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = model(flame.randn(8, 3)).square().mean()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        return losses

    flame.manual_seed(4)
    one = made()
    train(*one, 3)
    state = {"parts": [p.state_dict() for p in one], "rng": flame.get_rng_state()}
    flame.save(state, tmp_path / "checkpoint")
    rest = train(*one, 4)
    two = made()
    state = flame.load(tmp_path / "checkpoint")
    for part, saved in zip(two, state["parts"], strict=True):
        part.load_state_dict(saved)
    flame.set_rng_state(state["rng"])
    assert train(*two, 4) == rest
    assert state["parts"][0]._metadata["1"]["version"] == one[0].state_dict()._metadata["1"]["version"]


def test_memory_that_is_shared_is_stored_once_and_shared_again(tmp_path: Path) -> None:
    t = flame.randn(1000)
    flame.save({"a": t, "b": t.detach(), "c": t[:500], "p": nn.Parameter(t)}, tmp_path / "x")
    assert os.path.getsize(tmp_path / "x") < 8000
    got = flame.load(tmp_path / "x")
    got["b"].zero_()
    assert not got["a"].any() and not got["p"].any() and got["c"].any()
    assert isinstance(got["p"], nn.Parameter) and got["a"]._version == got["b"]._version


@pytest.mark.parametrize("way", ["ours by the library", "the library's by us"])
def test_other_programs_read_the_same(way: str, tmp_path: Path) -> None:
    arrays = {
        "b.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a": np.array([True, False]),
        "z": np.zeros((0, 2), np.int8),
    }
    if way.startswith("ours"):
        flame.save({k: flame.tensor(v) for k, v in arrays.items()}, tmp_path / "x")
        got = safetensors.numpy.load_file(tmp_path / "x")
    else:
        safetensors.numpy.save_file(arrays, tmp_path / "x")
        got = {k: v.numpy() for k, v in flame.load(tmp_path / "x").items()}
    assert set(got) == set(arrays)
    for k, v in arrays.items():
        same(np.asarray(got[k]), v)


@pytest.mark.oracle
def test_pytorch_reads_bfloat16_of_ours(torch: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    x = flame.randn(3, 4).bfloat16()
    flame.save({"nested": [x, {"k": x[0]}]}, tmp_path / "x")
    got = load_file(tmp_path / "x")
    assert set(got) == {"nested.0", "nested.1.k"}
    assert got["nested.0"].view(torch.uint16).numpy().tobytes() == x.numpy().tobytes()


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    flame.save([1], path)
    assert not stat.S_IMODE(path.stat().st_mode) & 0o111
    path.chmod(0o640)
    with pytest.raises(TypeError, match="can't save an object of class"):
        flame.save([flame.ones(3), object()], path)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as m:
        m.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            flame.save([2], path)
    assert flame.load(path) == [1] and os.listdir(tmp_path) == ["x"]
    flame.save([3], path)
    assert flame.load(path) == [3] and stat.S_IMODE(path.stat().st_mode) == 0o640
    with pytest.raises(FileNotFoundError):
        flame.save(1, tmp_path / "missing" / "x")


class Point:
    def __init__(self, x: Any) -> None:
        self.x = x


def test_objects_are_refused_unless_their_class_is_declared_safe(tmp_path: Path) -> None:
    for x, words in (
        (nn.Linear(2, 2), "state_dict"),
        (Point(1), "add_safe_globals"),
        (flame.save, "function"),
        (np.array("a"), "<U1"),
    ):
        with pytest.raises(TypeError, match=words):
            flame.save({"k": [x]}, tmp_path / "x")
    with safe_globals([Point]):
        flame.save({"k": Point(flame.ones(2))}, tmp_path / "x")
        assert flame.load(tmp_path / "x")["k"].x.tolist() == [1.0, 1.0]
    with pytest.raises(FileFormatError, match="Point"):
        flame.load(tmp_path / "x")
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(ValueError, match="contains itself"):
        flame.save(loop, tmp_path / "y")
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match="too deeply"):
        flame.save(deep, tmp_path / "y")


def test_arguments_that_can_not_be_met_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="pickle_protocol"):
        flame.save(1, tmp_path / "x", pickle_protocol=2)
    with pytest.raises(TypeError, match="path or a file"):
        flame.save(1, 3)
    flame.save(flame.ones(1), tmp_path / "x")
    with pytest.raises(RuntimeError, match="cuda"):
        flame.load(tmp_path / "x", map_location="cuda")
    for place in ("cpu", flame.device("cpu"), None, {"cuda:0": "cpu"}, lambda storage, location: storage):
        assert flame.load(tmp_path / "x", place, weights_only=True).tolist() == [1.0]
    with pytest.raises(ValueError, match="path of a file"):
        flame.load(io.BytesIO((tmp_path / "x").read_bytes()), mmap=True)


# -------------------------------------------------------------------- damaged and hostile files


def saved() -> bytes:
    f = io.BytesIO()
    flame.save({"a": flame.arange(6.0), "b": [flame.tensor([True]), "text", 1.5]}, f)
    return f.getvalue()


def test_every_damaged_byte_is_noticed(rng: np.random.Generator) -> None:
    good = saved()
    want = flame.load(io.BytesIO(good))
    for at in {int(k) for k in rng.integers(0, len(good), 300)}:
        bad = bytearray(good)
        bad[at] ^= int(rng.integers(1, 256))
        try:
            got = flame.load(io.BytesIO(bytes(bad)))
        except FileFormatError:
            continue
        same(got, want)  # a blank between header and data
    for n in {int(k) for k in rng.integers(0, len(good), 60)} | {0, 7, 8, len(good) - 1}:
        with pytest.raises(FileFormatError):
            flame.load(io.BytesIO(good[:n]))
    with pytest.raises(FileFormatError):
        flame.load(io.BytesIO(good + b"\0"))


def table(header: Any, data: bytes = b"", length: int | None = None) -> io.BytesIO:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return io.BytesIO((len(text) if length is None else length).to_bytes(8, "little") + text + data)


def entry(dtype: Any = "F32", shape: Any = (2,), at: Any = (0, 8)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": at}


def described(structure: str, version: str = "1") -> io.BytesIO:
    return table({"__metadata__": {"flame.structure": structure, "flame.version": version}})


HOSTILE: dict[str, tuple[io.BytesIO, str]] = {
    "a header longer than memory": (table({}, length=2**63), "a header of"),
    "not JSON": (table(b"{"), "damaged"),
    "nesting without end": (table(b"[" * 100_000), "damaged"),
    "no table": (table([1]), "not a table"),
    "one name twice": (table(b'{"a": 1, "a": 2}'), "twice"),
    "numbers of a million digits": (table(b'{"a":' + b"9" * 100_000 + b"}"), "damaged"),
    "huge shapes": (table({"a": entry(shape=[2**61, 2**61])}, b"\0" * 8), "should take"),
    "negative shapes": (table({"a": entry(shape=[-2])}, b"\0" * 8), "shape of 'a'"),
    "shapes of fractions": (table({"a": entry(shape=[2.0])}, b"\0" * 8), "shape of 'a'"),
    "a place behind the end": (table({"a": entry(at=[8, 16])}, b"\0" * 8), "begins at byte 8"),
    "a place backward": (table({"a": entry(at=[8, 0])}, b"\0" * 8), "place of 'a'"),
    "arrays over each other": (table({"a": entry(), "b": entry()}, b"\0" * 8), "begins at byte 0"),
    "bytes left over": (table({"a": entry()}, b"\0" * 9), "describes"),
    "an unknown dtype": (table({"a": entry("F6_E2M3", [8])}, b"\0" * 8), "F6_E2M3"),
    "a dtype that is no text": (table({"a": entry(["F32"])}, b"\0" * 8), "dtype"),
    "more in an entry": (table({"a": {**entry(), "more": 1}}, b"\0" * 8), "entry of 'a'"),
    "metadata of numbers": (table({"__metadata__": {"a": 1}}), "metadata"),
    "booleans of other values": (table({"a": entry("BOOL", [2], [0, 2])}, b"\1\2"), "no booleans"),
    "a wrong digest": (table({"__metadata__": {"flame.digest": "0", "flame.checksums": "{}"}}), "checksum"),
    "a version to come": (described("1", "2"), "version '2'"),
    "a structure of nothing": (described('{"$":"tensor","v":"b"}'), "'b'"),
    "a structure of another kind": (described('{"$":"x","v":0}'), "kind 'x'"),
    "a structure without sense": (described('{"$":"set","v":[[]]}'), "unhash"),
    "a PyTorch file": (io.BytesIO(b"PK\x03\x04" + b"\0" * 100), "load_pytorch"),
}  # fmt: skip


@pytest.mark.parametrize("key", HOSTILE)
def test_hostile_files_are_refused_in_words(key: str) -> None:
    file, words = HOSTILE[key]
    file.seek(0)
    with pytest.raises(FileFormatError, match=words):
        flame.load(file)


# -------------------------------------------------------------------- several files


def weights() -> dict[str, flame.Tensor]:
    return {"a": flame.randn(10), "b": flame.randn(3, 4).bfloat16(), "c": flame.arange(5), "d": flame.randn(30)}


@pytest.mark.parametrize("mmap", [True, False])
def test_sharded_checkpoints_are_hugging_faces(mmap: bool, tmp_path: Path) -> None:
    x = weights()
    paths = save_sharded(x, tmp_path, max_shard_size=100)
    assert [p.name for p in paths] == [
        *(f"model-0000{k}-of-00003.safetensors" for k in (1, 2, 3)),
        "model.safetensors.index.json",
    ]
    index = json.loads(paths[-1].read_text())
    assert index["metadata"]["total_size"] == 40 + 24 + 40 + 120 and index["weight_map"]["d"] == paths[2].name
    same(load_sharded(tmp_path, mmap=mmap), x)
    assert safetensors.numpy.load_file(paths[2])["d"].tolist() == x["d"].tolist()
    paths = save_sharded(x, tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["model.safetensors"] == [p.name for p in paths]
    same(load_sharded(tmp_path, mmap=mmap), x)
    assert save_sharded({}, tmp_path / "new") and load_sharded(tmp_path / "new", mmap=mmap) == {}


def test_sharded_checkpoints_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    paths = save_sharded(weights(), tmp_path, max_shard_size="100B")
    good = {p: p.read_bytes() for p in paths}
    other = tmp_path / "other"
    save_sharded(weights(), other, max_shard_size="100B")
    index = json.loads(paths[-1].read_text())
    missing = {**index, "weight_map": {**index["weight_map"], "e": paths[0].name}}
    outside = {**index, "weight_map": {**index["weight_map"], "a": "../x.safetensors"}}
    for path, data, words in (
        (paths[0], (other / paths[0].name).read_bytes(), "not the file that the index was written for"),
        (paths[1], good[paths[0]], "disagree on a, b, c"),
        (paths[-1], json.dumps(missing).encode(), "disagree on e"),
        (paths[-1], json.dumps(outside).encode(), "does not name a file beside"),
        (paths[-1], b"{", "index is damaged"),
        (paths[-1], b'{"weight_map": [1]}', "index is damaged"),
        (paths[0], None, "it is not there"),
    ):
        path.unlink() if data is None else path.write_bytes(data)
        with pytest.raises(FileFormatError, match=words):
            load_sharded(tmp_path)
        path.write_bytes(good[path])
    with pytest.raises(FileNotFoundError):
        load_sharded(tmp_path, name="other")
    with pytest.raises(TypeError, match="expected tensors by name"):
        save_sharded({"a": {"b": flame.ones(1)}}, tmp_path)  # type: ignore[dict-item]
    for size in ("5 apples", 0, "0GB"):
        with pytest.raises(ValueError, match="max_shard_size"):
            save_sharded({}, tmp_path, max_shard_size=size)


# -------------------------------------------------------------------- PyTorch's files


def theirs(torch: Any) -> dict[str, Any]:
    base = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(4, 2)).sum().backward()
    optimizer.step()
    return {
        "model": model.state_dict(), "optimizer": optimizer.state_dict(), "view": base.T, "row": base[1], "same": base[1],
        "parameter": torch.nn.Parameter(base.clone()), "grad": base.clone().requires_grad_(), "bf16": base.bfloat16(),
        "bool": base > 3, "empty": torch.zeros(0, 3), "scalar": torch.tensor(2.5), "half": base.half(), "int8": base.char(),
        "plain": [1, -(2**40), 2.5, "x", None, True, (1, 2), {3}, b"ab", {"k": [1]}, 2**100], "dtype": torch.float16,
        "size": torch.Size([1, 2]), "device": torch.device("cpu"),
    }  # fmt: skip


def compare(ours: Any, other: Any, torch: Any) -> None:
    if isinstance(other, torch.Tensor):
        assert ours.requires_grad == other.requires_grad and str(ours.dtype).split(".")[1] == str(other.dtype).split(".")[1]
        assert ours.shape == tuple(other.shape) and ours.double().tolist() == other.double().tolist()
        assert isinstance(ours, nn.Parameter) == isinstance(other, torch.nn.Parameter)
    elif isinstance(other, dict):
        assert list(ours) == list(other) and type(ours).__name__ == type(other).__name__
        for k in other:
            compare(ours[k], other[k], torch)
    elif isinstance(other, list):
        for a, b in zip(ours, other, strict=True):
            compare(a, b, torch)
    elif isinstance(other, torch.dtype | torch.Size | torch.device):
        assert str(ours).split(".")[-1].replace("flame", "torch") == str(other).split(".")[-1]
    else:
        assert ours == other and type(ours) is type(other)


@pytest.mark.oracle
@pytest.mark.parametrize("protocol", [2, 4])
def test_pytorchs_files_are_read(torch: Any, protocol: int, tmp_path: Path) -> None:
    x = theirs(torch)
    torch.save(x, tmp_path / "x.pt", pickle_protocol=protocol)
    got = load_pytorch(tmp_path / "x.pt")
    compare(got, x, torch)
    got["row"].zero_()
    assert not got["same"].any() and got["model"]._metadata["1"]["version"] == 2
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    assert not model.load_state_dict(got["model"]).missing_keys
    flame.optim.Adam(model.parameters()).load_state_dict(got["optimizer"])
    with pytest.raises(FileFormatError, match="load_pytorch"):
        flame.load(tmp_path / "x.pt")


@pytest.mark.oracle
def test_pytorchs_files_with_programs_are_refused(torch: Any, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (os.mkdir, (str(tmp_path / "made"),))

    for x, words in ((Evil(), "mkdir"), (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"), ([print], "print")):
        torch.save(x, tmp_path / "x.pt")
        with pytest.raises(FileFormatError, match=words):
            load_pytorch(tmp_path / "x.pt")
    assert not (tmp_path / "made").exists()
    torch.save([1], tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(FileFormatError, match="older one"):
        load_pytorch(tmp_path / "old.pt")


def archive(program: bytes, compression: int = zipfile.ZIP_STORED, **members: bytes) -> io.BytesIO:
    f = io.BytesIO()
    with zipfile.ZipFile(f, "w", compression) as z:
        z.writestr("archive/data.pkl", program)
        for name, data in members.items():
            z.writestr(f"archive/{name.replace('_', '/')}", data)
    f.seek(0)
    return f


def storage(count: int = 4, kind: bytes = b"FloatStorage") -> bytes:
    """("storage", torch.FloatStorage, "0", "cpu", count), made into a storage."""
    return b"(X\x07\0\0\0storagectorch\n" + kind + b"\nX\1\0\0\x000X\3\0\0\0cpuK" + bytes([count]) + b"tQ"


def rebuilt(offset: int, shape: bytes, stride: bytes, count: int = 4) -> bytes:
    made = b"\x80\2ctorch._utils\n_rebuild_tensor_v2\n(" + storage(count) + b"K" + bytes([offset])
    return made + shape + stride + b"\x89ccollections\nOrderedDict\n)RtR."


PROGRAMS: dict[str, tuple[io.BytesIO, str]] = {
    "a call of the system's": (archive(b"cposix\nsystem\n(X\4\0\0\0truetR."), "posix.system"),
    "a call by the older instruction": (archive(b"(X\4\0\0\0trueiposix\nsystem\n."), "INST"),
    "a call of what was called": (archive(b"ccollections\nOrderedDict\n)R)R."), "no name"),
    "getattr": (archive(b"cbuiltins\ngetattr\n(NX\1\0\0\0atR."), "getattr"),
    "an extension": (archive(b"\x82\1."), "EXT1"),
    "nothing on the stack": (archive(b"."), "takes more"),
    "no end": (archive(b"N"), "damaged"),
    "items for a number": (archive(b"K\1K\2a."), "expected a list"),
    "a memo that is not there": (archive(b"h\5."), "damaged"),
    "something left": (archive(b"NN."), "leaves something"),
    "a state for a list": (archive(b"]}b."), "state of a list"),
    "a name alone": (archive(b"cos\nsystem\n."), "holds the name os.system"),
    "a mark alone": (archive(b"(."), "no value"),
    "a storage that is missing": (archive(rebuilt(0, b"K\4\x85", b"K\1\x85")), "missing"),
    "a storage of another size": (archive(rebuilt(0, b"K\4\x85", b"K\1\x85"), data_0=b"\0" * 12), "12 bytes"),
    "a shape beyond the storage": (archive(rebuilt(0, b"K\5\x85", b"K\1\x85"), data_0=b"\0" * 16), "reaches element 4 of 4"),
    "an offset beyond the storage": (archive(rebuilt(1, b"K\4\x85", b"K\1\x85"), data_0=b"\0" * 16), "reaches element 4 of 4"),
    "a negative stride": (archive(rebuilt(3, b"K\4\x85", b"J\xff\xff\xff\xff\x85"), data_0=b"\0" * 16), "number of elements"),
    "a compressed member": (archive(b"N.", zipfile.ZIP_DEFLATED), "compressed"),
    "a script": (archive(b"N.", constants_pkl=b""), "expected one|TorchScript"),
    "big-endian numbers": (archive(b"N.", byteorder=b"big"), "big-endian"),
    "no archive": (io.BytesIO(b"hello"), "not a file that PyTorch"),
}  # fmt: skip


@pytest.mark.parametrize("key", [k for k in PROGRAMS if k != "a script"])
def test_hostile_programs_end_in_words(key: str) -> None:
    file, words = PROGRAMS[key]
    file.seek(0)
    with pytest.raises(FileFormatError, match=words):
        load_pytorch(file)


def test_a_well_formed_archive_is_read() -> None:
    """The programs above fail for their own reasons."""
    data = np.arange(4, dtype=np.float32).tobytes()
    assert load_pytorch(archive(rebuilt(1, b"K\3\x85", b"K\1\x85"), data_0=data)).tolist() == [1.0, 2.0, 3.0]
    assert load_pytorch(archive(b"]K\1a.")) == [1]
    assert load_pytorch(archive(rebuilt(0, b"K\2K\2\x86", b"K\0K\1\x86"), data_0=data)).tolist() == [[0.0, 1.0]] * 2


def test_damaged_programs_end_in_words(rng: np.random.Generator) -> None:
    good = rebuilt(1, b"K\3\x85", b"K\1\x85")[:-1] + b"}X\1\0\0\0aK\1s\x86."
    data = np.arange(4, dtype=np.float32).tobytes()
    for _ in range(400):
        bad = bytearray(good)
        for at in rng.integers(0, len(bad), int(rng.integers(1, 4))):
            bad[at] = int(rng.integers(0, 256))
        try:
            load_pytorch(archive(bytes(bad), data_0=data))
        except FileFormatError:
            pass
    whole = archive(good, data_0=data).getvalue()
    for i in range(1500):
        bad = bytearray(whole if i % 3 else whole[: int(rng.integers(len(whole) // 2, len(whole) + 1))])
        for at in rng.integers(0, len(bad), int(rng.integers(1, 5))):
            bad[at] ^= int(rng.integers(1, 256))
        try:
            load_pytorch(io.BytesIO(bytes(bad)))
        except FileFormatError:
            pass


def test_ml_dtypes_arrays_are_arrays(tmp_path: Path) -> None:
    x = np.arange(3).astype(ml_dtypes.bfloat16)
    flame.save(x, tmp_path / "x")
    same(flame.load(tmp_path / "x"), x)
    assert Machine("x", lambda *_: None).run(b"N.") is None  # type: ignore[arg-type, return-value]
