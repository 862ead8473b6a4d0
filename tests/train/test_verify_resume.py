import pytest
import torch
from safetensors.torch import save_file
from workshop import write_rankings

from kwise.train import verify_resume as module
from kwise.train.recipe import load_recipe
from kwise.train.verify_resume import verify_resume

LORA = ("method=lora", "lora.dropout=0.1", "trainer.logging_steps=3", "trainer.eval_on_start=true")


def test_a_run_that_goes_on_exactly_is_found_equal_and_nothing_is_left_behind(workshop):
    write_rankings(workshop / "train.jsonl", 40, noise=4)
    before = sorted(workshop.iterdir())
    assert verify_resume(load_recipe(workshop / "recipe.toml", LORA)) == []
    assert sorted(workshop.iterdir()) == before


def test_a_schedule_that_goes_by_the_evaluation_is_verified_without_it(workshop):
    write_rankings(workshop / "train.jsonl", 40, noise=4)
    schedule = ["trainer.lr_scheduler_type=reduce_lr_on_plateau", "trainer.eval_strategy=epoch"]
    assert verify_resume(load_recipe(workshop / "recipe.toml", [*LORA, *schedule])) == []


def test_what_differs_is_said(tmp_path):
    """A planted difference in each kind of thing compared."""
    assert module._unequal({"a": [torch.ones(2), 3]}, {"a": [torch.ones(2), 3]}, "x") == []
    assert module._unequal({"a": [torch.ones(2), 3]}, {"a": [torch.tensor([1.0, 1.5]), 4]}, "x") == [
        "x, a, 0: differs by up to 5.0e-01",
        "x, a, 1: 3 and 4",
    ]
    assert module._unequal({"a": 1}, {"b": 1}, "x") == ["x: {'a': 1} and {'b': 1}"]
    assert module._unequal([1], [1, 2], "x") == ["x: [1] and [1, 2]"]
    assert module._unequal(1, 1.0, "x") == ["x: 1 and 1.0"]


@pytest.mark.parametrize(
    "spoil",
    ["model-00002-of-00002.safetensors", "optimizer.pt", "scheduler.pt", "sums_0.pt", "metrics.jsonl"],
)
def test_a_difference_in_any_file_of_a_run_is_found_also_in_the_last_shard(tmp_path, spoil):
    def run(name, changed):
        checkpoint = tmp_path / name / "checkpoints" / f"checkpoint-{module.STEPS}"
        checkpoint.mkdir(parents=True)
        for file in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
            save_file({"weight": torch.full((2,), float(changed and file == spoil))}, checkpoint / file)
        for file in ("optimizer.pt", "scheduler.pt", "sums_0.pt"):
            torch.save({"state": int(changed and file == spoil)}, checkpoint / file)
        line = f'{{"loss": {int(changed and spoil == "metrics.jsonl")}, "train_runtime": {int(changed)}}}'
        (tmp_path / name / "metrics.jsonl").write_text(line + "\n", encoding="utf-8")
        return tmp_path / name

    whole = run("whole", changed=False)
    assert module._differences(whole, run("same", changed=False)) == []
    (found,) = module._differences(whole, run("other", changed=True))
    assert found.startswith(spoil)


def test_a_run_whose_weights_cannot_be_compared_is_not_called_equal(tmp_path):
    for name in ("whole", "killed"):
        (tmp_path / name / "checkpoints" / f"checkpoint-{module.STEPS}").mkdir(parents=True)
    with pytest.raises(ValueError, match="no weights"):
        module._differences(tmp_path / "whole", tmp_path / "killed")


def test_a_recipe_that_fails_or_has_no_steps_says_why(workshop):
    with pytest.raises(ValueError, match="a head fit has no steps"):
        verify_resume(load_recipe(workshop / "recipe.toml"))
    with pytest.raises(ValueError, match=r"failed:(.|\n)*nothing\.jsonl: no such file"):
        verify_resume(load_recipe(workshop / "recipe.toml", [*LORA, "data.train=['nothing.jsonl']"]))
    assert not list(workshop.glob("verify-resume-*"))
