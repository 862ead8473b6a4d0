"""How sure the judge was of a pair, and the thirds of a data set's pairs by it.

The strength of a pair is the difference of its responses' ``judge_values`` (a list in the order of the responses), or, for a
ranking of two, the size of its ``margin``; whoever has neither, or null, has pairs of no known strength, which are in no third.
"""

import sys
from collections.abc import Sequence
from itertools import combinations
from statistics import quantiles

from kwise.data.lines import kind_of
from kwise.records import DataError, Ranking

THIRDS = ("weak_pairs", "middle_pairs", "strong_pairs")
Pair = tuple[int, int]  # the better response, the worse one


def pair_thirds(rankings: Sequence[Ranking]) -> list[dict[Pair, str]]:
    """Per ranking, which of ``THIRDS`` each pair of different rank is in, by the strength of all pairs of ``rankings``; a pair
    at a cut is in the lower third. Empty where fewer than three strengths differ. Raises ``DataError`` for a strength that is
    no finite number."""
    each = [strengths(ranking) for ranking in rankings]
    every = [value for own in each for value in own.values()]
    if len(set(every)) < len(THIRDS):
        return [{} for _ in rankings]
    cuts = quantiles(every, n=len(THIRDS), method="inclusive")
    return [{pair: THIRDS[sum(value > cut for cut in cuts)] for pair, value in own.items()} for own in each]


def strengths(ranking: Ranking) -> dict[Pair, float]:
    """The strength of each pair of different rank where it is known. Raises ``DataError`` for one that is no finite number."""
    ranks, values, margin = ranking.ranks, ranking.columns.get("judge_values"), ranking.columns.get("margin")
    pairs = [
        (i, j) if ranks[i] < ranks[j] else (j, i) for i, j in combinations(range(len(ranks)), 2) if ranks[i] != ranks[j]
    ]
    if values is not None:
        if not isinstance(values, list) or len(values) != len(ranks):
            raise _error(ranking, "judge_values", f"must be a list of {len(ranks)} numbers, one for each response")
        known = [
            None if value is None else _number(ranking, value, f"judge_values[{k}]") for k, value in enumerate(values)
        ]
        found = {}
        for i, j in pairs:
            a, b = known[i], known[j]
            if a is not None and b is not None:
                found[i, j] = abs(a - b)
        return found
    if margin is not None and len(ranks) == 2:
        return {pair: abs(_number(ranking, margin, "margin")) for pair in pairs}
    return {}


def _number(ranking: Ranking, value: object, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _error(ranking, field, f"how sure the judge was must be a number, this is {kind_of(value)}")
    if not abs(value) <= sys.float_info.max:  # infinite, NaN, or an integer that no float holds
        raise _error(ranking, field, f"how sure the judge was must be a finite number, this is {value}")
    return float(value)


def _error(ranking: Ranking, field: str, problem: str) -> DataError:
    return DataError(problem, file=ranking.file, line=ranking.line, field=field)
