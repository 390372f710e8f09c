"""What launches cost flame itself: `python -m benchmarks.gpu_launch`, on a driver whose launches do nothing (tests/fake_cuda.py).

What a real driver takes for a launch, about 2 us, comes on top. Each figure is the least of some rounds, in microseconds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import flame
from flame.runtime import cuda, gpu_eager
from flame.runtime.cuda_plan import link

#: the two calls of the driver that launching makes
NOTHING = """
define i32 @nothing_launch(ptr %f, i32 %x, i32 %y, i32 %z, i32 %a, i32 %b, i32 %c, i32 %s, ptr %q, ptr %p, ptr %e) { ret i32 0 }
define i32 @nothing_current(ptr %context) { ret i32 0 }
"""


def least(f: Callable[[], object], calls: int = 2000, rounds: int = 15) -> float:
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        for _ in range(calls):
            f()
        times.append((time.perf_counter() - begun) / calls * 1e6)
    return min(times)


def main() -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    import fake_cuda

    made = link(NOTHING, ["nothing_launch", "nothing_current"], {})
    driver = fake_cuda.FakeDriver()
    driver.launch_address, driver.current_address = made["nothing_launch"], made["nothing_current"]
    rows = {}
    with cuda.use_driver(driver, driver.fake.compile), flame.no_grad():
        gpu = cuda.gpu()
        x, y = flame.ones(1000, device="cuda"), flame.ones(1000, device="cuda")
        for _ in range(3):
            x + y
        [*_, ready] = gpu_eager._ready.values()
        plan = ready.straight.plan
        words = [gpu.allocate(4000).address for _ in range(3)]
        enter = gpu.launcher.enter
        rows[f"one launch of {len(plan.steps[0].places)} parameters, by the native call"] = least(
            lambda: enter(plan.address, gpu.context, 0, 0, *words)
        )
        for n in (1, 10, 100):
            many = gpu.plan([*plan.steps] * n, 3)
            rows[f"a plan of {n} launches, from Python"] = least(lambda: gpu.run(many, 0, *words))
        rows["memory taken and handed back"] = least(lambda: gpu.allocate(4000))
        rows["an eager addition"] = least(lambda: x + y)
        step = flame.compile(lambda x, y: (x + y).exp() * y, options={"never_slower": False})
        for _ in range(3000):
            step(x, y)
        rows["a compiled function of one kernel"] = least(lambda: step(x, y))
        gpu.synchronize()
    for what, took in rows.items():
        print(f"| {what} | {took:.2f} |")


if __name__ == "__main__":
    main()
