"""The pairwise objective against sums written out by hand."""

import math
from itertools import combinations, permutations

import pytest
import torch
from torch.autograd import gradcheck

from kwise.objective.all_pairs import all_pairs
from kwise.objective.plackett_luce import plackett_luce


def bradley_terry(better, worse):
    return math.log(1 + math.exp(worse - better))


def one(rewards, ranks):
    loss, count = all_pairs(
        torch.tensor(rewards, dtype=torch.float64), torch.tensor(ranks), torch.zeros(len(ranks), dtype=torch.long)
    )
    assert count == 1
    return loss.item()


def test_three_responses_by_hand():
    # ranks 2, 1, 3: the second beats both, the first beats the third
    expected = (bradley_terry(-1.0, 0.5) + bradley_terry(-1.0, 2.0) + bradley_terry(0.5, 2.0)) / 3
    assert one([0.5, -1.0, 2.0], [2, 1, 3]) == pytest.approx(expected, rel=1e-12)


def test_tied_pairs_are_left_out_of_sum_and_count():
    expected = (bradley_terry(0.5, 2.0) + bradley_terry(-1.0, 2.0)) / 2  # the pair 0, 1 is tied
    assert one([0.5, -1.0, 2.0], [1, 1, 2]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("ranks", list(permutations([1.0, 2.5, 2.5, 4.0]))[::5], ids=str)
def test_four_responses_equal_a_loop_over_pairs(ranks):
    rewards = [0.2, -0.7, 1.3, 0.4]
    pairs = [(i, j) if ranks[i] < ranks[j] else (j, i) for i, j in combinations(range(4), 2) if ranks[i] != ranks[j]]
    expected = sum(bradley_terry(rewards[i], rewards[j]) for i, j in pairs) / len(pairs)
    assert one(rewards, ranks) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("k", range(2, 8))
def test_equal_rewards_cost_log_two_whatever_k(k):
    assert one([3.0] * k, list(range(k))) == pytest.approx(math.log(2), rel=1e-12)


@pytest.mark.parametrize("ranks", [[1, 2], [2, 1], [7.5, 0.0]], ids=str)
def test_two_responses_are_plackett_luce(ranks):
    entries = torch.tensor([0.3, -1.2], dtype=torch.float64), torch.tensor(ranks), torch.tensor([4, 4])
    assert all_pairs(*entries)[0].item() == pytest.approx(plackett_luce(*entries)[0].item(), rel=1e-12)


def test_every_list_weighs_the_same_whatever_its_length():
    rewards = torch.zeros(9, dtype=torch.float64)
    loss, count = all_pairs(rewards, torch.arange(9), torch.tensor([0] * 7 + [1] * 2))
    assert count == 2
    assert loss.item() == pytest.approx(2 * math.log(2), rel=1e-12)


def test_all_tied_list_gives_zero_loss_and_zero_not_nan_gradient():
    rewards = torch.tensor([5.0, -3.0, 1.0], requires_grad=True)
    loss, count = all_pairs(rewards, torch.ones(3), torch.zeros(3, dtype=torch.long))
    loss.backward()
    assert (loss.item(), count) == (0.0, 1)
    assert rewards.grad.tolist() == [0.0, 0.0, 0.0]


def test_all_tied_list_counts_but_leaves_the_gradient_of_others_alone():
    # list 0 is tied; list 1 is one pair at equal rewards, whose gradient is -1/2 and +1/2
    rewards = torch.tensor([5.0, -3.0, 1.0, 1.0], requires_grad=True)
    loss, count = all_pairs(rewards, torch.tensor([1, 1, 1, 2]), torch.tensor([0, 0, 1, 1]))
    loss.backward()
    assert count == 2
    assert loss.item() == pytest.approx(math.log(2), rel=1e-6)
    assert rewards.grad.tolist() == pytest.approx([0.0, 0.0, -0.5, 0.5])


def test_a_list_of_one_has_no_pair_and_no_loss():
    assert one([2.0], [1]) == 0.0


def test_gradient_is_that_of_finite_differences():
    rewards = torch.tensor([0.3, -1.0, 2.0, 0.1, 0.5, 0.4], dtype=torch.float64, requires_grad=True)
    ranks, lists = torch.tensor([2, 1, 2, 3, 1, 2]), torch.tensor([0, 0, 0, 0, 1, 1])
    assert gradcheck(lambda r: all_pairs(r, ranks, lists)[0], (rewards,))


def test_far_rewards_cost_their_distance():
    loss, _ = all_pairs(torch.tensor([-1e4, 1e4]), torch.tensor([1, 2]), torch.tensor([0, 0]))
    assert loss.item() == pytest.approx(2e4)


def test_gap_weights_count_distinct_ranks_apart_and_the_last_one_goes_on(loss_of):
    # ranks 1, 5, 5, 9, 30: gaps count levels, not numbers, and 1 to 30 is three apart, beyond the list of weights
    rewards, ranks, weights = [0.5, -1.0, 2.0, 0.1, 0.4], [1, 5, 5, 9, 30], [1.0, 0.5]
    gaps = {(0, 1): 1, (0, 2): 1, (0, 3): 2, (0, 4): 3, (1, 3): 1, (1, 4): 2, (2, 3): 1, (2, 4): 2, (3, 4): 1}
    costs = [weights[min(gap, 2) - 1] * bradley_terry(rewards[i], rewards[j]) for (i, j), gap in gaps.items()]
    assert loss_of(all_pairs, rewards, ranks, gap_weights=weights) == pytest.approx(sum(costs) / 9, rel=1e-12)


def test_gap_weights_are_taken_as_they_are(loss_of):
    assert loss_of(all_pairs, [0.0, 0.0], [1, 2], gap_weights=[5]) == pytest.approx(5 * math.log(2), rel=1e-12)


def test_smoothing_mixes_the_losses_of_both_orders(loss_of):
    expected = 0.9 * bradley_terry(1.3, -0.4) + 0.1 * bradley_terry(-0.4, 1.3)
    assert loss_of(all_pairs, [1.3, -0.4], [1, 2], smoothing=0.1) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("e", [0.01, 0.146, 0.3, 0.49])
def test_smoothed_loss_is_least_where_the_model_is_as_sure_as_the_judge(e):
    # d/dd [-(1-e) log s(d) - e log s(-d)] = s(d) - (1-e), so the minimum is at d = log((1-e)/e)
    rewards = torch.tensor([math.log((1 - e) / e), 0.0], dtype=torch.float64, requires_grad=True)
    all_pairs(rewards, torch.tensor([1, 2]), torch.tensor([0, 0]), smoothing=e)[0].backward()
    assert rewards.grad.tolist() == pytest.approx([0, 0], abs=1e-15)


def test_smoothing_of_each_gap_is_its_own_and_the_last_one_goes_on(loss_of):
    rewards, ranks = [0.5, -1.0, 2.0, 0.1], [1, 2, 3, 4]
    costs = []
    for i, j in combinations(range(4), 2):
        e = 0.3 if j - i == 1 else 0.1
        costs.append((1 - e) * bradley_terry(rewards[i], rewards[j]) + e * bradley_terry(rewards[j], rewards[i]))
    assert loss_of(all_pairs, rewards, ranks, smoothing=[0.3, 0.1]) == pytest.approx(sum(costs) / 6, rel=1e-12)


def test_smoothed_far_rewards_cost_their_share_of_the_distance():
    for ranks, share in (([1, 2], 0.25), ([2, 1], 0.75)):
        loss, _ = all_pairs(torch.tensor([1e4, -1e4]), torch.tensor(ranks), torch.tensor([0, 0]), smoothing=0.25)
        assert loss.item() == pytest.approx(share * 2e4, rel=1e-6)
