"""The adversarial programs of capture, run in `mode="replay"`: what is refused is followed, what is replayed is as eager."""

from __future__ import annotations

import pytest

from tests import test_capture_calls, test_capture_effects, test_capture_indexing, test_capture_modules, test_capture_random
from tests.capture_programs import Case, agree, cases

FILES = (test_capture_calls, test_capture_effects, test_capture_indexing, test_capture_modules, test_capture_random)
_replayed: list[int] = []


@pytest.mark.parametrize("case, backend", [c for f in FILES for c in cases(f.__name__) if c.values[1] == "eager"])
def test_same_as_eager(case: Case, backend: str) -> None:
    _replayed.append(agree(case, backend, mode="replay"))


def test_many_of_them_were_replayed() -> None:
    if len(_replayed) < 100:
        pytest.skip("the programs did not run in this process")
    assert sum(n > 0 for n in _replayed) >= len(_replayed) // 5, "the test above says little"
