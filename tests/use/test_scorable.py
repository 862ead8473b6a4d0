import json

import pytest
from lines_to_score import ROWS, assistant, conversations, read, user, write

from kwise import DataError
from kwise.use.scorable import scorable
from kwise.use.score_file import score_file


@pytest.mark.parametrize(("row", "scores"), ROWS)
def test_a_line_gains_its_scores_and_loses_nothing(model, tmp_path, row, scores):
    score_file(model, write(tmp_path / "in.jsonl", [row]), str(tmp_path / "out.jsonl"))
    assert read(tmp_path / "out.jsonl") == [{**row, **scores}]


def test_every_answer_of_a_ranking_gains_a_score_also_without_ranks(model, tmp_path):
    nectar = {
        "prompt": "\n\nHuman: q\n\nAssistant: ",
        "answers": [{"answer": "a b", "rank": 2.0, "model": "m"}, {"answer": "c"}],
    }
    listed = {
        "context": [user("q")],
        "completions": [{"rank": None, "completion": [assistant("a")]}, {"completion": "a b c"}],
    }
    score_file(model, write(tmp_path / "in.jsonl", [nectar, listed]), str(tmp_path / "out.jsonl"))
    first, second = read(tmp_path / "out.jsonl")
    assert first["answers"] == [
        {"answer": "a b", "rank": 2.0, "model": "m", "score": 2.0},
        {"answer": "c", "score": 1.0},
    ]
    assert second["completions"] == [
        {"rank": None, "completion": [assistant("a")], "score": 1.0},
        {"completion": "a b c", "score": 3.0},
    ]


def test_the_answers_to_a_transcript_are_read_as_inside_it(model):
    prompt = "\n\nHuman: q\n\nAssistant:"
    pair = {"chosen": prompt + " a b\n", "rejected": prompt + "c"}
    inside, texts, _ = scorable(pair)
    assert (inside, texts) == ([user("q")], ["a b", "c"])
    assert scorable({"prompt": prompt, "responses": [" a b\n", "c"]})[:2] == (inside, texts)
    assert scorable({"prompt": prompt, "response": " a b\n"})[:2] == (inside, ["a b"])
    assert scorable({"prompt": "q", "response": " a b\n"})[:2] == (inside, [" a b\n"])


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"text": "hello"}, "messages"),
        ({"messages": [user("q")]}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"prompt": "q", "response": None}, "response"),
        ({"prompt": "", "response": "a"}, "prompt"),
        ({"prompt": "\n\nHuman: q\n\nAssistant: ", "answers": []}, "answers"),
    ],
)
def test_a_line_that_cannot_be_scored_names_its_field(model, tmp_path, row, field):
    with pytest.raises(DataError, match=rf"line 2, field '{field}'"):
        score_file(model, write(tmp_path / "in.jsonl", [*conversations(1), row]), str(tmp_path / "out.jsonl"))


def test_a_pair_of_lists_of_one_gains_lists(model, tmp_path):
    row = {"prompt": "q", "chosen": ["a b"], "rejected": ["c"]}
    score_file(model, write(tmp_path / "in.jsonl", [row]), str(tmp_path / "out.jsonl"))
    assert read(tmp_path / "out.jsonl") == [row | {"chosen_score": [2.0], "rejected_score": [1.0]}]


def test_bare_responses_gain_a_list_of_scores(model, tmp_path):
    row = {"prompt": "q", "responses": ["a b", "c", "d e f"], "id": 3}
    score_file(model, write(tmp_path / "in.jsonl", [row]), str(tmp_path / "out.jsonl"))
    assert read(tmp_path / "out.jsonl") == [{**row, "scores": [2.0, 1.0, 3.0]}]


def test_scoring_anew_leaves_nothing_of_an_earlier_scoring(model, tmp_path):
    row = {"prompt": "q", "responses": ["a", "b c"]}
    first, second, third = (tmp_path / f"{i}.jsonl" for i in range(3))
    score_file(model, write(first, [row]), str(second), c=1.0, choose=True)
    score_file(model, str(second), str(third))
    (line,) = read(third)
    assert "score_lower_bound" not in line
    assert "best_index" not in line
    assert line["scores"] == [1, 2]


def test_columns_of_the_users_own_stay(model, tmp_path):
    rows = [
        {"prompt": "q", "response": "a", "best": "human says", "score_c": 9},
        {"prompt": "q", "responses": ["a"], "score": 4},
    ]
    score_file(model, write(tmp_path / "in.jsonl", rows), str(tmp_path / "out.jsonl"))
    assert read(tmp_path / "out.jsonl") == [rows[0] | {"score": 1}, rows[1] | {"scores": [1]}]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "response": "a b"},
        {"prompt": "q", "responses": ["a b"]},
        {"prompt": "q", "chosen": "a b", "rejected": "c"},
        {"prompt": "q", "response_a": "a", "response_b": "b c", "winner": "model_b"},
        {"context": [user("q")], "completions": [{"completion": "a"}, {"completion": "b c"}]},
    ],
)
def test_bounds_of_an_earlier_scoring_go_when_a_file_is_scored_without(model, tmp_path, row):
    first, plain, bounds, again = (tmp_path / f"{i}.jsonl" for i in range(4))
    write(first, [row])
    score_file(model, str(first), str(plain))
    score_file(model, str(first), str(bounds), c=2.0)
    score_file(model, str(bounds), str(again))
    assert read(again) == read(plain) != read(bounds)


def test_an_arena_row_gains_a_score_for_each_side(model, tmp_path):
    sides = {
        f"conversation_{side}": [{"role": "user", "content": "q"}, {"role": "assistant", "content": side}]
        for side in "ab"
    }
    source = write(tmp_path / "in.jsonl", [sides | {"winner": "tie"}])
    score_file(model, source, str(tmp_path / "out"))
    (line,) = map(json.loads, (tmp_path / "out").read_text().splitlines())
    assert [line["score_a"], line["score_b"]] == pytest.approx(model.score("q", ["a", "b"]), abs=1e-5)
    with pytest.raises(DataError, match="there is nothing to choose from"):
        score_file(model, source, str(tmp_path / "best"), choose=True)


def test_lines_whose_own_scores_are_replaced_are_counted(model, tmp_path):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}]
    answers = [{"rank": 1, "completion": "a"}, {"rank": 2, "completion": "b"}]
    rows = [
        {"prompt": "q", "response": "r", "score": {"judge": 5}},
        {"messages": turns, "score": 1.0},
        {"prompt": "q", "responses": ["a", "b"], "scores": [1, 2]},
        {"context": "q", "completions": [answers[0] | {"score": 3}, answers[1]]},
        {"prompt": "q", "chosen": "a", "rejected": "b", "rejected_score": 1},
        {"prompt": "q", "response_a": "a", "response_b": "b", "winner": "tie", "score_b": 1},
        {"prompt": "q", "responses": ["a", "b"], "best_text": "gold"},
        {"prompt": "q", "response": "r", "score_calibration": "mine"},
    ]
    # nothing of these stands where a score goes
    rows += [
        {"prompt": "q", "response": "r", "scores": [1]},
        {"prompt": "q", "chosen": "a", "rejected": "b", "score": 1},
        {"context": "q", "completions": answers, "score": 1},
    ]
    assert score_file(model, write(tmp_path / "in.jsonl", rows), str(tmp_path / "out"))["replaced"] == 8
