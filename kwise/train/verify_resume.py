"""``kwise train --verify-resume``: the proof, on the user's own machine, that a killed run goes on as if it had not been."""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from kwise.train.checkpoints import SEAL
from kwise.train.config import trial
from kwise.train.recipe import Recipe

STEPS = 4
TIMES = ("train_runtime", "train_samples_per_second", "train_steps_per_second")


def verify_resume(recipe: Recipe) -> list[str]:
    """Run the first steps of ``recipe`` twice, once without interruption and once killed (SIGKILL) at a checkpoint and started
    again, and give what differs: nothing if all is well.

    Compared bit for bit are weights, optimiser, schedule and what was logged. Both runs are processes of their own and lie
    beside the recipe's output folder until they have been compared. Held-out rankings and the head fit are left out. Raises
    ``ValueError`` for a recipe without steps, and with what was said for a run that fails.
    """
    if recipe.method == "head":
        raise ValueError("--verify-resume is for methods lora and full: a head fit has no steps to go on from")
    trainer = trial(recipe.trainer)
    trainer |= {"max_steps": STEPS, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}
    beside = Path(recipe.output).parent
    beside.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="verify-resume-", dir=beside))
    try:
        outputs = {name: folder / name for name in ("whole", "killed")}
        for name, output in outputs.items():
            own = replace(
                recipe,
                output=str(output),
                fit_head_first=False,
                fit=type(recipe.fit)(),
                data=replace(recipe.data, eval=[]),
                trainer=trainer,
            )
            (folder / f"{name}.toml").write_text(own.to_toml(), encoding="utf-8")
        _finish(_start(folder / "whole.toml"))
        killed = _start(folder / "killed.toml")
        while killed.poll() is None and not any(outputs["killed"].glob(f"checkpoints/*/{SEAL}")):
            time.sleep(0.002)
        killed.kill()
        killed.communicate()
        if (outputs["killed"] / "model").exists():
            raise ValueError("the run was over before it could be killed: give it more rankings or a larger model")
        _finish(_start(folder / "killed.toml"))
        return _differences(*outputs.values())
    finally:
        shutil.rmtree(folder)


def _start(recipe: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", "from kwise.cli import app; app(prog_name='kwise')", "train", str(recipe)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # noqa: S603  our own


def _finish(process: "subprocess.Popen[str]") -> None:
    said, _ = process.communicate()
    if process.returncode != 0:
        raise ValueError(f"a run to be compared failed:\n{said}")


def _differences(whole: Path, killed: Path) -> list[str]:
    one, other = (folder / "checkpoints" / f"checkpoint-{STEPS}" for folder in (whole, killed))
    names, others = (sorted(file.name for file in folder.glob("*.safetensors")) for folder in (one, other))
    if not names:
        raise ValueError(f"the run saved no weights that could be compared: {one.name} has no .safetensors file")
    if found := _unequal(names, others, "weights"):
        return found
    for name in names:  # several, where the model is larger than a shard
        found += _unequal(load_file(one / name), load_file(other / name), name)
    for name in ("optimizer.pt", "scheduler.pt", "sums_0.pt"):
        loaded = [torch.load(folder / name, weights_only=True, map_location="cpu") for folder in (one, other)]
        found += _unequal(loaded[0], loaded[1], name)
    return found + _unequal(_log(whole), _log(killed), "metrics.jsonl")


def _log(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in TIMES} for line in lines]


def _unequal(one: Any, other: Any, where: str) -> list[str]:
    """Every place in which two nested structures differ."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor) and one.shape == other.shape:
        far = (one.double() - other.double()).abs().max().item() if one.numel() else 0.0
        return [] if torch.equal(one, other) else [f"{where}: differs by up to {far:.1e}"]
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [text for key in one for text in _unequal(one[key], other[key], f"{where}, {key}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [
            text for n, (a, b) in enumerate(zip(one, other, strict=True)) for text in _unequal(a, b, f"{where}, {n}")
        ]
    return [] if type(one) is type(other) and one == other else [f"{where}: {one!r} and {other!r}"]
