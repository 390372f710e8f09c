"""Every primitive, by file: importing this package fills the registry."""

from flame.ops import contract, create, elementwise, movement, reduce  # noqa: F401
