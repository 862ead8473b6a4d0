"""``kwise doctor``, ``import`` and ``export``: from a model folder to another."""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from kwise.cli.shell import (
    MODEL,
    SOURCE,
    app,
    bar_of,
    check_outputs,
    console,
    errors,
    quiet_libraries,
    say,
    show_progress,
    user_errors,
)
from kwise.use.tables import metrics_table


@app.command()
def doctor(
    model: MODEL,
    json_out: Annotated[Path | None, typer.Option("--json", help="also write every reading here")] = None,
    fix: Annotated[Path | None, typer.Option(help="write a mended copy here")] = None,
    tolerance: Annotated[float, typer.Option(help="scores this close to kwise's agree, in nats")] = 1e-3,
) -> None:
    """What other tools read from MODEL, whether they agree with kwise score, and the mends. Exit code 1 if MODEL has errors."""
    with user_errors():
        from kwise.use.doctor import diagnose
        from kwise.use.doctor.mend import check_out
        from kwise.use.doctor.mend import fix as mend
        from kwise.use.doctor.report import tables, to_json

        if fix is not None:
            check_out(Path(model), fix)
        check_outputs([model], *filter(None, (json_out, fix)))
        quiet_libraries()
        with errors.status("reading the model as other tools do"):
            diagnosis = diagnose(model, tolerance)
        # before anything is printed: who reads the output may be gone
        if json_out is not None:
            json_out.write_text(json.dumps(to_json(diagnosis), indent=2) + "\n", encoding="utf-8")
        try:
            done = mend(diagnosis, fix) if fix is not None else []
        finally:  # what cannot be mended is in the tables
            for table in tables(diagnosis):
                console.print(table)
        if fix is not None:
            for line in done:
                say(f"mended: {line}")
            left = [each.id for each in diagnosis.findings if not each.mendable]
            say(f"copy in {fix}" + (f"; not mended: {', '.join(left)}" if left else ""))
    if not diagnosis.well:
        raise typer.Exit(1)


@app.command("import")
def import_(
    checkpoint: Annotated[str, typer.Argument(help="file, folder or hub id of another trainer's reward model")],
    base: Annotated[
        str, typer.Option(help="folder or hub id of the chat model it was trained from: config and tokenizer")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="the folder to write; must not exist")],
    layout: Annotated[
        str, typer.Option(help="starling, deepspeed_chat, trl (LLaMA-Factory too), openrlhf; auto tells by the tensors")
    ] = "auto",
    template: Annotated[
        str | None, typer.Option(help="starling_card, starling_ppo, starling_training or a Jinja file; else BASE's own")
    ] = None,
    reward_at: Annotated[
        str, typer.Option(help="last_token, or card: as the Starling card's code reads it")
    ] = "last_token",
    max_length: Annotated[
        int | None, typer.Option(min=2, help="longest sequence in tokens; Starling 2048, else the model's context")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; else the checkpoint's")] = None,
) -> None:
    """Make a standard model folder of another trainer's reward-model checkpoint, every tensor accounted for."""
    with user_errors():
        import torch

        from kwise.model.backbone import DTYPES, resolve
        from kwise.train.run_folder import progress_bar
        from kwise.use.import_checkpoint import import_checkpoint

        if dtype is not None and dtype not in DTYPES:
            raise ValueError(f"unknown dtype '{dtype}'; known: {', '.join(DTYPES)}")
        kept = None if dtype is None else getattr(torch, dtype)
        quiet_libraries()
        with progress_bar(errors) as bar:
            show = partial(show_progress, bar, bar.add_task("tensors", total=None))
            notes = import_checkpoint(
                checkpoint, resolve(base), out, layout, template, reward_at, max_length, kept, show
            )
    for note in notes:
        say(note)
    say(f"model written to {out}")


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="folder or hub id of a reward model, or a LoRA adapter folder")],
    out: Annotated[Path, typer.Option("--out", "-o", help="the folder to write")],
    dtype: Annotated[str | None, typer.Option(help="bfloat16, float16 or int8; by default as it is")] = None,
    held_out: Annotated[
        list[str] | None, typer.Option("--eval", help="rankings to measure on for the card; may be repeated")
    ] = None,
    push: Annotated[str | None, typer.Option(metavar="OWNER/NAME", help="also upload it to the hub")] = None,
    source: SOURCE = "auto",
) -> None:
    """Write MODEL as a folder to publish: safetensors and a model card, in another precision if asked."""
    with user_errors():
        from kwise.train.run_folder import progress_bar
        from kwise.use.export import export as write
        from kwise.use.model_card import change_in_words

        quiet_libraries()
        with progress_bar(errors) as bar:
            task = bar.add_task("loading", total=None)
            result = write(model, out, dtype, held_out or [], source, push, partial(bar_of, bar, task))
        for file, metrics in result.metrics.items():
            console.print(metrics_table(file, {"written": metrics}))
        for line in [*result.notes, *([change_in_words(asdict(result.change))] if result.change else [])]:
            say(line)
    say(f"written to {out}" + (f" and uploaded to {push}" if push else ""))
