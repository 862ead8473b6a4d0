"""A line of any kind that can be scored: its conversations, and the same line with their scores in it."""

from collections.abc import Callable
from typing import Any

from kwise.data import sources, turns
from kwise.records import Message

GAINS = ("score", "score_error", "score_lower")  # what a response may gain
# where a line holds bare texts
LISTS = {"score": "scores", "score_error": "score_errors", "score_lower": "scores_lower"}
# what the two sides of a pair and of a battle gain
PAIR = {side: {gain: f"{side}_{gain}" for gain in GAINS} for side in ("chosen", "rejected")}
BATTLE = {side: {gain: f"{gain}_{side}" for gain in GAINS} for side in "ab"}
Gains = dict[str, float]
Put = Callable[[list[Gains]], dict[str, Any]]


def scorable(row: dict[str, Any]) -> tuple[list[Message], list[str], Put]:
    """A line as prompt, responses and a function that puts their scores into it. Raises ``FieldError``."""
    for name, columns in sources.COLUMNS.items():
        if columns <= row.keys():
            return _ranking(row, name)
    if "messages" in row:
        messages = turns.conversation(row["messages"], "messages")
        return messages[:-1], [messages[-1]["content"]], lambda gains: without(row, *GAINS) | gains[0]
    if {"prompt", "responses"} <= row.keys():
        prompt = turns.prompt_messages(row["prompt"], "prompt")
        if not isinstance(row["responses"], list) or not row["responses"]:
            raise turns.FieldError("responses", "must be a list of texts, at least one")
        texts = [turns.response_text(each, f"responses[{k}]") for k, each in enumerate(row["responses"])]
        texts = turns.answers_to(row["prompt"], texts)
        return (
            prompt,
            texts,
            lambda gains: (
                without(row, *LISTS.values())
                | {LISTS[name]: [gain[name] for gain in gains] for name in GAINS if name in gains[0]}
            ),
        )
    if {"prompt", "response"} <= row.keys():
        prompt = turns.prompt_messages(row["prompt"], "prompt")
        responses = turns.answers_to(row["prompt"], [turns.response_text(row["response"], "response")])
        return prompt, responses, lambda gains: without(row, *GAINS) | gains[0]
    raise turns.FieldError(
        "messages",
        "a line needs 'messages', 'prompt' and 'response' (or 'responses'), a ranking or a pair; this has "
        + (", ".join(row) or "no columns"),
    )


def _ranking(row: dict[str, Any], source: str) -> tuple[list[Message], list[str], Put]:
    parts = sources.SOURCES[source](_with_ranks(row))
    if not parts.responses:
        raise turns.FieldError(parts.used[-1], "there is no answer to score")

    def put(gains: list[Gains]) -> dict[str, Any]:
        if source == "pairs":
            chosen = parts.ranks.count(1.0)
            values: dict[str, Any] = {}
            for side, own in (("chosen", gains[:chosen]), ("rejected", gains[chosen:])):
                listed = isinstance(row[side], list) and isinstance(row[side][0], str)
                for name in own[0]:
                    values[PAIR[side][name]] = [gain[name] for gain in own] if listed else own[0][name]
            return without(row, *names(PAIR)) | values
        if source in ("battles", "arena"):
            named = {BATTLE[side][name]: gain[name] for side, gain in zip("ab", gains, strict=True) for name in gain}
            return without(row, *names(BATTLE)) | named
        column = "answers" if source == "nectar" else "completions"
        return row | {column: [without(item, *GAINS) | gain for item, gain in zip(row[column], gains, strict=True)]}

    return parts.messages, parts.responses, put


def _with_ranks(row: dict[str, Any]) -> dict[str, Any]:
    """Scoring needs no ranks: an answer that has none yet is scored too."""
    for column in ("answers", "completions"):
        items = row.get(column)
        if isinstance(items, list):
            row = row | {column: [item | {"rank": 0} if isinstance(item, dict) else item for item in items]}
    return row


def names(sides: dict[str, dict[str, str]]) -> list[str]:
    """All columns of ``PAIR`` or ``BATTLE``."""
    return [name for own in sides.values() for name in own.values()]


def without(row: dict[str, Any], *columns: str) -> dict[str, Any]:
    """``row`` without what an earlier scoring may have left in it."""
    return {name: value for name, value in row.items() if name not in columns}
