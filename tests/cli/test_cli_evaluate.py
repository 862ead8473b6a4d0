import json
import math

import numpy as np
import pytest
import torch
from command import run
from rows_in_files import METRICS, nectar_row, pairs_scored, ranked_by, write

from kwise import RewardModel
from kwise.use.suites import SUITES


def test_eval_json_has_every_metric_per_file_and_split(model, tmp_path):
    file = write(tmp_path / "rankings.jsonl", [nectar_row(i, 3) | {"selection": "ab"[i % 2]} for i in range(8)])
    code, _ = run("eval", model, file, "--by", "selection", "--json", tmp_path / "out.json")
    assert code == 0
    found = json.loads((tmp_path / "out.json").read_text())[str(file)]
    assert found.keys() == {"all", "a", "b"}
    for metrics in found.values():
        assert metrics.keys() >= METRICS
        assert all(metric.keys() == {"value", "low", "high", "n"} for metric in metrics.values())
    assert found["all"]["pair_accuracy"]["n"] == 24 and found["a"]["top1"]["n"] == 4


def test_the_help_names_every_suite():
    _, text = run("eval", "--help")
    assert all(name in text for name in SUITES)


def second_model(model, tokenizer, folder):
    """The same, but for a head turned round: what the one prefers, the other does not."""
    other = RewardModel.from_pretrained(model)
    with torch.no_grad():
        other.model.score.weight.neg_()
    other.save_pretrained(folder)
    return folder


def test_eval_of_two_models_compares_them_pair_by_pair(model, tokenizer, tmp_path):
    other = second_model(model, tokenizer, tmp_path / "other")
    file = write(tmp_path / "rankings.jsonl", [nectar_row(i, 3) for i in range(8)])
    code, text = run("eval", model, other, file, "--json", tmp_path / "out.json")
    assert code == 0, text
    assert f"all: less {tmp_path.name}" in text
    found = json.loads((tmp_path / "out.json").read_text())
    first, second = (found["models"][name][str(file)]["all"]["pair_accuracy"] for name in (tmp_path.name, "other"))
    gap = found["differences"][f"other - {tmp_path.name}"][str(file)]["all"]["pair_accuracy"]
    assert second["value"] == pytest.approx(1 - first["value"])
    assert gap["value"] == pytest.approx(second["value"] - first["value"])
    assert gap.keys() == {"value", "low", "high", "n", "better"}


def starling_folder(folder):
    """Two of the four suites, as their authors laid them out."""
    folder.mkdir()
    battles = [
        {"prompt": f"question {i}", "response_a": f"answer {i}", "response_b": "no", "winner": f"model_{'ab'[i % 2]}"}
        for i in range(6)
    ]
    (folder / "preference_benchmark.json").write_text(json.dumps(battles))
    (folder / "verbose_benchmark.json").write_text(
        json.dumps([{"prompt": "1 + 1", "response_a": "It is well known that", "response_b": "2"}])
    )
    return folder


def test_eval_of_a_suite_shows_published_figures_and_what_is_left_out(model, tmp_path):
    folder = starling_folder(tmp_path / "suites")
    out = tmp_path / "results"
    code, text = run("eval", model, f"starling:{folder}", "--json", tmp_path / "out.json", "--results", out)
    assert code == 0, text
    assert "longer answer" in text and "Starling-RM-34B" in text and "its model card" in text
    assert "left out, as these data do not hold all their parts: safety, truth" in text
    found = json.loads((tmp_path / "out.json").read_text())[f"starling:{folder}"]
    assert found["longer answer"]["human"]["value"] == 0.5  # a is the longer one and wins half of them
    loaded = RewardModel.from_pretrained(model)
    right = 0
    for i in range(6):
        a, b = loaded.score(f"question {i}", [f"answer {i}", "no"])
        right += (a > b) == (i % 2 == 0)
    assert found["all"]["human"]["value"] == pytest.approx(right / 6)
    index = json.loads((out / f"{tmp_path.name}.model-index.json").read_text())["model-index"]
    assert index[0]["results"][0]["metrics"][0] == {
        "name": "human",
        "type": "accuracy",
        "value": found["all"]["human"]["value"],
    }


def test_eval_of_scores_needs_no_model_and_takes_what_score_wrote(model, tmp_path):
    file = write(tmp_path / "rankings.jsonl", [nectar_row(i, 3) for i in range(8)])
    assert run("score", model, file, "-o", tmp_path / "scored.jsonl")[0] == 0
    code, text = run("eval", "--scores", tmp_path / "scored.jsonl", "--json", tmp_path / "scores.json")
    assert code == 0, text
    assert run("eval", model, file, "--json", tmp_path / "model.json")[0] == 0
    ours, theirs = (
        json.loads((tmp_path / name).read_text()).popitem()[1]["all"] for name in ("model.json", "scores.json")
    )
    assert theirs["pair_accuracy"] == ours["pair_accuracy"]
    assert theirs["nll"]["value"] == pytest.approx(ours["nll"]["value"], rel=1e-6)


def test_eval_of_scores_with_a_hole_names_its_place(tmp_path):
    rows = [
        {"prompt": f"q{i}", "chosen": "a", "rejected": "b", "chosen_score": 1, "rejected_score": 0} for i in range(3)
    ]
    rows[1]["rejected_score"] = math.nan
    file = write(tmp_path / "scored.jsonl", rows)
    code, text = run("eval", "--scores", file)
    assert code == 1
    assert f"{file}, line 2, field 'rejected_score': a score must be a finite number, this is nan" in text


def test_eval_compares_scores_of_the_same_rankings(tmp_path):
    files = []
    for name, scores in (("a", (0, 2)), ("b", (1, 1))):
        rows = [
            {"prompt": f"q{i}", "chosen": "a", "rejected": "b", "chosen_score": s, "rejected_score": 1}
            for i, s in enumerate(scores)
        ]
        files.append(write(tmp_path / f"{name}.jsonl", rows))
    code, text = run("eval", "--scores", "--compare", *files, "--json", tmp_path / "out.json")
    assert code == 0, text
    found = json.loads((tmp_path / "out.json").read_text())
    gaps = found["differences"]["b.jsonl - a.jsonl"][str(files[0])]["all"]
    assert gaps["pair_accuracy"]["value"] == 0  # one of two, and two halves
    assert run("eval", "--compare", *files)[0] == 1


def test_eval_ceiling_tells_what_judges_agree_on(tmp_path):
    rows = []
    for i in range(12):
        answers = [{"answer": f"{n}", "rank": n + 1} for n in range(3)]
        rows.append({"prompt": f"q{i}", "answers": answers, "ranking_order": [1, 0, 2] if i % 2 else [0, 1, 2]})
    file = write(tmp_path / "judged.jsonl", rows)
    code, text = run("eval", "--ceiling", file, "--json", tmp_path / "out.json")
    assert code == 0, text
    assert "pair_accuracy_ceiling" in text
    found = json.loads((tmp_path / "out.json").read_text())[str(file)]
    assert found["pair_agreement"]["value"] == pytest.approx(5 / 6)
    assert found["pair_accuracy_ceiling"]["value"] == pytest.approx((1 + math.sqrt(2 / 3)) / 2)


def test_calibrate_writes_into_the_model_what_score_and_probability_use(model, tmp_path):
    spread = np.std(RewardModel.from_pretrained(model).score("q", ["x" * n for n in range(1, 40)]))
    file = ranked_by(model, tmp_path / "held.jsonl", spread / 2)
    code, text = run("calibrate", model, file, "--length", "--json", tmp_path / "out.json")
    assert code == 0, text
    kept = json.loads((model / "kwise.json").read_text())
    assert kept["max_length"] == 128
    found = kept["calibration"]
    assert (found["rankings"], found["pairs"], found["data"]) == (40, 120, ["held.jsonl"])
    for name in ("temperature", "centre", "length_slope"):
        assert f"{found[name]:.4g}" in text
    for name in ("pair_nll", "ece", "top1_ece", "longer_better", "shorter_better", "length_correlation"):
        assert name in text and found["figures"].keys() == {"before", "after"} and name in found["figures"]["after"]
    assert "95 to 100" in text and f"written to {model}/kwise.json" in text
    written = json.loads((tmp_path / "out.json").read_text())
    assert written.pop("curves").keys() == {"before", "after"} and written == found

    lines = write(tmp_path / "in.jsonl", [{"prompt": "q", "response": each} for each in ("yes", "maybe so")])
    assert run("score", model, lines, "-o", tmp_path / "scored.jsonl", "--calibrated")[0] == 0
    scored = [json.loads(line)["score"] for line in (tmp_path / "scored.jsonl").read_text().splitlines()]
    loaded = RewardModel.from_pretrained(model)
    rewards = loaded.score("q", ["yes", "maybe so"])
    expected = [
        (reward - found["length_slope"] * math.log(1 + characters) - found["centre"]) / found["temperature"]
        for reward, characters in zip(rewards, (3, 8), strict=True)
    ]
    assert scored == pytest.approx(expected, rel=1e-4)
    assert loaded.probability("q", "yes", "maybe so") == pytest.approx(
        1 / (1 + math.exp(scored[1] - scored[0])), rel=1e-4
    )


def test_calibrate_without_length_shows_no_length_and_keeps_no_slope(model, tmp_path):
    spread = np.std(RewardModel.from_pretrained(model).score("q", ["x" * n for n in range(1, 40)]))
    code, text = run("calibrate", model, ranked_by(model, tmp_path / "held.jsonl", spread / 2))
    assert code == 0 and "length slope" not in text and "length_correlation" not in text
    assert json.loads((model / "kwise.json").read_text())["calibration"]["length_slope"] == 0


def test_a_failed_calibration_leaves_the_model_as_it_was(model, tmp_path):
    before = (model / "kwise.json").read_bytes()
    rows = [nectar_row(i, 3) for i in range(9)]
    for row in rows:
        for answer in row["answers"]:
            answer["rank"] = 1.0
    code, text = run("calibrate", model, write(tmp_path / "tied.jsonl", rows))
    assert code == 1 and "all responses are tied" in text
    assert (model / "kwise.json").read_bytes() == before


def test_a_hub_id_is_not_calibrated_in_place(tmp_path):
    code, text = run("calibrate", "someone/model", write(tmp_path / "held.jsonl", [nectar_row(0, 3)]))
    assert code == 1 and "someone/model is no local folder" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--scores", "--compare", "a.jsonl"], "--compare needs the scores of at least two models"),
        (["--scores", "--compare", "a.jsonl", "a.jsonl"], "a.jsonl is named twice"),
        (["--scores", "a.jsonl", "./a.jsonl"], "a.jsonl is named twice, also as ./a.jsonl"),
        (["--ceiling", "--by", "kind", "a.jsonl"], "--ceiling is of judgements alone"),
        (["--ceiling", "--scores", "a.jsonl"], "--ceiling is of judgements alone"),
        (["--ceiling", "--compare", "a.jsonl"], "--ceiling is of judgements alone"),
        (["--scores", "a.jsonl", "--json", "."], ". is a folder: name a file to write"),
        (["--scores", "a.jsonl", "--json", "none/out.json"], "none is no folder to write out.json into"),
        (["--ceiling", "a.jsonl", "--json", "a.jsonl"], "a.jsonl is read as a.jsonl"),
        (["--scores", "a.jsonl", "--results", "a.jsonl"], "a.jsonl is no folder: name one for --results"),
        (
            ["--scores", "rewardbench:a.jsonl", "rewardbench:b", "--results", "new"],
            "are one file in reward-bench-results",
        ),
    ],
)
def test_eval_says_what_it_cannot_do_before_it_does_anything(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "chosen_score": 1, "rejected_score": 0}
    write(tmp_path / "a.jsonl", [row])
    code, text = run("eval", *words)
    assert code == 1 and message in text
    assert "pair_accuracy" not in text


def test_eval_of_one_prompt_shows_values_without_intervals(tmp_path):
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "chosen_score": 1, "rejected_score": 0}
    file = write(tmp_path / "a.jsonl", [row])
    code, text = run("eval", "--scores", file, "--json", tmp_path / "out.json")
    assert code == 0, text
    found = json.loads((tmp_path / "out.json").read_text())[str(file)]["all"]["pair_accuracy"]
    assert found == {"value": 1.0, "low": None, "high": None, "n": 1}
    assert "[" not in text


def test_a_suites_folder_may_hold_results_beside_its_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    row = {"prompt": "q", "chosen": "y", "rejected": "n", "chosen_score": 1, "rejected_score": 0, "subset": "hep-go"}
    write(tmp_path / "filtered.jsonl", [row])
    for _ in range(2):
        code, text = run("eval", "--scores", "rewardbench:.", "--json", "out.json")
        assert code == 0, text
    assert (
        "one of the files of rewardbench:." in run("eval", "--scores", "rewardbench:.", "--json", "filtered_2.json")[1]
    )


@pytest.mark.parametrize("name", ["held.json", "held.png"])
def test_an_audit_does_not_write_over_what_no_audit_wrote(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    pairs_scored(tmp_path / "a.jsonl")
    (tmp_path / name).write_text('{"models": "of an evaluation"}')
    code, text = run("audit", "--scores", "a.jsonl", "-o", "held.html")
    assert code == 1 and f"{name} exists and is of no audit" in text
    assert (tmp_path / name).read_text() == '{"models": "of an evaluation"}'
