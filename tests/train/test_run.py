import json
import math
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from workshop import PROMPT, write_rankings

from kwise import DataError, RewardModel
from kwise.train.recipe import load_recipe
from kwise.train.run import train


def run(workshop, *overrides, **options):
    return train(load_recipe(workshop / "recipe.toml", overrides), **options)


@pytest.mark.parametrize("method", ["head", "lora", "full"])
def test_every_method_leaves_a_model_that_plain_transformers_scores_with_alike(workshop, method):
    result = run(workshop, f"method={method}", "fit_head_first=true")
    answers = ["salt salt water", "water", "perhaps some salt"]
    expected = RewardModel.from_pretrained(result.model).score(PROMPT, answers)
    assert max(expected) - min(expected) > 1e-3
    model = AutoModelForSequenceClassification.from_pretrained(result.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(result.model)
    assert model.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    with torch.no_grad():
        for answer, score in zip(answers, expected, strict=True):
            ids = tokenizer.apply_chat_template([*PROMPT, {"role": "assistant", "content": answer}], return_dict=False)
            assert model(torch.tensor([ids])).logits.item() == pytest.approx(score, abs=1e-5)


def test_training_the_head_beats_chance_on_held_out_prompts(workshop):
    write_rankings(workshop / "train.jsonl", 40)
    write_rankings(workshop / "heldout.jsonl", 20, offset=100)
    result = run(workshop)
    assert result.before["pair_accuracy"].value == 0.5  # a zero head
    assert result.after["pair_accuracy"].low > 0.6


def test_the_run_folder_says_how_the_model_came_about(workshop):
    run(workshop, "method=lora", "trainer.eval_strategy=epoch", "seed=7")
    folder = workshop / "run"
    recipe = tomllib.loads((folder / "recipe.toml").read_text())
    assert (recipe["method"], recipe["seed"], recipe["lora"]["r"], recipe["lora"]["alpha"]) == ("lora", 7, 2, 32)
    versions = json.loads((folder / "versions.json").read_text())
    assert (
        torch.__version__.startswith(versions["torch"])
        and {"transformers", "python", "machine", "command"} <= versions.keys()
    )
    data = json.loads((folder / "data.json").read_text())
    assert data["files"][str(workshop / "train.jsonl")]["rankings"] == 12
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [entry["loss"] for entry in metrics if "loss" in entry] and any(
        "eval_pair_accuracy" in entry for entry in metrics
    )
    trained = json.loads((folder / "model" / "kwise.json").read_text())["trained"]
    assert (trained["method"], trained["rankings"], trained["held_out"]["pair_accuracy"]["n"]) == ("lora", 12, 18)


def test_where_the_base_lies_is_known_from_any_folder(workshop, monkeypatch):
    monkeypatch.chdir(workshop.parent)
    run(workshop, f"model.base={workshop.name}/base")
    trained = json.loads((workshop / "run" / "model" / "kwise.json").read_text())["trained"]
    assert trained["base"] == str(workshop / "base")


def test_the_resolved_recipe_runs_again_to_the_same_model(workshop):
    first = run(workshop)
    again = train(load_recipe(workshop / "run" / "recipe.toml", [f"output='{workshop / 'again'}'"]))
    one, two = (
        AutoModelForSequenceClassification.from_pretrained(result.model).score.weight for result in (first, again)
    )
    assert torch.equal(one, two)


def test_a_finished_run_is_not_overwritten(workshop):
    run(workshop)
    with pytest.raises(ValueError, match=r"exists: choose another output \(output=... or -o\)"):
        run(workshop)


STEPS = ("method=full", "trainer.save_strategy=steps", "trainer.save_steps=1")


@pytest.mark.parametrize("start_over", [False, True])
def test_an_unfinished_run_is_gone_on_with_or_started_over(workshop, start_over, capsys):
    run(workshop, *STEPS, "trainer.max_steps=2")
    (workshop / "run" / "model").rename(workshop / "gone")
    logged = (workshop / "run" / "metrics.jsonl").read_text()
    result = run(workshop, *STEPS, "trainer.max_steps=2", start_over=start_over)
    assert ("going on from" in capsys.readouterr().err) is not start_over
    again = AutoModelForSequenceClassification.from_pretrained(result.model)
    for name, tensor in AutoModelForSequenceClassification.from_pretrained(workshop / "gone").state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert len((workshop / "run" / "metrics.jsonl").read_text().splitlines()) == len(logged.splitlines())


def test_what_an_interrupted_run_left_of_its_model_is_no_part_of_the_next_one(workshop):
    run(workshop, "method=full", "trainer.max_steps=1").model.rename(workshop / "run" / "model.unfinished")
    (workshop / "run" / "model.unfinished" / "uncertainty.kwise").write_bytes(b"of another head")
    result = run(workshop, "method=full", "trainer.max_steps=1")
    assert not (result.model / "uncertainty.kwise").exists()
    assert RewardModel.from_pretrained(result.model).uncertainty is None


def test_lora_on_a_half_precision_base_leaves_a_model_of_one_precision(workshop):
    result = run(workshop, "method=lora", "model.dtype=bfloat16", "trainer.max_steps=1")
    assert {each.dtype for each in load_file(result.model / "model.safetensors").values()} == {torch.bfloat16}


def test_bad_data_stops_before_anything_is_written(workshop):
    with (workshop / "train.jsonl").open("a") as file:
        file.write(
            '{"context": [{"role": "user", "content": "q"}], "completions": [{"rank": null, "completion": "a"}]}\n'
        )
    with pytest.raises(DataError, match=r"train\.jsonl, line 13, field 'completions\[0\]\.rank'"):
        run(workshop)
    assert not (workshop / "run").exists()


def test_held_out_prompts_that_are_also_trained_on_are_reported(workshop, capsys):
    write_rankings(workshop / "heldout.jsonl", 6, offset=10)
    run(workshop)
    assert "2 of 6 held-out rankings" in " ".join(capsys.readouterr().err.split())
    assert json.loads((workshop / "run" / "data.json").read_text())["held_out_with_trained_prompt"] == 2


def test_a_run_without_held_out_rankings_trains(workshop):
    result = run(workshop, "data.eval=[]")
    assert result.before is None and result.after is None and result.model.exists()


def test_checkpoints_of_another_recipe_are_not_gone_on_with(workshop):
    result = run(workshop, *STEPS, "trainer.max_steps=2")
    result.model.rename(workshop / "whole")
    others = ["objective=all_pairs", "seed=1", "trainer.learning_rate=0.5"]
    with pytest.raises(
        ValueError, match=r"with another objective, seed, trainer.learning_rate \(see its recipe\.toml\)"
    ):
        run(workshop, *STEPS, *others)
    assert run(workshop, *STEPS, "trainer.tokens_per_row=64", "trainer.max_steps=3").model.exists()
    (workshop / "run" / "model").rename(workshop / "longer")
    assert run(workshop, *STEPS, *others, "trainer.max_steps=1", start_over=True).model.exists()


def test_a_run_is_not_gone_on_with_on_other_rankings(workshop):
    run(workshop, *STEPS, "trainer.max_steps=2").model.rename(workshop / "whole")
    text = (workshop / "train.jsonl").read_text()
    (workshop / "train.jsonl").write_text(text.replace("question 3", "question 4"))
    with pytest.raises(ValueError, match="checkpoint-2 was trained on other rankings or offsets than those given now"):
        run(workshop, *STEPS, "trainer.max_steps=2")
    (workshop / "train.jsonl").write_text(text)
    assert run(workshop, *STEPS, "trainer.max_steps=2").model.exists()


def test_rankings_that_are_all_tied_train_nothing(workshop):
    answers = [{"rank": 1, "completion": text} for text in ("a", "b")]
    line = json.dumps({"context": "q", "completions": answers}) + "\n"
    (workshop / "train.jsonl").write_text(line * 3)
    with pytest.raises(ValueError, match=r"train\.jsonl: every ranking is tied throughout"):
        run(workshop)
    assert not (workshop / "run").exists()


@pytest.mark.parametrize(
    ("setting", "problem"),
    [("save_only_model=true", "save_total_limit instead"), ("eval_on_start=true", "names no held-out rankings")],
)
def test_settings_that_would_stop_a_run_or_keep_it_from_going_on_are_refused_first(workshop, setting, problem):
    with pytest.raises(ValueError, match=problem):
        run(workshop, "method=full", "data.eval=[]", f"trainer.{setting}")
    assert not (workshop / "run").exists()


def test_two_processes_train_a_recipe_to_the_model_of_one(workshop):
    """By the command of docs/4-train.md; the first process alone writes the run folder. The head begins at zero: whatever the
    objective, here all_pairs three times over, the first nll of rankings of three is log 3!."""
    overrides = ["method=full", "trainer.max_steps=3", "trainer.eval_strategy=epoch"]
    overrides += ["objective=all_pairs", "objective_options.gap_weights=[3]"]
    single = run(workshop, *overrides)
    kwise = Path(sys.executable).with_name("kwise")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    launch += ["--rdzv-endpoint", "localhost:0", "--no-python", str(kwise), "train", str(workshop / "recipe.toml")]
    done = subprocess.run(
        [*launch, *overrides, f"output='{workshop / 'two'}'"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    models = [
        AutoModelForSequenceClassification.from_pretrained(folder)
        for folder in (single.model, workshop / "two" / "model")
    ]
    for name, tensor in models[0].state_dict().items():
        torch.testing.assert_close(models[1].state_dict()[name], tensor, rtol=1e-5, atol=1e-6)
    logs = [
        [
            json.loads(line)
            for line in (workshop / folder / "metrics.jsonl").read_text().splitlines()
            if '"loss"' in line
        ]
        for folder in ("run", "two")
    ]
    for key, first in (("loss", 3 * math.log(2)), ("nll", math.log(6))):
        losses = [[entry[key] for entry in own] for own in logs]
        assert len(losses[0]) == 3 and losses[1] == pytest.approx(losses[0], rel=1e-6)
        assert losses[1][0] == pytest.approx(first, rel=1e-6)


def test_options_of_the_objective_reach_the_head_fit_and_the_models_settings(workshop):
    """The more often the judge is taken to be wrong, the less far apart the rewards."""
    spreads = []
    for e in (0.0, 0.4):
        output = workshop / f"smoothed{e}"
        options = ["objective=all_pairs", f"objective_options.smoothing={e}", f"output='{output}'"]
        model = RewardModel.from_pretrained(run(workshop, *options).model)
        scores = model.score(PROMPT, ["salt salt water", "water", "perhaps some salt"])
        spreads.append(max(scores) - min(scores))
        trained = json.loads((output / "model" / "kwise.json").read_text())["trained"]
        assert (trained["objective"], trained["objective_options"]) == ("all_pairs", {"smoothing": e})
    assert spreads[1] < spreads[0] / 2


def test_the_head_fit_cuts_the_backbone_where_held_out_prompts_are_read_best(workshop):
    both = load_recipe(workshop / "recipe.toml", ["fit.layers=[1, 2]", f"output={workshop / 'both'}"])
    result = train(both)
    tried = [entry for entry in entries(workshop / "both") if "ridge_held_out_loss" in entry]
    best = min(tried, key=lambda entry: entry["ridge_held_out_loss"])
    model = RewardModel.from_pretrained(result.model)
    assert {entry["layer"] for entry in tried} == {1, 2}
    assert model.model.config.num_hidden_layers == model.settings.trained["layer"] == best["layer"]
    alone = load_recipe(workshop / "recipe.toml", [f"model.layers={best['layer']}", f"output={workshop / 'alone'}"])
    weight = RewardModel.from_pretrained(train(alone).model).model.score.weight
    torch.testing.assert_close(model.model.score.weight, weight, atol=1e-5, rtol=1e-4)


def test_covariates_are_reported_with_intervals_and_left_out_of_scores(workshop):
    recipe = load_recipe(
        workshop / "recipe.toml", ['fit.covariates=["length", "salty=salt"]', f"output={workshop / 'run2'}"]
    )
    model = RewardModel.from_pretrained(train(recipe).model)
    found = model.settings.trained["covariates"]
    assert list(found) == ["length", "salty"]
    assert all(each["low"] < each["coefficient"] < each["high"] for each in found.values())
    # the score is the head's alone, as any tool that loads the folder computes it
    answers = ["salt salt water 2", "water 0"]
    plain = AutoModelForSequenceClassification.from_pretrained(workshop / "run2" / "model")
    tokenizer = AutoTokenizer.from_pretrained(workshop / "run2" / "model")
    for answer, score in zip(answers, model.score(PROMPT, answers), strict=True):
        turns = [*PROMPT, {"role": "assistant", "content": answer}]
        ids = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)
        assert plain(**ids).logits.item() == pytest.approx(score, abs=1e-5)


def test_a_fitted_head_has_error_bars_and_one_that_was_trained_on_has_none(workshop):
    model = RewardModel.from_pretrained(train(load_recipe(workshop / "recipe.toml")).model)
    assert model.uncertainty.facts | {"ridge": 0} == {"kind": "fisher", "rankings": 12, "prompts": 12, "ridge": 0}
    found = model.assess(PROMPT, ["salt salt water 2", "water 0", "water 0"], c=2.0)
    assert found.rewards == pytest.approx(model.score(PROMPT, ["salt salt water 2", "water 0", "water 0"]), abs=1e-5)
    assert all(error > 0 for error in found.errors)
    assert found.lower == pytest.approx(
        [reward - 2 * error for reward, error in zip(found.rewards, found.errors, strict=True)]
    )
    assert found.beats[1][2] == pytest.approx(0.5, abs=1e-5)
    doubtless = 1 / (1 + math.exp(found.rewards[1] - found.rewards[0]))
    assert abs(found.beats[0][1] - 0.5) < abs(doubtless - 0.5)
    overrides = ["method=lora", "fit_head_first=true", f"output={workshop / 'lora'}", "trainer.max_steps=1"]
    lora = RewardModel.from_pretrained(train(load_recipe(workshop / "recipe.toml", overrides)).model)
    assert lora.uncertainty is None
    with pytest.raises(ValueError, match="kwise uncertainty"):
        lora.assess(PROMPT, ["a", "b"])


def test_a_backbone_trained_from_a_head_with_covariates_keeps_their_coefficients(workshop):
    overrides = ["method=full", "fit_head_first=true", "trainer.max_steps=1", "trainer.rankings_per_step=12"]
    run = workshop / "offsets"
    recipe = load_recipe(workshop / "recipe.toml", [*overrides, 'fit.covariates=["length"]', f"output={run}"])
    model = RewardModel.from_pretrained(train(recipe).model)
    assert set(model.settings.trained["covariates"]) == {"length"}
    # the first step's loss is the fit's own, which has the covariate in it: both are over all twelve rankings
    (first,) = [entry["loss"] for entry in entries(run) if "step" in entry and "loss" in entry and "nll" in entry]
    assert first == pytest.approx(model.settings.trained["loss"], abs=1e-4)


def test_adapters_trained_on_weights_of_four_bits_are_merged_into_whole_ones(workshop):
    pytest.importorskip("bitsandbytes")
    config = AutoConfig.from_pretrained(workshop / "base", hidden_size=64, intermediate_size=128, head_dim=16)
    AutoModelForCausalLM.from_config(config).save_pretrained(workshop / "base")  # its blocks have 64 weights
    steps = ("method=lora", "model.quantize=nf4", "trainer.num_train_epochs=20")
    result = run(workshop, *steps, "lora.target_modules=['q_proj']")
    assert result.after["pair_accuracy"].value > result.before["pair_accuracy"].value
    base = load_file(workshop / "base" / "model.safetensors")
    trained = load_file(result.model / "model.safetensors")
    for name, tensor in trained.items():
        if "q_proj" not in name and name in base:
            assert torch.equal(tensor, base[name]), name  # no trace of the quantisation
    assert any(not torch.equal(trained[name], base[name]) for name in trained if "q_proj" in name)


def test_weights_of_four_bits_are_refused_where_they_cannot_be(workshop, monkeypatch):
    with pytest.raises(ValueError, match=r"model\.quantize: weights of 4 bits cannot be trained themselves"):
        run(workshop, "method=full", "model.quantize=nf4")
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    with pytest.raises(ValueError, match=r"pip install 'kwise\[qlora\]'"):
        run(workshop, "method=lora", "model.quantize=nf4")


def entries(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_second_run_on_the_same_files_reads_what_the_first_encoded(workshop, capsys, monkeypatch):
    monkeypatch.setenv("KWISE_CACHE", str(workshop / "cache"))
    for name, words in (("one", "kept in"), ("two", "encoded before")):
        run(workshop, "method=full", "trainer.max_steps=1", f"output={workshop / name}")
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "rankings a second" in line]
        assert "train.jsonl: 12 rankings" in line and words in line
    data = [json.loads((workshop / name / "data.json").read_text()) for name in ("one", "two")]
    assert data[0] == data[1] and data[1]["files"][str(workshop / "train.jsonl")]["answers"] == 36
