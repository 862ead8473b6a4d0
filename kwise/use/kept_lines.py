"""What an earlier scoring left in its output: may this one go on after it?"""

import json
import math
import os
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from kwise.data.lines import read_lines
from kwise.model.reward_model import RewardModel
from kwise.records import DataError
from kwise.use.scorable import BATTLE, GAINS, LISTS, PAIR, names, without
from kwise.use.scored_lines import BEST, CALIBRATION, LOWER_BOUND, MARKS, Lines, scored_rows, take_window

SAME = 1e-3  # nats: in float32 what one model gives the same line twice differs by less


def keep(
    model: RewardModel, target: Path, lines: Lines, file: str, how: dict[str, Any], choose: bool, multiple: int
) -> int:
    """Take the lines of ``target`` that are whole, up to the last ``multiple``, off ``lines``, and cut off what follows. Gives
    how many. Raises ``ValueError`` where the last of them is not what ``score_file`` would write, or what is less than a line not
    its beginning."""
    kept, end, last = _complete_lines(target, multiple)
    if not kept:
        if multiple == 1:  # shares have names that only kwise gives
            _assert_begins(model, target, file, choose)
        os.truncate(target, 0)
        return 0
    for _ in range(kept):
        number, row = next(lines, (0, None))
    line = f"line {kept} of {target}"
    if not isinstance(row, dict) or not belongs(row, last):
        raise ValueError(f"{line} is not line {kept} of {file} with scores: it is the output of another input")
    before = _read(last)
    if {name: before[name] for name in (CALIBRATION, LOWER_BOUND) if name in before} != how:
        raise ValueError(
            f"{line} was scored with another calibration or lower bound, or with none where this run has one"
        )
    if (BEST[0] in before) != choose:
        raise ValueError(f"{line} was written by 'kwise {'score' if choose else 'best'}', not by this command")
    if not _scored_alike(model, number, row, before, file, how, choose):
        raise ValueError(
            f"{line} has other scores than this model gives it: it was scored by another model, or in another precision"
        )
    os.truncate(target, end)
    return kept


def _assert_begins(model: RewardModel, target: Path, file: str, choose: bool) -> None:
    """Raise ``ValueError`` for a ``target`` of less than a line that does not begin with the first column of ``file``'s first."""
    window, problem = take_window(model, islice(read_lines(file), 1), file, choose)
    if problem:
        raise problem
    plain = [without(line.put([{} for _ in line.responses]), *MARKS) for line in window]
    first = dict(islice(plain[0].items(), 1)) if plain else {}
    begin = json.dumps(first, ensure_ascii=False, default=str)[:-1].encode()
    if first.keys() & {"answers", "completions"}:  # scores go into it
        begin = begin[: begin.index(b":")]
    with target.open("rb") as output:
        part = output.read(len(begin))
    if not begin.startswith(part):
        raise ValueError(f"{target} does not begin as {file} with scores would: it is the output of another input")


def _scored_alike(
    model: RewardModel, number: int, row: dict[str, Any], before: Any, file: str, how: dict[str, Any], choose: bool
) -> bool:
    """Does ``row`` get the scores of ``before`` again, up to rounding? It is run alone now and was run among others then, which
    half precision feels more than float32: there 16 of its last digits are allowed."""
    window, problem = take_window(model, iter([(number, row)]), file, choose)
    if problem:
        raise problem
    (scored,) = scored_rows(model, window, file, how, choose)
    again = _read(json.dumps(scored, default=str))
    calibration = model.settings.calibration
    scale = calibration.temperature if CALIBRATION in how and calibration is not None else 1.0
    digit = torch.finfo(model.model.dtype).eps
    allowed = max(SAME, 16 * digit) * (1 + how.get(LOWER_BOUND, 0.0)) / scale
    # of two responses that score nearly alike either may be the best
    return _alike(without(again, *BEST), without(before, *BEST), 4 * digit, allowed)


def _alike(one: Any, other: Any, relative: float, absolute: float) -> bool:
    """Are two JSON values the same but for numbers so close?"""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_alike(one[name], other[name], relative, absolute) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(_alike(*two, relative, absolute) for two in zip(one, other, strict=True))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=relative, abs_tol=absolute)
    return bool(one == other)


def _read(text: str | bytes) -> Any:
    """A line of an output; NaN, which is not equal to itself, as text."""
    return json.loads(text, parse_constant=str)


def belongs(row: dict[str, Any] | DataError | None, line: bytes) -> bool:
    """Is ``line`` of an output ``row`` of the input, with scores?"""
    if not isinstance(row, dict):
        return False
    try:
        scored = _read(line)
    except ValueError:  # no JSON, so no line of ours
        return False
    plain = _read(json.dumps(row, default=str))
    written = {*GAINS, *names(PAIR), *names(BATTLE), *LISTS.values(), *MARKS}
    for name, value in plain.items():
        other = scored.get(name) if isinstance(scored, dict) else None
        if name in ("answers", "completions") and isinstance(value, list) and isinstance(other, list):
            value, other = (
                [item | dict.fromkeys(GAINS, 0) if isinstance(item, dict) else item for item in each]
                for each in (value, other)
            )
        if value != other and name not in written:
            return False
    return True


def _complete_lines(target: Path, multiple: int) -> tuple[int, int, bytes]:
    """The number of whole lines of ``target``, in multiples of so many, the byte where they end, and the last of them."""
    count, end, last, read = 0, 0, b"", 0
    with target.open("rb") as file:
        for number, line in enumerate(file, 1):
            read += len(line)
            if line.endswith(b"\n") and number % multiple == 0:
                count, end, last = number, read, line
    return count, end, last
