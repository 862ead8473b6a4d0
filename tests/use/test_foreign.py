"""Scores in every form they come in, and what is said where they are missing or no numbers."""

import json

import pytest

from kwise import DataError
from kwise.use.evaluation import foreign_scores, open_data
from kwise.use.foreign import row_scores

ANSWERS = {"answers": [{"answer": "x", "score": 1.5}, {"answer": "y", "score": -2}]}


@pytest.mark.parametrize(
    ("row", "scores"),
    [
        (ANSWERS, [1.5, -2.0]),
        ({"completions": [{"score": 0}, {"score": 3}]}, [0.0, 3.0]),
        ({"chosen_score": 2.5, "rejected_score": 1}, [2.5, 1.0]),
        ({"scores_chosen": 2.5, "scores_rejected": 1}, [2.5, 1.0]),
        ({"score_chosen": [1, 2, 3], "score_rejected": [4, 5, 6]}, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
        ({"chosen_score": [1], "rejected_score": [2, 3, 4]}, [1.0, 2.0, 3.0, 4.0]),
        ({"scores": [3, 1, 2]}, [3.0, 1.0, 2.0]),
        ({"response_a": "x", "response_b": "y", "score_a": 1, "score_b": 2}, [1.0, 2.0]),
        ({"score_a": 1, "score_b": 2, "score_c": 3}, [1.0, 2.0, 3.0]),
    ],
    ids=str,
)
def test_scores_come_in_the_order_of_the_responses(ranking, row, scores):
    right = 3 if "score_chosen" in row else 1
    ranks = [1] * right + [2] * (len(scores) - right)
    assert row_scores(row, ranking(responses=["x"] * len(scores), ranks=ranks)) == scores


@pytest.mark.parametrize(
    ("row", "field", "problem"),
    [
        ({"answers": [{"score": 1}, {}]}, "answers[1].score", "there is no score"),
        ({"answers": [{"score": 1}, {"score": None}]}, "answers[1].score", "a score must be a number, this is null"),
        ({"chosen_score": 1}, "rejected_score", "there is no score"),
        ({"rejected_score": 1}, "chosen_score", "there is no score"),
        ({"chosen_score": 1, "rejected_score": "2"}, "rejected_score", "a score must be a number, this is text"),
        ({"chosen_score": float("nan"), "rejected_score": 1}, "chosen_score", "must be a finite number, this is nan"),
        ({"chosen_score": 1, "rejected_score": float("inf")}, "rejected_score", "must be a finite number, this is inf"),
        ({"chosen_score": 10**400, "rejected_score": 1}, "chosen_score", "must be a finite number, this is 1000"),
        ({"chosen_score": 1e39, "rejected_score": -1e39}, "chosen_score", "must be a finite number, this is 1e+39"),
        ({"scores": [1, True]}, "scores[1]", "a score must be a number, this is true or false"),
        ({"scores": [1, 2, 3]}, "scores", "there are 3 scores for 2 responses"),
        ({"score_a": 1}, "score_b", "there is no score"),
        ({"response_a": "x", "winner": "model_a"}, "score_a", "there is no score"),
        ({"chosen": "x", "rejected": "y"}, "chosen_score", "there is no score; a pair has chosen_score/rejected_score"),
    ],
    ids=str,
)
def test_what_is_no_score_is_told_with_file_line_and_field(ranking, row, field, problem):
    with pytest.raises(DataError) as error:
        row_scores(row, ranking(file="scored.jsonl", line=4))
    assert (error.value.file, error.value.line, error.value.field) == ("scored.jsonl", 4, field)
    assert problem in error.value.problem


@pytest.mark.parametrize("own", [3, ["score one", "b"], [1, 2], [{"text": "x"}]], ids=str)
@pytest.mark.parametrize("column", ["answers", "completions"])
def test_a_column_of_the_users_own_that_holds_no_responses_is_not_asked_for_scores(tmp_path, column, own):
    row = {"chosen": "Human: q\n\nAssistant: x", "rejected": "Human: q\n\nAssistant: y", column: own}
    file = tmp_path / "scored.jsonl"
    file.write_text(json.dumps(row | {"chosen_score": 2.5, "rejected_score": 1}) + "\n")
    ((_, _, scored),) = foreign_scores([open_data(str(file))])
    assert scored.rewards == [[2.5, 1.0]]


def test_an_empty_list_of_scores_is_an_error(ranking):
    with pytest.raises(DataError, match="there are 0 scores for 2 responses"):
        row_scores({"scores": []}, ranking())


def test_scores_on_the_wrong_side_are_not_taken_for_the_others(ranking):
    row = {"chosen_score": [1, 2], "rejected_score": [3]}
    with pytest.raises(DataError, match="field 'chosen_score': there are 2 scores for 1 responses"):
        row_scores(row, ranking(responses=["x"] * 3, ranks=[1, 2, 2]))
