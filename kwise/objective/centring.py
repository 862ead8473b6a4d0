"""A soft zero point: no likelihood of rankings cares about a ranking's level, so this penalty may set it."""

import torch

from kwise.objective.options import check_number


def centring_penalty(rewards: torch.Tensor, lists: torch.Tensor, centring: float) -> torch.Tensor:
    """``centring * (sum_k r_k)^2`` of every ranking, summed: the sum-to-zero term of arXiv 2505.07271, which uses 1e-4 to 1e-2.

    ``rewards`` and ``lists`` [R] as in ``plackett_luce``. Convex. Raises ``ValueError`` unless ``centring`` is at least 0.
    """
    check_number("centring", centring, "of at least 0", lambda value: value >= 0)
    names, owner = lists.unique(return_inverse=True)
    sums = rewards.new_zeros(len(names)).index_add(0, owner, rewards)
    return centring * sums.square().sum()
