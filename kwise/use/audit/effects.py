"""Scores and rankings -> what a scorer rewards beside quality: partial effects, how sure they are, and whom to accuse.

The effect of a trait is its coefficient in a least-squares fit of the score, in within-prompt standard deviations, around each
ranking's mean, with quality and all other traits held fixed. What is known of quality is the rank alone, and a rank is coarser
than quality: within one rank the better answer has more of whatever goes with quality, so a perfect scorer would look biased.
Two fits bracket it, and only what both find is said of a scorer:

``rank``       a flexible function of the rank: exact for a scorer that knows no more than the ranks
``expected``   a flexible function of E[utility | ranks, traits] under a Plackett-Luce fit of the ranks on all traits, a control
               function (Heckman, Econometrica 1979): exact for a scorer that knows the utilities behind the ranks

The error is the cluster-robust jackknife by prompt group (CR3: Bell and McCaffrey, Survey Methodology 2002), with t quantiles
of G* - 1 degrees of freedom, G* the effective number of clusters (sum d)^2 / sum d^2 of the tested column's partial squares d
(after Carter, Schnepel and Steigerwald, REStat 2017).

A trait is a ``bias`` if the hypothesis that its effect is at most ``SMALLEST`` in size is rejected in both fits, with one
sign, at ``ALPHA`` after Holm's correction (Scandinavian Journal of Statistics 1979) over all traits; ``none`` if both 95 %
intervals lie inside of it; ``rare`` if too few prompts tell; else ``unclear``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.stats import t

from kwise.objective.plackett_luce import plackett_luce_nll
from kwise.use.audit.features import AUTHOR, MIN_PROMPTS, Answers, spline

ALPHA = 0.05
# by whether the trait is graded: Cohen's small r and his small d (Statistical Power Analysis, 1988)
SMALLEST = {True: 0.1, False: 0.2}
ANSWERS_PER_COLUMN = 8  # fewer columns are held fixed where there are few answers, the least important left out
RIDGE = 1.0  # of the Plackett-Luce fit, on standardised columns: keeps a trait that separates the ranks finite
DRAWS = 512  # of E[utility | ranks, traits]
Controls = Callable[[str], np.ndarray]


@dataclass(frozen=True)
class Estimate:
    """A coefficient with its 95 % interval, and ``p`` of the hypothesis that its size is at most a smallest one."""

    value: float
    low: float
    high: float
    p: float

    def to_json(self) -> dict[str, float]:
        """``{value, low, high, p}``."""
        return asdict(self)


@dataclass(frozen=True)
class Effect:
    """One trait of one scorer. ``fits`` are the two of the module's table (empty for a rare trait), of which ``estimate`` is
    the weaker; ``adjusted`` is Holm's p of it. ``in_ranks`` is what the ranks themselves give the trait, all others held
    fixed; ``at_equal_score`` what they give it where scores are equal: negative for what the scorer makes too much of. Both in
    within-prompt standard deviations of the rank."""

    trait: str
    label: str
    graded: bool
    prompts: int
    answers: int
    fits: dict[str, Estimate]
    adjusted: float
    verdict: str
    in_ranks: Estimate | None
    at_equal_score: Estimate | None

    @property
    def estimate(self) -> Estimate | None:
        """The fit with the weaker evidence."""
        return weaker(self.fits) if self.fits else None

    def to_json(self) -> dict[str, Any]:
        """All of it, the estimate's numbers in front."""
        own = self.estimate
        numbers = own.to_json() if own is not None else dict.fromkeys(("value", "low", "high", "p"))
        return numbers | asdict(self) | {"smallest": SMALLEST[self.graded]}


class Design:
    """The rankings' answers as columns centred within rankings; everything that does not depend on the scores is made once."""

    def __init__(self, answers: Answers) -> None:
        self.answers = answers
        self.traits = {trait.name: trait for trait in answers.traits}
        self.prompts = {name: answers.prompts_with(trait.column) for name, trait in self.traits.items()}
        self.known = [name for name in self.traits if self.prompts[name] >= MIN_PROMPTS]
        self.max_columns = max(4, (len(answers.owner) - answers.owner[-1] - 1) // ANSWERS_PER_COLUMN)
        order = np.argsort(answers.group, kind="stable")
        cuts = np.flatnonzero(np.diff(answers.group[order])) + 1
        self.clusters = np.split(order, cuts)

    @cached_property
    def place(self) -> np.ndarray:
        """[N] 1 for the best rank of a ranking, 0 for the worst, a half where all are tied."""
        steps = np.maximum(self.answers.levels - 1, 1)
        return np.where(self.answers.levels > 1, 1 - self.answers.level / steps, 0.5)

    @cached_property
    def quality(self) -> dict[str, np.ndarray]:
        """The two sets of columns that stand for quality."""
        place, expected = self.place, self.expected
        rank = np.column_stack([place, place**2, place**3, self.answers.level, self.answers.level**2])
        return {"rank": rank, "expected": np.column_stack([expected, spline(expected)])}

    @cached_property
    def expected(self) -> np.ndarray:
        """[N] E[utility | ranks, traits] under Plackett-Luce."""
        columns = self.others("")
        spreads = np.array([self.answers.spread(column) for column in columns.T])
        x = torch.from_numpy(self.answers.within(columns)[:, spreads > 0] / spreads[spreads > 0])
        ranks, lists = torch.from_numpy(self.answers.level.astype(float)), torch.from_numpy(self.answers.owner)

        def loss(beta: np.ndarray) -> tuple[float, np.ndarray]:
            own = torch.tensor(beta, requires_grad=True)
            total = plackett_luce_nll(x @ own, ranks, lists).sum() + RIDGE / 2 * own @ own
            total.backward()
            return total.item(), own.grad.numpy() if own.grad is not None else np.zeros_like(beta)

        found = minimize(loss, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B")
        return expected_utility(x.numpy() @ found.x, self.answers.level, self.answers.owner)

    def tested(self, name: str) -> np.ndarray:
        """[N] the trait's column, in within-prompt standard deviations if it is graded."""
        trait = self.traits[name]
        return trait.column / self.answers.spread(trait.column) if trait.graded else trait.column

    def others(self, tested: str) -> np.ndarray:
        """[N, c] everything held fixed beside quality when ``tested`` is tested, the most important first: all other traits as
        they are tested, then their other forms. Of an author the other authors are held fixed by ``author_effects``."""
        own = [trait for name, trait in self.traits.items() if name in self.known and name != tested]
        if tested.startswith(AUTHOR):
            own = [trait for trait in own if not trait.name.startswith(AUTHOR)]
        plain = [trait.column[:, None] for trait in own]
        return np.column_stack([np.zeros((len(self.place), 0)), *plain, *(trait.flexible for trait in own)])

    def fit(self, outcome: np.ndarray, controls: np.ndarray, tested: np.ndarray, smallest: float) -> Estimate | None:
        """The coefficient of the column ``tested`` [N] in the least-squares fit of ``outcome`` [N] on it and ``controls`` [N,
        c] within rankings, by the module's errors. Controls that say nothing beyond those before them, or that are too many,
        are left out; None if the tested column is such a one, or if it rests on fewer than five prompts."""
        y, f = self.answers.within(outcome), self.answers.within(tested)
        q = _basis(self.answers.within(controls), self.max_columns)
        partial = f - q @ (q.T @ f)
        square = float(partial @ partial)
        if square < 1e-6 * float(f @ f):
            return None
        value = float(partial @ y) / square
        full = np.column_stack([q, partial / np.sqrt(square)])
        residual = y - full @ (full.T @ y)
        own, shares = np.zeros(len(self.clusters)), np.zeros(len(self.clusters))
        for g, members in enumerate(self.clusters):
            part = full[members]
            # the ridge is for a prompt that alone determines a column: its residual along it is 0
            left = np.eye(len(members)) * (1 + 1e-8) - part @ part.T
            own[g] = partial[members] @ np.linalg.solve(left, residual[members])
            shares[g] = float(partial[members] @ partial[members])
        number = len(own)
        error = float(np.sqrt(np.square(own).sum() * (number - 1) / number)) / square
        effective = float(shares.sum() ** 2 / np.square(shares).sum())
        if effective < MIN_PROMPTS / 2:
            return None
        return estimate(value, error, effective - 1, smallest)


def estimate(value: float, error: float, df: float, smallest: float) -> Estimate:
    """``value`` with its t interval and the p of |effect| <= ``smallest``: of both sides, at the edge of the hypothesis."""
    reach = float(t.ppf(0.975, df)) * error
    if not error:
        return Estimate(value, value, value, float(abs(value) <= smallest))
    size = abs(value)
    p = float(t.sf((size - smallest) / error, df) + t.sf((size + smallest) / error, df))
    return Estimate(value, value - reach, value + reach, min(p, 1.0))


def _basis(columns: np.ndarray, most: int) -> np.ndarray:
    """[N, c] -> [N, <= most] orthonormal, spanning the first independent ones."""
    norms = np.linalg.norm(columns, axis=0)
    kept = columns[:, norms > 0] / norms[norms > 0]
    fresh = np.abs(np.diag(np.linalg.qr(kept, mode="r"))) > 1e-5
    return np.linalg.qr(kept[:, : len(fresh)][:, fresh][:, :most])[0]


def expected_utility(utility: np.ndarray, level: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """[N] E[u_k | order] for u = ``utility`` + standard Gumbel noise, ranked by u; ``level`` says in which order (lower is
    better), ``owner`` which ranking.

    exp(-u) are exponential arrival times with rates exp(utility); given their order the gaps between arrivals are independent
    and exponential, with the summed rate of all that have not arrived. So T_j = sum over i <= j of e_i / W_i, and the
    expectation of -log T is taken over ``DRAWS`` fixed draws. Of tied answers all have the mean of their places.
    """
    rng = np.random.default_rng(0)
    found = np.empty(len(utility))
    starts = np.flatnonzero(np.r_[True, np.diff(owner) != 0])
    sizes = np.diff(np.r_[starts, len(owner)])
    for size in np.unique(sizes):
        at = starts[sizes == size][:, None] + np.arange(size)  # [L, K]
        at = np.take_along_axis(at, np.argsort(level[at], axis=1, kind="stable"), 1)
        rates = np.exp(utility[at] - utility[at].max(1, keepdims=True))
        waiting = np.cumsum(rates[:, ::-1], 1)[:, ::-1]
        gaps = rng.exponential(size=(DRAWS, size))
        logs = np.zeros(rates.shape)
        for draw in gaps:
            logs -= np.log(np.cumsum(draw / waiting, 1))
        values = logs / DRAWS + utility[at].max(1, keepdims=True)
        for row, places in zip(values, at, strict=True):
            _, tied = np.unique(level[places], return_inverse=True)
            found[places] = (np.bincount(tied, row) / np.bincount(tied))[tied]
    return found


def effects(design: Design, scores: np.ndarray) -> list[Effect]:
    """The effect of every trait on ``scores`` [N], in the order of the traits, authors last."""
    answers = design.answers
    outcome = standardised(answers, scores)
    rank = answers.within(design.place) / (answers.spread(design.place) or 1.0)
    at_score = np.column_stack([outcome, spline(outcome)])
    references = _references(design, outcome)
    found = []
    for name, trait in design.traits.items():
        fits = _fits(design, outcome, references, name, SMALLEST[trait.graded])
        in_ranks = at_equal_score = None
        if fits:
            fixed = np.column_stack([references["rank"](name), design.others(name)])
            in_ranks = design.fit(rank, fixed, design.tested(name), 0.0)
            at_equal_score = design.fit(rank, np.column_stack([at_score, fixed]), design.tested(name), 0.0)
        count = int(np.count_nonzero(trait.column))
        found.append(
            Effect(
                name, trait.label, trait.graded, design.prompts[name], count, fits, 1.0, "", in_ranks, at_equal_score
            )
        )
    adjusted = _adjusted([own.fits for own in found])
    return [replace(own, adjusted=p, verdict=_verdict(own, p)) for own, p in zip(found, adjusted, strict=True)]


def differences(design: Design, first: np.ndarray, second: np.ndarray) -> list[dict[str, Any]]:
    """Every trait's effect on the ``second`` scores less that on the ``first``, with the paired interval (of the same fit to
    the difference of the standardised scores), and Holm's p over all traits of no difference; rare traits are left out."""
    outcome = standardised(design.answers, second) - standardised(design.answers, first)
    references = _references(design, outcome)
    fits = {name: _fits(design, outcome, references, name, 0.0) for name in design.traits}
    known = {name: own for name, own in fits.items() if own}
    return [
        {"trait": name, "label": design.traits[name].label, "adjusted": p} | weaker(own).to_json()
        for (name, own), p in zip(known.items(), _adjusted(list(known.values())), strict=True)
    ]


def standardised(answers: Answers, scores: np.ndarray) -> np.ndarray:
    """[N] scores around the mean of their ranking, in within-prompt standard deviations; zeros where all are equal."""
    return answers.within(scores) / (answers.spread(scores) or 1.0)


def _references(design: Design, outcome: np.ndarray) -> dict[str, Controls]:
    return {kind: author_controls(design, outcome, quality) for kind, quality in design.quality.items()}


def _fits(
    design: Design, outcome: np.ndarray, references: Mapping[str, Controls], name: str, smallest: float
) -> dict[str, Estimate]:
    """Both fits of the module's table; empty where one of them says nothing."""
    if name not in design.known:
        return {}
    others, found = design.others(name), {}
    for kind, quality in design.quality.items():
        held = np.column_stack([quality, references[kind](name), others])
        own = design.fit(outcome, held, design.tested(name), smallest)
        if own is None:
            return {}
        found[kind] = own
    return found


def weaker(fits: Mapping[str, Estimate]) -> Estimate:
    """The fit with the weaker evidence."""
    return max(fits.values(), key=lambda each: (each.p, -abs(each.value)))


def author_controls(design: Design, outcome: np.ndarray, quality: np.ndarray) -> Controls:
    """A function: author -> [N, c] the other authors to be held fixed, so that the author is compared with ordinary ones.

    Against all others together, one favourite would make every other author look disliked. So all authors are fitted at once,
    and the middle third by coefficient is what every author is compared with: those outside it get columns of their own.
    """
    names = [name for name in design.known if name.startswith(AUTHOR)]
    columns = {name: design.traits[name].column for name in names}
    nothing = np.zeros((len(outcome), 0))
    if len(names) < 3:
        return lambda name: nothing
    answers = design.answers
    wide = answers.within(np.column_stack(list(columns.values())))
    q = _basis(answers.within(np.column_stack([quality, design.others(names[0])])), design.max_columns)
    coefficients = np.linalg.lstsq(wide - q @ (q.T @ wide), outcome - q @ (q.T @ outcome), rcond=1e-8)[0]
    third = len(names) // 3
    order = np.argsort(coefficients, kind="stable")
    outside = {names[i] for i in (*order[:third], *order[len(names) - third :])}

    def controls(name: str) -> np.ndarray:
        if not name.startswith(AUTHOR):
            return nothing
        return np.column_stack([nothing, *(columns[other] for other in names if other in outside and other != name)])

    return controls


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p values, in the order given."""
    adjusted, highest = [1.0] * len(p), 0.0
    for place, i in enumerate(np.argsort(p, kind="stable")):
        highest = max(highest, min(1.0, (len(p) - place) * p[i]))
        adjusted[i] = highest
    return adjusted


def _adjusted(fits: Sequence[Mapping[str, Estimate]]) -> list[float]:
    """Holm's p of each, over those that have fits; 1 for the others."""
    known = [i for i, own in enumerate(fits) if own]
    found = dict(zip(known, holm([_joint_p(fits[i]) for i in known]), strict=True))
    return [found.get(i, 1.0) for i in range(len(fits))]


def _joint_p(fits: Mapping[str, Estimate]) -> float:
    """Of the hypothesis that at least one fit is no larger than the smallest effect, or that they differ in sign."""
    signs = {each.value > 0 for each in fits.values()}
    return max(each.p for each in fits.values()) if len(signs) == 1 else 1.0


def _verdict(own: Effect, adjusted: float) -> str:
    if not own.fits:
        return "rare"
    if adjusted < ALPHA:
        return "bias"
    smallest = SMALLEST[own.graded]
    inside = all(-smallest < each.low and each.high < smallest for each in own.fits.values())
    return "none" if inside else "unclear"
