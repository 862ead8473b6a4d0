import json
import shutil

from command import run
from rows_in_files import nectar_row, write


def test_train_names_an_unknown_key_with_the_nearest_one(tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("method='head'\noutput='x'\n[data]\ntrain=['a']\nmaxlength=5\n[model]\nbase='b'\n")
    code, text = run("train", recipe)
    assert code == 1 and "did you mean 'data.max_length'?" in text


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
