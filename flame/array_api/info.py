"""What can be asked of the namespace: capabilities, devices, dtypes."""

from __future__ import annotations

from typing import Any

from flame import dtypes
from flame.array_api.data_types import isdtype
from flame.functions.placing import resolved
from flame.runtime.cuda import device_count
from flame.runtime.device import device as Device

DTYPES = {
    d.name: d
    for d in (
        dtypes.bool_, dtypes.int8, dtypes.int16, dtypes.int32, dtypes.int64, dtypes.uint8, dtypes.uint16, dtypes.uint32,
        dtypes.uint64, dtypes.float32, dtypes.float64, dtypes.complex64, dtypes.complex128,
    )
}  # fmt: skip


class ArrayNamespaceInfo:
    """The answers of `__array_namespace_info__()`."""

    def capabilities(self) -> dict[str, Any]:
        return {"boolean indexing": True, "data-dependent shapes": True, "max dimensions": 64}

    def default_device(self) -> Device:
        return Device("cpu")

    def default_dtypes(self, *, device: Any = None) -> dict[str, dtypes.dtype]:
        _known(device)
        real = dtypes.get_default_dtype()
        return {
            "real floating": real, "complex floating": real.to_complex(), "integral": dtypes.int64, "indexing": dtypes.int64,
        }  # fmt: skip

    def dtypes(self, *, device: Any = None, kind: Any = None) -> dict[str, dtypes.dtype]:
        """The dtypes by name, all or those of a kind (as `isdtype` takes it)."""
        _known(device)
        return {n: d for n, d in DTYPES.items() if kind is None or isdtype(d, kind)}

    def devices(self) -> list[Device]:
        return [Device("cpu"), *(Device("cuda", i) for i in range(device_count()))]


def _known(device: Any) -> None:
    if device is not None:
        resolved(device)


def __array_namespace_info__() -> ArrayNamespaceInfo:
    return ArrayNamespaceInfo()
