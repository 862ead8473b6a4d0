"""What the tests of single objectives share."""

from collections.abc import Callable

import pytest
import torch


@pytest.fixture
def loss_of() -> Callable[..., float]:
    """``loss_of(function, rewards, ranks, **options)``: the loss of a single ranking in float64."""

    def loss_of(function, rewards, ranks, **options):
        entries = torch.tensor(rewards, dtype=torch.float64), torch.tensor(ranks, dtype=torch.float64)
        loss, count = function(*entries, torch.zeros(len(ranks), dtype=torch.long), **options)
        assert count == 1
        return loss.item()

    return loss_of
