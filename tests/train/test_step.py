"""The loss of a step's rankings, against objective and penalty called by hand."""

import pytest
import torch

from kwise.objective import centring_penalty, objective, plackett_luce
from kwise.records import EncodedRanking
from kwise.train.step import Step

RANKS = [[1.0, 2.0, 3.0], [2.0, 1.0]]
OFFSETS = [[4.0, 5.0, 6.5], [-3.0, 2.0]]
REWARDS = [0.3, -0.2, 1.0, 0.4, 0.1]


def test_offsets_move_the_likelihood_and_centring_is_of_the_rewards_alone():
    items = [
        EncodedRanking([1], [[2]] * len(ranks), [0] * len(ranks), [0] * len(ranks), ranks, offsets=offsets)
        for ranks, offsets in zip(RANKS, OFFSETS, strict=True)
    ]
    rewards = torch.tensor(REWARDS, dtype=torch.float64, requires_grad=True)
    ranks, lists = torch.tensor([*RANKS[0], *RANKS[1]]), torch.tensor([0, 0, 0, 1, 1])
    likelihood, _ = plackett_luce(rewards + torch.tensor([*OFFSETS[0], *OFFSETS[1]]), ranks, lists)
    expected = likelihood + centring_penalty(rewards, lists, 0.1)
    step = Step(0.5, objective("plackett_luce", centring=0.1), rewards.device)
    found = step.loss(items, rewards)
    assert found.item() == pytest.approx(0.5 * expected.item(), rel=1e-9)
    slopes = [torch.autograd.grad(each, rewards)[0] for each in (found, expected)]
    assert slopes[0].tolist() == pytest.approx((0.5 * slopes[1]).tolist(), rel=1e-9)
