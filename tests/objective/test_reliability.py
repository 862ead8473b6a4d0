"""Guesses, bins and calibration errors worked by hand."""

import math

import pytest

from kwise.objective.metrics import evaluate, metric_terms, summarise
from kwise.objective.reliability import (
    BINS,
    PAIR_LOW,
    TOP1_LOW,
    ece_terms,
    pair_guesses,
    reliability_curve,
    top1_guesses,
)
from kwise.records import Ranking


def logit(p):
    return math.log(p / (1 - p))


def make(prompt, ranks):
    return Ranking([{"role": "user", "content": prompt}], ["x"] * len(ranks), ranks, [None] * len(ranks), "made", 1)


# pairs by the probability of the response that is really better: 0.8, 0.8, 0.2 (sure of the wrong one) and 0.6 fall into two
# bins. [0.8, 0.85): says 0.8 three times, right twice; [0.6, 0.65): says 0.62 once, right.
#   ECE = (|2 - 2.4| + |1 - 0.62|) / 4 = 0.195
TWO_BINS = [0.81, 0.81, 0.19, 0.62]
TWO_BINS_ECE = (abs(2 - 3 * 0.81) + abs(1 - 0.62)) / 4


def test_ece_and_curve_of_four_pairs_in_two_bins_by_hand():
    rewards = [[logit(p), 0.0] for p in TWO_BINS]
    rankings = [make(f"p{i}", [1.0, 2.0]) for i in range(4)]
    metric = evaluate(rankings, rewards)["ece"]
    assert (metric.value, metric.n) == (pytest.approx(TWO_BINS_ECE, abs=1e-12), 4)
    guesses = [guess for own in rewards for guess in pair_guesses([1.0, 2.0], own)]
    full = {round(each.low, 2): each for each in reliability_curve(guesses, PAIR_LOW) if each.n}
    assert full.keys() == {0.6, 0.8}
    assert (full[0.8].n, full[0.8].confidence, full[0.8].right) == (3, pytest.approx(0.81), pytest.approx(2 / 3))
    assert (full[0.6].n, full[0.6].confidence, full[0.6].right) == (1, pytest.approx(0.62), 1.0)


def test_a_pair_is_the_same_guess_whichever_way_round_it_is_given():
    assert pair_guesses([1, 2], [3.0, 1.0]) == pair_guesses([2, 1], [1.0, 3.0])
    (right, yes), (wrong, no) = pair_guesses([1, 2], [3.0, 1.0])[0], pair_guesses([1, 2], [1.0, 3.0])[0]
    assert right == wrong == pytest.approx(1 / (1 + math.exp(-2)))
    assert (yes, no) == (1.0, 0.0)


def test_guesses_of_a_ranking_by_hand():
    # rank 1 2 2 3: five pairs of different rank; rewards 2 0 0 0: three pairs with difference 2, two with none
    guesses = pair_guesses([1, 2, 2, 3], [2.0, 0.0, 0.0, 0.0])
    sure = 1 / (1 + math.exp(-2))
    assert sorted(guesses) == [(0.5, 0.5)] * 2 + [(pytest.approx(sure), 1.0)] * 3
    first = math.exp(2) / (math.exp(2) + 3)
    assert top1_guesses([1, 2, 2, 3], [2.0, 0.0, 0.0, 0.0]) == [(pytest.approx(first), 1.0)]
    assert top1_guesses([2, 1, 3], [2.0, 0.0, 0.0]) == [(pytest.approx(math.exp(2) / (math.exp(2) + 2)), 0.0)]


def test_equal_highest_rewards_share_the_outcome():
    assert top1_guesses([1, 2, 3, 4], [0.0] * 4) == [(pytest.approx(0.25), 0.25)]


def test_a_ranking_whose_best_rank_is_tied_has_pairs_but_no_first_place():
    assert top1_guesses([1, 1, 2], [1.0, 0.0, 0.0]) == []
    assert len(pair_guesses([1, 1, 2], [1.0, 0.0, 0.0])) == 2
    assert pair_guesses([1, 1], [1.0, 0.0]) == []


def test_extreme_rewards_are_certain_and_fall_into_the_last_bin():
    assert pair_guesses([1, 2], [1e4, -1e4]) == [(1.0, 1.0)]
    assert top1_guesses([1, 2], [-1e4, 1e4]) == [(1.0, 0.0)]
    for low in (PAIR_LOW, TOP1_LOW):
        assert [each.n for each in reliability_curve([(1.0, 1.0)], low)] == [0] * (BINS - 1) + [1]


@pytest.mark.parametrize(("low", "width"), [(PAIR_LOW, 0.05), (TOP1_LOW, 0.1)])
def test_bins_have_equal_width_and_hold_what_lies_in_them(low, width):
    guesses = [(low + (i + 0.5) * width, 1.0) for i in range(10) for _ in range(i)]
    bins = reliability_curve(guesses, low)
    assert [each.n for each in bins] == list(range(10))
    assert bins[0].confidence is None and bins[0].right is None
    assert all(each.low <= each.confidence < each.high for each in bins[1:])
    assert bins[-1].high == pytest.approx(1.0)


def test_errors_of_opposite_sign_cancel_within_a_bin_but_not_between_bins():
    assert summarise([ece_terms("ece", [(0.81, 1.0), (0.81, 0.62)], 0.5)], ["p"])["ece"].value == pytest.approx(0)
    # |1 - 0.81| + |0.33 - 0.52| = 0.38, over 2
    assert summarise([ece_terms("ece", [(0.81, 1.0), (0.52, 0.33)], 0.5)], ["p"])["ece"].value == pytest.approx(0.19)


def test_calibrated_rewards_change_the_calibration_errors_and_nothing_else():
    rankings = [make("p", [1, 2, 3]), make("q", [2, 1])]
    rewards, calibrated = [[3.0, 1.0, 2.0], [1.0, 0.0]], [[1.5, 0.5, 1.0], [0.5, 0.0]]
    groups = [ranking.group for ranking in rankings]
    raw, both, only = (
        summarise(terms, groups)
        for terms in (
            metric_terms(rankings, rewards),
            metric_terms(rankings, rewards, calibrated),
            metric_terms(rankings, calibrated),
        )
    )
    for name, metric in both.items():
        assert metric == (only if name in ("ece", "top1_ece") else raw)[name]
    assert raw["ece"] != both["ece"] and raw["nll"] != only["nll"]
