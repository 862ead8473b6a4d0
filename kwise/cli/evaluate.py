"""``kwise eval``, ``audit`` and ``calibrate``."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.progress import Progress, TaskID

from kwise.cli.shell import (
    CACHE,
    DTYPE,
    DTYPE_DEFAULT,
    SOURCE,
    app,
    bar_of,
    check_outputs,
    console,
    errors,
    load_model,
    report_shortened,
    say,
    show,
    show_progress,
    user_errors,
)
from kwise.use.tables import metrics_table

if TYPE_CHECKING:
    from kwise.model.reward_model import RewardModel
    from kwise.use.audit import Subject
    from kwise.use.evaluation import Data, Scored, Splits
    from kwise.use.score_cache import ScoreCache

PROBES = 60  # answers that an audit edits


@app.command("eval")
def evaluate(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL... DATA...",
            help="models, then rankings, pairs or suites: "
            "starling:FOLDER, rewardbench, rewardbench-prior, rewardbench2, rm-bench",
        ),
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
    dtype: DTYPE = DTYPE_DEFAULT,
) -> None:
    """How often MODEL agrees with suites, rankings and pairs, with 95 % intervals, beside baselines; several are compared."""
    with user_errors():
        from kwise.use.evaluation import (
            evaluation_json,
            foreign_scores,
            measure,
            open_data,
            refuse_repeated,
        )
        from kwise.use.results import labels, refuse_shared_files, write_results
        from kwise.use.tables import evaluation_tables

        check_outputs(words, *filter(None, [json_out]))
        if results is not None and results.exists() and not results.is_dir():
            raise ValueError(f"{results} is no folder: name one for --results")
        if ceiling:
            if scores or compare or by is not None or results is not None or of_model(dtype, cache):
                raise ValueError("--ceiling is of judgements alone: besides DATA it takes --source and --json only")
            refuse_repeated(words)
            show_ceilings(words, source, json_out)
            return
        models = models_of(words, scores, compare, of_model(dtype, cache))
        if results is not None:
            refuse_shared_files(words[len(models) :])
        data = [open_data(word, by, source) for word in words[len(models) :]]
        names = labels(words if compare else models, results is not None)
        columns = len(data) if compare else len(models) or 1
        found: dict[str, dict[str, Splits]] = {}
        written: dict[str, list[Path]] = {}
        runs = foreign_scores(data, compare) if scores else model_scores(models, data, dtype, cache)
        for model, place, scored in runs:
            name = names.get(model, model)
            found.setdefault(name, {})[place.name] = measure(place, scored)
            # before anything is printed: who reads the output may be gone
            if json_out is not None:
                json_out.write_text(json.dumps(evaluation_json(found), indent=2) + "\n", encoding="utf-8")
            if results is not None:
                written[name] = write_results(results, name, found[name], data)
            if sum(place.name in splits for splits in found.values()) == columns:
                show(evaluation_tables(place, {name: splits[place.name] for name, splits in found.items()}))
        for file in (file for own in written.values() for file in own):
            say(f"written: {file}")


def of_model(dtype: str, cached: bool) -> bool:
    """Was something said of how a model is to be run?"""
    return dtype != DTYPE_DEFAULT or not cached


def models_of(words: list[str], scores: bool, compare: bool, runs_a_model: bool) -> list[str]:
    """Those of ``words`` that are models: none of them with ``--scores``. Refuses what the options do not allow together."""
    from kwise.use.evaluation import model_words, refuse_repeated

    if compare and not scores:
        raise ValueError("--compare is for --scores: models are compared when several are named")
    if scores and runs_a_model:
        raise ValueError(
            "--scores takes the scores of DATA: no model is run, so leave --dtype, --no-cache and --probes out"
        )
    if compare and len(words) < 2:
        raise ValueError("--compare needs the scores of at least two models, a file of each")
    if not scores:
        return model_words(words)
    refuse_repeated(words)
    return []


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

    return ScoreCache(model, lambda text: say(text, errors, "yellow"))


def report_cache(cache: "ScoreCache | None") -> None:
    """Say how many scores needed no model."""
    if cache is not None and cache.found:
        say(f"{cache.found} of {cache.asked} scores from the cache", errors)


def show_progress_of_all(bar: Progress, tasks: list[TaskID], before: int, done: int, total: int) -> None:
    """Move the first bar to ``done`` of ``total``, and a second by as much from ``before``."""
    show_progress(bar, tasks[0], done, total)
    for task in tasks[1:]:
        bar.update(task, completed=before + done)


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
    probes: Annotated[
        int | None, typer.Option(min=0, help=f"answers to edit and score again, {PROBES} unless given; 0 for none")
    ] = None,
    by: Annotated[str | None, typer.Option(help="also show mean rewards by the values of this column")] = None,
    cache: CACHE = True,
    source: SOURCE = "auto",
    dtype: DTYPE = DTYPE_DEFAULT,
) -> None:
    """What MODEL rewards beside quality, and how sure that is: a page to look at, the same as JSON, and a sheet of figures."""
    with user_errors():
        from kwise.train.run_folder import progress_bar
        from kwise.use.audit import audit as examine
        from kwise.use.audit import foreign_subjects, model_subject
        from kwise.use.audit.features import check_rankings
        from kwise.use.audit.figures import check_models
        from kwise.use.audit.report import heading, outputs, refuse_foreign, write
        from kwise.use.evaluation import open_data
        from kwise.use.results import labels

        check_outputs(words, *outputs(out))
        refuse_foreign(out)
        models = models_of(words, scores, compare, of_model(dtype, cache) or probes is not None)
        data = [open_data(word, by, source) for word in words[len(models) :]]
        names = labels(words if compare else models)
        check_models(names)
        rankings = [ranking for place in data for ranking in place.rankings]
        subjects: dict[str, Subject] = {}
        notes: list[str] = []
        if scores:
            rankings, found, notes = foreign_subjects(data, compare)
            subjects = {names.get(name, name): own for name, own in found.items()}
        check_rankings(rankings)
        for model in models:
            reward_model = load_model(model, dtype)
            kept = open_cache(reward_model) if cache else None
            with progress_bar(errors) as bar:
                show_bar = partial(bar_of, bar, bar.add_task("scoring", total=None))
                subjects[names[model]] = model_subject(
                    kept or reward_model, rankings, PROBES if probes is None else probes, show_bar
                )
            report_cache(kept)
            report_shortened(subjects[names[model]].shortened, reward_model)
        result = examine(rankings, subjects, words[len(models) :], by)
        files = write(result, out)
    for line in [*notes, *heading(result)[2:], *(f"written: {file}" for file in files)]:
        say(line)


def show_ceilings(files: list[str], source: str, json_out: Path | None) -> None:
    """What ``kwise eval --ceiling`` prints and writes."""
    from kwise.use.ceiling import ceiling, read_repeated

    found = {}
    for file in files:
        found[file] = {name: draws.metric() for name, draws in ceiling(read_repeated(file, source)).items()}
    if json_out is not None:
        text = json.dumps({file: {n: m.to_json() for n, m in own.items()} for file, own in found.items()}, indent=2)
        json_out.write_text(text + "\n", encoding="utf-8")
    for file, own in found.items():
        console.print(metrics_table(file, {"judgements": own}))


@app.command()
def calibrate(
    model: Annotated[str, typer.Argument(help="folder of a reward model; its kwise.json is rewritten")],
    files: Annotated[list[str], typer.Argument(help="held-out rankings or pairs")],
    length: Annotated[bool, typer.Option("--length", help="also take off what the reward gains with length")] = False,
    json_out: Annotated[Path | None, typer.Option("--json", help="also write figures and curves here")] = None,
    source: SOURCE = "auto",
    dtype: DTYPE = DTYPE_DEFAULT,
) -> None:
    """Fit MODEL's temperature and centre to the held-out rankings in FILES, and keep them in MODEL."""
    with user_errors():
        from kwise.model.reward_model import SETTINGS_FILE
        from kwise.train.run_folder import progress_bar
        from kwise.use.calibrate import calibrate as fit
        from kwise.use.calibrate import to_json
        from kwise.use.tables import calibration_tables

        if not Path(model).is_dir():
            raise ValueError(f"{model} is no local folder: what is found is written into it, so save the model first")
        check_outputs([*files, str(Path(model, SETTINGS_FILE))], *filter(None, [json_out]))
        reward_model = load_model(model, dtype)
        with progress_bar(errors) as bar:
            task = bar.add_task("scoring", total=None)
            result = fit(reward_model, files, length, source, partial(show_progress, bar, task))
        # before anything is printed: who reads the output may be gone
        reward_model.settings.calibration = result.calibration
        reward_model.settings.write(model)
        if json_out is not None:
            json_out.write_text(json.dumps(to_json(result), indent=2) + "\n", encoding="utf-8")
        show(calibration_tables(result, length))
        report_shortened(result.shortened, reward_model)
    say(f"written to {Path(model, SETTINGS_FILE)}")
