"""The records that travel through kwise. Read this file first.

::

    Ranking          one prompt, K responses, K ranks              leaves kwise/data/sources.py
    EncodedRanking   shared prefix ids, K suffixes of ids          leaves kwise/data/encode.py
    Row              one packed sequence of several rankings       leaves kwise/data/packing.py

K is the length of a list. It is written nowhere as a number.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypedDict


class Message(TypedDict):
    """One turn of a conversation. ``role`` is ``system``, ``user`` or ``assistant``."""

    role: str
    content: str


class DataError(ValueError):
    """Bad input, told in the user's words: which file, which line, which field, and what is wrong with it."""

    def __init__(self, problem: str, *, file: str, line: int | None = None, field: str | None = None) -> None:
        self.problem, self.file, self.line, self.field = problem, file, line, field
        where = file if line is None else f"{file}, line {line}"
        super().__init__(f"{where}: {problem}" if field is None else f"{where}, field '{field}': {problem}")

    def __reduce__(self) -> tuple[Any, ...]:  # so that a worker process can raise it
        return partial(type(self), self.problem, file=self.file, line=self.line, field=self.field), ()


@dataclass(frozen=True)
class Ranking:
    """One prompt and its K >= 2 ranked responses.

    ``messages`` is the prompt: its turns, the last one not by the assistant. ``responses``, ``ranks`` and ``models`` have
    length K and one order, which says nothing: only ``ranks`` does (lower is better, equal is tied). ``models`` holds the
    name of each response's author where the source gives one. ``columns`` are the line's remaining columns as they came,
    ``file`` and ``line`` (1-based) where it came from. ``prompt_from_answers`` says that the line has no prompt of its own, and
    that what both answers begin with was taken for it.
    """

    messages: list[Message]
    responses: list[str]
    ranks: list[float]
    models: list[str | None]
    file: str
    line: int
    columns: dict[str, Any] = field(default_factory=dict)
    prompt_from_answers: bool = False

    @property
    def group(self) -> str:
        """What makes two rankings dependent: column ``prompt_group`` where the source has one, else the prompt itself."""
        group = self.columns.get("prompt_group")
        return str(group) if group is not None else self.prompt

    @property
    def prompt(self) -> str:
        """The prompt's turns as one text, to tell prompts apart by."""
        return "\n".join(f"{m['role']}: {m['content']}" for m in self.messages)


@dataclass(frozen=True)
class EncodedRanking:
    """A prompt and its K responses as token ids.

    Response k is the sequence ``prefix + suffixes[k]``, where ``prefix`` is the longest common prefix of the K id lists
    *after* truncation, shortened so that no suffix is empty. Its reward is read at ``reward_at[k]``, an index into
    ``suffixes[k]``. ``cut[k]`` is the number of tokens that truncation removed from it. ``ranks`` is empty where nobody
    ranked the responses (scoring). ``offsets`` [K] are added to the rewards while training and never when scoring: what
    covariates explain (empty: nothing). ``file`` and ``line`` say where a training ranking was read.
    """

    prefix: list[int]
    suffixes: list[list[int]]
    reward_at: list[int]
    cut: list[int]
    ranks: list[float] = field(default_factory=list)
    offsets: list[float] = field(default_factory=list)
    file: str = ""
    line: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens this ranking takes in a row: the prefix once, every suffix once."""
        return len(self.prefix) + sum(map(len, self.suffixes))


@dataclass(frozen=True)
class Row:
    """Several rankings packed back to back without padding: [prefix | response 1 | ... | response K | next prefix | ...].

    For a prefix ``a b`` with responses ``c d`` and ``e`` (one ranking, N = 5)::

        ids         a b c d e
        positions   0 1 2 3 2      positions go on from the prefix in every response
        ranking     0 0 0 0 0      which ranking of this row a token belongs to
        response    0 0 1 1 2      0 = prefix, k + 1 = response k of that ranking

    ``ids``, ``positions``, ``ranking`` and ``response`` have length N. ``reward_at`` [R] are the indices of the tokens at
    which rewards are read, in order of ranking and response. ``sizes`` says how many rewards each ranking has and
    ``members`` which ranking of the caller's list each one is.
    """

    ids: list[int]
    positions: list[int]
    ranking: list[int]
    response: list[int]
    reward_at: list[int]
    sizes: list[int]
    members: list[int]
