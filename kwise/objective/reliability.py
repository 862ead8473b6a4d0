"""Does what a model says it is sure of hold? Confidence and outcome of its guesses, and the bins of a reliability curve.

A guess is a confidence c and an outcome h: 1 if it was right, 0 if wrong, a share if it names several. Of a pair the guess is the
response with the higher reward, with c = max(p, 1 - p) and p = sigmoid(r_a - r_b), so that c lies in [0.5, 1] whichever way
round the pair is given. Of a ranking it is the response with the highest reward, with c = its softmax over the ranking's
rewards, the Plackett-Luce probability of being first.

Guesses fall into ``BINS`` bins of equal width: pairs over [0.5, 1] (so [0.5, 0.55), ..., [0.95, 1]), first places over
[0, 1]. The expected calibration error is ``|sum of (h - c)|`` of each bin, summed over bins and divided by the number of guesses
(Guo et al., arXiv 1706.04599, equation 3).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from scipy.special import expit, softmax

from kwise.data.baselines import wins

BINS = 10
PAIR_LOW, TOP1_LOW = 0.5, 0.0  # where the bins begin
Guess = tuple[float, float]  # confidence, outcome


@dataclass(frozen=True)
class Bin:
    """``n`` guesses with confidence in [``low``, ``high``): their mean ``confidence`` and the share ``right``; None if there
    are none."""

    low: float
    high: float
    n: int
    confidence: float | None
    right: float | None


def pair_guesses(ranks: Sequence[float], rewards: Sequence[float]) -> list[Guess]:
    """One guess per pair of different rank. A pair of equal rewards is a coin: confidence and outcome are a half."""
    guesses = []
    for i, j in combinations(range(len(ranks)), 2):
        if ranks[i] != ranks[j]:
            better, worse = (i, j) if ranks[i] < ranks[j] else (j, i)
            guesses.append(
                (float(expit(abs(rewards[i] - rewards[j]))), wins(rewards[better], rewards[worse])),
            )
    return guesses


def top1_guesses(ranks: Sequence[float], rewards: Sequence[float]) -> list[Guess]:
    """The guess at the best response; none where the best rank is tied, as nobody knows which of these is first."""
    if sum(rank == min(ranks) for rank in ranks) > 1:
        return []
    highest = [rank == min(ranks) for rank, reward in zip(ranks, rewards, strict=True) if reward == max(rewards)]
    return [(float(softmax(rewards).max()), sum(highest) / len(highest))]


def bin_of(confidence: float, low: float) -> int:
    """Which of the ``BINS`` bins over [``low``, 1] holds that confidence."""
    return min(int((confidence - low) / (1 - low) * BINS), BINS - 1)


def reliability_curve(guesses: Iterable[Guess], low: float) -> list[Bin]:
    """The ``BINS`` bins over [``low``, 1], empty ones too."""
    members: list[list[Guess]] = [[] for _ in range(BINS)]
    for guess in guesses:
        members[bin_of(guess[0], low)].append(guess)
    edges = [low + (1 - low) * i / BINS for i in range(BINS + 1)]
    return [
        Bin(
            edges[i],
            edges[i + 1],
            len(own),
            sum(c for c, _ in own) / len(own) if own else None,
            sum(h for _, h in own) / len(own) if own else None,
        )
        for i, own in enumerate(members)
    ]


def ece_terms(name: str, guesses: Iterable[Guess], low: float) -> dict[str, tuple[float, float]]:
    """``{"name#bin": (sum of h - c, number)}`` for the bins that hold a guess: what ``metrics.summarise`` makes an ECE of."""
    terms: dict[str, tuple[float, float]] = {}
    for confidence, outcome in guesses:
        key = f"{name}#{bin_of(confidence, low)}"
        total, count = terms.get(key, (0.0, 0.0))
        terms[key] = (total + outcome - confidence, count + 1)
    return terms
