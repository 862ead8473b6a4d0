"""What is in a ranking file and what is wrong with it, and a cleaned copy of it.

*Errors* are lines that no command can read. *Warnings* are lines that can be read but are likely not what was meant.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
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
        return "rank is null, not a number or not finite"
    if isinstance(error, sources.TooFewAnswers):
        return "fewer than two answers"
    if field_name.startswith(("prompt", "context")):
        return "prompt cannot be read"
    return "answers cannot be read"


def fix(file: str, out: str, source: str = "auto") -> dict[str, int]:
    """Write a cleaned copy of ``file`` to ``out`` in the ``completions`` format and give what was done to how many rows.

    Unreadable answers (null, textual or non-finite rank, answer that is no text), empty answers and repeats of an answer
    (the best-ranked stays) are removed, with their ``judge_values``; an answer is cut at a role marker inside it; rows left with
    fewer than two answers, and rows that cannot be read, are left out. Extra columns, and what an answer has beside its text,
    are kept. Raises ``FileExistsError`` if ``out`` exists. When ``file`` is unreadable half-way nothing is left at ``out``:
    half a copy looks like a whole one.
    """
    with Path(out).open("x", encoding="utf-8") as target:
        try:
            return _write_clean(file, source, target)
        except BaseException:
            Path(out).unlink()
            raise


def _write_clean(file: str, source: str, target: TextIO) -> dict[str, int]:
    done: Counter[str] = Counter()
    for _, row, item in sources.scan_rows(file, source):
        done["rows read"] += 1
        if isinstance(item, DataError) and row is not None:
            item = _without_bad_answers(row, item, done)
        if isinstance(item, DataError):
            done["rows left out: " + _kind_of_error(item)] += 1
            continue
        kept = _clean(item, done)
        if len(kept) < 2:
            done["rows left out: fewer than two answers after cleaning"] += 1
            continue
        answers = []
        for k, text in kept.items():
            answer = {"rank": item.ranks[k], "completion": [Message(role="assistant", content=text)]}
            author = {} if item.models[k] is None else {"model": item.models[k]}
            answers.append(_beside(item, k, row) | answer | author)
        cleaned = _columns(item, list(kept), done) | {"context": item.messages, "completions": answers}
        if item.prompt_from_answers:
            done["rows whose prompt was taken from what both answers begin with"] += 1
        # a parquet column may hold what JSON does not, such as dates: those become text
        target.write(json.dumps(cleaned, ensure_ascii=False, default=str) + "\n")
        done["rows written"] += 1
    return dict(done)


def _without_bad_answers(row: dict[str, Any], error: DataError, done: Counter[str]) -> Ranking | DataError:
    """``row`` as a ranking, each answer that alone cannot be read taken out of it, or the error if that does not help."""
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
        _keep_values(row, good, len(items))
        row[column] = [items[k] for k in good]
        again = sources.to_ranking(row, read, error.file, error.line or 0)
        if isinstance(again, Ranking):
            done["rows with unreadable answers removed"] += 1
        return again
    return error


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


def _beside(ranking: Ranking, k: int, row: dict[str, Any] | None) -> dict[str, Any]:
    """What the row's answer ``k`` has beside text and rank, such as a score."""
    for column, text in (("answers", "answer"), ("completions", "completion")):
        items = (row or {}).get(column)
        if column not in ranking.columns and isinstance(items, list):
            return {name: value for name, value in items[k].items() if name != text}
    return {}


def _columns(ranking: Ranking, kept: list[int], done: Counter[str]) -> dict[str, Any]:
    """The row's extra columns for the answers ``kept``; one that has the name of a column written here gets another."""
    columns = dict(ranking.columns)
    _keep_values(columns, kept, len(ranking.responses))
    for name in ("context", "completions"):
        if name in columns:
            done[f"rows whose column '{name}' is now 'own_{name}'"] += 1
            columns[f"own_{name}"] = columns.pop(name)
    return columns


def _keep_values(columns: dict[str, Any], kept: list[int], size: int) -> None:
    """Of ``judge_values``, one for each of ``size`` answers, leave those of the answers ``kept``."""
    values = columns.get("judge_values")
    if isinstance(values, list) and len(values) == size:
        columns["judge_values"] = [values[k] for k in kept]
