"""A plan's launches as one graph of the driver, for programs whose kernels take less time than launching them.

    graph ::= executable node* value*           a node for each step of the plan, a value for each of their places; each an i64

    enter(plan, context, stream, graph, arena, word...)     None, or what went wrong: see `cuda_plan.failure`

A graph's nodes hold the values of their parameters. Before a launch each is compared with what this call gives it, and nodes
whose values differ are told (about a microsecond each); then all are launched by one call. So results go where this call wants
them: there are no buffers of the graph's own, nothing is copied, and what was handed out is never written to again. Memory that
the allocator hands out again and again in the same order costs nothing at all.

A graph is made when its plan runs for the second time. The driver keeps memory for each, so a device has MOST of them, and the
one that was used longest ago makes room. Where graphs don't pay (a plan of few steps; more than half of its nodes told anew in
most calls) the plan is launched as it is.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from flame.runtime.cuda_driver import Driver
from flame.runtime.cuda_plan import PRELUDE, LaunchPlan, LaunchStep, link, native
from flame.runtime.entry import builtin
from flame.runtime.locks import Lock

#: graphs that a device has at most
MOST: Final = 64
#: steps below which launching them one by one is as fast
LEAST: Final = 4
#: calls after which it is looked at whether nodes are told anew too often
_TRIAL: Final = 32

_TEXT: Final = (
    PRELUDE
    + """
%node = type { ptr, [3 x i32], [3 x i32], i32, ptr, ptr, ptr, ptr }
declare i32 @flame_driver_current(ptr)
declare i32 @flame_driver_set(ptr, ptr, ptr)
declare i32 @flame_driver_launch_graph(ptr, ptr)

define i64 @flame_cuda_graph_run(ptr %plan, ptr %context, ptr %stream, ptr %bases, ptr %graph) {
entry:
  %steps = load i64, ptr %plan
  %widest.p = getelementptr i64, ptr %plan, i64 1
  %widest = load i64, ptr %widest.p
  %first = getelementptr i64, ptr %plan, i64 4
  %pointers = alloca ptr, i64 %widest
  %launch = alloca %node
  %executable = load ptr, ptr %graph
  %told.p = getelementptr i64, ptr %graph, i64 1
  %nodes = getelementptr i64, ptr %graph, i64 2
  %values0 = getelementptr i64, ptr %nodes, i64 %steps
  %set = call i32 @flame_driver_current(ptr %context)
  %current = icmp eq i32 %set, 0
  br i1 %current, label %next, label %unset
unset:
  %unset64 = zext i32 %set to i64
  ret i64 %unset64
next:
  %i = phi i64 [0, %entry], [%i1, %settled]
  %step = phi ptr [%first, %entry], [%after, %settled]
  %values = phi ptr [%values0, %entry], [%values1, %settled]
  %more = icmp slt i64 %i, %steps
  br i1 %more, label %read, label %go
read:
  %i1 = add i64 %i, 1
  %n.p = getelementptr i64, ptr %step, i64 6
  %n = load i64, ptr %n.p
  %places = getelementptr i64, ptr %step, i64 7
  %n2 = shl i64 %n, 1
  %after = getelementptr i64, ptr %places, i64 %n2
  %values1 = getelementptr i64, ptr %values, i64 %n
  br label %place
place:
  %j = phi i64 [0, %read], [%j1, %put]
  %differs = phi i1 [0, %read], [%differs1, %put]
  %left = icmp slt i64 %j, %n
  br i1 %left, label %put, label %decide
put:
  %j2 = shl i64 %j, 1
  %base.p = getelementptr i64, ptr %places, i64 %j2
  %base = load i64, ptr %base.p
  %offset.p = getelementptr i64, ptr %base.p, i64 1
  %offset = load i64, ptr %offset.p
  %from.p = getelementptr i64, ptr %bases, i64 %base
  %from = load i64, ptr %from.p
  %value = add i64 %from, %offset
  %value.p = getelementptr i64, ptr %values, i64 %j
  %before = load i64, ptr %value.p
  %other = icmp ne i64 %before, %value
  %differs1 = or i1 %differs, %other
  store i64 %value, ptr %value.p
  %pointer.p = getelementptr ptr, ptr %pointers, i64 %j
  store ptr %value.p, ptr %pointer.p
  %j1 = add i64 %j, 1
  br label %place
decide:
  br i1 %differs, label %tell, label %settled
tell:
  %function = load ptr, ptr %step
  store %node zeroinitializer, ptr %launch
  store ptr %function, ptr %launch
  %x.p = getelementptr i64, ptr %step, i64 1
  %x = load i32, ptr %x.p
  %y.p = getelementptr i64, ptr %step, i64 2
  %y = load i32, ptr %y.p
  %z.p = getelementptr i64, ptr %step, i64 3
  %z = load i32, ptr %z.p
  %threads.p = getelementptr i64, ptr %step, i64 4
  %threads = load i32, ptr %threads.p
  %shared.p = getelementptr i64, ptr %step, i64 5
  %shared = load i32, ptr %shared.p
  %gx = getelementptr %node, ptr %launch, i32 0, i32 1, i32 0
  store i32 %x, ptr %gx
  %gy = getelementptr %node, ptr %launch, i32 0, i32 1, i32 1
  store i32 %y, ptr %gy
  %gz = getelementptr %node, ptr %launch, i32 0, i32 1, i32 2
  store i32 %z, ptr %gz
  %bx = getelementptr %node, ptr %launch, i32 0, i32 2, i32 0
  store i32 %threads, ptr %bx
  %by = getelementptr %node, ptr %launch, i32 0, i32 2, i32 1
  store i32 1, ptr %by
  %bz = getelementptr %node, ptr %launch, i32 0, i32 2, i32 2
  store i32 1, ptr %bz
  %bytes = getelementptr %node, ptr %launch, i32 0, i32 3
  store i32 %shared, ptr %bytes
  %parameters = getelementptr %node, ptr %launch, i32 0, i32 4
  store ptr %pointers, ptr %parameters
  %at = getelementptr ptr, ptr %nodes, i64 %i
  %this = load ptr, ptr %at
  %code = call i32 @flame_driver_set(ptr %executable, ptr %this, ptr %launch)
  %fine = icmp eq i32 %code, 0
  br i1 %fine, label %told, label %failed
told:
  %count = load i64, ptr %told.p
  %count1 = add i64 %count, 1
  store i64 %count1, ptr %told.p
  br label %settled
settled:
  br label %next
failed:
  ; its values are not what they were taken for: the node is to be told anew, whatever the next call gives it
  %old = load i64, ptr %values
  %spoilt = xor i64 %old, -1
  store i64 %spoilt, ptr %values
  %which = shl i64 %i1, 32
  %code64 = zext i32 %code to i64
  %failure = or i64 %which, %code64
  ret i64 %failure
go:
  %launched = call i32 @flame_driver_launch_graph(ptr %executable, ptr %stream)
  %launched64 = zext i32 %launched to i64
  ret i64 %launched64
}

define ptr @flame_cuda_graph_enter(ptr %self, ptr %args, i64 %count) {
entry:
  %short = icmp slt i64 %count, 5
  br i1 %short, label %bad, label %read
read:
  %words = alloca i64, i64 %count
  %fine = call i1 @flame_cuda_words(ptr %args, i64 %count, ptr %words)
  br i1 %fine, label %check, label %error
error:
  ret ptr null
check:
  %plan = load ptr, ptr %words
  %expected.p = getelementptr i64, ptr %plan, i64 2
  %expected = load i64, ptr %expected.p
  %given = sub i64 %count, 3
  %fits = icmp eq i64 %expected, %given
  br i1 %fits, label %start, label %bad
bad:
  %wrong = call ptr @flame_cuda_answer(i64 -1)
  ret ptr %wrong
start:
  %context.p = getelementptr i64, ptr %words, i64 1
  %context = load ptr, ptr %context.p
  %stream.p = getelementptr i64, ptr %words, i64 2
  %stream = load ptr, ptr %stream.p
  %graph.p = getelementptr i64, ptr %words, i64 3
  %graph = load ptr, ptr %graph.p
  store i64 0, ptr %graph.p
  %code = call i64 @flame_cuda_graph_run(ptr %plan, ptr %context, ptr %stream, ptr %graph.p, ptr %graph)
  %answer = call ptr @flame_cuda_answer(i64 %code)
  ret ptr %answer
}
"""
)


def entry(driver: Driver) -> Callable[..., int | None] | None:
    """`enter` as said above, for this driver; one thread at a time may use a graph. None where there is no native code."""
    if not native():
        return None
    calls = {
        "current": driver.current_address,
        "set": driver.set_kernel_address,
        "launch_graph": driver.launch_graph_address,
    }
    return builtin(b"enter", link(_TEXT, ["flame_cuda_graph_enter"], calls)["flame_cuda_graph_enter"])


class Graph:
    """The graph of one plan, with the values that its nodes have been told. When it dies, `dead` gets its handle."""

    def __init__(self, driver: Driver, plan: LaunchPlan, arena: int, words: Sequence[int], dead: deque[int]):
        self._dead = dead
        bases = (0, arena, *words)
        values = [[bases[base] + offset & (2**64 - 1) for base, offset in s.places] for s in plan.steps]
        graph = driver.create_graph()
        try:
            nodes: list[int] = []
            for s, held in zip(plan.steps, values, strict=True):
                slots = (ctypes.c_uint64 * max(len(held), 1))(*held)
                at = ctypes.addressof(slots)
                pointers = (ctypes.c_void_p * max(len(held), 1))(*range(at, at + 8 * len(held), 8))
                after = nodes[-1] if nodes else 0
                launch = (s.function, s.grid, s.threads, s.shared, ctypes.addressof(pointers))
                nodes.append(driver.add_kernel(graph, after, *launch))
            self.executable = driver.instantiate(graph)
        finally:
            driver.destroy_graph(graph)
        self._table = np.array([self.executable, 0, *nodes, *(v for held in values for v in held)], np.uint64)
        self.address: int = self._table.ctypes.data

    def __del__(self) -> None:
        if hasattr(self, "executable"):
            self._dead.append(self.executable)

    @property
    def told(self) -> int:
        """How many nodes were told new values so far."""
        return int(self._table[1])


class GraphPlan(LaunchPlan):
    """A plan that may be launched as a graph."""

    def __init__(self, steps: Sequence[LaunchStep], words: int):
        super().__init__(steps, words)
        self.graph: Graph | None = None
        self.calls = 0  #: since there was no graph of it
        self.pays = len(self.steps) >= LEAST
        self.lock = threading.Lock()  #: held by whoever launches the graph


class Graphs:
    """The graphs of one device, whose plans `launch` puts on a stream as they are."""

    def __init__(self, driver: Driver, activate: Callable[[], None], launch: Callable[..., int | None], most: int = MOST):
        self.driver, self.activate, self.most = driver, activate, most
        self._launch = launch
        self._enter: Callable[..., int | None] | None = None
        self._plans: OrderedDict[int, weakref.ref[GraphPlan]] = OrderedDict()  #: those that have a graph, the last used last
        self._dead: deque[int] = deque()
        self._lock = Lock()

    def __len__(self) -> int:
        return sum(1 for plan in self._plans.values() if plan() is not None)

    def run(self, plan: GraphPlan, context: int, stream: int, arena: int, words: Sequence[int]) -> int | None:
        """Put the plan's launches on the stream, as a graph where that pays. Answers as `Launcher.enter` does."""
        plan.calls += 1
        graph = plan.graph
        if graph is None:
            if plan.calls < 2 or not plan.pays or len(words) + 2 != plan.bases:
                return self._launch(plan.address, context, stream, arena, *words)
            with self._lock:
                graph = plan.graph or self._made(plan, arena, words)
            if graph is None:
                return self._launch(plan.address, context, stream, arena, *words)
        assert self._enter is not None
        # `graph` is held here: should another thread drop it meanwhile, it dies after this call. The lock is for its values.
        with plan.lock:
            answer = self._enter(plan.address, context, stream, graph.address, arena, *words)
        if plan.calls % _TRIAL == 0:
            self._look(plan, graph)
        return answer

    def _made(self, plan: GraphPlan, arena: int, words: Sequence[int]) -> Graph | None:
        if self._enter is None:
            self._enter = entry(self.driver)
        if self._enter is None:
            plan.pays = False
            return None
        self.activate()
        while len(self._plans) >= self.most:
            _, oldest = self._plans.popitem(last=False)
            dropped = oldest()
            if dropped is not None:
                dropped.graph, dropped.calls = None, 0
        self._bury()
        plan.graph = Graph(self.driver, plan, arena, words, self._dead)
        self._plans[id(plan)] = weakref.ref(plan)
        return plan.graph

    def _look(self, plan: GraphPlan, graph: Graph) -> None:
        """Every so many calls: remember that it is used, and give it up where it doesn't pay."""
        with self._lock:
            if plan.graph is not graph:
                return
            self._plans.move_to_end(id(plan))
            if graph.told * 2 > len(plan.steps) * plan.calls:
                plan.pays, plan.graph = False, None
                del self._plans[id(plan)]

    def _bury(self) -> None:
        """Destroy the graphs that have died. What they launched runs on."""
        while self._dead:
            self.driver.destroy_executable(self._dead.popleft())

    def close(self) -> None:
        with self._lock:
            for plan in self._plans.values():
                if (left := plan()) is not None:
                    left.graph, left.pays = None, False
            self._plans.clear()
            self._bury()
