"""Scores on a Ray cluster (``pip install 'kwise[ray]'``): a ``ray.data.Dataset``, or a file in a folder that all workers share.

A worker is an actor that loads the model once. One that dies is started again by Ray, and what it was at is scored again
by whoever is free.
"""

import warnings
from typing import Any

import numpy as np
import pyarrow
import ray.data
import torch

from kwise.model.reward_model import RewardModel
from kwise.use.score_shares import score_share
from kwise.use.scored_lines import WINDOW, columns_of, scored_rows, take_window

COUNTS = ("written", "kept", "shortened", "replaced")


def score_dataset(
    dataset: ray.data.Dataset,
    model: str,
    workers: int,
    calibrated: bool = False,
    c: float | None = None,
    choose: bool = False,
    dtype: str = "float32",
    **resources: Any,
) -> ray.data.Dataset:
    """``dataset`` with what ``score_file`` adds to its lines (rows of one shape), in order, computed when it is read.

    ``model`` is a folder that every worker can read, or a hub id. ``resources`` of a worker are those of ``map_batches``, say
    ``num_gpus=1``. Each row is scored in a batch of at most ``WINDOW``, and scores depend on that by rounding (1e-5). A row that
    cannot be scored stops the run with a ``DataError`` inside Ray's; its line is the row's place in its batch.
    """
    scored = dataset.map_batches(
        RowScorer,
        fn_constructor_args=(model, dtype, calibrated, c, choose),
        batch_size=WINDOW,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=workers),
        **resources,
    )
    scored.context.execution_options.preserve_order = True
    return scored


def score_file_on_ray(
    model: str, file: str, out: str, workers: int, shares: int = 64, dtype: str = "float32", **options: Any
) -> dict[str, int]:
    """``score_file(model, file, out, resume=True)`` by ``workers`` that share ``file``'s and ``out``'s folders: the same bytes.
    Gives its counts of what was scored in this call.

    ``options`` are ``calibrated``, ``c`` and ``choose``; all others are resources as of ``score_dataset``. The file is scored in
    so many ``shares`` (``kwise.use.score_shares``), which is also how many workers find work. Whatever dies, workers, this
    process or all machines, the same call with the same ``shares`` goes on after the windows that are whole.
    """
    how = {name: options.pop(name) for name in ("calibrated", "c", "choose") if name in options}
    done = ray.data.range(shares, override_num_blocks=shares).map_batches(
        ShareScorer,
        fn_constructor_args=(model, dtype, file, out, shares, how),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
        **options,
    )
    found = done.take_all()
    return {name: sum(row[name] for row in found) for name in COUNTS}


class RowScorer:
    """An actor: rows in, the same rows with scores out."""

    def __init__(self, model: str, dtype: str, calibrated: bool, c: float | None, choose: bool) -> None:
        self.model = RewardModel.from_pretrained(model, dtype=getattr(torch, dtype))
        self.how, self.choose = columns_of(self.model, calibrated, c), choose

    def __call__(self, batch: pyarrow.Table) -> pyarrow.Table:
        """At most ``WINDOW`` rows."""
        rows = enumerate(batch.to_pylist(), 1)
        window, problem = take_window(self.model, iter(rows), "a batch of the data set", self.choose)
        if problem:
            raise problem
        if cut := sum(removed > 0 for line in window for removed in line.encoded.cut):
            warnings.warn(f"{cut} responses were cut to {self.model.settings.max_length} tokens", stacklevel=2)
        found = scored_rows(self.model, window, "a batch of the data set", self.how, self.choose)
        return pyarrow.Table.from_pylist(list(found))


class ShareScorer:
    """An actor: numbers of shares in, their scores into files, ``COUNTS`` out."""

    def __init__(self, model: str, dtype: str, file: str, out: str, shares: int, how: dict[str, Any]) -> None:
        self.model = RewardModel.from_pretrained(model, dtype=getattr(torch, dtype))
        self.file, self.out, self.shares, self.how = file, out, shares, how

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One share."""
        (share,) = batch["id"].tolist()
        counts = score_share(self.model, self.file, self.out, share, self.shares, resume=True, **self.how)
        return {name: np.array([counts[name]]) for name in COUNTS}
