"""``kwise train``, ``fit``, ``uncertainty`` and ``demo``."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kwise.cli.shell import (
    DTYPE,
    DTYPE_DEFAULT,
    SOURCE,
    app,
    console,
    errors,
    load_model,
    quiet_libraries,
    say,
    user_errors,
)
from kwise.use.tables import metrics_table

if TYPE_CHECKING:
    from kwise.train.recipe import Recipe


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="TOML recipe, see recipes/")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, for example data.max_length=512")] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--start-over", help="what to do with an unfinished run in the output folder")
    ] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="say what it will take (tokens, rows, memory, time) and stop")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify-resume", help="prove on a few steps that a killed run goes on alike, and stop")
    ] = False,
) -> None:
    """Train a reward model from rankings by a recipe."""
    with user_errors():
        from kwise.train.forecast import forecast
        from kwise.train.recipe import load_recipe

        settings = load_recipe(recipe, overrides or [])
        if dry_run:
            quiet_libraries()
            say(str(forecast(settings, errors)))
            return
        if verify:
            from kwise.train.verify_resume import STEPS, verify_resume

            differences = verify_resume(settings)
            for each in differences:
                say(each, errors)
            if differences:
                raise ValueError(
                    "a run that was killed and gone on with is not the same as one that was not: see above"
                )
            say(
                f"{STEPS} steps, killed with SIGKILL at a checkpoint and gone on with: weights, optimiser, schedule and log are "
                "those of an uninterrupted run, bit for bit"
            )
            return
        run(settings, resume)


@app.command()
def fit(
    base: Annotated[str, typer.Argument(help="folder or hub id of a chat model, or smollm2")],
    files: Annotated[list[str], typer.Argument(help="rankings to fit the head to")],
    out: Annotated[Path, typer.Option("--out", "-o", help="run folder; the model will be in OUT/model")],
    held_out: Annotated[list[str] | None, typer.Option("--eval", help="held-out rankings; may be repeated")] = None,
    layers: Annotated[
        list[int] | None, typer.Option("--layer", help="cut after the best of these layers; may be repeated")
    ] = None,
    covariates: Annotated[
        list[str] | None,
        typer.Option("--covariate", help="fitted beside the head, left out of scores: length, ...; may be repeated"),
    ] = None,
    objective: Annotated[str, typer.Option(help="a key of kwise.losses.OBJECTIVES")] = "plackett_luce",
    max_length: Annotated[int, typer.Option(help="longest sequence, in tokens")] = 2048,
    resume: Annotated[
        bool, typer.Option("--resume/--start-over", help="what to do with an unfinished run in the output folder")
    ] = True,
) -> None:
    """Fit a linear head to rankings on a frozen chat model: a reward model in minutes. Short for a recipe of method head."""
    with user_errors():
        from kwise.train.recipe import build_recipe

        table = {
            "method": "head",
            "output": str(out),
            "objective": objective,
            "data": {"train": files, "eval": held_out or [], "max_length": max_length},
            "model": {"base": base, "layers": max(layers or [0])},
            "fit": {"layers": layers or [], "covariates": covariates or []},
        }
        run(build_recipe(table, "kwise fit"), resume)


def run(recipe: "Recipe", resume: bool) -> None:
    """Train by ``recipe`` and say what came out."""
    from kwise.train.run import train as run_recipe

    quiet_libraries()
    result = run_recipe(recipe, not resume, errors)
    if int(os.environ.get("RANK", 0)):
        return  # of torchrun's processes the first speaks
    if result.before and result.after:
        console.print(metrics_table("held-out rankings", {"before": result.before, "after": result.after}))
    say(f"model saved in {result.model}")


@app.command()
def uncertainty(
    model: Annotated[str, typer.Argument(help="folder of a reward model; the error of its head is written into it")],
    files: Annotated[list[str], typer.Argument(help="the rankings it was trained on")],
    kind: Annotated[
        str | None, typer.Option(help="fisher, sandwich or paper; by default what fits the objective")
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="where features are kept; 'features' beside MODEL")] = None,
    source: SOURCE = "auto",
    dtype: DTYPE = DTYPE_DEFAULT,
) -> None:
    """Give MODEL the error bars of its rewards, whatever it was trained with."""
    with user_errors():
        from kwise.train.add_uncertainty import add_uncertainty, fitted_under_bf16

        folder = Path(model)
        if not folder.is_dir():
            raise ValueError(f"{model} is no local folder: the uncertainty is written into it, so save the model first")
        folder = folder.resolve()  # of "." the parent is "." too, and features would lie in the model
        reward_model = load_model(model, dtype)
        bf16 = fitted_under_bf16(folder)
        found = add_uncertainty(reward_model, files, cache or folder.parent / "features", kind, source, errors, bf16)
        found.save(folder)
        facts = ", ".join(f"{name} {value}" for name, value in found.facts.items())
    say(f"uncertainty written into {model}: {facts}")


@app.command()
def demo(output: Annotated[Path, typer.Option(help="where run folders go")] = Path("runs")) -> None:
    """Train a real reward model on this machine in minutes: SmolLM2-135M on the starter rankings."""
    with user_errors():
        from kwise.demo import run_demo

        quiet_libraries()
        run_demo(output, console, metrics_table)
