"""The driver's calls are declared as NVIDIA declares them, fail as exceptions, and launch by native code as by Python."""

from __future__ import annotations

import ctypes
import re
import types
from pathlib import Path
from typing import Any

import pytest
from fake_cuda import FakeDriver, FakeLibrary

from flame.errors import CudaError, MissingTargetError, OutOfMemoryError
from flame.runtime import cuda_driver
from flame.runtime.cuda_driver import DECLARATIONS, Attribute, CudaDriver, signatures, symbol
from flame.runtime.cuda_plan import ARENA, CONSTANT, FIRST, KEEP_LOCK, LaunchPlan, LaunchStep, failure, in_python, launcher

bindings = "NVIDIA's bindings are not installed: pip install cuda-bindings"


def test_every_declaration_is_nvidias() -> None:
    package = pytest.importorskip("cuda.bindings", reason=bindings)
    declared = (Path(package.__file__).parent / "cydriver.pxd").read_text(encoding="utf-8")
    theirs = set(re.findall(r"cdef CUresult (cu\w+\(.*?\)) except", declared))
    ours = set(DECLARATIONS.strip().splitlines())
    assert ours - theirs == set()


def test_every_number_is_nvidias() -> None:
    driver = pytest.importorskip("cuda.bindings.driver", reason=bindings)
    for a in Attribute:
        assert int(getattr(driver.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{a.name}")) == a
    for mine, enumeration, name in (
        (cuda_driver.OUT_OF_MEMORY, "CUresult", "CUDA_ERROR_OUT_OF_MEMORY"),
        (cuda_driver.NOT_READY, "CUresult", "CUDA_ERROR_NOT_READY"),
        (cuda_driver._STREAM_NON_BLOCKING, "CUstream_flags", "CU_STREAM_NON_BLOCKING"),
        (cuda_driver._EVENT_BLOCKING_SYNC, "CUevent_flags", "CU_EVENT_BLOCKING_SYNC"),
        (cuda_driver._EVENT_DISABLE_TIMING, "CUevent_flags", "CU_EVENT_DISABLE_TIMING"),
        (cuda_driver._FUNC_MAX_DYNAMIC_SHARED, "CUfunction_attribute", "CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES"),
    ):
        assert int(getattr(getattr(driver, enumeration), name)) == mine
    assert int(driver.CU_MEMHOSTALLOC_PORTABLE) == cuda_driver._HOST_PORTABLE


def header() -> str:
    """`cuda.h`, which Triton brings along."""
    triton = pytest.importorskip("triton", reason="Triton is installed on Linux only")
    return (Path(triton.__file__).parent / "backends/nvidia/include/cuda.h").read_text(encoding="utf-8")


def test_errors_that_end_a_context_are_those_that_nvidia_says_do() -> None:
    final = set()
    for words, number in re.findall(r"/\*\*((?:(?!\*/).)*)\*/\s*CUDA_ERROR_\w+\s*=\s*(\d+)", header(), re.DOTALL):
        said = " ".join(words.replace("*", " ").split())
        if "process must be terminated" in said or "cannot be used anymore" in said:
            final.add(int(number))
    assert final == cuda_driver.FINAL and 700 in final and 2 not in final


def test_a_kernel_node_has_nvidias_fields() -> None:
    [fields] = re.findall(
        r"typedef struct CUDA_KERNEL_NODE_PARAMS_v2_st \{(.*?)\} CUDA_KERNEL_NODE_PARAMS_v2;", header(), re.DOTALL
    )
    kinds = [
        re.sub(r"\s*\*+.*", "*", f.strip()) for f in re.sub(r"/\*.*?\*/", "", fields, flags=re.DOTALL).split(";") if f.strip()
    ]
    words = {"unsigned int": ctypes.c_uint}
    theirs: Any = type("Theirs", (ctypes.Structure,), {
        "_fields_": [(f"f{i}", words.get(k.rsplit(" ", 1)[0], ctypes.c_void_p)) for i, k in enumerate(kinds)],
    })  # fmt: skip
    ours = cuda_driver.KernelNode
    assert ctypes.sizeof(ours) == ctypes.sizeof(theirs) and len(kinds) == 12
    first = [getattr(theirs, f"f{i}").offset for i in (0, 1, 4, 7, 8, 9, 10, 11)]
    assert [getattr(ours, name).offset for name, _ in ours._fields_] == first


def test_arguments_are_passed_as_declared() -> None:
    found = signatures()
    assert len(found) == len(DECLARATIONS.strip().splitlines()) == len(set(found))
    assert found["cuCtxSynchronize"] == ()
    assert found["cuMemAlloc"] == (ctypes.c_void_p, ctypes.c_size_t)
    assert found["cuMemsetD8Async"] == (ctypes.c_uint64, ctypes.c_ubyte, ctypes.c_size_t, ctypes.c_void_p)
    assert found["cuLaunchKernel"] == (ctypes.c_void_p, *[ctypes.c_uint] * 7, *[ctypes.c_void_p] * 3)
    assert found["cuGraphInstantiate"][2] is ctypes.c_uint64


def test_a_machine_without_a_driver_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(cuda_driver.ctypes, "CDLL", none)
    with pytest.raises(MissingTargetError, match="install NVIDIA's driver.*or run on device 'cpu'"):
        cuda_driver.open_driver()


def test_an_old_driver_is_refused_by_the_call_that_it_lacks() -> None:
    fake = FakeLibrary()
    names = {symbol(n) for n in signatures()} - {"cuGraphInstantiateWithFlags"}
    with pytest.raises(MissingTargetError, match="too old: it has no cuGraphInstantiateWithFlags"):
        CudaDriver(types.SimpleNamespace(**{n: getattr(fake, n) for n in names}))


def test_a_driver_that_does_not_start_is_a_missing_target() -> None:
    fake = FakeLibrary()
    fake.fail("cuInit", 999)
    with pytest.raises(MissingTargetError, match="does not start: CUDA error CUDA_ERROR_UNKNOWN"):
        CudaDriver(fake)


def test_errors_carry_the_drivers_words() -> None:
    driver = FakeDriver()
    fake = driver.fake
    driver.set_current(driver.retain_context(0))
    fake.fail("cuStreamCreateWithPriority", 719)
    with pytest.raises(CudaError, match=r"CUDA_ERROR_LAUNCH_FAILED: unspecified launch failure \(cuStreamCreate") as caught:
        driver.create_stream()
    assert (caught.value.code, caught.value.name) == (719, "CUDA_ERROR_LAUNCH_FAILED")
    fake.fail("cuMemAlloc", 2)
    with pytest.raises(OutOfMemoryError, match="out of memory"):
        driver.allocate(512)
    fake.fail("cuCtxSynchronize", 4711)
    with pytest.raises(CudaError, match="CUDA error 4711: an error that the driver has no words for"):
        driver.synchronize()


def test_a_question_that_is_answered_no_is_no_error() -> None:
    driver = FakeDriver()
    driver.set_current(driver.retain_context(0))
    stream, event = driver.create_stream(), driver.create_event()
    assert driver.event_is_done(event) and driver.stream_is_done(stream)
    driver.record_event(event, stream)
    assert not driver.event_is_done(event)
    assert driver.event_is_done(event) and driver.stream_is_done(stream)


# ---- launches


class Recorder:
    """A driver's two entry points, which note what they are given."""

    def __init__(self, fail_at: int = -1, wrong_context: bool = False):
        self.calls: list[tuple[Any, ...]] = []
        self.parameters = 0
        pointer, word = ctypes.c_void_p, ctypes.c_uint

        def current(context: int) -> int:
            self.calls.append(("current", context))
            return 201 if wrong_context else 0

        def launch(f: int | None, *rest: int) -> int:
            f = f or 0
            n = self.lengths[f]
            at = (ctypes.c_void_p * n).from_address(rest[8]) if n else ()
            values = tuple(ctypes.c_uint64.from_address(a).value for a in at)
            self.calls.append((f, *rest[:8], values))
            return 719 if len(self.calls) - 2 == fail_at else 0

        self._launch = ctypes.CFUNCTYPE(ctypes.c_int, pointer, *[word] * 7, pointer, pointer, pointer)(launch)
        self._current = ctypes.CFUNCTYPE(ctypes.c_int, pointer)(current)
        self.launch_address = ctypes.cast(self._launch, pointer).value
        self.current_address = ctypes.cast(self._current, pointer).value
        self.lengths: dict[int, int] = {}


MADE = {"native": launcher, "python": in_python}


@pytest.mark.parametrize("how", MADE)
@pytest.mark.parametrize("count", [0, 1, 5, KEEP_LOCK + 1])
def test_a_plan_launches_its_steps_in_order_with_their_values(how: str, count: int) -> None:
    driver = Recorder()
    steps, expected = [], []
    words = (0x7000, -5, 2**64 - 1)
    for i in range(count):
        places = [(CONSTANT, 7 * i - 9), (ARENA, 64 * i), (FIRST, i), (FIRST + 1, 0), (FIRST + 2, 0)][: i % 6]
        bases = (0, 0x4000, *words)
        steps.append(LaunchStep(100 + i, (i + 1, 2, 3), 128, 1000 * i, tuple(places), f"k{i}"))
        driver.lengths[100 + i] = len(places)
        values = tuple(bases[b] + n & (2**64 - 1) for b, n in places)
        expected.append((100 + i, i + 1, 2, 3, 128, 1, 1, 1000 * i, 0xAB, values))
    plan = LaunchPlan(steps, len(words))
    made = MADE[how](driver)  # type: ignore[arg-type]
    assert made.enter(plan.address, 0xC0, 0xAB, 0x4000, *words) is None
    assert driver.calls == [("current", 0xC0), *expected]


@pytest.mark.parametrize("how", MADE)
def test_one_launch_passes_its_values(how: str) -> None:
    driver = Recorder()
    driver.lengths = {5: 3, 6: 0}
    made = MADE[how](driver)  # type: ignore[arg-type]
    assert made.launch(5, 1, 2, 3, 256, 70000, 0xC0, 0xAB, 2**47, -1, 0) is None
    assert made.launch(6, 2**31 - 1, 1, 1, 32, 0, 0xC0, 0) is None
    assert driver.calls == [
        ("current", 0xC0),
        (5, 1, 2, 3, 256, 1, 1, 70000, 0xAB, (2**47, 2**64 - 1, 0)),
        ("current", 0xC0),
        (6, 2**31 - 1, 1, 1, 32, 1, 1, 0, None, ()),
    ]


@pytest.mark.parametrize("how", MADE)
def test_a_launch_that_fails_ends_the_plan_and_is_named(how: str) -> None:
    driver = Recorder(fail_at=2)
    driver.lengths = dict.fromkeys(range(6), 0)
    plan = LaunchPlan([LaunchStep(i, (1, 1, 1), 32, 0, (), f"k{i}") for i in range(6)], 0)
    made = MADE[how](driver)  # type: ignore[arg-type]
    answer = made.enter(plan.address, 1, 0, 0)
    assert answer is not None and failure(answer) == (2, 719)
    assert len(driver.calls) == 4
    driver = Recorder(wrong_context=True)
    made = MADE[how](driver)  # type: ignore[arg-type]
    for answer in (made.enter(plan.address, 1, 0, 0), made.launch(0, 1, 1, 1, 32, 0, 1, 0)):
        assert answer is not None and failure(answer) == (None, 201)
    assert driver.calls == [("current", 1)] * 2


@pytest.mark.parametrize("how", MADE)
def test_another_number_of_words_launches_nothing(how: str) -> None:
    driver = Recorder()
    driver.lengths = {0: 1}
    plan = LaunchPlan([LaunchStep(0, (1, 1, 1), 32, 0, ((FIRST, 0),))], 2)
    made = MADE[how](driver)  # type: ignore[arg-type]
    for words in ((), (1,), (1, 2, 3)):
        answer = made.enter(plan.address, 1, 0, 0, *words)
        assert answer is not None
        with pytest.raises(TypeError, match="another number of words"):
            failure(answer)
    assert not driver.calls


@pytest.mark.parametrize("how", MADE)
def test_what_is_no_number_raises_and_launches_nothing(how: str) -> None:
    driver = Recorder()
    driver.lengths = {0: 1}
    plan = LaunchPlan([LaunchStep(0, (1, 1, 1), 32, 0, ((FIRST, 0),))], 1)
    made = MADE[how](driver)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        made.enter(plan.address, 1, 0, 0, "x")
    with pytest.raises(TypeError):
        made.launch(0, 1, 1, 1, 32, 0, 1, 0, 1.5)
    assert not [c for c in driver.calls if c[0] != "current"]


def test_plans_leave_out_launches_of_nothing_and_refuse_the_impossible() -> None:
    nothing = LaunchStep(1, (0, 1, 1), 32, 0, ())
    assert LaunchPlan([nothing], 0).steps == ()
    with pytest.raises(ValueError, match="more than a device launches"):
        LaunchPlan([LaunchStep(1, (2**31, 1, 1), 32, 0, (), "big")], 0)
    with pytest.raises(ValueError, match="none of the plan's 3 bases"):
        LaunchPlan([LaunchStep(1, (1, 1, 1), 32, 0, ((3, 0),), "k")], 1)
