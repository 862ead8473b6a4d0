"""``kwise score`` and ``best``."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from kwise.cli.shell import (
    CALIBRATED,
    DTYPE,
    DTYPE_DEFAULT,
    LOWER_BOUND,
    MODEL,
    app,
    check_outputs,
    errors,
    load_model,
    report_shortened,
    say,
    user_errors,
)


@app.command()
def score(
    model: MODEL,
    file: Annotated[str, typer.Argument(help="conversations, rankings or pairs; JSON lines or parquet")],
    out: Annotated[Path, typer.Option("--out", "-o", help="where the lines with scores go")],
    resume: Annotated[bool, typer.Option("--resume", help="go on with a half-written OUT")] = False,
    calibrated: CALIBRATED = False,
    c: LOWER_BOUND = None,
    dtype: DTYPE = DTYPE_DEFAULT,
) -> None:
    """Write every line of FILE with its score, in order."""
    score_lines(model, file, out, resume, calibrated, c, choose=False, dtype=dtype)


@app.command()
def best(
    model: MODEL,
    file: Annotated[
        str, typer.Argument(help="lines with 'prompt' and 'responses', or rankings; JSON lines or parquet")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="where the lines with the best response go")],
    resume: Annotated[bool, typer.Option("--resume", help="go on with a half-written OUT")] = False,
    calibrated: CALIBRATED = False,
    c: LOWER_BOUND = None,
    dtype: DTYPE = DTYPE_DEFAULT,
) -> None:
    """Choose the best response of every line of FILE: by score, or by its lower confidence bound."""
    score_lines(model, file, out, resume, calibrated, c, choose=True, dtype=dtype)


def score_lines(
    model: str, file: str, out: Path, resume: bool, calibrated: bool, c: float | None, choose: bool, dtype: str
) -> None:
    """``kwise score`` and ``kwise best``."""
    with user_errors():
        from kwise.use.score_file import score_file
        from kwise.use.score_shares import score_share

        process, processes = place_among_processes()
        check_outputs([file], out)
        if out.exists() and not resume:
            raise ValueError(f"{out} exists; go on with it by --resume, or remove it")
        reward_model = load_model(model, dtype)
        with errors.status("scoring") as status:

            def progress(lines: int) -> None:
                status.update(f"{lines} lines scored")

            how: dict[str, Any] = {"progress": progress, "calibrated": calibrated, "c": c, "choose": choose}
            if processes > 1:
                counts = score_share(reward_model, file, str(out), process, processes, resume, **how)
            else:
                counts = score_file(reward_model, file, str(out), resume, **how)
    by = f"process {process} of {processes}: " if processes > 1 else ""
    kept = f", {counts['kept']} kept from before" if resume else ""
    say(f"{by}{counts['written']} lines written to {'its share of ' if by else ''}{out}{kept}", errors)
    if counts.get("together"):
        say(f"all shares are done: {out} has {counts['together']} lines", errors)
    if counts["replaced"]:
        say(f"{counts['replaced']} lines had scores of their own, which were replaced", errors, "yellow")
    report_shortened(counts["shortened"], reward_model)


def place_among_processes() -> tuple[int, int]:
    """Which process this is, from 0, and of how many, by the variables that torchrun and its like set. Raises ``ValueError`` for
    values that say neither."""
    given = {name: os.environ.get(name, usual) for name, usual in (("RANK", "0"), ("WORLD_SIZE", "1"))}
    if not all(value.isdecimal() for value in given.values()) or int(given["RANK"]) >= int(given["WORLD_SIZE"]):
        said = ", ".join(f"{name}={value}" for name, value in given.items())
        raise ValueError(f"the environment says {said}: RANK is from 0 to WORLD_SIZE - 1; unset both for one process")
    return int(given["RANK"]), int(given["WORLD_SIZE"])
