"""Rao-Kupper's probabilities, from the formulas of the paper in strengths exp(r)."""

import math
from itertools import combinations

import pytest
import torch

from kwise.objective.rao_kupper import rao_kupper


def probabilities(a, b, tie_rate):
    """Of a win of a, a tie, a win of b: pi_a / (pi_a + theta pi_b), and so on."""
    theta, pa, pb = (1 + tie_rate) / (1 - tie_rate), math.exp(a), math.exp(b)
    win, loss = pa / (pa + theta * pb), pb / (pb + theta * pa)
    return win, pa * pb * (theta**2 - 1) / ((pa + theta * pb) * (pb + theta * pa)), loss


@pytest.mark.parametrize("tie_rate", [0.001, 0.1, 0.5, 0.95])
@pytest.mark.parametrize(("a", "b"), [(0.0, 0.0), (1.5, -0.5), (-2.0, 3.0), (0.3, 0.2)])
def test_a_pair_has_the_papers_probabilities_which_sum_to_one(loss_of, tie_rate, a, b):
    found = [math.exp(-loss_of(rao_kupper, [a, b], ranks, tie_rate=tie_rate)) for ranks in ([1, 2], [1, 1], [2, 1])]
    assert found == pytest.approx(probabilities(a, b, tie_rate), rel=1e-12)
    assert sum(found) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("tie_rate", [1e-9, 0.2, 0.5, 0.999])
def test_tie_rate_is_the_probability_of_a_tie_between_equals(loss_of, tie_rate):
    assert math.exp(-loss_of(rao_kupper, [0.7, 0.7], [3, 3], tie_rate=tie_rate)) == pytest.approx(tie_rate, rel=1e-9)


@pytest.mark.parametrize("ranks", [[1, 2, 2, 3], [2, 1, 3, 4], [1, 1, 1, 1], [2, 2, 1, 2]], ids=str)
def test_a_ranking_is_the_mean_over_all_its_pairs_tied_ones_too(loss_of, ranks):
    rewards = [0.2, -0.7, 1.3, 0.4]
    costs = []
    for i, j in combinations(range(4), 2):
        win, tie, loss = probabilities(rewards[i], rewards[j], 0.3)
        costs.append(-math.log(tie if ranks[i] == ranks[j] else win if ranks[i] < ranks[j] else loss))
    assert loss_of(rao_kupper, rewards, ranks, tie_rate=0.3) == pytest.approx(sum(costs) / 6, rel=1e-12)


def test_a_tie_draws_its_rewards_together():
    rewards = torch.tensor([1.0, 0.0], requires_grad=True)
    rao_kupper(rewards, torch.tensor([1, 1]), torch.tensor([0, 0]))[0].backward()
    assert rewards.grad[0] > 0 > rewards.grad[1]


def test_far_rewards_cost_their_distance():
    # theta = 3 at tie_rate 1/2: P(win) of one far below is exp(-d) / theta, P(tie) is (theta^2 - 1) exp(-d) / theta
    for ranks, constant in (([1, 2], math.log(3)), ([1, 1], math.log(3) - math.log(8))):
        entries = torch.tensor([-1e4, 1e4]), torch.tensor(ranks), torch.tensor([0, 0])
        assert rao_kupper(*entries, tie_rate=0.5)[0].item() == pytest.approx(2e4 + constant, rel=1e-7)
