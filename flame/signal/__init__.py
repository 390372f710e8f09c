"""flame.signal: windows for spectral analysis."""

from flame.signal import windows

__all__ = ["windows"]
