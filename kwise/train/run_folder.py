"""The folder of one run: the model, and what is needed to know later how it came about.

::

    OUTPUT/recipe.toml     the resolved recipe                 OUTPUT/metrics.jsonl   one line per log or evaluation
    OUTPUT/versions.json   packages, machine, command          OUTPUT/features/       cached features of the head fit
    OUTPUT/data.json       what is in the data files           OUTPUT/checkpoints/    Trainer's checkpoints
    OUTPUT/model/          the reward model, loadable by AutoModelForSequenceClassification
"""

import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from kwise.data.check import check
from kwise.data.encoded import EncodedRankings, prompt_hashes
from kwise.model.reward_model import RewardModel
from kwise.records import Ranking
from kwise.train.checkpoints import newest, write_whole
from kwise.train.recipe import Recipe, load_recipe

# of [trainer]: how a run is done, and how long; the rest decides what is trained, and the optimiser's state is made for it
FREE = re.compile(
    "tokens_per_row|num_train_epochs|max_steps|(logging|save|eval|load_best|hub|push|report|run_name|disable_tqdm|log_|"
    "dataloader|gradient_checkpointing|activation_checkpointing|fsdp|deepspeed|ddp|torch_compile|accelerator|project|trackio).*"
)
VERSIONS = "versions.json"
WRITTEN = (VERSIONS, "recipe.toml", "data.json", "metrics.jsonl", "checkpoints", "features", "model.unfinished")
PACKAGES = ("kwise", "torch", "transformers", "accelerate", "peft", "tokenizers", "numpy", "scipy")


class RunFolder:
    """Writes and speaks in the main process; in the others of a distributed run it does nothing."""

    def __init__(self, path: Path, console: Console, main: bool) -> None:
        self.path, self.console, self.main = path, console, main
        # until training begins, a run that is gone on with does again what metrics.jsonl has already
        self.again = False

    @property
    def checkpoints(self) -> Path:
        """Where the Trainer keeps its checkpoints."""
        return self.path / "checkpoints"

    def clear(self, recipe: Recipe, start_over: bool) -> None:
        """Raise ``ValueError`` rather than write over a model, over data or over what no run of kwise wrote, or mix two runs.
        With ``start_over`` an unfinished run is removed, but for the features it cached.

        Of the run gone on with, what only says how it is done (``FREE``, say fewer ``tokens_per_row``) may differ; what decides
        what is trained may not once there is a checkpoint.
        """
        if not self.main:
            return
        if (self.path / "model").exists():
            raise ValueError(f"{self.path / 'model'} exists: choose another output (output=... or -o), or remove it")
        for file in (*recipe.data.train, *recipe.data.eval):
            if Path(file).exists() and Path(file).resolve() in {(self.path / name).resolve() for name in WRITTEN}:
                raise ValueError(f"{file} would be written over by the run: choose another output (output=... or -o)")
        foreign = [name for name in WRITTEN if (self.path / name).exists()]
        if foreign and not self._is_of_a_run():
            raise ValueError(
                f"{self.path / foreign[0]} was written by no run of kwise: choose another output (output=... or -o), or move it "
                "away"
            )
        if start_over:
            shutil.rmtree(self.checkpoints, ignore_errors=True)
            (self.path / "metrics.jsonl").unlink(missing_ok=True)
        elif any(self.checkpoints.glob("checkpoint-*")):
            before = load_recipe(self.path / "recipe.toml")
            keys = [each.name for each in fields(Recipe) if each.name not in ("output", "trainer")]
            changed = [key for key in keys if getattr(before, key) != getattr(recipe, key)]
            settings = sorted({*before.trainer, *recipe.trainer})
            changed += [
                f"trainer.{key}"
                for key in settings
                if not FREE.fullmatch(key) and before.trainer.get(key) != recipe.trainer.get(key)
            ]
            if changed:
                raise ValueError(
                    f"{self.path} holds checkpoints of a run with another {', '.join(changed)} (see its recipe.toml): go on "
                    "with that recipe, start over (--start-over), or choose another output (output=... or -o)"
                )

    def _is_of_a_run(self) -> bool:
        try:
            return "kwise" in json.loads((self.path / VERSIONS).read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError):  # not there, no text, no JSON, or a number
            return False

    def newest_checkpoint(self) -> Path | None:
        """The newest whole checkpoint, the same for every process; said, and newer ones that are not whole removed."""
        found: list[Path | None] = [newest(self.checkpoints, self.say) if self.main else None]
        broadcast_object_list(found)
        if found[0] is not None:
            self.again = True
            self.say(f"going on from {found[0]}")
        return found[0]

    def open(self, recipe: Recipe, training: Sequence[Ranking] | EncodedRankings, held_out: list[Ranking]) -> None:
        """Write recipe, versions and data checks; report held-out prompts that are also trained on."""
        if not self.main:
            return
        known = np.concatenate(prompt_hashes(training))
        leaked = np.flatnonzero(np.isin(prompt_hashes(held_out), known).any(axis=0))
        if len(leaked):
            first = held_out[leaked[0]]
            self.say(
                f"WARNING: {len(leaked)} of {len(held_out)} held-out rankings have a prompt that is also trained on; their "
                f"metrics are not held-out. The first: {first.file}, line {first.line}"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        if not self.again:
            (self.path / "metrics.jsonl").unlink(missing_ok=True)  # what a run without a checkpoint logged comes again
        versions = {name: version(name) for name in PACKAGES} | {
            "python": platform.python_version(),
            "machine": platform.platform(),
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "command": sys.argv[1:],
        }
        self._write(VERSIONS, versions)  # first: it says whose folder this is
        write_whole(self.path / "recipe.toml", recipe.to_toml())
        known_files = training.reports if isinstance(training, EncodedRankings) else {}
        files = {
            file: known_files.get(file) or check(file, recipe.data.source).to_json()
            for file in [*recipe.data.train, *recipe.data.eval]
        }
        self._write("data.json", {"files": files, "held_out_with_trained_prompt": len(leaked)})
        self.say(f"{len(training)} rankings to train on, {len(held_out)} held out; run folder {self.path}")

    def say(self, text: str) -> None:
        """One message to the user."""
        if self.main:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def log(self, entry: dict[str, Any]) -> None:
        """One line of ``metrics.jsonl``."""
        if not self.main or self.again:
            return
        path = self.path / "metrics.jsonl"
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:  # a full disk does not say which file it was
            raise OSError(f"{path} cannot be written: {error.strerror}") from error

    def save_unfinished(self, model: RewardModel) -> None:
        """Write the weights, so that nothing that fails from here on can lose them."""
        shutil.rmtree(self.path / "model.unfinished", ignore_errors=True)  # of an earlier run, with files of its own
        model.save_pretrained(self.path / "model.unfinished")

    def finish(self, model: RewardModel) -> None:
        """Write the settings too; the model folder appears under its name only when it is whole."""
        unfinished = self.path / "model.unfinished"
        model.settings.write(unfinished)
        unfinished.rename(self.path / "model")

    def _write(self, name: str, content: dict[str, Any]) -> None:
        write_whole(self.path / name, json.dumps(content, indent=2) + "\n")


class MetricsFile(TrainerCallback, ExportableState):
    """Appends everything the Trainer logs to ``metrics.jsonl``.

    A checkpoint holds how long the file was; the run that goes on from it cuts off what was logged later, since it comes again.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    def state(self) -> dict[str, Any]:
        """What transformers keeps of this in ``trainer_state.json``."""
        path = self.folder.path / "metrics.jsonl"
        return {"args": {}, "attributes": {"bytes": path.stat().st_size if path.exists() else 0}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Cut off what will come again."""
        if self.folder.main and self.folder.again:
            os.truncate(
                self.folder.path / "metrics.jsonl", state.stateful_callbacks["MetricsFile"]["attributes"]["bytes"]
            )
        self.folder.again = False

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """One line per log."""
        self.folder.log({"step": state.global_step, **(logs or {})})


def progress_bar(console: Console) -> Progress:
    """A progress bar with the time left."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
    )
    return Progress(*columns, TimeRemainingColumn(), console=console)
