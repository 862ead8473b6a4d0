"""TRL: ``GRPOTrainer(reward_funcs=reward_func("MODEL"), ...)``, and ``RLOOTrainer`` alike (trl 1.16)."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kwise.use.bindings.scorer import Scorer
from kwise.use.results import labels


def reward_func(
    model: str | os.PathLike[str], calibrated: bool = False, lower_bound: float | None = None
) -> Callable[..., list[float]]:
    """A reward function over the reward model in the folder ``model``, loaded now.

    TRL calls it with ``prompts`` and ``completions`` (texts, or lists of messages) and columns that it ignores. ``calibrated``
    and ``lower_bound``, errors and what is raised: ``Scorer``. Its ``__name__``, which TRL logs rewards under, is the
    folder's (of RUN/model that of RUN): what two functions of one name give, TRL logs as one.
    """
    scorer = Scorer(os.fspath(model), calibrated, lower_bound)

    def score(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
        return scorer(prompts, completions)

    (label,) = labels([os.fspath(model)]).values()
    score.__name__ = Path(label).name
    return score
