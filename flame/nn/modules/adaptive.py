"""Adaptive softmax: frequent classes directly, rare ones in clusters of smaller width (Grave et al., 2017)."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Sequence
from typing import Any

from flame.functions.elementwise import PUBLIC
from flame.nn import functional as F
from flame.nn.modules.container import ModuleList, Sequential
from flame.nn.modules.linear import Linear
from flame.nn.modules.module import Module
from flame.primitive import beside
from flame.tensor import Tensor

ASMoutput = namedtuple("ASMoutput", ["output", "loss"])


class AdaptiveLogSoftmaxWithLoss(Module):
    """The log probabilities of targets [N] by input [N, in_features], and their mean negative.

    `cutoffs` divide the classes, the most frequent first; cluster k has the width in_features / div_value ** (k + 1). Which rows
    need which cluster is read from the targets.
    """

    def __init__(
        self, in_features: int, n_classes: int, cutoffs: Sequence[int], div_value: float = 4.0, head_bias: bool = False,
        device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        cutoffs = list(cutoffs)
        if not cutoffs:
            raise ValueError("cutoffs should be a sequence of length larger than 0")
        whole = all(isinstance(c, int) and 0 < c < n_classes for c in cutoffs)
        if not whole or cutoffs != sorted(set(cutoffs)):
            raise ValueError(
                "cutoffs should be a sequence of unique, positive integers sorted in an increasing order, where each value is "
                f"between 1 and n_classes-1, got {cutoffs}"
            )
        self.in_features, self.n_classes, self.div_value, self.head_bias = in_features, n_classes, div_value, head_bias
        self.cutoffs = [*cutoffs, n_classes]
        self.shortlist_size, self.n_clusters = self.cutoffs[0], len(self.cutoffs) - 1
        self.head_size = self.shortlist_size + self.n_clusters
        kind: dict[str, Any] = dict(device=device, dtype=dtype)
        self.head = Linear(in_features, self.head_size, bias=head_bias, **kind)
        self.tail = ModuleList()
        for k in range(self.n_clusters):
            width = int(in_features // div_value ** (k + 1))
            size = self.cutoffs[k + 1] - self.cutoffs[k]
            self.tail.append(
                Sequential(Linear(in_features, width, bias=False, **kind), Linear(width, size, bias=False, **kind))
            )

    def reset_parameters(self) -> None:
        self.head.reset_parameters()
        for first, second in self.tail:
            first.reset_parameters()
            second.reset_parameters()

    @beside
    def forward(self, input_: Tensor, target_: Tensor) -> ASMoutput:
        """(output, loss): the log probability of each target, and the mean of their negatives."""
        if input_.ndim not in (1, 2) or target_.ndim != input_.ndim - 1:
            raise RuntimeError(
                f"expected 1D or 2D input and a target of one dimension less, but got {input_.ndim}D and {target_.ndim}D tensors"
            )
        if target_.ndim and input_.shape[0] != target_.shape[0]:
            raise RuntimeError("Input and target should have the same size in the batch dimension.")
        x = input_ if input_.ndim == 2 else input_.unsqueeze(0)
        y = target_ if target_.ndim else target_.unsqueeze(0)
        classes = y.tolist()
        if any(not 0 <= c < self.n_classes for c in classes):
            raise RuntimeError(
                f"Target values should be in [0, {self.n_classes - 1}], but values in range [{min(classes)}, {max(classes)}] were "
                "found. "
            )
        head = F.log_softmax(self.head(x), 1)
        place = [c if c < self.shortlist_size else -1 for c in classes]
        parts: list[tuple[list[int], Tensor]] = []
        for k in range(self.n_clusters):
            low, high = self.cutoffs[k], self.cutoffs[k + 1]
            rows = [i for i, c in enumerate(classes) if low <= c < high]
            if rows:
                for i in rows:
                    place[i] = self.shortlist_size + k
                inside = F.log_softmax(self.tail[k](PUBLIC["index_select"](x, 0, PUBLIC["tensor"](rows))), 1)
                at = PUBLIC["tensor"]([[classes[i] - low] for i in rows])
                parts.append((rows, PUBLIC["gather"](inside, 1, at).squeeze(1)))
        output = PUBLIC["gather"](head, 1, PUBLIC["tensor"](place).unsqueeze(1)).squeeze(1)
        for rows, values in parts:
            output = PUBLIC["index_add"](output, 0, PUBLIC["tensor"](rows), values)
        loss = (-output).mean()
        return ASMoutput(output if input_.ndim == 2 else output.squeeze(0), loss)

    def log_prob(self, input: Tensor) -> Tensor:
        """The log probabilities of all classes [N, n_classes]."""
        head = F.log_softmax(self.head(input), 1)
        parts = [head[:, : self.shortlist_size]]
        for k in range(self.n_clusters):
            inside = F.log_softmax(self.tail[k](input), 1)
            parts.append(inside + head[:, self.shortlist_size + k].unsqueeze(1))
        return PUBLIC["cat"](parts, 1)

    def predict(self, input: Tensor) -> Tensor:
        """The most probable class of each row [N]."""
        return PUBLIC["argmax"](self.log_prob(input), 1)
