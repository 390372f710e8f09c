"""Plans as graphs of the driver: the same launches with this call's addresses, told anew only where something differs."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from typing import Any

import kernels_for_tests as made
import numpy as np
import pytest
from fake_cuda import FakeLibrary, gpu_for_tests

import flame
from flame.compiler.schedule import choose_gpu
from flame.compiler.to_triton import to_triton
from flame.errors import CudaError
from flame.runtime import cuda, cuda_graph
from flame.runtime.cuda_driver import KernelNode
from flame.runtime.cuda_gpu import Gpu, Memory
from flame.runtime.cuda_graph import LEAST, GraphPlan
from flame.runtime.cuda_plan import ARENA, FIRST

pytest.importorskip("triton", reason="Triton is installed on Linux only")

NAME = "softmax_float32_77"
STEPS = LEAST + 1


@pytest.fixture
def fake() -> Iterator[FakeLibrary]:
    with gpu_for_tests() as library:
        yield library


class Chain:
    """One kernel applied STEPS times, to itself through an arena, and what that gives."""

    def __init__(self, gpu: Gpu):
        kernel, buffers, symbols = made.cases()[NAME]
        self.kernel, self.gpu = kernel, gpu
        source = to_triton(kernel, choose_gpu(kernel, gpu.target, symbols))
        [self.out] = kernel.outputs
        self.given = [b for b in kernel.buffers if b not in kernel.outputs]
        self.x = buffers
        self.nbytes = buffers[self.out].nbytes
        self.stride = -(-self.nbytes // 256) * 256
        f = gpu.compile(source)
        steps = []
        for i in range(STEPS):
            places = {b: (FIRST + k, 0) for k, b in enumerate(self.given)}
            if i:
                places[self.given[0]] = (ARENA, (i % 2) * self.stride)
            places[self.out] = (FIRST + len(self.given), 0) if i == STEPS - 1 else (ARENA, ((i + 1) % 2) * self.stride)
            steps.append(f.step(source.grid(symbols), [places[p.buffer] for p in source.parameters], f"step {i}"))
        self.plan = gpu.plan(steps, len(self.given) + 1, graph=True)
        assert isinstance(self.plan, GraphPlan)
        self.arena = gpu.allocate(2 * self.stride)

    def inputs(self) -> list[Memory]:
        held = [self.gpu.allocate(self.x[b].nbytes) for b in self.given]
        for m, b in zip(held, self.given, strict=True):
            self.gpu.copy_in(m, self.x[b])
        return held

    def run(self, inputs: list[Memory], arena: Memory | None = None) -> Memory:
        result = self.gpu.allocate(self.nbytes)
        where = (self.arena if arena is None else arena).address
        self.gpu.run(self.plan, where, *(m.address for m in (*inputs, result)))
        return result

    def expected(self) -> np.ndarray:
        arrays = {b: self.x[b].copy() for b in self.given}
        for _ in range(STEPS):
            out = made.run((self.kernel, {**arrays, self.out: np.zeros_like(self.x[self.out])}, {}))[self.out]
            arrays[self.given[0]] = out
        return out

    def check(self, result: Memory) -> None:
        got = np.empty_like(self.x[self.out])
        self.gpu.copy_out(got, result)
        np.testing.assert_allclose(got, self.expected(), rtol=1e-4, atol=1e-5)


def test_a_kernel_node_lies_as_the_driver_reads_it() -> None:
    offsets = [getattr(KernelNode, n).offset for n, _ in KernelNode._fields_]
    assert offsets == [0, 8, 20, 32, 40, 48, 56, 64] and ctypes.sizeof(KernelNode) == 72


def test_a_graph_gives_what_its_plan_gives_and_results_are_safe_to_keep(fake: FakeLibrary) -> None:
    chain = Chain(cuda.gpu())
    inputs = chain.inputs()
    results = [chain.run(inputs) for _ in range(5)]  # all kept: each is memory of its own
    assert len({m.address for m in results}) == 5
    for m in results:
        chain.check(m)
    assert fake.calls["cuLaunchKernel"] == STEPS  # the first call; then there is a graph
    assert fake.calls["cuGraphLaunch"] == 4 and fake.calls["cuGraphInstantiate"] == 1
    assert fake.calls["cuGraphExecKernelNodeSetParams"] == 3  # the last kernel, whose result goes elsewhere


def test_nothing_is_told_where_nothing_differs(fake: FakeLibrary) -> None:
    chain = Chain(cuda.gpu())
    inputs = chain.inputs()
    for _ in range(6):
        chain.check(chain.run(inputs))  # the result dies, and its memory comes back
    assert fake.calls["cuGraphExecKernelNodeSetParams"] == 0 and fake.calls["cuGraphLaunch"] == 5
    chain.x = {b: a + np.float32(1) for b, a in chain.x.items()}
    chain.check(chain.run(chain.inputs()))
    assert 1 <= fake.calls["cuGraphExecKernelNodeSetParams"] <= 2  # the step that reads the input, and the one that ends it
    other = chain.gpu.allocate(2 * chain.stride)
    chain.check(chain.run(chain.inputs(), other))


def test_a_graph_whose_nodes_always_differ_is_given_up(fake: FakeLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graph, "_TRIAL", 6)
    chain = Chain(cuda.gpu())
    inputs, arenas = chain.inputs(), [chain.gpu.allocate(2 * chain.stride) for _ in range(2)]
    for i in range(cuda_graph._TRIAL + 3):
        m = chain.run(inputs, arenas[i % 2])
    chain.check(m)
    assert not chain.plan.pays and chain.plan.graph is None and len(chain.gpu.graphs) == 0  # type: ignore[attr-defined]
    assert fake.calls["cuGraphLaunch"] == cuda_graph._TRIAL - 1
    chain.gpu.synchronize()


def test_a_device_has_a_bounded_number_of_graphs(fake: FakeLibrary) -> None:
    gpu = cuda.gpu()
    gpu.graphs.most = 2
    chains = [Chain(gpu) for _ in range(3)]
    inputs = chains[0].inputs()
    for _ in range(2):
        for chain in chains:
            chain.run(inputs)
            chain.check(chain.run(inputs))
            assert len(gpu.graphs) <= 2
    assert fake.calls["cuGraphInstantiate"] == 6 and fake.calls["cuGraphExecDestroy"] >= 3
    del chain, chains
    assert len(gpu.graphs) == 0  # graphs die with their plans


def test_short_plans_are_launched_as_they_are(fake: FakeLibrary) -> None:
    gpu = cuda.gpu()
    chain = Chain(gpu)
    short = gpu.plan(chain.plan.steps[: LEAST - 1], len(chain.given) + 1, graph=True)
    words = [m.address for m in chain.inputs()]
    for _ in range(3):
        gpu.run(short, chain.arena.address, *words, chain.arena.address)
    assert not fake.calls["cuGraphLaunch"]
    empty = gpu.plan([], 0, graph=True)
    for _ in range(3):
        gpu.run(empty, 0)


def test_without_native_code_plans_are_launched_as_they_are(fake: FakeLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graph, "native", lambda: False)
    chain = Chain(cuda.gpu())
    inputs = chain.inputs()
    for _ in range(3):
        chain.check(chain.run(inputs))
    assert not fake.calls["cuGraphInstantiate"] and not chain.plan.pays  # type: ignore[attr-defined]


def test_wrong_words_launch_nothing(fake: FakeLibrary) -> None:
    chain = Chain(cuda.gpu())
    inputs = chain.inputs()
    for _ in range(2):
        with pytest.raises(TypeError, match="another number of words"):
            chain.gpu.run(chain.plan, 0, 1)
    chain.run(inputs)
    before = fake.calls["cuGraphLaunch"]
    with pytest.raises(TypeError, match="another number of words"):
        chain.gpu.run(chain.plan, 0, 1)
    assert fake.calls["cuGraphLaunch"] == before == 1


@pytest.mark.parametrize("call", ["cuGraphExecKernelNodeSetParams", "cuGraphLaunch"])
def test_a_failure_raises_and_the_next_call_is_right(call: str, fake: FakeLibrary) -> None:
    chain = Chain(cuda.gpu())
    inputs = chain.inputs()
    kept = [chain.run(inputs) for _ in range(2)]
    fake.fail(call, 719)
    with pytest.raises(CudaError, match=f"step {STEPS - 1}" if "Set" in call else "LAUNCH_FAILED"):
        chain.run(inputs)
    kept.append(chain.run(inputs))
    for m in kept:
        chain.check(m)


@pytest.mark.parametrize("call", ["cuGraphCreate", "cuGraphAddKernelNode", "cuGraphInstantiate"])
def test_a_graph_that_cannot_be_made_leaves_nothing_behind(call: str, fake: FakeLibrary) -> None:
    chain = Chain(cuda.gpu())
    inputs = chain.inputs()
    chain.check(chain.run(inputs))
    fake.fail(call, 719)
    with pytest.raises(CudaError):
        chain.run(inputs)
    assert not fake.graphs and not fake.executables
    chain.check(chain.run(inputs))


def test_any_number_of_threads_may_use_one_graph(fake: FakeLibrary) -> None:
    chain = Chain(cuda.gpu())
    inputs = chain.inputs()
    chain.run(inputs)
    results: list[Any] = []

    def work() -> None:
        with cuda.Stream() as s:  # an arena of its own for each stream
            arena = chain.gpu.allocate(2 * chain.stride)
            mine = [chain.run(inputs, arena) for _ in range(3)]
            s.synchronize()
        results.append(mine)

    cuda.gpu().synchronize()
    threads = [threading.Thread(target=work) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(results) == 3
    for mine in results:
        chain.check(mine[-1])


@pytest.mark.parametrize("mode, graphs", [("reduce-overhead", True), ("max-autotune", True), (None, False)])
def test_a_compiled_training_step_runs_as_a_graph_where_asked(mode: str | None, graphs: bool, fake: FakeLibrary) -> None:
    """Losses and parameters are the CPU's, and losses that were kept are not overwritten."""

    def train(device: str) -> tuple[list[float], list[np.ndarray]]:
        flame.manual_seed(0)
        model = flame.nn.Sequential(flame.nn.Linear(4, 8), flame.nn.Tanh(), flame.nn.Linear(8, 1))
        model.to(device)
        optimizer = flame.optim.SGD(model.parameters(), lr=0.1)
        x, y = flame.ones(3, 4, device=device), flame.ones(3, 1, device=device)

        @flame.compile(mode=mode, options={"never_slower": False})
        def step(x, y):  # type: ignore[no-untyped-def]
            optimizer.zero_grad()
            loss = ((model(x) - y) ** 2).mean()
            loss.backward()
            optimizer.step()
            return loss

        kept = [step(x, y) for _ in range(6)]
        return [float(loss) for loss in kept], [p.detach().cpu().numpy() for p in model.parameters()]

    on_cpu, on_gpu = train("cpu"), train("cuda")
    np.testing.assert_allclose(on_gpu[0], on_cpu[0], rtol=1e-4)
    for got, want in zip(on_gpu[1], on_cpu[1], strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
    assert bool(fake.calls["cuGraphLaunch"]) is graphs
