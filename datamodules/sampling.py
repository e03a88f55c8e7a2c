"""Which utterances make up each batch: a whole epoch is planned at once, so any batch of it is found in no time."""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler


@dataclass(frozen=True)
class BatchLimits:
    """What a batch may hold; sizes are in seconds or LM positions, as the utterances' are.

    Args:
        utterances: At most so many; None for any number.
        size: At most so much, the padding up to the longest utterance counted in; None for any.
        ratio: While shuffling, sizes in a batch differ by less than this factor, as far as batches can be filled so.
    """

    utterances: int | None = None
    size: float | None = None
    ratio: float = 1.05

    def capacity(self, largest: np.ndarray) -> np.ndarray:
        """How many utterances fit if the longest has this size; at least one."""
        counts = np.full(largest.shape, np.iinfo(np.int32).max if self.utterances is None else self.utterances)
        if self.size is not None:
            counts = np.minimum(counts, np.floor(self.size / largest))
        return np.maximum(counts, 1).astype(np.int64)


@dataclass(frozen=True)
class Mixture:
    """Corpora in a fixed proportion.

    Args:
        counts: Utterances of each; they follow one another in the sizes.
        shares: Of each in an epoch, in utterances, up to a common factor. An epoch ends when one corpus is used up; of
            the others it takes a part, another one each time.
    """

    counts: Sequence[int]
    shares: Sequence[float]

    def draw(self, generator: np.random.Generator) -> np.ndarray:
        """The utterances of an epoch, int32, corpus by corpus."""
        factor = min(count / share for count, share in zip(self.counts, self.shares, strict=True))
        drawn, start = [], 0
        for count, share in zip(self.counts, self.shares, strict=True):
            everything, wanted = np.arange(start, start + count, dtype=np.int32), round(factor * share)
            drawn.append(generator.permutation(everything)[:wanted] if wanted < count else everything)
            start += count
        return np.concatenate(drawn)


class BatchPlan:
    """The batches of one epoch.

    Attributes:
        order: Utterances; batch i is ``order[bounds[i] : bounds[i + 1]]``.
        bounds: (batches + 1,).
        turns: The order of the batches.
    """

    def __init__(self, order: np.ndarray, bounds: np.ndarray, turns: np.ndarray):
        self.order = order
        self.bounds = bounds
        self.turns = turns

    def __len__(self) -> int:
        return len(self.turns)

    def __getitem__(self, turn: int) -> list[int]:
        batch = self.turns[turn]
        return self.order[self.bounds[batch] : self.bounds[batch + 1]].tolist()


def plan_in_order(sizes: np.ndarray, limits: BatchLimits, groups_of: int) -> BatchPlan:
    """Batches of neighbours, as they come; every process gets equally many, some of them halved, or empty at last."""
    starts, largest = [0], 0.0
    for index, size in enumerate(sizes.tolist()):
        largest = max(largest, size)
        if index - starts[-1] >= limits.capacity(np.array(largest)):
            starts.append(index)
            largest = size
    bounds = np.array([*starts, len(sizes)] if len(sizes) else [0])
    while (len(bounds) - 1) % groups_of:
        fullest = int(np.diff(bounds).argmax())
        half = (bounds[fullest] + bounds[fullest + 1] + 1) // 2
        if bounds[fullest + 1] - bounds[fullest] > 1:
            bounds = np.insert(bounds, fullest + 1, half)
        else:
            bounds = np.append(bounds, bounds[-1])
    return BatchPlan(np.arange(len(sizes), dtype=np.int32), bounds, np.arange(len(bounds) - 1))


def buckets(sizes: np.ndarray, ratio: float) -> tuple[np.ndarray, np.ndarray]:
    """Of each utterance (N,) its bucket, and the buckets' largest sizes; sizes in a bucket differ by ``ratio``."""
    smallest, largest = float(sizes.min()), float(sizes.max())
    count = max(1, int(np.ceil(np.log(largest / smallest) / np.log(ratio))))
    edges = np.minimum(smallest * ratio ** np.arange(1, count + 1), largest).astype(sizes.dtype)
    edges[-1] = largest
    return np.searchsorted(edges, sizes).astype(np.uint16), edges


def plan_shuffled(
    drawn: np.ndarray,
    bucket: np.ndarray,
    edges: np.ndarray,
    limits: BatchLimits,
    groups_of: int,
    generator: np.random.Generator,
) -> BatchPlan:
    """Batches of random utterances of about one length, in random order.

    Args:
        drawn: The utterances of the epoch.
        bucket: (N,) of every utterance; see `buckets`.
        edges: The largest size in each bucket.
        limits: Of a batch.
        groups_of: So many batches of about one length follow one another, one for each process; the few batches that
            make no full group are left out, other ones each time.
        generator: Of the shuffling.
    """
    shuffled = generator.permutation(drawn)
    order = shuffled[np.argsort(bucket[shuffled], kind="stable")]
    ends = np.searchsorted(bucket[order], np.arange(len(edges), dtype=bucket.dtype), side="right")
    start, bounds = 0, [np.zeros(1, np.int64)]
    for end, capacity in zip(ends.tolist(), limits.capacity(edges).tolist(), strict=True):
        # What does not fill a batch goes with the next larger ones.
        full = start + capacity * np.arange(1, (end - start) // capacity + 1)
        if len(full):
            bounds.append(full)
            start = int(full[-1])
    if start < len(order):
        bounds.append(np.array([len(order)]))
    cuts = np.concatenate(bounds)
    groups = (len(cuts) - 1) // groups_of
    chosen = np.sort(generator.permutation(len(cuts) - 1)[: groups * groups_of]).reshape(groups, groups_of)
    return BatchPlan(order, cuts, generator.permutation(chosen).reshape(-1))


class PlannedBatchSampler(Sampler[list[int]]):
    """Batches of one process.

    Args:
        sizes: (N,) of every utterance, in seconds or LM positions.
        limits: Of a batch.
        shuffle: False keeps the given order.
        seed: Of the shuffling.
        rank: Of this process.
        world_size: Processes; all get equally many batches.
        mixture: Of corpora; None for every utterance in each epoch.
    """

    def __init__(
        self,
        sizes: np.ndarray,
        limits: BatchLimits,
        shuffle: bool,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        mixture: Mixture | None = None,
    ):
        self.sizes = sizes.astype(np.float32, copy=False)
        self.limits = limits
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.mixture = mixture or Mixture([len(sizes)], [1.0])
        self.epoch = 0
        self.first = 0  # batches, of all processes together, that this epoch has had before
        self._buckets = buckets(self.sizes, limits.ratio) if shuffle else None
        self._plan: tuple[int, BatchPlan] | None = None

    def checksum(self) -> int:
        """Of what the plan of an epoch depends on."""
        rest = (self.limits, self.shuffle, self.seed, self.world_size, self.mixture)
        return zlib.crc32(repr(rest).encode(), zlib.crc32(np.ascontiguousarray(self.sizes).data))

    def plan(self) -> BatchPlan:
        """Of this epoch."""
        epoch = self.epoch if self.shuffle else 0
        if self._plan is None or self._plan[0] != epoch:
            self._plan = None  # its memory is needed for the next one
            if self._buckets is None:
                plan = plan_in_order(self.sizes, self.limits, self.world_size)
            else:
                generator = np.random.default_rng([self.seed, epoch])
                drawn = self.mixture.draw(generator)
                plan = plan_shuffled(drawn, *self._buckets, self.limits, self.world_size, generator)
            self._plan = epoch, plan
        return self._plan[1]

    def __len__(self) -> int:
        return len(self.plan()) // self.world_size

    def __iter__(self) -> Iterator[list[int]]:
        plan = self.plan()
        for turn in range(self.first + self.rank, len(plan), self.world_size):
            yield plan[turn]
