from pathlib import Path

import numpy as np
import pytest
from planted import make_rankings
from scipy.stats import spearmanr

from kwise.use.audit import foreign_subjects
from kwise.use.audit.features import read_answers
from kwise.use.audit.measures import (
    asks_for_harm,
    beginning,
    calibration,
    distribution,
    drift,
    harm,
    layout,
    length,
    mistakes,
    spearman,
)
from kwise.use.evaluation import open_data

HUMAN = Path(__file__).resolve().parents[4] / "shared/data/starling/suites/human.jsonl.gz"


@pytest.fixture
def two(ranking):
    """Longer answers: better and picked; better and not picked; worse and picked. One pair is equally long."""
    return [
        ranking("a", ["- long one", "short", "tiny"], ranks=[1, 2, 3], good_natured=True),
        ranking("b", ["longer", "- a"], ranks=[2, 1], good_natured=False),
        ranking("c", ["same", "also"], ranks=[1, 2], good_natured=True),
    ], [[3.0, 1.0, 2.0], [5.0, 4.0], [0.0, 1.0]]


def test_length_by_hand(two):
    rankings, rewards = two
    found = length(rankings, rewards, read_answers(rankings))
    # pairs of different length: (long, short) right, (long, tiny) right, (short, tiny) wrong, (longer, - a) longer picked
    assert found["longer_picked"]["value"] == 3 / 4
    assert (found["longer_better"]["value"], found["longer_better"]["n"]) == (2 / 3, 3)
    assert (found["shorter_better"]["value"], found["shorter_better"]["n"]) == (0.0, 1)


def test_layout_by_hand(two):
    rankings, rewards = two
    lists = next(own for own in layout(rankings, rewards, read_answers(rankings)) if own["trait"] == "lists")
    # "- long one" is better than both others and picked; "- a" is better and not picked
    assert (lists["picked"]["value"], lists["picked"]["n"]) == (2 / 3, 3)
    assert lists["better"]["value"] == 1.0
    assert (lists["with"]["value"], lists["with"]["n"]) == (2 / 3, 3)
    assert lists["without"]["n"] == 0
    assert lists["picked"]["low"] is None  # two prompts make no interval


def test_harm_by_hand(two):
    rankings, rewards = two
    found = {row["kind"]: row for row in harm(rankings, rewards, read_answers(rankings))}
    assert found["harmful requests"]["pair_accuracy"]["value"] == 0.0
    assert found["other requests"]["pair_accuracy"]["value"] == 2 / 4
    assert found["other requests"]["refusals"] == 0
    assert found["other requests"]["refusal_score"] is None


def test_what_asks_for_harm_is_told_by_the_column_the_data_have(ranking):
    assert asks_for_harm(ranking(good_natured=False)) is True
    assert asks_for_harm(ranking(category="refuse")) is True
    assert asks_for_harm(ranking(category="borderline")) is False
    assert asks_for_harm(ranking(part="human")) is False
    assert asks_for_harm(ranking(part="truth")) is None
    assert asks_for_harm(ranking()) is None


def test_spearman_is_that_of_scipy():
    rng = np.random.default_rng(0)
    rankings, _ = make_rankings(rng, prompts=30)
    answers = read_answers(rankings)
    scores = rng.normal(size=len(answers.owner)) + answers.characters / 200
    found = spearman(answers, answers.characters, scores)
    assert found.value == pytest.approx(spearmanr(answers.characters, scores).statistic, rel=1e-9)
    assert found.low < found.value < found.high
    assert spearman(answers, answers.characters, np.ones(len(scores))).value is None


def test_the_interval_of_spearman_holds_the_truth_as_often_as_it_says(ranking):
    # of a normal pair with correlation r, Spearman's is 6 / pi asin(r / 2)
    rng = np.random.default_rng(1)
    held = 0
    truth = 6 / np.pi * np.arcsin(0.25)
    answers = read_answers([ranking(str(i), ["a", "b", "c"]) for i in range(60)])
    for _ in range(200):
        x = rng.normal(size=180)
        found = spearman(answers, x, 0.5 * x + np.sqrt(0.75) * rng.normal(size=180))
        held += found.low < truth < found.high
    assert held / 200 > 0.9


def test_drift_means_by_file_and_part(ranking):
    rankings = [
        ranking("a", ["x", "y"], file="one.jsonl", kind="#1"),
        ranking("b", ["x", "y"], file="two.jsonl", kind="distance_x"),
        ranking("c", ["x", "y", "z"], file="two.jsonl", kind="#1"),
    ]
    found = drift(rankings, [[1, 2], [3, 5], [6, 7, 8]], "kind")
    assert {row["low"] for row in found["file"]} == {None}  # too few rankings for an interval
    assert {row["label"]: row["value"] for row in found["file"]} == {"one.jsonl": 1.5, "two.jsonl": 29 / 5}
    assert {row["label"]: (row["value"], row["rankings"]) for row in found["kind"]} == {
        "#1": (24 / 5, 2),
        "distance_x": (4.0, 1),
    }
    assert "place in the data" not in found


def test_two_files_of_one_name_are_told_apart(ranking):
    rankings = [ranking(file, ["x", "y"], file=file) for file in ("a/s.jsonl", "b/s.jsonl", "b/t.jsonl")]
    rewards = [[1, 2], [3, 5], [6, 7]]
    found = {row["label"]: row["value"] for row in drift(rankings, rewards, None)["file"]}
    assert found == {"a/s.jsonl": 1.5, "b/s.jsonl": 4.0, "t.jsonl": 6.5}
    assert [own["file"] for own in mistakes(rankings, rewards, 1.0)] == ["b/s.jsonl", "t.jsonl", "a/s.jsonl"]


@pytest.mark.parametrize(("count", "steps", "first"), [(25, 2, 6.0), (100, 10, 4.5), (19, 0, None)])
def test_drift_by_place_has_steps_of_ten_rankings_or_more(count, steps, first, ranking):
    rankings = [ranking(str(i), ["x", "y"]) for i in range(count)]
    rows = drift(rankings, [[i, i] for i in range(count)], None).get("place in the data", [])
    assert [row["label"] for row in rows] == [str(i) for i in range(1, steps + 1)]
    if rows:  # of 25 the first 13 (0 to 12), of 100 the first 10
        assert sum(row["rankings"] for row in rows) == count
        assert rows[0]["value"] == first
        assert rows[0]["low"] < first < rows[0]["high"]


def test_distribution_counts_every_answer_once(two):
    rankings, rewards = two
    answers = read_answers(rankings)
    found = distribution(answers, np.concatenate(rewards))
    assert {kind: sum(own) for kind, own in found["counts"].items()} == {"best": 3, "middle": 1, "worst": 3}
    assert found["mean"] == pytest.approx(16 / 7)
    assert found["within_prompt_sd"] == pytest.approx(((2 + 0.5 + 0.5) / 4) ** 0.5)


def test_rewards_that_fix_no_temperature_are_said_to_and_do_not_stop_the_audit(ranking):
    rankings = [ranking(str(i), ["x", "y"]) for i in range(5)]
    found = calibration(rankings, [[2.0, 1.0]] * 5)
    assert "right order" in found["why_not"]
    assert list(found["stages"]) == ["as they are"]


def test_mistakes_are_the_largest_gaps_one_for_each_prompt(two, ranking):
    rankings, rewards = two
    found = mistakes(rankings, rewards, 0.5)
    # b and c by 1, a by 1 (short below tiny): of equal gaps the later line first; never a pair in the right order
    assert [own["prompt"] for own in found] == ["c", "b", "a"]
    assert found[2]["better"]["text"] == "short"
    assert found[2]["gap_sd"] == 2.0
    more = [*rankings, ranking("a", ["bad", "good"], ranks=[2, 1])]
    assert [own["prompt"] for own in mistakes(more, [*rewards, [9.0, 0.0]], 0.5)] == ["a", "c", "b"]


def test_long_texts_are_cut_and_say_so():
    assert beginning("abc", 3) == "abc"
    assert beginning("ab cd", 3) == "ab … [2 more characters]"


@pytest.mark.skipif(not HUMAN.exists(), reason="the shared data are not there")
def test_starlings_published_scores_give_the_known_facts_of_length():
    rankings, subjects, _ = foreign_subjects([open_data(f"starling:{HUMAN}")], compared=False)
    found = length(rankings, subjects["scores"].rewards, read_answers(rankings))
    assert found["spearman"]["value"] == pytest.approx(0.51, abs=0.005)
    assert (found["longer_better"]["value"], found["longer_better"]["n"]) == (pytest.approx(0.895, abs=5e-4), 627)
    assert (found["shorter_better"]["value"], found["shorter_better"]["n"]) == (pytest.approx(0.653, abs=5e-4), 366)
    assert (found["longer_picked"]["value"], found["longer_picked"]["n"]) == (pytest.approx(688 / 993), 993)
    # the figure known, 69.2 %, is of all 1,000 battles: "a is longer" and "a scores higher" are both true or both false
    alike = [
        (len(own.responses[0]) > len(own.responses[1])) == (a > b)
        for own, (a, b) in zip(rankings, subjects["scores"].rewards, strict=True)
    ]
    assert sum(alike) == 692
