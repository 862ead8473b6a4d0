"""``kwise eval``: how often scores agree with rankings, per file and per split or by a suite's own rules, beside what needs no
model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME

from kwise.data.lines import HUB_ID, STARTER
from kwise.data.sources import scan_rows
from kwise.model.reward_model import RewardModel
from kwise.objective.metrics import Draws, bootstrap, compare, metric_terms
from kwise.records import DataError, Ranking
from kwise.use.foreign import holds_scores, row_scores
from kwise.use.score_cache import ScoreCache
from kwise.use.suites import SUITES
from kwise.use.suites.suite import DATA_FILE, Suite, read_suite, suite_draws

ALL = "all"
LONGER = "longer answer"  # what a suite gives for the number of characters as reward
Splits = dict[str, dict[str, Draws]]


class Data(NamedTuple):
    """What is evaluated on: rankings, the rows they were read from, and which of them belong to each split. ``suite`` is None for
    a plain file; ``notes`` are what the user should know of it."""

    name: str
    rankings: list[Ranking]
    rows: list[dict[str, Any]]
    splits: dict[str, list[int]]
    suite: Suite | None
    notes: tuple[str, ...] = ()


class Scored(NamedTuple):
    """A model's rewards, the same calibrated (None: as they are), and how many distinct responses were cut to ``max_length``."""

    rewards: list[list[float]]
    calibrated: list[list[float]] | None = None
    shortened: int = 0


def model_words(words: Sequence[str]) -> list[str]:
    """Those of ``words`` that are models: the first, and all before the first that can only be data.

    That is a suite, ``starter:...``, a hub data set with its split, or what exists and is no model folder. A bare
    ``owner/name`` after a model is one too, unless it is the last word and nothing else is data. Raises ``ValueError`` where
    the first word is a suite or a file, no data is left, or a model comes after data.
    """
    refuse_repeated(words)
    if words[0].partition(":")[0] in SUITES or words[0].removeprefix("starter:") in STARTER or Path(words[0]).is_file():
        raise ValueError(
            f"{words[0]} is data and cannot be taken for a model: name one before it, or give --scores if it holds scores"
        )
    data = [i for i, word in enumerate(words) if i and _is_data(word)]
    first = data[0] if data else len(words) - 1
    if first < 1:
        raise ValueError(f"{words[0]} is taken for a model; name data after it: a suite, a file, or a hub data set")
    for word in words[first:]:
        if _is_model_folder(word):
            raise ValueError(f"{word} is a model: name all models before the data")
    return list(words[:first])


def refuse_repeated(words: Sequence[str]) -> None:
    """Raise ``ValueError`` for a model or data set that is named twice, also by different words for one file or folder."""
    known: dict[str, str] = {}
    for word in words:
        name, colon, path = word.partition(":")
        place = str(Path(word).resolve()) if Path(word).exists() else word
        if name in SUITES and colon and Path(path).exists():
            place = f"{name}:{Path(path).resolve()}"
        if known.setdefault(place, word) != word or words.count(word) > 1:
            raise ValueError(f"{known[place]} is named twice" + (f", also as {word}" if known[place] != word else ""))


def _is_data(word: str) -> bool:
    if word.partition(":")[0] in SUITES or word.removeprefix("starter:") in STARTER:
        return True
    if Path(word).exists():
        return not _is_model_folder(word)
    return ":" in word or not HUB_ID.fullmatch(word) or DATA_FILE.search(word) is not None


def _is_model_folder(word: str) -> bool:
    return any((Path(word) / name).is_file() for name in (CONFIG_NAME, ADAPTER_CONFIG_NAME))


def open_data(word: str, by: str | None = None, source: str = "auto") -> Data:
    """Read ``word``: a suite, ``name`` or ``name:PATH`` (``kwise.use.suites``), or a file or hub data set of rankings or pairs.

    ``by`` splits a file by the values of that column. Raises ``DataError`` for a line that cannot be read or that has no column
    ``by``, and ``ValueError`` for a suite to be split, as it has parts of its own.
    """
    name, _, path = word.partition(":")
    suite = SUITES.get(name)
    if suite is not None:
        if by is not None:
            raise ValueError(f"{word} is a suite, with parts of its own; files alone are split by a column")
        read = list(read_suite(suite, path))
        return Data(word, [ranking for _, ranking in read], [row for row, _ in read], {}, suite)
    rankings, rows = [], []
    for _, row, item in scan_rows(word, source):
        if isinstance(item, DataError):
            raise item
        rankings.append(item)
        rows.append(row or {})
    return Data(word, rankings, rows, _split(rankings, by), None)


def _split(rankings: Sequence[Ranking], by: str | None) -> dict[str, list[int]]:
    members: dict[str, list[int]] = {ALL: list(range(len(rankings)))}
    if by is not None:
        for i, ranking in enumerate(rankings):
            if by not in ranking.columns:
                have = ", ".join(ranking.columns) or "none"
                raise DataError(
                    f"there is no such column to split by; it has {have}",
                    file=ranking.file,
                    line=ranking.line,
                    field=by,
                )
            members.setdefault(_label(by, ranking.columns[by]), []).append(i)
    return members


def _label(by: str, value: object) -> str:
    label = " + ".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"{by} = {label}" if label == ALL else label


def score_data(
    model: RewardModel,
    data: Data,
    progress: Callable[[int, int], None] = lambda done, total: None,
    cache: ScoreCache | None = None,
) -> Scored:
    """The model's rewards of all responses, from ``cache`` where it knows them, and what its own calibration makes of them."""
    rewards, shortened = (cache or model).score_rankings(data.rankings, progress)
    calibrated = [model.calibrated(own, ranking.responses) for own, ranking in zip(rewards, data.rankings, strict=True)]
    return Scored(rewards, calibrated, shortened)


def foreign_scores(data: Sequence[Data], compared: bool = False) -> Iterator[tuple[str, Data, Scored]]:
    """The scores that the rows hold (``kwise.use.foreign``, which says what it raises), under a name for whoever made them.

    A file of a suite in which no row has a score is left out, and a note says so. ``compared`` says that all are scores of one
    and the same rankings by different models: these are the first's then, and each model has the name of its file. Raises
    ``DataError`` at a ranking that is not the same.
    """
    places = [_with_scores(place) for place in data]
    for place in places:
        scored = Scored([row_scores(row, ranking) for row, ranking in zip(place.rows, place.rankings, strict=True)])
        if compared:
            _same_rankings(places[0], place)
            yield place.name, places[0], scored
        else:
            yield "scores", place, scored


def _with_scores(data: Data) -> Data:
    files = {ranking.file for row, ranking in zip(data.rows, data.rankings, strict=True) if holds_scores(row)}
    without = sorted({ranking.file for ranking in data.rankings} - files)
    if data.suite is None or not files or not without:
        return data
    kept = [i for i, ranking in enumerate(data.rankings) if ranking.file in files]
    notes = tuple(f"{file} has no scores and is left out" for file in without)
    return data._replace(
        rankings=[data.rankings[i] for i in kept], rows=[data.rows[i] for i in kept], notes=data.notes + notes
    )


def _same_rankings(first: Data, second: Data) -> None:
    for a, b in zip(first.rankings, second.rankings, strict=False):
        if (a.prompt, a.responses, a.ranks, a.group) != (b.prompt, b.responses, b.ranks, b.group):
            raise DataError(f"this is not the ranking of {a.file}, line {a.line}", file=b.file, line=b.line)
    if len(first.rankings) != len(second.rankings):
        raise DataError(
            f"it has {len(second.rankings)} rankings, {first.name} has {len(first.rankings)}", file=second.name
        )


def measure(data: Data, scored: Scored) -> Splits:
    """Of a file the metrics of ``kwise.objective.metrics`` under ``"all"`` and under each split; ``ece`` and ``top1_ece`` are of
    the calibrated rewards, all others of the rewards as they are. Of a suite its figures under ``"all"``, and those that the
    longer answer gets."""
    if data.suite is not None:
        lengths = [[float(len(response)) for response in ranking.responses] for ranking in data.rankings]
        return {
            ALL: suite_draws(data.suite, data.rankings, scored.rewards),
            LONGER: {
                name: draws
                for name, draws in suite_draws(data.suite, data.rankings, lengths).items()
                if not name.endswith("nll")  # characters are no log-odds
            },
        }
    terms = metric_terms(data.rankings, scored.rewards, scored.calibrated)
    groups = [ranking.group for ranking in data.rankings]
    return {split: bootstrap([terms[i] for i in own], [groups[i] for i in own]) for split, own in data.splits.items()}


def evaluation_json(found: Mapping[str, Mapping[str, Splits]]) -> dict[str, Any]:
    """Of one model ``{data: {split: {metric: {value, low, high, n}}}}``; of several the same of each under ``models``, and under
    ``differences`` of each later one less the first, with ``better`` beside the other four."""
    models = {
        model: {
            name: {split: {m: draws.metric().to_json() for m, draws in own.items()} for split, own in splits.items()}
            for name, splits in places.items()
        }
        for model, places in found.items()
    }
    first, *others = found
    if not others:
        return models[first]
    differences = {
        f"{other} - {first}": {
            name: {
                split: {m: gap.to_json() for m, gap in compare(found[first][name][split], own).items()}
                for split, own in splits.items()
                if split != LONGER
            }
            for name, splits in found[other].items()
        }
        for other in others
    }
    return {"models": models, "differences": differences}
