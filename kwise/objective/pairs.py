"""The pairs of every ranking as flat vectors, for objectives that are sums over pairs."""

from dataclasses import dataclass

import torch

from kwise.objective.ragged import by_list


@dataclass(frozen=True)
class Pairs:
    """P pairs of responses of the same ranking, out of L rankings.

    ``delta`` [P] is the reward of the better response less that of the worse one; of tied responses, that of the earlier less
    that of the later. ``gap`` [P] (int64) counts how many distinct ranks they are apart (0 is tied, 1 neighbours), ``strength``
    [P] (dtype of ``delta``) is the difference of their rank numbers. ``owner`` [P] says whose pair it is.
    """

    delta: torch.Tensor
    gap: torch.Tensor
    strength: torch.Tensor
    owner: torch.Tensor
    num_rankings: int

    def where(self, chosen: torch.Tensor) -> "Pairs":
        """The pairs at which ``chosen`` [P] is true."""
        delta, gap, strength, owner = (each[chosen] for each in (self.delta, self.gap, self.strength, self.owner))
        return Pairs(delta, gap, strength, owner, self.num_rankings)

    def mean(self, loss: torch.Tensor) -> tuple[torch.Tensor, int]:
        """``loss`` [P] averaged over each ranking's pairs and summed over rankings, and L. A ranking without pairs adds 0."""
        counts = torch.bincount(self.owner, minlength=self.num_rankings)
        return (loss / counts[self.owner]).sum(), self.num_rankings


def pairs_of(rewards: torch.Tensor, ranks: torch.Tensor, lists: torch.Tensor) -> Pairs:
    """All K(K-1)/2 pairs of every ranking, each once, tied ones included. Takes what an objective does."""
    table, rank = by_list(rewards, ranks, lists)
    mine, other = rank.unsqueeze(2), rank.unsqueeze(1)  # [L, K, 1] and [L, 1, K]
    tied = mine == other
    pair = ((mine < other) | tied.triu(1)) & torch.isfinite(other)
    leads = ~tied.tril(-1).any(2)  # the first of its rank
    level = (leads.unsqueeze(1) & (other < mine)).sum(2)  # distinct ranks that are better
    owner, better, worse = pair.nonzero(as_tuple=True)
    return Pairs(
        delta=table[owner, better] - table[owner, worse],
        gap=level[owner, worse] - level[owner, better],
        strength=(rank[owner, worse] - rank[owner, better]).to(rewards.dtype),
        owner=owner,
        num_rankings=len(table),
    )
