import math

import pytest
import torch
from lines_to_score import CALIBRATION, ROWS, conversations, user, write

from kwise.model.calibrated import Calibration
from kwise.use.score_file import score_file


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


@pytest.mark.parametrize(
    "row",
    ROWS
    + [
        ({"score": 1, "prompt": "ü", "response": "r"}, {}),
        ({"context": "q", "completions": [{"completion": "a"}]}, {}),
        ({"answers": [{"answer": "a"}], "prompt": "q"}, {}),
    ],
)
def test_resume_completes_a_first_line_cut_at_any_byte(model, tmp_path, row):
    source, out = write(tmp_path / "in.jsonl", [row[0]]), tmp_path / "out.jsonl"
    score_file(model, source, str(out))
    whole = out.read_bytes()
    for kept in range(len(whole)):
        out.write_bytes(whole[:kept])
        score_file(model, source, str(out), resume=True)
        assert out.read_bytes() == whole


def test_resume_of_a_finished_file_scores_nothing(model, tmp_path):
    source, out = write(tmp_path / "in.jsonl", conversations(3)), tmp_path / "out.jsonl"
    score_file(model, source, str(out))
    assert score_file(model, source, str(out), resume=True)["written"] == 0


def test_resume_with_an_output_of_another_longer_input_is_refused(model, tmp_path):
    out = tmp_path / "out.jsonl"
    score_file(model, write(tmp_path / "long.jsonl", conversations(5)), str(out))
    with pytest.raises(ValueError, match="output of another input"):
        score_file(model, write(tmp_path / "short.jsonl", conversations(3)), str(out), resume=True)


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


def test_bounds_of_another_c_are_not_gone_on_with(model, tmp_path):
    file, out = write(tmp_path / "in.jsonl", [{"prompt": "q", "responses": ["a", "b"]}] * 70), tmp_path / "out.jsonl"
    score_file(model, file, str(out), c=1.0, choose=True)
    whole = out.read_bytes()
    out.write_bytes(b"".join(whole.splitlines(keepends=True)[:40]))
    with pytest.raises(ValueError, match=r"line 40 of .* scored with another calibration or lower bound"):
        score_file(model, file, str(out), resume=True, c=2.0, choose=True)
    score_file(model, file, str(out), resume=True, c=1.0, choose=True)
    assert out.read_bytes() == whole


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


@pytest.mark.parametrize(
    "before", [b'{"note": 1}\n{"note": 2}', b"notes\nmore", b"\n", b"\xff\n", b"[1]\n", b"notes", b'{"prompt": "else']
)
def test_a_refused_resume_leaves_the_output_as_it_was_to_the_last_byte(model, tmp_path, before):
    source, out = write(tmp_path / "in.jsonl", conversations(5)), tmp_path / "notes.jsonl"
    out.write_bytes(before)
    with pytest.raises(ValueError, match="the output of another input"):
        score_file(model, source, str(out), resume=True)
    assert out.read_bytes() == before
