"""Margins, by hand."""

import math

import pytest
import torch

from kwise.objective.margin_pairs import margin_pairs


def cost(x):
    return math.log(1 + math.exp(-x))


@pytest.mark.parametrize("margin", [0.0, 0.5, 1.0, 3])
def test_each_pair_must_be_apart_by_margin_times_the_difference_of_the_ranks(loss_of, margin):
    # ratings 4, 1, 3 given as ranks: the first beats the second by 3 and the third by 1, the third beats the second by 2
    rewards = [0.5, -1.0, 2.0]
    expected = (cost(1.5 - 3 * margin) + cost(-1.5 - margin) + cost(3.0 - 2 * margin)) / 3
    assert loss_of(margin_pairs, rewards, [-4, -1, -3], margin=margin) == pytest.approx(expected, rel=1e-12)


def test_margin_is_one_unless_given(loss_of):
    assert loss_of(margin_pairs, [1.0, 0.0], [1, 3.5]) == pytest.approx(cost(1 - 2.5), rel=1e-12)


def test_tied_pairs_are_left_out_of_sum_and_count(loss_of):
    assert loss_of(margin_pairs, [1.0, 9.0, 0.0], [1, 1, 2]) == pytest.approx((cost(0.0) + cost(8.0)) / 2, rel=1e-12)


def test_far_rewards_cost_their_distance_and_the_margin():
    loss, _ = margin_pairs(torch.tensor([-1e4, 1e4]), torch.tensor([1, 3]), torch.tensor([0, 0]), margin=5)
    assert loss.item() == pytest.approx(2e4 + 10)
