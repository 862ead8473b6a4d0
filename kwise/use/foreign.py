"""Scores that somebody else made: the number of each response, from where its row has it.

======================= =========================================================================================
row                     scores
======================= =========================================================================================
nectar, completions     ``score`` in every answer or completion (as ``kwise score`` writes them)
pairs                   ``chosen_score`` and ``rejected_score`` (``kwise score``), ``scores_chosen`` and
                        ``scores_rejected`` (RewardBench) or ``score_chosen`` and ``score_rejected`` (RM-Bench);
                        lists of numbers where the row holds lists of responses
responses in any form   ``scores``, a list: the chosen responses' before the rejected ones' (RewardBench 2)
battles, Starling       ``score_a``, ``score_b``, and ``score_c`` where there is a third response
======================= =========================================================================================
"""

from typing import Any

from kwise.data.fix import PAIR_SCORES
from kwise.data.lines import kind_of
from kwise.records import DataError, Ranking

LETTERS = "abc"
SHOWN = 30  # characters of a bad score
LARGEST = 3.4028234663852886e38  # of float32: beyond it no model's scores lie, and differences of such are no floats


def row_scores(row: dict[str, Any], ranking: Ranking) -> list[float]:
    """The scores of ``ranking``'s responses, in its order, from the ``row`` it was read from.

    Raises ``DataError``, which names file, line and field, for a score that is missing, null, no number, not finite or beyond
    float32, and for a row with more or fewer scores than responses.
    """
    found = _columns(row, ranking)
    scores = []
    for field, value in found:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _error(ranking, field, f"a score must be a number, this is {kind_of(value)}")
        if not -LARGEST <= value <= LARGEST:  # NaN neither
            raise _error(ranking, field, f"a score must be a finite number, this is {str(value)[:SHOWN]}")
        scores.append(float(value))
    return scores


def holds_scores(row: dict[str, Any]) -> bool:
    """Whether any response of a suite's row has a score, good or bad."""
    names = {name for sides in PAIR_SCORES for name in sides} | {"scores", *(f"score_{letter}" for letter in LETTERS)}
    return not names.isdisjoint(row)


def _columns(row: dict[str, Any], ranking: Ranking) -> list[tuple[str, Any]]:
    """The name and value of each score there is."""
    for column in ("answers", "completions"):
        if column in row and column not in ranking.columns:  # else it holds something else than the responses
            items = [(f"{column}[{k}].score", item) for k, item in enumerate(row[column])]
            for field, item in items:
                if "score" not in item:
                    raise _error(ranking, field, "there is no score")
            return [(field, item["score"]) for field, item in items]
    for sides in PAIR_SCORES:
        if any(side in row for side in sides):
            num_chosen = ranking.ranks.count(min(ranking.ranks))
            counts = (num_chosen, len(ranking.ranks) - num_chosen)
            return [
                each for side, count in zip(sides, counts, strict=True) for each in _listed(row, side, ranking, count)
            ]
    if "scores" in row and "score_a" not in row:  # what kwise score wrote comes first
        return _listed(row, "scores", ranking, len(ranking.responses))
    if "score_a" in row or "response_a" in row:
        letters = LETTERS[: len(ranking.responses)]
        return [each for letter in letters for each in _listed(row, f"score_{letter}", ranking, 1)]
    raise _error(
        ranking,
        PAIR_SCORES[0][0],
        f"there is no score; a pair has {', '.join('/'.join(sides) for sides in PAIR_SCORES)} or scores",
    )


def _listed(row: dict[str, Any], field: str, ranking: Ranking, count: int) -> list[tuple[str, Any]]:
    if field not in row:
        raise _error(ranking, field, "there is no score")
    value = row[field]
    found = [(f"{field}[{k}]", each) for k, each in enumerate(value)] if isinstance(value, list) else [(field, value)]
    if len(found) != count:
        raise _error(ranking, field, f"there are {len(found)} scores for {count} responses")
    return found


def _error(ranking: Ranking, field: str, problem: str) -> DataError:
    return DataError(problem, file=ranking.file, line=ranking.line, field=field)
