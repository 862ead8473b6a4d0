"""Bradley-Terry with a margin: the stronger the preference, the further apart the rewards must be (arXiv 2410.01257)."""

import torch
import torch.nn.functional as F

from kwise.objective.options import check_number
from kwise.objective.pairs import pairs_of


def margin_pairs(
    rewards: torch.Tensor, ranks: torch.Tensor, lists: torch.Tensor, margin: float = 1.0
) -> tuple[torch.Tensor, int]:
    """Mean of ``-log sigmoid(r_better - r_worse - margin * m)`` over a ranking's pairs, summed over rankings.

    Takes and gives what ``plackett_luce`` does. m is the difference of the rank numbers, so that ratings are given as
    ranks = -rating and m is the difference of ratings; ``margin`` (at least 0, else ``ValueError``) is in units of reward for
    one unit of rank. HelpSteer2-Preference has m = 1, 2, 3 for slightly, plainly and much better, and margin 1.
    Tied pairs are left out; a ranking tied throughout has loss 0. Convex.
    """
    check_number("margin", margin, "of at least 0", lambda value: value >= 0)
    pairs = pairs_of(rewards, ranks, lists)
    pairs = pairs.where(pairs.gap > 0)
    return pairs.mean(-F.logsigmoid(pairs.delta - margin * pairs.strength))
