"""Every primitive, by file: importing this package fills the registry."""

from flame.ops import contract, create, elementwise, index, logic, movement, opaque, random, reduce  # noqa: F401
