"""What `benchmarks/gpu.py` measures, in one framework: `python benchmarks/gpu_rows.py FRAMEWORK [small] [fake]`.

This process prints its version and its rows as JSON, then answers lines on stdin with lines on stdout, both JSON:

    {"prepare": row, "variant": eager | compiled | tuned}   made, compiled and warmed up: the first call's seconds, the bytes that
                                                            must move and the operations that must be done (0 where that says
                                                            nothing), the first result's sum, by which frameworks are compared,
                                                            and the most bytes of the device that were taken at once; of flame's
                                                            eager rows also how many kernels were compiled side by side before
                                                            that, and in how many seconds
    {"time": true}                                          the median seconds of a call of it

What fails gives its error, and whether the device's memory ran out.

flame and PyTorch run the same lines. Seconds are the device's, between two events, with its caches flushed before every call; rows
of `wall` are the clock's over calls that are not waited for. "small" has sizes that an interpreter can run; "fake" runs flame on a
driver that does so, or at full size on one that has kernels compiled, checks launches and runs none: what it finds wrong is an
error.
"""

from __future__ import annotations

import contextlib
import gc
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from benchmarks import gpu_models as models

#: what is measured before all else
TELLING = (
    "copy 1 GiB", "pointwise 128M", "call overhead", "matmul 8192x8192x8192", "linear gelu 8192x4096x4096", "softmax 8192",
    "softmax 8192 back", "layer norm 8192", "layer norm 8192 back", "rms norm 8192 back", "cross entropy 8192x131072",
    "attention 2048", "attention 2048 back", "conv 3x3 256 at 14", "conv 3x3 256 at 14 back", "AdamW 134M", "GPT-2 training",
    "Llama 1B, 1024 tokens", "ResNet-50 training", "ViT-B/16 training", "U-Net training", "GPT-2 inference",
    "ResNet-50 inference", "ViT-B/16 inference", "U-Net inference",
)  # fmt: skip

Call = Callable[[], Any]
Compile = Callable[[Callable], Callable]


@dataclass
class Row:
    """`make(compile)` gives the call; `train`: the call holds backward (and is compiled as a whole where that can be)."""

    make: Callable[[Compile], Call]
    bytes: float = 0
    operations: float = 0
    train: bool = False
    wall: bool = False


class Rows:
    """The rows, written against PyTorch's names. `whole`: a compiled function may hold backward and the optimizer."""

    def __init__(self, torch: Any, whole: bool, small: bool):
        self.torch, self.whole, self.small = torch, whole, small
        self.nn, self.F = torch.nn, torch.nn.functional
        self.of: dict[str, Callable[[], Row]] = {}
        self._kernels()
        self._products()
        self._models()

    def data(self, *shape: int, dtype: str = "bfloat16", grad: bool = False) -> Any:
        t = self.torch.randn(*shape, device="cuda").to(getattr(self.torch, dtype))
        return t.requires_grad_(True) if grad else t

    def built(self, make: Callable[[Any, bool], tuple[Any, int]]) -> tuple[Any, int]:
        """A model whose parameters are drawn on the device: a processor takes minutes for a billion of them."""
        with self.torch.device("cuda"):
            return make(self.torch, self.small)

    def size(self, full: int, small: int) -> int:
        return small if self.small else full

    def plain(self, f: Callable, *xs: Any, **about: Any) -> Row:
        """A call without gradients."""

        def make(compile: Compile) -> Call:
            g = compile(f)

            def call() -> Any:
                with self.torch.no_grad():
                    return g(*xs)

            return call

        return Row(make, **about)

    def backward(self, f: Callable, *xs: Any, **about: Any) -> Row:
        """Forward and backward of f(*xs).sum(), gradients with respect to whatever of xs requires them."""

        def make(compile: Compile) -> Call:
            def step() -> Any:
                for x in xs:
                    x.grad = None
                y = forward(*xs)
                y.float().sum().backward()
                return y

            if self.whole:
                forward = f
                return compile(step)
            forward = compile(f)
            return step

        return Row(make, train=True, **about)

    def training(self, model: Any, loss_of: Callable, *batch: Any, **about: Any) -> Row:
        """A step: forward, loss, backward, AdamW."""
        model = model.to("cuda").to(self.torch.bfloat16)
        optimizer = self.torch.optim.AdamW(model.parameters(), lr=1e-5)
        loss = lambda *xs: loss_of(model, *xs)

        def make(compile: Compile) -> Call:
            forward = loss if self.whole else compile(loss)

            def step(*xs: Any) -> Any:
                optimizer.zero_grad()
                found = forward(*xs)
                found.backward()
                optimizer.step()
                return found

            whole = compile(step) if self.whole else step
            return lambda: whole(*batch)

        return Row(make, train=True, **about)

    # ---- rows

    def _kernels(self) -> None:
        F, torch, of = self.F, self.torch, self.of

        def pointwise() -> Row:
            n = self.size(1 << 27, 1 << 8)
            x, y = self.data(n, dtype="float32"), self.data(n, dtype="float32")
            return self.plain(lambda x, y: F.gelu(x * 2 + 1) * y, x, y, bytes=12 * n)

        def copy() -> Row:
            n = self.size(1 << 28, 1 << 8)
            return self.plain(lambda x: x.clone(), self.data(n, dtype="float32"), bytes=8 * n)

        def overhead() -> Row:
            x = self.data(16, dtype="float32")
            return self.plain(lambda x: ((x * 2 + 1).relu() * x).sum(), x, wall=True)

        of |= {"copy 1 GiB": copy, "pointwise 128M": pointwise, "call overhead": overhead}
        for columns in (1024, 8192, 65536, 262144):
            rows = self.size((1 << 27) // columns, 2)
            m = self.size(columns, 64)

            def softmax(rows: int = rows, m: int = m) -> Row:
                return self.plain(lambda x: torch.softmax(x, -1), self.data(rows, m), bytes=4 * rows * m)

            def softmax_back(rows: int = rows, m: int = m) -> Row:
                return self.backward(lambda x: torch.softmax(x, -1), self.data(rows, m, grad=True), bytes=10 * rows * m)

            def norm(name: str, back: bool, rows: int = rows, m: int = m) -> Row:
                w = self.data(m, grad=back)
                x = self.data(rows, m, grad=back)
                b = self.data(m, grad=back)
                layer = lambda x, w, b: F.layer_norm(x, (m,), w, b)
                rms = lambda x, w: F.rms_norm(x, (m,), w)
                f, xs = (layer, (x, w, b)) if name == "layer" else (rms, (x, w))
                return (self.backward if back else self.plain)(f, *xs, bytes=(10 if back else 4) * rows * m)

            of[f"softmax {columns}"], of[f"softmax {columns} back"] = softmax, softmax_back
            for name in ("layer", "rms"):
                of[f"{name} norm {columns}"] = lambda name=name, norm=norm: norm(name, False)
                of[f"{name} norm {columns} back"] = lambda name=name, norm=norm: norm(name, True)

        def cross_entropy() -> Row:
            n, v = self.size(8192, 3), self.size(131072, 70)
            target = torch.randint(0, v, (n,), device="cuda")
            return self.backward(lambda x: F.cross_entropy(x, target), self.data(n, v, grad=True), bytes=6 * n * v)

        def adamw() -> Row:
            n = self.size(4096, 8)
            parameters = [self.nn.Parameter(self.data(n, n, dtype="float32")) for _ in range(self.size(8, 2))]
            for p in parameters:
                p.grad = torch.ones_like(p)
            optimizer = torch.optim.AdamW(parameters, lr=1e-4)

            def make(compile: Compile) -> Call:
                def step() -> None:
                    optimizer.step()

                return compile(step)

            return Row(make, bytes=28.0 * sum(p.numel() for p in parameters))

        of |= {"cross entropy 8192x131072": cross_entropy, "AdamW 134M": adamw}

    def _products(self) -> None:
        F, of = self.F, self.of
        for m, n, k in ((4096,) * 3, (8192,) * 3, (512, 4096, 4096), (16, 8192, 8192), (8192, 1024, 8192)):

            def matmul(m: int = m, n: int = n, k: int = k) -> Row:
                m, n, k = (self.size(d, min(d, 16)) for d in (m, n, k))
                a, b = self.data(m, k), self.data(k, n)
                return self.plain(lambda a, b: a @ b, a, b, operations=2.0 * m * n * k)

            of[f"matmul {m}x{n}x{k}"] = matmul

        def linear() -> Row:
            m, n = self.size(8192, 16), self.size(4096, 16)
            x, w, b = self.data(m, n), self.data(n, n), self.data(n)
            return self.plain(lambda x, w, b: F.gelu(F.linear(x, w, b)), x, w, b, operations=2.0 * m * n * n)

        of["linear gelu 8192x4096x4096"] = linear
        for batch, length in ((32, 512), (8, 2048), (4, 4096), (1, 16384)):
            for back in (False, True):

                def attention(batch: int = batch, length: int = length, back: bool = back) -> Row:
                    shape = (self.size(batch, 1), self.size(16, 1), self.size(length, 16), self.size(128, 16))
                    q, k, v = (self.data(*shape, grad=back) for _ in range(3))
                    f = lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)
                    operations = 2.0 * shape[0] * shape[1] * shape[2] ** 2 * shape[3] * (3.5 if back else 1)
                    return (self.backward if back else self.plain)(f, q, k, v, operations=operations)

                of[f"attention {length}{' back' if back else ''}"] = attention
        for channels, side in ((64, 56), (256, 14)):
            for back in (False, True):

                def conv(channels: int = channels, side: int = side, back: bool = back) -> Row:
                    c, s, n = self.size(channels, 2), self.size(side, 4), self.size(64, 1)
                    x, w = self.data(n, c, s, s, grad=back), self.data(c, c, 3, 3, grad=back)
                    operations = 2.0 * n * s * s * c * c * 9 * (3 if back else 1)
                    f = lambda x, w: F.conv2d(x, w, padding=1)
                    return (self.backward if back else self.plain)(f, x, w, operations=operations)

                of[f"conv 3x3 {channels} at {side}{' back' if back else ''}"] = conv

    def _models(self) -> None:
        F, torch, of = self.F, self.torch, self.of

        def inference(model: Any, x: Any) -> Row:
            model = model.to("cuda").to(torch.bfloat16).eval()
            return self.plain(lambda x: model(x), x)

        def gpt2(train: bool) -> Row:
            model, vocabulary = self.built(models.gpt2)
            n, t = self.size(8, 1), self.size(1024, 4)
            x, y = (torch.randint(0, vocabulary, (n, t), device="cuda") for _ in range(2))
            if not train:
                return inference(model, x)
            return self.training(model, lambda m, x, y: F.cross_entropy(m(x).flatten(0, 1).float(), y.flatten()), x, y)

        def images(make: Callable, train: bool) -> Row:
            model, side = self.built(make)
            n = self.size(64, 1)
            x, y = self.data(n, 3, side, side), torch.randint(0, 10, (n,), device="cuda")
            if train:
                return self.training(model, lambda m, x, y: F.cross_entropy(m(x).float(), y), x, y)
            return inference(model, x)

        def llama() -> Row:
            model, vocabulary = self.built(models.llama)
            return inference(model, torch.randint(0, vocabulary, (1, self.size(1024, 4)), device="cuda"))

        def unet(train: bool) -> Row:
            model, side = self.built(models.unet)
            x = self.data(self.size(8, 1), 4, side, side)
            if not train:
                return inference(model, x)
            return self.training(model, lambda m, x: ((m(x) - x) ** 2).float().mean(), x)

        of["Llama 1B, 1024 tokens"] = llama
        for train in (True, False):
            doing = "training" if train else "inference"
            of[f"GPT-2 {doing}"] = lambda train=train: gpt2(train)
            of[f"ResNet-50 {doing}"] = lambda train=train: images(models.resnet50, train)
            of[f"ViT-B/16 {doing}"] = lambda train=train: images(models.vit, train)
            of[f"U-Net {doing}"] = lambda train=train: unet(train)

    @property
    def tuned(self) -> list[str]:
        """Rows that are also measured with the mode that tries many kernels, which takes long."""
        kinds = ("matmul", "linear", "attention", "softmax", "layer norm", "rms norm", "cross entropy", "conv", "pointwise")
        return [row for row in self.of if row.startswith(kinds)]

    def rank(self, row: str) -> tuple[int, int]:
        """Where a row stands among all: one of each kind first, then models, then other sizes."""
        names = list(self.of)
        return (TELLING.index(row) if row in TELLING else len(TELLING), names.index(row))


class Worker:
    """Measures rows in this process's framework. `ahead(worker, row)` is called before a row runs eagerly; what it says is told."""

    def __init__(
        self, torch: Any, whole: bool, small: bool, ahead: Callable[[Worker, str], dict[str, Any]] = lambda w, row: {}
    ):
        self.torch, self.small, self.ahead = torch, small, ahead
        self.row: Row | None = None
        self.call: Call | None = None
        torch.manual_seed(0)
        self.rows = Rows(torch, whole, small)
        self.flush = torch.zeros(64 if small else 1 << 25, device="cuda")  # more than the device's caches hold
        self.variants: dict[str, Compile] = {
            "eager": lambda f: f,
            "compiled": torch.compile,
            "tuned": lambda f: torch.compile(f, mode="max-autotune"),
        }

    def prepare(self, name: str, variant: str) -> dict[str, Any]:
        self.row = self.call = None
        self._tidy()
        ahead = self.ahead(self, name) if variant == "eager" else {}
        self.torch.cuda.reset_peak_memory_stats()
        self.torch.manual_seed(1)
        row = self.rows.of[name]()
        call = row.make(self.variants[variant])
        begun = time.perf_counter()
        result = call()
        self.torch.cuda.synchronize()
        first = time.perf_counter() - begun
        total = 0.0 if result is None else float(added_up(result))
        result = None
        for _ in range(1 if self.small else 3):
            call()
        self.torch.cuda.synchronize()
        self.row, self.call = row, call
        peak = self.torch.cuda.max_memory_reserved()
        self._tidy()  # (a first call takes more than later ones)
        return {"first": first, "bytes": row.bytes, "operations": row.operations, "sum": total, "peak": peak} | ahead

    def time(self) -> dict[str, Any]:
        assert self.row is not None and self.call is not None
        found = {"seconds": self._wall(self.call) if self.row.wall else self._device(self.call)}
        self.row = self.call = None
        self._tidy()
        return found

    def _tidy(self) -> None:
        """Hand back what is not in use: other processes are on the same device."""
        gc.collect()
        self.torch.cuda.empty_cache()

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        try:
            return self.time() if "time" in asked else self.prepare(asked["prepare"], asked["variant"])
        except Exception as error:  # one variant's failure is its own answer
            traceback.print_exc()
            said = {"error": f"{type(error).__name__}: {error}"[:300]}
            return said | ({"memory": True} if isinstance(error, self.torch.cuda.OutOfMemoryError) else {})

    def _device(self, call: Call) -> float:
        """The median of the device's time between two events."""
        Event, most = self.torch.cuda.Event, 2 if self.small else 100
        pairs = []
        begun = time.perf_counter()
        while len(pairs) < most and (len(pairs) < 5 or time.perf_counter() - begun < 0.5):
            self.flush.zero_()
            start, end = Event(enable_timing=True), Event(enable_timing=True)
            start.record()
            call()
            end.record()
            pairs.append((start, end))
            if len(pairs) % 5 == 0:
                self.torch.cuda.synchronize()
        self.torch.cuda.synchronize()
        return statistics.median(a.elapsed_time(b) for a, b in pairs) / 1e3

    def _wall(self, call: Call) -> float:
        """The clock's time of a call among many that are not waited for."""
        n = 2 if self.small else 200
        times = []
        for _ in range(5):
            self.torch.cuda.synchronize()
            begun = time.perf_counter()
            for _ in range(n):
                call()
            times.append((time.perf_counter() - begun) / n)
        return statistics.median(times)


def added_up(result: Any) -> Any:
    return result.detach().float().sum()


def compiled_ahead(worker: Worker, name: str) -> dict[str, Any]:
    """Eager operations compile their kernels one by one, as they come: GPT-2's first step would take minutes. So a row is first
    made on a device that only notes its kernels, and these are compiled on all processors."""
    from fake_cuda_launches import rehearsed

    from flame.runtime import cuda

    gpu = cuda.gpu()
    begun = time.perf_counter()

    def twice() -> None:
        worker.torch.manual_seed(1)
        call = worker.rows.of[name]().make(worker.variants["eager"])
        for _ in range(2):
            result = call()
            if result is not None:
                added_up(result)

    sources = rehearsed(twice, gpu)
    gpu.prepare(sources)
    return {"ahead": len(sources), "ahead seconds": time.perf_counter() - begun}


def serve(torch: Any, whole: bool, small: bool, wrong: list[str], ahead: bool = False) -> None:
    """Until stdin ends; `wrong` is where a fake driver says what was; `ahead`: compile what eager rows run beforehand."""
    worker = Worker(torch, whole, small, *([compiled_ahead] if ahead else []))
    say = lambda what: print(json.dumps(what), flush=True)
    rows = worker.rows
    about = {"version": f"{torch.__version__} (Triton {version('triton')})", "device": torch.cuda.get_device_name()}
    say(about | {"rows": sorted(rows.of, key=rows.rank), "tuned": sorted(rows.tuned, key=rows.rank)})
    for line in sys.stdin:
        made = worker.answer(json.loads(line))
        if wrong:
            made = {"error": "; ".join(wrong)[:300]}
            wrong.clear()
        say(made)


def main() -> None:
    framework, flags = sys.argv[1], sys.argv[2:]
    if framework == "torch":
        import torch

        serve(torch, False, "small" in flags, [])
        return
    import flame

    sys.path.insert(0, "tests")
    with contextlib.ExitStack() as stack:
        wrong: list[str] = []
        if "fake" in flags:
            from fake_cuda import FakeLibrary, gpu_for_tests
            from fake_cuda_launches import LaunchesOnly

            library = FakeLibrary() if "small" in flags else LaunchesOnly()
            wrong = stack.enter_context(gpu_for_tests(library=library)).violations
        serve(flame, True, "small" in flags, wrong, ahead="small" not in flags)


if __name__ == "__main__":
    main()
