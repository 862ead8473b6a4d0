"""Rewards in, a number out.

``plackett_luce``, ``all_pairs``   rewards, ranks, lists    pure functions, in ``OBJECTIVES``    give (loss sum, count)
``head``                           features, rankings       the convex fit of a linear head             gives weights
``reliability``                    rewards and ranks        confidence and outcome, in bins         gives curves and ECE terms
``metrics``                        rewards and rankings     sums and counts, divided once          gives Metrics with intervals
``calibration``                    rewards and ranks        maximum likelihood of a temperature     gives a Calibration
"""

from collections.abc import Callable

import torch

from kwise.objective.all_pairs import all_pairs as all_pairs
from kwise.objective.plackett_luce import plackett_luce as plackett_luce

OBJECTIVES: dict[str, Callable[..., tuple[torch.Tensor, int]]] = {
    "plackett_luce": plackett_luce,
    "all_pairs": all_pairs,
}
