"""``kwise data check --fix``: a cleaned copy of a ranking file, every change of which is counted."""

import json
from collections import Counter
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TextIO

from kwise.data.check import kind_of_error
from kwise.data.sources import SOURCES, TooFewAnswers, scan_rows, to_ranking
from kwise.data.turns import ROLE_MARKER
from kwise.records import DataError, Message, Ranking

# columns that kwise reads, or writes, as lists with one value for each answer
PER_ANSWER = ("judge_values", "models", "scores", "score_errors", "scores_lower")
ORDER = "ranking_order"  # a second judgement: the answers' indices from best to worst
# the scores of a pair: as kwise score, RewardBench and RM-Bench write them
PAIR_SCORES = (
    ("chosen_score", "rejected_score"),
    ("scores_chosen", "scores_rejected"),
    ("score_chosen", "score_rejected"),
)
# what each answer of the completions format has beside it, and where a pair (known by its column) or a battle has the same: a
# column for each side, or one list for all answers
SCORES: dict[str, dict[str, list[tuple[str, ...]]]] = {
    "chosen": {
        "score": [*PAIR_SCORES, ("score_a", "score_b"), ("scores",)],
        "score_error": [("chosen_score_error", "rejected_score_error")],
        "score_lower": [("chosen_score_lower", "rejected_score_lower")],
    },
    "response_a": {
        "score": [("score_a", "score_b"), ("scores",)],
        "score_error": [("score_error_a", "score_error_b")],
        "score_lower": [("score_lower_a", "score_lower_b")],
    },
}


def fix(file: str, out: str, source: str = "auto") -> dict[str, int]:
    """Write a cleaned copy of ``file`` to ``out`` in the ``completions`` format and give what was done to how many rows.

    Unreadable answers (null, textual, non-finite or too large rank, answer that is no text), empty answers and repeats of an
    answer (the best-ranked stays) are removed, with their values in the columns ``PER_ANSWER`` and their places in ``ORDER``; an
    answer is cut at a role marker inside it; rows left with fewer than two answers, and rows that cannot be read, are left out.
    The scores of the sides of a pair or battle go beside its answers (``SCORES``). Other extra columns, and what an answer has
    beside its text, are kept. Raises ``FileExistsError`` if ``out`` exists, and ``DataError`` if no row is left. Nothing is at
    ``out`` before the copy is whole, also where the process is killed: half a copy looks like a whole one.
    """
    target = Path(out)
    if target.exists():
        raise FileExistsError(f"{out} exists; choose another name")
    with TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as unfinished:
        copy = Path(unfinished, "copy")
        with copy.open("w", encoding="utf-8") as opened:
            done = _write_clean(file, source, opened)
        if not done.get("rows written"):
            why = "; ".join(f"{what}: {rows}" for what, rows in done.items())
            raise DataError(f"no row is left after cleaning, so no copy is written ({why})", file=file)
        copy.rename(target)
    return done


def _write_clean(file: str, source: str, target: TextIO) -> dict[str, int]:
    done: Counter[str] = Counter()
    for _, row, item in scan_rows(file, source):
        done["rows read"] += 1
        places: list[int] | None = None
        if isinstance(item, DataError) and row is not None:
            item, places = _without_bad_answers(row, item, done)
        if isinstance(item, DataError):
            done["rows left out: " + kind_of_error(item)] += 1
            continue
        kept = _clean(item, done)
        if len(kept) < 2:
            done["rows left out: fewer than two answers after cleaning"] += 1
            continue
        columns = dict(item.columns)
        beside = _beside(item, row or {}, columns, done)
        where = list(range(len(beside))) if places is None else places
        answers = []
        for k, text in kept.items():
            answer = {"rank": item.ranks[k], "completion": [Message(role="assistant", content=text)]}
            author = {} if item.models[k] is None else {"model": item.models[k]}
            answers.append(beside[where[k]] | answer | author)
        _fit(columns, [where[k] for k in kept], len(beside), done)
        if item.prompt_from_answers:
            done["rows whose prompt was taken from what both answers begin with"] += 1
        cleaned = columns | {"context": item.messages, "completions": answers}
        # a parquet column may hold what JSON does not, such as dates: those become text
        target.write(json.dumps(cleaned, ensure_ascii=False, default=str) + "\n")
        done["rows written"] += 1
    return dict(done)


def _without_bad_answers(
    row: dict[str, Any], error: DataError, done: Counter[str]
) -> tuple[Ranking | DataError, list[int] | None]:
    """``row`` as a ranking of the answers that alone can be read, and their places in the row; or the error if that does not
    help."""
    for column in ("answers", "completions"):
        items = row.get(column)
        if not (isinstance(items, list) and (error.field or "").startswith(f"{column}[")):
            continue
        read = SOURCES["nectar" if column == "answers" else "completions"]
        good = []
        for k, item in enumerate(items):
            # alone an answer is always one too few: that is the error of one that can be read
            alone = to_ranking({**row, column: [item]}, read, error.file, error.line or 0)
            if isinstance(alone, TooFewAnswers):
                good.append(k)
        again = to_ranking({**row, column: [items[k] for k in good]}, read, error.file, error.line or 0)
        if isinstance(again, Ranking):
            done["rows with unreadable answers removed"] += 1
        return again, good
    return error, None


def _clean(ranking: Ranking, done: Counter[str]) -> dict[int, str]:
    """The answers that stay, by their place in the row, in the order they came."""
    responses = [ROLE_MARKER.split(response)[0] for response in ranking.responses]
    if responses != ranking.responses:
        done["rows with an answer cut at a role marker"] += 1
    best: dict[str, int] = {}
    for k in sorted(range(len(responses)), key=ranking.ranks.__getitem__):
        if responses[k].strip():
            best.setdefault(responses[k], k)
    if any(not response.strip() for response in responses):
        done["rows with empty answers removed"] += 1
    full = [response for response in responses if response.strip()]
    if len(set(full)) < len(full):
        done["rows with repeated answers removed"] += 1
    return {k: responses[k] for k in sorted(best.values())}


def _beside(ranking: Ranking, row: dict[str, Any], columns: dict[str, Any], done: Counter[str]) -> list[dict[str, Any]]:
    """What each answer of the row has beside text and rank, such as a score; those of a pair or battle are taken out of
    ``columns``."""
    for column, text in (("answers", "answer"), ("completions", "completion")):
        items = row.get(column)
        if column not in columns and isinstance(items, list):
            return [{name: own[name] for name in own if name != text} if isinstance(own, dict) else {} for own in items]
    size = len(ranking.responses)
    beside: list[dict[str, Any]] = [{} for _ in range(size)]
    kind = "chosen" if "chosen" in row and "chosen" not in columns else "response_a"
    first = ranking.ranks.count(1.0) if kind == "chosen" else 1  # answers of the first side
    for name, choices in SCORES[kind].items():
        for sides in choices:
            lists = [each if isinstance(each, list) else [each] for each in map(columns.get, sides)]
            wanted = [size] if len(sides) == 1 else [first, size - first]
            if all(side in columns for side in sides) and [*map(len, lists)] == wanted:
                for own, value in zip(beside, chain(*lists), strict=True):
                    own[name] = value
                for side in sides:
                    del columns[side]
                done[f"rows whose {' and '.join(map(repr, sides))} stand beside the answers now, as {name!r}"] += 1
                break
    return beside


def _fit(columns: dict[str, Any], kept: list[int], size: int, done: Counter[str]) -> None:
    """Make ``columns`` fit the answers ``kept`` of ``size``; one that has the name of a column written here gets another."""
    for name in ("context", "completions"):
        if name in columns:
            done[f"rows whose column '{name}' is now 'own_{name}'"] += 1
            columns[f"own_{name}"] = columns.pop(name)
    for name, value in columns.items():
        if len(kept) == size or not isinstance(value, list) or len(value) != size:
            continue
        if name in PER_ANSWER:
            columns[name] = [value[k] for k in kept]
        elif name == ORDER and all(type(k) is int for k in value) and sorted(value) == list(range(size)):
            columns[name] = [kept.index(k) for k in value if k in kept]
        else:
            done[f"rows whose column '{name}' still has a value for each answer that was there"] += 1
