"""Rows in Nectar's form, and files of them."""

import json
from pathlib import Path
from typing import Any


def answer(text: Any, rank: Any, model: str | None = None) -> dict[str, Any]:
    return {"answer": text, "rank": rank, **({"model": model} if model else {})}


def row(prompt: Any, *answers: dict[str, Any], **columns: Any) -> dict[str, Any]:
    return {"prompt": prompt, "answers": list(answers), **columns}


GOOD = row("Good?", answer("yes", 1), answer("no", 2))


def written(folder: Path, *rows: dict[str, Any] | str, name: str = "rows.jsonl") -> str:
    path = folder / name
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return str(path)


def two(prompt: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    return prompt, answer("yes", 1), answer("no", 2)
