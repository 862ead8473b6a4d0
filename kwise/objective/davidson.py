"""Bradley-Terry with ties by the geometric mean (Davidson 1970, J. Am. Stat. Assoc. 65, 317-328)."""

import math

import torch

from kwise.objective.options import check_number
from kwise.objective.pairs import pairs_of


def davidson(
    rewards: torch.Tensor, ranks: torch.Tensor, lists: torch.Tensor, tie_rate: float = 0.2
) -> tuple[torch.Tensor, int]:
    """Negative log-likelihood of win or tie, averaged over all pairs of a ranking, tied ones too, summed over rankings.

    Takes and gives what ``plackett_luce`` does, but equal ranks are a judgement here ("as good as each other"). Win, loss and
    tie of i against j have probabilities in the ratio exp(d/2) : exp(-d/2) : nu with d = r_i - r_j, so that a tie counts as
    half a win and half a loss. Ties fall off more slowly with d than ``rao_kupper``'s. A ranking tied throughout draws its
    rewards together. Convex.

    ``tie_rate``, above 0 and below 1 (else ``ValueError``): the probability p of a tie between equally good answers;
    nu = 2p/(1-p). How to choose it: see ``rao_kupper``.
    """
    check_number("tie_rate", tie_rate, "above 0 and below 1", lambda p: 0 < p < 1)
    pairs = pairs_of(rewards, ranks, lists)
    half = pairs.delta / 2
    tie = torch.full_like(half, math.log(2 * tie_rate) - math.log1p(-tie_rate))
    happened = torch.where(pairs.gap > 0, half, tie)
    # log-sum-exp of differences: what happened is exactly 0 there, so a certain outcome costs exactly 0
    return pairs.mean(torch.stack([half - happened, -half - happened, tie - happened]).logsumexp(0))
