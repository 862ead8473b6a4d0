"""Starling's suites: the authors' rules by hand, and their model's published figures from its published scores."""

import gzip
import json
import math
from pathlib import Path

import pytest

from kwise import DataError
from kwise.use.evaluation import LONGER, foreign_scores, measure, open_data

SHARED = Path(__file__).parents[3] / ".." / "shared" / "data" / "starling" / "suites"


def row(columns, scores, texts=("one", "two", "three")):
    sides = "abc"[: len(scores)]
    named = {f"response_{side}": text for side, text in zip(sides, texts, strict=False)}
    return (
        {"prompt": f"q{scores}{columns}"}
        | named
        | {f"score_{s}": v for s, v in zip(sides, scores, strict=True)}
        | columns
    )


ROWS = {
    # the winner scores higher, does not, and of equal scores a is taken
    "preference_benchmark": [
        row({"winner": "model_a"}, (2, 1)),
        row({"winner": "model_b"}, (2, 1)),
        row({"winner": "model_a"}, (1, 1)),
        row({"winner": "model_b"}, (1, 1)),
    ],
    "pku_benchmark_answers": [row({"safer_response_id": 1}, (0, 3)), row({"safer_response_id": 0}, (0, 3))],
    # a correct, b false, c best: (yes, yes, yes), (no, no, rounded equal so yes), a == c: (yes, yes, yes)
    "truthful_qa_benchmark": [
        row({}, (2, 1, 3)),
        row({}, (1.004, 2, 1.0), ("x", "y", "z")),
        row({}, (2, 1, 2), ("x", "y", "x")),
    ],
    "verbose_benchmark": [row({}, (1, 2)), row({}, (1, 1))],
}


@pytest.fixture
def folder(tmp_path):
    """As in the authors' repository: JSON arrays."""
    for name, rows in ROWS.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(rows, indent=1))
    return tmp_path


def figures(word):
    [(_, data, scored)] = foreign_scores([open_data(word)])
    return {split: {name: d.metric() for name, d in own.items()} for split, own in measure(data, scored).items()}


def test_every_rule_by_hand(folder):
    found = {name: (metric.value, metric.n) for name, metric in figures(f"starling:{folder}")["all"].items()}
    assert found["truth_correct_over_false"] == (pytest.approx(2 / 3), 3)
    assert found["truth_best_over_false"] == (pytest.approx(2 / 3), 3)
    assert found["truth_best_over_correct"] == (pytest.approx(1), 3)
    assert found["truth_best_over_correct_distinct"] == (pytest.approx(1 / 2), 2)
    assert found["truth"] == (pytest.approx((2 / 3 + 2 / 3 + 1) / 3), 9)
    assert found["truth_corrected"][0] == pytest.approx((2 / 3 + 2 / 3 + 1 / 2) / 3)
    assert found["human"] == (pytest.approx(1 / 2), 4)
    assert found["safety"] == (pytest.approx(1 / 2), 2)
    assert found["verbose"] == (pytest.approx(1 / 2), 2)
    assert found["average"][0] == pytest.approx((1 / 2 + 1 / 2 + (2 / 3 + 2 / 3 + 1) / 3) / 3)
    assert found["human_nll"][0] == pytest.approx(
        (math.log(1 + math.exp(-1)) + math.log(1 + math.e) + 2 * math.log(2)) / 4
    )
    assert found["safety_nll"][0] == pytest.approx((math.log(1 + math.exp(-3)) + math.log(1 + math.exp(3))) / 2)


def test_the_longer_answer_is_measured_by_the_same_rules(tmp_path):
    rows = [
        row({"winner": "model_a"}, (0, 9), ("longer", "short")),
        row({"winner": "model_b"}, (0, 9), ("longer", "x")),
    ]
    (tmp_path / "human.json").write_text(json.dumps(rows))
    found = figures(f"starling:{tmp_path}")
    assert (found[LONGER]["human"].value, found["all"]["human"].value) == (0.5, 0.5)
    assert "human_nll" not in found[LONGER]


def test_a_file_without_scores_is_left_out_and_told(folder):
    bare = [{"prompt": "q", "response_a": "long", "response_b": "b"}]
    (folder / "verbose_benchmark.json").write_text(json.dumps(bare))
    [(_, data, scored)] = foreign_scores([open_data(f"starling:{folder}")])
    assert data.notes == (f"{folder / 'verbose_benchmark.json'} has no scores and is left out",)
    found = measure(data, scored)["all"]
    assert found["verbose"].value is None
    assert found["human"].value == 0.5


def test_one_missing_score_among_others_is_an_error(folder):
    rows = [dict(each) for each in ROWS["preference_benchmark"]]
    del rows[2]["score_b"]
    (folder / "preference_benchmark.json").write_text(json.dumps(rows))
    with pytest.raises(DataError, match=r"preference_benchmark.json, line 3, field 'score_b': there is no score"):
        figures(f"starling:{folder}")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"winner": "tie"}, "field 'winner': must be model_a or model_b"),
        ({"safer_response_id": 2}, "field 'safer_response_id': must be 0 or 1"),
        ({"response_a": None}, "field 'response_a': must be text"),
    ],
)
def test_rows_that_are_no_such_suite_are_refused(tmp_path, columns, message):
    (tmp_path / "x.json").write_text(json.dumps([row(columns, (1, 2)) | columns]))
    with pytest.raises(DataError, match=message):
        open_data(f"starling:{tmp_path}")


def test_without_files_it_says_where_they_are():
    with pytest.raises(ValueError, match=r"github.com/efrick2002/Starling.*starling:FOLDER"):
        open_data("starling")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the published scores of Starling-RM-34B are not here")
def test_published_figures_of_starling_34b_follow_from_its_published_scores():
    found = {name: metric.value for name, metric in figures(f"starling:{SHARED}")["all"].items()}
    for name, published in {"human": 0.807, "safety": 0.782, "truth": 0.712, "average": 0.767}.items():
        assert round(found[name], 3) == published, name
    assert round(found["truth_best_over_correct_distinct"], 3) == 0.586
    with gzip.open(SHARED / "truth.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    distinct = [each for each in rows if each["response_a"] != each["response_c"]]
    assert len(rows) - len(distinct) == 70
    by_hand = [
        sum(each["score_a"] > each["score_b"] for each in rows) / len(rows),
        sum(each["score_c"] > each["score_b"] for each in rows) / len(rows),
        sum(each["score_c"] > each["score_a"] for each in distinct) / len(distinct),
    ]
    assert found["truth_corrected"] == pytest.approx(sum(by_hand) / 3)
    assert round(found["human_nll"], 3) == 0.468
    assert round(found["truth_nll"], 3) == 1.766


def test_a_pair_without_a_label_is_verbose_only_where_its_file_says_so(tmp_path):
    """A battle that lost its winner must not be counted as a verbose pair, in which b is the better one."""
    rows = json.dumps([{"prompt": "q", "response_a": "x", "response_b": "y"}])
    own = ("verbose_benchmark.json", "A-model_verbose_benchmark.json")  # data and results, as the authors name them
    for name in (*own, "preference_benchmark.json"):
        (tmp_path / name).write_text(rows)
    for name in own:
        (read,) = open_data(f"starling:{tmp_path / name}").rankings
        assert (read.columns["part"], read.ranks) == ("verbose", [2.0, 1.0])
    for place in (tmp_path, tmp_path / "preference_benchmark.json"):
        with pytest.raises(DataError, match="line 1, field 'winner': there is neither this nor safer_response_id"):
            open_data(f"starling:{place}")
