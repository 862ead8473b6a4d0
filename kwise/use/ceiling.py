"""``kwise eval --ceiling``: from repeated judgements of the same lists, how often any model could agree with one of them.

Assumed: the judgements of a list are independent given the list and equally reliable. Let p be the probability that a judgement
puts the right one of two responses first, "right" being what judgements say more often, so p >= 1/2; and q = 2p - 1, which
differs from pair to pair. Two judgements agree on the pair with probability p^2 + (1 - p)^2 = (1 + q^2) / 2, and whoever knows
what is right agrees with a judgement with probability p = (1 + q) / 2. Averaged over pairs, with a the share of agreement and
c the accuracy of the best model there can be:

    E q^2 = 2a - 1,   c = (1 + E q) / 2,   (E q)^2 <= E q^2 <= E q   so   a <= c <= (1 + sqrt(2a - 1)) / 2

The upper end is reached if all pairs are equally noisy (the usual formula a = p^2 + (1 - p)^2), the lower if some are certain
and the others coins; two judgements of a pair cannot tell which. The lower is also what a judgement reaches as a predictor of
another.
Kendall's tau of two rankings without ties is 2a - 1, so the same holds of it: t <= ceiling <= sqrt(t).

List-wise, let x_k be the probability that a judgement puts response k first. Two judgements name the same best with
t = sum of x_k^2, the best model is right with max x_k, and with K responses

    t <= max x_k <= (1 + sqrt((K - 1)(K t - 1))) / K,

the upper end if the other K - 1 share the rest evenly. It is concave in t, so it holds of means too; it grows with K, so lists of
different K are bounded by the longest.

If one of the two is more reliable than the other, the product of their two q takes the place of q^2, and what is said holds of
the geometric mean of their reliabilities. What both share, the judge's taste for length say, is no noise here: it counts as
right.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from kwise.data.baselines import Terms
from kwise.data.sources import scan_rows
from kwise.objective.metrics import Draws, bootstrap
from kwise.records import DataError, Ranking

ORDER = "ranking_order"  # column: a second judgement of the line's answers, their indices from best to worst


class Repeated(NamedTuple):
    """Two or more judgements of one list: ``judgements[m][k]`` is the rank that judgement m gave to response k."""

    judgements: list[Sequence[float]]
    group: str


def read_repeated(file: str, source: str = "auto") -> list[Repeated]:
    """The lists of ``file`` that were judged more than once: by ``rank`` and ``ranking_order`` in one line, or by several lines
    with the same prompt and responses, in any order.

    Raises ``DataError`` for a line that cannot be read, an order that is no permutation, and a file without a repeated list.
    """
    found: list[Repeated] = []
    lines: dict[str, list[Ranking]] = defaultdict(list)
    for line, row, item in scan_rows(file, source):
        if isinstance(item, DataError):
            raise item
        if row is not None and row.get(ORDER) is not None:
            found.append(Repeated([item.ranks, _ranks(row[ORDER], len(item.ranks), file, line)], item.group))
        else:
            lines[json.dumps([item.messages, sorted(item.responses)])].append(item)
    for own in lines.values():
        if len(own) > 1:
            found.append(Repeated([_aligned(own[0], other) for other in own], own[0].group))
    if not found:
        raise DataError(
            f"no list is judged twice: give a column '{ORDER}', or several lines with the same prompt and responses",
            file=file,
        )
    return found


def _ranks(order: object, k: int, file: str, line: int) -> list[float]:
    if not isinstance(order, list) or any(type(i) is not int for i in order) or sorted(order) != list(range(k)):
        raise DataError(f"must hold each of 0 to {k - 1} once, from best to worst", file=file, line=line, field=ORDER)
    ranks = [0.0] * k
    for place, index in enumerate(order):
        ranks[index] = float(place)
    return ranks


def _aligned(first: Ranking, other: Ranking) -> list[float]:
    """``other``'s ranks in the order of ``first``'s responses; of equal responses the first stands for the first."""
    places: dict[str, list[float]] = defaultdict(list)
    for response, rank in zip(other.responses, other.ranks, strict=True):
        places[response].append(rank)
    return [places[response].pop(0) for response in first.responses]


def ceiling(lists: Sequence[Repeated]) -> dict[str, Draws]:
    """How far judgements agree, and the upper ends of what any model could reach (the lower ends are the agreements).

    ``pair_agreement``, ``top1_agreement`` and ``kendall_tau`` are means over the judgements of a list taken two at a time;
    ``distance_D`` is the agreement on pairs that one of the two puts D ranks apart. Tied pairs, and for top1 lists with a tied
    best rank, are left out. The intervals are by bootstrap over prompts.
    """
    found = bootstrap([_agreement(each) for each in lists], [each.group for each in lists])
    k = max(len(each.judgements[0]) for each in lists)
    bounds: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
        "pair_accuracy_ceiling": ("pair_agreement", lambda a: (1 + np.sqrt(np.maximum(2 * a - 1, 0))) / 2),
        "top1_ceiling": ("top1_agreement", lambda t: (1 + np.sqrt((k - 1) * np.maximum(k * t - 1, 0))) / k),
        "kendall_tau_ceiling": ("kendall_tau", lambda t: np.sqrt(np.maximum(t, 0))),
    }
    for name, (agreement, bound) in bounds.items():
        own = found.get(agreement)
        if own is not None and own.value is not None:
            found[name] = Draws(float(bound(np.array(own.value))), own.n, bound(own.draws))
    return found


def _agreement(each: Repeated) -> Terms:
    """Sums and counts, in which a list counts as many pairs as it has, however often it was judged."""
    twos = list(combinations(each.judgements, 2))
    terms: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for first, second in twos:
        pairs = [
            (i, j) for i, j in combinations(range(len(first)), 2) if first[i] != first[j] and second[i] != second[j]
        ]
        agree = [float((first[i] < first[j]) == (second[i] < second[j])) for i, j in pairs]
        _add(terms["pair_agreement"], sum(agree), len(pairs))
        if pairs:
            _add(terms["kendall_tau"], 2 * sum(agree) / len(pairs) - 1, 1)
        for ranks in (first, second):
            levels = {rank: level for level, rank in enumerate(sorted(set(ranks)))}
            for (i, j), same in zip(pairs, agree, strict=True):
                _add(terms[f"distance_{abs(levels[ranks[i]] - levels[ranks[j]])}"], same / 2, 1 / 2)
        best = [[k for k, rank in enumerate(ranks) if rank == min(ranks)] for ranks in (first, second)]
        if all(len(own) == 1 for own in best):
            _add(terms["top1_agreement"], float(best[0] == best[1]), 1)
    return {name: (total / len(twos), count / len(twos)) for name, (total, count) in terms.items()}


def _add(term: list[float], total: float, count: float) -> None:
    term[0] += total
    term[1] += count
