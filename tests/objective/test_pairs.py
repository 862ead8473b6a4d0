"""The flat pairs against a loop over a list."""

from itertools import combinations

import pytest
import torch

from kwise.objective.pairs import pairs_of


def by_loop(rewards, ranks):
    """(delta, gap, strength) of every pair of one list."""
    levels = sorted(set(ranks))
    found = []
    for i, j in combinations(range(len(ranks)), 2):
        better, worse = (i, j) if ranks[i] <= ranks[j] else (j, i)
        gap = levels.index(ranks[worse]) - levels.index(ranks[better])
        found.append((rewards[better] - rewards[worse], gap, ranks[worse] - ranks[better]))
    return found


@pytest.mark.parametrize(
    "batch", [[[2, 1, 2, 7.5], [1, 2]], [[3, 3, 3], [4], [-4.5, -1, -2.5, -4.5, 0]], [[1]], [[1, 1]]], ids=str
)
def test_every_pair_comes_once_with_its_gap_strength_and_owner(batch):
    generator = torch.Generator().manual_seed(0)
    rewards = [torch.randn(len(own), generator=generator, dtype=torch.float64).tolist() for own in batch]
    pairs = pairs_of(
        torch.tensor([reward for own in rewards for reward in own], dtype=torch.float64),
        torch.tensor([rank for own in batch for rank in own], dtype=torch.float64),
        torch.arange(len(batch)).repeat_interleave(torch.tensor(list(map(len, batch)))),
    )
    assert pairs.num_rankings == len(batch)
    for i, (own, ranks) in enumerate(zip(rewards, batch, strict=True)):
        mine = pairs.where(pairs.owner == i)
        found = zip(mine.delta.tolist(), mine.gap.tolist(), mine.strength.tolist(), strict=True)
        assert sorted(found) == sorted(by_loop(own, ranks))


def test_strength_is_taken_before_the_rank_numbers_lose_digits():
    # 2**24 + 1 is no float32: rounded first, the difference would be 0
    pairs = pairs_of(torch.zeros(2), torch.tensor([2**24 + 1, 2**24]), torch.zeros(2, dtype=torch.long))
    assert (pairs.strength.tolist(), pairs.strength.dtype) == ([1.0], torch.float32)


def test_mean_is_over_a_rankings_own_pairs_and_a_ranking_without_any_adds_nothing():
    pairs = pairs_of(torch.zeros(6), torch.tensor([1, 2, 3, 1, 2, 1]), torch.tensor([0, 0, 0, 1, 1, 2]))
    loss, count = pairs.mean(torch.tensor([1.0, 2.0, 6.0, 10.0]))
    assert (loss.item(), count) == (3.0 + 10.0, 3)
