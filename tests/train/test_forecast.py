import mmap
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import PartialState
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from kwise.cli import app
from kwise.train import forecast as module
from kwise.train.forecast import Forecast, Meter, forecast
from kwise.train.recipe import load_recipe
from kwise.train.run import NO_ACCELERATOR


def test_a_meter_sees_memory_that_is_gone_when_it_ends():
    meter = Meter(torch.device("cpu"))
    before = meter.process.memory_info().rss
    # straight from the system: what the allocator has kept of earlier tests would not be new memory
    with meter, mmap.mmap(-1, 2**27) as block:
        for place in range(0, 2**27, mmap.PAGESIZE):
            block[place] = 1
        time.sleep(0.05)
    assert meter.peak - before > 0.9 * 2**27
    assert meter.seconds >= 0.05


def test_what_is_only_timed_has_no_thread_beside_it_that_takes_time():
    for watched in (True, False):
        with Meter(torch.device("cpu"), watched):
            names = [thread.name for thread in threading.enumerate()]
        assert any("_watch" in name for name in names) == watched


def test_the_memory_line_goes_through_points_of_a_line_and_of_a_parabola():
    tokens = np.array([100, 500, 1000, 1500])
    line = module._memory_line(tokens, 7e8 + 3e5 * tokens, dense=False)
    assert line(4000) == pytest.approx(7e8 + 3e5 * 4000)
    dense = module._memory_line(tokens, 7e8 + 3e5 * tokens + 40.0 * tokens**2, dense=True)
    assert dense(4000) == pytest.approx(7e8 + 3e5 * 4000 + 40 * 4000**2)
    assert module._largest(line, 7e8 + 3e5 * 4000 + 10, 10_000) == 4000
    assert module._largest(line, 7e8 + 3e5 * 4000 + 10, 900) == 900
    assert module._largest(line, 1e6, 10_000) == 0


def test_one_length_makes_no_line():
    with pytest.raises(ValueError, match="too few or too short"):
        module._memory_line(np.array([1, 30, 30, 30]), np.array([1e9, 2e9, 2e9, 2e9]), dense=False)


def test_of_the_rounds_the_fastest_time_and_the_highest_peak_count():
    first = [(10, 9.0, 1), (20, 2.0, 2), (30, 3.0, 9), (40, 4.0, 4)]
    again = [(10, 1.0, 5), (20, 2.5, 3), (30, 2.0, 8), (40, 5.0, 6)]
    assert module._best(first + again) == [(10, 1.0, 5), (20, 2.0, 3), (30, 2.0, 9), (40, 4.0, 6)]


@pytest.fixture
def recipe_file(tmp_path, tokenizer):
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    path = tmp_path / "recipe.toml"
    path.write_text(
        f"""
method = "full"
output = "{tmp_path / "run"}"
data = {{ train = ["starter:train"], eval = ["starter:heldout"], max_length = 512 }}
model = {{ base = "{tmp_path / "base"}" }}
[trainer]
tokens_per_row = 2048
rankings_per_step = 16
num_train_epochs = 2
use_cpu = true
eval_strategy = "epoch"
eval_on_start = true
"""
    )
    return path


@pytest.mark.parametrize("method", ["full", "lora", "head"])
def test_a_dry_run_says_what_it_takes_and_leaves_nothing_behind(recipe_file, tmp_path, method):
    before = sorted(tmp_path.iterdir())
    found = forecast(load_recipe(recipe_file, [f"method={method}"] + (["trainer={}"] if method == "head" else [])))
    assert sorted(tmp_path.iterdir()) == before
    assert found.seconds > 0 and found.scoring_seconds > 0 and found.memory > 0
    sizes = [tokens for tokens, _, _ in found.measured]
    assert sizes == sorted(sizes) and sizes[-1] <= 0.75 * found.rows.longest_row
    if method != "head":
        assert found.rows.rankings == 127 and found.rows.longest_row <= 2048
        assert found.steps == 2 * 8
    assert "DOES NOT FIT" not in str(found)


@pytest.mark.skipif(not NO_ACCELERATOR, reason="a Mac has no other accelerator")
def test_a_dry_run_of_a_head_fit_is_on_the_cpu_of_a_mac(recipe_file, monkeypatch):
    monkeypatch.setattr("accelerate.state.is_mps_available", lambda: True)
    PartialState._reset_state()
    assert forecast(load_recipe(recipe_file, ["method=head", "trainer={}"])).seconds > 0


def test_several_processes_are_told_that_a_dry_run_is_of_one(recipe_file):
    several = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    dry = [str(Path(sys.executable).with_name("kwise")), "train", str(recipe_file), "--dry-run"]
    no_gpu = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*several, *dry], env=no_gpu, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "start it without torchrun" in done.stderr


def test_a_dry_run_makes_no_repository_on_the_hub(recipe_file, monkeypatch):
    made = []
    monkeypatch.setattr("transformers.Trainer.init_hf_repo", lambda *_, **__: made.append("repository"))
    forecast(load_recipe(recipe_file, ["trainer.push_to_hub=true"]))
    assert not made


def test_a_dry_run_is_made_also_of_a_schedule_that_goes_by_the_evaluation(recipe_file):
    assert forecast(load_recipe(recipe_file, ["trainer.lr_scheduler_type=reduce_lr_on_plateau"])).seconds > 0


@pytest.mark.parametrize("budget", [600, 1200])
def test_rows_of_different_length_are_measured_also_where_every_ranking_is_over_the_budget(recipe_file, budget):
    found = forecast(load_recipe(recipe_file, [f"trainer.tokens_per_row={budget}"]))
    assert found.rows.again > 0
    sizes = [tokens for tokens, _, _ in found.measured]
    for part, size in zip(module.PARTS[1:], sizes[1:], strict=True):
        assert 0.3 * part * budget < size <= part * max(budget, found.rows.longest_row)
    assert len(set(sizes[1:])) == 3


def test_what_does_not_fit_is_said():
    facts = {"rows": module.Tally(), "steps": 1, "longest_that_fits": 5, "seconds": 1.0, "scoring_seconds": 1.0}
    assert "DOES NOT FIT in 1.0 GiB" in str(Forecast(memory=2**31, available=2**30, measured=[], **facts))


def test_the_command_prints_tokens_rows_memory_and_time(recipe_file):
    result = CliRunner().invoke(app, ["train", str(recipe_file), "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "train_runtime" not in result.output
    for word in ("tokens in", "rows", "GiB", "of training"):
        assert word in result.output
    wrong = CliRunner().invoke(app, ["train", str(recipe_file), "--dry-run", "data.train=['nowhere.jsonl']"])
    assert wrong.exit_code == 1
