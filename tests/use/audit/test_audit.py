"""The flow from rankings to a dictionary, and the command."""

import json
import math

import numpy as np
import pytest
from command import run
from planted import Scorer, make_rankings
from tiny_models import tiny_model

from kwise import RewardModel
from kwise.model.reward_model import Settings
from kwise.use.audit import Subject, accusations, audit, foreign_subjects, model_subject
from kwise.use.evaluation import open_data


def rows(count=24, scored=True):
    rng = np.random.default_rng(0)
    rankings, qualities = make_rankings(rng, prompts=count, sizes=(3, 4))
    return [
        {
            "context": own.messages,
            "completions": [
                {"completion": text, "rank": rank, "model": model} | ({"score": q} if scored else {})
                for text, rank, model, q in zip(own.responses, own.ranks, own.models, quality, strict=True)
            ],
        }
        for own, quality in zip(rankings, qualities, strict=True)
    ]


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def model(tokenizer, tmp_path):
    RewardModel(tiny_model(vocab_size=len(tokenizer)), tokenizer, Settings(2048)).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_scores_of_anyone_are_audited_without_a_model(tmp_path):
    file = write(tmp_path / "scored.jsonl", rows())
    code, text = run("audit", "--scores", file, "-o", tmp_path / "out.html")
    assert code == 0
    assert "scores: " in text
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["data"] == {
        "names": ["scored.jsonl"],
        "rankings": 24,
        "answers": found["data"]["answers"],
        "prompts": 24,
    }
    assert found["models"]["scores"]["overview"]["pair_accuracy"]["value"] == 1.0
    assert found["models"]["scores"]["probes"] is None
    assert str(tmp_path) not in (tmp_path / "out.html").read_text()  # where files lie is nobody's business


def test_a_model_is_audited_with_edits(model, tmp_path):
    file = write(tmp_path / "ranked.jsonl", rows(scored=False))
    code, text = run("audit", model, file, "-o", tmp_path / "out.html", "--probes", 12)
    assert code == 0
    assert "written: " in text
    found = json.loads((tmp_path / "out.json").read_text())["models"]
    (own,) = found.values()
    assert {row["probe"]: row["n"] for row in own["probes"]}["padding"] == 12
    reward_model = RewardModel.from_pretrained(model)
    first = rows(scored=False)[0]
    texts = [each["completion"] for each in first["completions"]]
    low, high = own["distribution"]["edges"][0], own["distribution"]["edges"][-1]
    assert all(low - 1e-4 <= score <= high + 1e-4 for score in reward_model.score(first["context"], texts))


def test_two_models_are_compared_on_the_same_edits(model, tmp_path):
    other = tmp_path / "other" / "model"
    reward_model = RewardModel.from_pretrained(model)
    reward_model.model.score.weight.data *= -1
    reward_model.save_pretrained(other)
    file = write(tmp_path / "ranked.jsonl", rows(scored=False))
    code, _ = run("audit", model, other, file, "-o", tmp_path / "out.html", "--probes", 12)
    assert code == 0
    found = json.loads((tmp_path / "out.json").read_text())
    ((name, gaps),) = found["differences"].items()
    first, second = found["models"].values()
    assert name.startswith("other - ")
    for own, a, b in zip(
        gaps["probes"],
        *([row for row in each["probes"] if row["value"] is not None] for each in (first, second)),
        strict=True,
    ):
        assert a["value"] == pytest.approx(-b["value"], abs=1e-4)  # the second is the first turned round
        assert own["value"] == pytest.approx(2 * b["value"], abs=1e-4)
    accuracy = next(own for own in gaps["overview"] if own["metric"] == "pair_accuracy")
    pair = [each["overview"]["pair_accuracy"]["value"] for each in (first, second)]
    assert accuracy["value"] == pytest.approx(pair[1] - pair[0])


def test_scores_of_two_models_are_compared(tmp_path):
    lines = rows()
    flipped = [
        own | {"completions": [each | {"score": -each["score"]} for each in own["completions"]]} for own in lines
    ]
    files = write(tmp_path / "good.jsonl", lines), write(tmp_path / "bad.jsonl", flipped)
    code, text = run("audit", "--scores", "--compare", *files, "-o", tmp_path / "out.html")
    assert code == 0, text
    found = json.loads((tmp_path / "out.json").read_text())
    assert list(found["models"]) == ["good.jsonl", "bad.jsonl"]
    assert found["data"]["rankings"] == 24
    assert found["differences"]["bad.jsonl - good.jsonl"]["overview"][0]["value"] == -1.0


def test_six_models_are_drawn(tmp_path):
    files = [write(tmp_path / f"{i}.jsonl", rows()) for i in range(6)]
    code, text = run("audit", "--scores", "--compare", *files, "-o", tmp_path / "out.html")
    assert code == 0, text


def test_of_too_few_answers_for_a_curve_of_length_all_else_is_shown(tmp_path):
    pairs = [
        {"prompt": f"q{i}", "chosen": "a" * (2 + i), "rejected": "b", "chosen_score": i, "rejected_score": 1}
        for i in range(5)
    ]
    code, text = run("audit", "--scores", write(tmp_path / "five.jsonl", pairs), "-o", tmp_path / "out.html")
    assert code == 0, text
    assert json.loads((tmp_path / "out.json").read_text())["models"]["scores"]["length"]["curve"] == []
    html = (tmp_path / "out.html").read_text()
    assert "<b>Length.</b>" not in html and "<b>Rewards.</b>" in html


def test_files_without_compare_are_one_model(tmp_path):
    lines = rows()
    files = [write(tmp_path / name, part) for name, part in (("a.jsonl", lines[:10]), ("b.jsonl", lines[10:]))]
    rankings, subjects, _ = foreign_subjects([open_data(str(file)) for file in files], compared=False)
    assert len(rankings) == len(subjects["scores"].rewards) == 24
    whole = audit(rankings, subjects, ["a", "b"])
    assert [row["label"] for row in whole["models"]["scores"]["drift"]["file"]] == ["a.jsonl", "b.jsonl"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--scores", "scored.jsonl", "-o", "out.pdf"], "must end in .html"),
        (["--scores", "ranked.jsonl", "-o", "out.html"], "there is no score"),
        (["--scores", "scored.jsonl", "-o", "none/out.html"], "none is no folder to write out.html into"),
        (["--scores", "scored.jsonl", "-o", "folder.html"], "folder.html is a folder"),
        (["--compare", "model", "ranked.jsonl", "-o", "out.html"], "--compare is for --scores"),
        (["--scores", "equal.jsonl", "-o", "out.html"], "scores all answers to a prompt the same"),
        (["--scores", "tied.jsonl", "-o", "out.html"], "in every ranking all answers are tied"),
        (["model", "tied.jsonl", "-o", "out.html"], "in every ranking all answers are tied"),
        (["--scores", "--compare", *(f"{i}.jsonl" for i in range(7)), "-o", "out.html"], "figures tell 6 apart"),
        (["--scores", "scored.jsonl", "--by", "kind", "-o", "out.html"], "no such column"),
        (["scored.jsonl", "-o", "out.html"], "taken for a model"),
    ],
)
def test_what_cannot_be_audited_is_an_error_in_words(words, problem, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.html").mkdir()
    write(tmp_path / "scored.jsonl", rows())
    write(tmp_path / "ranked.jsonl", rows(scored=False))
    equal = [own | {"completions": [each | {"score": 1} for each in own["completions"]]} for own in rows()]
    write(tmp_path / "equal.jsonl", equal)
    tied = [own | {"completions": [each | {"rank": 1} for each in own["completions"]]} for own in rows()]
    write(tmp_path / "tied.jsonl", tied)
    for i in range(7):
        write(tmp_path / f"{i}.jsonl", rows())
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").touch()
    code, text = run("audit", *words)
    assert code == 1
    assert problem in text
    assert not (tmp_path / "out.html").exists()


def test_a_reward_that_is_no_number_is_refused():
    rankings, qualities = make_rankings(np.random.default_rng(0), prompts=5)
    with pytest.raises(ValueError, match="line 1: the model's reward is NaN or infinite"):
        audit(rankings, {"m": Subject([[math.nan, *qualities[0][1:]], *qualities[1:]])}, [])


def test_no_edits_are_scored_where_none_are_asked_for():
    rankings, _ = make_rankings(np.random.default_rng(0), prompts=5)
    assert model_subject(Scorer(len), rankings, 0, lambda what, done, total: None).probes is None


def test_accusations_of_authors_come_last():
    found = [
        {"verdict": "bias", "value": value} | own
        for value, own in [(0.9, {"trait": "model: x"}), (0.2, {"trait": "length"}), (-0.5, {"probe": "cut"})]
    ]
    assert [own["value"] for own in accusations({"effects": found[:2], "probes": found[2:]})] == [-0.5, 0.2, 0.9]


def test_accusations_come_largest_first(one):
    (own,) = one["models"].values()
    sizes = [abs(each["value"]) for each in accusations(own)]
    assert sizes == sorted(sizes, reverse=True)
    assert {each["verdict"] for each in accusations(own)} <= {"bias", "blind"}
    assert "length" in [each.get("trait") for each in accusations(own)]
