"""The convex fit of a linear head on frozen features: MLE_K or MLE_2 of arXiv 2301.11270 with ridge, to its optimum."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from kwise.objective import Objective
from kwise.objective.design import Chunk, Design, Scaling, Standardised, scaling

RIDGES = (30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003)
WEAKER = (1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6, 3e-7)  # where the last of them is the best, the path goes on
STRONGER = (1e2, 3e2, 1e3, 3e3, 1e4, 3e4, 1e5, 3e5)  # and so it does from the first
HELD_OUT = 0.2  # share of prompts set aside to choose the ridge
PATIENCE = 2  # the path ends after so many ridges in a row that are no better than the best one
HESSIAN_RESPONSES = 2**17  # so many responses say enough about the curvature at any width in use
CLOSE = 1e-2  # nats: a step of less gain changes the curvature by less than what a part of the responses leaves open
COVARIATE_RIDGE = 1e-3  # covariates shall take all they can, but one that separates the answers must stay finite
ROUNDING = 1e-12  # relative error of a summed loss: near the optimum a step gains less than that


class Tried(NamedTuple):
    """``held_out`` is the loss per ranking on the prompts set aside."""

    layer: int
    ridge: float
    held_out: float


@dataclass(frozen=True)
class HeadFit:
    """``weight`` [d] and ``coefficients`` [c] (of the covariates), float64, for raw columns; ``layer`` and ``ridge`` chosen;
    ``loss`` per ranking on all training rankings; ``path`` layer by layer, the strongest ridge first; ``gradient`` is the largest
    component left."""

    weight: np.ndarray
    coefficients: np.ndarray
    layer: int
    ridge: float
    loss: float
    path: list[Tried]
    gradient: float


class Sweep(NamedTuple):
    """``loss`` per ranking of ``rankings``, its gradient [p] and, if asked for, Hessian [p, p], all float64."""

    loss: float
    rankings: int
    gradient: torch.Tensor
    hessian: torch.Tensor | None


def fit_head(
    designs: Mapping[int, Design],
    objective: Objective,
    ridges: Sequence[float] | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> HeadFit:
    """The head w that minimises ``objective(features @ w) / rankings + ridge / 2 * |w|^2`` over standardised features.

    ``designs`` hold the same rankings over the features of different layers. The layer and ridge with the lowest loss on a
    fifth of the prompts, which no fit of the path sees, are used for the final fit on all. ``ridges`` are tried from the largest
    down, each from the last one's optimum; None are ``RIDGES``, and where the best of those lies at an end, also what lies beyond
    (``WEAKER``, ``STRONGER``) until the loss turns. Newton's method in float64 finds each optimum, and standardisation is
    folded back into ``weight``, which is kept orthogonal to ``Scaling.level``. Covariates are all but unpenalised.

    Cost of a step: one pass over the features and, with the Hessian, 2 p^2 operations a response (of ``HESSIAN_RESPONSES`` at
    most) and p^3 / 3, with p = d + c; memory 8 p^2 bytes a matrix, and the features only if they are small
    (``IN_MEMORY``). Raises ``ValueError`` for fewer than two prompts.
    """
    first = next(iter(designs.values()))
    names = sorted(set(first.groups))
    if len(names) < 2:
        raise ValueError(f"choosing a ridge needs rankings of at least two prompts, these are of {len(names)}")
    shuffled = np.random.default_rng(seed).permutation(len(names))
    aside = {names[i] for i in shuffled[: max(1, round(HELD_OUT * len(names)))]}
    held = [i for i, group in enumerate(first.groups) if group in aside]
    fitted = [i for i, group in enumerate(first.groups) if group not in aside]

    path: list[Tried] = []
    starts: dict[Tried, torch.Tensor] = {}
    scalings: dict[int, Scaling] = {}
    for layer, design in designs.items():
        by = scalings[layer] = scaling(design)
        train, test = (Standardised(design.take(part), by, device) for part in (fitted, held))
        own = _try_ridges(layer, train, test, objective, ridges)
        starts |= own
        path += sorted(own, key=lambda tried: -tried.ridge)
        del train, test  # as large as ``everything`` below
    chosen = min(starts, key=_held_out)  # of equals the one tried first
    design, by = designs[chosen.layer], scalings[chosen.layer]
    everything = Standardised(design, by, device)
    w, found = minimise(everything, objective, chosen.ridge, starts[chosen], tolerance=1e-16)
    gradient = _penalised(found, chosen.ridge, w, everything)[0].abs().max().item()
    raw = w.cpu().numpy() / by.scale
    split = design.num_features
    return HeadFit(raw[:split], raw[split:], chosen.layer, chosen.ridge, found.loss, path, gradient)


def _try_ridges(
    layer: int, train: Standardised, test: Standardised, objective: Objective, ridges: Sequence[float] | None
) -> dict[Tried, torch.Tensor]:
    """The [p] optimum on ``train`` at every ridge tried, in the order tried."""
    tried: dict[Tried, torch.Tensor] = {}

    def follow(ridges: Sequence[float], w: torch.Tensor) -> None:
        for ridge in ridges:
            w, _ = minimise(train, objective, ridge, w, tolerance=1e-5)
            tried[Tried(layer, ridge, mean_loss(test, objective, w))] = w
            order = list(tried)
            if len(order) - 1 - order.index(min(order, key=_held_out)) >= PATIENCE:
                break

    follow(
        sorted(ridges or RIDGES, reverse=True),
        torch.zeros(train.design.width, dtype=torch.float64, device=train.device),
    )
    if ridges is None:
        strongest, *_, weakest = tried
        best = min(tried, key=_held_out)
        if best == weakest:
            follow(WEAKER, tried[weakest])
        elif best == strongest:
            follow(STRONGER, tried[strongest])
    return tried


def _held_out(tried: Tried) -> float:
    return tried.held_out


def minimise(
    data: Standardised, objective: Objective, ridge: float, start: torch.Tensor, tolerance: float
) -> tuple[torch.Tensor, Sweep]:
    """Newton's method from ``start`` until it expects to gain less than ``tolerance`` nats a ranking, or can gain no more.

    The Hessian of more than ``HESSIAN_RESPONSES`` responses is that of a part of them. Once steps are ``CLOSE`` it stays as it
    is, and L-BFGS corrects it by the gradients of all, which are cheap beside it. Gives [p] weights of the standardised
    columns and the last sweep, which is at those weights.
    """
    stride = max(1, data.num_responses // HESSIAN_RESPONSES)
    w, found = start, sweep(data, objective, start, stride)
    gradient, value = _penalised(found, ridge, w, data)
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = []  # steps taken and how the gradient changed
    for _ in range(100):
        if found.hessian is not None:
            factor, pairs = _factor(found.hessian, ridge, data), []
        step = -_direction(factor, pairs, gradient)
        expected = -(gradient @ step).item()
        if expected / 2 <= tolerance:
            break
        curved = stride if stride == 1 or expected > CLOSE else 0
        size = 1.0
        while size > 1e-6:
            moved = w + size * step
            there = sweep(data, objective, moved, curved)  # the whole of it: a full step is nearly always taken
            slope, height = _penalised(there, ridge, moved, data)
            if height <= value - 1e-4 * size * expected + ROUNDING * abs(value):
                break
            size /= 2
        else:
            break
        if (moved - w) @ (slope - gradient) > 0:  # as in every convex objective, but for rounding
            pairs.append((moved - w, slope - gradient))
        w, found, gradient, value = moved, there, slope, height
    return w, found


def _direction(
    factor: torch.Tensor, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], gradient: torch.Tensor
) -> torch.Tensor:
    """The inverse of the matrix with Cholesky ``factor``, corrected by ``pairs``, times ``gradient`` [p]: the two loops of L-BFGS
    (Nocedal, Mathematics of Computation 1980)."""
    left, shares = gradient.clone(), []
    for step, change in reversed(pairs):
        shares.append((step @ left) / (step @ change))
        left -= shares[-1] * change
    direction = torch.cholesky_solve(left[:, None], factor)[:, 0]
    for (step, change), share in zip(pairs, reversed(shares), strict=True):
        direction += (share - (change @ direction) / (step @ change)) * step
    return direction


@torch.no_grad()
def mean_loss(data: Standardised, objective: Objective, w: torch.Tensor) -> float:
    """The objective per ranking at rewards z @ w."""
    parts = [objective(chunk.z @ w, chunk.ranks, chunk.lists) for chunk in data]
    return sum(value.item() for value, _ in parts) / sum(count for _, count in parts)


def sweep(data: Standardised, objective: Objective, w: torch.Tensor, stride: int) -> Sweep:
    """One pass over ``data``: the objective per ranking at rewards z @ w with its derivatives in w, the Hessian of every
    ``stride``-th chunk (0: none), which is most of the cost."""
    loss, rankings, curved_rankings = 0.0, 0, 0
    gradient = torch.zeros_like(w)
    hessian = torch.zeros(len(w), len(w), dtype=w.dtype, device=w.device) if stride else None
    for number, chunk in enumerate(data):
        rewards = (chunk.z @ w).requires_grad_()
        value, count = objective(rewards, chunk.ranks, chunk.lists)
        curves = hessian is not None and number % stride == 0
        (slope,) = torch.autograd.grad(value, rewards, create_graph=curves)
        # the slope of rankings that are all tied is a constant 0, without a graph
        for places, curve in curvature(slope, rewards, chunk) if curves and slope.requires_grad else ():
            rows = chunk.z[places]
            curved = curve @ rows.view(*curve.shape[:2], -1)
            hessian.addmm_(rows.T, curved.view(len(rows), -1))  # type: ignore[union-attr]  # as ``curves`` says
        gradient += chunk.z.T @ slope.detach()
        loss, rankings, curved_rankings = loss + value.item(), rankings + count, curved_rankings + count * curves
    return Sweep(loss / rankings, rankings, gradient / rankings, None if hessian is None else hessian / curved_rankings)


def curvature(slope: torch.Tensor, rewards: torch.Tensor, chunk: Chunk) -> Iterator[tuple[slice, torch.Tensor]]:
    """The Hessian of an objective in the rewards, which has a [K, K] block for each ranking: for every K of the chunk, the
    places of the rankings of that length and their [L, K, K] blocks. ``slope`` is the gradient, with its graph.

    Rankings do not touch one another, so differentiating the k-th slopes of all of them at once gives the k-th columns of
    all blocks: K backward passes for any number of rankings, whatever the objective.
    """
    starts = chunk.sizes.cumsum(0) - chunk.sizes
    within = torch.arange(len(rewards), device=rewards.device) - torch.repeat_interleave(starts, chunk.sizes)
    columns = [
        torch.autograd.grad(slope[within == k].sum(), rewards, retain_graph=True)[0]
        for k in range(int(chunk.sizes.max()))
    ]
    table = torch.stack(columns, 1)  # [r, K_max]
    start = 0
    for size, count in zip(*(each.tolist() for each in chunk.sizes.unique(return_counts=True)), strict=True):
        places = slice(start, start + size * count)
        yield places, table[places, :size].reshape(count, size, size)
        start = places.stop


def penalties(data: Standardised, ridge: float) -> torch.Tensor:
    """[p] the ridge of each standardised column."""
    by_column = torch.full((data.design.width,), ridge, dtype=torch.float64, device=data.device)
    by_column[data.design.num_features :] = COVARIATE_RIDGE
    return by_column


def project(matrix: torch.Tensor, data: Standardised) -> torch.Tensor:
    """Take the direction ``Scaling.level`` out of a [p] or [p, q] tensor's first dimension."""
    level = torch.from_numpy(data.by.level).to(matrix.device)
    along = level @ matrix
    return matrix - (level * along if matrix.dim() == 1 else torch.outer(level, along))


def penalised_hessian(hessian: torch.Tensor, ridge: float, data: Standardised) -> torch.Tensor:
    """[p, p] of mean loss and ridge, with ``Scaling.level`` taken out of the loss's part."""
    return project(project(hessian, data).T, data) + penalties(data, ridge).diag()


def _ridge_term(w: torch.Tensor, ridge: float, data: Standardised) -> float:
    return (penalties(data, ridge) @ w.square()).item() / 2


def _penalised(found: Sweep, ridge: float, w: torch.Tensor, data: Standardised) -> tuple[torch.Tensor, float]:
    """Gradient and value of mean loss and ridge."""
    gradient = project(found.gradient, data) + penalties(data, ridge) * w
    return gradient, found.loss + _ridge_term(w, ridge, data)


def _factor(hessian: torch.Tensor, ridge: float, data: Standardised) -> torch.Tensor:
    """[p, p] Cholesky factor of the penalised Hessian, damped where rounding, or an objective that is not convex, leaves it not
    positive."""
    matrix = penalised_hessian(hessian, ridge, data)
    factor: torch.Tensor
    damping = 0.0
    for _ in range(30):
        factor, failed = torch.linalg.cholesky_ex(
            matrix + damping * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        )
        if not failed:
            return factor
        damping = max(10 * damping, 1e-6 * matrix.diagonal().abs().max().item())
    raise FloatingPointError("the objective's curvature is NaN or infinite: the head cannot be fitted")
