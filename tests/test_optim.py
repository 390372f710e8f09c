"""Optimizers and schedules: twenty steps beside PyTorch's, compiled beside eager, saved and loaded, and what they refuse."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import flame
import flame.nn as nn
import flame.nn.functional as F
from flame.optim import lr_scheduler as schedules

CASES: list[tuple[str, dict]] = [
    ("SGD", dict(lr=0.1)),
    ("SGD", dict(lr=0.1, momentum=0.9)),
    ("SGD", dict(lr=0.1, momentum=0.9, dampening=0.2, weight_decay=0.01)),
    ("SGD", dict(lr=0.1, momentum=0.9, nesterov=True, maximize=True)),
    ("Adam", dict(lr=0.05)),
    ("Adam", dict(lr=0.05, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.1, amsgrad=True)),
    ("Adam", dict(lr=0.05, weight_decay=0.1, decoupled_weight_decay=True)),
    ("AdamW", dict(lr=0.05)),
    ("AdamW", dict(lr=0.05, weight_decay=0.2, amsgrad=True, maximize=True)),
    ("Adamax", dict(lr=0.05, weight_decay=0.1)),
    ("NAdam", dict(lr=0.05, weight_decay=0.1)),
    ("NAdam", dict(lr=0.05, weight_decay=0.1, decoupled_weight_decay=True)),
    ("RAdam", dict(lr=0.05, weight_decay=0.1)),
    ("RAdam", dict(lr=0.05, weight_decay=0.1, decoupled_weight_decay=True)),
    ("RMSprop", dict(lr=0.05)),
    ("RMSprop", dict(lr=0.05, alpha=0.9, momentum=0.8, centered=True, weight_decay=0.1)),
    ("Adagrad", dict(lr=0.1, lr_decay=0.1, weight_decay=0.1, initial_accumulator_value=0.5)),
    ("Adadelta", dict(lr=1.0, weight_decay=0.1)),
    ("Rprop", dict(lr=0.05)),
    ("ASGD", dict(lr=0.05, t0=6.0, weight_decay=0.1, lambd=0.01)),
    ("Adafactor", dict(lr=0.3)),
    ("Adafactor", dict(lr=0.05, beta2_decay=-0.5, eps=(1e-4, 1e-2), d=1.5, weight_decay=0.1, maximize=True)),
]
ids = lambda v: "-".join(f"{k}={w}" for k, w in v.items()) if isinstance(v, dict) else str(v)


def model(nn: Any, weights: list[np.ndarray], tensor: Callable) -> list[Any]:
    return [tensor(w.copy(), requires_grad=True) for w in weights]


def loss(ps: list[Any], x: Any) -> Any:
    """Curved in every parameter, and pulled another way at every step by x."""
    w, v, s = ps
    return ((x @ w).tanh() * v).sum() * 0.3 + (w * w).sum() * 0.2 + ((v - 1) ** 4).sum() * 0.05 + s * s


def weights() -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [rng.standard_normal(s).astype(np.float32) for s in ((4, 3), (3,), ())]


def train(ps: list[Any], optimizer: Any, tensor: Callable, steps: int = 20, wrap: Callable = lambda f: f) -> list[np.ndarray]:
    rng = np.random.default_rng(9)

    @wrap
    def step(x: Any) -> Any:
        optimizer.zero_grad()
        y = loss(ps, x)
        y.backward()
        optimizer.step()
        return y

    for _ in range(steps):
        step(tensor(rng.standard_normal((5, 4)).astype(np.float32)))
    return [p.detach().numpy() for p in ps]


def agree(a: list[np.ndarray], b: list[np.ndarray], tol: float = 2e-4) -> None:
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, rtol=tol, atol=tol / 10)


@pytest.mark.oracle
@pytest.mark.parametrize(("name", "settings"), CASES, ids=ids)
def test_twenty_steps_agree_with_pytorch(torch: Any, name: str, settings: dict) -> None:
    ours, theirs = model(nn, weights(), flame.tensor), model(torch.nn, weights(), torch.tensor)
    a, b = getattr(flame.optim, name)(ours, **settings), getattr(torch.optim, name)(theirs, **settings)
    agree(train(ours, a, flame.tensor), train(theirs, b, torch.tensor))
    mine, its = a.state_dict(), b.state_dict()
    assert mine["state"].keys() == its["state"].keys()
    for k, s in its["state"].items():
        assert set(mine["state"][k]) == set(s)
        for n, v in s.items():
            assert isinstance(mine["state"][k][n], flame.Tensor) or not isinstance(v, torch.Tensor), n
            np.testing.assert_allclose(np.float64(mine["state"][k][n]), np.float64(v), rtol=2e-3, atol=1e-5)
    if "decoupled_weight_decay" in its["param_groups"][0]:  # the newest layout
        assert set(mine["param_groups"][0]) == set(its["param_groups"][0])


@pytest.mark.oracle
@pytest.mark.parametrize(("name", "settings"), CASES, ids=ids)
def test_a_state_of_pytorchs_goes_on_here(torch: Any, name: str, settings: dict) -> None:
    theirs = model(torch.nn, weights(), torch.tensor)
    b = getattr(torch.optim, name)(theirs, **settings)
    train(theirs, b, torch.tensor, steps=5)
    ours = model(nn, [p.detach().numpy() for p in theirs], flame.tensor)
    a = getattr(flame.optim, name)(ours)
    state = b.state_dict()
    convert = lambda v: flame.tensor(v.numpy()) if isinstance(v, torch.Tensor) else v
    state["state"] = {k: {n: convert(v) for n, v in s.items()} for k, s in state["state"].items()}
    a.load_state_dict(state)
    agree(train(ours, a, flame.tensor, steps=5), train(theirs, b, torch.tensor, steps=5))


@pytest.mark.oracle
@pytest.mark.parametrize(("name", "settings"), CASES, ids=ids)
def test_a_state_of_ours_goes_on_in_pytorch(torch: Any, name: str, settings: dict) -> None:
    ours = model(nn, weights(), flame.tensor)
    a = getattr(flame.optim, name)(ours, **settings)
    train(ours, a, flame.tensor, steps=5)
    theirs = model(torch.nn, [p.detach().numpy() for p in ours], torch.tensor)
    b = getattr(torch.optim, name)(theirs)
    state = a.state_dict()
    convert = lambda v: torch.tensor(v.numpy().copy()) if isinstance(v, flame.Tensor) else v
    state["state"] = {k: {n: convert(v) for n, v in s.items()} for k, s in state["state"].items()}
    b.load_state_dict(state)
    agree(train(ours, a, flame.tensor, steps=5), train(theirs, b, torch.tensor, steps=5))


@pytest.mark.parametrize(("name", "settings"), CASES, ids=ids)
def test_compiled_training_is_the_eager_one(name: str, settings: dict) -> None:
    both = []
    for wrap in (lambda f: f, flame.compile):
        ps = model(nn, weights(), flame.tensor)
        optimizer = getattr(flame.optim, name)(ps, **settings)
        both.append(train(ps, optimizer, flame.tensor, steps=10, wrap=wrap))
    agree(*both)


@pytest.mark.parametrize(("name", "settings"), [c for c in CASES if c[0] not in ("RAdam", "ASGD")], ids=ids)
def test_compiled_steps_settle_after_two(name: str, settings: dict) -> None:
    """The first step is recorded as all others, and numbers that change with the step become run-time scalars at the second."""
    ps = model(nn, weights(), flame.tensor)
    optimizer = getattr(flame.optim, name)(ps, **settings)

    @flame.compile
    def step(x: flame.Tensor) -> None:
        optimizer.zero_grad()
        loss(ps, x).backward()
        optimizer.step()

    recorded = []
    for _ in range(6):
        step(flame.randn(5, 4))
        recorded.append(step.stats.recorded)
    assert recorded[1:] == [recorded[1]] * 5 and not step.given_up and step.stats.compiled <= 1


@pytest.mark.parametrize(("name", "settings"), CASES, ids=ids)
def test_saved_and_loaded_it_goes_on_the_same(name: str, settings: dict) -> None:
    ps = model(nn, weights(), flame.tensor)
    optimizer = getattr(flame.optim, name)(ps, **settings)
    train(ps, optimizer, flame.tensor, steps=4)
    saved = pickle.loads(pickle.dumps(optimizer.state_dict()))
    twin = [flame.tensor(p.detach().numpy().copy(), requires_grad=True) for p in ps]
    other = getattr(flame.optim, name)(twin)
    other.load_state_dict(saved)
    a, b = train(ps, optimizer, flame.tensor, steps=3), train(twin, other, flame.tensor, steps=3)
    for x, y in zip(a, b, strict=True):
        assert np.array_equal(x, y)


def test_layout_of_the_saved_state() -> None:
    p, q = flame.ones(2, requires_grad=True), flame.ones(3, requires_grad=True)
    optimizer = flame.optim.Adam([{"params": [p], "lr": 0.5}, {"params": q}], lr=0.1)
    (p.sum() + q.sum()).backward()
    optimizer.step()
    s = optimizer.state_dict()
    assert [g["params"] for g in s["param_groups"]] == [[0], [1]]
    assert [g["lr"] for g in s["param_groups"]] == [0.5, 0.1]
    assert s["state"][0]["step"].dtype is flame.float32 and s["state"][0]["step"].item() == 1
    assert s["state"][1]["exp_avg"].shape == (3,)
    np.testing.assert_allclose(p.detach().numpy(), 0.5, rtol=1e-6)
    with pytest.raises(ValueError, match="different number of parameter groups"):
        flame.optim.Adam([p]).load_state_dict(s)
    with pytest.raises(ValueError, match="doesn't match the size"):
        flame.optim.Adam([{"params": [p, flame.ones(1)]}, {"params": [q]}]).load_state_dict(s)
    clone = copy.deepcopy(optimizer)
    assert clone.state_dict()["state"][0]["step"].item() == 1 and clone.param_groups[0]["params"][0] is not p


def test_groups_gradients_and_closures() -> None:
    m = nn.Linear(2, 1)
    optimizer = flame.optim.SGD([m.weight], lr=1.0)
    optimizer.add_param_group({"params": [m.bias], "lr": 0.0})
    before = m.bias.detach().clone()

    def closure() -> flame.Tensor:
        optimizer.zero_grad()
        y = m(flame.ones(1, 2)).sum()
        y.backward()
        return y

    w = m.weight.detach().clone()
    y = optimizer.step(closure)
    assert y.requires_grad and np.array_equal(m.bias.detach().numpy(), before.numpy())
    np.testing.assert_allclose(m.weight.detach().numpy(), w.numpy() - 1)
    optimizer.zero_grad(set_to_none=False)
    assert m.weight.grad.tolist() == [[0, 0]]
    optimizer.zero_grad()
    assert m.weight.grad is None
    optimizer.step()  # without gradients nothing moves
    np.testing.assert_allclose(m.weight.detach().numpy(), w.numpy() - 1)
    assert m.weight.requires_grad and m.weight.is_leaf
    named = flame.optim.SGD(m.named_parameters(), lr=1.0)
    assert named.param_groups[0]["param_names"] == ["weight", "bias"]
    log = []
    optimizer.register_step_pre_hook(lambda o, a, k: log.append("pre"))
    handle = optimizer.register_step_post_hook(lambda o, a, k: log.append("post"))
    optimizer.step()
    handle.remove()
    optimizer.step()
    assert log == ["pre", "post", "pre"]
    assert repr(flame.optim.SGD([m.weight], lr=0.5)).startswith("SGD (\nParameter Group 0\n    dampening: 0\n")


def test_a_tensor_as_learning_rate() -> None:
    p = flame.ones(2, requires_grad=True)
    rate = flame.tensor(0.5)
    optimizer = flame.optim.SGD([p], lr=rate)
    p.sum().backward()
    optimizer.step()
    assert p.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_parameters_keep_their_dtype(dtype: str) -> None:
    for name, settings in CASES:
        p = flame.ones(4, dtype=getattr(flame, dtype), requires_grad=True)
        optimizer = getattr(flame.optim, name)(
            [p], **{**settings, "eps": 1e-4} if isinstance(settings.get("eps"), float) else settings
        )
        for _ in range(2):
            (p * p).sum().backward()
            optimizer.step()
        assert p.dtype is getattr(flame, dtype)


def test_wrong_arguments_are_refused() -> None:
    p = flame.ones(2, requires_grad=True)
    sgd, adam = flame.optim.SGD, flame.optim.Adam
    with pytest.raises(ValueError, match="empty parameter list"):
        sgd([], lr=0.1)
    with pytest.raises(TypeError, match="iterable of Tensors or dicts"):
        sgd(p, lr=0.1)
    with pytest.raises(TypeError, match="one of the params is int"):
        sgd([1], lr=0.1)
    with pytest.raises(ValueError, match="non-leaf"):
        sgd([p * 2], lr=0.1)
    with pytest.raises(ValueError, match="more than once"):
        sgd([p, p], lr=0.1)
    with pytest.raises(ValueError, match="more than one parameter group"):
        sgd([{"params": [p]}, {"params": [p]}], lr=0.1)
    with pytest.raises(TypeError, match="ordered collections"):
        sgd([{"params": {p}}], lr=0.1)
    with pytest.raises(ValueError, match="Invalid learning rate: -1"):
        sgd([p], lr=-1)
    with pytest.raises(ValueError, match="Nesterov"):
        sgd([p], lr=0.1, nesterov=True)
    with pytest.raises(ValueError, match="Invalid beta parameter at index 1: 1.5"):
        adam([p], betas=(0.9, 1.5))
    with pytest.raises(ValueError, match="differentiable=True is not supported"):
        adam([p], differentiable=True)


# -------------------------------------------------------------------- schedules

SCHEDULES: list[tuple[str, dict]] = [
    ("StepLR", dict(step_size=3, gamma=0.5)),
    ("MultiStepLR", dict(milestones=[2, 5, 5, 9], gamma=0.5)),
    ("ExponentialLR", dict(gamma=0.9)),
    ("ConstantLR", dict(factor=0.3, total_iters=4)),
    ("LinearLR", dict(start_factor=0.2, end_factor=0.8, total_iters=6)),
    ("PolynomialLR", dict(total_iters=7, power=2.0)),
    ("CosineAnnealingLR", dict(T_max=5, eta_min=0.01)),
    ("CosineAnnealingWarmRestarts", dict(T_0=3, T_mult=2, eta_min=0.01)),
    ("OneCycleLR", dict(max_lr=0.5, total_steps=20)),
    ("OneCycleLR", dict(max_lr=[0.5, 0.1], epochs=4, steps_per_epoch=5, three_phase=True, anneal_strategy="linear")),
    ("LambdaLR", dict(lr_lambda=lambda e: 1 / (1 + e))),
    ("LambdaLR", dict(lr_lambda=[lambda e: 0.9**e, lambda e: 1.0 + e])),
    ("MultiplicativeLR", dict(lr_lambda=lambda e: 0.95)),
    ("CyclicLR", dict(base_lr=0.1, max_lr=0.5, step_size_up=3)),
    ("CyclicLR", dict(base_lr=[0.1, 0.2], max_lr=0.5, step_size_up=3, step_size_down=2, mode="triangular2", base_momentum=0.5)),
    ("CyclicLR", dict(base_lr=0.1, max_lr=0.5, step_size_up=4, mode="exp_range", gamma=0.9, cycle_momentum=False)),
    ("CyclicLR", dict(base_lr=0.1, max_lr=0.5, step_size_up=2, scale_fn=lambda x: 0.5**x, scale_mode="iterations")),
]


def followed(optim: Any, tensor: Callable, name: str, settings: dict, steps: int) -> list[list[float]]:
    ps = [tensor(np.ones(2, np.float32), requires_grad=True) for _ in range(2)]
    optimizer = optim.SGD([{"params": [ps[0]]}, {"params": [ps[1]], "lr": 0.4}], lr=0.2, momentum=0.9)
    schedule = getattr(optim.lr_scheduler, name)(optimizer, **settings)
    out = []
    for _ in range(steps):
        optimizer.step()
        out.append([g[k] for g in optimizer.param_groups for k in ("lr", "momentum")] + schedule.get_last_lr())
        schedule.step()
    return out


@pytest.mark.oracle
@pytest.mark.parametrize(("name", "settings"), SCHEDULES, ids=lambda v: v if isinstance(v, str) else "")
def test_schedules_agree_with_pytorch(torch: Any, name: str, settings: dict) -> None:
    ours = followed(flame.optim, flame.tensor, name, settings, 18)
    np.testing.assert_allclose(ours, followed(torch.optim, torch.tensor, name, settings, 18), rtol=1e-9)


@pytest.mark.oracle
@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("threshold_mode", ["rel", "abs"])
def test_reduce_on_plateau_agrees_with_pytorch(torch: Any, mode: str, threshold_mode: str) -> None:
    measures = np.random.default_rng(0).integers(0, 4, 40) / 4 + 1.0
    both = []
    for optim, tensor in ((flame.optim, flame.tensor), (torch.optim, torch.tensor)):
        optimizer = optim.SGD([tensor(np.ones(1, np.float32), requires_grad=True)], lr=1.0)
        s = optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, mode, patience=2, cooldown=1, min_lr=1e-4, threshold=0.1, threshold_mode=threshold_mode
        )
        rates = []
        for m in measures:
            s.step(tensor(m))
            rates.append(optimizer.param_groups[0]["lr"])
        both.append(rates)
    np.testing.assert_allclose(*both, rtol=1e-12)


@pytest.mark.oracle
def test_schedules_in_sequence_and_chained_agree_with_pytorch(torch: Any) -> None:
    for kind in ("sequence", "chain"):
        both = []
        for optim, tensor in ((flame.optim, flame.tensor), (torch.optim, torch.tensor)):
            optimizer = optim.SGD([tensor(np.ones(1, np.float32), requires_grad=True)], lr=1.0)
            s = optim.lr_scheduler
            parts = [s.LinearLR(optimizer, 0.1, total_iters=4), s.ExponentialLR(optimizer, 0.8)]
            whole = s.SequentialLR(optimizer, parts, [5]) if kind == "sequence" else s.ChainedScheduler(parts)
            rates = []
            for _ in range(10):
                optimizer.step()
                rates.append(optimizer.param_groups[0]["lr"])
                whole.step()
            both.append(rates)
        np.testing.assert_allclose(*both, rtol=1e-9)


@pytest.mark.parametrize(("name", "settings"), SCHEDULES, ids=lambda v: v if isinstance(v, str) else "")
def test_a_loaded_schedule_goes_on(name: str, settings: dict) -> None:
    def start() -> tuple[Any, Any]:
        ps = [flame.ones(1, requires_grad=True) for _ in range(2)]
        optimizer = flame.optim.SGD([{"params": [p]} for p in ps], lr=0.2, momentum=0.9)
        return optimizer, getattr(schedules, name)(optimizer, **settings)

    (a, s), (b, t) = start(), start()
    a.step()
    for _ in range(5):
        s.step()
    b.load_state_dict(a.state_dict())
    t.load_state_dict(copy.deepcopy(s.state_dict()))
    for _ in range(5):
        s.step()
        t.step()
        assert s.get_last_lr() == t.get_last_lr() and a.param_groups[0]["lr"] == b.param_groups[0]["lr"]


def test_schedules_say_what_is_wrong() -> None:
    optimizer = flame.optim.SGD([flame.ones(1, requires_grad=True)], lr=1.0)
    with pytest.raises(TypeError, match="is not an Optimizer"):
        schedules.StepLR(1, 2)
    with pytest.raises(ValueError, match="Expected 1 lr_lambdas, but got 2"):
        schedules.LambdaLR(optimizer, [abs, abs])
    with pytest.raises(ValueError, match="total_steps OR"):
        schedules.OneCycleLR(optimizer, 0.1)
    s = schedules.StepLR(optimizer, 2)
    with pytest.warns(UserWarning, match="before `optimizer.step"):
        s.step()
    fresh = flame.optim.SGD([flame.ones(1, requires_grad=True)], lr=1.0)
    with pytest.raises(KeyError, match="initial_lr"):
        schedules.StepLR(fresh, 2, last_epoch=3)


def test_training_lowers_the_loss() -> None:
    flame.manual_seed(0)
    x = flame.randn(64, 8)
    y = (x[:, :3].sum(1) > 0).long()
    m = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 2))
    optimizer = flame.optim.AdamW(m.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        value = F.cross_entropy(m(x), y)
        value.backward()
        nn.utils.clip_grad_norm_(m.parameters(), 1.0)
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < 0.1 < 0.5 < losses[0]


# -------------------------------------------------------------------- Muon and L-BFGS


@pytest.mark.oracle
@pytest.mark.parametrize(
    "settings", [dict(), dict(nesterov=False, adjust_lr_fn="match_rms_adamw", momentum=0.8, ns_steps=3)], ids=ids
)
def test_muon_agrees_with_pytorch(torch: Any, settings: dict) -> None:
    """Up to the rounding of bfloat16, in which it computes directions."""
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this version of PyTorch has no Muon")
    both = []
    for lib in (flame, torch):
        ps = [lib.tensor(w, requires_grad=True) for w in (weights()[0], weights()[0].T.copy())]
        optimizer = lib.optim.Muon(ps, lr=0.02, **settings)
        for k in range(5):
            optimizer.zero_grad()
            sum(((p - 0.3 * k) ** 2).sum() for p in ps).backward()
            optimizer.step()
        both.append([p.detach().numpy() for p in ps])
        assert set(optimizer.state_dict()["state"][0]) == {"momentum_buffer"}
    agree(*both, tol=0.03)
    with pytest.raises(ValueError, match="only supports 2D"):
        flame.optim.Muon([flame.ones(3, requires_grad=True)])
    with pytest.raises(ValueError, match="not supported"):
        flame.optim.Muon([flame.ones(3, 2, requires_grad=True)], adjust_lr_fn="x")


def rosenbrock(x: Any) -> Any:
    return ((1 - x[:-1]) ** 2 + 100 * (x[1:] - x[:-1] ** 2) ** 2).sum()


LBFGS = [
    dict(lr=0.002, max_iter=4),
    dict(line_search_fn="strong_wolfe", max_iter=4),
    dict(lr=0.5, line_search_fn="strong_wolfe", history_size=3, max_iter=6, max_eval=9),
]


@pytest.mark.oracle
@pytest.mark.parametrize("settings", LBFGS, ids=ids)
def test_lbfgs_agrees_with_pytorch(torch: Any, settings: dict) -> None:
    both: list = []
    for lib in (flame, torch):
        x = lib.tensor(np.array([-1.2, 1.0, 0.5]), requires_grad=True)
        optimizer = lib.optim.LBFGS([x], **settings)

        def closure(x: Any = x, optimizer: Any = optimizer) -> Any:
            optimizer.zero_grad()
            y = rosenbrock(x)
            y.backward()
            return y

        path = []
        for _ in range(8):
            path += [optimizer.step(closure).item(), *x.detach().tolist()]
        state = optimizer.state_dict()["state"][0]
        both.append([path, state["func_evals"], state["n_iter"], len(state["old_dirs"])])
    assert both[0][1:] == both[1][1:]
    np.testing.assert_allclose(both[0][0], both[1][0], rtol=1e-5, atol=1e-9)


def test_lbfgs_finds_the_minimum_and_goes_on_when_loaded() -> None:
    x, y = (flame.tensor([-1.2, 1.0, 0.5], dtype=flame.float64, requires_grad=True) for _ in range(2))
    one, two = (flame.optim.LBFGS([p], line_search_fn="strong_wolfe", max_iter=5) for p in (x, y))
    compiled = flame.compile(rosenbrock)

    def closure(p: flame.Tensor, f: Callable) -> Callable:
        def run() -> flame.Tensor:
            p.grad = None
            value = f(p)
            value.backward()
            return value

        return run

    for _ in range(2):
        one.step(closure(x, rosenbrock))
    with flame.no_grad():
        y.copy_(x)
    two.load_state_dict(pickle.loads(pickle.dumps(one.state_dict())))
    for _ in range(14):
        one.step(closure(x, rosenbrock))
        two.step(closure(y, compiled))
    np.testing.assert_allclose(x.tolist(), [1.0] * 3, atol=1e-5)
    np.testing.assert_allclose(x.tolist(), y.tolist(), rtol=1e-9)
    with pytest.raises(ValueError, match="parameter groups"):
        flame.optim.LBFGS([{"params": [x]}, {"params": [y]}])
    with pytest.raises(RuntimeError, match="only 'strong_wolfe'"):
        flame.optim.LBFGS([x], line_search_fn="x").step(closure(x, rosenbrock))
    with pytest.raises(TypeError, match="closure"):
        one.step()


def test_hooks_around_saving_and_loading() -> None:
    p = flame.ones(2, requires_grad=True)
    optimizer = flame.optim.SGD([p], lr=0.5)
    log: list[str] = []
    handles = [
        optimizer.register_state_dict_pre_hook(lambda o: log.append("save")),
        optimizer.register_state_dict_post_hook(lambda o, s: {**s, "more": 1}),
        optimizer.register_load_state_dict_pre_hook(lambda o, s: log.append("second")),
        optimizer.register_load_state_dict_pre_hook(lambda o, s: log.append("first"), prepend=True),
        optimizer.register_load_state_dict_post_hook(lambda o: log.append("done")),
    ]
    saved = optimizer.state_dict()
    assert saved["more"] == 1 and log == ["save"]
    optimizer.load_state_dict(saved)
    assert log == ["save", "first", "second", "done"]
    copy.deepcopy(optimizer).load_state_dict(saved)
    for h in handles:
        h.remove()
    optimizer.load_state_dict(optimizer.state_dict())
    assert log == ["save", "first", "second", "done"]


def test_what_is_for_sparse_gradients_says_so() -> None:
    with pytest.raises(RuntimeError, match="use Adam"):
        flame.optim.SparseAdam([flame.ones(2, requires_grad=True)])
    for bad in (dict(beta2_decay=1.0), dict(eps=(None, -1.0)), dict(d=0.5), dict(weight_decay=-1.0)):
        with pytest.raises(ValueError, match="should be"):
            flame.optim.Adafactor([flame.ones(2, requires_grad=True)], **bad)


@pytest.mark.oracle
@pytest.mark.parametrize("name", flame.optim.__all__)
def test_constructors_are_pytorchs(torch: Any, name: str) -> None:
    cls = getattr(flame.optim, name)
    if name in ("lr_scheduler", "Optimizer", "SparseAdam") or not hasattr(torch.optim, name):
        return
    ours, theirs = (inspect.signature(c.__init__).parameters for c in (cls, getattr(torch.optim, name)))
    assert list(ours) == list(theirs) or set(theirs) < set(ours)
    for k, p in theirs.items():
        if not (name.startswith("Adam") and k in ("weight_decay", "decoupled_weight_decay")):  # one class gives these to two
            assert p.default == ours[k].default and p.kind == ours[k].kind, k


@pytest.mark.oracle
def test_every_schedule_has_pytorchs_constructor(torch: Any) -> None:
    for name in dir(schedules):
        cls, other = getattr(schedules, name), getattr(torch.optim.lr_scheduler, name, None)
        if isinstance(cls, type) and name.endswith(("LR", "Restarts", "Plateau", "Scheduler")):
            ours, theirs = (inspect.signature(c.__init__).parameters for c in (cls, other))
            assert [(k, p.default) for k, p in theirs.items()] == [(k, p.default) for k, p in ours.items()], name
