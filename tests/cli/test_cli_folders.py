import json

import pytest
from command import run
from rows_in_files import write

from kwise import RewardModel


@pytest.fixture
def foreign(model):
    """``model`` as another trainer would have left it."""
    (model / "kwise.json").unlink()
    return model


def test_import_says_what_it_did_and_its_folder_scores(foreign, tmp_path):
    code, text = run("import", foreign, "--base", foreign, "-o", tmp_path / "out")
    assert code == 0
    assert "layout openrlhf" in text and f"model written to {tmp_path / 'out'}" in text
    file = write(tmp_path / "in.jsonl", [{"prompt": "q", "responses": ["r", "s"]}])
    assert run("score", tmp_path / "out", file, "-o", tmp_path / "scored.jsonl")[0] == 0
    scores = json.loads((tmp_path / "scored.jsonl").read_text())["scores"]
    assert scores == pytest.approx(RewardModel.from_pretrained(foreign).score("q", ["r", "s"]), abs=1e-6)


def test_import_can_be_told_the_rule_the_template_and_the_dtype(foreign, tmp_path):
    template = tmp_path / "own.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    options = ["--template", template, "--reward-at", "card", "--max-length", 64, "--dtype", "bfloat16"]
    assert run("import", foreign, "--base", foreign, "-o", tmp_path / "out", *options)[0] == 0
    found = RewardModel.from_pretrained(tmp_path / "out")
    assert (found.settings.reward_at, found.settings.max_length) == ("card", 64)
    assert found.tokenizer.chat_template == template.read_text()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--layout", "starr"], "unknown layout 'starr'; known: auto, starling"),
        (["--reward-at", "first"], "unknown rule 'first'; known: last_token, card"),
        (["--dtype", "int4"], "unknown dtype 'int4'; known: float32"),
        (["--template", "starling"], "'starling' is neither a file nor one of starling_card"),
        (["-o", "."], "exists; choose another name"),
    ],
)
def test_import_answers_mistakes_in_one_line(options, problem, foreign, tmp_path):
    code, text = run("import", foreign, "--base", foreign, "-o", tmp_path / "out", *options)
    assert code == 1 and "error:" in text and problem in text
    assert not (tmp_path / "out").exists()
