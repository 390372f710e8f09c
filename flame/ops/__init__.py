"""Every primitive, by file: importing this package fills the registry."""

from flame.ops import (  # noqa: F401
    attention,
    contract,
    create,
    elementwise,
    factorisations,
    flex,
    higher,
    index,
    linalg,
    logic,
    movement,
    opaque,
    pool,
    random,
    recurrent,
    reduce,
    rejection,
    search,
    spectral,
    strided,
)
