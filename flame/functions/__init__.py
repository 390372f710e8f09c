"""The operations that users call, over primitives: each file enters its names in `PUBLIC` and hangs methods on Tensor."""

from flame.functions import (  # noqa: F401
    combined,
    creation,
    elementwise,
    indexing,
    linear,
    parts,
    random,
    reduction,
    shape,
)
from flame.functions.elementwise import PUBLIC

__all__ = ["PUBLIC"]
