"""``kwise score`` and ``kwise best``: the same lines with scores and choices, streamed, in order, and resumable."""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock, Timeout
from jinja2 import TemplateError

from kwise.data import sources, turns
from kwise.data.lines import read_lines
from kwise.model.reward_model import RewardModel
from kwise.model.uncertainty import check_bound
from kwise.records import DataError, EncodedRanking, Message

CALIBRATION = "score_calibration"  # the column that says by which calibration a line was scored
LOWER_BOUND = "score_lower_bound"  # and the one that says with how many errors off its lower bounds are
BEST = ("best_index", "best_text")
GAINS = ("score", "score_error", "score_lower")  # what a response may gain
LISTS = {
    "score": "scores",
    "score_error": "score_errors",
    "score_lower": "scores_lower",
}  # where a line holds bare texts
WINDOW = 64  # lines scored together and then written together
SAME = 1e-3  # nats: in float32 what one model gives the same line twice differs by less
Gains = dict[str, float]
Put = Callable[[list[Gains]], dict[str, Any]]
Lines = Iterator[tuple[int, dict[str, Any] | DataError]]


def score_file(
    model: RewardModel,
    file: str,
    out: str,
    resume: bool = False,
    progress: Callable[[int], None] = lambda lines: None,
    calibrated: bool = False,
    c: float | None = None,
    choose: bool = False,
    share: tuple[int, int] = (0, 1),
) -> dict[str, int]:
    """Write every line of ``file`` with its scores to ``out``, in order; memory does not grow with the file.

    A conversation ``{"messages": [...]}`` or ``{"prompt", "response"}`` gains ``score``; every answer or completion of a ranking
    gains ``score``; ``{"prompt", "responses"}`` gains the list ``scores``; a pair gains ``chosen_score`` and ``rejected_score``
    (lists where it holds lists), a battle ``score_a`` and ``score_b``. All else stays as it is.

    With ``c`` each response also gains ``score_error`` and ``score_lower``, its score less ``c`` errors (arXiv 2301.11270,
    Algorithm 1), and the line ``score_lower_bound``, which is c; a model without uncertainty is a ``ValueError``. With
    ``choose`` a line gains ``best_index``, the index of the response with the highest lower bound (the highest score without
    ``c``; of equals the first), and ``best_text``; a line with one response, or a pair, is a ``DataError``. What an earlier
    scoring left in columns of these names is replaced, or goes.

    ``calibrated`` writes calibrated rewards (``Calibration``) as scores, and every line gains ``score_calibration``, which holds
    the temperature, centre and length slope; without it a line has no such column. Raises ``ValueError`` for a model that has
    none.

    ``share`` (i, n) writes only every n-th window of ``WINDOW`` lines, from the i-th on (``kwise.use.score_shares``).

    ``resume`` goes on after the complete lines of ``out`` (of a share: after its whole windows, which are packed alike whoever
    scores them), if the last of them belongs to its line of ``file``, was scored by the same calibration and ``c``, or by
    none, and gets the same scores again up to rounding; a half-written line is removed. Gives the counts of lines written, of
    lines kept from before, of responses shortened to ``max_length``, and of lines whose own scores were replaced. Raises
    ``FileExistsError`` without ``resume`` if ``out`` exists, ``ValueError`` while another process writes it, and ``DataError`` at
    a line that cannot be read or scored; what was written before stays.
    """
    how = columns_of(model, calibrated, c)  # before OUT is made
    target = Path(out)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target.parent} is no folder to write {target.name} into")
    assert_not_input(target, file)
    if target.exists() and not resume:
        raise FileExistsError(f"{out} exists; go on with it by --resume, or remove it")
    with _alone(target):
        lines = _windows(read_lines(file), *share)
        kept = keep(model, target, lines, file, how, choose, WINDOW if share[1] > 1 else 1) if target.exists() else 0
        return _append(model, target, lines, file, how, choose, kept, progress)


def assert_not_input(target: Path, file: str) -> None:
    """Raise ``ValueError`` for a target that is the input, by whatever name."""
    if target.exists() and Path(file).exists() and target.samefile(file):
        raise ValueError(f"{target} is the input file itself")


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    lock = FileLock(f"{target}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(f"another process is writing {target}") from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _append(
    model: RewardModel,
    target: Path,
    lines: Lines,
    file: str,
    how: dict[str, Any],
    choose: bool,
    kept: int,
    progress: Callable[[int], None],
) -> dict[str, int]:
    counts = {"written": 0, "kept": kept, "shortened": 0, "replaced": 0}
    window, problem = take_window(
        model, lines, file, choose
    )  # before OUT is made: what is no input at all leaves nothing behind
    if problem and not window:
        raise problem
    with target.open("a", encoding="utf-8") as output:
        while True:
            for each, scored in zip(window, scored_rows(model, window, file, how, choose), strict=True):
                # dates of a parquet file become text
                output.write(json.dumps(scored, ensure_ascii=False, default=str) + "\n")
                counts["written"] += 1
                counts["shortened"] += sum(cut > 0 for cut in each.encoded.cut)
                counts["replaced"] += each.replaces
            output.flush()
            progress(kept + counts["written"])
            if problem:
                raise problem
            if len(window) < WINDOW:
                return counts
            window, problem = take_window(model, lines, file, choose)


def columns_of(model: RewardModel, calibrated: bool, c: float | None) -> dict[str, Any]:
    """What every line gains besides scores: how they were made. Raises as ``score_file`` for what ``model`` has not."""
    if c is not None:
        check_bound(c)
        model.known_uncertainty()
    how: dict[str, Any] = {CALIBRATION: _calibration(model)} if calibrated else {}
    return how | ({} if c is None else {LOWER_BOUND: c})


def scored_rows(
    model: RewardModel, window: "list[Line]", file: str, how: dict[str, Any], choose: bool
) -> Iterator[dict[str, Any]]:
    """Each line of ``window`` with its scores, made and marked as ``how`` (``columns_of``) says. Raises as ``score_file``."""
    c = how.get(LOWER_BOUND)
    for each, gains in zip(window, _gains(model, window, CALIBRATION in how, c), strict=True):
        if not all(math.isfinite(value) for gain in gains for value in gain.values()):
            raise DataError("the model's score is NaN or infinite", file=file, line=each.line)
        scored = without(each.put(gains), CALIBRATION, LOWER_BOUND, *BEST) | how
        if choose:
            values = [gain["score" if c is None else "score_lower"] for gain in gains]
            best = max(range(len(values)), key=values.__getitem__)
            scored |= dict(zip(BEST, (best, each.responses[best]), strict=True))
        yield scored


def _windows(lines: Lines, first: int, step: int) -> Lines:
    """Every ``step``-th window of ``lines``, from number ``first`` on."""
    return (line for i, line in enumerate(lines) if i // WINDOW % step == first)


def without(row: dict[str, Any], *columns: str) -> dict[str, Any]:
    """``row`` without what an earlier scoring may have left in it."""
    return {name: value for name, value in row.items() if name not in columns}


def _gains(model: RewardModel, window: "list[Line]", calibrated: bool, c: float | None) -> Iterator[list[Gains]]:
    """What every response of each line gains."""
    encoded = [each.encoded for each in window]
    found = (
        ((rewards, None) for rewards in model.score_encoded(encoded)) if c is None else model.score_with_errors(encoded)
    )
    scale = model.temperature if calibrated else 1.0
    for each, (rewards, errors) in zip(window, found, strict=True):
        scores = model.calibrated(rewards, each.responses) if calibrated else rewards
        if errors is None or c is None:
            yield [{"score": score} for score in scores]
        else:
            yield [
                {"score": score, "score_error": error / scale, "score_lower": score - c * error / scale}
                for score, error in zip(scores, errors, strict=True)
            ]


class Line(NamedTuple):
    """A line to score: its number, its responses, their conversations as ids, a function that puts their scores into it, and
    whether it has scores already, which these replace."""

    line: int
    responses: list[str]
    encoded: EncodedRanking
    put: Put
    replaces: bool


def take_window(model: RewardModel, lines: Lines, file: str, choose: bool) -> tuple[list[Line], DataError | None]:
    """The next lines to score, and the error that ended them early, if one did."""
    window: list[Line] = []
    for number, row in islice(lines, WINDOW):
        if isinstance(row, DataError):
            return window, row
        try:
            messages, responses, put = scorable(row)
            if choose and (
                len(responses) < 2 or any(sources.COLUMNS[two] <= row.keys() for two in ("pairs", "battles", "arena"))
            ):
                raise turns.FieldError(
                    "responses", "there is nothing to choose from: give 'prompt' and 'responses', or a ranking"
                )
            replaces = put([{} for _ in responses]) != row
            window.append(Line(number, responses, model.encoder.encode(messages, responses), put, replaces))
        except turns.FieldError as error:
            return window, DataError(error.problem, file=file, line=number, field=error.field)
        except (ValueError, TemplateError) as error:  # what the truncation rule or the chat template refuses
            return window, DataError(f"cannot be encoded: {error}", file=file, line=number)
    return window, None


def _calibration(model: RewardModel) -> dict[str, float]:
    found = model.settings.calibration
    if found is None:
        raise ValueError("this model has not been calibrated: run kwise calibrate on held-out rankings first")
    return {"temperature": found.temperature, "centre": found.centre, "length_slope": found.length_slope}


def keep(
    model: RewardModel, target: Path, lines: Lines, file: str, how: dict[str, Any], choose: bool, multiple: int
) -> int:
    """Take the lines of ``target`` that are whole, up to the last ``multiple``, off ``lines``, and cut off what follows. Gives
    how many. Raises ``ValueError`` where the last of them is not what ``score_file`` would write."""
    kept, last = _complete_lines(target, multiple)
    number = 0
    row: dict[str, Any] | DataError | None = None
    for _ in range(kept):
        number, row = next(lines, (0, None))
    before = _read(last or b"{}")
    if kept and (not isinstance(row, dict) or not _same_but_scores(row, before)):
        raise ValueError(
            f"line {kept} of {target} is not line {kept} of {file} with scores: it is the output of another input"
        )
    if kept and {name: before[name] for name in (CALIBRATION, LOWER_BOUND) if name in before} != how:
        raise ValueError(
            f"line {kept} of {target} was scored with another calibration or lower bound, or with none where this run has "
            "one"
        )
    if kept and (BEST[0] in before) != choose:
        raise ValueError(
            f"line {kept} of {target} was written by 'kwise {'score' if choose else 'best'}', not by this command"
        )
    if kept and isinstance(row, dict) and not _scored_alike(model, number, row, before, file, how, choose):
        raise ValueError(
            f"line {kept} of {target} has other scores than this model gives it: it was scored by another model, or in another "
            "precision"
        )
    return kept


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


def _same_but_scores(row: dict[str, Any], scored: Any) -> bool:
    plain = _read(json.dumps(row, default=str))
    sides = (f"{side}_{gain}" for side in ("chosen", "rejected") for gain in GAINS)
    battles = (f"{gain}_{side}" for side in "ab" for gain in GAINS)
    written = {*GAINS, *sides, *battles, *LISTS.values(), CALIBRATION, LOWER_BOUND, *BEST}
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
            sides = {"chosen": gains[:chosen], "rejected": gains[chosen:]}
            listed = isinstance(row["chosen"], list) and isinstance(row["chosen"][0], str)
            values = {
                f"{side}_{name}": [gain[name] for gain in own] for side, own in sides.items() for name in gains[0]
            }
            stale = (f"{side}_{gain}" for side in sides for gain in GAINS)
            return without(row, *stale) | {name: value if listed else value[0] for name, value in values.items()}
        if source in ("battles", "arena"):
            stale = (f"{gain}_{side}" for side in "ab" for gain in GAINS)
            named = {f"{name}_{side}": gain[name] for side, gain in zip("ab", gains, strict=True) for name in gain}
            return without(row, *stale) | named
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


def _complete_lines(target: Path, multiple: int) -> tuple[int, bytes]:
    """The number of whole lines of ``target``, in multiples of so many, and the last of them; what follows is cut off."""
    count, end, last = 0, 0, b""
    with target.open("rb+") as file:
        for number, line in enumerate(file, 1):
            if line.endswith(b"\n") and number % multiple == 0:
                count, end, last = number, file.tell(), line
        file.truncate(end)
    return count, last
