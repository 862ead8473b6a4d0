"""Bradley-Terry with ties by a threshold (Rao and Kupper 1967, J. Am. Stat. Assoc. 62, 194-204)."""

import math

import torch
import torch.nn.functional as F

from kwise.objective.options import check_number
from kwise.objective.pairs import pairs_of


def rao_kupper(
    rewards: torch.Tensor, ranks: torch.Tensor, lists: torch.Tensor, tie_rate: float = 0.2
) -> tuple[torch.Tensor, int]:
    """Negative log-likelihood of win or tie, averaged over all pairs of a ranking, tied ones too, summed over rankings.

    Takes and gives what ``plackett_luce`` does, but equal ranks are a judgement here ("as good as each other"). With
    d = r_i - r_j and c = log theta: P(i wins) = sigmoid(d - c), P(tie) = (theta^2 - 1) sigmoid(d - c) sigmoid(-d - c). A judge
    who sees no difference below a threshold behaves so. A ranking tied throughout draws its rewards together. Convex.

    ``tie_rate``, above 0 and below 1 (else ``ValueError``): the probability p of a tie between equally good answers;
    theta = (1+p)/(1-p). Take the share of ties that the judge gives to pairs it finds close, for instance one answer against
    its paraphrase. The share of ties among all pairs is too low, as few of them are of equally good answers.
    """
    check_number("tie_rate", tie_rate, "above 0 and below 1", lambda p: 0 < p < 1)
    pairs = pairs_of(rewards, ranks, lists)
    c = math.log1p(tie_rate) - math.log1p(-tie_rate)
    log_ties = math.log(4 * tie_rate) - 2 * math.log1p(-tie_rate)  # theta^2 - 1 = 4p / (1-p)^2
    win, loss = F.logsigmoid(pairs.delta - c), F.logsigmoid(-pairs.delta - c)
    return pairs.mean(-torch.where(pairs.gap > 0, win, log_ties + win + loss))
