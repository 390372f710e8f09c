"""Optimizers and learning rate schedules: PyTorch's `torch.optim` names."""

from flame.optim import lr_scheduler
from flame.optim.adam import Adam, Adamax, AdamW, NAdam, RAdam
from flame.optim.adaptive import Adadelta, Adagrad, RMSprop, Rprop
from flame.optim.optimizer import Optimizer
from flame.optim.sgd import SGD

__all__ = [
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "NAdam",
    "Optimizer",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SGD",
    "lr_scheduler",
]
