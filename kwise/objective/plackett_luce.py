"""The K-wise maximum likelihood estimator MLE_K of arXiv 2301.11270, for rankings of any K, with ties."""

import math
from collections.abc import Sequence

import torch

from kwise.objective.options import by_number, check_weights
from kwise.objective.ragged import by_list, low

SUMMED_TIES = 8  # the sum over orders takes 2^m steps for m tied responses; the integral some thousands for any few
SMALL = -14.0  # a logarithm: of e^-14 the next term, a^2 / 24, is lost in float64


def plackett_luce(
    rewards: torch.Tensor,
    ranks: torch.Tensor,
    lists: torch.Tensor,
    top: int | None = None,
    stage_weights: Sequence[float] = (1.0,),
) -> tuple[torch.Tensor, int]:
    """Negative log-likelihood of rankings under Plackett-Luce, summed over rankings.

    Takes ``rewards`` [R] (float32 or better), ``ranks`` [R] (lower is better, equal is tied) and ``lists`` [R] (which
    ranking a reward belongs to, any integers, any order). Gives the loss in nats, a scalar, and the number of rankings.

    P(ranking) = prod_k exp(r_k) / sum over j not yet placed of exp(r_j). At equal rewards the loss of K responses without
    ties is log K!; for K = 2 it is Bradley-Terry's. Of tied responses the order is unknown, so the likelihood is that of the
    tied block in any order: the sum over all orders up to ``SUMMED_TIES`` responses, the same number by an integral, to
    the digits of ``rewards``' dtype, beyond. A block with nothing below it has probability 1, whatever its size; so a
    ranking whose responses are all tied says nothing and has loss 0. A partial ranking ("these are the best three, in this
    order") is a tie of all others at the bottom. Convex, ties included.

    ``stage_weights``: the weight of the log-probability of the first, second, ... place; the last one goes on. At least 0, not
    all 0. ``top`` = m, at least 1: only the first m places count. The place of a tied block is 1 + the number of strictly
    better responses, and it counts as one stage. ``ValueError`` for other values.

    See ``all_pairs`` for the estimator that splits a ranking into pairs. PL has the lower variance when its noise model
    is right (Theorem 4.3 there); ``all_pairs`` is the more robust one when it is not.
    """
    nll = plackett_luce_nll(rewards, ranks, lists, top, stage_weights)
    return nll.sum(), len(nll)


def plackett_luce_nll(
    rewards: torch.Tensor,
    ranks: torch.Tensor,
    lists: torch.Tensor,
    top: int | None = None,
    stage_weights: Sequence[float] = (1.0,),
) -> torch.Tensor:
    """[L] negative log-likelihood of each ranking, in the order of the distinct values of ``lists``."""
    check_weights("stage_weights", stage_weights)
    if top is not None and (type(top) is not int or top < 1):
        raise ValueError(f"top: must be a whole number of at least 1, this is {top!r}")
    table, rank = by_list(rewards, ranks, lists)
    present = torch.isfinite(rank)
    tied_with = (rank.unsqueeze(2) == rank.unsqueeze(1)) & present.unsqueeze(1)  # [L, K, K]
    worse = (rank.unsqueeze(1) > rank.unsqueeze(2)) & present.unsqueeze(1)  # [L, K, K] column ranked below row
    place = 1 + worse.sum(1)
    weight = by_number(stage_weights, place, table.dtype)
    if top is not None:
        weight = weight.masked_fill(place > top, 0)
    # [L, K] one place per tied block, its first; a list's last block comes next for certain, so it is left out
    leads = ~tied_with.tril(-1).any(2) & worse.any(2) & (weight > 0)
    sizes = tied_with.sum(2)
    log_likelihood = (table * 0).sum(1)  # of no block at all it is 0, with a gradient of 0
    for m in sizes[leads].unique().tolist():
        lead = leads & (sizes == m)
        owner = lead.nonzero()[:, 0]
        responses = table[owner]  # [B, K] all responses of the block's ranking
        tied = responses[tied_with[lead]].view(-1, m)
        below = responses.masked_fill(~worse[lead], low(table.dtype)).logsumexp(1)
        log_p = _any_order(tied, below) if m <= SUMMED_TIES else _race(tied, below)
        log_likelihood = log_likelihood.index_add(0, owner, weight[lead] * log_p)
    return -log_likelihood


def _any_order(tied: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
    """[B, m] rewards of a tied block, [B] log-sum-exp of all ranked below it -> [B] log-probability that the block comes
    next, in any order: over subsets S already placed, P(S) = sum over i in S of P(S - i) exp(r_i) / Z(all not in S - i)."""
    m = tied.shape[1]
    log_p: list[torch.Tensor] = [torch.zeros_like(below)]
    remaining = []  # log Z of what is not in S
    for subset in range(1 << m):
        out = [i for i in range(m) if not subset >> i & 1]
        remaining.append(torch.cat([tied[:, out], below[:, None]], 1).logsumexp(1))
        if subset:
            last = [i for i in range(m) if subset >> i & 1]
            ways = [log_p[subset ^ 1 << i] + tied[:, i] - remaining[subset ^ 1 << i] for i in last]
            log_p.append(torch.stack(ways).logsumexp(0) if len(ways) > 1 else ways[0])
    return log_p[-1]


def _race(tied: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
    """``_any_order`` in O(m^1.5) steps. Give every response a clock that rings after a time exponential at rate exp(r): they ring
    in Plackett-Luce's order (Luce 1959), and the block comes next if all of its clocks ring before the first of those below. With
    x = log time, in units of 1 / exp(below),

        P = integral of exp(x - e^x) prod_i (1 - exp(-e^(r_i - below + x))) dx

    by the trapezoidal rule, which converges geometrically as the integrand is analytic and dies off at both ends (Trefethen
    and Weideman 2014, SIAM Review 56). It is as narrow as 1 / sqrt(m), which the step follows. Jointly log-concave in x and
    rewards, so that P is log-concave too.
    """
    m = tied.shape[1]
    step = min(0.25, 0.7 / math.sqrt(m + 1))
    end = math.log(m + 45 + 10 * math.sqrt(m))  # beyond it the integrand is lost in float64, as it is below exp(-37)
    x = torch.arange(-37.0, end, step, dtype=tied.dtype, device=tied.device)
    log_rate = (tied - below.unsqueeze(1)).unsqueeze(2) + x  # [B, m, points] of a clock in the time that has passed
    # log(1 - exp(-a)) of a = exp(log_rate): log a - a / 2 where a is small. What is clamped is not used, or has no gradient left
    small = log_rate - log_rate.clamp(max=SMALL).exp() / 2
    rung = torch.where(log_rate < SMALL, small, torch.log(-torch.expm1(-log_rate.clamp(SMALL, 80.0).exp())))
    return (x - x.exp() + rung.sum(1)).logsumexp(1) + math.log(step)
