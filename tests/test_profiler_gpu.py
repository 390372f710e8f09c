"""A profile of work on a GPU: every kernel by its name, the user's lines, and the device's time."""

from __future__ import annotations

import json
from pathlib import Path

import fake_cuda
import pytest
from fake_cuda import gpu_for_tests

import flame
from flame.profiler import profile, record_function

pytest.importorskip("triton", reason="Triton is installed on Linux only")


def test_kernels_on_a_gpu_are_events_of_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_cuda, "run_interpreted", lambda *_: None)
    with gpu_for_tests() as fake:
        fake.cost = lambda source: 3.0 if source.entry.startswith("softmax") else 0.0
        x = flame.randn(8, 8, device="cuda")
        f = flame.compile(lambda x: flame.softmax((x * 2).relu() @ x, -1), options={"never_slower": False})
        for _ in range(3):
            f(x)
        x + 1
        flame.cuda.synchronize()
        before = fake.calls["cuCtxSynchronize"] + fake.calls["cuStreamSynchronize"]
        with profile(with_stack=True) as p:
            with record_function("both"):
                f(x)
            x + 1
            assert fake.calls["cuCtxSynchronize"] + fake.calls["cuStreamSynchronize"] == before  # nothing waits meanwhile
        events = [e for e in p.events() if e.kind == "gpu"]
        assert [e.name for e in events] == ["mul_relu_matmul_8x8x8", "softmax_8x8", "add_64"]
        assert all(e.arguments["on"].startswith("cuda:0 stream") and e.parent is None for e in events)
        assert "test_profiler_gpu.py" in events[0].source
        rows = {r.key: r for r in p.key_averages()}
        assert rows["softmax_8x8"].cuda_time_total > 2 * rows["add_64"].cuda_time_total > 0
        assert rows["softmax_8x8"].cpu_time_total == 0 and rows["both"].cuda_time_total == 0
        table = p.key_averages().table(sort_by="self_cuda_time_total")
        assert table.splitlines()[3].startswith("softmax_8x8") and "CUDA time total" in table
        p.export_chrome_trace(str(tmp_path / "trace.json"))
        trace = json.loads((tmp_path / "trace.json").read_text(encoding="utf-8"))["traceEvents"]
        assert {"mul_relu_matmul_8x8x8", "both"} <= {t["name"] for t in trace}
        f(x)
        flame.cuda.synchronize()
