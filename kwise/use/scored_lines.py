"""Lines and a model in, the same lines with scores out: a window of them at a time, whoever asks."""

import math
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

from jinja2 import TemplateError

from kwise.data import sources, turns
from kwise.model.reward_model import RewardModel
from kwise.model.uncertainty import check_bound
from kwise.records import DataError, EncodedRanking
from kwise.use.scorable import Gains, Put, scorable, without

CALIBRATION = "score_calibration"  # the column that says by which calibration a line was scored
LOWER_BOUND = "score_lower_bound"  # and the one that says with how many errors off its lower bounds are
BEST = ("best_index", "best_text")
MARKS = (CALIBRATION, LOWER_BOUND, *BEST)  # what a line gains beside the scores of its responses
WINDOW = 64  # lines scored together
Lines = Iterator[tuple[int, dict[str, Any] | DataError]]


def columns_of(model: RewardModel, calibrated: bool, c: float | None) -> dict[str, Any]:
    """What every line gains besides scores: how they were made. Raises as ``score_file`` for what ``model`` has not."""
    if c is not None:
        check_bound(c)
        model.known_uncertainty()
    how: dict[str, Any] = {CALIBRATION: _calibration(model)} if calibrated else {}
    return how | ({} if c is None else {LOWER_BOUND: c})


def _calibration(model: RewardModel) -> dict[str, float]:
    found = model.settings.calibration
    if found is None:
        raise ValueError("this model has not been calibrated: run kwise calibrate on held-out rankings first")
    return {"temperature": found.temperature, "centre": found.centre, "length_slope": found.length_slope}


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
            replaces = without(put([{} for _ in responses]), *MARKS) != row
            window.append(Line(number, responses, model.encoder.encode(messages, responses), put, replaces))
        except turns.FieldError as error:
            return window, DataError(error.problem, file=file, line=number, field=error.field)
        except (ValueError, TemplateError) as error:  # what the truncation rule or the chat template refuses
            return window, DataError(f"cannot be encoded: {error}", file=file, line=number)
    return window, None


def scored_rows(
    model: RewardModel, window: list[Line], file: str, how: dict[str, Any], choose: bool
) -> Iterator[dict[str, Any]]:
    """Each line of ``window`` with its scores, made and marked as ``how`` (``columns_of``) says. Raises as ``score_file``."""
    c = how.get(LOWER_BOUND)
    for each, gains in zip(window, _gains(model, window, CALIBRATION in how, c), strict=True):
        if not all(math.isfinite(value) for gain in gains for value in gain.values()):
            raise DataError("the model's score is NaN or infinite", file=file, line=each.line)
        scored = without(each.put(gains), *MARKS) | how
        if choose:
            values = [gain["score" if c is None else "score_lower"] for gain in gains]
            best = max(range(len(values)), key=values.__getitem__)
            scored |= dict(zip(BEST, (best, each.responses[best]), strict=True))
        yield scored


def _gains(model: RewardModel, window: list[Line], calibrated: bool, c: float | None) -> Iterator[list[Gains]]:
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
