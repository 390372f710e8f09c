"""Optimizers and learning rate schedules: PyTorch's `torch.optim` names."""

from flame.optim import lr_scheduler, swa_utils
from flame.optim.adam import Adam, Adamax, AdamW, NAdam, RAdam, SparseAdam
from flame.optim.adaptive import ASGD, Adadelta, Adagrad, RMSprop, Rprop
from flame.optim.factored import Adafactor, Muon
from flame.optim.lbfgs import LBFGS
from flame.optim.optimizer import Optimizer
from flame.optim.sgd import SGD

__all__ = [
    "ASGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "LBFGS",
    "Muon",
    "NAdam",
    "Optimizer",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SGD",
    "SparseAdam",
    "lr_scheduler",
    "swa_utils",
]
