"""flame.func: functions of functions, under torch.func's names.

`grad`, `vjp`, `jvp`, `linearize`, `jacrev`, `jacfwd`, `hessian`, `vmap` take a function and give one; they nest.
`functional_call` runs a module with other parameters. Derivatives are those of the tape: what is asked for is differentiable.
"""

from __future__ import annotations

from flame.func.derivatives import grad, grad_and_value, hessian, jacfwd, jacrev, jvp, linearize, vjp
from flame.func.modules import functional_call, stack_module_state
from flame.func.vectorized import vmap

__all__ = [
    "functional_call", "grad", "grad_and_value", "hessian", "jacfwd", "jacrev", "jvp", "linearize", "stack_module_state",
    "vjp", "vmap",
]  # fmt: skip
