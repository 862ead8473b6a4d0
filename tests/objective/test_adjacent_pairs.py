"""Neighbouring ranks, by hand."""

import math

import pytest

from kwise.objective.adjacent_pairs import adjacent_pairs


def bradley_terry(better, worse):
    return math.log(1 + math.exp(worse - better))


def test_ranks_without_ties_are_the_chain_from_best_to_worst(loss_of):
    expected = (bradley_terry(2.0, 0.3) + bradley_terry(0.3, 0.1) + bradley_terry(0.1, -1.0)) / 3
    assert loss_of(adjacent_pairs, [0.3, -1.0, 2.0, 0.1], [20, 90, 10, 30]) == pytest.approx(expected, rel=1e-12)


def test_ranks_with_a_tie_neighbour_every_member_of_it(loss_of):
    # 1, 2, 2, 5
    a, b, c, d = rewards = [0.3, -1.0, 2.0, 0.1]
    expected = (bradley_terry(a, b) + bradley_terry(a, c) + bradley_terry(b, d) + bradley_terry(c, d)) / 4
    assert loss_of(adjacent_pairs, rewards, [1, 2, 2, 5]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("k", range(2, 7))
def test_equal_rewards_cost_log_two_whatever_k(loss_of, k):
    assert loss_of(adjacent_pairs, [3.0] * k, list(range(k))) == pytest.approx(math.log(2), rel=1e-12)


def test_a_ranking_tied_throughout_costs_nothing(loss_of):
    assert loss_of(adjacent_pairs, [1.0, 5.0, 2.0], [1, 1, 1]) == 0
