"""The operations that users call, over primitives: each file enters its names in `PUBLIC` and hangs methods on Tensor."""

from flame.functions import combined, creation, elementwise, indexing, linear, random, reduction, shape  # noqa: F401
from flame.functions.elementwise import PUBLIC

__all__ = ["PUBLIC"]
