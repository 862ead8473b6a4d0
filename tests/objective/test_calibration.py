"""The temperature, its standard error and the length slope against simulations, other solvers and published scores."""

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from kwise.objective.calibration import FOLDS, cross_fitted, figures, fit_calibration, fit_length_slope
from kwise.objective.metrics import summarise
from kwise.objective.reliability import ece_terms, pair_guesses

SUITE = Path(__file__).parents[2] / ".." / "shared" / "data" / "starling" / "suites" / "human.jsonl.gz"


def simulate(seed, prompts, k, temperature, spread=2.0, offset=0.0):
    """Rewards, Plackett-Luce rankings of rewards / temperature (by Gumbel noise), and one prompt each."""
    rng = np.random.default_rng(seed)
    rewards = rng.normal(size=(prompts, k)) * spread
    ranks = (-(rewards / temperature + rng.gumbel(size=(prompts, k)))).argsort(1).argsort(1) + 1.0
    return (rewards + offset).tolist(), ranks.tolist(), [f"p{i}" for i in range(prompts)]


def same_lengths(rewards):
    return [[1] * len(own) for own in rewards]


@pytest.mark.parametrize(("k", "prompts"), [(2, 1500), (4, 500), (7, 300)])
def test_the_temperature_of_simulated_rankings_is_found_within_its_standard_error(k, prompts):
    found = [fit_calibration(*simulate(seed, prompts, k, temperature=2.0)) for seed in range(20)]
    z = [(each.temperature - 2.0) / each.temperature_error for each in found]
    assert abs(np.mean(z)) < 3 / math.sqrt(20)  # no bias beyond what twenty runs can show
    assert 0.6 < np.std(z) < 1.5  # and errors of the size that is said
    assert max(map(abs, z)) < 4
    assert np.mean([each.temperature_error for each in found]) < 0.15


def test_for_pairs_it_is_bradley_terry():
    rewards, ranks, groups = simulate(0, 400, 2, temperature=0.7)
    gaps = np.array(
        [own[0] - own[1] if rank[0] < rank[1] else own[1] - own[0] for own, rank in zip(rewards, ranks, strict=True)]
    )
    best = minimize_scalar(
        lambda b: np.logaddexp(0, -gaps * b).mean(), bounds=(0.1, 10), method="bounded", options={"xatol": 1e-12}
    )
    fit = fit_calibration(rewards, ranks, groups)
    assert fit.temperature == pytest.approx(1 / best.x, rel=1e-6)
    # the sandwich by hand: slopes -gap * (1 - p), curvature gap^2 p (1 - p), in 1/T; then dT = T^2 d(1/T)
    p = 1 / (1 + np.exp(-gaps * best.x))
    error = math.sqrt(np.square(gaps * (1 - p)).sum() * 400 / 399) / np.sum(gaps**2 * p * (1 - p))
    assert fit.temperature_error == pytest.approx(error / best.x**2, rel=1e-5)
    assert (fit.rankings, fit.pairs) == (400, 400)


def test_scale_and_offset_of_rewards_move_the_temperature_and_the_centre_alone():
    rewards, ranks, groups = simulate(1, 100, 4, temperature=1.5)
    plain = fit_calibration(rewards, ranks, groups)
    moved = fit_calibration([[1e3 * (r + 50) for r in own] for own in rewards], ranks, groups)
    assert moved.temperature == pytest.approx(1e3 * plain.temperature, rel=1e-9)
    assert moved.temperature_error == pytest.approx(1e3 * plain.temperature_error, rel=1e-7)
    assert moved.centre == pytest.approx(1e3 * (plain.centre + 50), rel=1e-12)
    assert plain.centre == pytest.approx(np.mean(rewards))


def test_rankings_of_one_prompt_are_one_piece_of_evidence():
    rewards, ranks, groups = simulate(2, 60, 3, temperature=1.0)
    once, often = fit_calibration(rewards, ranks, groups), fit_calibration(rewards * 4, ranks * 4, groups * 4)
    assert often.temperature == pytest.approx(once.temperature, rel=1e-9)
    assert often.temperature_error == pytest.approx(once.temperature_error, rel=1e-7)


def test_ties_and_lists_of_any_length_are_taken():
    rng = np.random.default_rng(3)
    rewards = [rng.normal(size=k).tolist() for k in rng.integers(2, 9, 200)]
    ranks = [
        np.ceil((-(np.array(own) + rng.gumbel(size=len(own)))).argsort().argsort() / 2).tolist() for own in rewards
    ]
    fit = fit_calibration(rewards, ranks, [str(i) for i in range(200)])
    assert abs(fit.temperature - 1.0) < 3.5 * fit.temperature_error
    assert fit.pairs == sum(a != b for own in ranks for i, a in enumerate(own) for b in own[:i])


GROUPS = ["a", "b", "c"]
UNFIT = {
    "tied": ([[1.0, 0.0]] * 3, [[1, 1]] * 3, "all responses are tied"),
    "equal rewards": ([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]], [[1, 2]] * 3, "equal rewards"),
    "separable": ([[1.0, 0.0], [2.0, 0.0], [5.0, 5.0]], [[1, 2]] * 3, "all 3 pairs are in the right order"),
    # the better response scores higher by -1/2, -1/2, 3/2, -3/2, 1/2, 1/2 in turn: by nothing in all, but for rounding
    "at chance": (
        [[i % 3 + offset, i % 2 + 0.5 + offset] for offset in (10, 0) for i in range(30)],
        [[1, 2]] * 60,
        "no better than chance",
    ),
    "reversed": ([[0.0, 1.0], [0.0, 2.0], [0.5, 0.0]], [[1, 2]] * 3, "no better than chance"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_rankings_that_determine_no_temperature_say_why(case):
    rewards, ranks, problem = UNFIT[case]
    with pytest.raises(ValueError, match=problem):
        fit_calibration(rewards, ranks, GROUPS * (len(ranks) // 3))


def test_one_prompt_is_not_enough():
    with pytest.raises(ValueError, match="at least two prompts, these are of 1"):
        fit_calibration([[1.0, 0.0], [0.0, 1.0]], [[1, 2]] * 2, ["a", "a"])


def test_the_calibration_error_of_a_calibrated_model_is_small_and_that_of_a_sharp_one_is_not():
    rewards, ranks, groups = simulate(4, 3000, 4, temperature=2.0)
    after = figures(ranks, cross_fitted(rewards, ranks, groups), groups, same_lengths(rewards))
    before = figures(ranks, rewards, groups, same_lengths(rewards))
    for name in ("ece", "top1_ece"):
        assert before[name].low > 0.05
        assert after[name].value < 0.015 and after[name].low < 0.005
    assert after["pair_nll"].high < before["pair_nll"].low


def test_the_interval_of_the_calibration_error_holds_the_truth_about_as_often_as_documented():
    def terms(seed, prompts):
        rewards, ranks, groups = simulate(seed, prompts, 4, temperature=2.0)
        guesses = (pair_guesses(*own) for own in zip(ranks, rewards, strict=True))
        return [ece_terms("ece", own, 0.5) for own in guesses], groups

    truth = summarise(*terms(0, 20000))["ece"].value
    found = [summarise(*terms(1 + i, 100), seed=i)["ece"] for i in range(200)]
    covered = np.mean([each.low <= truth <= each.high for each in found])
    assert 0.86 - 3 * math.sqrt(0.12 / 200) < covered < 0.99


def test_the_length_slope_is_that_of_a_regression_with_one_constant_per_ranking():
    rng = np.random.default_rng(5)
    sizes = rng.integers(2, 6, 40)
    lengths = [rng.integers(0, 3000, k).tolist() for k in sizes]
    rewards = [(rng.normal() + 0.4 * np.log1p(own) + rng.normal(size=len(own))).tolist() for own in lengths]
    owner = np.repeat(np.arange(40), sizes)
    x = np.column_stack([np.log1p(np.concatenate(lengths)), np.eye(40)[owner]])
    y = np.concatenate(rewards)
    beta = np.linalg.lstsq(x, y, rcond=None)[0]
    # Liang-Zeger: (X'X)^-1 (sum over clusters of X_g' e_g e_g' X_g) (X'X)^-1, two rankings a cluster
    bread, meat = np.linalg.inv(x.T @ x), np.zeros((41, 41))
    for cluster in range(20):
        own = owner // 2 == cluster
        score = x[own].T @ (y - x @ beta)[own]
        meat += np.outer(score, score)
    slope, error = fit_length_slope(rewards, lengths, [str(i // 2) for i in range(40)])
    assert slope == pytest.approx(beta[0], rel=1e-9)
    assert error == pytest.approx(math.sqrt((bread @ meat @ bread)[0, 0] * 20 / 19), rel=1e-9)


def test_length_calibration_takes_a_known_length_bias_off():
    rewards, ranks, groups = simulate(6, 2000, 4, temperature=1.0, spread=1.0)
    lengths = np.random.default_rng(7).integers(10, 2000, (2000, 4))
    biased = (np.array(rewards) + 0.8 * np.log1p(lengths)).tolist()
    fit = fit_calibration(biased, ranks, groups, lengths.tolist())
    assert abs(fit.length_slope - 0.8) < 3.5 * fit.length_slope_error
    assert abs(fit.temperature - 1.0) < 3.5 * fit.temperature_error
    honest = cross_fitted(biased, ranks, groups, lengths.tolist())
    before, after = (figures(ranks, table, groups, lengths.tolist()) for table in (biased, honest))
    assert before["length_correlation"].value > 0.4 and abs(after["length_correlation"].value) < 0.03
    assert after["pair_accuracy"].low > before["pair_accuracy"].high
    assert after["shorter_better"].value == pytest.approx(after["longer_better"].value, abs=0.03)


def test_a_length_slope_needs_lengths_that_differ():
    rewards, ranks, groups = simulate(8, 30, 3, temperature=1.0)
    with pytest.raises(ValueError, match="equally long"):
        fit_calibration(rewards, ranks, groups, same_lengths(rewards))


def test_figures_of_lengths_by_hand():
    # better: 2 chars against 1, right; 1 against 5, wrong; 3 against 3, right
    ranks, rewards, lengths = [[1, 2], [2, 1], [1, 2]], [[1.0, 0.0], [3.0, 1.0], [2.0, 0.0]], [[2, 1], [5, 1], [3, 3]]
    found = figures(ranks, rewards, GROUPS, lengths)
    assert [(found[name].value, found[name].n) for name in ("pair_accuracy", "longer_better", "shorter_better")] == [
        (pytest.approx(2 / 3), 3),
        (1.0, 1),
        (0.0, 1),
    ]
    nll = [math.log1p(math.exp(-1)), math.log1p(math.exp(2)), math.log1p(math.exp(-2))]
    assert found["pair_nll"].value == pytest.approx(sum(nll) / 3)
    x, y = [math.log(3 / 2) / 2, math.log(6 / 2) / 2, 0.0], [0.5, 1.0, 1.0]  # half of each pair's difference
    expected = np.dot(x, y) / math.sqrt(np.dot(x, x) * np.dot(y, y))
    assert found["length_correlation"].value == pytest.approx(expected)


def test_a_prompt_has_no_say_in_the_calibration_of_its_own_figures():
    rewards, ranks, groups = simulate(9, 40, 3, temperature=1.0)
    groups[1] = groups[0]  # two rankings of one prompt
    turned = [
        [4 - rank for rank in own] if group == groups[0] else own for own, group in zip(ranks, groups, strict=True)
    ]
    first, second = cross_fitted(rewards, ranks, groups), cross_fitted(rewards, turned, groups)
    changed = [a != b for a, b in zip(first, second, strict=True)]
    assert not changed[0] and not changed[1]
    # those of the same fold do not see it either; all others do
    assert 40 - 2 * 40 / FOLDS < sum(changed) < 39


def test_figures_need_prompts_enough_for_every_fold():
    with pytest.raises(ValueError, match="at least three prompts"):
        cross_fitted([[1.0, 0.0], [0.0, 1.0]], [[1, 2]] * 2, ["a", "b"])
    # the one wrong pair is in one fold: without it the others are all right
    rewards = [[1.0, 0.0]] * 9 + [[0.0, 1.0]]
    with pytest.raises(ValueError, match=r"too few rankings: .* all 8 pairs are in the right order"):
        cross_fitted(rewards, [[1, 2]] * 10, [str(i) for i in range(10)])


@pytest.mark.skipif(not SUITE.exists(), reason="the published scores are not here")
def test_published_scores_of_starling_34b_give_the_known_figures():
    """Worked out from the file by another route: ECE about 0.045, best temperature 1.4, pair loss 0.468 -> 0.451."""
    with gzip.open(SUITE, "rt") as file:
        rows = [json.loads(line) for line in file]
    rewards = [[row["score_a"], row["score_b"]] for row in rows]
    ranks = [[1.0, 2.0] if row["winner"] == "model_a" else [2.0, 1.0] for row in rows]
    groups = [row["prompt"] for row in rows]
    lengths = [[len(row["response_a"]), len(row["response_b"])] for row in rows]
    fit = fit_calibration(rewards, ranks, groups)
    assert fit.temperature == pytest.approx(1.41, abs=0.02)
    before = figures(ranks, rewards, groups, lengths)
    assert before["ece"].value == pytest.approx(0.045, abs=0.002)
    assert before["pair_nll"].value == pytest.approx(0.468, abs=0.0005)
    fitted = [fit.apply(*own) for own in zip(rewards, lengths, strict=True)]
    assert figures(ranks, fitted, groups, lengths)["pair_nll"].value == pytest.approx(0.451, abs=0.0005)
    honest = figures(ranks, cross_fitted(rewards, ranks, groups), groups, lengths)
    assert 0.451 <= honest["pair_nll"].value < 0.453
    assert before["pair_accuracy"].value == honest["pair_accuracy"].value == pytest.approx(0.807)
