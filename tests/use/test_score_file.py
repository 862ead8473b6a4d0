import os

import pytest
from lines_to_score import conversations, read, write

from kwise import DataError
from kwise.use.score_file import score_file


def test_order_is_kept_over_many_lines(model, tmp_path):
    counts = score_file(model, write(tmp_path / "in.jsonl", conversations(200)), str(tmp_path / "out.jsonl"))
    assert counts["written"] == 200
    assert [(row["id"], row["score"]) for row in read(tmp_path / "out.jsonl")] == [(i, 1 + i % 7) for i in range(200)]


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


def test_shortened_responses_are_counted(model, tmp_path):
    model.encoder = type(model.encoder)(model.tokenizer, max_length=16)
    rows = [{"prompt": "q", "response": "word " * 50}, {"prompt": "q", "chosen": "a " * 60, "rejected": "b " * 60}]
    assert score_file(model, write(tmp_path / "in.jsonl", rows), str(tmp_path / "out.jsonl"))["shortened"] == 3


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n", '{"text": 1}\n'])
def test_an_input_that_cannot_be_read_at_all_leaves_no_output_behind(model, tmp_path, content):
    (tmp_path / "in.jsonl").write_text(content)
    with pytest.raises(DataError):
        score_file(model, str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"))
    assert not (tmp_path / "out.jsonl").exists()


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


def test_an_output_that_is_no_plain_file_is_refused(model, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    source = write(tmp_path / "in.jsonl", conversations(1))
    for out in (tmp_path / "pipe", tmp_path):
        with pytest.raises(ValueError, match=f"{out} is no plain file"):
            score_file(model, source, str(out))
