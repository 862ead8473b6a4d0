import gzip
import json

import pytest
from command import run
from rows_in_files import write

from kwise import RewardModel
from kwise.model.calibrated import Calibration


def test_score_writes_scores_that_the_python_api_gives_too(model, tmp_path):
    file = tmp_path / "in.jsonl.gz"
    with gzip.open(file, "wt") as handle:
        handle.write(json.dumps({"prompt": "q", "response": "r"}) + "\n")
    code, _ = run("score", model, file, "-o", tmp_path / "out.jsonl")
    assert code == 0
    scored = json.loads((tmp_path / "out.jsonl").read_text())
    assert scored["score"] == pytest.approx(RewardModel.from_pretrained(model).score("q", "r")[0], abs=1e-6)


def test_score_refuses_to_overwrite_and_reports_what_was_shortened(model, tmp_path):
    file = write(tmp_path / "in.jsonl", [{"prompt": "q", "response": "long " * 100}])
    code, text = run("score", model, file, "-o", tmp_path / "out.jsonl")
    assert code == 0 and "1 responses were longer than 128 tokens" in text
    code, text = run("score", model, file, "-o", tmp_path / "out.jsonl")
    assert code == 1 and "--resume" in text


def test_calibrated_scores_of_a_model_without_calibration_are_an_error(model, tmp_path):
    file = write(tmp_path / "in.jsonl", [{"prompt": "q", "response": "r"}])
    code, text = run("score", model, file, "-o", tmp_path / "out.jsonl", "--calibrated")
    assert code == 1 and "not been calibrated" in text and not (tmp_path / "out.jsonl").exists()


def test_best_goes_on_and_chooses_by_calibrated_scores(model, tmp_path):
    found = RewardModel.from_pretrained(model)
    rewards = found.score("q", ["a", "bb"])
    # a slope so large that the shorter response wins whatever its reward
    found.settings.calibration = Calibration(length_slope=100 * (1 + abs(rewards[0] - rewards[1])))
    found.settings.write(model)
    choices = write(tmp_path / "n.jsonl", [{"prompt": "q", "responses": ["bb", "a"]}] * 2)
    code, text = run("best", model, choices, "-o", tmp_path / "best.jsonl", "--calibrated")
    assert code == 0, text
    whole = (tmp_path / "best.jsonl").read_text()
    assert [json.loads(line)["best_text"] for line in whole.splitlines()] == ["a", "a"]
    (tmp_path / "best.jsonl").write_text(whole.splitlines()[0] + '\n{"pro')
    code, text = run("best", model, choices, "-o", tmp_path / "best.jsonl", "--calibrated", "--resume")
    assert code == 0 and "kept from before" in text
    again = [json.loads(line) for line in (tmp_path / "best.jsonl").read_text().splitlines()]
    assert [line["best_text"] for line in again] == ["a", "a"]
    for line, before in zip(again, map(json.loads, whole.splitlines()), strict=True):
        assert line["scores"] == pytest.approx(before["scores"], abs=1e-5)  # other company, other rounding


@pytest.mark.parametrize(
    ("rank", "size"), [("5", "2"), ("2", "2"), ("", "2"), ("0", ""), ("-1", "2"), ("one", "2"), ("0", "0")]
)
def test_an_environment_that_says_no_place_among_processes_is_refused(model, tmp_path, monkeypatch, rank, size):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", size)
    lines = write(tmp_path / "in.jsonl", [{"prompt": "q", "response": "r"}])
    code, text = run("score", model, lines, "-o", tmp_path / "out.jsonl")
    assert code == 1 and f"the environment says RANK={rank}, WORLD_SIZE={size}" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "model"]


def test_score_says_how_many_lines_had_scores_that_it_replaced(model, tmp_path):
    rows = [{"prompt": "q", "response": "r", "score": 5}, {"prompt": "q", "response": "r"}]
    code, text = run("score", model, write(tmp_path / "in.jsonl", rows), "-o", tmp_path / "out.jsonl")
    assert code == 0 and "1 lines had scores of their own, which were replaced" in text
