"""`DistributedSampler`: each of several processes gets its own part of a dataset, all of one length."""

from __future__ import annotations

from collections.abc import Iterator, Sized

from flame.functions.elementwise import PUBLIC
from flame.functions.random import Generator
from flame.primitive import interpreting
from flame.utils.data.sampler import Sampler


class DistributedSampler(Sampler[int]):
    """Every `num_replicas`-th index from `rank` on. The order is that of `seed` plus the epoch: call `set_epoch` before each.

    To make parts equal, indices are repeated, or with `drop_last` left out. Raises RuntimeError where the number of replicas or
    the rank is not given, since flame has no process group to ask; ValueError for a rank that does not exist.
    """

    def __init__(
        self, dataset: Sized, num_replicas: int | None = None, rank: int | None = None, shuffle: bool = True, seed: int = 0,
        drop_last: bool = False,
    ) -> None:  # fmt: skip
        if num_replicas is None or rank is None:
            raise RuntimeError("DistributedSampler: give num_replicas and rank; flame has no process group to take them from")
        if not 0 <= rank < num_replicas:
            raise ValueError(f"Invalid rank {rank}, rank should be in the interval [0, {num_replicas - 1}]")
        self.dataset, self.num_replicas, self.rank = dataset, num_replicas, rank
        self.shuffle, self.seed, self.drop_last, self.epoch = shuffle, seed, drop_last, 0
        n = len(dataset)
        self.num_samples = n // num_replicas if drop_last else -(-n // num_replicas)
        self.total_size = self.num_samples * num_replicas

    def __iter__(self) -> Iterator[int]:
        n = len(self.dataset)
        indices = list(range(n))
        if self.shuffle:
            with interpreting(None):
                indices = PUBLIC["randperm"](n, generator=Generator().manual_seed(self.seed + self.epoch)).tolist()
        if indices:
            indices = (indices * -(-self.total_size // n))[: self.total_size]
        return iter(indices[self.rank :: self.num_replicas])

    def __len__(self) -> int:
        return self.num_samples

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch; the same in every process."""
        self.epoch = epoch
