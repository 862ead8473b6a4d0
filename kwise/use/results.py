"""What ``kwise eval`` found, as files that others read: RewardBench's result files, and a model card's ``model-index``."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kwise.data.lines import public_name
from kwise.use.evaluation import ALL, Data, Splits
from kwise.use.suites import rewardbench, rewardbench2

# suite -> (data set of results on the hub, folder in it -> the names under which it wants accuracies)
REWARDBENCH = {
    "rewardbench": ("reward-bench-results", {"eval-set": rewardbench.SUBSETS}),
    "rewardbench-prior": (
        "reward-bench-results",
        {"eval-set": rewardbench.SUBSETS, "pref-sets": rewardbench.PRIOR_SETS},
    ),
    "rewardbench2": ("reward-bench-2-results", {"eval-set": tuple(rewardbench2.SUBSETS)}),
}
CARD_METRICS = ("pair_accuracy", "top1", "ndcg", "kendall_tau")  # of a file; of a suite all figures but losses


def labels(models: Sequence[str], for_files: bool = False) -> dict[str, str]:
    """A short name for each model: a hub id as it is, of a local folder or file its name (of RUN/model that of RUN), or what the
    user wrote if two would be called alike. Raises ``ValueError`` for that if the names are ``for_files``."""
    names = {model: _label(model) for model in models}
    if len(set(names.values())) == len(names):
        return names
    if for_files:
        raise ValueError(f"two of these models have one name, and so would their result files: {', '.join(models)}")
    return {model: model for model in models}


def _label(model: str) -> str:
    if not Path(model).exists():
        return model
    folder = Path(model).resolve()
    return folder.parent.name if folder.name == "model" and folder.parent.name else folder.name


def file_names(files: Iterable[str]) -> dict[str, str]:
    """A short name for each file, or the file as given where two would be called alike."""
    names = {file: Path(file).name for file in files}
    return {file: short if list(names.values()).count(short) == 1 else file for file, short in names.items()}


def refuse_shared_files(words: Sequence[str]) -> None:
    """Raise ``ValueError`` for two data sets whose results would be written to one file, before anything is scored."""
    known: dict[str, str] = {}
    for word in words:
        home, parts = REWARDBENCH.get(word.partition(":")[0], ("", {}))
        for file in (f"{home}/{part}" for part in parts):
            if known.setdefault(file, word) != word:
                raise ValueError(f"--results of {known[file]} and of {word} are one file in {file}: give one at a time")


def write_results(folder: Path, name: str, found: Mapping[str, Splits], data: Sequence[Data]) -> list[Path]:
    """Write what the model ``name`` got on ``data`` below ``folder``; gives the files written.

    For RewardBench ``reward-bench-results/eval-set/NAME.json`` and the like, laid out and worded as in allenai's data sets of
    results (rewardbench/utils.py, save_to_hub); for everything ``NAME.model-index.json``, which is YAML as well and belongs
    into the head of the model's card. What that file says of other data sets stays in it. Raises ``ValueError`` for one that
    is no model index.
    """
    places = {place.name: place for place in data}
    written = []
    for word, splits in found.items():
        figures = {metric: draws.value for metric, draws in splits[ALL].items() if draws.value is not None}
        home, parts = REWARDBENCH.get(_suite(places[word]) or "", ("", {}))
        for part, subsets in parts.items():
            own = {subset: figures[subset] for subset in subsets if subset in figures}
            if own:
                table = {"model": name, "model_type": "Seq. Classifier", "chat_template": "tokenizer"} | own
                written.append(_write(folder / home / part / f"{name}.json", table))
    index = folder / f"{name}.model-index.json"
    before = _results(index) if index.exists() else []
    written.append(_write(index, model_index(name, found, data, before)))
    return written


def _results(index: Path) -> list[dict[str, Any]]:
    try:
        (entry,) = json.loads(index.read_text(encoding="utf-8"))["model-index"]
        return [{**result, "dataset": result["dataset"]} for result in entry["results"]]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{index} is no model index that results could be added to: {error!r}") from error


def model_index(
    name: str, found: Mapping[str, Splits], data: Sequence[Data], before: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    """``{"model-index": [...]}`` as the hub reads it: one result for each data set, values as fractions; those of ``before``, of
    other data sets, come first."""
    places = {place.name: place for place in data}
    results: list[dict[str, Any]] = []
    for word, splits in found.items():
        suite, source = _suite(places[word]), places[word].suite
        metrics = [
            {"type": "accuracy" if suite else metric, "name": metric, "value": draws.value}
            for metric, draws in splits[ALL].items()
            if draws.value is not None and (metric in CARD_METRICS if suite is None else not metric.endswith("nll"))
        ]
        hub = next(iter(source.files.values())).hub if source is not None else None
        place = public_name(word)
        dataset = {"type": (hub or suite or place).partition(":")[0], "name": suite or place}
        if metrics:
            task = {"type": "preference_evaluation", "name": "Preference Evaluation"}
            results.append({"task": task, "dataset": dataset, "metrics": metrics})
    known = [result["dataset"] for result in results]
    return {
        "model-index": [{"name": name, "results": [old for old in before if old["dataset"] not in known] + results}]
    }


def _suite(data: Data) -> str | None:
    return data.name.partition(":")[0] if data.suite is not None else None


def _write(file: Path, table: dict[str, Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(table, indent=4, sort_keys=True) + "\n", encoding="utf-8")
    return file
