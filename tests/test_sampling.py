from collections import Counter

import numpy as np
import pytest

from datamodules.sampling import BatchLimits, Mixture, PlannedBatchSampler, buckets

SIZES = np.random.default_rng(0).gamma(8.0, 1.5, 997) + 1.0


def sampler(**changes) -> PlannedBatchSampler:
    values = {"sizes": SIZES, "limits": BatchLimits(None, 120.0), "shuffle": True}
    return PlannedBatchSampler(**{**values, **changes})


def padding(batches: list[list[int]]) -> float:
    padded = sum(len(b) * SIZES[b].max() for b in batches)
    return 1 - sum(SIZES[b].sum() for b in batches) / padded


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("limits", [BatchLimits(None, 120.0), BatchLimits(7), BatchLimits(7, 60.0)])
def test_every_utterance_once_an_epoch_within_the_limits(shuffle, limits):
    one = sampler(shuffle=shuffle, limits=limits)
    batches = list(one)
    assert sorted(i for batch in batches for i in batch) == list(range(997)) and len(batches) == len(one)
    for batch in batches:
        assert len(batch) <= (limits.utterances or 997)
        assert len(batch) * SIZES[batch].max() <= (limits.size or 1e9) * (1 + 1e-6)
    if not shuffle:
        assert [i for batch in batches for i in batch] == list(range(997))


def test_little_is_padded_and_the_budget_is_used():
    batches = list(sampler())
    assert padding(batches) < 0.06 < 0.25 < padding(list(sampler(shuffle=False)))
    assert np.mean([len(b) * SIZES[b].max() for b in batches]) > 0.85 * 120


def test_each_epoch_is_shuffled_anew_from_the_seed():
    one, same, other = sampler(), sampler(), sampler(seed=1)
    first = list(one)
    assert first == list(same) != list(other)
    one.epoch = 1
    second = list(one)
    # A few batches of the rarest lengths have no other members to choose from.
    assert first != second and len({frozenset(b) for b in first} & {frozenset(b) for b in second}) < 0.1 * len(first)
    one.epoch = 0
    assert first == list(one)
    lengths = [SIZES[batch].mean() for batch in first]
    assert abs(np.corrcoef(lengths[:-1], lengths[1:])[0, 1]) < 0.3  # not from short to long


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_an_epoch(world_size):
    ranks = [sampler(rank=rank, world_size=world_size) for rank in range(world_size)]
    shares = [list(rank) for rank in ranks]
    assert len({len(share) for share in shares}) == 1 and len(shares[0]) == len(ranks[0])
    counts = Counter(i for share in shares for batch in share for i in batch)
    assert max(counts.values()) == 1 and len(counts) > 997 * 0.9
    for batches in zip(*shares, strict=True):  # nobody waits for a longer batch
        largest = [SIZES[batch].max() for batch in batches]
        assert max(largest) < 1.5 * min(largest)
    left = [set(range(997)) - {i for rank in ranks for b in rank for i in b}]
    for rank in ranks:
        rank.epoch = 1
    left.append(set(range(997)) - {i for rank in ranks for b in rank for i in b})
    assert left[0] != left[1] or not left[0]


@pytest.mark.parametrize(("count", "limit", "world_size"), [(997, 16, 3), (80, 16, 8), (5, 1, 4), (3, 4, 8)])
def test_ranks_share_what_is_validated(count, limit, world_size):
    ranks = [
        sampler(sizes=SIZES[:count], limits=BatchLimits(limit), shuffle=False, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    shares = [list(rank) for rank in ranks]
    assert len({len(share) for share in shares} | {len(rank) for rank in ranks}) == 1
    assert sorted(i for share in shares for batch in share for i in batch) == list(range(count))
    assert max(len(batch) for share in shares for batch in share) <= limit
    assert count < world_size or all(any(share) for share in shares)


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_rest_of_an_epoch(world_size):
    ranks = [sampler(rank=rank, world_size=world_size) for rank in range(world_size)]
    whole = [list(rank) for rank in ranks]
    for rank, batches in zip(ranks, whole, strict=True):
        rank.first = 12
        assert list(rank) == batches[12 // world_size :] and len(rank) == len(batches)


def test_what_a_plan_depends_on_is_in_its_checksum():
    changes = ({"seed": 1}, {"world_size": 2}, {"limits": BatchLimits(3)}, {"sizes": SIZES[::-1]}, {"sizes": SIZES[1:]})
    sums = {sampler(**change).checksum() for change in changes} | {sampler().checksum()}
    assert len(sums) == 6 and sampler(rank=1, world_size=2).checksum() in sums


def test_corpora_are_mixed_in_proportion():
    counts, shares = [600, 300, 97], [1.0, 2.0, 0.5]
    one = sampler(mixture=Mixture(counts, shares))
    corpus = np.repeat([0, 1, 2], counts)
    epochs = []
    for epoch in range(4):
        one.epoch = epoch
        used = [i for batch in one for i in batch]
        assert len(used) == len(set(used))
        assert np.bincount(corpus[used]).tolist() == [150, 300, 75]
        epochs.append(set(used))
    assert len(set.union(*epochs)) > 0.8 * 997


def test_sizes_that_are_all_equal_and_few():
    for count in (1, 2, 5):
        sizes = np.full(count, 3.0)
        assert sorted(i for b in sampler(sizes=sizes, limits=BatchLimits(2)) for i in b) == list(range(count))
    bucket, edges = buckets(np.array([1.0, 1.04, 2.0, 30.0], dtype=np.float32), 1.05)
    assert bucket[0] == bucket[1] < bucket[2] < bucket[3] and (np.diff(edges) > 0).all() and edges[-1] == 30
    assert len(sampler(sizes=np.ones(3), limits=BatchLimits(4), world_size=2)) == 0


def test_batches_of_any_lengths_on_request():
    sizes = np.random.default_rng(0).uniform(1, 30, 400)
    spread = {}
    for ratio in (1.05, 100.0):
        batches = list(sampler(sizes=sizes, limits=BatchLimits(8, ratio=ratio)))
        assert sorted(i for b in batches for i in b) == list(range(400))
        spread[ratio] = np.mean([sizes[b].max() / sizes[b].min() for b in batches])
    assert spread[1.05] < 1.2 and spread[100.0] > 3
