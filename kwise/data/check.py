"""What is in a ranking file and what is wrong with it.

*Errors* are lines that no command can read. *Warnings* are lines that can be read but are likely not what was meant.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kwise.data import sources
from kwise.data.baselines import Outline, outline, outline_terms
from kwise.data.encode import Encoder
from kwise.data.lines import RepeatedKey
from kwise.data.strength import strengths
from kwise.data.turns import ROLE_MARKER
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
            report.errors[kind_of_error(item)].append(number)
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
    return bool(FIRST_ROLE.match(message["content"]) or ROLE_MARKER.search(message["content"]))


WARNINGS: dict[str, Callable[[Ranking], bool]] = {
    "duplicate answers": lambda r: len(set(r.responses)) < len(r.responses),
    "empty answer": lambda r: any(not response.strip() for response in r.responses),
    "white space at the edge of an answer": lambda r: any(own.strip() not in ("", own) for own in r.responses),
    "role marker inside an answer": lambda r: any(ROLE_MARKER.search(response) for response in r.responses),
    "role marker inside a prompt turn": lambda r: any(map(_has_marker, r.messages)),
    "prompt taken from what both answers begin with": lambda r: r.prompt_from_answers,
    "empty turn in the prompt": lambda r: any(not message["content"].strip() for message in r.messages),
    "all answers tied": lambda r: len(set(r.ranks)) == 1,
    "judge_values or margin that evaluation refuses": _strengths_refused,
}


def kind_of_error(error: DataError) -> str:
    """What kind of defect a line has that cannot be read."""
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
