"""Rows of a file -> Ranking. Each format, told by its columns, is one small function in ``SOURCES``.

``nectar``       ``prompt`` ("\\n\\nHuman: ... \\n\\nAssistant: "), ``answers: [{answer, rank, model}]`` (berkeley-nest/Nectar)
``completions``  ``context`` (messages), ``completions: [{rank, completion}]`` (NeMo-RL; also what kwise writes)
``pairs``        ``chosen``, ``rejected``, with ``prompt`` or with the prompt inside both (TRL, HH-RLHF, RewardBench)
``battles``      ``prompt``, ``response_a``, ``response_b``, ``winner`` (Chatbot Arena, Starling's human preferences)

A source takes one row and gives messages, responses, ranks, models and the names of the columns it used. It raises
``FieldError``; file and line are added here.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from kwise.data.encode import shared_length
from kwise.data.lines import kind_of, read_lines
from kwise.records import DataError, Message, Ranking

ROLES = ("system", "user", "assistant")
# what else a message may say, as the formats of chat servers and of datasets call it
BESIDE_CONTENT = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking", "images", "audio")
ROLE_MARKER = re.compile(r"\r?\n\r?\n(Human|Assistant):")
TURN_FIRST = re.compile(r"\s*" + ROLE_MARKER.pattern)
# as HH-RLHF writes it, or with other white space at its front, where a text may begin with "Human:" and be none: then a later
# turn of the assistant tells
TRANSCRIPT = re.compile(r"\r?\n\r?\n(?:Human|Assistant):|\s*Human:.*?\r?\n\r?\nAssistant:", re.DOTALL)


SURROGATE = re.compile("[\ud800-\udfff]")  # alone none is a character, and no tokenizer takes it


class FieldError(ValueError):
    """What is wrong with one field of one row."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(problem)
        self.field, self.problem = field, problem


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
    items = _objects(row.get("answers"), "answers")
    responses = [_text(item.get("answer"), f"answers[{i}].answer") for i, item in enumerate(items)]
    ranks = [_rank(item.get("rank"), f"answers[{i}].rank") for i, item in enumerate(items)]
    responses = answers_to(row["prompt"], responses)
    return Parts(messages, responses, ranks, [_model(item) for item in items], ("prompt", "answers"))


def completions(row: dict[str, Any]) -> Parts:
    """NeMo-RL's preference format: ``completion`` is a list with one assistant message (plain text is read too)."""
    messages = prompt_messages(row.get("context"), "context")
    items = _objects(row.get("completions"), "completions")
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
        turns = {name: _messages(side, name) for name, side in sides.items()}
        messages = _common_prompt(turns)
        texts = {name: [response_text(side[-1:], name)] for name, side in turns.items()}
        # UltraFeedback's binarised form has the prompt in its own column as well
        if "prompt" in row and row["prompt"] not in (messages, messages[-1]["content"], messages[0]["content"]):
            raise FieldError("prompt", "is not the prompt of the conversations in 'chosen' and 'rejected'")
    elif "prompt" in row:
        messages = prompt_messages(row["prompt"], "prompt")
        texts = {name: answers_to(row["prompt"], _answers(side, name)) for name, side in sides.items()}
    else:
        chosen, rejected = (_text(side, name) for name, side in sides.items())
        if TRANSCRIPT.match(chosen) or TRANSCRIPT.match(rejected):
            turns = {"chosen": _transcript(chosen, "chosen"), "rejected": _transcript(rejected, "rejected")}
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
    turns = {side: _messages(row.get(side), side) for side in sides}
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


def prompt_messages(prompt: object, field: str) -> list[Message]:
    """A prompt as messages: a list of messages, a transcript (``TRANSCRIPT``), or one user turn of plain text.

    Raises ``FieldError`` when it is empty or when the last turn is not the user's.
    """
    if isinstance(prompt, list):
        messages = _messages(prompt, field)
    else:
        text = _text(prompt, field)
        if not text.strip():
            raise FieldError(field, "the prompt is empty")
        messages = _transcript(text, field) if TRANSCRIPT.match(text) else [Message(role="user", content=text)]
        if len(messages) > 1 and messages[-1] == Message(role="assistant", content=""):
            messages.pop()
    if not any(message["content"].strip() for message in messages):
        raise FieldError(field, "the prompt is empty")
    if messages[-1]["role"] != "user":
        raise FieldError(field, f"the prompt must end with a user turn, this ends with '{messages[-1]['role']}'")
    return messages


def answers_to(prompt: object, responses: list[str]) -> list[str]:
    """``responses`` as a model is to read them after ``prompt``: after a transcript without the white space around them, which
    is no part of a turn, so that a conversation in two columns scores what it does in one; else as they are."""
    if not (isinstance(prompt, str) and TRANSCRIPT.match(prompt)):
        return responses
    # a turn at the front of a response stays one, for data check to find
    return [text.rstrip() if TURN_FIRST.match(text) else text.strip() for text in responses]


def _transcript(text: str, field: str) -> list[Message]:
    """``\\n\\nHuman: a\\n\\nAssistant: b`` as messages, whatever white space is at its front. Two turns in a row of one role (a
    marker inside a text) become one."""
    before, *pieces = ROLE_MARKER.split("\n\n" + text.lstrip())
    if before or pieces[:1] != ["Human"]:
        raise FieldError(field, "the conversation must begin with a Human turn")
    messages: list[Message] = []
    for marker, said in zip(pieces[::2], pieces[1::2], strict=True):
        role, content = ("user" if marker == "Human" else "assistant"), said.strip()
        if messages and messages[-1]["role"] == role:
            content = "\n\n".join(filter(None, [messages.pop()["content"], content]))
        messages.append(Message(role=role, content=content))
    return messages


def _messages(value: object, field: str) -> list[Message]:
    messages = []
    for i, item in enumerate(_objects(value, field)):
        role = item.get("role")
        if role not in ROLES:
            raise FieldError(f"{field}[{i}].role", f"must be one of {', '.join(ROLES)}, this is {role!r}")
        messages.append(Message(role=role, content=_content(item, f"{field}[{i}]")))
    if not messages:
        raise FieldError(field, "the list of messages is empty")
    return messages


def _common_prompt(turns: dict[str, list[Message]]) -> list[Message]:
    """The messages before the last one, which must be the same on both sides."""
    for name, side in turns.items():
        if len(side) < 2 or side[-1]["role"] != "assistant":
            raise FieldError(name, "without a column 'prompt' it must hold the prompt and end with an assistant turn")
    (first, one), (second, other) = turns.items()
    if one[:-1] != other[:-1]:
        raise FieldError(second, f"its conversation differs from that of '{first}' before the last turn")
    return one[:-1]


def _answers(side: object, field: str) -> list[str]:
    if isinstance(side, list) and side and all(isinstance(item, str) for item in side):
        return [_text(item, f"{field}[{i}]") for i, item in enumerate(side)]
    return [response_text(side, field)]


def conversation(value: object, field: str) -> list[Message]:
    """A whole conversation: messages that end with an assistant turn after at least one other. Raises ``FieldError``."""
    messages = _messages(value, field)
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise FieldError(field, "a conversation to score must end with an assistant turn after a prompt")
    return messages


def response_text(value: object, field: str) -> str:
    """A response: plain text, or a list of exactly one assistant message."""
    if isinstance(value, str):
        return _text(value, field)
    if not isinstance(value, list):
        raise FieldError(field, f"must be text or a list with one assistant message, this is {kind_of(value)}")
    items = _objects(value, field)
    if len(items) != 1 or items[0].get("role") != "assistant":
        raise FieldError(field, "must be text or a list with one assistant message")
    return _content(items[0], f"{field}[0]")


def _content(message: dict[str, Any], field: str) -> str:
    """The text of a message, which must be all that it says."""
    for part in BESIDE_CONTENT:
        if message.get(part):
            raise FieldError(f"{field}.{part}", "kwise reads the text in 'content' only, and the rest would be lost")
    content = message.get("content")
    if isinstance(content, list):  # parts, as chat servers take them
        if len(content) != 1 or not isinstance(content[0], dict) or content[0].get("type") != "text":
            raise FieldError(
                f"{field}.content", "of a content in parts kwise reads one of type 'text' and nothing else"
            )
        return _text(content[0].get("text"), f"{field}.content[0].text")
    return _text(content, f"{field}.content")


def _text(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise FieldError(field, f"must be text, this is {kind_of(value)}")
    if half := SURROGATE.search(value):
        raise FieldError(field, f"is no Unicode text: character {half.start()} is half of a pair, {half[0]!r}")
    return value


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


def _objects(value: object, field: str) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise FieldError(field, f"must be a list, this is {kind_of(value)}")
    for i, item in enumerate(value):
        if not isinstance(item, dict):
            raise FieldError(f"{field}[{i}]", f"must be an object, this is {kind_of(item)}")
    return value
