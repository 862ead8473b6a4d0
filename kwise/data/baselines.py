"""What predicts a ranking without reading it: the longer answer, the better author. No claim of accuracy stands without them."""

import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import combinations
from typing import NamedTuple

import xxhash

from kwise.records import Ranking

Terms = dict[str, tuple[float, float]]  # metric -> (sum, count) of one ranking


class Outline(NamedTuple):
    """What the baselines need of a ranking: ``ranks``, ``models`` and ``lengths`` of its responses (characters), and a hash of
    its ``group``."""

    ranks: Sequence[float]
    models: Sequence[str | None]
    lengths: Sequence[int]
    group: int


def outline(ranking: Ranking) -> Outline:
    """A ranking without its texts."""
    models = tuple(model if model is None else sys.intern(model) for model in ranking.models)
    return Outline(tuple(ranking.ranks), models, tuple(map(len, ranking.responses)), text_hash(ranking.group))


def text_hash(text: str) -> int:
    """XXH3, 64 bits: among a million texts two are taken for one with a probability of 3e-8."""
    return int(xxhash.xxh3_64_intdigest(text.encode(errors="surrogatepass")))


def baseline_terms(rankings: Iterable[Ranking]) -> list[Terms]:
    """Per ranking, over its pairs of different rank: in how many the longer answer (in characters) is better, and in how many
    the one whose author ranks better on average over all other prompts, each of how many. An equal pair counts half."""
    return outline_terms([outline(ranking) for ranking in rankings])


def outline_terms(outlines: Sequence[Outline]) -> list[Terms]:
    """``baseline_terms`` of outlines."""
    everywhere = _points(outlines)
    groups: dict[int, list[int]] = defaultdict(list)
    for i, each in enumerate(outlines):
        groups[each.group].append(i)
    terms: list[Terms] = [{}] * len(outlines)
    for members in groups.values():
        strength = _strength_elsewhere(everywhere, _points(outlines[i] for i in members))
        for i in members:
            own = outlines[i]
            known = [None if model is None else strength[model] for model in own.models]
            terms[i] = {
                "longer_wins": agreement(own.ranks, own.lengths),
                "better_model_wins": agreement(own.ranks, known),
            }
    return terms


def agreement(ranks: Sequence[float], values: Sequence[float | None]) -> tuple[float, float]:
    """Over pairs of different rank with both values known: how many the higher value is right about, of how many."""
    won = []
    for i, j in combinations(range(len(ranks)), 2):
        a, b = values[i], values[j]
        if ranks[i] != ranks[j] and a is not None and b is not None:
            won.append(wins(a, b) if ranks[i] < ranks[j] else wins(b, a))
    return sum(won), len(won)


def wins(better: float, worse: float) -> float:
    """1 if the better one is higher, 0 if lower, a half if they are equal."""
    return 0.5 if better == worse else float(better > worse)


Points = dict[str, tuple[Fraction, int]]


def _strength_elsewhere(everywhere: Points, inside: Points) -> dict[str, float | None]:
    """For each model in a group the share of rivals it beats on average over prompts outside, so that no ranking predicts
    itself. None for a model that only this group shows."""
    found: dict[str, float | None] = {}
    for model, (points, count) in inside.items():
        rest = everywhere[model][1] - count
        found[model] = float((everywhere[model][0] - points) / rest) if rest else None
    return found


def _points(outlines: Iterable[Outline]) -> Points:
    """For each model the shares of rivals that its responses beat, summed, and their number. Counted in fractions, so that equal
    models come out equal."""
    halves: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))  # by number of rivals
    for each in outlines:
        rivals = len(each.ranks) - 1
        for rank, model in zip(each.ranks, each.models, strict=True):
            if model is not None:
                own = halves[model][rivals]
                own[0] += sum((other > rank) - (other < rank) for other in each.ranks) + rivals
                own[1] += 1
    return {
        model: (
            sum((Fraction(won, 2 * rivals) for rivals, (won, _) in found.items()), Fraction()),
            sum(count for _, count in found.values()),
        )
        for model, found in halves.items()
    }
