"""Strengths, by hand."""

import math

import pytest

from kwise.objective.scaled_pairs import scaled_pairs


def cost(x):
    return math.log(1 + math.exp(-x))


def test_each_pair_counts_by_the_difference_of_the_ratings(loss_of):
    # ratings 4, 1, 3 given as ranks
    expected = (3 * cost(1.5) + 1 * cost(-1.5) + 2 * cost(3.0)) / 3
    assert loss_of(scaled_pairs, [0.5, -1.0, 2.0], [-4, -1, -3]) == pytest.approx(expected, rel=1e-12)


def test_tied_pairs_are_left_out_of_sum_and_count(loss_of):
    expected = (2.5 * cost(1.0) + 2.5 * cost(9.0)) / 2
    assert loss_of(scaled_pairs, [1.0, 9.0, 0.0], [1, 1, 3.5]) == pytest.approx(expected, rel=1e-12)


def test_equal_rewards_cost_log_two_times_the_mean_strength(loss_of):
    assert loss_of(scaled_pairs, [2.0] * 3, [1, 2, 4]) == pytest.approx(math.log(2) * (1 + 2 + 3) / 3, rel=1e-12)
