"""Every metric worked by hand, and what its interval means."""

import math
from itertools import pairwise, permutations

import numpy as np
import pytest
from scipy import stats
from scipy.stats import kendalltau

from kwise.data.baselines import baseline_terms
from kwise.objective.metrics import Metric, _ndcg, bootstrap, combine, compare, evaluate, metric_terms, summarise
from kwise.records import Ranking


def baselines(rankings, seed=0):
    """What needs no model."""
    return summarise(baseline_terms(rankings), [ranking.group for ranking in rankings], seed)


def make(prompt, ranks, lengths=None, models=None, columns=None):
    """A ranking whose responses have the given numbers of characters."""
    k = len(ranks)
    return Ranking(
        messages=[{"role": "user", "content": prompt}],
        responses=["x" * length for length in lengths or [1] * k],
        ranks=ranks,
        models=models or [None] * k,
        file="rankings.jsonl",
        line=7,
        columns=columns or {},
    )


# rank      1    2    2    3
# reward  0.5  2.0  0.5 -1.0      length  4 9 4 2
# pairs of different rank: 0>1 no, 0>2 equal, 0>3 yes, 1>3 yes, 2>3 yes; neighbours: all but 0>3
FOUR = make("four", [1, 2, 2, 3], [4, 9, 4, 2]), [0.5, 2.0, 0.5, -1.0]
# rank 1 2 and 10: distinct ranks 10 and 2 are neighbours. Pairs: 1>0 no, 1>2 yes, 0>2 yes
GAP = make("gap", [2, 1, 10], [5, 1, 3]), [3.0, 1.0, 0.0]
TIED = make("tied", [1, 1], [3, 8]), [4.0, -4.0]
FOUR_NLL = -math.log(
    math.exp(0.5)
    / (2 * math.exp(0.5) + math.exp(2) + math.exp(-1))
    * (  # then 1 and 2 in either order, then 3
        math.exp(2) / (math.exp(2) + math.exp(0.5) + math.exp(-1)) * math.exp(0.5) / (math.exp(0.5) + math.exp(-1))
        + math.exp(0.5) / (math.exp(2) + math.exp(0.5) + math.exp(-1)) * math.exp(2) / (math.exp(2) + math.exp(-1))
    )
)
GAP_NLL = -math.log(math.exp(1) / (math.exp(3) + math.exp(1) + 1) * math.exp(3) / (math.exp(3) + 1))

BY_HAND = {
    #                   FOUR          GAP            all three: sum over count
    "pair_accuracy": ((3.5, 5), (2, 3), (5.5, 8)),
    "adjacent_accuracy": ((2.5, 4), (1, 2), (3.5, 6)),
    "distance_1": ((2.5, 4), (1, 2), (3.5, 6)),
    "distance_2": ((1, 1), (1, 1), (2, 2)),
    "top1": ((0, 1), (0, 1), (0, 2)),
    # tau-b of FOUR: 3 concordant, 1 discordant, 6 pairs of which 1 is tied in rank and 1 in reward: 2 / sqrt(5 * 5)
    "kendall_tau": ((0.4, 1), (1 / 3, 1), (0.4 + 1 / 3, 2)),
    "nll": ((FOUR_NLL, 1), (GAP_NLL, 1), (FOUR_NLL + GAP_NLL, 3)),
    # lengths of FOUR: 0>1 no, 0>2 equal, 0>3, 1>3, 2>3 yes; of GAP: 1>0 no, 1>2 no, 0>2 yes
    "longer_wins": ((3.5, 5), (1, 3), (4.5, 8)),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_metric_equals_the_hand_worked_value(name):
    four, gap, together = BY_HAND[name]
    cases = [([FOUR], four), ([GAP], gap), ([FOUR, GAP, TIED], together)]
    for chosen, (total, count) in cases:
        metric = evaluate([ranking for ranking, _ in chosen], [rewards for _, rewards in chosen])[name]
        assert metric.n == count
        assert metric.value == pytest.approx(total / count, rel=1e-12)


def test_better_model_wins_uses_a_models_strength_on_other_prompts_only():
    # strength outside the prompt itself, as the share of rivals beaten:
    #   prompt 1 (A > B > C): from 2 and 3, A has 0 and 1/2 -> 1/4, B 1 and none -> 1, C none and 1/2 -> 1/2
    #   prompt 2 (B > A):     from 1 and 3, A has 1 and 1/2 -> 3/4, B 1/2
    #   prompt 3 (A = C):     from 1 and 2, but its one pair is tied
    rankings = [
        make("1", [1, 2, 3], models=["A", "B", "C"]),
        make("2", [2, 1], models=["A", "B"]),
        make("3", [1, 1], models=["A", "C"]),
    ]
    # prompt 1: A > B no, A > C no, B > C yes; prompt 2: B > A no
    metric = baselines(rankings)["better_model_wins"]
    assert (metric.value, metric.n) == (pytest.approx(1 / 4), 4)


def test_better_model_wins_leaves_out_models_it_knows_nothing_of():
    rankings = [
        make("1", [1, 2, 3], models=["A", "B", "new"]),
        make("2", [1, 2, 3], models=["A", "B", None]),
    ]
    metric = baselines(rankings)["better_model_wins"]
    assert (metric.value, metric.n) == (1.0, 2)  # A > B in both; 'new' is seen in one prompt only, None is nobody


def test_better_model_wins_counts_models_of_equal_strength_half():
    rankings = [
        make("1", [1, 2], models=["A", "B"]),
        make("2", [1, 2], models=["A", "C"]),
        make("3", [1, 2], models=["B", "C"]),
    ]
    # prompt 1: A 1 (from 2), B 1 (from 3): half; prompt 2: A 1, C 0: yes; prompt 3: B 0, C 0: half
    metric = baselines(rankings)["better_model_wins"]
    assert (metric.value, metric.n) == (pytest.approx(2 / 3), 3)


def test_better_model_wins_compares_places_in_lists_of_different_length():
    rankings = [
        make("1", [1, 2, 3], models=["P", "A", "Q"]),  # A beats one of its two rivals
        make("2", [1, 1], models=["B", "R"]),  # B is half a point ahead of one rival
        make("3", [1, 2], models=["A", "B"]),  # so the two are equal: half
    ]
    metric = baselines(rankings)["better_model_wins"]
    assert (metric.value, metric.n) == (0.5, 1)


def test_better_model_wins_does_not_know_a_prompt_from_its_other_rankings():
    columns = {"prompt_group": "same"}
    rankings = [make(str(i), [1, 2], models=["A", "B"], columns=columns) for i in range(3)]
    assert baselines(rankings)["better_model_wins"] == Metric(None, None, None, 0)


@pytest.mark.parametrize(
    ("ranks", "rewards", "share"),
    [
        ([1, 2, 3], [2.0, 1.0, 0.0], 1.0),
        ([2, 1, 3], [2.0, 1.0, 0.0], 0.0),
        ([1, 2, 3], [2.0, 2.0, 0.0], 1 / 2),
        ([1, 2, 3], [2.0, 2.0, 2.0], 1 / 3),
        ([1, 1, 2], [0.0, 3.0, 2.0], 1.0),
        ([1, 1, 2], [3.0, 3.0, 3.0], 2 / 3),
    ],
    ids=str,
)
def test_top1_shares_equal_highest_rewards_and_accepts_any_of_the_tied_best(ranks, rewards, share):
    assert evaluate([make("p", ranks)], [rewards])["top1"].value == pytest.approx(share)


@pytest.mark.parametrize("seed", range(8))
def test_kendall_tau_is_scipys_tau_b_of_reward_and_rank_turned_round(seed):
    rng = np.random.default_rng(seed)
    k = rng.integers(3, 9)
    ranks, rewards = rng.integers(0, 4, k).astype(float).tolist(), rng.integers(0, 5, k).astype(float).tolist()
    expected = kendalltau(rewards, [-rank for rank in ranks], variant="b").statistic
    assert evaluate([make("p", ranks)], [rewards])["kendall_tau"].value == pytest.approx(expected, abs=1e-12)


def test_kendall_tau_has_its_sign_right_and_is_zero_for_a_model_that_says_nothing():
    rewards = {1.0: [3.0, 2.0, 1.0], -1.0: [1.0, 2.0, 3.0], 0.0: [2.0, 2.0, 2.0]}
    for expected, own in rewards.items():
        assert evaluate([make("p", [1, 2, 3])], [own])["kendall_tau"].value == pytest.approx(expected)


def test_equal_rewards_everywhere_score_a_half():
    metrics = evaluate([make("p", [1, 2, 3], [5, 5, 5])], [[1.0, 1.0, 1.0]])
    for name in ("pair_accuracy", "adjacent_accuracy", "distance_1", "distance_2", "longer_wins"):
        assert metrics[name].value == 0.5
    assert metrics["nll"].value == pytest.approx(math.log(6))


def test_a_ranking_without_an_order_counts_only_in_nll_as_zero():
    ranking, rewards = TIED
    metrics = evaluate([ranking], [rewards])
    assert (metrics["nll"].value, metrics["nll"].n) == (0.0, 1)
    assert all(metric == Metric(None, None, None, 0) for name, metric in metrics.items() if name != "nll")
    assert str(metrics["pair_accuracy"]) == "-"


def test_many_tied_losers_cost_what_a_softmax_over_all_costs():
    # one winner, the rest tied below it: only the winner's draw is known
    rewards = [1.0, *np.linspace(-1, 2, 11)]
    expected = math.log(sum(map(math.exp, rewards))) - 1.0
    assert evaluate([make("p", [1] + [2] * 11)], [rewards])["nll"].value == pytest.approx(expected, rel=1e-12)


def test_distances_count_distinct_ranks_and_come_in_their_numeric_order():
    ranks = [float(2**i) for i in range(12)]
    metrics = evaluate([make("p", ranks)], [[-rank for rank in ranks]])
    distances = [name for name in metrics if name.startswith("distance_")]
    assert distances == [f"distance_{d}" for d in range(1, 12)]
    assert [metrics[name].n for name in distances] == list(range(11, 0, -1))
    assert list(metrics)[-11:] == distances


def test_without_rewards_there_are_the_baselines_alone():
    assert set(baselines([FOUR[0], GAP[0]])) == {"longer_wins", "better_model_wins"}


def test_nothing_gives_no_metrics():
    assert evaluate([], []) == {}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_no_number_is_refused_with_its_place(bad):
    with pytest.raises(ValueError, match=r"rankings\.jsonl, line 7: .* NaN"):
        evaluate([GAP[0]], [[1.0, bad, 0.0]])


@pytest.mark.parametrize("rewards", [[], [[1.0, 2.0, 3.0]] * 2], ids=str)
def test_rewards_of_fewer_or_more_rankings_are_refused(rewards):
    with pytest.raises(ValueError, match="argument"):
        evaluate([GAP[0]], rewards)


def noisy(prompts, seed):
    """Rankings of four with rewards that often err, one per prompt."""
    rng = np.random.default_rng(seed)
    rankings = [make(f"p{i}", [1, 2, 3, 4], rng.integers(1, 9, 4).tolist()) for i in range(prompts)]
    return rankings, (rng.normal(size=(prompts, 4)) - 0.4 * np.arange(4)).tolist()


def width(metric):
    return metric.high - metric.low


def test_the_interval_does_not_shrink_when_every_ranking_is_repeated_within_its_prompt():
    rankings, rewards = noisy(25, 0)
    once, often = evaluate(rankings, rewards), evaluate(rankings * 4, rewards * 4)
    for name, metric in once.items():
        if metric.value is not None:
            assert often[name].n == 4 * metric.n
            assert [often[name].value, often[name].low, often[name].high] == pytest.approx(
                [metric.value, metric.low, metric.high], abs=1e-12
            )


def test_the_interval_halves_when_the_same_rankings_come_from_four_times_as_many_prompts():
    rankings, rewards = noisy(25, 0)
    others = [make(f"{copy}{r.messages[0]['content']}", r.ranks) for copy in range(4) for r in rankings]
    once, often = evaluate(rankings, rewards), evaluate(others, rewards * 4)
    for name in ("pair_accuracy", "kendall_tau", "nll"):
        assert width(often[name]) == pytest.approx(width(once[name]) / 2, rel=0.15)


def test_column_prompt_group_makes_rankings_of_different_prompts_one_unit():
    rankings, rewards = noisy(24, 1)
    grouped = [
        make(r.messages[0]["content"], r.ranks, columns={"prompt_group": i // 12}) for i, r in enumerate(rankings)
    ]
    # with two units a resample is the first twice, both, or the second twice: the interval's ends are the units' values
    units = [evaluate(rankings[i : i + 12], rewards[i : i + 12])["pair_accuracy"].value for i in (0, 12)]
    metric = evaluate(grouped, rewards)["pair_accuracy"]
    assert [metric.low, metric.high] == pytest.approx(sorted(units), rel=1e-12)


def test_what_only_one_prompt_counts_in_has_a_value_and_no_interval():
    for name, metric in evaluate([GAP[0]] * 3, [GAP[1]] * 3).items():
        assert (metric.low, metric.high) == (None, None), name
    # of two prompts one has pairs two ranks apart: all others have intervals
    found = evaluate([make("a", [1, 2, 3]), make("b", [1, 2])], [[3, 1, 2], [1, 2]])
    assert found["distance_2"] == Metric(1.0, None, None, 1)
    assert (found["distance_1"].low, found["distance_1"].high) == (0.0, 0.5)


def test_two_models_on_one_prompt_differ_by_nobody_knows_how_much():
    first, second = (bootstrap(metric_terms([GAP[0]], [own]), ["q"]) for own in (GAP[1], [-each for each in GAP[1]]))
    gap = compare(first, second)["pair_accuracy"]
    assert gap.value == pytest.approx(second["pair_accuracy"].value - first["pair_accuracy"].value)
    assert (gap.low, gap.high, gap.better) == (None, None, None)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    rankings, rewards = noisy(25, 2)
    first, again, other = (evaluate(rankings, rewards, seed)["nll"] for seed in (0, 0, 1))
    assert first == again
    assert first.value == other.value
    assert (first.low, first.high) != (other.low, other.high)


def test_the_interval_holds_the_truth_in_95_of_100_simulations():
    # prompts differ in how often their longer answer is better (Beta(2, 1), mean 2/3), so their pairs depend on one another
    repeats, prompts, each = 400, 60, 4
    rng = np.random.default_rng(3)
    covered = 0
    for repeat in range(repeats):
        share = rng.beta(2, 1, prompts)
        longer_is_better = rng.random((prompts, each)) < share[:, None]
        rankings = [
            make(f"p{i}", [1, 2], [2, 1] if wins else [1, 2]) for i in range(prompts) for wins in longer_is_better[i]
        ]
        metric = baselines(rankings, seed=repeat)["longer_wins"]
        covered += metric.low <= 2 / 3 <= metric.high
    error = math.sqrt(0.95 * 0.05 / repeats)
    assert covered / repeats == pytest.approx(0.95, abs=3 * error)


def test_a_metric_prints_and_turns_into_json():
    metric = Metric(0.51234, 0.4, 0.6, 12)
    assert str(metric) == "0.512 [0.400, 0.600] (n = 12)"
    assert metric.to_json() == {"value": 0.51234, "low": 0.4, "high": 0.6, "n": 12}


def gains(ranks):
    """2^r - 1, r the number of distinct ranks below."""
    return [2.0 ** len({other for other in ranks if other > rank}) - 1 for rank in ranks]


def dcg(order, gain):
    return sum(gain[i] / math.log2(place + 2) for place, i in enumerate(order))


def ndcg_over_all_orders(ranks, rewards):
    """Brute force: the mean over every order that does not put a lower score before a higher one."""
    gain = gains(ranks)
    orders = [
        order for order in permutations(range(len(ranks))) if all(rewards[i] >= rewards[j] for i, j in pairwise(order))
    ]
    best = max(dcg(order, gain) for order in permutations(range(len(ranks))))
    return sum(dcg(order, gain) for order in orders) / len(orders) / best


def test_ndcg_by_hand():
    # ranks 1 2 3 have gains 3 1 0; scored in the order 2, 1, 3: (1 + 3 / log2(3)) / (3 + 1 / log2(3))
    found = evaluate([make("p", [1, 2, 3])], [[1.0, 2.0, 0.0]])["ndcg"]
    assert found.value == pytest.approx((1 + 3 / math.log2(3)) / (3 + 1 / math.log2(3)))
    assert found.n == 1


@pytest.mark.parametrize("seed", range(8))
def test_ndcg_with_ties_is_the_mean_over_all_orders_of_equal_scores(seed):
    rng = np.random.default_rng(seed)
    ranks = [1.0, *rng.integers(1, 5, 4).astype(float), 5.0]
    rewards = rng.integers(0, 3, 6).astype(float).tolist()
    expected = ndcg_over_all_orders(ranks, rewards)
    assert evaluate([make("p", ranks)], [rewards])["ndcg"].value == pytest.approx(expected, rel=1e-12)


def test_ndcg_of_a_long_list_is_finite_and_of_the_right_order_one():
    ranks = [float(k) for k in range(3000)]
    metrics = evaluate([make("p", ranks[:40])], [[-rank for rank in ranks[:40]]])
    assert metrics["ndcg"].value == pytest.approx(1)
    assert _ndcg(range(3000), [-rank for rank in ranks]) == pytest.approx(1)


def test_pairs_with_equal_scores_are_counted():
    metric = evaluate([FOUR[0], GAP[0]], [FOUR[1], GAP[1]])["equal_scores"]
    assert (metric.value, metric.n) == (pytest.approx(1 / 8), 8)


def test_accuracy_in_thirds_of_the_judges_strength_by_hand():
    # strengths 1 to 6, two a third; right are the pairs of strength 1, 3, 5 and 6, and of 4 the scores are equal
    rankings = [make(str(m), [1, 2], columns={"margin": m}) for m in range(1, 7)]
    rewards = [[1.0, 0.0] if m in (1, 3, 5, 6) else [0.0, float(m != 4)] for m in range(1, 7)]
    metrics = evaluate(rankings, rewards)
    assert [(metrics[name].value, metrics[name].n) for name in ("weak_pairs", "middle_pairs", "strong_pairs")] == [
        (0.5, 2),
        (0.75, 2),
        (1.0, 2),
    ]
    assert "weak_pairs" not in evaluate([FOUR[0]], [FOUR[1]])


def draws_of(rankings, rewards, seed=0):
    return bootstrap(metric_terms(rankings, rewards), [ranking.group for ranking in rankings], seed)


def test_a_model_compared_with_itself_differs_by_nothing_and_is_better_by_a_coin():
    draws = draws_of(*noisy(20, 4))
    for name, gap in compare(draws, draws).items():
        if gap.value is not None:
            assert (gap.value, gap.low, gap.high, gap.better) == (0, 0, 0, 0.5), name


def test_the_difference_of_two_models_has_the_interval_of_their_differences_prompt_by_prompt():
    """One pair a prompt: the difference is a mean of numbers, and scipy's bootstrap knows that one too."""
    rng = np.random.default_rng(5)
    rankings = [make(str(i), [1, 2]) for i in range(150)]
    first = [[0.0, x] for x in rng.normal(0.2, 1, 150)]
    second = [[0.0, x[1] + y] for x, y in zip(first, rng.normal(-0.3, 0.5, 150), strict=True)]
    gap = compare(draws_of(rankings, first), draws_of(rankings, second))["pair_accuracy"]
    won = np.array([float(b[0] > b[1]) - float(a[0] > a[1]) for a, b in zip(first, second, strict=True)])
    expected = stats.bootstrap((won,), np.mean, n_resamples=4000, method="percentile", rng=1)
    assert gap.value == pytest.approx(won.mean())
    assert [gap.low, gap.high] == pytest.approx(list(expected.confidence_interval), abs=0.015)
    share = np.mean(expected.bootstrap_distribution > 0) + np.mean(expected.bootstrap_distribution == 0) / 2
    assert gap.better == pytest.approx(share, abs=0.02)
    # unpaired, the interval would be wider
    spread = [
        each["pair_accuracy"].metric() for each in (draws_of(rankings, first), draws_of(rankings, second, seed=1))
    ]
    assert gap.high - gap.low < 0.8 * math.hypot(*(width(metric) for metric in spread))


def test_of_losses_the_lower_is_better_and_baselines_are_not_compared():
    rankings = [make(str(i), [1, 2], [2, 1]) for i in range(12)]
    gaps = compare(draws_of(rankings, [[0.1, 0.0]] * 12), draws_of(rankings, [[0.5, 0.0]] * 12))
    assert gaps["nll"].value < 0 and gaps["nll"].better == 1
    assert gaps["ece"].value < 0 and gaps["ece"].better == 1
    assert gaps["pair_accuracy"].value == 0
    assert not {"longer_wins", "better_model_wins", "equal_scores"} & gaps.keys()


def test_the_paired_interval_holds_the_true_difference_in_95_of_100_simulations():
    # the second model is right on 70 % of pairs, the first on 60 %; three pairs of a prompt share their fate to a part
    repeats, prompts = 200, 80
    names = [str(i) for i in range(prompts)]
    rng = np.random.default_rng(6)
    covered = 0
    for repeat in range(repeats):
        noise = math.sqrt(0.5) * (rng.normal(size=(prompts, 1)) + rng.normal(size=(prompts, 3)))
        won = [(noise < stats.norm.ppf(share)).sum(1) for share in (0.6, 0.7)]
        gap = compare(*(bootstrap([{"won": (float(n), 3)} for n in own], names, repeat) for own in won))["won"]
        covered += gap.low <= 0.1 <= gap.high
    assert covered / repeats == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / repeats))


def test_a_weighted_sum_of_metrics_is_taken_draw_by_draw():
    terms = [{"a": (float(i % 2), 1), "b": (float(i), 2)} for i in range(10)]
    draws = bootstrap(terms, [str(i) for i in range(10)])
    both = combine(draws, {"a": 0.25, "b": 2.0})
    assert both.value == pytest.approx(0.25 * 0.5 + 2 * 45 / 20)
    assert both.n == 30
    assert both.draws == pytest.approx(0.25 * draws["a"].draws + 2 * draws["b"].draws)
    assert combine(draws, {"a": 1.0, "c": 1.0}).metric() == Metric(None, None, None, 0)
