"""Checkpoints that are whole, or recognised as not: a seal, written last, holds the size and the hash of every file."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kwise.data.cache import content_hash

SEAL = "kwise_seal.json"
STATE, SUMS = "trainer_state.json", "sums_*.pt"  # of transformers' Trainer and of KwiseTrainer
NAME = re.compile(r"checkpoint-(\d+)")  # transformers' name for the folder of a step


def seal(folder: Path, facts: dict[str, Any]) -> None:
    """Write the seal of ``folder``, with ``facts``, once every other file in it has reached the disk."""
    files = {}
    for path in sorted(each for each in folder.rglob("*") if each.is_file() and each.name != SEAL):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "xxh3": content_hash(path)}
    write_whole(folder / SEAL, json.dumps(facts | {"files": files}, indent=1) + "\n")


def fault(folder: Path) -> str | None:
    """What is wrong with the checkpoint in ``folder``: None if it has every byte that was sealed."""
    if not folder.is_dir():
        return "there is no such folder"
    if not (folder / SEAL).exists():
        return "it was not written to its end"
    try:
        files = read_seal(folder)["files"]
    except ValueError:
        return "its seal is damaged"
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if (size := path.stat().st_size) != expected["bytes"]:
            return f"{name} has {size} bytes, {expected['bytes']} were written"
        if content_hash(path) != expected["xxh3"]:
            return f"{name} does not hold what was written"
    return None


def read_seal(folder: Path) -> dict[str, Any]:
    """The seal of ``folder``: the facts given to ``seal``, and ``files``."""
    content: dict[str, Any] = json.loads((folder / SEAL).read_text(encoding="utf-8"))
    return content


def step_of(folder: Path, rankings: str, trained: dict[str, Any], last: int) -> int:
    """The step of the whole checkpoint ``folder``, from which a run of ``rankings`` (a hash), of ``trained`` (settings, as JSON
    has them) and up to step ``last`` goes on. Raises ``ValueError`` for a checkpoint of another run, and says what differs."""
    facts = read_seal(folder)
    step: int = facts["step"]
    if facts["rankings"] != rankings:
        raise ValueError(
            f"{folder} was trained on other rankings or offsets than those given now (or on these in another form: as a list, or "
            "encoded before)"
        )
    if changed := [name for name, value in trained.items() if facts.get(name) != value]:
        raise ValueError(f"{folder} is of a run with another {', '.join(changed)}")
    if step > last:
        raise ValueError(
            f"{folder} is beyond step {last}, with which this run would end: set max_steps or num_train_epochs no lower than it"
        )
    if not any(folder.glob(SUMS)):
        raise ValueError(f"{folder} holds the model only (save_only_model): nothing can go on from it")
    return step


def newest(folder: Path, say: Callable[[str], None]) -> Path | None:
    """The newest whole checkpoint in ``folder``. Newer ones that are not whole are removed, after a warning by ``say``.

    They must go: the run that goes on writes checkpoints of the same steps. Raises ``ValueError`` for one that is whole but of
    another trainer.
    """
    found = [each for each in folder.glob("checkpoint-*") if NAME.fullmatch(each.name) and each.is_dir()]
    for checkpoint in sorted(found, key=_step, reverse=True):
        problem = fault(checkpoint)
        if problem is None:
            return checkpoint
        # transformers writes its state last, a KwiseTrainer its sums before
        if not (checkpoint / SEAL).exists() and (checkpoint / STATE).exists() and not any(checkpoint.glob(SUMS)):
            raise ValueError(f"{checkpoint} was written by another trainer: choose another folder, or move it away")
        say(f"WARNING: {checkpoint} is not used, and removed: {problem}")
        shutil.rmtree(checkpoint)
    return None


def write_whole(path: Path, text: str) -> None:
    """Write ``text`` so that ``path`` holds all of it or what it held before, whenever the process or the machine dies."""
    beside = path.with_name(f".{path.name}.unfinished")
    try:
        with beside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise OSError(f"{path} cannot be written: {error.strerror}") from error


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))
