"""Only the winner counts."""

import torch

from kwise.objective.plackett_luce import plackett_luce


def top1(rewards: torch.Tensor, ranks: torch.Tensor, lists: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Softmax cross-entropy of a ranking's winner against the rest, whose order is ignored, summed over rankings.

    Takes and gives what ``plackett_luce`` does, and is its first place alone (``top = 1``): several tied winners are drawn
    before all others in any order, and a ranking tied throughout has loss 0. At equal rewards one winner costs log K. Convex.
    """
    return plackett_luce(rewards, ranks, lists, top=1)
