import math

import pytest
from lines_to_score import CALIBRATION, ROWS, assistant, conversations, read, user, write

from kwise import DataError
from kwise.model.calibrated import Calibration
from kwise.use.score_file import score_file


def test_a_score_that_is_not_a_number_stops_at_its_line(model, tmp_path, monkeypatch):
    monkeypatch.setattr(type(model), "score_encoded", lambda self, items: iter([[1.0], [float("nan")]]))
    with pytest.raises(DataError, match="line 2: the model's score is NaN"):
        score_file(model, write(tmp_path / "in.jsonl", conversations(2)), str(tmp_path / "out.jsonl"))
    assert len(read(tmp_path / "out.jsonl")) == 1


def test_what_the_template_refuses_names_file_and_line(model, tmp_path):
    model.tokenizer.chat_template = (
        "{% if messages[0]['content'] == 'q1' %}{{ raise_exception('no q1') }}{% endif %}assistant\n"
    )
    with pytest.raises(DataError, match="line 2: cannot be encoded: no q1"):
        score_file(model, write(tmp_path / "in.jsonl", conversations(2)), str(tmp_path / "out.jsonl"))


@pytest.mark.parametrize(("row", "scores"), ROWS)
def test_a_calibrated_score_is_the_calibrated_reward_with_its_record(model, tmp_path, row, scores):
    model.settings.calibration = Calibration(temperature=2.0, centre=1.0)
    score_file(model, write(tmp_path / "in.jsonl", [row]), str(tmp_path / "out.jsonl"), calibrated=True)

    def expected(score):
        return [expected(each) for each in score] if isinstance(score, list) else (score - 1) / 2

    record = {"score_calibration": {"temperature": 2.0, "centre": 1.0, "length_slope": 0.0}}
    assert read(tmp_path / "out.jsonl") == [
        {**row, **{name: expected(score) for name, score in scores.items()}, **record}
    ]


def test_the_length_slope_sees_the_characters_of_the_response(model, tmp_path):
    model.settings.calibration = CALIBRATION
    row = {"prompt": "a long prompt", "chosen": "four words of it", "rejected": "one"}
    score_file(model, write(tmp_path / "in.jsonl", [row]), str(tmp_path / "out.jsonl"), calibrated=True)
    found = read(tmp_path / "out.jsonl")[0]
    assert found["chosen_score"] == pytest.approx((4 - 0.5 * math.log(17) - 1) / 2)
    assert found["rejected_score"] == pytest.approx((1 - 0.5 * math.log(4) - 1) / 2)


def test_a_model_without_calibration_gives_no_calibrated_scores(model, tmp_path):
    with pytest.raises(ValueError, match="not been calibrated: run kwise calibrate"):
        score_file(model, write(tmp_path / "in.jsonl", conversations(2)), str(tmp_path / "out.jsonl"), calibrated=True)
    assert not (tmp_path / "out.jsonl").exists()


def test_plain_scores_of_a_file_with_calibrated_ones_do_not_keep_the_record(model, tmp_path):
    model.settings.calibration = CALIBRATION
    source = write(tmp_path / "in.jsonl", conversations(3))
    score_file(model, source, str(tmp_path / "one.jsonl"), calibrated=True)
    score_file(model, str(tmp_path / "one.jsonl"), str(tmp_path / "two.jsonl"))
    score_file(model, source, str(tmp_path / "plain.jsonl"))
    assert read(tmp_path / "two.jsonl") == read(tmp_path / "plain.jsonl")


CHOICES = [
    ({"prompt": "q", "responses": ["a b", "c", "d e f"]}, {"best_index": 2, "best_text": "d e f"}),
    ({"prompt": "q", "responses": ["a b", "c d"]}, {"best_index": 0, "best_text": "a b"}),
    ({"context": [user("q")], "completions": [{"completion": "a"}, {"completion": "b c"}]}, {"best_index": 1}),
    ({"prompt": "\n\nHuman: q\n\nAssistant: ", "answers": [{"answer": "b c"}, {"answer": "a"}]}, {"best_index": 0}),
]


@pytest.mark.parametrize(("row", "choice"), CHOICES)
def test_the_best_response_has_the_highest_score_and_of_equals_it_is_the_first(model, tmp_path, row, choice):
    score_file(model, write(tmp_path / "in.jsonl", [row]), str(tmp_path / "out.jsonl"), choose=True)
    (line,) = read(tmp_path / "out.jsonl")
    assert line | choice == line
    assert set(row) <= set(line)


def test_the_lower_bound_chooses_the_surest_where_the_score_chooses_the_highest(model, tmp_path):
    # scores 1, 2, 3, 4 and errors 1/4, 1, 9/4, 4: less one error that is 3/4, 1, 3/4, 0
    row = {"prompt": "q", "responses": ["a", "a b", "a b c", "a b c d"]}
    score_file(model, write(tmp_path / "in.jsonl", [row]), str(tmp_path / "out.jsonl"), c=1.0, choose=True)
    (line,) = read(tmp_path / "out.jsonl")
    assert line["scores"] == [1, 2, 3, 4]
    assert line["score_errors"] == [0.25, 1, 2.25, 4]
    assert line["scores_lower"] == [0.75, 1, 0.75, 0]
    assert (line["best_index"], line["best_text"], line["score_lower_bound"]) == (1, "a b", 1.0)


def test_errors_and_bounds_stand_beside_every_score(model, tmp_path):
    rows = [
        {"prompt": "q", "response": "a b"},
        {"prompt": "q", "chosen": "a b", "rejected": "c"},
        {"context": [user("q")], "completions": [{"completion": "a", "rank": 1}, {"completion": "b c", "rank": 2}]},
    ]
    score_file(model, write(tmp_path / "in.jsonl", rows), str(tmp_path / "out.jsonl"), c=2.0)
    one, pair, ranking = read(tmp_path / "out.jsonl")
    assert one == rows[0] | {"score": 2, "score_error": 1, "score_lower": 0, "score_lower_bound": 2}
    sides = {"chosen_score": 2, "chosen_score_error": 1, "chosen_score_lower": 0}
    others = {"rejected_score": 1, "rejected_score_error": 0.25, "rejected_score_lower": 0.5}
    assert pair == rows[1] | sides | others | {"score_lower_bound": 2}
    assert ranking["completions"][0] == {
        "completion": "a", "rank": 1, "score": 1, "score_error": 0.25, "score_lower": 0.5
    }  # fmt: skip


def test_errors_of_calibrated_scores_are_in_calibrated_nats(model, tmp_path):
    model.settings.calibration = Calibration(temperature=2.0, centre=1.0)
    row = {"prompt": "q", "response": "a b"}
    score_file(model, write(tmp_path / "in.jsonl", [row]), str(tmp_path / "out.jsonl"), calibrated=True, c=1.0)
    (line,) = read(tmp_path / "out.jsonl")
    assert (line["score"], line["score_error"], line["score_lower"]) == (0.5, 0.5, 0.0)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "response": "a"},
        {"prompt": "q", "responses": ["a"]},
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "response_a": "a", "response_b": "b", "winner": "tie"},
        {"messages": [user("q"), assistant("a")]},
    ],
)
def test_a_line_with_nothing_to_choose_from_is_named(model, tmp_path, row):
    file = write(tmp_path / "in.jsonl", [{"prompt": "q", "responses": ["a", "b"]}, row])
    with pytest.raises(DataError, match=r"line 2, field 'responses': there is nothing to choose from"):
        score_file(model, file, str(tmp_path / "out.jsonl"), choose=True)
    assert len(read(tmp_path / "out.jsonl")) == 1


@pytest.mark.parametrize("c", [-1.0, math.nan, math.inf])
def test_a_bound_above_the_score_is_refused(model, tmp_path, c):
    file = write(tmp_path / "in.jsonl", [{"prompt": "q", "responses": ["a", "b"]}])
    with pytest.raises(ValueError, match="c >= 0"):
        score_file(model, file, str(tmp_path / "out.jsonl"), c=c)
