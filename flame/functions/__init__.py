"""The operations that users call, over primitives: each file enters its names in `PUBLIC` and hangs methods on Tensor."""

from flame.functions import (  # noqa: F401
    calculus,
    combined,
    completed,
    complex,
    creation,
    distances,
    elementwise,
    histograms,
    indexing,
    linear,
    mathematics,
    memory,
    parts,
    random,
    reduction,
    refusing,
    scaled,
    scattering,
    searching,
    shape,
    sharing,
    statistics,
)
from flame.functions.elementwise import PUBLIC

__all__ = ["PUBLIC"]
