"""Runs that are killed, stopped or starved, and go on as if nothing had been."""

import json
import pkgutil
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from workshop import shard_on_cpus, write_rankings

from kwise.records import DataError
from kwise.train import step, trainer
from kwise.train.checkpoints import fault, newest, seal
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


def start(workshop, output, *overrides, processes=1):
    """A run in a process of its own, or in several."""
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(several if processes > 1 else []), __file__, str(workshop), f"output={output}"]
    command += [*SETTINGS, *overrides]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def until(process, text):
    """Read what ``process`` prints up to ``text``."""
    said = ""
    for line in process.stdout:
        said += line
        if text in line:
            return
    pytest.fail(f"never said '{text}': {said}")


def last_word(process):
    """Its exit code and what it said."""
    said, _ = process.communicate(timeout=200)
    return process.returncode, said


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


class Killed(BaseException):
    """As SIGKILL: nobody catches it."""


@pytest.mark.parametrize(
    ("owner", "name", "time_of_call"),
    [
        ("kwise.train.trainer.KwiseTrainer", "_save_optimizer_and_scheduler", 2),  # the model is written, nothing else
        ("transformers.trainer_callback.TrainerState", "save_to_json", 2),
        ("kwise.train.trainer", "seal", 2),  # all is written but the seal
        ("kwise.train.trainer", "rotate_checkpoints", 2),
        ("kwise.model.reward_model.RewardModel", "save_pretrained", 1),  # trained, with nothing of it in model/
        ("kwise.train.run_folder.RunFolder", "finish", 1),
    ],
)
def test_a_kill_while_something_is_written_changes_nothing(workshop, monkeypatch, owner, name, time_of_call):
    whole = run(workshop, workshop / "whole")
    target, calls = pkgutil.resolve_name(owner.rpartition(".")[0] + ":" + owner.rpartition(".")[2]), []
    plain = getattr(target, name)

    def killed(*inputs, **named):
        calls.append(name)
        if len(calls) == time_of_call:
            raise Killed
        return plain(*inputs, **named)

    with monkeypatch.context() as patch:
        patch.setattr(target, name, killed)
        with pytest.raises(Killed):
            run(workshop, workshop / "cut")
    assert_alike(run(workshop, workshop / "cut"), whole)


def test_of_the_checkpoints_as_many_stay_as_are_wanted_and_never_fewer_than_one_whole(workshop, monkeypatch):
    """With a limit of one the older one must not go before the newer one is sealed."""

    run(workshop, workshop / "limited", "trainer.save_total_limit=1")
    assert [each.name for each in (workshop / "limited" / "checkpoints").iterdir()] == ["checkpoint-9"]
    seals = []

    def killed_the_third_time(folder, facts):
        seals.append(folder)
        if len(seals) == 3:
            raise Killed
        seal(folder, facts)

    monkeypatch.setattr(trainer, "seal", killed_the_third_time)
    with pytest.raises(Killed):
        run(workshop, workshop / "cut", "trainer.save_total_limit=1")
    assert newest(workshop / "cut" / "checkpoints", print).name == "checkpoint-6"


def test_a_file_that_cannot_be_written_stops_the_run_with_a_message_and_leaves_what_was_whole(workshop):
    """A limit on the size of files stands for a full disk: writing fails for good in the middle of a file."""
    whole = run(workshop, workshop / "whole")
    process = start(workshop, workshop / "full", "limit")
    said, _ = process.communicate()
    assert process.returncode == 1, said
    assert "checkpoint-6 could not be written, and was removed" in said and "were free in" in said
    assert [each.name for each in (workshop / "full" / "checkpoints").iterdir()] == ["checkpoint-3"]
    assert_alike(run(workshop, workshop / "full"), whole)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_signal_saves_and_ends_with_the_shells_exit_code_and_the_run_goes_on_alike(workshop, processes):
    write_rankings(workshop / "train.jsonl", 300, noise=4)
    output = workshop / "stopped"
    process = start(workshop, output, "trainer.save_steps=1000", processes=processes)
    until(process, "'loss'")
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate()
    assert "SIGTERM: stopping after this step" in said and "the same command goes on from there" in said, said
    assert process.returncode == (143 if processes == 1 else 1), said
    (checkpoint,) = (output / "checkpoints").iterdir()
    assert fault(checkpoint) is None and 0 < int(checkpoint.name.split("-")[1]) < 180
    if processes == 1:
        assert_alike(
            run(workshop, output, "trainer.save_steps=1000"),
            run(workshop, workshop / "whole", "trainer.save_steps=1000"),
        )


def test_a_nan_in_one_process_stops_both_and_names_its_line(workshop):
    process = start(workshop, workshop / "nan", "plant", processes=2)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert len(re.findall(r"the loss of step \d is not finite: it comes from", said)) == 2, said
    assert f"{workshop / 'train.jsonl'}, line 3. Nothing was updated" in said


@pytest.mark.parametrize(
    "engine",
    ["fsdp", *(pytest.param(each, marks=pytest.mark.slow) for each in ("ddp", "sharded", "full"))],
)
def test_after_one_of_two_processes_was_killed_the_run_goes_on_alike(workshop, engine):
    write_rankings(workshop / "train.jsonl", 60, noise=4)
    settings = {
        "ddp": [],
        "fsdp": ["trainer.fsdp=true"],
        "sharded": ["trainer.fsdp=true", "trainer.fsdp_config.state_dict_type=SHARDED_STATE_DICT"],
        "full": ["trainer.fsdp=true", "method=full"],
    }[engine]

    code, said = last_word(start(workshop, workshop / "whole", *settings, processes=2))
    assert code == 0, said
    process = start(workshop, workshop / "cut", *settings, processes=2)
    until(process, "'loss'")
    while not any((workshop / "cut" / "checkpoints").glob("checkpoint-*/kwise_seal.json")):
        time.sleep(0.01)
    worker = [
        child for child in psutil.Process(process.pid).children() if "test_survival" in " ".join(child.cmdline())
    ][1]
    worker.kill()
    code, said = last_word(process)
    assert code != 0 and not (workshop / "cut" / "model").exists(), said
    code, said = last_word(start(workshop, workshop / "cut", *settings, processes=2))
    assert code == 0 and "going on from" in said, said
    whole = load_file(workshop / "whole" / "model" / "model.safetensors")
    again = load_file(workshop / "cut" / "model" / "model.safetensors")
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())
    assert entries(workshop / "cut") == entries(workshop / "whole")
    # and with another number of processes the rankings come in the same order
    for later in (workshop / "cut" / "checkpoints").glob("checkpoint-*"):
        if int(later.name.split("-")[1]) > 9:
            shutil.rmtree(later)
    if engine == "ddp":
        shutil.rmtree(workshop / "cut" / "model")
        alone = run(workshop, workshop / "cut")
        losses = [
            [each["loss"] for each in entries(folder) if "loss" in each] for folder in (alone, workshop / "whole")
        ]
        assert losses[0] == pytest.approx(losses[1], rel=0.02)  # dropout draws other numbers
        assert [each.keys() for each in entries(alone)] == [each.keys() for each in entries(workshop / "whole")]


@pytest.mark.parametrize(
    ("method", "after"), [pytest.param("head", 1, marks=pytest.mark.slow), ("head", 3), ("lora", 2)]
)
def test_one_of_the_processes_that_compute_features_killed_the_run_goes_on_with_any_number(workshop, method, after):
    """To the features of one process, byte for byte, and the same head in every process."""
    write_rankings(workshop / "train.jsonl", 600, noise=4)
    settings = [f"method={method}", "fit_head_first=true", "fit.layers=[1, 2]"]
    settings += ["trainer.max_steps=2", "trainer.logging_steps=1", "lora.dropout=0.0"]
    one = run(workshop, workshop / "one", *settings)
    process = start(workshop, workshop / "cut", *settings, processes=2)
    while not any(path.stat().st_size for path in (workshop / "cut").glob("features/*.16-32")):
        assert process.poll() is None
        time.sleep(0.001)
    own = [each for each in psutil.Process(process.pid).children() if "test_survival" in " ".join(each.cmdline())]
    next(each for each in own if each.environ()["RANK"] == "1").kill()
    code, said = last_word(process)
    assert code != 0 and not (workshop / "cut" / "model").exists(), said
    code, said = last_word(start(workshop, workshop / "cut", *settings, processes=after))
    assert code == 0, said
    whole, again = (
        {path.name: path.read_bytes() for path in (each / "features").iterdir()} for each in (one, workshop / "cut")
    )
    assert again == whole and len(whole) == 2
    assert entries(workshop / "cut")[:9] == entries(one)[:9]  # the fit
    if method == "head":
        one, cut = (load_file(each / "model" / "model.safetensors") for each in (one, workshop / "cut"))
        assert all(torch.equal(cut[name], tensor) for name, tensor in one.items())
    else:
        losses = [[each["loss"] for each in entries(folder) if "nll" in each] for folder in (one, workshop / "cut")]
        assert len(losses[0]) == 2 and losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_a_data_file_that_went_away_is_said_and_costs_nothing(workshop):
    output = workshop / "cut"
    run(workshop, output, "trainer.max_steps=3")
    (output / "model").rename(workshop / "gone")
    (workshop / "train.jsonl").rename(workshop / "elsewhere.jsonl")
    with pytest.raises(DataError, match=r"train\.jsonl: no such file"):
        run(workshop, output, "trainer.max_steps=3")
    assert fault(output / "checkpoints" / "checkpoint-3") is None
    (workshop / "elsewhere.jsonl").rename(workshop / "train.jsonl")
    run(workshop, output, "trainer.max_steps=3")


def survive(workshop, length, kills, seed):
    """Kill a run at ``kills`` random moments of its training, which takes about ``length`` seconds, and start it again each time.
    Gives its folder and the number of kills that found it alive."""
    chance, hits = random.Random(seed), 0
    output = workshop / "survived"
    while hits < kills and not (output / "model").exists():
        process = start(workshop, output)
        until(process, "an epoch is")
        time.sleep(chance.uniform(0, 1.5 * length / kills))
        process.kill()
        hits += process.wait() == -signal.SIGKILL
    if not (output / "model").exists():
        process = start(workshop, output)
        said, _ = process.communicate()
        assert process.returncode == 0, said
    return output, hits


def timed(workshop, output):
    began = time.monotonic()
    return run(workshop, output), time.monotonic() - began


def test_a_run_that_was_killed_ends_as_one_that_was_not(workshop):
    write_rankings(workshop / "train.jsonl", 40, noise=4)
    whole, length = timed(workshop, workshop / "whole")
    output, hits = survive(workshop, length / 2, 1, seed=0)
    assert hits == 1
    assert_alike(output, whole)


@pytest.mark.slow
def test_twenty_kills_change_nothing(workshop):
    write_rankings(workshop / "train.jsonl", 600, noise=4)
    whole, length = timed(workshop, workshop / "whole")
    output, hits = survive(workshop, length, 20, seed=1)
    assert hits >= 15
    assert_alike(output, whole)


def main(workshop, *overrides):
    """One run in a process of its own, started by ``start``. ``limit`` bounds the size of files from the second checkpoint on,
    ``plant`` makes the loss of the third line's ranking a NaN."""
    console = Console(file=sys.stdout)
    if "limit" in overrides:
        plain = trainer.KwiseTrainer._save_checkpoint

        def limited(self, *inputs):
            if self.state.global_step > 3:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
            plain(self, *inputs)

        trainer.KwiseTrainer._save_checkpoint = limited
    if "trainer.fsdp=true" in overrides:
        shard_on_cpus()
    if "plant" in overrides:
        plain_loss = step.Step.loss
        step.Step.loss = lambda self, items, rewards: plain_loss(
            self, items, rewards * float("nan") if any(item.line == 3 for item in items) else rewards
        )
        step.Step.not_finite = lambda self: [item for items, _ in self.seen for item in items if item.line == 3]
    try:
        train(load_recipe(Path(workshop, "recipe.toml"), [each for each in overrides if "=" in each]), console=console)
    except (OSError, FloatingPointError) as error:
        console.print(str(error), soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
