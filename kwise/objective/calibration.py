"""Rewards and held-out rankings -> the temperature, centre and length slope that make differences of rewards hold as log-odds."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from scipy.optimize import brentq

from kwise.data.baselines import Terms, wins
from kwise.model.calibrated import Calibration
from kwise.objective.metrics import Metric, resample, sum_by_group, summarise
from kwise.objective.plackett_luce import plackett_luce_nll
from kwise.objective.reliability import (
    PAIR_LOW,
    TOP1_LOW,
    Bin,
    ece_terms,
    pair_guesses,
    reliability_curve,
    top1_guesses,
)

FOLDS = 5
CHANCE = 1e-9  # rewards that agree with the ranks by a smaller share agree by rounding
Table = Sequence[Sequence[float]]  # [L][K]


def fit_calibration(
    rewards: Table, ranks: Table, groups: Sequence[str], lengths: Sequence[Sequence[int]] | None = None
) -> Calibration:
    """Temperature T by maximum likelihood of the Plackett-Luce rankings under ``rewards / T``, and the mean reward as centre.

    ``rewards`` and ``ranks`` [L][K] (lower rank is better, equal is tied), ``groups`` [L] the prompt of each ranking. For pairs
    this is Bradley-Terry. The negative log-likelihood is convex in 1/T without ties; the root of its slope is found in float64.
    With ``lengths`` (characters of each response) the within-ranking regression slope on them is taken off first. Standard errors
    are robust and clustered by prompt (sandwich, times G / (G - 1)); that of T takes the length slope as given.

    Raises ``ValueError`` when the rankings do not determine a temperature between 0 and infinity: one prompt only, all tied, no
    pair wrongly ordered, equal rewards, or rewards that agree with the ranks no better than chance.
    """
    pairs = sum(len(set(pair)) == 2 for own in ranks for pair in combinations(own, 2))
    if len(set(groups)) < 2:
        raise ValueError(f"calibration needs rankings of at least two prompts, these are of {len(set(groups))}")
    if not pairs:
        raise ValueError("there is nothing to calibrate on: in every ranking all responses are tied")
    length_slope, length_error = (0.0, None) if lengths is None else fit_length_slope(rewards, lengths, groups)
    if lengths is not None:
        without = Calibration(length_slope=length_slope)
        rewards = [without.apply(*each) for each in zip(rewards, lengths, strict=True)]
    temperature, error = _fit_temperature(rewards, ranks, groups)
    centre = float(np.mean([reward for own in rewards for reward in own]))
    return Calibration(temperature, centre, length_slope, error, length_error, len(ranks), pairs)


def _fit_temperature(rewards: Table, ranks: Table, groups: Sequence[str]) -> tuple[float, float]:
    """T and its standard error."""
    owner = torch.tensor([i for i, own in enumerate(ranks) for _ in own])
    rank = torch.tensor([each for own in ranks for each in own], dtype=torch.float64)
    flat = np.concatenate([np.subtract(own, np.mean(own)) for own in rewards])  # a large offset would cost digits
    scale = float(flat.std())
    guesses = [guess for own in zip(ranks, rewards, strict=True) for guess in pair_guesses(*own)]
    if not scale or all(confidence == 0.5 for confidence, _ in guesses):
        raise ValueError("the model gives equal rewards to all responses of a prompt: no temperature makes them differ")
    if all(outcome > 0 for _, outcome in guesses):
        raise ValueError(
            f"all {len(guesses)} pairs are in the right order, so the likelihood grows without end as the temperature goes to 0: "
            "calibrate on rankings that the model does not know, or on more of them"
        )
    reward = torch.from_numpy(flat / scale)

    def derivatives(sharpness: float) -> tuple[np.ndarray, float]:
        """[L] slopes of each ranking's loss in 1/T (in units of 1/scale), and the curvature of their sum."""
        each = torch.full((len(ranks),), sharpness, dtype=torch.float64, requires_grad=True)
        nll = plackett_luce_nll(reward * each[owner], rank, owner).sum()
        (slopes,) = torch.autograd.grad(nll, each, create_graph=True)
        (curvature,) = torch.autograd.grad(slopes.sum(), each)
        return slopes.detach().numpy(), curvature.sum().item()

    at_zero = derivatives(0.0)[0]
    if at_zero.sum() >= -CHANCE * np.abs(at_zero).sum():
        raise ValueError(
            "the rewards agree with the rankings no better than chance: their likelihood is highest at an infinite or "
            "negative temperature"
        )
    high = 1.0
    while derivatives(high)[0].sum() < 0:  # ends, as a wrongly ordered pair costs more and more
        high *= 2
    best = brentq(lambda sharpness: derivatives(sharpness)[0].sum(), 0.0, high, xtol=1e-14, rtol=1e-13)
    slopes, curvature = derivatives(best)
    by_prompt = sum_by_group(slopes, groups)
    error = np.sqrt(np.square(by_prompt).sum() * len(by_prompt) / (len(by_prompt) - 1)) / curvature
    return scale / best, float(scale / best**2 * error)  # T = 1 / sharpness: the delta method


def fit_length_slope(rewards: Table, lengths: Sequence[Sequence[int]], groups: Sequence[str]) -> tuple[float, float]:
    """Slope of the least-squares line of reward on log(1 + characters) within rankings, and its standard error by prompt.

    Both are centred within each ranking, so that what differs between prompts plays no part. A linear relative of the
    post-hoc calibration of arXiv 2409.17407. Raises ``ValueError`` if no ranking has responses of different length.
    """
    x, y = _within(lengths), _within(rewards, log=False)
    square = sum(float(each @ each) for each in x)
    if not square:
        raise ValueError("in every ranking all responses are equally long: there is no slope to fit")
    slope = sum(float(a @ b) for a, b in zip(x, y, strict=True)) / square
    by_prompt = sum_by_group((a @ (b - slope * a) for a, b in zip(x, y, strict=True)), groups)
    error = np.sqrt(np.square(by_prompt).sum() * len(by_prompt) / (len(by_prompt) - 1)) / square
    return slope, float(error)


def _within(values: Table, log: bool = True) -> list[np.ndarray]:
    """Each ranking's values, or their log(1 + value), less its mean. Equal ones give exactly 0."""
    rows = [np.log1p(own) if log else np.asarray(own, dtype=np.float64) for own in values]
    return [row - row.mean() if np.ptp(row) else np.zeros_like(row) for row in rows]


def cross_fitted(
    rewards: Table,
    ranks: Table,
    groups: Sequence[str],
    lengths: Sequence[Sequence[int]] | None = None,
    seed: int = 0,
) -> list[list[float]]:
    """Calibrated rewards [L][K], each by a fit to the other prompts only, so that figures of them are honest.

    Prompts are dealt at random to ``FOLDS`` folds, or to one each if there are fewer. Raises ``ValueError`` where
    ``fit_calibration`` does, and if there are fewer than three prompts.
    """
    names = list(dict.fromkeys(groups))
    if len(names) < 3:
        raise ValueError(f"honest figures need rankings of at least three prompts, these are of {len(names)}")
    fold = dict(zip(names, np.random.default_rng(seed).permutation(len(names)) % FOLDS, strict=True))
    found: list[list[float]] = [[] for _ in rewards]
    for number in sorted(set(fold.values())):
        rest = [i for i, group in enumerate(groups) if fold[group] != number]
        try:
            fit = fit_calibration(
                [rewards[i] for i in rest],
                [ranks[i] for i in rest],
                [groups[i] for i in rest],
                None if lengths is None else [lengths[i] for i in rest],
            )
        except ValueError as error:
            raise ValueError(f"too few rankings: without a fold of prompts the fit fails, as {error}") from error
        for i, group in enumerate(groups):
            if fold[group] == number:
                found[i] = fit.apply(rewards[i], [0] * len(rewards[i]) if lengths is None else lengths[i])
    return found


def figures(
    ranks: Table, rewards: Table, groups: Sequence[str], lengths: Sequence[Sequence[int]], seed: int = 0
) -> dict[str, Metric]:
    """What calibration changes, with 95 % intervals over prompts.

    ``pair_nll`` (mean Bradley-Terry loss of pairs of different rank, nats), ``ece`` and ``top1_ece`` (``metrics``),
    ``pair_accuracy``, the same over pairs whose better response is longer (``longer_better``) and shorter (``shorter_better``)
    in characters, and ``length_correlation``: Pearson's, of reward and log(1 + characters), both centred within rankings.
    """
    terms: list[Terms] = []
    for own_ranks, own, sizes in zip(ranks, rewards, lengths, strict=True):
        nll: list[float] = []
        right: dict[str, list[float]] = {"pair_accuracy": [], "longer_better": [], "shorter_better": []}
        for i, j in combinations(range(len(own)), 2):
            if own_ranks[i] != own_ranks[j]:
                better, worse = (i, j) if own_ranks[i] < own_ranks[j] else (j, i)
                nll.append(float(np.logaddexp(0.0, own[worse] - own[better])))
                right["pair_accuracy"].append(wins(own[better], own[worse]))
                if sizes[better] != sizes[worse]:
                    right["longer_better" if sizes[better] > sizes[worse] else "shorter_better"].append(
                        wins(own[better], own[worse])
                    )
        terms.append(
            {"pair_nll": (sum(nll), len(nll))}
            | ece_terms("ece", pair_guesses(own_ranks, own), PAIR_LOW)
            | ece_terms("top1_ece", top1_guesses(own_ranks, own), TOP1_LOW)
            | {name: (sum(each), len(each)) for name, each in right.items()}
        )
    return summarise(terms, groups, seed) | {"length_correlation": _length_correlation(rewards, lengths, groups, seed)}


def _length_correlation(rewards: Table, lengths: Sequence[Sequence[int]], groups: Sequence[str], seed: int) -> Metric:
    x, y = _within(lengths), _within(rewards, log=False)
    sums = sum_by_group(([a @ b, a @ a, b @ b] for a, b in zip(x, y, strict=True)), groups)
    with np.errstate(invalid="ignore", divide="ignore"):
        xy, xx, yy = sums.sum(0)
        value = xy / np.sqrt(xx * yy)
        xy, xx, yy = resample(sums, np.random.default_rng(seed)).T
        low, high = np.nanpercentile(xy / np.sqrt(xx * yy), [2.5, 97.5]) if np.isfinite(value) else (np.nan, np.nan)
    if not np.isfinite(value):
        return Metric(None, None, None, 0)
    return Metric(float(value), float(low), float(high), sum(map(len, rewards)))


def curves(ranks: Table, rewards: Table) -> dict[str, list[Bin]]:
    """The reliability curves of ``pairs`` and of the best response, ``top1``."""
    each = list(zip(ranks, rewards, strict=True))
    return {
        "pairs": reliability_curve((guess for own in each for guess in pair_guesses(*own)), PAIR_LOW),
        "top1": reliability_curve((guess for own in each for guess in top1_guesses(*own)), TOP1_LOW),
    }
