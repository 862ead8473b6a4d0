"""Bradley-Terry on neighbouring ranks only."""

import torch
import torch.nn.functional as F

from kwise.objective.pairs import pairs_of


def adjacent_pairs(rewards: torch.Tensor, ranks: torch.Tensor, lists: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Mean of ``-log sigmoid(r_better - r_worse)`` over a ranking's pairs of neighbouring distinct ranks, summed over rankings.

    Takes and gives what ``plackett_luce`` does. Ranks 1, 2, 2, 5 have the pairs 1-2, 1-2, 2-5, 2-5. These pairs imply all
    others, and are the ones a judge errs on most. Tied pairs are left out; a ranking tied throughout has loss 0. At equal
    rewards the loss is log 2. Convex.
    """
    pairs = pairs_of(rewards, ranks, lists)
    pairs = pairs.where(pairs.gap == 1)
    return pairs.mean(-F.logsigmoid(pairs.delta))
