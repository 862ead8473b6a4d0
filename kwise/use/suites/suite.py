"""What a suite is: rows read into rankings, rewards turned into terms, terms into the published figures."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kwise.data.baselines import Terms
from kwise.data.lines import kind_of, read_lines
from kwise.data.sources import Parts
from kwise.data.turns import FieldError
from kwise.objective.metrics import Draws, bootstrap, check_rewards, combine
from kwise.records import DataError, Ranking

DATA_FILE = re.compile(r"\.(jsonl?|parquet)(\.gz|\.zst)?$")
PART = "part"  # the column that says which part of the suite a ranking belongs to


class Item(NamedTuple):
    """A row as a suite reads it: the ``part`` it belongs to, its prompt and responses, and the ``group`` of rows that depend on
    one another where that is more than the prompt."""

    part: str
    parts: Parts
    group: str | None = None


class Files(NamedTuple):
    """Where a part of a suite lies: in a folder under the first of the ``patterns`` that any file has, on the hub as ``hub``
    (``owner/name:split``; None: nowhere)."""

    patterns: tuple[str, ...]
    hub: str | None


class Published(NamedTuple):
    """A model's figures as somebody published them, under the suite's own names, and where."""

    model: str
    figures: dict[str, float]
    source: str


class Suite(NamedTuple):
    """``read(row, part)`` gives an ``Item`` or raises ``FieldError``; ``part`` is the key of ``files`` the row's file belongs to,
    or the name of a file that stands alone. ``terms(rankings, rewards)`` gives the sum and count of each ranking, and
    ``figures`` the published names, each a weighted sum of the terms' means. ``obtain`` tells who has no files where to get
    them."""

    files: dict[str, Files]
    read: Callable[[dict[str, Any], str], Item]
    terms: Callable[[Sequence[Ranking], Sequence[Sequence[float]]], list[Terms]]
    figures: Mapping[str, Mapping[str, float]]
    published: tuple[Published, ...]
    obtain: str


def read_suite(suite: Suite, path: str) -> Iterator[tuple[dict[str, Any], Ranking]]:
    """The rows of a suite, each as it came and as a ranking with the column ``part``.

    ``path`` is a folder or file in the published layout, a hub data set ``owner/name[:split]``, or empty: the suite's own place
    on the hub. Raises ``DataError``, which names file, line and field, also where a folder holds a file in two formats or places.
    """
    for part, file in _files(suite, path):
        for line, row in _rows(file):
            if isinstance(row, DataError):
                raise row
            try:
                item = suite.read(row, part)
            except FieldError as error:
                raise DataError(error.problem, file=file, line=line, field=error.field) from error
            columns = {name: value for name, value in row.items() if name not in item.parts.used} | {PART: item.part}
            if item.group is not None:
                columns["prompt_group"] = item.group
            yield row, Ranking(*item.parts[:4], file, line, columns)


def suite_draws(suite: Suite, rankings: Sequence[Ranking], rewards: Sequence[Sequence[float]]) -> dict[str, Draws]:
    """The figures of a suite; one whose parts are not all in the data has no value.

    Raises ``ValueError`` when a reward is missing, NaN or infinite.
    """
    check_rewards(rankings, rewards)
    means = bootstrap(suite.terms(rankings, rewards), [ranking.group for ranking in rankings])
    return {name: combine(means, weights) for name, weights in suite.figures.items()}


def mean_of(names: Sequence[str]) -> dict[str, float]:
    """The weights of a plain mean."""
    return dict.fromkeys(names, 1 / len(names))


def average(figures: Sequence[Mapping[str, float]], weights: Sequence[float] | None = None) -> dict[str, float]:
    """The weights of a mean of figures that are weighted sums themselves."""
    own = [1.0] * len(figures) if weights is None else weights
    found: dict[str, float] = {}
    for figure, weight in zip(figures, own, strict=True):
        for name, inner in figure.items():
            found[name] = found.get(name, 0.0) + inner * weight / sum(own)
    return found


def _files(suite: Suite, path: str) -> list[tuple[str, str]]:
    """The part and the name of every file, or hub data set, to read."""
    if not path:
        places = [(part, files.hub) for part, files in suite.files.items() if files.hub is not None]
        if not places:
            raise ValueError(suite.obtain)
        return [(part, hub) for part, hub in places if hub is not None]
    folder = Path(path)
    if not folder.is_dir():
        return [(next((part for part in suite.files if part and folder.name.startswith(part)), folder.name), path)]
    found: list[tuple[str, str]] = []
    names: dict[str, str] = {}
    wanted: list[str] = []
    for part, files in suite.files.items():
        wanted += files.patterns
        for pattern in files.patterns:
            own = sorted(str(file) for file in folder.rglob(pattern) if DATA_FILE.search(file.name))
            if own:
                found += [(part or Path(file).name, file) for file in own]
                break
    for _, file in found:
        name = DATA_FILE.sub("", Path(file).name)
        if name in names:
            raise DataError(
                f"its rows would count twice beside those of {names[name]}; name the one that is meant", file=file
            )
        names[name] = file
    if not found:
        raise DataError(f"this folder has no data file named {', '.join(wanted)}; {suite.obtain}", file=path)
    return found


def _rows(file: str) -> Iterator[tuple[int, dict[str, Any] | DataError]]:
    """Like ``read_lines``; a JSON array, as some suites are published, is read as well: its entries are numbered from 1."""
    path = Path(file)
    if not path.is_file() or not path.name.endswith(".json"):
        yield from read_lines(file)
        return
    with path.open("rb") as stream:
        is_array = stream.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
    if not is_array:
        yield from read_lines(file)
        return
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise DataError(f"not valid JSON ({error})", file=file) from error
    if not rows:
        raise DataError("the file is empty", file=file)
    for line, row in enumerate(rows, 1):
        if isinstance(row, dict):
            yield line, row
        else:
            yield line, DataError(f"an entry must be a JSON object, this is {kind_of(row)}", file=file, line=line)
