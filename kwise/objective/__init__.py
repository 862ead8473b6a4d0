"""Rewards in, a number out.

``objective(name, **options)``  rewards, ranks, lists   a pure function of ``OBJECTIVES``          gives (loss sum, count)
``centring``                    rewards                 a soft zero point                          gives a penalty
``options``                     an objective's options  what they may hold                         gives values by number
``ragged``, ``pairs``           rewards, ranks, lists   one table; the pairs of every ranking      give tensors for objectives
``design``                      features, rankings      standardised, in chunks of whole rankings  gives a design matrix
``head``                        features, rankings      the convex fit of a linear head            gives weights
``covariance``                  features, rankings      Fisher information, sandwich               gives the head's covariance
``reliability``                 rewards and ranks       confidence and outcome, in bins            gives curves and ECE terms
``metrics``                     rewards and rankings    sums and counts, divided once              gives Metrics with intervals
``calibration``                 rewards and ranks       maximum likelihood of a temperature        gives a Calibration
"""

import difflib
from collections.abc import Callable
from inspect import signature
from typing import Any

import torch

from kwise.objective.adjacent_pairs import adjacent_pairs as adjacent_pairs
from kwise.objective.all_pairs import all_pairs as all_pairs
from kwise.objective.centring import centring_penalty as centring_penalty
from kwise.objective.davidson import davidson as davidson
from kwise.objective.margin_pairs import margin_pairs as margin_pairs
from kwise.objective.plackett_luce import plackett_luce as plackett_luce
from kwise.objective.rao_kupper import rao_kupper as rao_kupper
from kwise.objective.scaled_pairs import scaled_pairs as scaled_pairs
from kwise.objective.top1 import top1 as top1

Objective = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, int]]

OBJECTIVES: dict[str, Callable[..., tuple[torch.Tensor, int]]] = {
    "plackett_luce": plackett_luce,
    "top1": top1,
    "all_pairs": all_pairs,
    "adjacent_pairs": adjacent_pairs,
    "margin_pairs": margin_pairs,
    "scaled_pairs": scaled_pairs,
    "rao_kupper": rao_kupper,
    "davidson": davidson,
}


def objective(name: str, /, **options: Any) -> Objective:
    """The function of rewards, ranks and lists that ``name``, a key of ``OBJECTIVES``, and its options make.

    Options are those of its signature and ``centring`` (see ``centring_penalty``). Raises ``ValueError`` for an unknown name;
    and for unknown options and illegal values, with a line ``option: what is wrong`` for each.
    """
    if name not in OBJECTIVES:
        raise ValueError(f"objective: '{name}' is not one of {', '.join(OBJECTIVES)}{_nearest(name, list(OBJECTIVES))}")
    function = OBJECTIVES[name]
    nothing = torch.zeros(0)
    mistakes = []
    legal = [*list(signature(function).parameters)[3:], "centring"]
    for option, value in options.items():
        if option not in legal:
            mistakes.append(f"{option}: '{name}' takes only {', '.join(legal)}{_nearest(option, legal)}")
            continue
        try:  # each option is checked where it is used
            if option == "centring":
                centring_penalty(nothing, nothing, value)
            else:
                function(nothing, nothing, nothing, **{option: value})
        except ValueError as error:
            mistakes.append(str(error))
    if mistakes:
        raise ValueError("\n".join(mistakes))
    own = {option: value for option, value in options.items() if option != "centring"}
    centring = options.get("centring", 0.0)

    def chosen(rewards: torch.Tensor, ranks: torch.Tensor, lists: torch.Tensor) -> tuple[torch.Tensor, int]:
        loss, num_rankings = function(rewards, ranks, lists, **own)
        return loss + centring_penalty(rewards, lists, centring) if centring else loss, num_rankings

    return chosen


def _nearest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, 1, 0.5)
    return f"; did you mean '{near[0]}'?" if near else ""
