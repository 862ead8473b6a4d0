from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig
from trainers import make_model, make_rankings, make_trainer

from kwise import KwiseConfig, KwiseTrainer


@pytest.mark.parametrize("name", ["compute_metrics", "compute_loss_func", "preprocess_logits_for_metrics"])
def test_functions_that_would_not_be_called_are_refused(tokenizer, tmp_path, name):
    model, config = make_model(len(tokenizer)), KwiseConfig(str(tmp_path), use_cpu=True)
    with pytest.raises(ValueError, match=f"{name}: would not be called"):
        KwiseTrainer(model, config, make_rankings(), [], tokenizer, **{name: print})


@pytest.mark.parametrize("name", ["rankings", "held_out"])
@pytest.mark.parametrize("given", [[{"prompt": "a", "chosen": "b", "rejected": "c"}], "train.jsonl"])
def test_data_that_are_no_rankings_are_refused_with_the_way_to_make_them(tokenizer, tmp_path, name, given):
    with pytest.raises(ValueError, match=r"_dataset: must be rankings, as kwise\.read_rankings gives them"):
        make_trainer(tokenizer, tmp_path, **{name: given})


def test_several_evaluation_sets_no_rankings_and_prompt_tuning_are_refused_in_words(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="eval_dataset: several data sets"):
        make_trainer(tokenizer, tmp_path, held_out={"one": make_rankings()})
    with pytest.raises(ValueError, match="there are no rankings to train on"):
        make_trainer(tokenizer, tmp_path, rankings=[]).train()
    with pytest.raises(ValueError, match="peft_config: prompt and prefix tuning"):
        make_trainer(tokenizer, tmp_path, peft_config=PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4))


def test_a_best_checkpoint_by_pairs_that_no_held_out_ranking_has_is_refused_before_training(tokenizer, tmp_path):
    settings = {"metric_for_best_model": "weak_pairs", "eval_strategy": "epoch"}
    held_out = make_rankings(4, seed=1)
    with pytest.raises(ValueError, match="metric_for_best_model: no held-out ranking has weak_pairs"):
        make_trainer(tokenizer, tmp_path, held_out=held_out, **settings)
    judged = [replace(each, columns={"judge_values": [rank**2 for rank in each.ranks]}) for each in held_out]
    trainer = make_trainer(tokenizer, tmp_path, held_out=judged, **settings)
    assert "eval_weak_pairs" in trainer.evaluate()


def test_adapters_of_a_language_model_are_refused_with_the_task_that_a_reward_model_has(tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"peft_config: .* task_type CAUSAL_LM, .* is SEQ_CLS"):
        make_trainer(tokenizer, tmp_path, peft_config=LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))


def test_a_mac_is_told_to_train_on_its_cpu(tokenizer, tmp_path, monkeypatch):
    # what finds the device sets up more than that
    monkeypatch.setattr(KwiseConfig, "device", property(lambda self: self._setup_devices and torch.device("mps")))
    with pytest.raises(ValueError, match="use_cpu: set it to True"):
        make_trainer(tokenizer, tmp_path)


def test_rankings_may_come_one_by_one(tokenizer, tmp_path):
    trainer = make_trainer(
        tokenizer, tmp_path, rankings=iter(make_rankings(5)), held_out=iter(make_rankings(3, seed=1))
    )
    assert (len(trainer.train_dataset), len(trainer.eval_dataset)) == (5, 3)


def test_a_metric_for_the_best_model_is_not_asked_for_where_nothing_is_held_out(tokenizer, tmp_path):
    assert make_trainer(tokenizer, tmp_path, metric_for_best_model="weak_pairs").eval_dataset is None
