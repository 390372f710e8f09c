"""What lies outside of the functions that `tests.fuzz_capture` compiles: parameters, buffers, modules, optimizers, containers,
memory that NumPy shares. A world is made anew for each run, so that the eager and the compiled run can't touch each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import flame
from flame import nn

#: how the first dimension changes from call to call, and the number that a call is given: choices of the "batches" and "numbers"
#: operations, the first of each being what a program without them has
SIZES = (
    (4, 4, 4, 4, 5, 6, 4),
    (4, 4, 4, 4, 4, 4, 4),
    (0, 1, 2, 3, 2, 1, 0),
    (3, 0, 3, 1, 1, 0, 3),
    (2, 3, 4, 5, 6, 7, 8),
    (1, 1, 1, 2, 2, 1, 2),
)
NUMBERS: tuple[tuple[Any, ...], ...] = (
    (1.0, 1.0, 2.0, 2.5, 2.5, 1.0, 3.0),
    (1, 1, 2, 2, 3, 1, 4),
    (1, 1.0, True, 1.0, 1, True, False),
    (0.0, -0.0, 0.0, 0.0, -0.0, 1.0, -0.0),
    (0.5, 0.25, 0.5, 2, 2, 0.5, 0.25),
)


#: 0, or which way the numbers of a world are moved in their last digits: what rounding does to a program shows by that
shaken = 0


def tensor(*shape: int, seed: int, grad: bool = False) -> Any:
    a = np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)
    if shaken:
        a *= (1 + 3e-7 * np.random.default_rng((seed, shaken)).uniform(-1, 1, shape)).astype(np.float32)
    return flame.tensor(a, requires_grad=grad)


class Rounded(flame.autograd.Function):
    """Numbers, and gradients that come to them, moved by as much as rounding to a dtype of 16 bits may move them."""

    @staticmethod
    def forward(ctx: Any, x: Any, least: float) -> Any:
        ctx.least = least
        return _moved(x, least)

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        return _moved(g, ctx.least), None


def _moved(x: Any, least: float) -> Any:
    a = np.random.default_rng((len(x.shape), shaken)).uniform(-0.5, 0.5, x.shape)
    return x * flame.tensor((1 + least * a).astype(np.float32))


def rounded(x: Any, d: Any = flame.bfloat16) -> Any:
    """A tensor that 16-bit computation begins with or gives. Eager rounds every result between, kernels only those that they
    store; so where inputs are shaken this is too, by half a unit in its last place."""
    return Rounded.apply(x, flame.finfo(d).eps) if shaken else x


class Halved(flame.autograd.Function):
    """A custom function that saves its operand and returns half of the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        (x,) = ctx.saved_tensors
        return g * x


class Pair(flame.autograd.Function):
    """Two operands of which one may need no gradient, two results of which one is not differentiable, and a number."""

    @staticmethod
    def forward(ctx: Any, x: Any, w: Any, k: float) -> Any:
        ctx.save_for_backward(x, w)
        ctx.k = k
        sign = (x > 0).float()
        ctx.mark_non_differentiable(sign)
        return x * w * k, sign

    @staticmethod
    def backward(ctx: Any, g: Any, _sign: Any) -> Any:
        x, w = ctx.saved_tensors
        gx = g * w * ctx.k if ctx.needs_input_grad[0] else None
        gw = (g * x * ctx.k).sum(0) if ctx.needs_input_grad[1] else None
        return gx, gw, None


class Refusing(flame.autograd.Function):
    """Raises in its backward."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x * 2.0

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        raise ValueError("no gradient today")


@flame.disable
def aside(x: Any) -> Any:
    """Never captured."""
    return x * 0.5 + 1.0


class Net(nn.Module):
    """A linear layer, batch normalisation with its buffers, and a counter of calls."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("seen", flame.zeros(1))
        self.calls = 0

    def forward(self, x: Any) -> Any:
        self.calls += 1
        self.seen += x.shape[0]
        return self.norm(self.linear(x)) * (1.0 + 0.1 * self.calls)


class World:
    """Everything that lives outside of the compiled function. `wrap` compiles a function, or in the eager run does not."""

    def __init__(self, wrap: Callable[..., Callable] = lambda f, **how: f) -> None:
        self.weights = [tensor(3, seed=11, grad=True), tensor(3, 3, seed=12, grad=True), tensor(3, seed=13, grad=True)]
        self.momenta = [flame.zeros_like(w) for w in self.weights]
        self.buffer = tensor(4, 3, seed=15)
        self.window = self.buffer[1:3]
        self.escaped: list = []
        self.listed: list = []
        self.named: dict = {}
        self.array = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
        self.shared = flame.from_numpy(self.array)
        self.scratch = flame.zeros(4, 3)
        self.losses: list = []
        self.rate = 0.05
        # what the features use
        self.wrap = wrap
        self.count = 0
        self.kept: Any = None
        self.grown: list = []
        self.table: dict = {}
        self.noted: list = []
        #: what hooks saw; in one walk of the tape, hooks on tensors that do not depend on each other are called in any order
        self.heard: list = []
        self.handles: dict = {}
        self.copied: Any = None
        self.net: Any = None
        self.optimizer: Any = None
        self.schedule: Any = None
        self.source: Iterator[Any] | None = None
        self.generator = flame.Generator().manual_seed(5)
        self.learner: Any = None
        #: what operations around switches keep (`tests.fuzz_switches`)
        self.switched: dict[str, Any] = {}
        self.inner = wrap(lambda t, w: (t * w).tanh() + t)
        self.replayed = wrap(lambda t, w, k: (t * w).tanh() * k + t.shape[0], mode="replay")

    def module(self) -> Any:
        if self.net is None:
            self.net = Net()
            for i, p in enumerate(self.net.parameters()):
                with flame.no_grad():
                    p.copy_(tensor(*p.shape, seed=30 + i) * 0.5 + 0.1)
        return self.net

    def trainer(self, kind: float) -> Any:
        if self.optimizer is None:
            ps = list(self.module().parameters())
            match int(kind * 6):
                case 0:
                    self.optimizer = flame.optim.SGD(ps, lr=0.05, momentum=0.9, nesterov=True)
                case 1:
                    self.optimizer = flame.optim.AdamW(ps, lr=0.01)
                case 2:
                    self.optimizer = flame.optim.Adam(ps, lr=0.01, amsgrad=True)
                case 3:
                    self.optimizer = flame.optim.RMSprop(ps, lr=0.01, momentum=0.5)
                case 4:
                    self.optimizer = flame.optim.RAdam(ps, lr=0.01)
                case _:
                    self.optimizer = flame.optim.Adagrad([{"params": ps[:2], "lr": 0.02}, {"params": ps[2:]}], lr=0.01)
            self.schedule = flame.optim.lr_scheduler.StepLR(self.optimizer, step_size=2, gamma=0.5)
        return self.optimizer

    def shown(self) -> list:
        """What an observer sees of it after a call."""
        net = [] if self.net is None else [list(self.net.parameters()), list(self.net.buffers()), self.net.calls]
        learner = [] if self.learner is None else [*self.learner[0].parameters(), *self.learner[0].buffers()]
        return [
            self.buffer, self.window, self.weights, self.escaped[-2:], self.listed, self.named, self.scratch,
            self.count, self.kept, self.grown[-3:], self.table, self.noted[-6:], sorted(map(float, self.heard)), self.copied, net,
            learner,
        ]  # fmt: skip

    def forget_gradients(self) -> None:
        """After an error: what hooks and backward did before it depends on the order in which the tape is walked."""
        for w in [
            *self.weights,
            *(p for net in (self.net, self.learner and self.learner[0]) if net is not None for p in net.parameters()),
        ]:
            w.grad = None
        self.scratch.zero_()  # which may have been a gradient
        self.noted.clear()
        self.heard.clear()
