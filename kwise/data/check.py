"""What is in a ranking file and what is wrong with it, and a cleaned copy of it.

*Errors* are lines that no command can read. *Warnings* are lines that can be read but are likely not what was meant.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from kwise.data import sources
from kwise.data.baselines import Outline, outline, outline_terms
from kwise.data.encode import Encoder
from kwise.data.lines import RepeatedKey
from kwise.data.strength import strengths
from kwise.records import DataError, Message, Ranking

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class Report:
    """The result of ``check``. ``errors`` and ``warnings`` map a kind of defect to the numbers of the lines that have it;
    ``messages`` holds each bad line's own words; ``facts`` are counts and shares; ``lengths`` are numbers of tokens: [count,
    median, 90 %, 99 %, longest]."""

    file: str
    rows: int = 0
    rankings: int = 0
    errors: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    warnings: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    messages: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    lengths: dict[str, list[int]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return {
            "rows": self.rows,
            "rankings": self.rankings,
            "errors": dict(self.errors),
            "warnings": dict(self.warnings),
            **self.facts,
            "token_lengths": self.lengths,
        }


def check(
    file: str,
    source: str = "auto",
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    max_length: int = 2048,
) -> Report:
    """Read all of ``file`` and report. Raises ``DataError`` only for what is no ranking file at all."""
    checker = Checker(file)
    encoder = None if tokenizer is None else Encoder(tokenizer, max_length)
    for number, _, item in sources.scan_rows(file, source):
        checker.add(number, item, encoder)
    return checker.result()


class Checker:
    """Takes the lines of a file one by one and keeps no text: about a kilobyte a ranking."""

    def __init__(self, file: str) -> None:
        self.report = Report(file)
        self.outlines: list[Outline] = []
        self.first: dict[int, int] = {}  # hash of a group -> its first line
        self.ones_to_k = 0
        self.turns: Counter[int] = Counter()
        self.lengths: dict[str, list[int]] = {"shared prefix": [], "prompt and one answer": [], "whole ranking": []}

    def add(self, number: int, item: Ranking | DataError, encoder: Encoder | None = None) -> None:
        """Count a line; with ``encoder`` its tokens too."""
        report = self.report
        report.rows += 1
        if isinstance(item, DataError):
            report.errors[_kind_of_error(item)].append(number)
            report.messages.append(str(item))
            return
        for name, found in WARNINGS.items():
            if found(item):
                report.warnings[name].append(number)
        own = outline(item)
        self.outlines.append(own)
        if self.first.setdefault(own.group, number) != number:
            report.warnings["prompt of an earlier line"].append(number)
        self.ones_to_k += sorted(item.ranks) == list(range(1, len(item.ranks) + 1))
        self.turns[len(item.messages)] += 1
        if encoder is not None:
            self._measure(item, encoder)

    def result(self) -> Report:
        """The report on what was added."""
        report, outlines = self.report, self.outlines
        report.rankings = len(outlines)
        sizes = Counter(len(each.ranks) for each in outlines)
        terms = outline_terms(outlines)
        shares = {}
        for name in ("longer_wins", "better_model_wins"):
            won, count = (sum(term[name][i] for term in terms) for i in (0, 1))
            shares[name] = won / count if count else None
        report.facts = {
            "prompts": len(self.first),
            "answers": sum(size * count for size, count in sizes.items()),
            "k": {str(size): sizes[size] for size in sorted(sizes)},
            "answers_of_known_author": sum(model is not None for each in outlines for model in each.models),
            "rankings_with_ties": sum(len(set(each.ranks)) < len(each.ranks) for each in outlines),
            "ranks_are_1_to_k": self.ones_to_k,
            "turns": {str(turns): count for turns, count in sorted(self.turns.items())},
            **shares,
        }
        for name, values in self.lengths.items():
            if values:
                values.sort()
                report.lengths[name] = [len(values)] + [
                    values[min(int(q * len(values)), len(values) - 1)] for q in (0.5, 0.9, 0.99, 1)
                ]
        return report

    def _measure(self, ranking: Ranking, encoder: Encoder) -> None:
        try:
            item = encoder.encode_ranking(ranking)
        except DataError as error:
            self.report.errors["refused by the chat template"].append(ranking.line)
            self.report.messages.append(str(error))
            return
        prompt, longest, total = self.lengths.values()
        prompt.append(len(item.prefix))
        longest += [len(item.prefix) + len(s) + cut for s, cut in zip(item.suffixes, item.cut, strict=True)]
        total.append(item.num_tokens)
        if any(item.cut):
            self.report.warnings[f"longer than {encoder.max_length} tokens"].append(ranking.line)


def _strengths_refused(ranking: Ranking) -> bool:
    try:
        strengths(ranking)
    except DataError:  # an evaluation stops here, after it has scored everything
        return True
    return False


FIRST_ROLE = re.compile(r"\s*(Human|Assistant):")


def _has_marker(message: Message) -> bool:
    """Does a turn begin with a role, or have one after a blank line? Of a prompt read as a transcript no turn does."""
    return bool(FIRST_ROLE.match(message["content"]) or sources.ROLE_MARKER.search(message["content"]))


WARNINGS: dict[str, Callable[[Ranking], bool]] = {
    "duplicate answers": lambda r: len(set(r.responses)) < len(r.responses),
    "empty answer": lambda r: any(not response.strip() for response in r.responses),
    "white space at the edge of an answer": lambda r: any(own.strip() not in ("", own) for own in r.responses),
    "role marker inside an answer": lambda r: any(sources.ROLE_MARKER.search(response) for response in r.responses),
    "role marker inside a prompt turn": lambda r: any(map(_has_marker, r.messages)),
    "prompt taken from what both answers begin with": lambda r: r.prompt_from_answers,
    "empty turn in the prompt": lambda r: any(not message["content"].strip() for message in r.messages),
    "all answers tied": lambda r: len(set(r.ranks)) == 1,
    "judge_values or margin that evaluation refuses": _strengths_refused,
}


def _kind_of_error(error: DataError) -> str:
    if isinstance(error, RepeatedKey):
        return "a key twice in one object"
    field_name = error.field or ""
    if not field_name:
        return "not a JSON object"
    if field_name.endswith(".rank"):
        return "rank is null, not a number, not finite or too large"
    if isinstance(error, sources.TooFewAnswers):
        return "fewer than two answers"
    if field_name.startswith(("prompt", "context")):
        return "prompt cannot be read"
    return "answers cannot be read"


# columns that kwise reads, or writes, as lists with one value for each answer
PER_ANSWER = ("judge_values", "models", "scores", "score_errors", "scores_lower")
ORDER = "ranking_order"  # a second judgement: the answers' indices from best to worst
# what each answer of the completions format has beside it, and where a pair (known by its column) or a battle has the same: a
# column for each side, or one list for all answers
SCORES: dict[str, dict[str, list[tuple[str, ...]]]] = {
    "chosen": {
        "score": [
            ("chosen_score", "rejected_score"),
            ("scores_chosen", "scores_rejected"),
            ("score_chosen", "score_rejected"),
            ("scores",),
            ("score_a", "score_b"),
        ],
        "score_error": [("chosen_score_error", "rejected_score_error")],
        "score_lower": [("chosen_score_lower", "rejected_score_lower")],
    },
    "response_a": {
        "score": [("scores",), ("score_a", "score_b")],
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
    beside its text, are kept. Raises ``FileExistsError`` if ``out`` exists, and ``DataError`` if no row is left. Then, and when
    ``file`` is unreadable half-way, nothing is left at ``out``: half a copy looks like a whole one.
    """
    with Path(out).open("x", encoding="utf-8") as target:
        try:
            done = _write_clean(file, source, target)
            if not done.get("rows written"):
                why = "; ".join(f"{what}: {rows}" for what, rows in done.items())
                raise DataError(f"no row is left after cleaning, so no copy is written ({why})", file=file)
            return done
        except BaseException:
            Path(out).unlink()
            raise


def _write_clean(file: str, source: str, target: TextIO) -> dict[str, int]:
    done: Counter[str] = Counter()
    for _, row, item in sources.scan_rows(file, source):
        done["rows read"] += 1
        places: list[int] | None = None
        if isinstance(item, DataError) and row is not None:
            item, places = _without_bad_answers(row, item, done)
        if isinstance(item, DataError):
            done["rows left out: " + _kind_of_error(item)] += 1
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
        read = sources.SOURCES["nectar" if column == "answers" else "completions"]
        good = []
        for k, item in enumerate(items):
            # alone an answer is always one too few: that is the error of one that can be read
            alone = sources.to_ranking({**row, column: [item]}, read, error.file, error.line or 0)
            if isinstance(alone, sources.TooFewAnswers):
                good.append(k)
        again = sources.to_ranking({**row, column: [items[k] for k in good]}, read, error.file, error.line or 0)
        if isinstance(again, Ranking):
            done["rows with unreadable answers removed"] += 1
        return again, good
    return error, None


def _clean(ranking: Ranking, done: Counter[str]) -> dict[int, str]:
    """The answers that stay, by their place in the row, in the order they came."""
    responses = [sources.ROLE_MARKER.split(response)[0] for response in ranking.responses]
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
