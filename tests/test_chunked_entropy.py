"""`linear_cross_entropy` in chunks is the plain one: values and gradients, whatever the chunks are, and no logits of all rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import flame
import flame.nn.functional as F
from flame.nn import LinearCrossEntropyOptions
from flame.nn.functional import chunked_entropy

TOLERANCE = {flame.float64: 1e-12, flame.float32: 1e-5, flame.float16: 2e-2, flame.bfloat16: 1e-1}


def inputs(n: int, f: int, c: int, d: Any, seed: int = 0) -> tuple[Any, ...]:
    flame.manual_seed(seed)
    x, w, b = (flame.randn(*s).to(d).requires_grad_() for s in ((n, f), (c, f), (c,)))
    target = flame.randint(0, c, (n,))
    target[::3] = 1
    return x, w, b, target, flame.rand(c).to(d) + 0.5


def both(x: Any, w: Any, b: Any, target: Any, options: Any, **how: Any) -> list[list[np.ndarray]]:
    """[loss, gradients] in chunks, and plainly in float64."""
    out = []
    for o in (options, None):
        leaves = [t if t is None or o is not None else t.detach().double().requires_grad_() for t in (x, w, b)]
        more = {k: v.double() if o is None and isinstance(v, flame.Tensor) else v for k, v in how.items()}
        loss = F.linear_cross_entropy(leaves[0], leaves[1], target, linear_bias=leaves[2], options=o, **more)
        factor = flame.arange(loss.numel()).reshape(tuple(loss.shape)) + 1.0
        found = flame.autograd.grad((loss * factor).sum(), [t for t in leaves if t is not None])
        assert o is None or loss.dtype is x.dtype
        out.append([loss.detach().double().numpy(), *(g.double().numpy() for g in found)])
    return out


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("d", list(TOLERANCE), ids=str)
def test_chunks_change_nothing(d: Any, reduction: str) -> None:
    for seed, (n, f, c, rows) in enumerate([(7, 5, 11, 3), (4, 1, 3, 4), (9, 6, 20, 1), (1, 3, 2, 9)]):
        x, w, b, target, weight = inputs(n, f, c, d, seed)
        policy = ("auto", "accurate", "balanced", "compact")[seed]
        options = LinearCrossEntropyOptions(batch_chunk_size=rows, acc_policy=policy)
        for how in ({}, {"weight": weight}, {"ignore_index": 1}):
            got, want = both(x, w, b if seed % 2 else None, target, options, reduction=reduction, **how)
            if how.get("ignore_index") and bool((target == 1).all()) and reduction == "mean":
                assert np.isnan(got[0])
                continue
            for g, e in zip(got, want, strict=True):
                np.testing.assert_allclose(g, e, rtol=TOLERANCE[d], atol=TOLERANCE[d] * max(1.0, np.abs(e).max(initial=0)))


def test_logits_of_a_chunk_are_all_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    logits = chunked_entropy._Chunks.logits

    def told(chunks: Any, at: slice) -> Any:
        seen.append(logits(chunks, at))
        return seen[-1]

    monkeypatch.setattr(chunked_entropy._Chunks, "logits", told)
    x, w, _, target, _ = inputs(64, 4, 128, flame.float32)
    F.linear_cross_entropy(x, w, target, options=LinearCrossEntropyOptions(chunking_method="aspect_ratio")).backward()
    assert len(seen) == 32 and all(z.shape == (2, 128) for z in seen)  # as large as the input
    assert (
        LinearCrossEntropyOptions().rows(64, 4, 128) == 1
        and LinearCrossEntropyOptions(batch_chunk_size=5).rows(64, 4, 128) == 5
    )
    assert LinearCrossEntropyOptions(chunking_method=None).rows(64, 4, 128) == 64


def test_one_row_modules_and_compiled_functions() -> None:
    x, w, _, target, _ = inputs(6, 4, 9, flame.float32)
    options = LinearCrossEntropyOptions(batch_chunk_size=2)
    for reduction in ("mean", "none"):
        a, b = (F.linear_cross_entropy(x[0], w, target[0], reduction=reduction, options=o) for o in (options, None))
        assert a.shape == b.shape == () and a.item() == pytest.approx(b.item(), rel=1e-5)
    layer = flame.nn.LinearCrossEntropyLoss(4, 9, bias=True, options=options)
    plain = flame.nn.LinearCrossEntropyLoss(4, 9, bias=True)
    plain.load_state_dict(layer.state_dict())
    step = flame.compile(lambda x: flame.autograd.grad(layer(x, target), [x, *layer.parameters()]))
    for _ in range(3):
        for a, b in zip(step(x), flame.autograd.grad(plain(x, target), [x, *plain.parameters()]), strict=True):
            flame.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert "options=LinearCrossEntropyOptions(" in repr(layer)


def test_what_chunks_cannot_do_is_said() -> None:
    x, w, _, target, _ = inputs(6, 4, 9, flame.float32)
    options = LinearCrossEntropyOptions(batch_chunk_size=2)
    loss = F.linear_cross_entropy(x, w, target, options=options)
    first = flame.autograd.grad(loss, x, retain_graph=True)[0]
    assert flame.equal(first, flame.autograd.grad(loss, x, retain_graph=True)[0])
    with pytest.raises(RuntimeError, match="first order"):
        flame.autograd.grad(loss, x, create_graph=True)
    with pytest.warns(UserWarning, match="options are ignored"):
        F.linear_cross_entropy(x, w, target, label_smoothing=0.1, options=options)
    with pytest.raises(ValueError, match="different chunk sizes"):
        F.linear_cross_entropy(
            x, w, target, options=LinearCrossEntropyOptions(batch_chunk_size=3, chunking_method="aspect_ratio")
        )
    with pytest.raises(ValueError, match="batch_size"):
        F.linear_cross_entropy(x, w, target[:3], options=options)
    with pytest.raises(ValueError, match="not a valid value"):
        F.linear_cross_entropy(x, w, target, reduction="middle", options=options)
    for wrong in (
        {"acc_policy": "fast"},
        {"chunking_method": "aspect_ratio:0"},
        {"batch_chunk_size": 0},
        {"acc_dtype": flame.int32},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            LinearCrossEntropyOptions(**wrong)
