"""A workshop for runs: a base model, rankings and a recipe, all tiny."""

import pytest
from workshop import write_rankings


@pytest.fixture
def workshop(tmp_path, base):
    """A tiny base model, training and held-out rankings, and a recipe that uses them."""
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
base = '{base}'
[lora]
r = 2
[trainer]
use_cpu = true
disable_tqdm = true
rankings_per_step = 4
learning_rate = 1e-3
""")
    return tmp_path
