"""Bradley-Terry with ties: the papers' probabilities, from their formulas in strengths exp(r)."""

import math
from itertools import combinations

import pytest
import torch

from kwise.objective.davidson import davidson
from kwise.objective.rao_kupper import rao_kupper


def of_davidson(a, b, tie_rate):
    """Of a win of a, a tie, a win of b: pi_a, nu sqrt(pi_a pi_b) and pi_b over their sum."""
    pa, pb = math.exp(a), math.exp(b)
    tie = 2 * tie_rate / (1 - tie_rate) * math.sqrt(pa * pb)
    return pa / (pa + pb + tie), tie / (pa + pb + tie), pb / (pa + pb + tie)


def of_rao_kupper(a, b, tie_rate):
    """Of a win of a, a tie, a win of b: pi_a / (pi_a + theta pi_b), and so on."""
    theta, pa, pb = (1 + tie_rate) / (1 - tie_rate), math.exp(a), math.exp(b)
    win, loss = pa / (pa + theta * pb), pb / (pb + theta * pa)
    return win, pa * pb * (theta**2 - 1) / ((pa + theta * pb) * (pb + theta * pa)), loss


BOTH = [pytest.param(davidson, of_davidson, id="davidson"), pytest.param(rao_kupper, of_rao_kupper, id="rao_kupper")]


@pytest.mark.parametrize("tie_rate", [0.001, 0.1, 0.5, 0.95])
@pytest.mark.parametrize(("a", "b"), [(0.0, 0.0), (1.5, -0.5), (-2.0, 3.0), (0.3, 0.2)])
@pytest.mark.parametrize(("objective", "probabilities_of"), BOTH)
def test_a_pair_has_the_papers_probabilities_which_sum_to_one(loss_of, objective, probabilities_of, tie_rate, a, b):
    found = [math.exp(-loss_of(objective, [a, b], ranks, tie_rate=tie_rate)) for ranks in ([1, 2], [1, 1], [2, 1])]
    assert found == pytest.approx(probabilities_of(a, b, tie_rate), rel=1e-12)
    assert sum(found) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("tie_rate", [1e-9, 0.2, 0.5, 0.999])
@pytest.mark.parametrize(("objective", "probabilities_of"), BOTH)
def test_tie_rate_is_the_probability_of_a_tie_between_equals(loss_of, objective, probabilities_of, tie_rate):
    assert math.exp(-loss_of(objective, [0.7, 0.7], [3, 3], tie_rate=tie_rate)) == pytest.approx(tie_rate, rel=1e-9)


@pytest.mark.parametrize("ranks", [[1, 2, 2, 3], [2, 1, 3, 4], [1, 1, 1, 1], [2, 2, 1, 2]], ids=str)
@pytest.mark.parametrize(("objective", "probabilities_of"), BOTH)
def test_a_ranking_is_the_mean_over_all_its_pairs_tied_ones_too(loss_of, objective, probabilities_of, ranks):
    rewards = [0.2, -0.7, 1.3, 0.4]
    costs = []
    for i, j in combinations(range(4), 2):
        win, tie, loss = probabilities_of(rewards[i], rewards[j], 0.3)
        costs.append(-math.log(tie if ranks[i] == ranks[j] else win if ranks[i] < ranks[j] else loss))
    assert loss_of(objective, rewards, ranks, tie_rate=0.3) == pytest.approx(sum(costs) / 6, rel=1e-12)


def test_of_davidson_a_tie_counts_as_half_a_win_and_half_a_loss(loss_of):
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


def test_of_rao_kupper_a_tie_draws_its_rewards_together():
    rewards = torch.tensor([1.0, 0.0], requires_grad=True)
    rao_kupper(rewards, torch.tensor([1, 1]), torch.tensor([0, 0]))[0].backward()
    assert rewards.grad[0] > 0 > rewards.grad[1]


def test_of_rao_kupper_far_rewards_cost_their_distance():
    # theta = 3 at tie_rate 1/2: P(win) of one far below is exp(-d) / theta, P(tie) is (theta^2 - 1) exp(-d) / theta
    for ranks, constant in (([1, 2], math.log(3)), ([1, 1], math.log(3) - math.log(8))):
        entries = torch.tensor([-1e4, 1e4]), torch.tensor(ranks), torch.tensor([0, 0])
        assert rao_kupper(*entries, tie_rate=0.5)[0].item() == pytest.approx(2e4 + constant, rel=1e-7)
