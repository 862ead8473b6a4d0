"""The sum-to-zero penalty, by hand."""

import pytest
import torch

from kwise.objective.centring import centring_penalty


def test_each_ranking_pays_for_the_square_of_its_own_sum():
    rewards = torch.tensor([1.0, 5.0, 2.0, -7.0, -4.0], requires_grad=True)
    penalty = centring_penalty(rewards, torch.tensor([8, -1, 8, -1, 8]), 0.1)
    penalty.backward()
    # sums: 1 + 2 - 4 = -1 and 5 - 7 = -2; the gradient is 2 * centring * sum
    assert penalty.item() == pytest.approx(0.1 * (1 + 4), rel=1e-6)
    assert rewards.grad.tolist() == pytest.approx([-0.2, -0.4, -0.2, -0.4, -0.2], rel=1e-6)


def test_far_rewards_stay_finite_in_float32():
    rewards = torch.full((7,), 1e4, requires_grad=True)
    penalty = centring_penalty(rewards, torch.zeros(7, dtype=torch.long), 1.0)
    penalty.backward()
    assert penalty.item() == pytest.approx(4.9e9)
    assert rewards.grad.tolist() == pytest.approx([1.4e5] * 7)
