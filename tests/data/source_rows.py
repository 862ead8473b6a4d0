"""A row of each source, and what it reads as."""

import json
from pathlib import Path
from typing import Any

from kwise.data import sources
from kwise.records import DataError, Ranking

USER = {"role": "user", "content": "Hi"}
NECTAR = {"prompt": "\n\nHuman: Hi\n\nAssistant: ", "answers": [{"answer": "a", "rank": 2}, {"answer": "b", "rank": 1}]}
COMPLETIONS = {"context": [USER], "completions": [{"rank": 1, "completion": "a"}, {"rank": 0, "completion": "b"}]}
PAIR = {"prompt": "Hi", "chosen": "b", "rejected": "a"}
ARENA = {
    f"conversation_{side}": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": side}] for side in "ab"
} | {"winner": "model_b", "model_a": "x", "model_b": "y", "turn": 1}
BATTLE = {"prompt": "Hi", "response_a": "a", "response_b": "b", "winner": "model_b"}


def written(folder: Path, *rows: dict[str, Any]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def parsed(row: dict[str, Any], source: str) -> Ranking:
    result = sources.to_ranking(row, sources.SOURCES[source], "f.jsonl", 7)
    assert isinstance(result, Ranking), str(result)
    return result


def refused(row: dict[str, Any], source: str) -> str:
    result = sources.to_ranking(row, sources.SOURCES[source], "f.jsonl", 7)
    assert isinstance(result, DataError), str(result)
    assert (result.file, result.line) == ("f.jsonl", 7)
    return str(result)


def nectar(**changes: Any) -> dict[str, Any]:
    return NECTAR | changes


def answers(*ranks: Any) -> list[dict[str, Any]]:
    return [{"answer": f"answer {i}", "model": f"model {i}", "rank": rank} for i, rank in enumerate(ranks)]


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
