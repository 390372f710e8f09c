"""How many floating-point operations a primitive takes: the products and sums of contractions, a multiplication and an addition
being two. Everything else counts as nothing, as is the custom: it is bound by the bytes that it moves, not by arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def flops(name: str, operands: Sequence[Any], params: dict[str, Any], results: Sequence[Any]) -> int:
    """Of one application. `operands` and `results` are whatever has a `shape` (numbers have none)."""
    shapes = [tuple(getattr(o, "shape", ())) for o in operands]
    outs = [tuple(r.shape) for r in results]
    match name:
        case "matmul":
            return 2 * math.prod(outs[0]) * shapes[0][-1]
        case "contract":
            left, _, _ = params["spec"].partition("->")
            sizes = dict(zip(left.replace(",", ""), (*shapes[0], *shapes[1]), strict=True))
            return 2 * math.prod(sizes.values())
        case "conv":
            return 2 * math.prod(outs[0]) * math.prod(shapes[1][1:])
        case "conv_input_grad":
            return 2 * math.prod(shapes[0]) * math.prod(shapes[1][1:])
        case "conv_weight_grad":
            return 2 * math.prod(shapes[1]) * math.prod(outs[0][1:])
        case (
            "attention" | "attention_grad" | "flex_attention" | "flex_attention_grad"
        ):  # two products forward; five backward, as scores are computed again
            q, v, rows = shapes[0], shapes[2], shapes[1][-2]
            pairs = 2 * math.prod(q[:-1]) * rows
            return pairs * (q[-1] + v[-1]) if not name.endswith("_grad") else pairs * (3 * q[-1] + 2 * v[-1])
        case "recurrent" | "recurrent_grad":  # one product with the weights a step
            weights = shapes[1 if name == "recurrent" else 0]
            return 2 * math.prod(outs[0][:2]) * math.prod(weights)
        case _:
            return 0
