"""The pairwise estimator MLE_2 of arXiv 2301.11270 (also InstructGPT's loss, arXiv 2203.02155)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from kwise.objective.options import by_number, check_number, check_numbers, check_weights
from kwise.objective.pairs import pairs_of


def all_pairs(
    rewards: torch.Tensor,
    ranks: torch.Tensor,
    lists: torch.Tensor,
    gap_weights: Sequence[float] = (1.0,),
    smoothing: float | Sequence[float] = 0.0,
) -> tuple[torch.Tensor, int]:
    """Bradley-Terry loss averaged over a ranking's pairs, summed over rankings.

    Takes and gives what ``plackett_luce`` does. A ranking's loss is the mean of ``-log sigmoid(r_better - r_worse)`` over its
    pairs with different ranks, so that every ranking weighs the same whatever its K (InstructGPT divides by K(K-1)/2 too).
    Tied pairs are left out; a ranking whose responses are all tied has loss 0. At equal rewards the loss is log 2. Convex.

    ``gap_weights``: the weight of a pair one, two, ... distinct ranks apart; the last one goes on. They are taken as they are
    and the sum is still divided by the number of pairs. At least 0, not all 0.

    ``smoothing``: the probability e that the judge has a pair the wrong way round, one number or one for each gap (the last
    goes on); at least 0 and below 0.5. A pair's loss is ``-(1-e) log sigmoid(d) - e log sigmoid(-d)``, which is least at
    d = log((1-e)/e) and not at infinity. If the judge agrees with itself on a share q of repeated pairs, e solves
    (1-e)^2 + e^2 = q. ``ValueError`` for other values.
    """
    check_weights("gap_weights", gap_weights)
    check = check_number if isinstance(smoothing, float | int) else check_numbers
    check("smoothing", smoothing, "of at least 0 and below 0.5", lambda e: 0 <= e < 0.5)
    wrong = [smoothing] if isinstance(smoothing, float | int) else smoothing

    pairs = pairs_of(rewards, ranks, lists)
    pairs = pairs.where(pairs.gap > 0)
    weight = by_number(gap_weights, pairs.gap, rewards.dtype)
    e = by_number(wrong, pairs.gap, rewards.dtype)
    return pairs.mean(weight * (e * pairs.delta - F.logsigmoid(pairs.delta)))  # log sigmoid(-d) = log sigmoid(d) - d
