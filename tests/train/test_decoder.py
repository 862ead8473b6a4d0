import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from trainers import LORA, make_model, make_rankings, make_trainer
from transformers import LlamaForSequenceClassification

from kwise import KwiseConfig, KwiseTrainer


def test_lora_trains_the_adapters_and_the_head_and_saves_both(tokenizer, tmp_path):
    trainer = make_trainer(
        tokenizer, tmp_path / "run", peft_config=LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS")
    )
    frozen = {n: p.clone() for n, p in trainer.model.named_parameters() if not p.requires_grad}
    head = trainer.decoder.score.weight.clone()
    trainer.train()
    assert not torch.equal(trainer.decoder.score.weight, head)
    for name, parameter in trainer.model.named_parameters():
        assert name not in frozen or torch.equal(parameter, frozen[name]), name
    trainer.save_model(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "adapter_model.safetensors")
    assert torch.equal(saved["base_model.model.score.weight"], trainer.decoder.score.weight)
    assert any("lora_B" in name and tensor.any() for name, tensor in saved.items())


def test_the_embedding_of_a_token_that_was_the_bases_pad_is_trained_too(tokenizer, tmp_path):
    """As of SmolLM2, whose turns end with its pad token."""
    tokenizer.pad_token = tokenizer.eos_token = "<|im_end|>"
    model = make_model(len(tokenizer), tokenizer.pad_token_id)
    ends, before = tokenizer.eos_token_id, model.model.embed_tokens.weight.detach().clone()
    config = KwiseConfig(str(tmp_path), max_steps=1, report_to="none", use_cpu=True, max_length=128, save_strategy="no")
    trainer = KwiseTrainer(model, config, make_rankings(), None, tokenizer)
    torch.nn.init.ones_(trainer.decoder.score.weight)  # so that there is a gradient at the first step
    trainer.train()
    assert (trainer.decoder.model.embed_tokens.weight[ends] != before[ends]).any()


def test_the_head_beside_adapters_of_a_half_precision_base_is_trained_in_float32(tokenizer, tmp_path):
    """A weight of 0.5 has a step of 0.002 in bfloat16: updates of 0.0001 would all round to nothing."""
    model = make_model(len(tokenizer), tokenizer.pad_token_id).bfloat16()
    torch.nn.init.constant_(model.score.weight, 0.5)
    settings = {"learning_rate": 1e-4, "lr_scheduler_type": "constant", "num_train_epochs": 1, "rankings_per_step": 6}
    config = KwiseConfig(str(tmp_path), **settings, report_to="none", use_cpu=True, max_length=128, save_strategy="no")
    trainer = KwiseTrainer(model, config, make_rankings(), None, tokenizer, LORA)
    trainer.train()
    weight = trainer.decoder.score.weight
    assert weight.dtype == torch.float32
    assert (weight != 0.5).all()
    assert (weight.bfloat16() == 0.5).all()


@pytest.mark.parametrize("saved", [None, ["score"]])
def test_adapters_made_outside_must_train_the_head_itself(tokenizer, tmp_path, saved):
    model = make_model(len(tokenizer), tokenizer.pad_token_id)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", modules_to_save=saved))
    config = KwiseConfig(str(tmp_path), report_to="none", use_cpu=True, max_length=128)
    if saved:
        assert KwiseTrainer(adapted, config, make_rankings(), None, tokenizer).decoder.score.weight.requires_grad
    else:
        with pytest.raises(ValueError, match=r"modules_to_save=\['score'\]"):
            KwiseTrainer(adapted, config, make_rankings(), None, tokenizer)


def test_a_head_of_two_labels_is_refused_before_it_is_trained(tokenizer, tmp_path):
    config = make_model(len(tokenizer)).config
    config.num_labels = 2
    with pytest.raises(ValueError, match="no bias-free linear head 'score'"):
        KwiseTrainer(
            LlamaForSequenceClassification(config), KwiseConfig(str(tmp_path), use_cpu=True), [], [], tokenizer
        )


def test_what_is_saved_is_no_classifier_to_pipelines_and_servers(tokenizer, tmp_path):
    trainer = make_trainer(tokenizer, tmp_path)
    trainer.save_model(str(tmp_path / "model"))
    assert json.loads((tmp_path / "model" / "config.json").read_text())["problem_type"] == "regression"


def test_weights_trained_in_half_precision_are_warned_of_and_adapters_on_them_are_not(tokenizer, tmp_path, caplog):
    model = make_model(len(tokenizer), tokenizer.pad_token_id).bfloat16()
    config = KwiseConfig(str(tmp_path), use_cpu=True)
    KwiseTrainer(model, config, make_rankings(), [], tokenizer, LORA)
    assert "round to nothing" not in caplog.text
    model = make_model(len(tokenizer), tokenizer.pad_token_id).bfloat16()
    KwiseTrainer(model, config, make_rankings(), [], tokenizer)
    assert "weights to be trained are in torch.bfloat16: steps below" in caplog.text


def test_adapters_begin_alike_whatever_was_drawn_before(tokenizer, tmp_path):
    drawn = []
    for seed in (1, 2):
        model = make_model(len(tokenizer), tokenizer.pad_token_id)
        torch.manual_seed(seed)
        trainer = KwiseTrainer(model, KwiseConfig(str(tmp_path), use_cpu=True), make_rankings(), [], tokenizer, LORA)
        drawn.append({name: p.clone() for name, p in trainer.model.named_parameters() if "lora_A" in name})
    assert drawn[0] and all(torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])
