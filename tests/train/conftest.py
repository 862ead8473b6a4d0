"""A workshop for runs: a base model, rankings and a recipe, all tiny."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from workshop import write_rankings


@pytest.fixture
def workshop(tmp_path, tokenizer):
    """A tiny base model, training and held-out rankings, and a recipe that uses them."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)  # so that responses differ clearly, as in a trained model
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    write_rankings(tmp_path / "train.jsonl", 12, noise=4)
    write_rankings(tmp_path / "heldout.jsonl", 6, offset=100)
    (tmp_path / "recipe.toml").write_text(f"""
method = "head"
output = '{tmp_path / "run"}'
[data]
train = ['{tmp_path / "train.jsonl"}']
eval = ['{tmp_path / "heldout.jsonl"}']
max_length = 64
[model]
base = '{tmp_path / "base"}'
[lora]
r = 2
[trainer]
use_cpu = true
disable_tqdm = true
rankings_per_step = 4
learning_rate = 1e-3
""")
    return tmp_path
