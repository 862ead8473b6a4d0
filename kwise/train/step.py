"""One optimiser step of one process: what is run, what it adds up to, whom to blame."""

import contextlib
from collections.abc import Callable, Iterator
from statistics import fmean
from typing import NamedTuple

import torch

from kwise.objective import Objective
from kwise.objective.plackett_luce import plackett_luce_nll
from kwise.records import EncodedRanking, Row


class Pass(NamedTuple):
    """A forward and backward pass: ``loss`` of the row's rewards; ``state`` is the random state to begin with, if not the present
    one."""

    row: Row
    loss: Callable[[torch.Tensor], torch.Tensor]
    state: list[torch.Tensor] | None = None


class Step:
    """The sums of one optimiser step in one process: ``total``, the loss, and ``nll``, both with ``weight`` for each ranking."""

    def __init__(self, weight: float, function: Objective, device: torch.device) -> None:
        self.weight, self.function = weight, function
        self.total, self.nll = torch.zeros((), device=device), torch.zeros((), device=device)
        self.seen: list[tuple[list[EncodedRanking], torch.Tensor]] = []

    def loss(self, items: list[EncodedRanking], rewards: torch.Tensor) -> torch.Tensor:
        """The weighted loss of ``items`` at their ``rewards`` [R], counted in the sums."""
        ranks, lists = ranks_and_lists(items, rewards.device)
        offsets = [each for item in items for each in _sum_to_zero(item.offsets or [0.0] * len(item.ranks))]
        utilities = rewards + rewards.new_tensor(offsets)
        loss = self.function(utilities, ranks, lists)[0] * self.weight
        self.total += loss.detach()
        self.nll += plackett_luce_nll(utilities.detach(), ranks, lists).sum() * self.weight
        self.seen.append((items, utilities.detach()))
        return loss

    def not_finite(self) -> list[EncodedRanking]:
        """The rankings whose own loss is not finite."""
        found = []
        for items, utilities in self.seen:
            for item, own in zip(items, utilities.split([len(item.ranks) for item in items]), strict=True):
                loss = self.function(own, *ranks_and_lists([item], own.device))[0]
                found += [] if loss.isfinite() else [item]
        return found


def _sum_to_zero(offsets: list[float]) -> list[float]:
    """No likelihood of rankings cares about their level, and ``centring_penalty`` is then of the rewards alone."""
    mean = fmean(offsets)
    return [each - mean for each in offsets]


def where(item: EncodedRanking) -> str:
    """The place a ranking was read from."""
    return f"{item.file}, line {item.line}" if item.file else "a ranking that was not read from a file"


def random_state(device: torch.device) -> list[torch.Tensor]:
    """What dropout draws from: the CPU's generator and that of ``device``."""
    own = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *own]


@contextlib.contextmanager
def random_state_of(state: list[torch.Tensor], device: torch.device) -> Iterator[None]:
    """Within it random numbers go on from ``state``; after it they go on as if nothing had been."""
    before = random_state(device)
    _set_random_state(state, device)
    try:
        yield
    finally:
        _set_random_state(before, device)


def _set_random_state(state: list[torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)


def ranks_and_lists(items: list[EncodedRanking], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """``ranks`` [R] and ``lists`` [R], as objectives take them."""
    ranks = torch.tensor([rank for item in items for rank in item.ranks], dtype=torch.float64, device=device)
    sizes = torch.tensor([len(item.suffixes) for item in items], device=device)
    return ranks, torch.repeat_interleave(torch.arange(len(items), device=device), sizes)
