"""The Plackett-Luce objective against brute force over permutations and against closed forms."""

import math
import sys
from itertools import combinations, pairwise, permutations

import pytest
import torch
from torch.autograd import gradcheck

from kwise.objective.plackett_luce import plackett_luce, plackett_luce_nll

MODULE = sys.modules["kwise.objective.plackett_luce"]  # the package's attribute of this name is the function


def probability_of_order(rewards, order):
    """prod_k exp(r_k) / sum over those not yet placed, in exact rational style: plain floats, small rewards."""
    left, p = list(order), 1.0
    while left:
        p *= math.exp(rewards[left[0]]) / sum(math.exp(rewards[i]) for i in left)
        left.pop(0)
    return p


def brute_nll(rewards, ranks):
    """-log of the summed probability of all permutations that the ranks allow; each permutation is tried."""
    p = sum(
        probability_of_order(rewards, order)
        for order in permutations(range(len(ranks)))
        if all(ranks[a] <= ranks[b] for a, b in pairwise(order))
    )
    return -math.log(p)


def block_first_nll(tied, below):
    """-log P(every tied item comes before every one below), by inclusion and exclusion over exponential races."""
    rest = sum(map(math.exp, below))
    p = sum(
        (-1) ** size * rest / (rest + sum(math.exp(r) for r in chosen))
        for size in range(len(tied) + 1)
        for chosen in combinations(tied, size)
    )
    return -math.log(p)


def one(rewards, ranks, dtype=torch.float64):
    """The loss of a single list as a float."""
    rewards = torch.as_tensor(rewards, dtype=dtype)
    places = torch.tensor(ranks, dtype=torch.float64)
    loss, count = plackett_luce(rewards, places, torch.zeros(len(rewards), dtype=torch.long))
    assert count == 1
    return loss.item()


def draw(seed, k, scale=1.0):
    return (torch.randn(k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale).tolist()


RANKINGS = [
    [1],
    [1, 2],
    [2, 1],
    [1, 1],
    [2, 3, 1],
    [1, 1, 2],
    [2, 1, 2],
    [1, 1, 1],
    [3, 1, 4, 2],
    [2, 1, 1, 2],
    [1, 2, 2, 3],
    [2, 2, 1, 2],
    [5, 3, 1, 2, 4],
    [1, 3, 2, 3, 2],
    [2, 2, 2, 1, 2],
    [1, 1, 1, 1, 1],
    [4, 6, 1, 3, 5, 2],
    [1, 2, 2, 2, 3, 3],
    [2, 1, 1, 1, 1, 2],
    [1, 1, 1, 1, 1, 2],
    [1, 1, 1, 1, 1, 1],
]


@pytest.mark.parametrize("ranks", RANKINGS, ids=str)
def test_equals_brute_force_over_all_permutations(ranks):
    rewards = draw(len(ranks), len(ranks))
    assert one(rewards, ranks) == pytest.approx(brute_nll(rewards, ranks), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("k", range(1, 8))
def test_equal_rewards_without_ties_cost_log_factorial(k):
    assert one([0.7] * k, list(range(k))) == pytest.approx(math.log(math.factorial(k)), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(("a", "b"), [(0.0, 0.0), (1.5, -0.5), (-2.0, 3.0)])
def test_two_responses_are_bradley_terry(a, b):
    assert one([a, b], [1, 2]) == pytest.approx(math.log(1 + math.exp(b - a)), rel=1e-12)


@pytest.mark.parametrize("k", range(1, 6))
def test_probabilities_of_all_orders_sum_to_one(k):
    rewards = draw(10 + k, k)
    orders = list(permutations(range(k)))
    nll = plackett_luce_nll(
        torch.tensor(rewards * len(orders), dtype=torch.float64),
        torch.tensor([rank for ranks in orders for rank in ranks]),
        torch.arange(len(orders)).repeat_interleave(k),
    )
    assert nll.neg().exp().sum().item() == pytest.approx(1.0, rel=1e-12)


def test_probabilities_of_all_tied_patterns_of_top_two_sum_to_one():
    rewards = draw(3, 5)
    patterns = [[1 if i in top else 2 for i in range(5)] for top in combinations(range(5), 2)]
    assert sum(math.exp(-one(rewards, ranks)) for ranks in patterns) == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("ranks", [[3, 1, 2, 4], [1, 2, 2, 3], [1, 1, 1, 2]], ids=str)
def test_adding_a_constant_to_a_list_changes_nothing(ranks):
    rewards = draw(1, 4)
    assert one([r + 37.5 for r in rewards], ranks) == pytest.approx(one(rewards, ranks), rel=1e-11)


@pytest.mark.parametrize(
    "ranks", [[30.0, 10.5, 20.25], [2, 0, 1], [-1, -7, -3], [1e9 + 1, 1e9 - 1, 1e9], [0.3, 0.1, 0.2]], ids=str
)
def test_only_the_order_of_the_ranks_counts(ranks):
    rewards = draw(2, 3)
    assert one(rewards, ranks) == one(rewards, [3, 1, 2])


def test_float_ranks_that_are_equal_are_tied():
    rewards = draw(2, 4)
    assert one(rewards, [0.5, 0.5, 1.5, 0.25]) == one(rewards, [2, 2, 3, 1])


def two_lists():
    rewards = torch.tensor([0.3, -1.0, 2.0, 0.1, 0.4, -0.2, 1.1], dtype=torch.float64)
    ranks = torch.tensor([2, 1, 1, 3, 1, 2, 2])
    lists = torch.tensor([0, 0, 0, 0, 1, 1, 1])
    return rewards, ranks, lists


def test_lists_of_different_length_add_up_to_their_separate_losses():
    rewards, ranks, lists = two_lists()
    loss, count = plackett_luce(rewards, ranks, lists)
    apart = [brute_nll(rewards[lists == i].tolist(), ranks[lists == i].tolist()) for i in (0, 1)]
    assert count == 2
    assert loss.item() == pytest.approx(sum(apart), rel=1e-12)
    assert plackett_luce_nll(rewards, ranks, lists).tolist() == pytest.approx(apart, rel=1e-12)


def test_a_list_does_not_feel_the_others_in_value_or_gradient():
    rewards, ranks, lists = two_lists()
    alone = rewards[lists == 1].clone().requires_grad_()
    plackett_luce(alone, ranks[lists == 1], lists[lists == 1])[0].backward()
    batch = torch.cat([rewards * 1e3, rewards]).requires_grad_()
    owner = torch.cat([lists + 5, lists])
    plackett_luce(batch, ranks.repeat(2), owner)[0].backward()
    assert torch.allclose(batch.grad[owner == 1], alone.grad, rtol=1e-12, atol=1e-15)
    nll = plackett_luce_nll(batch.detach(), ranks.repeat(2), owner)
    assert nll[1].item() == pytest.approx(one(rewards[lists == 1].tolist(), [1, 2, 2]), rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_the_entries_does_not_count(seed):
    rewards, ranks, lists = two_lists()
    shuffled = torch.randperm(len(rewards), generator=torch.Generator().manual_seed(seed))
    got = plackett_luce_nll(rewards[shuffled], ranks[shuffled], lists[shuffled])
    assert torch.allclose(got, plackett_luce_nll(rewards, ranks, lists), rtol=1e-12, atol=0)


def test_list_ids_are_arbitrary_and_losses_come_in_their_sorted_order():
    rewards, ranks, lists = two_lists()
    plain = plackett_luce_nll(rewards, ranks, lists)
    renamed = plackett_luce_nll(rewards, ranks, torch.tensor([10**12, -5])[lists])
    assert torch.equal(renamed, plain.flip(0))


@pytest.mark.parametrize("ranks", RANKINGS[1:], ids=str)
def test_gradient_sums_to_zero_in_every_list(ranks):
    k = len(ranks)
    rewards = torch.tensor(draw(4, k) + draw(5, k), dtype=torch.float64, requires_grad=True)
    plackett_luce(rewards, torch.tensor(ranks * 2), torch.arange(2).repeat_interleave(k))[0].backward()
    assert torch.allclose(rewards.grad.view(2, k).sum(1), torch.zeros(2, dtype=torch.float64), atol=1e-12)


def test_gradient_at_equal_rewards_is_the_hand_worked_one():
    # three equal rewards: the best is drawn first (1/3 - 1), the second against one other (1/3 + 1/2 - 1), the last 1/3 + 1/2
    rewards = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    plackett_luce(rewards, torch.tensor([1, 2, 3]), torch.zeros(3, dtype=torch.long))[0].backward()
    assert rewards.grad.tolist() == pytest.approx([-2 / 3, -1 / 6, 5 / 6], rel=1e-12)


@pytest.mark.parametrize("ranks", [[2, 1, 3], [1, 2, 2, 1], [1, 1, 1, 2, 3], [1] * 9 + [2]], ids=str)
def test_gradient_is_that_of_finite_differences(ranks):
    rewards = torch.tensor(draw(6, len(ranks)) + [0.2, -0.4], dtype=torch.float64, requires_grad=True)
    places = torch.tensor([*ranks, 1, 2])
    lists = torch.tensor([0] * len(ranks) + [1, 1])
    assert gradcheck(lambda r: plackett_luce(r, places, lists)[0], (rewards,))


EXTREME = [[1, 2, 3, 4], [4, 3, 2, 1], [1, 1, 2, 2], [2, 2, 1, 1], [1, 2, 2, 2]]


@pytest.mark.parametrize("ranks", EXTREME, ids=str)
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_far_rewards_in_float32_give_the_right_finite_loss_and_gradient(ranks, size):
    rewards = torch.tensor([size, size / 2, -size / 2, -size], requires_grad=True)
    others = torch.tensor([0.0, 1.0])  # a shorter list, so that the table has empty places
    loss, _ = plackett_luce(
        torch.cat([rewards, others]), torch.tensor([*ranks, 1, 2]), torch.tensor([0, 0, 0, 0, 1, 1])
    )
    loss.backward()
    # at this distance P(order) is exp(-sum of (largest left - drawn)) to all digits, summed over the orders of ties
    values = rewards.tolist()
    costs = []
    for order in permutations(range(4)):
        if all(ranks[a] <= ranks[b] for a, b in pairwise(order)):
            costs.append(sum(max(values[i] for i in order[k:]) - values[order[k]] for k in range(4)))
    expected = min(costs) - math.log(sum(math.exp(min(costs) - cost) for cost in costs)) + math.log(1 + math.e)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert torch.isfinite(rewards.grad).all()
    assert rewards.grad.sum().abs() < 1e-5


def test_far_rewards_in_a_large_tied_block_stay_finite():
    rewards = torch.linspace(-1e4, 1e4, 12).requires_grad_()
    loss, _ = plackett_luce(rewards, torch.tensor([1] * 11 + [2]), torch.zeros(12, dtype=torch.long))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(rewards.grad).all()


def test_float32_agrees_with_float64():
    rewards, ranks, lists = two_lists()
    loss, _ = plackett_luce(rewards.float(), ranks, lists)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(plackett_luce(rewards, ranks, lists)[0].item(), rel=1e-6)


def test_largest_exact_block_equals_inclusion_and_exclusion():
    tied, below = draw(7, MODULE.SUMMED_TIES), draw(8, 3)
    ranks = [1] * len(tied) + [2, 3, 4]
    expected = block_first_nll(tied, below) + brute_nll(below, [1, 2, 3])
    assert one(tied + below, ranks) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("scale", [0.0, 0.1, 1.0, 5.0, 30.0, 100.0])
@pytest.mark.parametrize("m", [1, 2, 5, 8, 9, 12])
def test_the_integral_is_the_sum_over_all_orders_with_its_gradient(m, scale):
    tied = (torch.tensor([draw(seed, m, scale) for seed in range(4)], dtype=torch.float64)).requires_grad_()
    below = torch.tensor(draw(99, 4, scale), dtype=torch.float64).requires_grad_()
    summed, integral = MODULE._any_order(tied, below), MODULE._race(tied, below)
    assert integral.detach().numpy() == pytest.approx(summed.detach().numpy(), rel=1e-11, abs=1e-11)
    for wanted, got in zip(*(torch.autograd.grad(p.sum(), (tied, below)) for p in (summed, integral)), strict=True):
        assert (got - wanted).abs().max() < 1e-10
    single = MODULE._race(tied.detach().float(), below.detach().float())
    assert single.double().numpy() == pytest.approx(summed.detach().numpy(), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("m", [9, 50, 400, 2000])
def test_a_large_tied_block_of_equal_rewards_has_the_closed_form(m):
    # all orders are alike: one of C(m + 2, m) sets comes first
    expected = math.lgamma(m + 3) - math.lgamma(m + 1) - math.lgamma(3) + math.log(2)
    assert one([3.0] * (m + 2), [1] * m + [2, 3]) == pytest.approx(expected, rel=1e-11)


def test_a_large_tied_block_equals_inclusion_and_exclusion():
    tied, below = draw(9, MODULE.SUMMED_TIES + 2), draw(8, 2)
    expected = block_first_nll(tied, below) + brute_nll(below, [2, 1])
    assert one(tied + below, [1] * len(tied) + [3, 2]) == pytest.approx(expected, rel=1e-9)


def test_the_loss_has_no_step_where_the_sum_gives_way_to_the_integral():
    # a ninth response that loses to nobody, at a reward far above all: it adds nothing
    tied, below = draw(9, MODULE.SUMMED_TIES), draw(8, 2)
    eight = one(tied + below, [1] * 8 + [2, 3])
    assert one([*tied, 60.0, *below], [1] * 9 + [2, 3]) == pytest.approx(eight, rel=1e-9)


def test_the_gradient_of_a_large_tied_block_is_that_of_differences():
    rewards = torch.tensor(draw(4, 13), dtype=torch.float64, requires_grad=True)
    ranks, lists = torch.tensor([1] * 10 + [2, 3, 3]), torch.zeros(13, dtype=torch.long)
    assert gradcheck(lambda r: plackett_luce(r, ranks, lists)[0], (rewards,))


@pytest.mark.parametrize("losers", [2, 8, 9, 30])
def test_tied_responses_with_nothing_below_them_cost_nothing(losers):
    # whoever is left comes next with certainty, whatever the size of the block: best-of-n data is softmax on the winner
    rewards = draw(11, losers + 1)
    expected = math.log(sum(map(math.exp, rewards))) - rewards[0]
    assert one(rewards, [1] + [2] * losers) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("k", [1, 2, 8, 9, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_list_whose_responses_are_all_tied_has_loss_and_gradient_zero(k, dtype):
    rewards = torch.tensor(draw(12, k, scale=100.0), dtype=dtype, requires_grad=True)
    loss, count = plackett_luce(rewards, torch.ones(k), torch.zeros(k, dtype=torch.long))
    loss.backward()
    assert count == 1
    assert loss.item() == 0
    assert rewards.grad.tolist() == [0.0] * k


def test_no_entries_are_no_lists_and_a_loss_of_zero_that_can_be_differentiated():
    rewards = torch.zeros(0, requires_grad=True)
    loss, count = plackett_luce(rewards, torch.zeros(0), torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert (loss.item(), count) == (0.0, 0)
    assert rewards.grad.shape == (0,)


@pytest.mark.parametrize("ranks", [[1, 2], [1, 1]], ids=str)
def test_a_nan_reward_is_never_hidden_in_a_finite_loss(ranks):
    assert math.isnan(one([math.nan, 1.0], ranks))


def stage_costs(rewards, ranks):
    """{place: -log P(the block at that place comes next, in any order)}, over all permutations of what is left."""
    costs, left = {}, list(range(len(ranks)))
    for rank in sorted(set(ranks)):
        block = {i for i in left if ranks[i] == rank}
        p = sum(
            probability_of_order(rewards, order) for order in permutations(left) if set(order[: len(block)]) == block
        )
        costs[1 + len(ranks) - len(left)] = -math.log(p)
        left = [i for i in left if i not in block]
    return costs


@pytest.mark.parametrize("ranks", RANKINGS, ids=str)
@pytest.mark.parametrize("top", [1, 2, 3, 5, 9])
def test_top_counts_the_blocks_that_begin_within_it(loss_of, ranks, top):
    rewards = draw(20 + len(ranks), len(ranks))
    expected = sum(cost for place, cost in stage_costs(rewards, ranks).items() if place <= top)
    assert loss_of(plackett_luce, rewards, ranks, top=top) == pytest.approx(expected, rel=1e-11, abs=1e-11)


@pytest.mark.parametrize("top", range(1, 6))
def test_top_is_the_probability_of_the_first_places_over_all_permutations(loss_of, top):
    rewards, ranks = draw(21, 6), [4, 6, 1, 3, 5, 2]
    first = sorted(range(6), key=lambda i: ranks[i])[:top]
    p = sum(probability_of_order(rewards, order) for order in permutations(range(6)) if list(order[:top]) == first)
    assert loss_of(plackett_luce, rewards, ranks, top=top) == pytest.approx(-math.log(p), rel=1e-12)


def test_partial_ranking_is_a_tie_at_the_bottom(loss_of):
    rewards = draw(22, 12)
    full = loss_of(plackett_luce, rewards, list(range(1, 13)), top=3)
    assert loss_of(plackett_luce, rewards, [1, 2, 3] + [4] * 9) == pytest.approx(full, rel=1e-12)


@pytest.mark.parametrize("ranks", RANKINGS, ids=str)
@pytest.mark.parametrize("weights", [[1.0], [3.0, 0.5], [0.0, 1.0, 2.0], [1.0, 0.0]], ids=str)
def test_stage_weights_weigh_each_block_by_its_place(loss_of, ranks, weights):
    rewards = draw(30 + len(ranks), len(ranks))
    costs = stage_costs(rewards, ranks)
    expected = sum(weights[min(place, len(weights)) - 1] * cost for place, cost in costs.items())
    found = loss_of(plackett_luce, rewards, ranks, stage_weights=weights)
    assert found == pytest.approx(expected, rel=1e-11, abs=1e-11)


def test_stage_weights_by_hand(loss_of):
    # three equal rewards: first place costs log 3, second log 2, the last nothing
    expected = 5 * math.log(3) + 7 * math.log(2)
    assert loss_of(plackett_luce, [0.0] * 3, [1, 2, 3], stage_weights=[5, 7, 100]) == pytest.approx(expected, rel=1e-12)
    assert loss_of(plackett_luce, [0.0] * 3, [1, 2, 3], stage_weights=[5, 7], top=1) == pytest.approx(5 * math.log(3))
    # a tied block of two takes the places 1 and 2 and the weight of place 1; what follows is at place 3
    expected = 5 * math.log(6) + 11 * math.log(2)  # P(block) = 2 * 1/4 * 1/3
    found = loss_of(plackett_luce, [0.0] * 4, [1, 1, 2, 3], stage_weights=[5, 7, 11])
    assert found == pytest.approx(expected, rel=1e-12)
