import gzip
import json
import math
import os
import platform
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from command import run
from tiny_models import tiny_model

from kwise import RewardModel
from kwise.cli import shell
from kwise.model.calibrated import Calibration
from kwise.model.reward_model import Settings

METRICS = {"pair_accuracy", "adjacent_accuracy", "top1", "ndcg", "kendall_tau", "nll", "ece", "top1_ece"}
METRICS |= {"longer_wins", "better_model_wins"}


@pytest.fixture
def model(tokenizer, tmp_path):
    RewardModel(tiny_model(vocab_size=len(tokenizer)), tokenizer, Settings(128)).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def nectar_row(i, k, null=False):
    answers = [{"answer": f"answer {n} to {i}", "model": f"m{n}", "rank": float(1 + (n * 5 + i) % k)} for n in range(k)]
    if null:
        answers[-1]["rank"] = None
    return {"prompt": f"\n\nHuman: question {i}\n\nAssistant: ", "answers": answers, "turns": 1, "source": ["made"]}


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_data_check_of_a_sound_file_exits_0_and_tells_what_is_in_it(tmp_path):
    file = write(tmp_path / "nectar.jsonl", [nectar_row(i, k) for i, k in enumerate((2, 3, 7, 9))])
    code, text = run("data", "check", file)
    assert code == 0
    assert "2: 1, 3: 1, 7: 1, 9: 1" in text


def test_data_check_names_the_lines_of_each_defect_and_exits_1(tmp_path):
    rows = [nectar_row(i, 4, null=i == 2) for i in range(6)]
    file = write(tmp_path / "nectar.jsonl", [*rows, '{"prompt": "\\n\\nHuman: broken', nectar_row(8, 4)])
    code, text = run("data", "check", file)
    assert code == 1
    assert "line 3, field 'answers[3].rank': a rank must be a number, this is null" in text
    assert "line 7: not valid JSON" in text


def test_data_check_fix_writes_a_copy_that_passes(tmp_path):
    file = write(
        tmp_path / "nectar.jsonl", [nectar_row(0, 4), nectar_row(1, 4, null=True), "oops", nectar_row(2, 2, null=True)]
    )
    code, text = run("data", "check", file, "--fix", tmp_path / "clean.jsonl")
    assert code == 1 and "rows written: 2" in text
    assert run("data", "check", tmp_path / "clean.jsonl")[0] == 0
    assert run("data", "check", file, "--fix", tmp_path / "clean.jsonl")[0] == 1, (
        "an existing file must not be overwritten"
    )


def test_data_check_fix_that_keeps_no_row_is_an_error_and_leaves_no_file(tmp_path):
    file = write(tmp_path / "nectar.jsonl", [{"prompt": "p", "chosen": "same", "rejected": "same"}])
    code, text = run("data", "check", file, "--fix", tmp_path / "clean.jsonl")
    assert code == 1 and "no row is left after cleaning, so no copy is written" in text
    assert "rows with repeated answers removed: 1" in text
    assert not (tmp_path / "clean.jsonl").exists()


@pytest.mark.parametrize("command", ["check", "eval", "score", "train"])
def test_every_command_that_reads_a_file_names_file_line_and_field(command, model, tmp_path):
    row = nectar_row(1, 3)
    row["prompt"] = 5
    file = write(tmp_path / "bad.jsonl", [nectar_row(0, 3), row])
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f"method='head'\noutput='{tmp_path / 'run'}'\n[data]\ntrain=['{file}']\n[model]\nbase='{model}'\n"
    )
    words = {
        "check": ["data", "check", file],
        "eval": ["eval", model, file],
        "train": ["train", recipe],
        "score": ["score", model, file, "-o", tmp_path / "out.jsonl"],
    }
    code, text = run(*words[command])
    assert code == 1
    assert f"{file}, line 2, field 'prompt': must be text, this is a number" in text


@pytest.mark.parametrize("content", ["", "a,b,c\n1,2,3\n", "[1, 2]\n", "\n\n"])
def test_files_that_hold_no_rankings_are_an_error_in_one_line(content, model, tmp_path):
    file = tmp_path / "file.dat"
    file.write_text(content)
    for words in (["data", "check", file], ["eval", model, file], ["score", model, file, "-o", tmp_path / "out"]):
        code, text = run(*words)
        assert code == 1 and "error:" in text and str(file) in text and "Traceback" not in text


@pytest.mark.parametrize("missing", ["file", "directory"])
def test_a_missing_file_and_a_directory_are_errors(missing, model, tmp_path):
    path = tmp_path if missing == "directory" else tmp_path / "nowhere.jsonl"
    code, text = run("eval", model, path)
    assert code == 1 and ("directory" if missing == "directory" else "no such file") in text


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


def test_train_names_an_unknown_key_with_the_nearest_one(tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("method='head'\noutput='x'\n[data]\ntrain=['a']\nmaxlength=5\n[model]\nbase='b'\n")
    code, text = run("train", recipe)
    assert code == 1 and "did you mean 'data.max_length'?" in text


def test_a_folder_that_is_no_reward_model_is_an_error_in_one_line(tmp_path):
    file = write(tmp_path / "rankings.jsonl", [nectar_row(0, 2)])
    (tmp_path / "empty").mkdir()
    code, text = run("eval", tmp_path / "empty", file)
    assert code == 1 and "error:" in text


def ranked_by(model, path, temperature, prompts=40):
    """Rankings that follow the model's own rewards / temperature, with Gumbel noise."""
    loaded, rng, rows = RewardModel.from_pretrained(model), np.random.default_rng(0), []
    for i in range(prompts):
        answers = ["x" * int(n) + str(i) for n in rng.integers(1, 40, 3)]
        rewards = np.array(loaded.score(f"question {i}", answers))
        ranks = (-(rewards / temperature + rng.gumbel(size=3))).argsort().argsort() + 1
        completions = [{"completion": each, "rank": int(rank)} for each, rank in zip(answers, ranks, strict=True)]
        rows.append({"context": [{"role": "user", "content": f"question {i}"}], "completions": completions})
    return write(path, rows)


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


def test_calibrated_scores_of_a_model_without_calibration_are_an_error(model, tmp_path):
    file = write(tmp_path / "in.jsonl", [{"prompt": "q", "response": "r"}])
    code, text = run("score", model, file, "-o", tmp_path / "out.jsonl", "--calibrated")
    assert code == 1 and "not been calibrated" in text and not (tmp_path / "out.jsonl").exists()


def test_fit_then_best_with_a_lower_bound_as_a_user_would(base, tmp_path):
    train = write(tmp_path / "train.jsonl", [nectar_row(i, 4) for i in range(12)])
    held = write(tmp_path / "held.jsonl", [nectar_row(i + 50, 3) for i in range(4)])
    options = ("--eval", held, "--layer", 1, "--layer", 2, "--covariate", "first=answer 0", "--max-length", 128)
    code, text = run("fit", base, train, "-o", tmp_path / "out", *options)
    assert code == 0, text
    assert "covariate first:" in text
    assert f"model saved in {tmp_path / 'out' / 'model'}" in text
    choices = write(tmp_path / "n.jsonl", [{"prompt": "q", "responses": ["answer 1", "answer 2", "answer 3"]}] * 3)
    code, text = run(
        "best",
        tmp_path / "out" / "model",
        choices,
        "-o",
        tmp_path / "best.jsonl",
        "--lower-bound",
        1,
        "--dtype",
        "float32",
    )
    assert code == 0, text
    lines = [json.loads(line) for line in (tmp_path / "best.jsonl").read_text().splitlines()]
    assert len(lines) == 3
    for line in lines:
        assert line["best_index"] == max(range(3), key=line["scores_lower"].__getitem__)
        assert line["best_text"] == line["responses"][line["best_index"]]
        assert line["score_lower_bound"] == 1


def test_fit_tells_all_that_is_wrong_with_its_options(base, tmp_path):
    code, text = run("fit", base, "x.jsonl", "-o", tmp_path / "out", "--layer", 0, "--covariate", "lenght")
    assert code == 1
    assert "fit.layers: must be at least 1, this has 0" in text
    assert "unknown covariate 'lenght'" in text
    assert not (tmp_path / "out").exists()


def test_a_model_without_uncertainty_says_how_to_get_it_and_then_has_it(model, tmp_path):
    choices = write(tmp_path / "n.jsonl", [{"prompt": "q", "responses": ["answer 1", "answer 2"]}])
    out = tmp_path / "best.jsonl"
    code, text = run("best", model, choices, "-o", out, "--lower-bound", 1)
    assert code == 1
    assert "no uncertainty" in text
    assert "kwise uncertainty" in text
    assert not out.exists()
    rankings = write(tmp_path / "train.jsonl", [nectar_row(i, 4) for i in range(12)])
    code, text = run("uncertainty", model, rankings)
    assert code == 0, text
    assert "kind fisher, rankings 12, prompts 12" in text
    assert (model / "uncertainty.kwise").exists()
    assert run("best", model, choices, "-o", out, "--lower-bound", 1)[0] == 0


def test_features_of_a_model_named_from_within_lie_beside_it(model, tmp_path, monkeypatch):
    rankings = write(tmp_path / "train.jsonl", [nectar_row(i, 4) for i in range(12)])
    monkeypatch.chdir(model)
    code, text = run("uncertainty", ".", rankings)
    assert code == 0, text
    assert "uncertainty written into .: " in text and (model / "uncertainty.kwise").exists()
    assert (tmp_path / "features").is_dir() and not (model / "features").exists()


def test_uncertainty_is_written_into_local_folders_only(tmp_path):
    code, text = run("uncertainty", "owner/name", tmp_path / "x.jsonl")
    assert code == 1
    assert "owner/name is no local folder" in text


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


COMMAND = (
    "from typer.testing import CliRunner; from kwise.cli import app; CliRunner().invoke(app, ['data', 'check', ''])"
)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
@pytest.mark.parametrize(
    ("before", "environment", "kept"),
    [
        ("", {}, False),
        (COMMAND, {}, True),
        (COMMAND, {"MALLOC_TRIM_THRESHOLD_": "131072"}, False),
    ],
)
def test_the_command_line_lets_glibc_keep_freed_memory_unless_the_user_set_that_himself(before, environment, kept):
    """By the kernel's count of the process's resident pages, after 200 MiB were written to and freed."""
    script = f"""
import ctypes, os
{before}
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes, libc.memset.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE")
start, block = resident(), libc.malloc(200 << 20)
libc.memset(block, 1, 200 << 20)
libc.free(block)
print(resident() - start)
"""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    out = subprocess.run(
        [sys.executable, "-c", script], env=clean | environment, capture_output=True, text=True, check=True
    )
    assert (int(out.stdout) > 150 << 20) == kept


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


def pairs_scored(path):
    """Two pairs, one of them scored the wrong way round."""
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "chosen_score": 1, "rejected_score": 0}
    return write(path, [row, row | {"prompt": "r", "chosen_score": -1}])


@pytest.mark.parametrize(
    "words",
    [
        ["eval", "--scores", "a.json", "--json", "a.json"],
        ["eval", "--scores", "./a.json", "b.jsonl", "--json", "link.json"],
        ["eval", "--scores", "starling:suite", "--json", "suite/human.json"],
        ["eval", "--scores", "rewardbench:a.json", "--json", "a.json"],
        ["eval", "--ceiling", "a.json", "--json", "a.json"],
        ["audit", "--scores", "a.json", "-o", "a.html"],
        ["audit", "--scores", "a.json", "b.html", "-o", "b.html"],
        ["audit", "--scores", "a.json", "c.png", "-o", "c.html"],
        ["calibrate", "model", "a.json", "--json", "a.json"],
        ["calibrate", "model", "b.jsonl", "--json", "model/kwise.json"],
    ],
    ids=" ".join,
)
def test_no_output_is_written_over_what_is_read(words, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "suite").mkdir()
    for name in ("a.json", "b.jsonl", "b.html", "c.png", "suite/human.json"):
        pairs_scored(tmp_path / name)
    (tmp_path / "link.json").symlink_to("a.json")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    code, text = run(*words)
    assert code == 1 and ("is read as" in text or "would be one of the files of starling:suite" in text)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("out", [".", "none/out.json"])
@pytest.mark.parametrize("command", ["eval", "calibrate", "doctor"])
def test_an_output_that_cannot_be_written_is_refused_before_the_model_is_loaded(command, out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    file = write(tmp_path / "held.jsonl", [nectar_row(0, 3)])
    code, text = run(command, "empty", *([] if command == "doctor" else [file]), "--json", out)
    assert code == 1 and ("is a folder: name a file to write" in text or "none is no folder" in text)


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


def closed(*parts, **options):
    """Stands for a terminal whose reader has gone."""
    raise BrokenPipeError


@pytest.mark.parametrize("what", ["eval", "ceiling", "calibrate", "doctor"])
def test_what_was_found_is_written_before_anything_is_printed(what, model, tmp_path, monkeypatch):
    out = tmp_path / "out.json"
    held = ranked_by(model, tmp_path / "held.jsonl", 1.0)
    twice = write(tmp_path / "twice.jsonl", [nectar_row(i // 2, 3) for i in range(8)])
    (model / "kwise.json").unlink()
    words = {
        "eval": ["eval", "--scores", pairs_scored(tmp_path / "a.jsonl"), "--results", tmp_path / "results"],
        "ceiling": ["eval", "--ceiling", twice],
        "calibrate": ["calibrate", model, held],
        "doctor": ["doctor", model, "--fix", tmp_path / "mended"],
    }
    monkeypatch.setattr(shell.console, "print", closed)
    assert run(*words[what], "--json", out)[0] == 1
    assert json.loads(out.read_text())
    assert what != "eval" or (tmp_path / "results" / "scores.model-index.json").exists()
    assert what != "calibrate" or json.loads((model / "kwise.json").read_text())["calibration"]
    assert what != "doctor" or (tmp_path / "mended" / "kwise.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data", "check", "a.jsonl", "--max-length", 5], "--max-length counts tokens: give the --tokenizer"),
        (["data", "check", "a.jsonl", "--fix", "none/b.jsonl"], "none is no folder to write b.jsonl into"),
        (["data", "check", "a.jsonl", "--source", "nectar"], "field 'answers'"),
        (["eval", "--scores", "a.jsonl", "--no-cache"], "no model is run"),
        (["eval", "--scores", "a.jsonl", "--dtype", "bfloat16"], "no model is run"),
        (["eval", "--ceiling", "a.jsonl", "--dtype", "bfloat16"], "--ceiling is of judgements alone"),
        (["audit", "--scores", "a.jsonl", "-o", "out.html", "--probes", 60], "no model is run"),
    ],
)
def test_an_option_that_would_do_nothing_or_does_not_fit_is_an_error(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    pairs_scored(tmp_path / "a.jsonl")
    code, text = run(*words)
    assert code == 1 and message in text
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_version_is_printed_alone():
    from importlib.metadata import version

    assert run("--version") == (0, f"kwise {version('kwise')}")


def test_fit_by_another_objective_and_uncertainty_of_a_kind_with_features_elsewhere(base, tmp_path):
    train = write(tmp_path / "train.jsonl", [nectar_row(i, 4) for i in range(12)])
    command = ["fit", base, train, "-o", tmp_path / "out", "--max-length", 128, "--objective"]
    code, text = run(*command, "plackett-luce")
    assert code == 1 and "objective: 'plackett-luce' is not one of plackett_luce, " in text
    code, text = run(*command, "all_pairs")
    assert code == 0, text
    assert 'objective = "all_pairs"' in (tmp_path / "out" / "recipe.toml").read_text()
    model = tmp_path / "out" / "model"
    assert json.loads((model / "kwise.json").read_text())["trained"]["objective"] == "all_pairs"
    code, text = run("uncertainty", model, train, "--kind", "paper", "--cache", tmp_path / "kept")
    assert code == 0, text
    assert "kind paper" in text and any((tmp_path / "kept").iterdir())
    code, text = run("uncertainty", model, train, "--kind", "bayes")
    assert code == 1 and "bayes" in text


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


def test_verify_resume_says_what_differs_and_fails(base, tmp_path, monkeypatch):
    from kwise.train import verify_resume

    train = write(tmp_path / "train.jsonl", [nectar_row(i, 4) for i in range(12)])
    table = f"method = 'full'\noutput = '{tmp_path / 'run'}'\n[data]\ntrain = ['{train}']\n[model]\nbase = '{base}'\n"
    (tmp_path / "recipe.toml").write_text(table)
    monkeypatch.setattr(verify_resume, "verify_resume", lambda recipe: [f"{recipe.method}: optimizer.pt differs"])
    code, text = run("train", tmp_path / "recipe.toml", "--verify-resume")
    assert code == 1 and "full: optimizer.pt differs" in text and "is not the same as one that was not" in text
    monkeypatch.setattr(verify_resume, "verify_resume", lambda recipe: [])
    code, text = run("train", tmp_path / "recipe.toml", "--verify-resume")
    assert code == 0 and "bit for bit" in text


def test_start_over_removes_an_unfinished_run_that_another_recipe_could_not_go_on_with(base, tmp_path):
    train = write(tmp_path / "train.jsonl", [nectar_row(i, 4) for i in range(12)])
    table = f"method = 'full'\noutput = '{tmp_path / 'run'}'\n[data]\ntrain = ['{train}']\n[model]\nbase = '{base}'\n"
    table += "[trainer]\nmax_steps = 2\nrankings_per_step = 4\nsave_strategy = 'steps'\nsave_steps = 1\ndisable_tqdm = true\n"
    (tmp_path / "recipe.toml").write_text(table)
    assert run("train", tmp_path / "recipe.toml")[0] == 0
    shutil.rmtree(tmp_path / "run" / "model")
    code, text = run("train", tmp_path / "recipe.toml", "seed=7")
    assert code == 1 and "another seed" in text and "--start-over" in text
    code, text = run("train", tmp_path / "recipe.toml", "seed=7", "--start-over")
    assert code == 0 and "going on from" not in text, text


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


@pytest.mark.parametrize("name", ["held.json", "held.png"])
def test_an_audit_does_not_write_over_what_no_audit_wrote(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    pairs_scored(tmp_path / "a.jsonl")
    (tmp_path / name).write_text('{"models": "of an evaluation"}')
    code, text = run("audit", "--scores", "a.jsonl", "-o", "held.html")
    assert code == 1 and f"{name} exists and is of no audit" in text
    assert (tmp_path / name).read_text() == '{"models": "of an evaluation"}'


def test_a_file_named_twice_is_refused_where_it_would_count_twice(model, base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "held.jsonl", [nectar_row(i, 3) for i in range(4)])
    code, text = run("calibrate", model, "held.jsonl", "./held.jsonl")
    assert code == 1 and "held.jsonl is named twice, also as ./held.jsonl" in text
    code, text = run("fit", base, "held.jsonl", "./held.jsonl", "-o", "out")
    assert code == 1 and "data.train: ./held.jsonl is named twice" in text
