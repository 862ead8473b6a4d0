"""RewardBench 2: best of four, the ties rule against an independent account of it, and published averages."""

import json
import math

import numpy as np
import pytest

from kwise import DataError
from kwise.use.evaluation import foreign_scores, measure, open_data
from kwise.use.suites.rewardbench2 import SUITE, TIES_WEIGHTS

# arXiv 2506.01937, table 3: average, then Factuality, Precise IF, Math, Safety, Focus, Ties
PAPER = {
    "QRM-Gemma-2-27B": (76.7, 78.5, 37.2, 69.9, 95.8, 95.4, 83.2),
    "INF-ORM-Llama3.1-70B": (76.5, 74.1, 41.9, 69.9, 96.4, 90.3, 86.2),
    "Llama-3.1-70B-Instruct-RM-RB2": (76.1, 81.3, 41.9, 69.9, 88.4, 86.5, 88.3),
    "Skywork-Reward-Gemma-2-27B": (75.8, 73.7, 40.3, 70.5, 94.2, 93.2, 82.6),
    "URM-LLaMa-3.1-8B": (73.9, 68.8, 45.0, 63.9, 91.8, 97.6, 76.5),
    "ArmoRM-Llama3-8B-v0.1": (66.5, 65.7, 41.9, 66.1, 82.2, 76.6, 66.3),
}


@pytest.mark.parametrize("model", PAPER)
def test_published_subset_scores_give_the_published_average(model):
    average, *subsets, ties = PAPER[model]
    means = dict(zip(("Factuality", "Precise IF", "Math", "Safety", "Focus"), subsets, strict=True))
    # what the five parts of ties must add up to: any such parts do
    means |= dict.fromkeys(TIES_WEIGHTS, ties / sum(TIES_WEIGHTS.values()))
    assert sum(w * means[name] for name, w in SUITE.figures["overall"].items()) == pytest.approx(average, abs=0.06)


def row(subset, scores, right=1, id_=None):
    return {
        "id": id_ or f"{subset}{scores}",
        "prompt": f"{subset} {id_} {scores}",
        "chosen": [f"right {k}" for k in range(right)],
        "rejected": [f"wrong {k}" for k in range(len(scores) - right)],
        "num_correct": right,
        "num_incorrect": len(scores) - right,
        "total_completions": len(scores),
        "subset": subset,
        "scores": scores,
    }


def figures(tmp_path, rows):
    (tmp_path / "test-00000-of-00001.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    [(_, data, scored)] = foreign_scores([open_data(f"rewardbench2:{tmp_path}")])
    return {name: draws.metric() for name, draws in measure(data, scored)["all"].items()}


def test_best_of_four_shares_a_highest_score(tmp_path):
    rows = [
        row("Math", [3, 1, 2, 0]),
        row("Math", [3, 3, 2, 0]),
        row("Math", [1, 1, 1, 1]),
        row("Math", [1, 3, 3, 0]),
        row("Focus", [0, 1, 2, 3]),
    ]
    found = figures(tmp_path, rows)
    assert found["Math"].value == pytest.approx((1 + 1 / 2 + 1 / 4 + 0) / 4)
    assert found["Focus"].value == 0
    assert found["overall"].value is None


def test_ties_by_hand(tmp_path):
    """Prompt 1: reference gap 3, tied gap 2 and spread 1. Prompt 2: reference gap -1, tied gap 2 and spread 1."""
    rows = [
        row("Ties", [4, 1, 0], 1, "ref:1"),
        row("Ties", [6, 5, 3, 1], 2, "tied:1"),
        row("Ties", [0, 1], 1, "ref:2"),
        row("Ties", [6, 5, 3], 2, "tied:2"),
    ]
    found = figures(tmp_path, rows)
    parts = {
        "ties reference accuracy": 1 / 2,
        "ties tied accuracy": 1,
        "ties margin": 1,
        "ties margin hard": 1 / 2,
        "ties margin score": (math.tanh(2 - 1) + math.tanh(-1 - 1)) / 2,
    }
    for name, value in parts.items():
        assert found[name].value == pytest.approx(value), name
    ties = 0.3 * 1 + 0.3 * 0.5 + 0.2 * 1 + 0.2 * 0.5 + 0.01 * (math.tanh(1) + math.tanh(-2)) / 2
    assert found["Ties"].value == pytest.approx(ties)


def account_of_ties(rows):
    """The published rule told once more, on whole arrays."""
    by_id = {each["id"]: each for each in rows}
    numbers = sorted({each["id"].split(":")[1] for each in rows})

    def gap(each):
        return min(each["scores"][: each["num_correct"]]) - max(each["scores"][each["num_correct"] :])

    reference = np.array([gap(by_id[f"ref:{n}"]) for n in numbers], dtype=float)
    tied = np.array([gap(by_id[f"tied:{n}"]) for n in numbers], dtype=float)
    spread = np.array(
        [np.ptp(by_id[f"tied:{n}"]["scores"][: by_id[f"tied:{n}"]["num_correct"]]) for n in numbers], float
    )
    least = np.minimum(reference, tied)
    with np.errstate(divide="ignore", invalid="ignore"):
        score = np.nan_to_num(np.tanh(least / spread - 1), nan=0.0)
    shares = (tied > 0).mean(), (reference > 0).mean(), (tied > spread).mean(), (least > spread).mean(), score.mean()
    return sum(weight * share for weight, share in zip((0.3, 0.3, 0.2, 0.2, 0.01), shares, strict=True))


@pytest.mark.parametrize("seed", range(4))
def test_ties_of_random_scores_with_many_equal_ones(tmp_path, seed):
    rng = np.random.default_rng(seed)
    rows = []
    for n in range(30):
        rows.append(row("Ties", rng.integers(0, 4, 4).tolist(), 1, f"ref:{n}"))
        right = int(rng.integers(2, 4))
        rows.append(row("Ties", rng.integers(0, 4, right + 2).tolist(), right, f"tied:{n}"))
    assert figures(tmp_path, rows)["Ties"].value == pytest.approx(account_of_ties(rows))


def test_the_two_rows_of_a_tie_are_drawn_together(tmp_path):
    """Of two ties a sample is the first twice, both, or the second twice: the interval's ends are each alone."""
    ties = [
        [row("Ties", [4, 1, 0], 1, "ref:1"), row("Ties", [6, 5, 3], 2, "tied:1")],
        [row("Ties", [0, 1, 2], 1, "ref:2"), row("Ties", [6, 1, 3], 2, "tied:2")],
    ]
    alone = [figures(tmp_path, each)["Ties"] for each in ties]
    assert all(each.low is None for each in alone), "one tie is one prompt"
    both = figures(tmp_path, ties[0] + ties[1])["Ties"]
    assert [both.low, both.high] == pytest.approx(sorted(each.value for each in alone))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row("Style", [1, 0]), "field 'subset': must be one of Factuality"),
        (row("Math", [1, 0, 0], right=2), "field 'chosen': must hold one response, this has 2"),
        (row("Ties", [1, 0], 1, "1"), "field 'id': of a tie must be ref:NUMBER or tied:NUMBER"),
        (row("Ties", [1, 0], 1, "tied:1"), "field 'chosen': a tie must hold at least two right answers"),
    ],
    ids=str,
)
def test_rows_that_are_none_of_its_are_refused(tmp_path, bad, message):
    with pytest.raises(DataError, match=message):
        figures(tmp_path, [bad])


def test_a_tie_that_comes_twice_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"line 2, field 'id': this tie is there twice: ref:1"):
        figures(tmp_path, [row("Ties", [1, 0], 1, "ref:1"), row("Ties", [2, 0], 1, "ref:1")])
