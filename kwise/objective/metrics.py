"""Rewards and rankings -> metrics with 95 % intervals, beside the baselines that need no model.

Every metric is a sum over rankings divided once by a count; the interval is a bootstrap over prompts (never over pairs, which
depend on one another), of percentiles but for the calibration errors below, so all rankings of one prompt are drawn together.
What a single prompt counts in has no interval: drawn again and again it is always itself, which says nothing of other prompts.

==================== ==================================================================================== =============
metric               share (or mean) of                                                                   n counts
==================== ==================================================================================== =============
pair_accuracy        pairs of different rank in which the better one scores higher                        pairs
adjacent_accuracy    the same over pairs of neighbouring ranks                                            pairs
distance_D           the same over pairs D distinct ranks apart                                           pairs
top1                 rankings whose highest score is of the best rank                                     rankings
ndcg                 mean normalised discounted cumulative gain of the order by score                     rankings
kendall_tau          mean tau-b of score and rank                                                         rankings
nll                  mean Plackett-Luce negative log-likelihood, nats                                     rankings
ece                  by how much pairs' confidence and outcome differ, binned (``reliability.py``)        pairs
top1_ece             the same of the best response's probability                                          rankings
equal_scores         pairs of different rank with one and the same score                                  pairs
weak_pairs, ...      pair_accuracy in thirds of the judge's strength (``kwise/data/strength.py``)         pairs
longer_wins          pairs in which the better one has more characters (needs no model)                   pairs
better_model_wins    pairs in which the better one's author ranks better over all other prompts           pairs
==================== ==================================================================================== =============

Equal scores count half for a pair, a share for top1, and in ndcg share the gains of their places evenly (McSherry and Najork,
ECIR 2008). Tied ranks make no pair; a ranking whose ranks are all tied counts only in nll, as 0; top1_ece leaves out rankings
whose best rank is tied.

The gain of a response in ndcg is 2^r - 1, the standard of learning to rank (Burges et al., ICML 2005), where r is the number of
distinct ranks below its own; the discount of place i is 1 / log2(i + 1). A random order is far from 0: with 7 distinct ranks
it has 0.66.

An expected calibration error is a mean of absolute values, so noise only adds to it, and resampling adds the same noise once
more: a calibrated model shows about 0.05 on 400 unrelated pairs. Its interval is therefore the reflected (basic) bootstrap,
[2 value - high, 2 value - low] of the percentiles, cut at 0. In simulations it held a true value of 0.03 to 0.1 in 86 to 92 % of
cases, and 0 in 55 to 65 %; the percentile interval in 0 to 94 %, and 0 never.

Two models on the same rankings are compared on the same draws of prompts (``compare``): the interval is of their difference.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau

from kwise.data.baselines import Terms, baseline_terms, wins
from kwise.data.strength import THIRDS, pair_thirds
from kwise.objective.plackett_luce import plackett_luce_nll
from kwise.objective.reliability import PAIR_LOW, TOP1_LOW, ece_terms, pair_guesses, top1_guesses
from kwise.records import Ranking

RESAMPLES = 2000
LOWER_IS_BETTER = ("nll", "ece")  # how the names of metrics end of which that is so
QUALITY = ("pair_accuracy", "adjacent_accuracy", "top1", "ndcg", "kendall_tau", "nll", "ece", "top1_ece", *THIRDS)
NO_QUALITY = ("longer_wins", "better_model_wins", "equal_scores")  # neither higher nor lower is better


@dataclass(frozen=True)
class Metric:
    """``value`` with its 95 % interval [``low``, ``high``] over ``n`` units; None where there is nothing to count. The interval
    alone is None for units of a single prompt, which do not tell how prompts differ, and for a sum of parts so small that no
    bootstrap sample holds them all."""

    value: float | None
    low: float | None
    high: float | None
    n: int

    def __str__(self) -> str:
        if self.value is None:
            return "-"
        interval = "" if self.low is None else f" [{self.low:.3f}, {self.high:.3f}]"
        return f"{self.value:.3f}{interval} (n = {self.n})"

    def to_json(self) -> dict[str, Any]:
        """``{value, low, high, n}``."""
        return asdict(self)


@dataclass(frozen=True)
class Draws:
    """A metric before its interval is taken: its ``value`` over ``n`` units and its value in every bootstrap sample, ``draws``
    [RESAMPLES] (NaN where a sample has nothing to count, and throughout where all units are of one prompt). ``binned`` is true of
    a calibration error."""

    value: float | None
    n: int
    draws: np.ndarray
    binned: bool = False

    def metric(self) -> Metric:
        """With its 95 % interval: percentiles, reflected for a calibration error."""
        if self.value is None:
            return Metric(None, None, None, 0)
        if np.isnan(self.draws).all():
            return Metric(self.value, None, None, self.n)
        low, high = np.nanpercentile(self.draws, [2.5, 97.5])
        if self.binned:
            low, high = max(0.0, 2 * self.value - high), max(0.0, 2 * self.value - low)
        return Metric(self.value, float(low), float(high), self.n)


@dataclass(frozen=True)
class Difference:
    """The second model's metric less the first's, ``value``, with its 95 % interval over the same draws of prompts. ``better`` is
    the share of draws in which the second is the better one (an equal draw counts half)."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    better: float | None

    def to_json(self) -> dict[str, Any]:
        """``{value, low, high, n, better}``."""
        return asdict(self)


def evaluate(rankings: Sequence[Ranking], rewards: Sequence[Sequence[float]], seed: int = 0) -> dict[str, Metric]:
    """The metrics of the table above, for ``rewards[i][k]`` of response k of ranking i."""
    return summarise(metric_terms(rankings, rewards), [ranking.group for ranking in rankings], seed)


def metric_terms(
    rankings: Sequence[Ranking],
    rewards: Sequence[Sequence[float]],
    calibrated: Sequence[Sequence[float]] | None = None,
) -> list[Terms]:
    """Per ranking, the sum and count of each metric. ``ece`` and ``top1_ece`` are those of the ``calibrated`` rewards if given.

    Raises ``ValueError`` when a reward is missing, NaN or infinite: that is a broken model, not a wrong answer.
    """
    check_rewards(rankings, rewards)
    terms: list[Terms] = baseline_terms(rankings)
    for ranking, own, term, thirds in zip(rankings, rewards, terms, pair_thirds(rankings), strict=True):
        term.update(_reward_terms(ranking.ranks, own))
        if thirds:
            won = {third: [wins(own[i], own[j]) for (i, j), its in thirds.items() if its == third] for third in THIRDS}
            term.update({third: (sum(each), len(each)) for third, each in won.items()})
    for ranking, own, term in zip(rankings, rewards if calibrated is None else calibrated, terms, strict=True):
        term.update(ece_terms("ece", pair_guesses(ranking.ranks, own), PAIR_LOW))
        term.update(ece_terms("top1_ece", top1_guesses(ranking.ranks, own), TOP1_LOW))
    return terms


def check_rewards(rankings: Sequence[Ranking], rewards: Sequence[Sequence[float]]) -> None:
    """Raise ``ValueError`` when a reward is missing, NaN or infinite: a comparison with NaN is false, so it would pass for a
    wrong answer."""
    for ranking, own in zip(rankings, rewards, strict=True):
        if len(own) != len(ranking.ranks):
            raise ValueError(
                f"{ranking.file}, line {ranking.line}: {len(own)} rewards for {len(ranking.ranks)} responses"
            )
        if not np.isfinite(own).all():
            raise ValueError(f"{ranking.file}, line {ranking.line}: the model's reward is NaN or infinite")


def _reward_terms(ranks: Sequence[float], rewards: Sequence[float]) -> Terms:
    levels = {rank: i for i, rank in enumerate(sorted(set(ranks)))}
    by_distance: dict[int, list[float]] = defaultdict(list)
    equal = 0
    for i, j in combinations(range(len(ranks)), 2):
        if ranks[i] != ranks[j]:
            better, worse = (i, j) if ranks[i] < ranks[j] else (j, i)
            by_distance[levels[ranks[worse]] - levels[ranks[better]]].append(wins(rewards[better], rewards[worse]))
            equal += rewards[i] == rewards[j]
    every = [win for wins in by_distance.values() for win in wins]
    terms: Terms = {
        "pair_accuracy": (sum(every), len(every)),
        "adjacent_accuracy": (sum(by_distance[1]), len(by_distance[1])),
    }
    for distance in sorted(by_distance):
        terms[f"distance_{distance}"] = (sum(by_distance[distance]), len(by_distance[distance]))
    if len(levels) > 1:
        top = [rank == min(ranks) for rank, reward in zip(ranks, rewards, strict=True) if reward == max(rewards)]
        terms["top1"] = (sum(top) / len(top), 1)
        terms["ndcg"] = (_ndcg([levels[rank] for rank in ranks], rewards), 1)
        tau = kendalltau(rewards, [-rank for rank in ranks]).statistic if len(set(rewards)) > 1 else 0.0
        terms["kendall_tau"] = (float(tau), 1)
    scores, places = (torch.tensor(x, dtype=torch.float64) for x in (rewards, ranks))
    terms["nll"] = (plackett_luce_nll(scores, places, torch.zeros(len(ranks), dtype=torch.long)).item(), 1)
    terms["equal_scores"] = (equal, len(every))
    return terms


def _ndcg(levels: Sequence[int], rewards: Sequence[float]) -> float:
    """``levels`` are 0 for the best rank, 1 for the next; at least two differ."""
    gains = np.exp2(-np.array(levels, dtype=np.float64))
    gains -= gains.min()  # 2^r - 1, divided by 2^(largest r), so that no list is too long for a float
    discounts = 1 / np.log2(np.arange(2, len(levels) + 2))
    order = np.argsort(-np.array(rewards, dtype=np.float64), kind="stable")
    _, tied = np.unique(-np.array(rewards, dtype=np.float64)[order], return_inverse=True)
    shared = np.bincount(tied, gains[order]) / np.bincount(tied)
    return float(shared[tied] @ discounts / (np.sort(gains)[::-1] @ discounts))


def summarise(terms: Sequence[Terms], groups: Sequence[str], seed: int = 0) -> dict[str, Metric]:
    """Sums over counts, with intervals: ``bootstrap``, and then ``Draws.metric``."""
    return {name: draws.metric() for name, draws in bootstrap(terms, groups, seed).items()}


def bootstrap(terms: Sequence[Terms], groups: Sequence[str], seed: int = 0) -> dict[str, Draws]:
    """Sums over counts, and the same of samples of whole ``groups`` (the prompt of each ranking), drawn with replacement.

    Terms ``name#bin`` are the bins of one metric: the absolute values of their sums are added up, over their common count.
    The draws depend on ``seed`` and on the groups alone: those of two models on the same rankings are the same.
    """
    names = list(dict.fromkeys(name for term in terms for name in term))
    names.sort(
        key=lambda name: int(name.split("_")[1]) if name.startswith("distance_") else 0
    )  # the others first, as they are
    columns: dict[str, list[int]] = defaultdict(list)
    for i, name in enumerate(names):
        columns[name.partition("#")[0]].append(i)
    sums = sum_by_group(([term.get(name, (0.0, 0.0)) for name in names] for term in terms), groups)
    resampled = resample(sums, np.random.default_rng(seed))
    found = {}
    for name, own in columns.items():
        binned = "#" in names[own[0]]
        total, count = _over_bins(sums[:, own].sum(0), binned)
        totals, counts = _over_bins(resampled[:, own], binned)
        with np.errstate(invalid="ignore", divide="ignore"):
            draws = totals / counts
        if np.count_nonzero(sums[:, own, 1].sum(1)) < 2:
            draws = np.full(RESAMPLES, np.nan)
        found[name] = Draws(float(total / count) if count else None, int(count), draws, binned)
    return found


def combine(parts: Mapping[str, Draws], weights: Mapping[str, float]) -> Draws:
    """The weighted sum of ``parts``, draw by draw; without value if one of them is not there or has none."""
    own = [(parts[name], weight) for name, weight in weights.items() if name in parts]
    if len(own) < len(weights) or any(part.value is None for part, _ in own):
        return Draws(None, 0, np.full(RESAMPLES, np.nan))
    value = sum(weight * part.value for part, weight in own if part.value is not None)
    draws = np.sum([weight * part.draws for part, weight in own], axis=0)
    return Draws(value, sum(part.n for part, _ in own), draws)


def compare(first: Mapping[str, Draws], second: Mapping[str, Draws]) -> dict[str, Difference]:
    """By how much ``second`` differs from ``first`` in every metric of quality, both of the same rankings and seed.

    Of ``LOWER_IS_BETTER`` the lower is better, of all others the higher. The interval is of percentiles, also for
    calibration errors: what noise adds to one it adds to the other.
    """
    found = {}
    for name, a in first.items():
        b = second[name]
        if name in NO_QUALITY:
            continue
        if a.value is None or b.value is None:
            found[name] = Difference(None, None, None, 0, None)
            continue
        draws = (b.draws - a.draws)[~np.isnan(b.draws - a.draws)]
        if not len(draws):
            found[name] = Difference(b.value - a.value, None, None, a.n, None)
            continue
        low, high = np.percentile(draws, [2.5, 97.5])
        gains = -draws if name.endswith(LOWER_IS_BETTER) else draws
        better = float(np.mean(gains > 0) + np.mean(gains == 0) / 2)
        found[name] = Difference(b.value - a.value, float(low), float(high), a.n, better)
    return found


def _over_bins(sums: np.ndarray, binned: bool) -> tuple[np.ndarray, np.ndarray]:
    """[..., bins, 2] sums and counts of one metric -> its [...] sum and count."""
    totals, counts = sums[..., 0], sums[..., 1]
    return (np.abs(totals) if binned else totals).sum(-1), counts.sum(-1)


def sum_by_group(values: Iterable[Any], groups: Sequence[str]) -> np.ndarray:
    """[L, ...] numbers of each ranking -> [G, ...] their sums over each group, in order of first appearance."""
    numbers = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    sums: np.ndarray | None = None
    for value, group in zip(values, groups, strict=True):
        row = np.asarray(value, dtype=np.float64)
        sums = np.zeros((len(numbers), *row.shape)) if sums is None else sums
        sums[numbers[group]] += row
    return np.zeros((0, 0, 2)) if sums is None else sums


def resample(sums: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[G, ...] of G prompts -> [RESAMPLES, ...], each the total of G prompts drawn with replacement."""
    num = len(sums)
    chunk = max(1, 10**7 // max(num, 1))  # draws held at once: bounds the memory for any number of prompts
    parts = [
        np.tensordot(rng.multinomial(num, np.full(num, 1 / num), min(chunk, RESAMPLES - done)), sums, 1)
        for done in range(0, RESAMPLES if num else 0, chunk)
    ]
    return np.concatenate(parts) if parts else np.zeros((0, *sums.shape[1:]))
