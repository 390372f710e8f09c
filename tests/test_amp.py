"""Automatic mixed precision: what is cast to what, eagerly and compiled, and that training with it arrives where float32 does."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings

import numpy as np
import pytest

import flame
import flame.nn as nn
import flame.nn.functional as F
from flame.amp import GradScaler, autocast, custom_bwd, custom_fwd
from flame.precision import POLICIES, casting, in_force

FAST = [flame.bfloat16, flame.float16]


@pytest.fixture(autouse=True)
def _nothing_left_in_force():
    yield
    assert in_force.casts is None and casting.threads == 0


def samples(lib) -> dict:
    """Name -> a call of a function with a policy on a CPU, for tensors of dtype `d`, of flame or of PyTorch."""
    F = lib.nn.functional
    r = lambda *s: lib.rand(*s) * 0.5 + 0.25
    c = lambda *s: lib.randint(0, s[-1], s[:-1])
    return {
        "linear": lambda d: F.linear(r(3, 4).to(d), r(2, 4).to(d), r(2).to(d)),
        "matmul": lambda d: r(3, 4).to(d) @ r(4, 2).to(d),
        "mm": lambda d: lib.mm(r(3, 4).to(d), r(4, 2).to(d)),
        "bmm": lambda d: lib.bmm(r(2, 3, 4).to(d), r(2, 4, 2).to(d)),
        "addmm": lambda d: lib.addmm(r(3, 2).to(d), r(3, 4).to(d), r(4, 2).to(d)),
        "baddbmm": lambda d: lib.baddbmm(r(2, 3, 2).to(d), r(2, 3, 4).to(d), r(2, 4, 2).to(d)),
        "conv2d": lambda d: F.conv2d(r(1, 2, 5, 5).to(d), r(3, 2, 3, 3).to(d)),
        "conv_transpose1d": lambda d: F.conv_transpose1d(r(1, 2, 5).to(d), r(2, 3, 3).to(d)),
        "prelu": lambda d: F.prelu(r(3).to(d), r(1).to(d)),
        "scaled_dot_product_attention": lambda d: F.scaled_dot_product_attention(*[r(1, 2, 5, 4).to(d)] * 3),
        "vecdot": lambda d: lib.linalg.vecdot(r(3, 4).to(d), r(3, 4).to(d)),
        "mse_loss": lambda d: F.mse_loss(r(3, 4).to(d), r(3, 4).to(d)),
        "l1_loss": lambda d: F.l1_loss(r(3, 4).to(d), r(3, 4).to(d)),
        "cross_entropy": lambda d: F.cross_entropy(r(3, 4).to(d), c(3, 4)),
        "nll_loss": lambda d: F.nll_loss(r(3, 4).to(d), c(3, 4)),
        "kl_div": lambda d: F.kl_div(r(3, 4).to(d), r(3, 4).to(d), reduction="sum"),
        "binary_cross_entropy": lambda d: F.binary_cross_entropy(r(3).to(d), r(3).to(d)),
        "binary_cross_entropy_with_logits": lambda d: F.binary_cross_entropy_with_logits(r(3).to(d), r(3).to(d)),
        "huber_loss": lambda d: F.huber_loss(r(3).to(d), r(3).to(d)),
        "cosine_embedding_loss": lambda d: F.cosine_embedding_loss(r(3, 4).to(d), r(3, 4).to(d), lib.ones(3)),
        "avg_pool3d": lambda d: F.avg_pool3d(r(1, 1, 4, 4, 4).to(d), 2),
        "max_pool3d": lambda d: F.max_pool3d(r(1, 1, 4, 4, 4).to(d), 2),
        "prod": lambda d: r(3).to(d).prod(),
        "trace": lambda d: r(3, 3).to(d).trace(),
        "quantile": lambda d: lib.quantile(r(9).to(d), 0.3),
        "cdist": lambda d: lib.cdist(r(3, 2).to(d), r(4, 2).to(d)),
        "inv": lambda d: lib.linalg.inv((r(3, 3) + 3 * lib.eye(3)).to(d)),
        "svdvals": lambda d: lib.linalg.svdvals(r(3, 3).to(d)),
        "fft": lambda d: lib.fft.fft(r(4).to(d)),
        "reflected_pad": lambda d: F.pad(r(1, 2, 4).to(d), (1, 1), mode="reflect"),
        "grid_sample": lambda d: F.grid_sample(r(1, 1, 4, 4).to(d), r(1, 2, 2, 2).to(d), align_corners=False),
    }


@pytest.mark.parametrize("name", list(samples(flame)))
@pytest.mark.parametrize("fast", FAST, ids=str)
def test_every_policy_of_a_cpu_chooses_the_dtype(name, fast):
    call, policy = samples(flame)[name], POLICIES["cpu"][name]
    with autocast("cpu", dtype=fast):
        for given in (flame.float32, fast):
            y = call(given)
            want = fast if policy == "lower" else flame.complex64 if name == "fft" else flame.float32
            assert y.dtype is want, (name, given)
        if policy == "lower":
            assert call(flame.float64).dtype is flame.float64, "float64 is never cast"
    assert call(flame.float32).dtype is (flame.complex64 if name == "fft" else flame.float32)


@pytest.mark.oracle
@pytest.mark.parametrize("fast", ["bfloat16", "float16"])
def test_dtypes_under_casts_are_pytorchs(torch, fast):
    for lib in (flame, torch):
        with lib.autocast("cpu", dtype=getattr(lib, fast)):
            found = {}
            for name, call in samples(lib).items():
                for d in (lib.float32, getattr(lib, fast)):
                    found[name, str(d).split(".")[1]] = str(call(d).dtype).split(".")[1]
        if lib is flame:
            ours = found
    assert ours == found


@pytest.mark.oracle
def test_the_lists_are_those_of_pytorchs_kernels(torch):
    """Of every policy: PyTorch has an autocast kernel for that operation and device."""
    other = {
        "cross_entropy": "cross_entropy_loss", "grid_sample": "grid_sampler", "inv": "linalg_inv", "inv_ex": "linalg_inv_ex",
        "vecdot": "linalg_vecdot", "householder_product": "orgqr", "interpolate": "upsample_nearest2d",
        "multi_dot": "linalg_multi_dot",
        "vector_norm": "linalg_vector_norm", "matrix_norm": "linalg_matrix_norm", "reflected_pad": "reflection_pad1d",
        "lu": "_lu_with_info", "legacy_lu": "_lu_with_info", "norm": "norm.Scalar",
    }  # fmt: skip
    names = [n[6:] for n in torch._C._dispatch_get_all_op_names() if n.startswith("aten::")]
    for device, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
        has = {n for n in names if torch._C._dispatch_has_kernel_for_dispatch_key("aten::" + n, key)}
        has |= {n.split(".")[0] for n in has}
        for name in POLICIES[device]:
            plain = name.removeprefix("legacy_")
            known = {other.get(name, plain), plain, "linalg_" + plain, "fft_" + plain, "_" + plain}
            assert known & has or (device, name) == ("cuda", "cross_entropy"), (device, name)


def test_functions_without_a_policy_keep_their_dtypes():
    x, w = flame.randn(3, 4), flame.randn(4).bfloat16()
    with autocast("cpu"):
        assert F.relu(x).dtype is flame.float32 and F.relu(w).dtype is flame.bfloat16
        assert F.softmax(w, -1).dtype is flame.bfloat16 and F.layer_norm(w, (4,), flame.ones(4)).dtype is flame.bfloat16
        assert (x + w).dtype is flame.float32
        assert flame.cat([x, w[None]]).dtype is flame.float32 and flame.stack([w, w]).dtype is flame.bfloat16
        assert flame.mm(x, x.T, out=flame.empty(3, 3)).dtype is flame.float32


def test_regions_nest_and_end_where_an_exception_leaves_them():
    x = flame.randn(2, 2)
    with autocast("cpu", dtype=flame.float16):
        assert (x @ x).dtype is flame.float16 and flame.get_autocast_dtype("cpu") is flame.float16
        with autocast("cpu", enabled=False):
            assert (x @ x).dtype is flame.float32 and not flame.is_autocast_enabled("cpu")
            with autocast("cpu"):
                assert (x @ x).dtype is flame.float16, "the dtype set around is the default inside"
        with pytest.raises(ZeroDivisionError), autocast("cpu", dtype=flame.bfloat16):
            raise ZeroDivisionError
        assert (x @ x).dtype is flame.float16
    assert flame.get_autocast_dtype("cpu") is flame.bfloat16 and not flame.is_autocast_enabled("cpu")


def test_it_is_a_decorator_that_can_recurse_and_belongs_to_one_thread():
    x, seen = flame.randn(2, 2), []

    @autocast("cpu")
    def f(n):
        seen.append((x @ x).dtype)
        return f(n - 1) if n else None

    f(2)
    with autocast("cpu"):
        t = threading.Thread(target=lambda: seen.append((x @ x).dtype))
        t.start()
        t.join()
    assert seen == [flame.bfloat16] * 3 + [flame.float32]


def test_settings_by_function():
    assert flame.is_autocast_cache_enabled() and flame.amp.is_autocast_available("cpu")
    assert not flame.amp.is_autocast_available("mps") and flame.get_autocast_gpu_dtype() is flame.float16
    flame.set_autocast_enabled("cpu", True)
    flame.set_autocast_dtype("cpu", flame.float16)
    try:
        assert flame.is_autocast_cpu_enabled() and (flame.randn(2, 2) @ flame.randn(2, 2)).dtype is flame.float16
    finally:
        flame.set_autocast_cpu_dtype(flame.bfloat16)
        flame.set_autocast_cpu_enabled(False)


def test_what_is_refused_says_so():
    with pytest.raises(RuntimeError, match="unsupported autocast device_type 'tpu'"):
        autocast("tpu")
    with pytest.raises(ValueError, match="type `str`"):
        autocast(flame.float16)
    with pytest.warns(UserWarning, match="only supports dtypes of"), autocast("cpu", dtype=flame.float32):
        assert not flame.is_autocast_enabled("cpu")
    if not flame.cuda.is_available():
        with pytest.warns(UserWarning, match="CUDA is not available"):
            assert not autocast("cuda")._enabled
        with pytest.warns(UserWarning, match="Disabling"):
            assert not GradScaler().is_enabled()


def test_older_names_warn():
    from flame.cpu.amp import autocast as old  # type: ignore[import-not-found]

    with pytest.warns(FutureWarning, match=r"flame.amp.autocast\('cpu'"), old():
        assert (flame.randn(2, 2) @ flame.randn(2, 2)).dtype is flame.bfloat16
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert not flame.cuda.amp.GradScaler(enabled=False).is_enabled()
    assert caught[0].category is FutureWarning


def test_casts_of_weights_are_kept_until_the_region_ends_or_the_weight_is_written():
    w, x = nn.Parameter(flame.randn(4, 4)), flame.randn(2, 4)
    cache = flame.amp.autocast_mode._settings.cache
    with autocast("cpu"):
        F.linear(F.linear(x, w), w)
        assert len(cache) == 1
        before = F.linear(x, w).detach()
        with flame.no_grad():
            w.mul_(2)
        assert flame.allclose(F.linear(x, w).float(), 2 * before.float(), rtol=1e-2, atol=1e-3)
        with autocast("cpu", cache_enabled=False):
            cache.clear()
            F.linear(x, w)
            assert not cache
        with flame.no_grad():
            F.linear(x, w)
        F.linear(x, w).sum().backward()  # (what no_grad kept has no history, and is not taken)
    assert not cache and w.grad is not None and w.grad.dtype is flame.float32


@pytest.mark.parametrize("inside", [True, False], ids=["region inside", "region around"])
@pytest.mark.parametrize("fast", FAST, ids=str)
def test_compiled_functions_cast_alike(inside, fast):
    flame.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 4))
    x, t = flame.randn(6, 8), flame.randint(0, 4, (6,))

    def step(x, t):
        model.zero_grad()
        with autocast("cpu", dtype=fast, enabled=inside or flame.is_autocast_enabled("cpu")):
            logits = model(x)
            loss = F.cross_entropy(logits, t)
        loss.backward()
        return logits, loss, [p.grad.clone() for p in model.parameters()]

    def run(f):
        with autocast("cpu", dtype=fast, enabled=not inside):
            return f(x, t)

    compiled = flame.compile(step, fullgraph=True)
    for _ in range(3):
        (a, b, c), (d, e, f) = run(compiled), run(step)
        assert a.dtype is d.dtype is fast and b.dtype is flame.float32
        for p, q in zip([a, b, *c], [d, e, *f], strict=True):
            scale = float(q.detach().float().abs().max())
            np.testing.assert_allclose(p.detach().float().numpy(), q.detach().float().numpy(), rtol=0.05, atol=0.03 * scale)
    assert not compiled.stats.breaks and compiled.stats.compiled == 1


def test_a_compiled_function_tells_what_is_in_force():
    """The same calls, with and without casts and with either dtype, are told apart; also those of composites."""
    heads = nn.MultiheadAttention(8, 2, batch_first=True)
    w = flame.randn(8, 8)

    for mode in ("default", "replay"):
        f = flame.compile(lambda x: (heads(x, x, x)[0], x @ w, F.relu(x @ w)), mode=mode)
        x = flame.randn(2, 3, 8)
        with flame.no_grad():
            for _ in range(4):
                for d in (None, *FAST):
                    with autocast("cpu", dtype=d, enabled=d is not None):
                        got = f(x)
                    assert [y.dtype for y in got] == [d or flame.float32] * 3


def test_entering_and_leaving_within_a_compiled_function():
    w = nn.Parameter(flame.randn(4, 4))

    @flame.compile(fullgraph=True)
    def f(x):
        a = x @ w
        with autocast("cpu"):
            b = a @ w
            with autocast("cpu", enabled=False):
                c = b.float() @ w
        return a, b, c, c @ w

    for _ in range(3):
        assert [y.dtype for y in f(flame.randn(2, 4))] == [flame.float32, flame.bfloat16, flame.float32, flame.float32]


def test_backward_runs_in_the_dtypes_of_the_forward():
    x = flame.randn(3, 3, requires_grad=True)
    y = (x @ x).sum()
    with autocast("cpu"):
        y.backward()
    want = flame.ones(3, 3) @ x.detach().T + x.detach().T @ flame.ones(3, 3)
    assert flame.allclose(x.grad, want, rtol=1e-6)


def test_checkpointed_stretches_cast_again():
    from flame.utils.checkpoint import checkpoint

    model, x = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)), flame.randn(2, 4)
    grads = []
    for run in (model, lambda x: checkpoint(model, x, use_reentrant=False)):
        model.zero_grad()
        with autocast("cpu"):
            loss = run(x).float().square().sum()
        loss.backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    assert all(flame.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("cast_inputs", [None, flame.float32], ids=["as around", "float32"])
def test_custom_functions_state_their_precision(cast_inputs):
    seen = []

    class Product(flame.autograd.Function):
        @staticmethod
        @custom_fwd(device_type="cpu", cast_inputs=cast_inputs)
        def forward(ctx, a, b):
            ctx.save_for_backward(a, b)
            seen.append((a @ b).dtype)
            return a @ b

        @staticmethod
        @custom_bwd(device_type="cpu")
        def backward(ctx, g):
            a, b = ctx.saved_tensors
            seen.append((g.float() @ b.float().T).dtype)
            return g @ b.to(g.dtype).T, a.to(g.dtype).T @ g

    a, b = flame.randn(2, 2, requires_grad=True), flame.randn(2, 2, requires_grad=True)
    with autocast("cpu"):
        y = Product.apply(a.bfloat16() if cast_inputs else a, b)
    y.float().sum().backward()
    want = cast_inputs or flame.bfloat16
    assert seen == [want, want] and y.dtype is want
    Product.apply(a, b).sum().backward()
    assert seen[2:] == [flame.float32, flame.float32], "outside of a region nothing is cast"


# -------------------------------------------------------------------- GradScaler


def _scaled_training(compiled: bool, poison: set[int], steps: int = 8) -> tuple:
    flame.manual_seed(1)
    model = nn.Linear(4, 1)
    optimizer = flame.optim.Adam(model.parameters(), lr=0.05)
    scaler = GradScaler("cpu", init_scale=2.0**8, growth_interval=3)

    def step(x):
        optimizer.zero_grad()
        with autocast("cpu", dtype=flame.float16):
            loss = model(x).float().square().mean()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        return loss

    f = flame.compile(step) if compiled else step
    scales, losses = [], []
    for i in range(steps):
        x = flame.randn(8, 4)
        losses.append(f(x * float("inf") if i in poison else x).item())
        scales.append(scaler.get_scale())
    return scales, losses, model, optimizer, scaler, f


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_step_that_overflows_is_skipped_and_the_scale_moves(compiled):
    scales, losses, model, optimizer, scaler, f = _scaled_training(compiled, {4})
    assert scales == [256, 256, 512, 512, 256, 256, 256, 512]
    assert all(np.isfinite(p.detach().numpy()).all() for p in model.parameters())
    assert optimizer.state[model.weight]["step"] == 7, "a skipped step is not counted"
    if compiled:
        assert len(f.stats.breaks) == 1, "the one question is whether to step"
        plain = _scaled_training(False, {4})
        np.testing.assert_allclose(losses, plain[1], rtol=2e-2)
        assert scales == plain[0]


def test_the_scaler_is_saved_and_loaded():
    scaler = _scaled_training(False, set(), 2)[4]
    state = scaler.state_dict()
    assert state == {
        "scale": 256.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 3, "_growth_tracker": 2,
    }  # fmt: skip
    other = GradScaler("cpu")
    other.load_state_dict(state)
    assert other.state_dict() == state == pickle.loads(pickle.dumps(scaler)).state_dict()
    with pytest.raises(RuntimeError, match="empty"):
        other.load_state_dict({})
    off = GradScaler("cpu", enabled=False)
    assert off.scale(3) == 3 and off.get_scale() == 1.0 and off.state_dict() == {}


def test_methods_out_of_order_are_refused():
    p = nn.Parameter(flame.ones(2))
    optimizer, scaler = flame.optim.SGD([p], lr=0.1), GradScaler("cpu")
    for method in (scaler.step, scaler.unscale_):
        with pytest.raises(AssertionError, match="_scale is None"):
            method(optimizer)
    loss = scaler.scale(p.sum())
    with pytest.raises(AssertionError, match="No inf checks"):
        scaler.step(optimizer)
    loss.backward()
    scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match="already been called"):
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    for method in (scaler.step, scaler.unscale_):
        with pytest.raises(RuntimeError):
            method(optimizer)
    scaler.update(4.0)
    p.grad = None
    half = nn.Parameter(flame.ones(2).half())
    scaler.scale(half.sum()).backward()
    with pytest.raises(ValueError, match="FP16"):
        scaler.unscale_(flame.optim.SGD([half], lr=0.1))
    with pytest.raises(ValueError, match="iterable of Tensors"):
        scaler.scale(1.0)
    assert [float(x.detach()) for x in scaler.scale([p[0], p[1]])] == [4.0 * float(v) for v in p.detach()]
    for wrong in ({"growth_factor": 1.0}, {"backoff_factor": 1.0}):
        with pytest.raises(AssertionError, match="factor must be"):
            GradScaler("cpu", **wrong)


# -------------------------------------------------------------------- training


def test_a_gpt_in_bfloat16_arrives_where_float32_does():
    from flame.demo.models import CharGPT

    flame.manual_seed(0)
    vocabulary, length, batch = 12, 16, 8
    first = CharGPT(vocabulary, length, 32, 2, 1)
    pattern = flame.randint(0, vocabulary, (97,))
    losses = {}
    for name, enabled in (("float32", False), ("bfloat16", True)):
        model = copy.deepcopy(first)
        optimizer = flame.optim.AdamW(model.parameters(), lr=1e-2)

        @flame.compile(disable=not enabled)
        def step(x, y, model=model, optimizer=optimizer, enabled=enabled):
            optimizer.zero_grad()
            with autocast("cpu", enabled=enabled):
                loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            return loss

        flame.manual_seed(1)
        seen = []
        for _ in range(50):
            at = flame.randint(0, 97 - length - 1, (batch, 1)) + flame.arange(length + 1)
            words = pattern[at]
            seen.append(step(words[:, :-1], words[:, 1:]).item())
        losses[name] = sum(seen[-20:]) / 20, sum(seen) / len(seen)
    (end, mean), (end_16, mean_16) = losses["float32"], losses["bfloat16"]
    assert end < 0.7 * np.log(vocabulary), "it learned"
    assert abs(mean_16 - mean) < 0.02 * mean and abs(end_16 - end) < 0.02 * end, losses
