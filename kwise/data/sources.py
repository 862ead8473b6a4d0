"""Rows of a file -> Ranking. Each format, told by its columns, is one small function in ``SOURCES``.

``nectar``       ``prompt`` ("\\n\\nHuman: ... \\n\\nAssistant: "), ``answers: [{answer, rank, model}]`` (berkeley-nest/Nectar)
``completions``  ``context`` (messages), ``completions: [{rank, completion}]`` (NeMo-RL; also what kwise writes)
``pairs``        ``chosen``, ``rejected``, with ``prompt`` or with the prompt inside both (TRL, HH-RLHF, RewardBench)
``battles``      ``prompt``, ``response_a``, ``response_b``, ``winner`` (Starling's human preferences)
``arena``        ``conversation_a``, ``conversation_b``, ``winner`` (Chatbot Arena)

A source takes one row and gives messages, responses, ranks, models and the names of the columns it used. It raises
``FieldError``; file and line are added here.
"""

import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from kwise.data.encode import shared_length
from kwise.data.lines import kind_of, read_lines
from kwise.data.turns import (
    TRANSCRIPT,
    FieldError,
    answers_to,
    asked,
    messages_of,
    objects_of,
    prompt_messages,
    response_text,
    text_of,
    transcript,
)
from kwise.records import DataError, Message, Ranking


class TooFewAnswers(DataError):
    """A row that can be read, and has fewer than two answers."""


class Parts(NamedTuple):
    """What a source reads from one row: see ``Ranking``; ``used`` are the columns it took."""

    messages: list[Message]
    responses: list[str]
    ranks: list[float]
    models: list[str | None]
    used: tuple[str, ...]
    prompt_from_answers: bool = False


def read_rankings(path: str | os.PathLike[str], source: str = "auto") -> Iterator[Ranking]:
    """Stream the rankings of a local file, or of a hub data set ``owner/name[:split]``, in file order.

    ``source`` is a key of ``SOURCES`` or ``"auto"``: told by the columns of the first row. Raises ``DataError``, which
    names file, line and field, at the first thing that cannot be read.
    """
    for item in scan_rankings(path, source):
        if isinstance(item, DataError):
            raise item
        yield item


def scan_rankings(path: str | os.PathLike[str], source: str = "auto") -> Iterator[Ranking | DataError]:
    """Like ``read_rankings``, but a bad line is yielded as its ``DataError`` and reading goes on."""
    for _, _, item in scan_rows(os.fspath(path), source):
        yield item


def scan_rows(file: str, source: str) -> Iterator[tuple[int, dict[str, Any] | None, Ranking | DataError]]:
    """Line number, raw row (None if it is no JSON object) and what it reads as."""
    read = source_named(source)
    for line, row in read_lines(file):
        if isinstance(row, DataError):
            yield line, None, row
            continue
        if read is None:
            read = SOURCES[detect(row, file, line)]
        yield line, row, to_ranking(row, read, file, line)


def source_named(source: str) -> Callable[[dict[str, Any]], Parts] | None:
    """The reader of that name; None for ``"auto"``. Raises ``ValueError`` for an unknown one."""
    if source != "auto" and source not in SOURCES:
        raise ValueError(f"unknown source '{source}'; known: auto, {', '.join(SOURCES)}")
    return SOURCES.get(source)


def detect(row: dict[str, Any], file: str, line: int) -> str:
    """The name of the source whose columns ``row`` has. Raises ``DataError`` naming the columns if there is none."""
    for name, columns in COLUMNS.items():
        if columns <= row.keys():
            return name
    wanted = "; ".join(f"{', '.join(sorted(columns))} ({name})" for name, columns in COLUMNS.items())
    raise DataError(
        f"no known kind of ranking: it has {', '.join(row) or 'no columns'}; kwise reads {wanted}", file=file, line=line
    )


def to_ranking(
    row: dict[str, Any], read: Callable[[dict[str, Any]], Parts], file: str, line: int
) -> Ranking | DataError:
    """One row by one source: a ``Ranking``, or the ``DataError`` that says why not."""
    try:
        parts = read(row)
    except FieldError as error:
        return DataError(error.problem, file=file, line=line, field=error.field)
    if len(parts.responses) < 2:
        problem = f"a ranking needs at least two answers, this has {len(parts.responses)}"
        return TooFewAnswers(problem, file=file, line=line, field=parts.used[-1])
    columns = {key: value for key, value in row.items() if key not in parts.used}
    return Ranking(*parts[:4], file, line, columns, parts.prompt_from_answers)


def nectar(row: dict[str, Any]) -> Parts:
    """Nectar's schema (its data set card). ``rank`` is read; the order of the list never is."""
    messages = prompt_messages(row.get("prompt"), "prompt")
    items = objects_of(row.get("answers"), "answers")
    responses = [text_of(item.get("answer"), f"answers[{i}].answer") for i, item in enumerate(items)]
    ranks = [_rank(item.get("rank"), f"answers[{i}].rank") for i, item in enumerate(items)]
    responses = answers_to(row["prompt"], responses)
    return Parts(messages, responses, ranks, [_model(item) for item in items], ("prompt", "answers"))


def completions(row: dict[str, Any]) -> Parts:
    """NeMo-RL's preference format: ``completion`` is a list with one assistant message (plain text is read too)."""
    messages = prompt_messages(row.get("context"), "context")
    items = objects_of(row.get("completions"), "completions")
    responses = [response_text(item.get("completion"), f"completions[{i}].completion") for i, item in enumerate(items)]
    ranks = [_rank(item.get("rank"), f"completions[{i}].rank") for i, item in enumerate(items)]
    responses = answers_to(row["context"], responses)
    return Parts(messages, responses, ranks, [_model(item) for item in items], ("context", "completions"))


def pairs(row: dict[str, Any]) -> Parts:
    """Chosen against rejected: text or messages, the prompt in its own column or in front of both.

    Lists of texts (RewardBench 2) become one ranking in which all chosen are tied before all rejected.
    """
    sides = {name: row.get(name) for name in ("chosen", "rejected")}
    prompt_from_answers = False
    whole = all(isinstance(side, list) and len(side) > 1 and isinstance(side[0], dict) for side in sides.values())
    if whole or ("prompt" not in row and all(isinstance(side, list) for side in sides.values())):
        turns = {name: messages_of(side, name) for name, side in sides.items()}
        messages = _common_prompt(turns)
        texts = {name: [response_text(side[-1:], name)] for name, side in turns.items()}
        # UltraFeedback's binarised form has the prompt in its own column as well
        if "prompt" in row and row["prompt"] not in (messages, messages[-1]["content"], messages[0]["content"]):
            raise FieldError("prompt", "is not the prompt of the conversations in 'chosen' and 'rejected'")
    elif "prompt" in row:
        messages = prompt_messages(row["prompt"], "prompt")
        texts = {name: answers_to(row["prompt"], _answers(side, name)) for name, side in sides.items()}
    else:
        chosen, rejected = (text_of(side, name) for name, side in sides.items())
        if TRANSCRIPT.match(chosen) or TRANSCRIPT.match(rejected):
            turns = {"chosen": transcript(chosen, "chosen"), "rejected": transcript(rejected, "rejected")}
            messages = _common_prompt(turns)
            texts = {name: [response_text(side[-1:], name)] for name, side in turns.items()}
        else:
            prompt = chosen[: shared_length([chosen, rejected])]
            # back to a whole word, as the answers begin with one
            prompt = prompt[: max(prompt.rfind(" "), prompt.rfind("\n")) + 1]
            if not prompt.strip():
                raise FieldError("prompt", "there is no such column, and the two answers do not begin alike")
            messages = [Message(role="user", content=prompt.strip())]
            texts = {"chosen": [chosen[len(prompt) :]], "rejected": [rejected[len(prompt) :]]}
            prompt_from_answers = True
    responses = texts["chosen"] + texts["rejected"]
    ranks = [1.0] * len(texts["chosen"]) + [2.0] * len(texts["rejected"])
    models = row.get("models")  # {"chosen": a, "rejected": b}, or one name for each answer in a list
    if isinstance(models, list):
        found = models if len(models) == len(responses) else [None] * len(responses)
    else:
        named = models if isinstance(models, dict) else {}
        found = [named.get(side, row.get(f"{side}_model")) for side, own in texts.items() for _ in own]
    names = [name if isinstance(name, str) else None for name in found]
    used = ("prompt", "chosen", "rejected") if "prompt" in row else ("chosen", "rejected")
    return Parts(messages, responses, ranks, names, used, prompt_from_answers)


def battles(row: dict[str, Any]) -> Parts:
    """Two responses and ``winner``: ``model_a``, ``model_b``, or ``tie`` in any form; authors in ``model_a``, ``model_b``."""
    sides = ("response_a", "response_b")
    messages = prompt_messages(row.get("prompt"), "prompt")
    responses = answers_to(row["prompt"], [response_text(row.get(side), side) for side in sides])
    return Parts(messages, responses, _winner(row), _sides_models(row), ("prompt", *sides, "winner"))


def arena(row: dict[str, Any]) -> Parts:
    """Chatbot Arena's own form (lmsys/chatbot_arena_conversations, lmarena-ai/arena-human-preference-140k): two conversations and
    ``winner``. Only such can be read whose sides differ in the last turn alone, as rankings are of answers to one prompt."""
    sides = ("conversation_a", "conversation_b")
    turns = {side: messages_of(row.get(side), side) for side in sides}
    responses = [response_text(own[-1:], side) for side, own in turns.items()]
    return Parts(_common_prompt(turns), responses, _winner(row), _sides_models(row), (*sides, "winner"))


def _winner(row: dict[str, Any]) -> list[float]:
    winner = row.get("winner")
    if not isinstance(winner, str) or winner not in WINNERS:
        raise FieldError("winner", f"must be one of {', '.join(WINNERS)}, this is {winner!r}")
    return list(WINNERS[winner])


def _sides_models(row: dict[str, Any]) -> list[str | None]:
    return [row[name] if isinstance(row.get(name), str) else None for name in ("model_a", "model_b")]


TIE = (1.0, 1.0)
WINNERS = {"model_a": (1.0, 2.0), "model_b": (2.0, 1.0), "tie": TIE, "tie (bothbad)": TIE, "both_bad": TIE}
SOURCES: dict[str, Callable[[dict[str, Any]], Parts]] = {
    "nectar": nectar,
    "completions": completions,
    "pairs": pairs,
    "battles": battles,
    "arena": arena,
}
COLUMNS = {
    "nectar": {"prompt", "answers"},
    "completions": {"context", "completions"},
    "pairs": {"chosen", "rejected"},
    "battles": {"prompt", "response_a", "response_b", "winner"},
    "arena": {"conversation_a", "conversation_b", "winner"},
}


def _common_prompt(turns: dict[str, list[Message]]) -> list[Message]:
    """The messages before the last one, which must be the same on both sides."""
    for name, side in turns.items():
        if len(side) < 2 or side[-1]["role"] != "assistant":
            raise FieldError(name, "without a column 'prompt' it must hold the prompt and end with an assistant turn")
    (first, one), (second, other) = turns.items()
    if one[:-1] != other[:-1]:
        raise FieldError(second, f"its conversation differs from that of '{first}' before the last turn")
    return asked(one[:-1], first)


def _answers(side: object, field: str) -> list[str]:
    if isinstance(side, list) and side and all(isinstance(item, str) for item in side):
        return [text_of(item, f"{field}[{i}]") for i, item in enumerate(side)]
    return [response_text(side, field)]


def _rank(value: object, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise FieldError(field, f"a rank must be a number, this is {kind_of(value)}")
    if not abs(value) <= sys.float_info.max:  # infinite, NaN, or an integer that no float holds
        raise FieldError(field, f"a rank must be a finite number, this is {value}")
    if float(value) != value:  # beyond 2^53 two different ranks would become one, a tie
        raise FieldError(field, f"a rank must be a number that a 64-bit float holds exactly, this is {value}")
    return float(value)


def _model(item: dict[str, Any]) -> str | None:
    name = item.get("model")
    return name if isinstance(name, str) else None
