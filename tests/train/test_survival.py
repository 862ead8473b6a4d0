"""Runs that are killed, stopped or starved, and go on as if nothing had been."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from workshop import write_rankings

from kwise.train.recipe import load_recipe
from kwise.train.run import train

TIMES = {"train_runtime", "train_samples_per_second", "train_steps_per_second"}
# dropout draws random numbers, a warm-up moves the rate, logs and checkpoints fall on different steps, epochs end between both
SETTINGS = [
    "method=lora",
    "lora.dropout=0.1",
    "trainer.num_train_epochs=3",
    "trainer.rankings_per_step=5",
    "trainer.warmup_steps=4",
    "trainer.lr_scheduler_type=cosine",
    "trainer.logging_steps=2",
    "trainer.save_strategy=steps",
    "trainer.save_steps=3",
    "trainer.eval_strategy=epoch",
]


def start(workshop, output, *overrides):
    """A run in a process of its own."""
    command = [sys.executable, __file__, str(workshop), f"output={output}", *SETTINGS, *overrides]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run(workshop, output, *overrides):
    train(load_recipe(workshop / "recipe.toml", [f"output={output}", *SETTINGS, *overrides]))
    return Path(output)


def entries(run):
    """What was logged, without times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def assert_alike(run, whole):
    """Weights, optimiser, schedule and log, bit for bit."""
    for name, tensor in load_file(whole / "model" / "model.safetensors").items():
        assert torch.equal(tensor, load_file(run / "model" / "model.safetensors")[name]), name
    last = max((whole / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1])).name
    for file in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "sums_0.pt"):
        assert_equal(load(run / "checkpoints" / last / file), load(whole / "checkpoints" / last / file), file)
    assert entries(run) == entries(whole)


def load(path):
    return torch.load(path, weights_only=False)  # the random state of numpy and Python; written by this test


def assert_equal(one, other, where):
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_equal(one[key], other[key], f"{where} {key}")
    elif isinstance(one, list | tuple):
        for n, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_equal(a, b, f"{where} {n}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif type(one).__name__ == "ndarray":
        assert (one == other).all(), where
    else:
        assert one == other, where


@pytest.mark.parametrize("step", [3, 6, 8])
def test_from_any_checkpoint_the_rest_of_the_run_is_the_same(workshop, step):
    """Step 3 lies between two logs, 6 and 9 on them or an epoch's end (3 steps an epoch), 8 is the last of a shorter run."""
    extra = [f"trainer.max_steps={step}"] if step == 8 else []
    whole = run(workshop, workshop / "whole", *extra)
    cut = run(workshop, workshop / "cut", *extra)
    (cut / "model").rename(workshop / "gone")
    for later in (cut / "checkpoints").glob("checkpoint-*"):
        if int(later.name.split("-")[1]) > step:
            later.rename(workshop / later.name)
    with (cut / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "loss')  # the line that the kill cut short
    run(workshop, cut, *extra)
    assert_alike(cut, whole)


def survive(workshop, whole, kills, seed):
    """Kill a run at ``kills`` random moments of its training, starting it again each time; gives the number of kills that hit."""
    chance, hits = random.Random(seed), 0
    output = workshop / f"killed{seed}"
    began = time.monotonic()
    process = start(workshop, output)
    for line in process.stdout:
        if "an epoch is" in line:
            began = time.monotonic()
    length = time.monotonic() - began
    assert process.wait() == 0
    assert_alike(output, whole)
    output = workshop / f"survived{seed}"
    while True:
        process = start(workshop, output)
        for line in process.stdout:
            if "an epoch is" in line:
                break
        if hits < kills:
            # a run that starts late has less left to do; most kills should still find it training
            time.sleep(chance.uniform(0, length / 4))
            process.kill()
            hits += process.wait() == -signal.SIGKILL
            if (output / "model").exists():
                return output, hits
        else:
            process.communicate()
            assert process.returncode == 0
            return output, hits


def test_a_run_killed_twice_ends_as_one_that_was_not(workshop):
    write_rankings(workshop / "train.jsonl", 40, noise=4)
    whole = run(workshop, workshop / "whole")
    output, hits = survive(workshop, whole, 2, seed=0)
    assert hits >= 1
    assert_alike(output, whole)


@pytest.mark.slow
def test_twenty_kills_change_nothing(workshop):
    write_rankings(workshop / "train.jsonl", 200, noise=4)
    whole = run(workshop, workshop / "whole")
    output, hits = survive(workshop, whole, 20, seed=1)
    assert hits >= 15
    assert_alike(output, whole)


def main(workshop, *overrides):
    """One run in a process of its own, started by ``start``."""
    os.environ["OMP_NUM_THREADS"] = "1"
    train(load_recipe(Path(workshop, "recipe.toml"), overrides))


if __name__ == "__main__":
    main(*sys.argv[1:])
