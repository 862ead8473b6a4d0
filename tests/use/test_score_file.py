import json
import math

import pytest
import torch
from stub import stub_reward_model

from kwise import DataError
from kwise.model.calibrated import Calibration
from kwise.use.score_file import scorable, score_file


@pytest.fixture
def model(tokenizer):
    return stub_reward_model(tokenizer)


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


ROWS = [
    ({"messages": [user("q"), assistant("one two")], "id": 7}, {"score": 2.0}),
    ({"prompt": "q", "response": "a b c"}, {"score": 3.0}),
    ({"prompt": [user("q"), assistant("x"), user("r")], "response": "a"}, {"score": 1.0}),
    ({"prompt": "\n\nHuman: q\n\nAssistant: ", "response": "a b"}, {"score": 2.0}),
    ({"prompt": "q", "chosen": "a b", "rejected": "c"}, {"chosen_score": 2.0, "rejected_score": 1.0}),
    (
        {"chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b c")]},
        {"chosen_score": 1.0, "rejected_score": 2.0},
    ),
    (
        {"prompt": "q", "chosen": ["a", "b c"], "rejected": ["d e f"]},
        {"chosen_score": [1.0, 2.0], "rejected_score": [3.0]},
    ),
    (
        {"prompt": "q", "response_a": "a", "response_b": "b c", "winner": "model_b"},
        {"score_a": 1.0, "score_b": 2.0},
    ),
]


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


def conversations(num):
    return [{"prompt": f"q{i}", "response": " ".join("x" * (1 + i % 7)), "id": i} for i in range(num)]


def test_order_is_kept_over_many_lines(model, tmp_path):
    counts = score_file(model, write(tmp_path / "in.jsonl", conversations(200)), str(tmp_path / "out.jsonl"))
    assert counts["written"] == 200
    assert [(row["id"], row["score"]) for row in read(tmp_path / "out.jsonl")] == [(i, 1 + i % 7) for i in range(200)]


@pytest.mark.parametrize("bytes_kept", [0, 1, 60, 500, 5000, 11000])
def test_resume_completes_a_file_cut_anywhere_without_loss_or_repetition(model, tmp_path, bytes_kept):
    source, out = write(tmp_path / "in.jsonl", conversations(200)), tmp_path / "out.jsonl"
    score_file(model, source, str(out))
    whole = out.read_bytes()
    assert len(whole) > 11000
    out.write_bytes(whole[:bytes_kept])
    counts = score_file(model, source, str(out), resume=True)
    assert out.read_bytes() == whole
    assert counts["kept"] == whole[:bytes_kept].count(b"\n")
    assert counts["kept"] + counts["written"] == 200


def test_resume_of_a_finished_file_scores_nothing(model, tmp_path):
    source, out = write(tmp_path / "in.jsonl", conversations(3)), tmp_path / "out.jsonl"
    score_file(model, source, str(out))
    assert score_file(model, source, str(out), resume=True)["written"] == 0


def test_resume_with_an_output_of_another_longer_input_is_refused(model, tmp_path):
    out = tmp_path / "out.jsonl"
    score_file(model, write(tmp_path / "long.jsonl", conversations(5)), str(out))
    with pytest.raises(ValueError, match="output of another input"):
        score_file(model, write(tmp_path / "short.jsonl", conversations(3)), str(out), resume=True)


def test_an_existing_output_is_not_overwritten(model, tmp_path):
    (tmp_path / "out.jsonl").write_text("precious\n")
    with pytest.raises(FileExistsError):
        score_file(model, write(tmp_path / "in.jsonl", conversations(1)), str(tmp_path / "out.jsonl"))
    assert (tmp_path / "out.jsonl").read_text() == "precious\n"


def test_a_bad_line_is_named_and_what_came_before_stays(model, tmp_path):
    rows = [*conversations(6), '{"prompt": "q", "resp', *conversations(2)]
    with pytest.raises(DataError, match=r"in\.jsonl, line 7: not valid JSON"):
        score_file(model, write(tmp_path / "in.jsonl", rows), str(tmp_path / "out.jsonl"))
    assert [row["id"] for row in read(tmp_path / "out.jsonl")] == list(range(6))


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


def test_shortened_responses_are_counted(model, tmp_path):
    model.encoder = type(model.encoder)(model.tokenizer, max_length=16)
    rows = [{"prompt": "q", "response": "word " * 50}, {"prompt": "q", "chosen": "a " * 60, "rejected": "b " * 60}]
    assert score_file(model, write(tmp_path / "in.jsonl", rows), str(tmp_path / "out.jsonl"))["shortened"] == 3


def test_resume_onto_the_output_of_another_input_of_the_same_length_is_refused(model, tmp_path):
    out = tmp_path / "out.jsonl"
    score_file(model, write(tmp_path / "one.jsonl", conversations(5)), str(out))
    other = [row | {"prompt": "other"} for row in conversations(9)]
    before = out.read_bytes()
    with pytest.raises(ValueError, match=r"line 5 of .* is not line 5"):
        score_file(model, write(tmp_path / "two.jsonl", other), str(out), resume=True)
    assert out.read_bytes() == before


def test_resume_knows_a_ranking_by_its_answers(model, tmp_path):
    rows = [{"context": [user(f"q{i}")], "completions": [{"completion": "a"}, {"completion": "b c"}]} for i in range(3)]
    source, out = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    score_file(model, source, str(out))
    whole = out.read_bytes()
    out.write_bytes(b"".join(whole.splitlines(keepends=True)[:2]))
    score_file(model, source, str(out), resume=True)
    assert out.read_bytes() == whole


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n", '{"text": 1}\n'])
def test_an_input_that_cannot_be_read_at_all_leaves_no_output_behind(model, tmp_path, content):
    (tmp_path / "in.jsonl").write_text(content)
    with pytest.raises(DataError):
        score_file(model, str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"))
    assert not (tmp_path / "out.jsonl").exists()


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


def test_a_pair_of_lists_of_one_gains_lists(model, tmp_path):
    row = {"prompt": "q", "chosen": ["a b"], "rejected": ["c"]}
    score_file(model, write(tmp_path / "in.jsonl", [row]), str(tmp_path / "out.jsonl"))
    assert read(tmp_path / "out.jsonl") == [row | {"chosen_score": [2.0], "rejected_score": [1.0]}]


CALIBRATION = Calibration(temperature=2.0, centre=1.0, length_slope=0.5)


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


@pytest.mark.parametrize("other", [None, Calibration(temperature=2.5, centre=1.0, length_slope=0.5)], ids=str)
@pytest.mark.parametrize("swapped", [False, True])
def test_resume_with_another_calibration_is_refused(model, tmp_path, other, swapped):
    source, out = write(tmp_path / "in.jsonl", conversations(90)), tmp_path / "out.jsonl"
    first, second = (other, CALIBRATION) if swapped else (CALIBRATION, other)
    model.settings.calibration = first
    score_file(model, source, str(out), calibrated=first is not None)
    whole = out.read_bytes()
    out.write_bytes(part := b"".join(whole.splitlines(keepends=True)[:70]))
    model.settings.calibration = second
    with pytest.raises(ValueError, match=r"line 70 of .* another calibration"):
        score_file(model, source, str(out), resume=True, calibrated=second is not None)
    assert out.read_bytes() == part
    model.settings.calibration = first
    score_file(model, source, str(out), resume=True, calibrated=first is not None)
    assert out.read_bytes() == whole


def test_plain_scores_of_a_file_with_calibrated_ones_do_not_keep_the_record(model, tmp_path):
    model.settings.calibration = CALIBRATION
    source = write(tmp_path / "in.jsonl", conversations(3))
    score_file(model, source, str(tmp_path / "one.jsonl"), calibrated=True)
    score_file(model, str(tmp_path / "one.jsonl"), str(tmp_path / "two.jsonl"))
    score_file(model, source, str(tmp_path / "plain.jsonl"))
    assert read(tmp_path / "two.jsonl") == read(tmp_path / "plain.jsonl")


def test_bare_responses_gain_a_list_of_scores(model, tmp_path):
    row = {"prompt": "q", "responses": ["a b", "c", "d e f"], "id": 3}
    score_file(model, write(tmp_path / "in.jsonl", [row]), str(tmp_path / "out.jsonl"))
    assert read(tmp_path / "out.jsonl") == [{**row, "scores": [2.0, 1.0, 3.0]}]


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


def test_bounds_of_another_c_are_not_gone_on_with(model, tmp_path):
    file, out = write(tmp_path / "in.jsonl", [{"prompt": "q", "responses": ["a", "b"]}] * 70), tmp_path / "out.jsonl"
    score_file(model, file, str(out), c=1.0, choose=True)
    whole = out.read_bytes()
    out.write_bytes(b"".join(whole.splitlines(keepends=True)[:40]))
    with pytest.raises(ValueError, match=r"line 40 of .* scored with another calibration or lower bound"):
        score_file(model, file, str(out), resume=True, c=2.0, choose=True)
    score_file(model, file, str(out), resume=True, c=1.0, choose=True)
    assert out.read_bytes() == whole


def test_scoring_anew_leaves_nothing_of_an_earlier_scoring(model, tmp_path):
    row = {"prompt": "q", "responses": ["a", "b c"]}
    first, second, third = (tmp_path / f"{i}.jsonl" for i in range(3))
    score_file(model, write(first, [row]), str(second), c=1.0, choose=True)
    score_file(model, str(second), str(third))
    (line,) = read(third)
    assert "score_lower_bound" not in line
    assert "best_index" not in line
    assert line["scores"] == [1, 2]


@pytest.mark.parametrize("c", [-1.0, math.nan, math.inf])
def test_a_bound_above_the_score_is_refused(model, tmp_path, c):
    file = write(tmp_path / "in.jsonl", [{"prompt": "q", "responses": ["a", "b"]}])
    with pytest.raises(ValueError, match="c >= 0"):
        score_file(model, file, str(tmp_path / "out.jsonl"), c=c)


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


def test_best_does_not_go_on_with_what_score_wrote(model, tmp_path):
    file, out = write(tmp_path / "in.jsonl", [{"prompt": "q", "responses": ["a", "b"]}] * 3), tmp_path / "out.jsonl"
    score_file(model, file, str(out))
    with pytest.raises(ValueError, match=r"was written by 'kwise score'"):
        score_file(model, file, str(out), resume=True, choose=True)


LINES = [
    {"prompt": "q", "response": "a b"},
    {"prompt": "q", "responses": ["a b", "c"]},
    {"prompt": "q", "chosen": "a b", "rejected": "c"},
    {"prompt": "q", "response_a": "a", "response_b": "b c", "winner": "model_b"},
    {"context": [user("q")], "completions": [{"completion": "a"}, {"completion": "b c"}]},
    {"prompt": "\n\nHuman: q\n\nAssistant: ", "answers": [{"answer": "a"}, {"answer": "b c"}]},
]


def moved_by(model, monkeypatch, nats):
    """From here on another model: its rewards are higher by so many nats."""
    score = type(model).score_encoded
    monkeypatch.setattr(
        type(model), "score_encoded", lambda self, items: ([each + nats for each in own] for own in score(self, items))
    )


@pytest.mark.parametrize("row", LINES)
@pytest.mark.parametrize(
    ("dtype", "nats", "alike"),
    [
        (torch.float32, 2e-3, False),
        (torch.float32, 5e-4, True),
        (torch.bfloat16, 0.2, False),
        (torch.bfloat16, 0.1, True),
    ],
    ids=str,
)
def test_resume_goes_on_only_with_scores_that_this_model_gives(model, tmp_path, monkeypatch, row, dtype, nats, alike):
    source, out = write(tmp_path / "in.jsonl", [row] * 5), tmp_path / "out.jsonl"
    score_file(model, source, str(out))
    out.write_bytes(part := b"".join(out.read_bytes().splitlines(keepends=True)[:3]))
    monkeypatch.setattr(type(model.model), "dtype", dtype)
    moved_by(model, monkeypatch, nats)
    if alike:
        assert score_file(model, source, str(out), resume=True) == {
            "written": 2,
            "kept": 3,
            "shortened": 0,
            "replaced": 0,
        }
    else:
        with pytest.raises(ValueError, match=r"line 3 of .* has other scores than this model gives it"):
            score_file(model, source, str(out), resume=True)
        assert out.read_bytes() == part


@pytest.mark.parametrize(("temperature", "alike"), [(0.01, True), (100.0, False)])
def test_calibrated_scores_are_compared_in_nats_of_the_reward(model, tmp_path, monkeypatch, temperature, alike):
    model.settings.calibration = Calibration(temperature=temperature, centre=1.0)
    source, out = write(tmp_path / "in.jsonl", conversations(5)), tmp_path / "out.jsonl"
    score_file(model, source, str(out), calibrated=True)
    moved_by(model, monkeypatch, 5e-4 if alike else 2e-3)
    if alike:
        assert score_file(model, source, str(out), resume=True, calibrated=True)["kept"] == 5
    else:
        with pytest.raises(ValueError, match="has other scores"):
            score_file(model, source, str(out), resume=True, calibrated=True)


def test_bounds_of_another_uncertainty_are_not_gone_on_with(model, tmp_path, monkeypatch):
    source, out = write(tmp_path / "in.jsonl", conversations(5)), tmp_path / "out.jsonl"
    score_file(model, source, str(out), c=1.0)
    monkeypatch.setattr(
        type(model),
        "score_with_errors",
        lambda self, items: ((own, [0.0] * len(own)) for own in self.score_encoded(items)),
    )
    with pytest.raises(ValueError, match="has other scores"):
        score_file(model, source, str(out), resume=True, c=1.0)


def test_resume_knows_its_own_output_also_where_a_column_is_nan(model, tmp_path):
    rows = [row | {"weight": math.nan, "more": {"x": [math.inf, math.nan]}} for row in conversations(5)]
    source, out = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    score_file(model, source, str(out))
    whole = out.read_bytes()
    out.write_bytes(b"".join(whole.splitlines(keepends=True)[:3]))
    assert score_file(model, source, str(out), resume=True)["kept"] == 3
    assert out.read_bytes() == whole


def test_a_second_writer_of_one_output_is_refused_and_the_first_goes_on(model, tmp_path):
    source, out = (
        write(tmp_path / "in.jsonl", [{"prompt": "q", "response": str(i)} for i in range(70)]),
        tmp_path / "out",
    )
    refused = []

    def begin_again(lines):
        with pytest.raises(ValueError, match=f"another process is writing {out}"):
            score_file(model, source, str(out), resume=True)
        refused.append(lines)

    score_file(model, source, str(out), progress=begin_again)
    assert refused == [64, 70] and len(out.read_text().splitlines()) == 70
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("out")) == ["out"]


def test_an_output_in_a_folder_that_is_not_there_makes_none(model, tmp_path):
    source = write(tmp_path / "in.jsonl", [{"prompt": "q", "response": "r"}])
    with pytest.raises(FileNotFoundError, match="none is no folder to write out into"):
        score_file(model, source, str(tmp_path / "none" / "out"))
    assert not (tmp_path / "none").exists()


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
    ]
    # nothing of these stands where a score goes
    rows += [
        {"prompt": "q", "response": "r", "scores": [1]},
        {"prompt": "q", "chosen": "a", "rejected": "b", "score": 1},
        {"context": "q", "completions": answers, "score": 1},
    ]
    assert score_file(model, write(tmp_path / "in.jsonl", rows), str(tmp_path / "out"))["replaced"] == 6
