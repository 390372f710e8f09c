"""Every primitive, by file: importing this package fills the registry."""

from flame.ops import (  # noqa: F401
    contract,
    create,
    elementwise,
    higher,
    index,
    logic,
    movement,
    opaque,
    random,
    reduce,
    search,
    strided,
)
