"""Losses and distances as modules: each holds its function's settings.

Made from a row each of the table below: the function of `flame.nn.functional`, how many tensors `forward` takes, and the settings
with their defaults. Settings that are tensors (weights of classes) are buffers.
"""

from __future__ import annotations

import inspect
import math
import warnings
from typing import Any

from flame.nn import functional as F
from flame.nn.functional.chunked_entropy import LinearCrossEntropyOptions
from flame.nn.functional.loss import legacy
from flame.nn.modules.linear import Linear
from flame.nn.modules.module import Module
from flame.tensor import Tensor


class _Loss(Module):
    _function: Any
    _settings: inspect.Signature
    _tensors: tuple[str, ...]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        try:
            bound = self._settings.bind(*args, **kwargs)
        except TypeError as e:
            raise TypeError(f"{type(self).__name__}: {e}") from None
        bound.apply_defaults()
        values = dict(bound.arguments)
        if "reduction" in values:
            values["reduction"] = legacy(values.pop("size_average", None), values.pop("reduce", None), values["reduction"])
        for name, value in values.items():
            if name in self._tensors:
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)
        self._names = tuple(values)

    def forward(self, *tensors: Tensor) -> Tensor:
        return type(self)._function(*tensors, **{name: getattr(self, name) for name in self._names})


def _loss(name: str, function: Any, tensors: tuple[str, ...] = (), order: str = "", **settings: Any) -> type:
    """A class for `function`. `order` lists settings as PyTorch's constructor takes them by position."""
    names = order.split() or list(settings)
    parameters = [inspect.Parameter(k, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=settings.get(k)) for k in names]
    signature = inspect.Signature(parameters)
    body = {
        "_function": staticmethod(function), "_settings": signature, "_tensors": tensors, "__signature__": signature,
        "__doc__": function.__doc__, "__module__": __name__,
    }  # fmt: skip
    return type(name, (_Loss,), body)


_OLD = "size_average reduce reduction"

L1Loss = _loss("L1Loss", F.l1_loss, (), _OLD, reduction="mean")
MSELoss = _loss("MSELoss", F.mse_loss, (), _OLD, reduction="mean")
SmoothL1Loss = _loss("SmoothL1Loss", F.smooth_l1_loss, (), _OLD + " beta", reduction="mean", beta=1.0)
HuberLoss = _loss("HuberLoss", F.huber_loss, reduction="mean", delta=1.0)
NLLLoss = _loss(
    "NLLLoss", F.nll_loss, ("weight",), "weight size_average ignore_index reduce reduction", ignore_index=-100, reduction="mean"
)
CrossEntropyLoss = _loss(
    "CrossEntropyLoss", F.cross_entropy, ("weight",), "weight size_average ignore_index reduce reduction label_smoothing",
    ignore_index=-100, reduction="mean", label_smoothing=0.0,
)  # fmt: skip
BCELoss = _loss("BCELoss", F.binary_cross_entropy, ("weight",), "weight " + _OLD, reduction="mean")
BCEWithLogitsLoss = _loss(
    "BCEWithLogitsLoss", F.binary_cross_entropy_with_logits, ("weight", "pos_weight"), f"weight {_OLD} pos_weight",
    reduction="mean",
)  # fmt: skip
KLDivLoss = _loss("KLDivLoss", F.kl_div, (), _OLD + " log_target", reduction="mean", log_target=False)
PoissonNLLLoss = _loss(
    "PoissonNLLLoss", F.poisson_nll_loss, (), "log_input full size_average eps reduce reduction", log_input=True, full=False,
    eps=1e-8, reduction="mean",
)  # fmt: skip
GaussianNLLLoss = _loss("GaussianNLLLoss", F.gaussian_nll_loss, full=False, eps=1e-6, reduction="mean")
MarginRankingLoss = _loss("MarginRankingLoss", F.margin_ranking_loss, (), "margin " + _OLD, margin=0.0, reduction="mean")
HingeEmbeddingLoss = _loss("HingeEmbeddingLoss", F.hinge_embedding_loss, (), "margin " + _OLD, margin=1.0, reduction="mean")
SoftMarginLoss = _loss("SoftMarginLoss", F.soft_margin_loss, (), _OLD, reduction="mean")
MultiLabelMarginLoss = _loss("MultiLabelMarginLoss", F.multilabel_margin_loss, (), _OLD, reduction="mean")
MultiLabelSoftMarginLoss = _loss(
    "MultiLabelSoftMarginLoss", F.multilabel_soft_margin_loss, ("weight",), "weight " + _OLD, reduction="mean"
)
MultiMarginLoss = _loss(
    "MultiMarginLoss", F.multi_margin_loss, ("weight",), "p margin weight " + _OLD, p=1, margin=1.0, reduction="mean"
)
CosineEmbeddingLoss = _loss("CosineEmbeddingLoss", F.cosine_embedding_loss, (), "margin " + _OLD, margin=0.0, reduction="mean")
TripletMarginLoss = _loss(
    "TripletMarginLoss", F.triplet_margin_loss, (), "margin p eps swap " + _OLD, margin=1.0, p=2.0, eps=1e-6, swap=False,
    reduction="mean",
)  # fmt: skip
TripletMarginWithDistanceLoss = _loss(
    "TripletMarginWithDistanceLoss", F.triplet_margin_with_distance_loss, distance_function=None, margin=1.0, swap=False,
    reduction="mean",
)  # fmt: skip
CTCLoss = _loss("CTCLoss", F.ctc_loss, blank=0, reduction="mean", zero_infinity=False)
CosineSimilarity = _loss("CosineSimilarity", F.cosine_similarity, dim=1, eps=1e-8)
PairwiseDistance = _loss("PairwiseDistance", F.pairwise_distance, p=2.0, eps=1e-6, keepdim=False)


class NLLLoss2d(NLLLoss):  # type: ignore[valid-type, misc]
    """NLLLoss by its older name."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        warnings.warn("NLLLoss2d has been deprecated. Use NLLLoss instead.", FutureWarning, stacklevel=2)
        super().__init__(*args, **kwargs)


class LinearCrossEntropyLoss(Module):
    """A linear map to `num_classes` and cross entropy: input [N, in_features], target [N, *out_features]."""

    def __init__(
        self, in_features: int, num_classes: int, *, out_features: tuple[int, ...] = (), bias: bool = False, device: Any = None,
        dtype: Any = None, reduction: str = "mean", weight: Tensor | None = None, ignore_index: int | None = None,
        label_smoothing: float = 0.0, options: LinearCrossEntropyOptions | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.options = options
        self.num_classes, self.out_features = num_classes, tuple(out_features)
        self.linear = Linear(in_features, num_classes * math.prod(self.out_features), bias=bias, device=device, dtype=dtype)
        self.register_buffer("weight", weight)
        self.reduction, self.ignore_index, self.label_smoothing = reduction, ignore_index, label_smoothing

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        shape = (self.num_classes, *self.out_features)
        b = self.linear.bias
        return F.linear_cross_entropy(
            input, self.linear.weight.reshape(*shape, self.linear.in_features), target,
            linear_bias=None if b is None else b.reshape(shape), weight=self.weight, reduction=self.reduction,
            ignore_index=self.ignore_index, label_smoothing=self.label_smoothing, options=self.options,
        )  # fmt: skip

    def extra_repr(self) -> str:
        names = "in_features num_classes out_features bias reduction ignore_index label_smoothing options".split()
        shown = {
            **self.__dict__, "in_features": self.linear.in_features, "bias": self.linear.bias is not None,
        }  # fmt: skip
        return ", ".join(f"{name}={shown[name]}" for name in names)
