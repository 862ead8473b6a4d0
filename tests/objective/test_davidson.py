"""Davidson's probabilities, from the formulas of the paper in strengths exp(r)."""

import math
from itertools import combinations

import pytest
import torch

from kwise.objective.davidson import davidson
from kwise.objective.rao_kupper import rao_kupper


def probabilities(a, b, tie_rate):
    """Of a win of a, a tie, a win of b: pi_a, nu sqrt(pi_a pi_b) and pi_b over their sum."""
    pa, pb = math.exp(a), math.exp(b)
    tie = 2 * tie_rate / (1 - tie_rate) * math.sqrt(pa * pb)
    return pa / (pa + pb + tie), tie / (pa + pb + tie), pb / (pa + pb + tie)


@pytest.mark.parametrize("tie_rate", [0.001, 0.1, 0.5, 0.95])
@pytest.mark.parametrize(("a", "b"), [(0.0, 0.0), (1.5, -0.5), (-2.0, 3.0), (0.3, 0.2)])
def test_a_pair_has_the_papers_probabilities_which_sum_to_one(loss_of, tie_rate, a, b):
    found = [math.exp(-loss_of(davidson, [a, b], ranks, tie_rate=tie_rate)) for ranks in ([1, 2], [1, 1], [2, 1])]
    assert found == pytest.approx(probabilities(a, b, tie_rate), rel=1e-12)
    assert sum(found) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("tie_rate", [1e-9, 0.2, 0.5, 0.999])
def test_tie_rate_is_the_probability_of_a_tie_between_equals(loss_of, tie_rate):
    assert math.exp(-loss_of(davidson, [0.7, 0.7], [3, 3], tie_rate=tie_rate)) == pytest.approx(tie_rate, rel=1e-9)


@pytest.mark.parametrize("ranks", [[1, 2, 2, 3], [2, 1, 3, 4], [1, 1, 1, 1], [2, 2, 1, 2]], ids=str)
def test_a_ranking_is_the_mean_over_all_its_pairs_tied_ones_too(loss_of, ranks):
    rewards = [0.2, -0.7, 1.3, 0.4]
    costs = []
    for i, j in combinations(range(4), 2):
        win, tie, loss = probabilities(rewards[i], rewards[j], 0.3)
        costs.append(-math.log(tie if ranks[i] == ranks[j] else win if ranks[i] < ranks[j] else loss))
    assert loss_of(davidson, rewards, ranks, tie_rate=0.3) == pytest.approx(sum(costs) / 6, rel=1e-12)


def test_a_tie_counts_as_half_a_win_and_half_a_loss(loss_of):
    win, tie, loss = (loss_of(davidson, [1.3, -0.4], ranks, tie_rate=0.5) for ranks in ([1, 2], [1, 1], [2, 1]))
    assert tie + math.log(2) == pytest.approx((win + loss) / 2, rel=1e-12)  # nu = 2


def test_ties_fall_off_more_slowly_with_distance_than_rao_kuppers(loss_of):
    ties = [loss_of(function, [8.0, 0.0], [1, 1], tie_rate=0.2) for function in (davidson, rao_kupper)]
    assert ties[0] == pytest.approx(ties[1] / 2, rel=0.2)  # -log P(tie) grows as d / 2, not as d


@pytest.mark.parametrize(
    ("rewards", "ranks", "cost"), [([1e4, -1e4], [1, 2], 0), ([-1e4, 1e4], [1, 2], 2e4), ([1e4, -1e4], [1, 1], 1e4)]
)
def test_far_rewards_cost_their_distance_and_a_tie_half_of_it(rewards, ranks, cost):
    loss, _ = davidson(torch.tensor(rewards), torch.tensor(ranks), torch.tensor([0, 0]), tie_rate=0.5)
    assert loss.item() == pytest.approx(cost, rel=1e-3, abs=1e-6)
