"""Softmax on the winner, by hand and by brute force."""

import math
from itertools import permutations

import pytest

from kwise.objective.top1 import top1

REWARDS = [0.3, -1.0, 2.0, 0.1, 0.7]
Z = sum(map(math.exp, REWARDS))


@pytest.mark.parametrize("ranks", [[2, 1, 3, 4, 5], [2, 1, 2, 2, 2], [5, 1, 3, 3, 2]], ids=str)
def test_one_winner_is_softmax_cross_entropy_whatever_the_order_of_the_rest(loss_of, ranks):
    assert loss_of(top1, REWARDS, ranks) == pytest.approx(math.log(Z) + 1.0, rel=1e-12)


def test_two_tied_winners_are_drawn_first_in_either_order(loss_of):
    a, c = math.exp(0.3), math.exp(2.0)
    expected = a / Z * c / (Z - a) + c / Z * a / (Z - c)
    assert loss_of(top1, REWARDS, [1, 2, 1, 4, 3]) == pytest.approx(-math.log(expected), rel=1e-12)


def test_probabilities_of_all_winners_sum_to_one(loss_of):
    patterns = set(permutations([1, 2, 2, 2, 2]))
    assert sum(math.exp(-loss_of(top1, REWARDS, ranks)) for ranks in patterns) == pytest.approx(1, rel=1e-12)
