"""Bradley-Terry in which a strong preference counts as several weak ones (the scaled loss of arXiv 2410.01257)."""

import torch
import torch.nn.functional as F

from kwise.objective.pairs import pairs_of


def scaled_pairs(rewards: torch.Tensor, ranks: torch.Tensor, lists: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Mean of ``-m log sigmoid(r_better - r_worse)`` over a ranking's pairs, summed over rankings.

    Takes and gives what ``plackett_luce`` does. m is the difference of the rank numbers, so that ratings are given as
    ranks = -rating and m is the difference of ratings; twice the numbers are twice the loss. HelpSteer2-Preference has
    m = 1, 2, 3 for slightly, plainly and much better. Tied pairs are left out; a ranking tied throughout has loss 0. Convex.
    """
    pairs = pairs_of(rewards, ranks, lists)
    pairs = pairs.where(pairs.gap > 0)
    return pairs.mean(-pairs.strength * F.logsigmoid(pairs.delta))
