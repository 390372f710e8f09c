"""Samplers: iterables of indices into a dataset, or of lists of indices, one list a batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from itertools import islice
from typing import Any, Generic, TypeVar

from flame.functions.elementwise import PUBLIC
from flame.functions.random import Generator, default_generator
from flame.primitive import interpreting
from flame.tensor import Tensor

T = TypeVar("T", covariant=True)


def drawn_seed(generator: Generator | None) -> int:
    """A seed drawn from a generator (the default one for None), which moves on."""
    with interpreting(None):
        return PUBLIC["randint"](0, (1 << 62) - 1, (1,), generator=generator or default_generator).item()


class Sampler(Generic[T]):
    """Base of samplers. Those that know their length have `__len__`."""

    def __init__(self) -> None:
        pass

    def __iter__(self) -> Iterator[T]:
        raise NotImplementedError("Subclasses of Sampler should implement __iter__.")


class SequentialSampler(Sampler[int]):
    """0, 1, 2, .."""

    def __init__(self, data_source: Sized) -> None:
        self.data_source = data_source

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self.data_source)))

    def __len__(self) -> int:
        return len(self.data_source)


class RandomSampler(Sampler[int]):
    """All indices in random order, or (`replacement`) each drawn anew; `num_samples` of them, the dataset's length if None.

    Without replacement and with more samples than the dataset has, one order follows another.
    """

    def __init__(
        self, data_source: Sized, replacement: bool = False, num_samples: int | None = None, generator: Generator | None = None
    ) -> None:
        if not isinstance(replacement, bool):
            raise TypeError(f"replacement should be a boolean value, but got replacement={replacement}")
        self.data_source, self.replacement, self._num_samples, self.generator = data_source, replacement, num_samples, generator
        if isinstance(self.num_samples, bool) or not isinstance(self.num_samples, int) or self.num_samples < 0:
            raise ValueError(f"num_samples should be a non-negative integer value, but got num_samples={self.num_samples}")

    @property
    def num_samples(self) -> int:
        return len(self.data_source) if self._num_samples is None else self._num_samples

    def __iter__(self) -> Iterator[int]:
        n, wanted = len(self.data_source), self.num_samples
        g = self.generator or Generator().manual_seed(drawn_seed(None))
        if not n:
            return
        while wanted:
            part = min(wanted, 1024) if self.replacement else min(wanted, n)
            with interpreting(None):
                draws = (
                    PUBLIC["randint"](0, n, (part,), generator=g) if self.replacement else PUBLIC["randperm"](n, generator=g)
                )
                found = draws.tolist()
            yield from found[:part]
            wanted -= part

    def __len__(self) -> int:
        return self.num_samples


class SubsetRandomSampler(Sampler[int]):
    """The given indices in random order."""

    def __init__(self, indices: Sequence[int], generator: Generator | None = None) -> None:
        self.indices, self.generator = indices, generator

    def __iter__(self) -> Iterator[int]:
        with interpreting(None):
            order = PUBLIC["randperm"](len(self.indices), generator=self.generator).tolist()
        for i in order:
            yield self.indices[i]

    def __len__(self) -> int:
        return len(self.indices)


class WeightedRandomSampler(Sampler[int]):
    """`num_samples` indices, each as likely as its weight."""

    def __init__(
        self, weights: Sequence[float], num_samples: int, replacement: bool = True, generator: Generator | None = None
    ) -> None:
        if isinstance(num_samples, bool) or not isinstance(num_samples, int) or num_samples <= 0:
            raise ValueError(f"num_samples should be a positive integer value, but got num_samples={num_samples}")
        if not isinstance(replacement, bool):
            raise ValueError(f"replacement should be a boolean value, but got replacement={replacement}")
        given = weights.tolist() if isinstance(weights, Tensor) else list(weights)
        if any(isinstance(w, list | tuple) for w in given):
            raise ValueError("weights should be a 1d sequence")
        with interpreting(None):
            self.weights = PUBLIC["tensor"]([float(w) for w in given]).double()
        self.num_samples, self.replacement, self.generator = num_samples, replacement, generator

    def __iter__(self) -> Iterator[int]:
        with interpreting(None):
            drawn = PUBLIC["multinomial"](self.weights, self.num_samples, self.replacement, generator=self.generator).tolist()
        return iter(drawn)

    def __len__(self) -> int:
        return self.num_samples


class BatchSampler(Sampler[list[int]]):
    """Lists of `batch_size` indices of another sampler; with `drop_last`, without a shorter one at the end."""

    def __init__(self, sampler: Iterable[int], batch_size: int, drop_last: bool) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size <= 0:
            raise ValueError(f"batch_size should be a positive integer value, but got batch_size={batch_size}")
        if not isinstance(drop_last, bool):
            raise ValueError(f"drop_last should be a boolean value, but got drop_last={drop_last}")
        self.sampler, self.batch_size, self.drop_last = sampler, batch_size, drop_last

    def __iter__(self) -> Iterator[list[int]]:
        indices = iter(self.sampler)
        while batch := list(islice(indices, self.batch_size)):
            if len(batch) == self.batch_size or not self.drop_last:
                yield batch

    def __len__(self) -> int:
        n: Any = len(self.sampler)  # type: ignore[arg-type]
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)
