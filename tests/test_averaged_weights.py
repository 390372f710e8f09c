"""Means of weights over a training: beside PyTorch's, with the schedule and the batch statistics that go with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import flame
import flame.nn as nn
from flame.optim import swa_utils as ours

FUNCTIONS = {
    "mean": lambda m: {},
    "swa": lambda m: {"multi_avg_fn": m.get_swa_multi_avg_fn()},
    "ema": lambda m: {"multi_avg_fn": m.get_ema_multi_avg_fn(0.7)},
    "swa one by one": lambda m: {"avg_fn": m.get_swa_avg_fn()},
    "ema one by one": lambda m: {"avg_fn": m.get_ema_avg_fn(0.7)},
}


def model(n: Any) -> Any:
    return n.Sequential(n.Linear(3, 4), n.BatchNorm1d(4), n.ReLU(), n.Linear(4, 2))


def batches() -> list[np.ndarray]:
    rng = np.random.default_rng(2)
    return [rng.standard_normal((8, 3)).astype(np.float32) for _ in range(5)]


def averaged(framework: Any, module: Any, swa: Any, start: dict, key: str, use_buffers: bool, wrap: Any = lambda f: f) -> Any:
    net = model(module)
    net.load_state_dict({k: framework.tensor(v) for k, v in start.items()})
    mean = swa.AveragedModel(net, use_buffers=use_buffers, **FUNCTIONS[key](swa))
    optimizer = framework.optim.SGD(net.parameters(), lr=0.1)

    @wrap
    def step(x: Any) -> None:
        optimizer.zero_grad()
        (net(x) ** 2).mean().backward()
        optimizer.step()
        mean.update_parameters(net)

    for a in batches():
        step(framework.tensor(a))
    before = {k: v.numpy().copy() for k, v in mean.state_dict().items()}
    swa.update_bn([(framework.tensor(a), 0) for a in batches()], mean)
    return before, {k: v.numpy() for k, v in mean.state_dict().items()}, mean(framework.tensor(batches()[0])).detach().numpy()


def start() -> dict[str, np.ndarray]:
    flame.manual_seed(1)
    return {k: v.numpy().copy() for k, v in model(nn).state_dict().items()}


def agree(a: Any, b: Any) -> None:
    for x, y in zip(a[:2], b[:2], strict=True):
        assert list(x) == list(y)
        for k in x:
            assert x[k].dtype == y[k].dtype
            np.testing.assert_allclose(x[k], y[k], rtol=1e-4, atol=1e-5, err_msg=k)
    np.testing.assert_allclose(a[2], b[2], rtol=1e-4, atol=1e-5)


@pytest.mark.oracle
@pytest.mark.parametrize(("key", "use_buffers"), [*((k, False) for k in FUNCTIONS), ("mean", True), ("ema", True)])
def test_averages_agree_with_pytorch(torch: Any, key: str, use_buffers: bool) -> None:
    w = start()
    agree(
        averaged(flame, nn, ours, w, key, use_buffers),
        averaged(torch, torch.nn, torch.optim.swa_utils, w, key, use_buffers),
    )


@pytest.mark.parametrize("key", ["mean", "ema"])
def test_averages_are_the_same_compiled(key: str) -> None:
    w = start()
    agree(averaged(flame, nn, ours, w, key, False), averaged(flame, nn, ours, w, key, False, flame.compile))


def test_the_mean_of_weights_is_their_mean() -> None:
    net = nn.Linear(2, 2, bias=False)
    mean, seen = ours.AveragedModel(net), []
    for i in range(4):
        with flame.no_grad():
            net.weight.fill_(float(i * i))
        mean.update_parameters(net)
        seen.append(i * i)
    np.testing.assert_allclose(mean.module.weight.detach().numpy(), np.mean(seen), rtol=1e-6)
    assert mean.n_averaged.item() == 4 and mean.module is not net
    twin = ours.AveragedModel(net)
    twin.load_state_dict(mean.state_dict())
    twin.update_parameters(net), mean.update_parameters(net)
    assert np.array_equal(twin.module.weight.detach().numpy(), mean.module.weight.detach().numpy())


def test_statistics_are_left_alone_without_batch_norms_and_momenta_come_back() -> None:
    ours.update_bn(iter(()), nn.Linear(2, 2))
    net = nn.Sequential(nn.BatchNorm1d(3, momentum=0.3)).eval()
    with pytest.raises(RuntimeError, match="."):
        ours.update_bn([flame.ones(4, 5)], net)
    assert net[0].momentum == 0.3 and not net.training


@pytest.mark.oracle
@pytest.mark.parametrize("settings", [dict(swa_lr=0.05), dict(swa_lr=[0.3, 0.01], anneal_epochs=4, anneal_strategy="linear"),
                                      dict(swa_lr=0.2, anneal_epochs=0)], ids=str)  # fmt: skip
def test_the_schedule_agrees_with_pytorch(torch: Any, settings: dict) -> None:
    seen = []
    for framework, swa in ((flame, ours), (torch, torch.optim.swa_utils)):
        ps = [framework.ones(2, requires_grad=True) for _ in range(2)]
        o = framework.optim.SGD([{"params": [ps[0]]}, {"params": [ps[1]], "lr": 0.5}], lr=0.1)
        s = swa.SWALR(o, **settings)
        rates = [s.get_last_lr()]
        for _ in range(7):
            o.step()
            s.step()
            rates.append(s.get_last_lr())
        seen.append(rates)
    np.testing.assert_allclose(np.asarray(seen[0], float), np.asarray(seen[1], float), rtol=1e-9)


def test_what_makes_no_sense_is_refused() -> None:
    o = flame.optim.SGD([flame.ones(1, requires_grad=True)], lr=0.1)
    with pytest.raises(ValueError, match="'cos' or 'linear'"):
        ours.SWALR(o, 0.1, anneal_strategy="square")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="greater than 0, got -1"):
        ours.SWALR(o, 0.1, anneal_epochs=-1)
    with pytest.raises(ValueError, match="same length"):
        ours.SWALR(o, [0.1, 0.2])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Invalid decay value 1.5"):
        ours.get_ema_multi_avg_fn(1.5)
    with pytest.raises(AssertionError, match="Only one of"):
        ours.AveragedModel(nn.ReLU(), avg_fn=ours.get_swa_avg_fn(), multi_avg_fn=ours.get_swa_multi_avg_fn())
