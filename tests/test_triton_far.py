"""Sine, cosine and tangent of float64 on a GPU, for large numbers too, with nothing on a thread's stack."""

from __future__ import annotations

import numpy as np
import pytest

from flame import dtypes
from flame.compiler.graph import Builder, Graph
from flame.compiler.pipeline import compile_graph
from flame.compiler.schedule import choose_gpu
from flame.compiler.target import gpu
from flame.compiler.to_triton import to_triton
from flame.primitive import Spec, registered
from flame.runtime.triton_tools import run_interpreted

pytest.importorskip("triton", reason="Triton is installed on Linux only")

#: the float64 that is nearest to a multiple of pi / 2, and its cosine (which NumPy has 8 places off)
NEAREST, ITS_COSINE = 6381956970095103 * 2.0**797, -4.68716592425462761112e-19


@pytest.mark.parametrize("name", ["sin", "cos", "tan"])
def test_quarter_turns_of_large_numbers_are_exact(name: str) -> None:
    r = np.random.default_rng(4)
    large = r.standard_normal(600) * np.exp2(r.integers(20, 1023, 600))
    ends = [0.0, -0.0, np.inf, -np.inf, np.nan, 2.0**30, -(2.0**31), 1.7e308, 5e-324, np.pi, np.pi / 2]
    x = np.concatenate([r.standard_normal(100), r.standard_normal(100) * 1e5, large, ends, [NEAREST]])
    b = Builder(Graph(name=name))
    with b:
        b.graph.outputs = [registered(name)(b.input(Spec(x.shape, dtypes.float64)))]
    (kernel,) = compile_graph(b.graph, gpu("sm_90")).kernels
    source = to_triton(kernel, choose_gpu(kernel, gpu("sm_90")))
    assert "libdevice" not in source.text
    got, names = np.zeros_like(x), list(kernel.buffers)
    run_interpreted(source, {names[0]: x, names[1]: got})
    with np.errstate(all="ignore"):
        want = getattr(np, name)(x)
    want[-1] = {"sin": 1.0, "cos": ITS_COSINE, "tan": 1.0 / ITS_COSINE}[name]
    np.testing.assert_array_max_ulp(got, want, 2)
    np.testing.assert_array_equal(np.signbit(got[:-1][x[:-1] == 0]), np.signbit(want[:-1][x[:-1] == 0]))
