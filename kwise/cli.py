"""The command line. With ``demo``, the only module that knows all others."""

import contextlib
import ctypes
import json
import os
import platform
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TaskID
from rich.table import Table

import kwise
from kwise.use.tables import metrics_table

if TYPE_CHECKING:
    from kwise.model.reward_model import RewardModel
    from kwise.train.recipe import Recipe
    from kwise.use.audit import Subject
    from kwise.use.evaluation import Data, Scored, Splits
    from kwise.use.score_cache import ScoreCache

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Look at ranking files.", no_args_is_help=True)
app.add_typer(data_app, name="data")
console, errors = Console(), Console(stderr=True)

MODEL = Annotated[str, typer.Argument(help="folder or hub id of a reward model")]
SOURCE = Annotated[str, typer.Option(help="nectar, completions, pairs or battles; auto tells by the columns")]
CALIBRATED = Annotated[
    bool, typer.Option("--calibrated", help="(reward - centre) / temperature, by what kwise calibrate found")
]
LOWER_BOUND = Annotated[
    float | None, typer.Option("--lower-bound", metavar="C", help="also errors, and bounds C errors below the score")
]
CACHE = Annotated[bool, typer.Option("--cache/--no-cache", help="keep scores on disk, and score nothing twice")]
DTYPE = Annotated[str, typer.Option(help="float32, bfloat16 or float16")]


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """What the user can mend is one message and exit code 1, not a traceback."""
    try:
        yield
    except (
        ValueError,
        OSError,
        FloatingPointError,
    ) as error:  # bad data or settings; missing files or models; diverged
        errors.print("error:", style="bold red", end=" ")
        errors.print(str(error), markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error


def quiet_libraries() -> None:
    """kwise says itself what the load report and the bars of transformers say."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def keep_memory() -> None:
    """Let glibc keep what torch frees, for the next operation, in place of handing it back to the system, which must clear
    every page of it anew. The process holds on to the most that it ever needed (up to 2 GiB more than it uses).

    Where the user has set one of the two thresholds himself, both stay as they are.
    """
    own = os.environ.keys() & {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"}
    if platform.libc_ver()[0] != "glibc" or own:
        return
    trim_threshold, mmap_threshold = -1, -3  # of malloc.h
    libc = ctypes.CDLL(None)
    libc.mallopt(trim_threshold, 2**31 - 1)
    libc.mallopt(mmap_threshold, 2**30)


def load_model(folder: str, dtype: str) -> "RewardModel":
    """A ``RewardModel`` from ``folder``."""
    import torch

    from kwise.model.backbone import DTYPES
    from kwise.model.reward_model import RewardModel

    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype '{dtype}'; known: {', '.join(DTYPES)}")
    if Path(folder, "adapter_config.json").is_file() and not Path(folder, "config.json").is_file():
        raise ValueError(f"{folder} is a LoRA adapter: make a whole model of it by kwise export {folder} -o FOLDER")
    quiet_libraries()
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))  # of torchrun
    return RewardModel.from_pretrained(folder, dtype=getattr(torch, dtype))


def print_version(wanted: bool) -> None:
    """``kwise --version``."""
    if wanted:
        console.print(f"kwise {kwise.__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="print it and stop")
    ] = False,
) -> None:
    """Rankings into reward models, reward models into answers."""
    keep_memory()


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
            console.print(str(forecast(settings, errors)), highlight=False, soft_wrap=True)
            return
        if verify:
            from kwise.train.verify_resume import STEPS, verify_resume

            differences = verify_resume(settings)
            for each in differences:
                errors.print(each, markup=False, highlight=False, soft_wrap=True)
            if differences:
                raise ValueError(
                    "a run that was killed and gone on with is not the same as one that was not: see above"
                )
            console.print(
                f"{STEPS} steps, killed with SIGKILL at a checkpoint and gone on with: weights, optimiser, schedule and log are "
                "those of an uninterrupted run, bit for bit",
                soft_wrap=True,
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
        list[str] | None, typer.Option("--covariate", help="left out of scores: length, lists, ...; may be repeated")
    ] = None,
    objective: Annotated[str, typer.Option(help="a name of kwise.losses")] = "plackett_luce",
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
    if result.before and result.after:
        console.print(metrics_table("held-out rankings", {"before": result.before, "after": result.after}))
    console.print(f"model saved in {result.model}", highlight=False)


@app.command()
def uncertainty(
    model: Annotated[str, typer.Argument(help="folder of a reward model; the error of its head is written into it")],
    files: Annotated[list[str], typer.Argument(help="the rankings it was trained on")],
    kind: Annotated[
        str | None, typer.Option(help="fisher, sandwich or paper; by default what fits the objective")
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="where features are kept; 'features' beside MODEL")] = None,
    source: SOURCE = "auto",
    dtype: DTYPE = "float32",
) -> None:
    """Give MODEL the error bars of its rewards, whatever it was trained with."""
    with user_errors():
        from kwise.train.add_uncertainty import add_uncertainty, fitted_under_bf16

        folder = Path(model)
        if not folder.is_dir():
            raise ValueError(f"{model} is no local folder: the uncertainty is written into it, so save the model first")
        reward_model = load_model(model, dtype)
        bf16 = fitted_under_bf16(folder)
        found = add_uncertainty(reward_model, files, cache or folder.parent / "features", kind, source, errors, bf16)
        found.save(folder)
        facts = ", ".join(f"{name} {value}" for name, value in found.facts.items())
    console.print(f"uncertainty written into {folder}: {facts}", highlight=False, soft_wrap=True)


@app.command()
def score(
    model: MODEL,
    file: Annotated[str, typer.Argument(help="conversations, rankings or pairs; JSON lines or parquet")],
    out: Annotated[Path, typer.Option("--out", "-o", help="where the lines with scores go")],
    resume: Annotated[bool, typer.Option("--resume", help="go on with a half-written OUT")] = False,
    calibrated: CALIBRATED = False,
    c: LOWER_BOUND = None,
    dtype: DTYPE = "float32",
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
    dtype: DTYPE = "float32",
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

        process, processes = (int(os.environ.get(name, one)) for name, one in (("RANK", 0), ("WORLD_SIZE", 1)))
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
    errors.print(
        f"{by}{counts['written']} lines written to {'its share of ' if by else ''}{out}"
        + (f", {counts['kept']} kept from before" if resume else ""),
        highlight=False,
    )
    if counts.get("together"):
        errors.print(f"all shares are done: {out} has {counts['together']} lines", highlight=False)
    report_shortened(counts["shortened"], reward_model)


def report_shortened(count: int, model: "RewardModel") -> None:
    """Say how many responses the truncation rule cut."""
    if count:
        rule = f"{model.settings.max_length} tokens and were cut by rule '{model.settings.truncation}'"
        errors.print(f"{count} responses were longer than {rule}", style="yellow")


@app.command("eval")
def evaluate(
    words: Annotated[
        list[str],
        typer.Argument(metavar="MODEL... DATA...", help="models, then suites (starling, ...), rankings or pairs"),
    ],
    scores: Annotated[
        bool, typer.Option("--scores", help="no MODEL: the DATA hold the scores, whoever made them")
    ] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="with --scores: the DATA are scores of one and the same rankings")
    ] = False,
    ceiling: Annotated[
        bool, typer.Option("--ceiling", help="no MODEL: from lists judged twice, how well any model could do")
    ] = False,
    by: Annotated[str | None, typer.Option(help="split each file by the values of this column")] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="also write all metrics here")] = None,
    results: Annotated[
        Path | None, typer.Option(help="folder for RewardBench result files and model-index entries")
    ] = None,
    cache: CACHE = True,
    source: SOURCE = "auto",
    dtype: DTYPE = "float32",
) -> None:
    """How often MODEL agrees with suites, rankings and pairs, with 95 % intervals, beside baselines; several are compared."""
    with user_errors():
        from kwise.use.evaluation import (
            evaluation_json,
            foreign_scores,
            measure,
            model_words,
            open_data,
            refuse_repeated,
        )
        from kwise.use.results import labels, write_results
        from kwise.use.tables import evaluation_tables

        if json_out is not None and not json_out.parent.is_dir():
            raise ValueError(f"{json_out.parent} is no folder to write {json_out.name} into")
        if json_out is not None and json_out.is_dir():
            raise ValueError(f"{json_out} is a folder: name a file for --json")
        if results is not None and results.exists() and not results.is_dir():
            raise ValueError(f"{results} is no folder: name one for --results")
        if compare and not scores:
            raise ValueError("--compare is for --scores: models are compared when several are named")
        if scores or ceiling:
            refuse_repeated(words)
        if compare and len(words) < 2:
            raise ValueError("--compare needs the scores of at least two models, a file of each")
        if ceiling:
            if scores or by is not None or results is not None:
                raise ValueError("--ceiling is of judgements alone: it takes no --scores, --by or --results")
            show_ceilings(words, source, json_out)
            return
        models = [] if scores else model_words(words)
        data = [open_data(word, by, source) for word in words[len(models) :]]
        names = labels(words if compare else models, results is not None)
        columns = len(data) if compare else len(models) or 1
        found: dict[str, dict[str, Splits]] = {}
        runs = foreign_scores(data, compare) if scores else model_scores(models, data, dtype, cache)
        for model, place, scored in runs:
            found.setdefault(names.get(model, model), {})[place.name] = measure(place, scored)
            if sum(place.name in splits for splits in found.values()) == columns:
                show(evaluation_tables(place, {name: splits[place.name] for name, splits in found.items()}))
            if json_out is not None:
                json_out.write_text(json.dumps(evaluation_json(found), indent=2) + "\n", encoding="utf-8")
        for name, own in found.items():
            for file in write_results(results, name, own, data) if results is not None else ():
                console.print(f"written: {file}", highlight=False, soft_wrap=True)


def model_scores(
    models: list[str], data: "list[Data]", dtype: str, cached: bool
) -> "Iterator[tuple[str, Data, Scored]]":
    """Every model's rewards on every data set, one model after another."""
    from kwise.data.unique import distinct
    from kwise.train.run_folder import progress_bar
    from kwise.use.evaluation import score_data

    sizes = [sum(len(prompt.responses) for prompt in distinct(place.rankings).prompts) for place in data]
    before, total = 0, len(models) * sum(sizes)
    for model in models:
        reward_model = load_model(model, dtype)
        cache = open_cache(reward_model) if cached else None
        for place, size in zip(data, sizes, strict=True):
            with progress_bar(errors) as bar:
                tasks = [bar.add_task(f"scoring {escape(Path(place.name).name)}", total=size)]
                if total > size:
                    tasks.append(bar.add_task("of all data", completed=before, total=total))
                scored = score_data(reward_model, place, partial(show_progress_of_all, bar, tasks, before), cache)
            before += size
            yield model, place, scored
            report_shortened(scored.shortened, reward_model)
        report_cache(cache)


def open_cache(model: "RewardModel") -> "ScoreCache":
    """The scores of ``model`` that are kept on disk; what is lost of them is said."""
    from kwise.use.score_cache import ScoreCache

    return ScoreCache(model, lambda text: errors.print(text, style="yellow", markup=False, soft_wrap=True))


def report_cache(cache: "ScoreCache | None") -> None:
    """Say how many scores needed no model."""
    if cache is not None and cache.found:
        errors.print(f"{cache.found} of {cache.asked} scores from the cache", highlight=False)


@app.command()
def audit(
    words: Annotated[
        list[str],
        typer.Argument(metavar="MODEL... DATA...", help="models, then rankings, pairs or suites, as for eval"),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="OUT.html; OUT.json and OUT.png are written beside it")],
    scores: Annotated[
        bool, typer.Option("--scores", help="no MODEL: the DATA hold the scores, whoever made them; no edits then")
    ] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="with --scores: the DATA are scores of one and the same rankings")
    ] = False,
    probes: Annotated[int, typer.Option(min=0, help="answers to edit and score again; 0 for none")] = 60,
    by: Annotated[str | None, typer.Option(help="also show mean rewards by the values of this column")] = None,
    cache: CACHE = True,
    source: SOURCE = "auto",
    dtype: DTYPE = "float32",
) -> None:
    """What MODEL rewards beside quality, and how sure that is: a page to look at, the same as JSON, and a sheet of figures."""
    with user_errors():
        from kwise.train.run_folder import progress_bar
        from kwise.use.audit import audit as examine
        from kwise.use.audit import foreign_subjects, model_subject
        from kwise.use.audit.report import check, heading, write
        from kwise.use.evaluation import model_words, open_data, refuse_repeated
        from kwise.use.results import labels

        check(out)
        if compare and not scores:
            raise ValueError("--compare is for --scores: models are compared when several are named")
        if scores:
            refuse_repeated(words)
        if compare and len(words) < 2:
            raise ValueError("--compare needs the scores of at least two models, a file of each")
        models = [] if scores else model_words(words)
        data = [open_data(word, by, source) for word in words[len(models) :]]
        names = labels(words if compare else models)
        rankings = [ranking for place in data for ranking in place.rankings]
        subjects: dict[str, Subject] = {}
        notes: list[str] = []
        if scores:
            rankings, found, notes = foreign_subjects(data, compare)
            subjects = {names.get(name, name): own for name, own in found.items()}
        for model in models:
            reward_model = load_model(model, dtype)
            kept = open_cache(reward_model) if cache else None
            with progress_bar(errors) as bar:
                show_bar = partial(bar_of, bar, bar.add_task("scoring", total=None))
                subjects[names[model]] = model_subject(kept or reward_model, rankings, probes, show_bar)
            report_cache(kept)
        result = examine(rankings, subjects, words[len(models) :], by)
        files = write(result, out)
    for line in [*notes, *heading(result)[2:], *(f"written: {file}" for file in files)]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def show_ceilings(files: list[str], source: str, json_out: Path | None) -> None:
    """What ``kwise eval --ceiling`` prints and writes."""
    from kwise.use.ceiling import ceiling, read_repeated

    found = {}
    for file in files:
        found[file] = {name: draws.metric() for name, draws in ceiling(read_repeated(file, source)).items()}
        console.print(metrics_table(file, {"judgements": found[file]}))
    if json_out is not None:
        text = json.dumps({file: {n: m.to_json() for n, m in own.items()} for file, own in found.items()}, indent=2)
        json_out.write_text(text + "\n", encoding="utf-8")


@app.command()
def calibrate(
    model: Annotated[str, typer.Argument(help="folder of a reward model; its kwise.json is rewritten")],
    files: Annotated[list[str], typer.Argument(help="held-out rankings or pairs")],
    length: Annotated[bool, typer.Option("--length", help="also take off what the reward gains with length")] = False,
    json_out: Annotated[Path | None, typer.Option("--json", help="also write figures and curves here")] = None,
    source: SOURCE = "auto",
    dtype: DTYPE = "float32",
) -> None:
    """Fit MODEL's temperature and centre to the held-out rankings in FILES, and keep them in MODEL."""
    with user_errors():
        from kwise.train.run_folder import progress_bar
        from kwise.use.calibrate import calibrate as fit
        from kwise.use.calibrate import to_json
        from kwise.use.tables import calibration_tables

        if not Path(model).is_dir():
            raise ValueError(f"{model} is no local folder: what is found is written into it, so save the model first")
        if json_out is not None and not json_out.parent.is_dir():
            raise ValueError(f"{json_out.parent} is no folder to write {json_out.name} into")
        reward_model = load_model(model, dtype)
        with progress_bar(errors) as bar:
            task = bar.add_task("scoring", total=None)
            result = fit(reward_model, files, length, source, partial(show_progress, bar, task))
        show(calibration_tables(result, length))
        report_shortened(result.shortened, reward_model)
        if json_out is not None:
            json_out.write_text(json.dumps(to_json(result), indent=2) + "\n", encoding="utf-8")
        reward_model.settings.calibration = result.calibration
        reward_model.settings.write(model)
    console.print(f"written to {Path(model) / 'kwise.json'}", highlight=False, soft_wrap=True)


@app.command()
def doctor(
    model: MODEL,
    json_out: Annotated[Path | None, typer.Option("--json", help="also write every reading here")] = None,
    fix: Annotated[Path | None, typer.Option(help="write a mended copy here")] = None,
    tolerance: Annotated[float, typer.Option(help="scores this close to kwise's agree, in nats")] = 1e-3,
) -> None:
    """What other tools read from MODEL, whether they agree with kwise score, and the mends. Exit code 1 if all is not well."""
    with user_errors():
        from kwise.use.doctor import diagnose
        from kwise.use.doctor.mend import fix as mend
        from kwise.use.doctor.report import tables, to_json

        for out in filter(None, (json_out, fix)):
            if out == fix and out.exists():
                raise ValueError(f"{out} exists; choose another name")
            if not out.parent.is_dir():
                raise ValueError(f"{out.parent} is no folder to write {out.name} into")
        quiet_libraries()
        with errors.status("reading the model as other tools do"):
            diagnosis = diagnose(model, tolerance)
        for table in tables(diagnosis):
            console.print(table)
        if json_out is not None:
            json_out.write_text(json.dumps(to_json(diagnosis), indent=2) + "\n", encoding="utf-8")
        if fix is not None:
            for line in mend(diagnosis, fix):
                console.print(f"mended: {line}", markup=False, highlight=False, soft_wrap=True)
            left = [each.id for each in diagnosis.findings if not each.mendable]
            console.print(f"copy in {fix}" + (f"; not mended: {', '.join(left)}" if left else ""), highlight=False)
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
        console.print(note, highlight=False, soft_wrap=True, markup=False)
    console.print(f"model written to {out}", highlight=False, soft_wrap=True)


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
            console.print(line, highlight=False, soft_wrap=True, markup=False)
    console.print(f"written to {out}" + (f" and uploaded to {push}" if push else ""), highlight=False, soft_wrap=True)


@data_app.command("check")
def data_check(
    file: Annotated[str, typer.Argument(help="rankings or pairs: a file, a hub id, or starter:train")],
    tokenizer: Annotated[str | None, typer.Option(help="folder or hub id, or smollm2: also count tokens")] = None,
    max_length: Annotated[int, typer.Option(help="count conversations longer than this")] = 2048,
    fix: Annotated[Path | None, typer.Option(help="write a cleaned copy here")] = None,
    source: SOURCE = "auto",
) -> None:
    """What is in FILE and what is wrong with it. Exit code 1 if there are errors."""
    with user_errors():
        from kwise.data.check import check
        from kwise.data.check import fix as clean
        from kwise.use.tables import report_tables

        if fix is not None and fix.exists():
            raise ValueError(f"{fix} exists; choose another name")
        loaded = None
        if tokenizer is not None:
            from kwise.model.backbone import load_tokenizer, resolve

            quiet_libraries()
            loaded = load_tokenizer(resolve(tokenizer))
        report = check(file, source, loaded, max_length)
        show(report_tables(report))
        if fix is not None:
            for what, rows in clean(file, str(fix), source).items():
                console.print(f"{what}: {rows}", highlight=False)
            console.print(f"cleaned copy in {fix}", highlight=False)
    if report.errors:
        raise typer.Exit(1)


@app.command()
def demo(output: Annotated[Path, typer.Option(help="where run folders go")] = Path("runs")) -> None:
    """Train a real reward model on this machine in minutes: SmolLM2-135M on the starter rankings."""
    with user_errors():
        from kwise.demo import run_demo

        quiet_libraries()
        run_demo(output, console, metrics_table)


def show_progress(bar: Progress, task: TaskID, done: int, total: int) -> None:
    """Move a bar to ``done`` of ``total``."""
    bar.update(task, completed=done, total=total)


def show_progress_of_all(bar: Progress, tasks: list[TaskID], before: int, done: int, total: int) -> None:
    """Move the first bar to ``done`` of ``total``, and a second by as much from ``before``."""
    show_progress(bar, tasks[0], done, total)
    for task in tasks[1:]:
        bar.update(task, completed=before + done)


def bar_of(bar: Progress, task: TaskID, what: str, done: int, total: int) -> None:
    """Move a bar that says ``what`` is done."""
    bar.update(task, description=what, completed=done, total=total)


def show(parts: "Iterable[Table | str]") -> None:
    """Print tables and lines; a user's text is never taken for markup."""
    for part in parts:
        if isinstance(part, str):
            console.print(part, highlight=False, soft_wrap=True, markup=False)
        else:
            console.print(part, highlight=False)
