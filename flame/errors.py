"""The exceptions that are flame's own.

Wrong arguments raise what PyTorch raises (RuntimeError, TypeError, IndexError, ValueError); the classes here name
situations that PyTorch has no class for.
"""

from __future__ import annotations


class CompileError(RuntimeError):
    """A captured graph could not be turned into kernels; the message names the pass and the user's line."""


class Refused(Exception):
    """A lowering or fusion was refused. Carries the reason that `explain()` shows; never reaches a user."""


class VerificationError(AssertionError):
    """A graph or kernel broke its own grammar: a bug in flame, reported with the pass that caused it."""


class GraphBreakError(RuntimeError):
    """`fullgraph=True` met something that capture cannot follow; the message names the user's line and the reason.

    `code` is the reason's (flame.reasons), `source` the user's "file:line".
    """

    def __init__(self, message: str = "", code: str = "", source: str = ""):
        super().__init__(message)
        self.code = code
        self.source = source


class RecompileError(RuntimeError):
    """A compiled function would have to be compiled anew while the stance is "fail_on_recompile"."""


class ReplayError(RuntimeError):
    """An audit of `mode="replay"` ran a function's Python and met something else than was replayed; the message says what."""


class MissingTargetError(RuntimeError):
    """A device, driver or optional package that the call needs is not there; the message says what to install."""


class CudaError(RuntimeError):
    """A call to the GPU's driver failed; the message has the driver's name and words for it. `code` and `name` are the driver's.

    A kernel that fails is noticed by whichever call comes next; after some errors (an illegal address) the device cannot be
    used by this process any more, and every call fails with the same one.
    """

    def __init__(self, message: str = "", code: int = 0, name: str = ""):
        super().__init__(message)
        self.code = code
        self.name = name


class OutOfMemoryError(RuntimeError):
    """There is no memory left for an allocation, on a GPU or on the CPU; the message says who holds it."""


class PositionError(IndexError, RuntimeError):
    """An index tensor names a position that is not there. (PyTorch raises IndexError where one indexes, RuntimeError in gather and
    scatter; this is both.)"""


class LinAlgError(RuntimeError):
    """A factorisation or solve failed: the matrix is singular, not positive definite, or an iteration did not converge."""


class HostDetourWarning(UserWarning):
    """An operation on GPU tensors was computed on the host, because it has no GPU kernel; the message names it."""
