"""Memory formats and tensors resized in place."""

from __future__ import annotations

import pytest

import flame


def test_formats_order_memory_and_keep_values() -> None:
    x = flame.arange(120.0).reshape(2, 3, 4, 5)
    y = x.to(memory_format=flame.channels_last)
    assert y.stride() == (60, 1, 15, 3) and flame.equal(x, y)
    assert y.is_contiguous(memory_format=flame.channels_last) and not y.is_contiguous()
    assert y.contiguous(memory_format=flame.channels_last) is y and y.contiguous().stride() == x.stride()
    with pytest.raises(RuntimeError, match="required rank 5"):
        x.to(memory_format=flame.channels_last_3d)
    with pytest.raises(TypeError, match="memory_format"):
        x.clone(memory_format=3)
    assert x.layout == flame.strided and x.to_sparse().layout == flame.sparse_coo


def test_tensors_are_resized_in_place() -> None:
    x = flame.arange(6.0)
    assert x.resize_(2, 2).tolist() == [[0.0, 1.0], [2.0, 3.0]]
    assert flame.arange(2.0).resize_(3).tolist()[:2] == [0.0, 1.0]
    with pytest.raises(RuntimeError, match="require grad"):
        flame.ones(2, requires_grad=True).resize_(3)
