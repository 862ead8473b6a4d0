"""What every objective must do. One that is added to ``OBJECTIVES`` joins by that; its options join by a line in ``VARIANTS``."""

import math
from inspect import signature

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from kwise.objective import OBJECTIVES, objective

VARIANTS = [
    ("plackett_luce", {"top": 2}),
    ("plackett_luce", {"stage_weights": [2.0, 0.5]}),
    ("plackett_luce", {"top": 3, "stage_weights": [1.0, 0.7, 0.3]}),
    ("all_pairs", {"gap_weights": [0.2, 1.0, 3.0]}),
    ("all_pairs", {"smoothing": 0.1}),
    ("all_pairs", {"smoothing": [0.3, 0.1], "gap_weights": [1, 2]}),
    ("margin_pairs", {"margin": 0.3}),
    ("rao_kupper", {"tie_rate": 0.7}),
    ("davidson", {"tie_rate": 0.01}),
    *((name, {"centring": 0.01}) for name in OBJECTIVES),
]
CASES = [*((name, {}) for name in OBJECTIVES), *VARIANTS]
READ_RANK_NUMBERS = ("margin_pairs", "scaled_pairs")

# lists of every kind: ties in the middle, at the top and throughout, none, a pair, a list of one, a block too large to sum over
BATCH = [[2, 1, 2, 3], [1, 1, 3, 4, 2], [5, 3, 1, 2, 4], [1, 1, 1], [2, 1], [1], [1] * 9 + [2]]
RANKS = torch.tensor([rank for own in BATCH for rank in own])
LISTS = torch.tensor([i for i, own in enumerate(BATCH) for _ in own])


def draw(seed, scale=1.0, dtype=torch.float64):
    return (torch.randn(len(RANKS), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale).to(
        dtype
    )


def case_id(case):
    name, options = case
    return name + "".join(f" {key}={value}" for key, value in options.items())


every_case = pytest.mark.parametrize("case", CASES, ids=case_id)


def test_every_option_of_every_objective_has_a_variant_here():
    tried = {(name, option) for name, options in VARIANTS for option in options}
    legal = {
        (name, option) for name, function in OBJECTIVES.items() for option in list(signature(function).parameters)[3:]
    }
    assert legal | {(name, "centring") for name in OBJECTIVES} == tried


@every_case
@pytest.mark.parametrize("rank_dtype", [torch.int64, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gives_a_scalar_of_the_rewards_dtype_and_the_number_of_rankings(case, dtype, rank_dtype):
    loss, count = objective(case[0], **case[1])(draw(0, dtype=dtype), RANKS.to(rank_dtype), LISTS)
    assert (loss.dtype, loss.shape, count) == (dtype, (), len(BATCH))
    assert math.isfinite(loss.item())


@every_case
def test_float32_agrees_with_float64(case):
    function = objective(case[0], **case[1])
    single = function(draw(1).float(), RANKS, LISTS)[0].item()
    assert single == pytest.approx(function(draw(1).float().double(), RANKS, LISTS)[0].item(), rel=1e-5)


@every_case
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_far_rewards_give_finite_values_gradients_and_hessians_in_float32(case, size):
    function = objective(case[0], **case[1])
    rewards = (size * torch.linspace(-1, 1, len(RANKS))).requires_grad_()
    loss = function(rewards, RANKS, LISTS)[0]
    (gradient,) = torch.autograd.grad(loss, rewards, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sin().sum(), rewards)  # weights all rows of the Hessian differently
    for found in (loss, gradient, second):
        assert torch.isfinite(found).all()


@every_case
def test_first_and_second_derivatives_are_those_of_finite_differences(case):
    function = objective(case[0], **case[1])
    few = LISTS < 5  # the large block would take long and is one of PL's own tests
    rewards = draw(2)[few].requires_grad_()
    assert gradcheck(lambda r: function(r, RANKS[few], LISTS[few])[0], (rewards,))
    assert gradgradcheck(lambda r: function(r, RANKS[few], LISTS[few])[0], (rewards,))


@every_case
def test_is_convex_in_the_rewards(case):
    function = objective(case[0], **case[1])
    for seed in range(4):
        rewards = draw(seed, scale=1.0 + 2 * seed)
        hessian = torch.autograd.functional.hessian(lambda r: function(r, RANKS, LISTS)[0], rewards)
        assert torch.linalg.eigvalsh(hessian).min() > -1e-10


@pytest.mark.parametrize("case", [case for case in CASES if "centring" not in case[1]], ids=case_id)
def test_shift_of_a_list_changes_nothing_unless_centred(case):
    function = objective(case[0], **case[1])
    rewards = draw(3).requires_grad_()
    loss, _ = function(rewards, RANKS, LISTS)
    loss.backward()
    shifted, _ = function(rewards.detach() + 7.5 * LISTS - 11, RANKS, LISTS)
    assert shifted.item() == pytest.approx(loss.item(), rel=1e-12)
    sums = torch.zeros(len(BATCH), dtype=torch.float64).index_add(0, LISTS, rewards.grad)
    assert sums.abs().max() < 1e-12


@every_case
def test_a_list_does_not_feel_the_others_in_value_or_gradient(case):
    function = objective(case[0], **case[1])
    rewards = draw(4).requires_grad_()
    loss, _ = function(rewards, RANKS, LISTS)
    loss.backward()
    total = 0.0
    for i in range(len(BATCH)):
        own = i == LISTS
        alone = rewards.detach()[own].requires_grad_()
        part, count = function(alone, RANKS[own], LISTS[own])
        part.backward()
        total += part.item()
        assert count == 1
        assert torch.allclose(alone.grad, rewards.grad[own], rtol=1e-12, atol=1e-14)
        far = torch.where(own, rewards.detach(), 1e4 * rewards.detach()).requires_grad_()
        function(far, RANKS, LISTS)[0].backward()
        assert torch.allclose(alone.grad, far.grad[own], rtol=1e-12, atol=1e-14)
    assert loss.item() == pytest.approx(total, rel=1e-12)


@every_case
def test_order_of_the_entries_and_names_of_the_lists_do_not_count(case):
    function = objective(case[0], **case[1])
    rewards = draw(5)
    expected = function(rewards, RANKS, LISTS)[0].item()
    mixed = torch.randperm(len(RANKS), generator=torch.Generator().manual_seed(0))
    names = torch.tensor([-7, 10**12, 0, 3, -(10**12), 8, 5])[LISTS]
    assert function(rewards[mixed], RANKS[mixed], names[mixed])[0].item() == pytest.approx(expected, rel=1e-12)


@every_case
def test_only_the_order_of_the_ranks_counts_unless_their_numbers_are_read(case):
    function = objective(case[0], **case[1])
    expected = function(draw(6), RANKS, LISTS)[0].item()
    other = function(draw(6), RANKS**2 - 40.5, LISTS)[0].item()
    assert (other == pytest.approx(expected, rel=1e-12)) == (case[0] not in READ_RANK_NUMBERS)


@every_case
def test_falls_when_the_best_response_rises_and_when_the_worst_one_sinks(case):
    function = objective(case[0], **case[1])
    ranks, lists = torch.tensor([3, 1, 2]), torch.zeros(3, dtype=torch.long)
    losses = [function(torch.tensor(r), ranks, lists)[0].item() for r in ([0, 0.5, 0], [0, 0, 0.0], [-0.5, 0, 0])]
    assert losses[0] < losses[1] > losses[2]


@every_case
def test_nothing_and_a_list_of_one_have_loss_and_gradient_zero(case):
    function = objective(case[0], **{key: value for key, value in case[1].items() if key != "centring"})
    for ranks in (torch.zeros(0), torch.ones(1)):
        rewards = torch.ones(len(ranks), requires_grad=True)
        loss, count = function(rewards, ranks, torch.zeros(len(ranks), dtype=torch.long))
        loss.backward()
        assert (loss.item(), count) == (0.0, len(ranks))
        assert rewards.grad.tolist() == [0.0] * len(ranks)


@every_case
def test_a_nan_reward_is_never_hidden_in_a_finite_loss(case):
    rewards = torch.tensor([math.nan, 1.0, 0.0])
    loss, _ = objective(case[0], **case[1])(rewards, torch.tensor([1, 2, 3]), torch.zeros(3, dtype=torch.long))
    assert math.isnan(loss.item())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("plackett_luce", {}),
        ("plackett_luce", {"top": 1}),
        ("top1", {}),
        ("all_pairs", {}),
        ("adjacent_pairs", {}),
        ("scaled_pairs", {}),
        ("margin_pairs", {"margin": 0}),
        ("rao_kupper", {"tie_rate": 1e-13}),
        ("davidson", {"tie_rate": 1e-13}),
    ],
)
@pytest.mark.parametrize(("a", "b"), [(0.0, 0.0), (1.5, -0.5), (-2.0, 3.0)])
def test_two_responses_are_bradley_terry(loss_of, name, options, a, b):
    for ranks, d in (([1, 2], a - b), ([2, 1], b - a)):
        expected = math.log(1 + math.exp(-d))
        assert loss_of(objective(name, **options), [a, b], ranks) == pytest.approx(expected, rel=1e-11)
