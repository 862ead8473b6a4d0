"""A run that goes on from a checkpoint, ends early, or is told to stop."""

import os
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from trainers import logged, make_rankings, make_trainer
from transformers import TrainerCallback

from kwise.train.checkpoints import SEAL, fault
from kwise.train.guards import TrainingStopped


def test_samples_per_second_count_rankings(tokenizer, tmp_path):
    trainer = make_trainer(tokenizer, tmp_path, rankings_per_step=2, max_steps=3)
    trainer.train()
    (end,) = (entry for entry in trainer.state.log_history if "train_runtime" in entry)
    assert end["train_samples_per_second"] == pytest.approx(3 * 2 / end["train_runtime"], rel=1e-2)


def test_a_checkpoint_of_the_model_alone_is_refused_in_words(tokenizer, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 1, "save_only_model": True}
    make_trainer(tokenizer, tmp_path, **settings).train()
    with pytest.raises(ValueError, match="holds the model only"):
        make_trainer(tokenizer, tmp_path, **settings).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("metric", ["nll", "top1_ece", "loss", "eval_pair_accuracy"])
def test_the_best_checkpoint_is_that_of_the_best_value_whichever_way_is_better(tokenizer, tmp_path, metric):
    trainer = make_trainer(
        tokenizer,
        tmp_path,
        held_out=make_rankings(20, seed=1),
        max_steps=4,
        learning_rate=1e-2,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model=metric,
    )
    trainer.train()
    name = metric if metric.startswith("eval_") else f"eval_{metric}"
    values = logged(trainer, name)
    assert len(set(values)) > 1
    lower = metric.removeprefix("eval_") in ("nll", "ece", "top1_ece", "loss")
    assert trainer.state.best_metric == (min(values) if lower else max(values))
    assert trainer.evaluate()[name] == pytest.approx(trainer.state.best_metric, abs=1e-6)


def saved_at_step_2(tokenizer, folder, **options):
    make_trainer(tokenizer, folder, max_steps=2, save_strategy="steps", save_steps=1, **options).train()


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"offsets": [[0.5] * len(each.ranks) for each in make_rankings()]}, "other rankings or offsets"),
        ({"objective": "all_pairs"}, "of a run with another objective"),
        ({"rankings_per_step": 4}, "of a run with another rankings_per_step"),
        ({"seed": 1}, "of a run with another seed"),
        ({"learning_rate": 1e-5, "weight_decay": 0.1}, "of a run with another learning_rate, weight_decay"),
        ({"optim": "adafactor"}, "of a run with another optim$"),
        ({"optim": "sgd", "optim_args": "momentum=0.9"}, "of a run with another optim, optim_args"),
        ({"max_steps": 1}, "beyond step 1, with which this run would end"),
        ({"max_steps": -1, "num_train_epochs": 0.5}, "beyond step 1, with which this run would end"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_with_what_differs(tokenizer, tmp_path, changed, problem):
    saved_at_step_2(tokenizer, tmp_path)
    with pytest.raises(ValueError, match=problem):
        make_trainer(tokenizer, tmp_path, **{"max_steps": 4, **changed}).train(resume_from_checkpoint=True)


def test_of_several_processes_the_main_one_alone_looks_for_the_newest_checkpoint(tokenizer, tmp_path, monkeypatch):
    """Each would remove what is not whole, and fail on a file that another one has removed."""
    saved_at_step_2(tokenizer, tmp_path)
    (tmp_path / "checkpoint-2" / SEAL).unlink()
    trainer = make_trainer(tokenizer, tmp_path, max_steps=2)
    monkeypatch.setattr(type(trainer.accelerator), "is_main_process", False)
    heard = [tmp_path / "checkpoint-1"]
    monkeypatch.setattr("kwise.train.trainer.broadcast_object_list", lambda found: found.__setitem__(0, heard[0]))
    trainer.train(resume_from_checkpoint=True)
    assert trainer.resumed_at == 1
    assert (tmp_path / "checkpoint-2").exists()


def test_the_evaluation_at_the_start_is_not_made_again_by_a_run_that_goes_on(tokenizer, tmp_path):
    options = {"held_out": make_rankings(4, seed=1), "eval_on_start": True, "eval_strategy": "steps", "eval_steps": 2}
    saved_at_step_2(tokenizer, tmp_path, **options)
    trainer = make_trainer(tokenizer, tmp_path, max_steps=4, **options)
    trainer.train(resume_from_checkpoint=True)
    steps = [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert steps == [0, 2, 4]
    assert trainer.args.eval_on_start


def test_a_run_that_goes_on_logs_evaluates_and_saves_as_often_as_it_is_told_now(tokenizer, tmp_path):
    held_out = {"held_out": make_rankings(4, seed=1), "eval_strategy": "steps"}
    saved_at_step_2(tokenizer, tmp_path, eval_steps=1, **held_out)
    often = {"logging_steps": 2, "eval_steps": 4, "save_steps": 3, "save_strategy": "steps"}
    trainer = make_trainer(tokenizer, tmp_path, max_steps=8, **often, **held_out)
    trainer.train(resume_from_checkpoint=True)
    later = [entry for entry in trainer.state.log_history if entry["step"] > 2]
    assert [entry["step"] for entry in later if "loss" in entry] == [4, 6, 8]
    assert [entry["step"] for entry in later if "eval_loss" in entry] == [4, 8]
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {f"checkpoint-{step}" for step in (1, 2, 3, 6, 8)}


def test_a_run_stopped_early_by_an_evaluation_saves_what_is_due_at_its_epochs_end(tokenizer, tmp_path):
    class Stop(TrainerCallback):
        def on_evaluate(self, args, state, control, **_):
            control.should_training_stop = state.global_step == 3
            return control

    options = {"rankings_per_step": 2, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "epoch"}
    trainer = make_trainer(tokenizer, tmp_path, held_out=make_rankings(4, seed=1), **options)
    trainer.add_callback(Stop())
    trainer.train()
    assert trainer.state.global_step == 3
    assert fault(tmp_path / "checkpoint-3") is None


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tokenizer, tmp_path):
    whole = make_trainer(tokenizer, tmp_path / "whole", num_train_epochs=2)
    whole.train()
    options = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 1}
    make_trainer(tokenizer, tmp_path / "cut", **options).train()
    resumed = make_trainer(tokenizer, tmp_path / "cut", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-3"))
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_of_two_runs_in_one_folder_the_first_ones_checkpoints_go_first(tokenizer, tmp_path):
    options = {"rankings_per_step": 2, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}
    make_trainer(tokenizer, tmp_path, max_steps=6, **options).train()
    for checkpoint in tmp_path.glob("checkpoint-*"):
        os.utime(checkpoint, (1e9, 1e9))  # years ago
    make_trainer(tokenizer, tmp_path, max_steps=3, seed=1, **options).train()
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-3"}


def test_a_stop_saves_also_where_an_earlier_run_left_a_checkpoint_of_that_step(tokenizer, tmp_path):
    make_trainer(tokenizer, tmp_path, save_strategy="steps", save_steps=1).train()
    trainer = make_trainer(tokenizer, tmp_path, make_rankings(12, seed=1))
    trainer.stop = SimpleNamespace(number=15)
    with pytest.raises(TrainingStopped) as stopped:
        trainer.train()
    assert stopped.value.code == 143
    saved = load_file(tmp_path / "checkpoint-1" / "model.safetensors")
    assert torch.equal(saved["score.weight"], trainer.decoder.score.weight)
    assert fault(tmp_path / "checkpoint-1") is None
    with pytest.raises(ValueError, match="was trained on other rankings"):
        make_trainer(tokenizer, tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
