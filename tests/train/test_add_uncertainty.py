import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner
from workshop import PROMPT

from kwise import RewardModel
from kwise.cli import app
from kwise.model.reward_model import Settings
from kwise.train.add_uncertainty import add_uncertainty, fitted_under_bf16
from kwise.train.recipe import load_recipe
from kwise.train.run import train


def add(model, folder, kind=None):
    return add_uncertainty(model, [str(folder / "train.jsonl")], folder / "cache", kind, "auto", Console(quiet=True))


def test_a_fitted_heads_uncertainty_made_afterwards_is_the_one_it_was_saved_with(workshop):
    model = RewardModel.from_pretrained(train(load_recipe(workshop / "recipe.toml")).model)
    saved = model.uncertainty
    again = add(model, workshop)
    assert again.facts == saved.facts
    torch.testing.assert_close(again.root @ again.root.T, saved.root @ saved.root.T, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("bf16", ["true", "false"])
def test_the_features_that_the_fit_cached_are_read_again_in_their_precision(workshop, bf16):
    folder = train(load_recipe(workshop / "recipe.toml", [f"trainer.bf16={bf16}"])).model
    saved = RewardModel.from_pretrained(folder).uncertainty
    (folder / "uncertainty.kwise").unlink()
    cached = {path.name: path.stat().st_mtime_ns for path in (folder.parent / "features").iterdir()}
    result = CliRunner().invoke(app, ["uncertainty", str(folder), str(workshop / "train.jsonl")])
    assert result.exit_code == 0, result.output
    assert {path.name: path.stat().st_mtime_ns for path in (folder.parent / "features").iterdir()} == cached
    again = RewardModel.from_pretrained(folder).uncertainty
    torch.testing.assert_close(again.root @ again.root.T, saved.root @ saved.root.T, rtol=1e-3, atol=1e-5)


def test_a_model_without_a_run_folder_was_not_fitted_under_bf16(workshop):
    folder = train(load_recipe(workshop / "recipe.toml", ["trainer.bf16=true"])).model
    assert fitted_under_bf16(folder)
    folder.rename(workshop / "elsewhere")
    (workshop / "recipe.toml").unlink()
    assert not fitted_under_bf16(workshop / "elsewhere")


@pytest.mark.parametrize("kind", ["fisher", "sandwich", "paper"])
def test_a_model_trained_by_lora_gets_error_bars_that_are_kept_and_found(workshop, kind):
    overrides = ["method=lora", "trainer.max_steps=2", "trainer.learning_rate=0.01"]
    result = train(load_recipe(workshop / "recipe.toml", overrides))
    model = RewardModel.from_pretrained(result.model)
    assert model.uncertainty is None
    add(model, workshop, kind).save(result.model)
    loaded = RewardModel.from_pretrained(result.model)
    assert loaded.uncertainty.facts["kind"] == kind
    found, wanted = (each.assess(PROMPT, ["salt salt", "water"]) for each in (loaded, model))
    assert found.rewards == wanted.rewards
    # a product of matrices may differ in its last digit with where in memory they lie
    for got, kept in ((found.errors, wanted.errors), (found.lower, wanted.lower)):
        assert got == pytest.approx(kept, rel=1e-6)
    torch.testing.assert_close(torch.tensor(found.beats), torch.tensor(wanted.beats), rtol=0, atol=1e-14)
    # far from what it was trained on it is less sure, and the best answer is then the one it knows
    known, strange = loaded.assess(PROMPT, ["salt salt water 4", "?? ()(]{{{ 77 zz # zz # 88"]).errors
    assert known < strange


def test_an_unknown_kind_is_refused_before_anything_is_run(workshop):
    model = RewardModel.from_pretrained(train(load_recipe(workshop / "recipe.toml")).model)
    with pytest.raises(ValueError, match="unknown kind 'fischer'; known: fisher, sandwich, paper"):
        add(model, workshop, "fischer")
    assert not (workshop / "cache").exists()


def test_rewards_that_are_not_read_at_the_last_token_get_no_error_bars(workshop):
    model = RewardModel.from_pretrained(train(load_recipe(workshop / "recipe.toml")).model)
    card = RewardModel(model.model, model.tokenizer, Settings(64, reward_at="card"))
    with pytest.raises(ValueError, match="the rule 'card'"):
        add(card, workshop)
