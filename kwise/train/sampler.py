"""Which rankings a step has, and which of them a process gets."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from kwise.data.packing import deal


class StepSampler(Sampler[list[int]]):
    """The rankings of every step, shuffled by seed and epoch; which of them a process gets (``deal``) changes nothing else."""

    def __init__(
        self, lengths: Sequence[int], per_step: int, seed: int, process: int = 0, num_processes: int = 1
    ) -> None:
        self.lengths, self.per_step, self.seed = lengths, per_step, seed
        self.process, self.num_processes, self.epoch = process, num_processes, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(len(self.lengths) / self.per_step)

    def __iter__(self) -> Iterator[list[int]]:
        return (shares[self.process] for shares in self.steps())

    def steps(self) -> Iterator[list[list[int]]]:
        """For every step the rankings of each process."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        for start in range(0, len(order), self.per_step):
            step = sorted(order[start : start + self.per_step])
            yield [[step[i] for i in own] for own in deal([self.lengths[i] for i in step], self.num_processes)]


class StepLoader(DataLoader[Any]):
    """A DataLoader that tells its sampler the epoch, as transformers' Trainer expects."""

    def set_epoch(self, epoch: int) -> None:
        """Hand the epoch to the sampler."""
        assert isinstance(self.batch_sampler, StepSampler)
        self.batch_sampler.set_epoch(epoch)
