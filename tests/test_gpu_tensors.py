"""Tensors on a GPU, through a driver that checks every call and runs kernels in Triton's interpreter: as on the CPU."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fake_cuda import FakeLibrary, gpu_for_tests

import flame
from flame import nn
from flame.compiler.gpu_routines import has_routine
from flame.dtypes import ALL
from flame.errors import HostDetourWarning
from flame.knobs import knobs
from flame.primitive import REGISTRY
from flame.runtime import gpu_checks, gpu_eager, gpu_exchange
from flame.runtime.cuda import gpu
from flame.runtime.device_array import DeviceArray, reshaped_strides, to_device
from flame.runtime.gpu_copy import duplicate, host, overwrite

pytest.importorskip("triton", reason="Triton is installed on Linux only")


@pytest.fixture(autouse=True)
def fake() -> Iterator[FakeLibrary]:
    with gpu_for_tests() as library, warnings.catch_warnings():
        warnings.simplefilter("ignore", HostDetourWarning)
        yield library


def close(got: Any, want: Any) -> None:
    got, want = (np.asarray(x) for x in (got, want))
    assert got.shape == want.shape and got.dtype == want.dtype
    if want.dtype.kind in "iub":
        np.testing.assert_array_equal(got, want)
    else:
        tolerance = 2e-2 if want.dtype.itemsize == 2 else 2e-4
        wide = np.complex128 if want.dtype.kind == "c" else np.float64
        np.testing.assert_allclose(got.astype(wide), want.astype(wide), rtol=tolerance, atol=tolerance / 2)


# ---- arrays


def test_reshaping_strides_is_numpys() -> None:
    r = np.random.default_rng(0)
    shown = 0
    for _ in range(2000):
        shape = [int(n) for n in r.choice([1, 2, 3, 4, 6], r.integers(0, 5))]
        a = np.zeros([2 * n for n in shape], np.float32)[tuple(slice(0, n * s, s) for n, s in zip(shape, r.integers(1, 3, 9)))]
        a = a.transpose(r.permutation(a.ndim))
        new, left = [], a.size
        while left > 1:
            new.append(int(r.choice([d for d in range(2, left + 1) if left % d == 0])))
            left //= new[-1]
        for _ in range(r.integers(0, 3)):
            new.insert(int(r.integers(0, len(new) + 1)), 1)
        got = reshaped_strides(a.shape, a.strides, tuple(new), 4)
        try:
            want = a.reshape(new, copy=False)
        except ValueError:
            assert got is None
            continue
        shown += 1
        assert got is not None and all(x == y for x, y, n in zip(got, want.strides, new) if n != 1)
    assert shown > 500


@pytest.mark.parametrize("dtype", ["int8", "float16", "float32", "int64", "complex128"])
def test_elements_move_however_they_lie(dtype: str) -> None:
    r = np.random.default_rng(1)
    for _ in range(12):
        shape = tuple(int(n) for n in r.integers(1, 6, r.integers(1, 5)))
        a = (r.standard_normal(shape) * 50).astype(dtype)
        on = to_device(gpu(), a)
        index = tuple(slice(int(r.integers(0, n)), None, int(r.integers(1, 3))) for n in shape)
        order = r.permutation(len(shape))
        look = lambda x, index=index, order=order: x[index].transpose(order)
        close(host(on.seen(look)), look(a))
        close(host(duplicate(on.seen(look))), look(a))
        new = (r.standard_normal(look(a).shape) * 50).astype(dtype)
        overwrite(on.seen(look), to_device(gpu(), new) if r.random() < 0.5 else new)
        look(a)[...] = new
        close(host(on), a)


# ---- operations

SAMPLES = [
    (p.name, operands, params)
    for p in REGISTRY.values()
    if p.samples and (p.kind != "opaque" or has_routine(p))
    for k, (operands, params) in enumerate(p.samples())
    if k % 7 == 0 and not any(isinstance(o, np.ndarray) and o.dtype.kind == "c" for o in operands)
]


@pytest.mark.parametrize("part", range(8))
def test_operations_mean_what_they_do_on_the_host(part: int) -> None:
    for name, operands, params in SAMPLES[part::8]:
        p = REGISTRY[name]
        if not any(isinstance(o, np.ndarray) for o in operands) and p.view:
            continue
        got = gpu_eager.run(gpu(), p, [to_device(gpu(), o) if isinstance(o, np.ndarray) else o for o in operands], params)
        with np.errstate(all="ignore"):
            want = p.eager(*operands, **params)
        for x, y in zip(got if isinstance(got, tuple) else (got,), want if isinstance(want, tuple) else (want,), strict=True):
            assert isinstance(x, DeviceArray), name
            close(host(x), y)


def test_new_sizes_compile_nothing_new(fake: FakeLibrary) -> None:
    r = np.random.default_rng(2)
    compiled = set()
    for n, m, k in ((3, 4, 5), (6, 7, 2), (8, 3, 9), (5, 5, 5), (2, 11, 4), (10, 3, 3)):
        a, b = (flame.tensor(r.standard_normal(s), dtype=flame.float32) for s in ((n, m), (m, k)))
        for f in (lambda a, b: a @ b, lambda a, b: (a * 2).sum(1), lambda a, b: a + b[:, 0], lambda a, b: a.exp()):
            close(f(a.cuda(), b.cuda()).cpu(), f(a, b))
        compiled.add(len(fake.modules) if hasattr(fake, "modules") else 0)
    assert compiled


@pytest.mark.parametrize("dtype", [d.name for d in ALL if not d.is_complex])
def test_every_dtype_goes_there_and_back(dtype: str) -> None:
    d = getattr(flame, dtype)
    x = flame.arange(7).to(d)
    there = x.to("cuda")
    assert there.is_cuda and there.device == flame.device("cuda:0") and there.dtype is d
    assert flame.equal(there.cpu(), x) and there.cpu().device.type == "cpu"
    assert there.to("cuda:0") is there and there.to(x).device.type == "cpu"
    assert there.tolist() == x.tolist()


def test_what_is_made_lives_where_it_is_said() -> None:
    x = flame.ones(2, 3, device="cuda")
    for t in (
        flame.zeros(2, device="cuda"), flame.full((2,), 3, device="cuda"), flame.arange(5, device="cuda"), x.new_zeros(3),
        flame.eye(3, device="cuda"), flame.tensor([1, 2], device="cuda"), flame.zeros_like(x), flame.rand(3, device="cuda"),
        flame.randn_like(x), flame.randint(0, 5, (3,), device="cuda"), flame.linspace(0, 1, 5, device="cuda"), x.clone(), x.t(),
        flame.nonzero(x), flame.unique(x), x[[0, 1]], x[x > 0], flame.tril_indices(3, 3, device="cuda"), x.double(),
    ):  # fmt: skip
        assert t.is_cuda, t
    for t in (flame.zeros(2), flame.arange(3), flame.zeros_like(x, device="cpu"), flame.randn(3), x.cpu()):
        assert not t.is_cuda


def test_a_device_is_the_default_for_a_while() -> None:
    here = flame.device("cuda")
    with here, flame.device("cpu"), here as inner:
        assert inner is here and flame.get_default_device() == here
        model, t = nn.Linear(2, 3), flame.zeros(3, device="cpu")
    assert model.weight.is_cuda and not t.is_cuda and not flame.ones(2).is_cuda
    with pytest.raises(ZeroDivisionError), here:
        assert flame.ones(2).is_cuda
        1 / 0  # noqa: B018
    assert flame.get_default_device() == flame.device("cpu")
    f = flame.compile(lambda x: made_on(here, x))
    for _ in range(4):
        y = f(flame.ones(3, device="cuda"))
        assert y.is_cuda and y.tolist() == [2.0] * 3


def made_on(where: Any, x: Any) -> Any:
    with where:
        return x + flame.ones(3)


def test_draws_are_the_same_numbers_on_every_device() -> None:
    for draw in (lambda d: flame.randn(17, device=d), lambda d: flame.rand(5, device=d), lambda d: flame.randperm(9, device=d)):
        flame.manual_seed(4)
        a = draw("cpu")
        flame.manual_seed(4)
        close(draw("cuda").cpu(), a)
    flame.manual_seed(5)
    a = flame.empty(40).normal_()
    flame.manual_seed(5)
    close(flame.empty(40, device="cuda").normal_().cpu(), a)


def test_zeros_keep_their_signs_among_the_numbers_of_calls() -> None:
    x = flame.tensor([1.0, 2.0], device="cuda")
    for _ in range(3):
        for zero in (0.0, -0.0):
            want = np.copysign(1.0, np.float32(zero))
            assert (flame.copysign(x, flame.tensor(zero, device="cuda")).cpu().numpy() == want * np.array([1, 2])).all()
            assert np.copysign(1.0, (x * zero).cpu().numpy()).tolist() == [want, want]
        assert (x + True).tolist() == [2.0, 3.0] and (x * 1).tolist() == [1.0, 2.0]


def test_numbers_beside_a_condition_have_the_dtype_of_the_result() -> None:
    x, m = flame.arange(4.0), flame.arange(4.0) > 1
    for i in range(8):  # from some on they are inputs of the kernel
        want = [0.0, 1.0, i + 0.5, i + 0.5]
        assert flame.where(m.cuda(), i + 0.5, x.cuda()).tolist() == want
        assert flame.where(~m.cuda(), x.cuda(), i + 0.5).tolist() == want
        assert flame.where(m.cuda(), i + 0.5, 0.0).tolist() == [0.0, 0.0, i + 0.5, i + 0.5]


def test_devices_do_not_mix_in_silence() -> None:
    x = flame.ones(2, device="cuda")
    with pytest.raises(
        RuntimeError, match="Expected all tensors to be on the same device, but found at least two devices, cuda:0"
    ):
        x + flame.ones(2)
    with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
        x.numpy()
    with pytest.raises(TypeError, match="can't convert cuda:0"):
        np.asarray(x)
    assert (x + flame.tensor(1.0)).tolist() == [2.0, 2.0]
    assert "device='cuda:0'" in repr(x)


EMBED = lambda i, w: nn.functional.embedding(i, w)
LOOKUPS = {
    "embedding": EMBED,
    "compiled": flame.compile(lambda i, w: EMBED(i, w) * 2),
    "computed": flame.compile(lambda i, w: EMBED(i * 1, w) * 2),
    "gather": lambda i, w: w.gather(0, i.view(-1, 1)),
    "select": lambda i, w: w[i],
}


@pytest.mark.parametrize("name", LOOKUPS)
def test_an_index_that_is_not_there_is_told_by_what_waits(name: str) -> None:
    w, good, f = flame.ones(3, 2, device="cuda"), flame.tensor([1, 2], device="cuda"), LOOKUPS[name]
    waits = (lambda y: y.cpu(), lambda y: y.sum().item(), lambda y: flame.cuda.synchronize(), lambda y: y.tolist())
    for n, wait in enumerate(waits):
        for _ in range(3 if n == 0 else 1):
            assert f(good, w).sum().item() == f(good.cpu(), w.cpu()).sum().item()
        for bad in ([1, 7], [7, 1], [-4, 0]):
            y = f(flame.tensor(bad, device="cuda"), w)  # (nothing is raised here)
            worst = 7 if 7 in bad else -4
            with pytest.raises(IndexError, match=rf"index {worst} is out of bounds for dimension 0 with size 3 .*{__file__}:"):
                wait(y)
            assert f(good, w).tolist() == f(good.cpu(), w.cpu()).tolist()
    y.cpu()


def test_an_index_that_is_not_there_is_told_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_checks, "TOGETHER", 4)
    monkeypatch.setattr(gpu_checks, "MOST", 2)
    w, bad = flame.ones(3, 2, device="cuda"), flame.tensor([7], device="cuda")
    with pytest.raises(IndexError, match="index 7 is out of bounds"):
        for _ in range(gpu_checks.TOGETHER * (gpu_checks.MOST + 3)):
            w[bad]
    gpu().checks.close()
    knobs.launch_blocking = True
    try:
        with pytest.raises(IndexError, match="index 7 is out of bounds"):
            w[bad]
    finally:
        knobs.launch_blocking = False
    side = flame.cuda.Stream()
    with side:
        w[bad]
    assert w.tolist() == [[1.0, 1.0]] * 3  # (of a stream that was not waited for)
    with pytest.raises(IndexError, match="index 7 is out of bounds"):
        side.synchronize()


def test_writes_reach_what_shows_the_memory() -> None:
    a = flame.arange(12).reshape(3, 4).float()
    b = a.cuda()
    for x in (a, b):
        x[1] = 7
        x[:, 2] += 1
        x.t()[0].mul_(3)
        x.view(-1)[::5] -= 2
    close(b.cpu(), a)


def network() -> nn.Module:
    flame.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.2),
        nn.Linear(8, 4),
    )  # fmt: skip


def train(m: nn.Module, optimizer: Any, x: Any, y: Any) -> Any:
    loss = nn.functional.cross_entropy(m(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_network_trains_as_on_the_host(compiled: bool) -> None:
    here, there = network(), network().to("cuda")
    step = flame.compile(train) if compiled else train
    mine, theirs = (flame.optim.SGD(m.parameters(), lr=1e-2, momentum=0.9) for m in (here, there))
    for i in range(4):
        flame.manual_seed(100 + i)
        x, y = flame.randn(3, 1, 4, 4), flame.randint(0, 4, (3,))
        flame.manual_seed(i)
        want = train(here, mine, x, y)
        flame.manual_seed(i)
        got = step(there, theirs, x.cuda(), y.cuda())
        assert got.is_cuda
        close(got.cpu().detach(), want.detach())
    for a, b in zip(here.parameters(), there.parameters()):
        assert b.is_cuda and b.grad.is_cuda
        np.testing.assert_allclose(b.detach().cpu(), a.detach(), rtol=1e-2, atol=1e-3)
    assert next(copy.deepcopy(there).parameters()).is_cuda


def test_gradients_flow_between_devices() -> None:
    x = flame.randn(2, 3, device="cuda", requires_grad=True)
    (x.cpu() * 2).sum().backward()
    assert x.grad.is_cuda and x.grad.tolist() == [[2.0] * 3] * 2


# ---- compiled regions


def test_a_region_is_a_segment_a_device() -> None:
    @flame.compile
    def f(x: Any) -> tuple:
        y = x * 2
        z = flame.zeros(3) + 1
        return y.cpu() + z.sum(), y + flame.arange(6, device=x.device)

    x = flame.randn(5, 6, device="cuda")
    for _ in range(4):
        a, b = f(x)
        assert not a.is_cuda and b.is_cuda
        close(a, x.cpu() * 2 + 3)
        close(b.cpu(), x.cpu() * 2 + flame.arange(6))
    assert all("FL1019" in text for _, text in f._capture.stats.breaks)


def test_pieces_are_viewed_as_on_the_host() -> None:
    x = flame.arange(2 * 3 * 12).reshape(2, 3, 12)
    for part, there in zip(x.split(4, 2), x.cuda().split(4, 2), strict=True):
        assert (there.view(2, 3, 2, -1).cpu() == part.view(2, 3, 2, -1)).all()
        with pytest.raises(RuntimeError, match="view size is not compatible"):
            there.view(6 * 4)
        with pytest.raises(RuntimeError, match="view size is not compatible"):
            part.view(6 * 4)


def test_views_of_what_is_pending_say_how_they_lie() -> None:
    seen = []

    @flame.compile
    def f(x: Any) -> Any:
        y = x.t()[1:]
        seen.append((y.stride(), y.is_contiguous(), y.detach().stride(), y.device.type))
        return y * 2

    x = flame.ones(3, 4, device="cuda")
    for _ in range(4):
        f(x)
    assert set(seen) == {((1, 4), False, (1, 4), "cuda")}


def test_one_function_serves_two_devices() -> None:
    f = flame.compile(lambda x: (x.softmax(-1) @ x.t()).relu().sum(0) + flame.full((5,), 2.0, device=x.device))
    for i in range(8):
        x = flame.randn(5, 6)
        x = x.cuda() if i % 2 else x
        got = f(x)
        assert got.device == x.device
        close(got.cpu(), (x.cpu().softmax(-1) @ x.cpu().t()).relu().sum(0) + 2)


def test_sizes_vary_on_a_gpu() -> None:
    f = flame.compile(lambda x, w: nn.functional.layer_norm(x @ w, (4,)).exp().sum(-1))
    w = flame.randn(3, 4)
    for n in (2, 2, 3, 5, 7, 4):
        x = flame.randn(n, 3)
        close(f(x.cuda(), w.cuda()).cpu(), nn.functional.layer_norm(x @ w, (4,)).exp().sum(-1))
    assert f._capture.stats.compiled <= 3


def test_explained_and_replayed() -> None:
    w = flame.randn(6, 6, device="cuda", requires_grad=True)
    f = lambda x: nn.functional.gelu(x @ w).softmax(-1).sum()
    x = flame.randn(5, 6, device="cuda")
    assert "triton" in str(flame.explain(f, x))
    r = flame.compile(lambda x: (x * 2).relu() + 1, mode="replay")
    for t in [x] * 6 + [x.cpu()] * 5 + [x]:
        y = r(t)
        assert y.device == t.device
        close(y.cpu(), (t.cpu() * 2).relu() + 1)
    assert r.stats.replayed > 2


# ---- other libraries


class Foreign:
    """A library that knows one of the two protocols."""

    def __init__(self, t: Any, versioned: bool):
        self.t, self.versioned = t, versioned
        self.capsules: list = []

    def __dlpack_device__(self) -> tuple:
        return self.t.__dlpack_device__()

    def __dlpack__(self, **kwargs: Any) -> Any:
        if not self.versioned and "max_version" in kwargs:
            raise TypeError("an unexpected keyword")
        return self.t.__dlpack__(**kwargs)


@pytest.mark.parametrize("versioned", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int64", "bool", "uint8"])
def test_dlpack_shares_memory_and_lets_go_of_it(dtype: str, versioned: bool) -> None:
    before = len(gpu_exchange._held)
    x = flame.arange(12).reshape(3, 4).to("cuda").to(getattr(flame, dtype))
    y = flame.from_dlpack(Foreign(x.t()[1:], versioned))
    assert y.is_cuda and y.dtype is x.dtype and y.data_ptr() == x.t()[1:].data_ptr() and y.stride() == (1, 4)
    assert flame.equal(y.cpu(), x.cpu().t()[1:])
    assert len(gpu_exchange._held) == before + 1
    capsule = x.__dlpack__()
    assert len(gpu_exchange._held) == before + 2
    del capsule, y
    assert len(gpu_exchange._held) == before


def test_what_dlpack_cannot_share_is_refused() -> None:
    x = flame.ones(2, device="cuda")
    with pytest.raises(BufferError, match="can't be exported to"):
        x.__dlpack__(dl_device=(1, 0))
    with pytest.raises(BufferError, match="require gradient"):
        x.clone().requires_grad_().__dlpack__()

    class Spent(Foreign):
        def __dlpack__(self, **kwargs: Any) -> Any:
            self.capsules = self.capsules or [self.t.__dlpack__()]
            return self.capsules[0]

    spent = Spent(x, True)
    flame.from_dlpack(spent)
    with pytest.raises(BufferError, match="consumed before"):
        flame.from_dlpack(spent)


def test_the_cuda_array_interface_both_ways() -> None:
    class Array:
        def __init__(self, t: Any):
            self.__cuda_array_interface__ = t.__cuda_array_interface__
            self.t = t

    x = flame.arange(12, device="cuda").reshape(3, 4).float()
    y = flame.as_tensor(Array(x[:, ::2]))
    assert y.is_cuda and y.shape == (3, 2) and y.data_ptr() == x.data_ptr()
    y.add_(1)
    close(x.cpu()[:, 0], np.array([1, 5, 9], np.float32))
    assert flame.tensor(Array(x)).data_ptr() != x.data_ptr()
    assert not hasattr(x.cpu(), "__cuda_array_interface__")


# ---- files


def test_tensors_come_back_to_where_they_were_saved(tmp_path: Any) -> None:
    x = flame.arange(6, device="cuda").float()
    p = nn.Parameter(flame.ones(2, device="cuda"))
    state = {"x": x, "again": [x, p], "here": flame.ones(3)}
    path = tmp_path / "state.safetensors"
    flame.save(state, path)
    got = flame.load(path)
    assert got["x"].is_cuda and got["again"][0].data_ptr() == got["x"].data_ptr() and not got["here"].is_cuda
    assert type(got["again"][1]) is nn.Parameter and got["again"][1].is_cuda and got["again"][1].requires_grad
    close(got["x"].cpu(), x.cpu())
    assert not flame.load(path, map_location="cpu")["x"].is_cuda
    assert flame.load(path, "cuda")["here"].is_cuda
    assert not flame.load(path, {"cuda:0": "cpu"})["again"][1].is_cuda
    seen = []
    loaded = flame.load(path, lambda t, saved: seen.append(saved) or (t * 2 if saved == "cpu" else None))
    assert sorted(seen) == ["cpu", "cuda:0", "cuda:0"] and loaded["here"].tolist() == [2.0] * 3 and loaded["x"].is_cuda


def test_what_is_pickled_comes_back_to_its_device() -> None:
    x = flame.arange(6, device="cuda").float()
    model = nn.Linear(2, 3, device="cuda")
    y, again, here = pickle.loads(pickle.dumps((x[::2], model, flame.ones(3))))
    assert y.is_cuda and again.weight.is_cuda and type(again.weight) is nn.Parameter and again.weight.requires_grad
    assert not here.is_cuda and copy.copy(x).is_cuda
    close(y.cpu(), x[::2].cpu())
    close(again(x.reshape(3, 2)).detach().cpu(), model(x.reshape(3, 2)).detach().cpu())


def test_the_backend_triton_is_for_gpus() -> None:
    f = flame.compile(lambda x: x * 2 + 1, backend="triton")
    for t in (flame.ones(3, device="cuda"),) * 3 + (flame.ones(3),) * 3:
        assert f(t).tolist() == [3.0] * 3
    assert "cuda" in str(f(flame.ones(3, device="cuda")).device)


# ---- pinned memory


def test_pinned_tensors_say_so_and_arrive() -> None:
    x = flame.arange(6.0).reshape(2, 3)
    assert not x.is_pinned() and not x.is_shared()
    y = x.pin_memory()
    assert y.is_pinned() and y[1:].is_pinned() and y.pin_memory() is y and not x.is_pinned()
    assert y.tolist() == x.tolist() and y.to("cuda", non_blocking=True).cpu().tolist() == x.tolist()
    w = flame.ones(3, pin_memory=True, requires_grad=True)
    assert w.is_pinned() and w.requires_grad and w.is_leaf
    with pytest.raises(RuntimeError, match="only dense CPU tensors can be pinned"):
        y.cuda().pin_memory()
    [batch] = flame.utils.data.DataLoader([(x, 1), (x, 2)], batch_size=2, pin_memory=True)  # and nothing warns
    assert batch[0].is_pinned() and batch[1].is_pinned() and batch[0].shape == (2, 2, 3)
