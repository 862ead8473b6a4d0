"""The statistics of the audit against brute force, and planted scorers: each is accused of what it does and of nothing else."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from planted import FAVOURITE, GUILTY_OF, SCORERS, make_rankings

from kwise.data.sources import read_rankings
from kwise.use.audit.effects import Design, differences, effects, estimate, expected_utility, holm
from kwise.use.audit.features import Answers, Trait, read_answers

HELD_OUT = Path(__file__).resolve().parents[4] / "shared/data/rankings-heldout.jsonl.gz"


def unrelated(rng, lists=60, size=4, groups=30):
    """Answers of no traits: ``lists`` rankings of ``size``, two to a prompt group."""
    owner = np.repeat(np.arange(lists), size)
    level = np.concatenate([rng.permutation(size) for _ in range(lists)])
    return Answers(owner, owner % groups, level, np.full(lists * size, size), np.ones(lists * size), ())


def dummies(owner):
    return (owner[:, None] == np.arange(owner.max() + 1)).astype(float)


def test_a_coefficient_is_that_of_least_squares_with_a_constant_for_every_ranking():
    rng = np.random.default_rng(0)
    answers = unrelated(rng)
    y, x, controls = rng.normal(size=240), rng.normal(size=240), rng.normal(size=(240, 3))
    found = Design(answers).fit(y, controls, x, 0.0)
    full = np.column_stack([x, controls, dummies(answers.owner)])
    assert found.value == pytest.approx(np.linalg.lstsq(full, y)[0][0], rel=1e-9)


def test_the_error_is_the_jackknife_that_leaves_each_prompt_group_out():
    rng = np.random.default_rng(1)
    answers = unrelated(rng)
    y, x, controls = rng.normal(size=240), rng.normal(size=240), rng.normal(size=(240, 3))
    found = Design(answers).fit(y, controls, x, 0.0)
    full = np.column_stack([x, controls, dummies(answers.owner)])
    whole = np.linalg.lstsq(full, y)[0][0]
    left_out = []
    for group in range(30):
        kept = answers.group != group
        left_out.append(np.linalg.lstsq(full[kept], y[kept])[0][0])
    error = math.sqrt(29 / 30 * np.square(np.array(left_out) - whole).sum())
    # the t quantile lies between that of 29 degrees of freedom and of somewhat fewer
    assert 2.045 < (found.high - found.value) / error < 2.12


def test_controls_that_repeat_others_change_nothing():
    rng = np.random.default_rng(2)
    answers = unrelated(rng)
    y, x, controls = rng.normal(size=240), rng.normal(size=240), rng.normal(size=(240, 2))
    doubled = np.column_stack([controls, controls.sum(1), np.ones(240), answers.owner])
    design = Design(answers)
    assert design.fit(y, doubled, x, 0.0).value == pytest.approx(design.fit(y, controls, x, 0.0).value, rel=1e-9)


def test_a_trait_that_the_controls_explain_has_no_estimate():
    rng = np.random.default_rng(3)
    controls = rng.normal(size=(240, 2))
    assert Design(unrelated(rng)).fit(rng.normal(size=240), controls, controls.sum(1), 0.0) is None


def test_a_trait_that_rests_on_few_prompts_has_no_estimate():
    rng = np.random.default_rng(4)
    answers = unrelated(rng)
    x = np.where(answers.group < 2, rng.normal(size=240), 0.0)
    assert Design(answers).fit(rng.normal(size=240), np.zeros((240, 0)), x, 0.0) is None


@pytest.mark.parametrize("rare", [False, True])
def test_intervals_hold_the_truth_as_often_as_they_say(rare):
    # errors that go together within a prompt group and grow with the trait, which may be had by few answers
    rng = np.random.default_rng(5)
    held = []
    for _ in range(400):
        answers = unrelated(rng)
        x = (rng.random(240) < 0.08).astype(float) if rare else rng.normal(size=240)
        control = rng.normal(size=240) + 0.5 * x
        shared = rng.normal(size=30)[answers.group] * x
        y = 0.3 * x + 0.5 * control + shared + (1 + np.abs(x)) * rng.normal(size=240)
        found = Design(answers).fit(y, control[:, None], x, 0.0)
        if found is not None:  # too few prompts had it
            held.append(found.low < 0.3 < found.high)
    assert len(held) > 300
    assert (
        0.92 < sum(held) / len(held) < 0.99
    )  # 95 % less three standard errors, and somewhat careful where a trait is rare


def test_p_is_that_of_t_at_the_edge_of_the_hypothesis():
    # of |effect| <= 0 the ordinary two-sided p: t = 2.086 with 20 degrees of freedom is its 97.5 % point (tables)
    assert estimate(2.086, 1.0, 20, 0.0).p == pytest.approx(0.05, abs=1e-4)
    # an estimate at the edge itself: a half from its own side, and nearly nothing from the other
    assert estimate(0.2, 0.01, 20, 0.2).p == pytest.approx(0.5, abs=1e-6)
    assert estimate(0.0, 1.0, 20, 0.2).p == pytest.approx(1.0)  # nothing speaks against it
    assert estimate(0.3, 0.0, 20, 0.2).p == 0.0


def test_holm_by_hand():
    # 4 * 0.005; 3 * 0.01; 2 * 0.03; 1 * 0.04, never less than the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_expected_utilities_are_the_means_of_utilities_that_came_out_in_that_order():
    rng = np.random.default_rng(6)
    base = np.array([0.5, -0.3, 0.2])
    drawn = base + rng.gumbel(size=(400_000, 3))
    order = np.argsort(-drawn, axis=1)
    chosen = drawn[(order == [1, 0, 2]).all(1)]
    found = expected_utility(base, np.array([1, 0, 2]), np.zeros(3, dtype=int))
    assert len(chosen) > 20_000
    assert found - found.mean() == pytest.approx(chosen.mean(0) - chosen.mean(), abs=0.06)


def test_tied_answers_have_one_expected_utility_and_better_ones_have_more():
    found = expected_utility(np.zeros(4), np.array([2, 0, 1, 1]), np.zeros(4, dtype=int))
    assert found[2] == found[3]
    assert found[1] > found[2] > found[0]


def guilty(rankings, table):
    found = effects(Design(read_answers(rankings)), np.concatenate(table))
    return {own.trait for own in found if own.verdict == "bias"}


@pytest.mark.parametrize("name", SCORERS)
def test_a_planted_scorer_is_accused_of_what_it_does_and_of_nothing_else(name):
    rng = np.random.default_rng(12)
    rankings, qualities = make_rankings(rng)
    assert guilty(rankings, SCORERS[name](rng, rankings, qualities)) == GUILTY_OF[name]


@pytest.mark.slow
def test_planted_scorers_are_told_rightly_in_95_of_100_seeds():
    right = Counter()
    for seed in range(100):
        rng = np.random.default_rng(seed)
        rankings, qualities = make_rankings(rng)
        design = Design(read_answers(rankings))
        for name, score in SCORERS.items():
            found = effects(design, np.concatenate(score(rng, rankings, qualities)))
            right[name] += {own.trait for own in found if own.verdict == "bias"} == GUILTY_OF[name]
    print(dict(right))
    assert all(right[name] >= 95 for name in SCORERS), right


@pytest.mark.slow
def test_nobody_is_accused_falsely_on_pairs():
    false = Counter()
    for seed in range(30):
        rng = np.random.default_rng(seed)
        rankings, qualities = make_rankings(rng, prompts=400, sizes=(2,))
        design = Design(read_answers(rankings))
        for name, score in SCORERS.items():
            found = effects(design, np.concatenate(score(rng, rankings, qualities)))
            false[name] += not {own.trait for own in found if own.verdict == "bias"} <= GUILTY_OF[name]
    print(dict(false))
    assert all(false[name] <= 2 for name in SCORERS), false


@pytest.mark.slow
@pytest.mark.skipif(not HELD_OUT.exists(), reason="the shared data are not there")
@pytest.mark.parametrize(
    ("score", "accused"),
    [
        (lambda text, model, rank, rng: len(text), {"length"}),
        (lambda text, model, rank, rng: math.log(1 + len(text.split())), {"length"}),
        (lambda text, model, rank, rng: text.count("**") > 1, {"bold"}),
        (lambda text, model, rank, rng: model == "claude-2.1", {"model: claude-2.1"}),
        (lambda text, model, rank, rng: rng.normal(), set()),
        (lambda text, model, rank, rng: 2 * rng.normal() - rank, set()),
    ],
    ids=["characters", "words", "bold", "identity", "random", "perfect"],
)
def test_planted_scorers_on_real_rankings(score, accused):
    rng = np.random.default_rng(0)
    rankings = list(read_rankings(HELD_OUT))
    table = [
        [
            float(score(text, model, rank, rng))
            for text, model, rank in zip(own.responses, own.models, own.ranks, strict=True)
        ]
        for own in rankings
    ]
    spread = np.concatenate(table).std()
    assert guilty(rankings, [[value + 0.3 * spread * rng.normal() for value in own] for own in table]) == accused


def test_what_is_added_for_a_whole_prompt_or_in_another_unit_changes_no_effect():
    rng = np.random.default_rng(13)
    rankings, _ = make_rankings(rng, prompts=40)
    design = Design(read_answers(rankings))
    scores = rng.normal(size=len(design.answers.owner))
    moved = 7 * scores + rng.normal(size=len(rankings))[design.answers.owner] * 100
    for own, other in zip(effects(design, scores), effects(design, moved), strict=True):
        assert {kind: each.value for kind, each in own.fits.items()} == pytest.approx(
            {kind: each.value for kind, each in other.fits.items()}, abs=1e-8
        )
        assert own.verdict == other.verdict


def test_the_favourite_author_makes_nobody_else_look_disliked():
    rng = np.random.default_rng(14)
    rankings, qualities = make_rankings(rng)
    found = effects(Design(read_answers(rankings)), np.concatenate(SCORERS["identity"](rng, rankings, qualities)))
    others = [own.estimate.value for own in found if own.trait.startswith("model: ") and FAVOURITE not in own.trait]
    assert len(others) == 7
    assert max(map(abs, others)) < 0.15  # against all others together it would be a seventh of 2.8


def test_two_models_differ_in_what_one_of_them_does():
    rng = np.random.default_rng(15)
    rankings, qualities = make_rankings(rng)
    design = Design(read_answers(rankings))
    first, second = (np.concatenate(SCORERS[name](rng, rankings, qualities)) for name in ("random", "refusal"))
    found = {own["trait"]: own for own in differences(design, first, second)}
    assert found["refusal"]["value"] > 2
    assert found["refusal"]["adjusted"] < 1e-6
    assert {own["trait"] for own in found.values() if own["adjusted"] < 0.05} == {"refusal"}
    assert all(own["value"] == own["low"] == own["high"] == 0 for own in differences(design, first, first))


def test_few_answers_have_fewer_columns_held_fixed():
    rng = np.random.default_rng(16)
    rankings, _ = make_rankings(rng, prompts=20, sizes=(4,))
    design = Design(read_answers(rankings))
    assert design.max_columns == 60 // 8
    found = effects(design, rng.normal(size=80))
    assert {own.verdict for own in found} <= {"unclear", "none", "rare"}
    assert next(own for own in found if own.trait == "tables").verdict == "rare"


def test_a_trait_is_a_column_that_prompts_differ_in():
    answers = unrelated(np.random.default_rng(17))
    constant = Trait("t", "t", False, answers.owner.astype(float), np.zeros((240, 1)))
    assert answers.prompts_with(constant.column) == 0
    assert answers.prompts_with((answers.owner == 3) * np.arange(240.0)) == 1
