"""``kwise train --dry-run``: what a recipe will take, measured on a few of its own rows on this machine. Nothing is kept.

Memory grows in a straight line with the tokens of a row (with their square too under the dense mask), time with the tokens and
with the pairs of tokens that see each other. So a few real steps on short rows, through the whole path of training, give
the lines, and the lines give the rest.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
import torch
from accelerate import PartialState
from rich.console import Console
from scipy.optimize import nnls
from torch.utils.data import DataLoader
from transformers import PrinterCallback

from kwise.data.packing import split
from kwise.data.tally import Tally, seen_pairs, tally
from kwise.data.unique import encode_distinct
from kwise.model.attention import attention_of, hidden_states
from kwise.model.reward_model import TOKENS_PER_ROW, RewardModel, map_rows
from kwise.objective.design import CHUNK, IN_MEMORY
from kwise.records import EncodedRanking
from kwise.train.config import trial
from kwise.train.recipe import Recipe
from kwise.train.run import NO_ACCELERATOR, build_trainer, encode, load_base, read_data, trainer_config
from kwise.train.run_folder import RunFolder
from kwise.train.trainer import KwiseTrainer

PARTS = (0.05, 0.25, 0.5, 0.75)  # of the longest row: what is measured; the first warms up and makes optimiser state
ROUNDS = 3  # of the measurement: memory is watched in the first; of all the fastest counts, since other work only adds
ENOUGH = 1000  # rankings to take rows from
FAR = 16  # times the longest row: further than that no line is drawn
BACKWARD = 2  # a backward pass takes about twice a forward pass


@dataclass(frozen=True)
class Forecast:
    """``memory`` and ``available`` in bytes (of the process on a CPU, of the card on CUDA), ``longest_that_fits`` the largest
    ``tokens_per_row`` (looked for up to ``FAR`` times the longest row), ``seconds`` of training, ``scoring_seconds`` of one pass
    over the held-out rankings, in one process.

    ``measured`` are the rows (tokens, seconds, bytes at the peak) that it rests on.
    """

    rows: Tally
    steps: int
    memory: float
    available: float
    longest_that_fits: int
    seconds: float
    scoring_seconds: float
    measured: list[tuple[int, float, int]]

    def __str__(self) -> str:
        giga = 2**30
        far = self.longest_that_fits >= FAR * self.rows.longest_row
        more = f"rows {FAR} times as long" if far else f"rows of up to about {self.longest_that_fits} tokens"
        fits = "fits" if self.memory <= self.available else "DOES NOT FIT"
        return (
            f"{self.steps} steps; an epoch is {self.rows}\n"
            f"measured on rows of {', '.join(str(tokens) for tokens, _, _ in self.measured)} tokens:\n"
            f"memory {self.memory / giga:.2f} GiB at the longest row of {self.rows.longest_row} tokens: {fits} in "
            f"{self.available / giga:.1f} GiB; {more} would\n"
            f"time {_duration(self.seconds)} of training, {_duration(self.scoring_seconds)} whenever held-out rankings are scored"
        )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def forecast(recipe: Recipe, console: Console | None = None) -> Forecast:
    """Measure a few rows of ``recipe`` and say what the whole takes. It takes about as long as five of its longest rows.

    Raises ``ValueError`` and ``DataError`` as ``run.train`` does, and ``ValueError`` under torchrun: it speaks of one process.
    ``torch.OutOfMemoryError`` of a CUDA device that cannot even hold the short rows passes through.
    """
    if PartialState(cpu=NO_ACCELERATOR).num_processes > 1:
        raise ValueError("--dry-run measures one process: start it without torchrun")
    with TemporaryDirectory() as nowhere:
        recipe = replace(recipe, output=nowhere)
        folder = RunFolder(Path(nowhere), console or Console(stderr=True, emoji=False), main=True)
        config = None if recipe.method == "head" else trainer_config(recipe)  # its mistakes come out here too
        quiet = {"save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}
        rankings, held_out = read_data(recipe, texts=config is None)
        model = load_base(recipe, folder)
        scored = encode_distinct(model.encoder, held_out).encoded
        if config is None:
            pool = encode_distinct(model.encoder, rankings).encoded
            return _of_head(model, pool, scored, sum(len(ranking.ranks) for ranking in rankings), recipe)
        rehearsed = trainer_config(replace(recipe, trainer=trial(recipe.trainer) | quiet))
        trainer = build_trainer(model, encode(model, recipe, folder), [], recipe, rehearsed, folder, kind=Rehearsal)
        assert isinstance(trainer, Rehearsal)
        return _of_trainer(trainer, scored, recipe)


class Meter:
    """Peak memory and wall time of a block: ``with meter: ...`` sets ``seconds`` and ``peak`` (bytes).

    On CUDA the allocator's own count; on a CPU the resident set of the process at the ends of the block, and, while ``watched``,
    every two milliseconds. Watching takes a sixth of a core: what is timed should not be watched.
    """

    def __init__(self, device: torch.device, watched: bool = True) -> None:
        self.cuda = device.type == "cuda"
        self.watched = watched and not self.cuda
        self.process = psutil.Process()
        self.seconds, self.peak = 0.0, 0

    def __enter__(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        else:
            self.peak = self.process.memory_info().rss
        if self.watched:
            self.over = threading.Event()
            self.watch = threading.Thread(target=self._watch, daemon=True)
            self.watch.start()
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        if self.cuda:
            torch.cuda.synchronize()
            self.peak = torch.cuda.max_memory_allocated()
        self.seconds = time.perf_counter() - self.start
        if not self.cuda:
            self.peak = max(self.peak, self.process.memory_info().rss)
        if self.watched:
            self.over.set()
            self.watch.join()

    def _watch(self) -> None:
        while not self.over.wait(0.002):
            self.peak = max(self.peak, self.process.memory_info().rss)

    def available(self) -> float:
        """Bytes that this process may have in all."""
        if self.cuda:
            return float(torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved())
        free = psutil.virtual_memory().available
        limit, used = (Path("/sys/fs/cgroup", name) for name in ("memory.max", "memory.current"))
        if limit.exists() and used.exists() and (most := limit.read_text().strip()) != "max":  # of a container
            free = min(free, int(most) - int(used.read_text()))
        return float(free + self.process.memory_info().rss)


class Rehearsal(KwiseTrainer):
    """A ``KwiseTrainer`` that takes given steps in their order and measures each."""

    steps: list[list[int]]
    measured: list[tuple[int, float, int]]
    between: list[float]  # seconds from the end of one step's backward pass to the beginning of the next step
    ended: float

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The steps to rehearse."""
        return DataLoader(self.train_dataset, batch_sampler=self.steps, collate_fn=self.data_collator)

    def training_step(
        self, model: torch.nn.Module, inputs: list[EncodedRanking], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """As it is, with a meter around it."""
        meter = Meter(self.args.device, watched=len(self.measured) < len(PARTS))
        if self.measured:
            self.between.append(time.perf_counter() - self.ended)
        with meter:
            loss = super().training_step(model, inputs, num_items_in_batch)
        self.measured.append((sum(item.num_tokens for item in inputs), meter.seconds, meter.peak))
        self.ended = time.perf_counter()
        return loss


def _of_trainer(trainer: Rehearsal, scored: Sequence[EncodedRanking], recipe: Recipe) -> Forecast:
    found, args = trainer.tally(), trainer.args
    items = trainer.train_dataset
    steps_per_epoch, steps = args.steps_per_epoch(len(items)), args.last_step(len(items))
    items = items[:ENOUGH]
    rows = [_fill(items, part * found.longest_row) for part in PARTS * ROUNDS]
    trainer.train_dataset = [item for row in rows for item in row]
    ends = np.cumsum([0] + [len(row) for row in rows])
    trainer.steps = [list(range(a, b)) for a, b in pairwise(ends)]
    trainer.measured, trainer.between = [], []
    args.max_steps = len(trainer.steps)
    trainer.remove_callback(PrinterCallback)  # a rehearsal's loss and speed mean nothing
    trainer.train()

    measured = _best(trainer.measured)
    tokens, seconds, peaks = map(np.array, zip(*measured, strict=True))
    seen = [sum(map(seen_pairs, row)) for row in rows[: len(PARTS)]]
    dense = attention_of(trainer.decoder) == "reference"
    memory = _memory_line(tokens, peaks, dense)
    work = np.array([tokens, tokens.astype(float) ** 2 if dense else seen], dtype=float).T
    per_token, per_pair = nnls(work[1:], seconds[1:])[0]
    again = 1 / (1 + BACKWARD)  # of a whole pass: one more forward
    pairs = found.longest_row * found.run if dense else found.seen
    epoch = per_token * (found.run + again * found.again) + per_pair * pairs + found.waited * per_token
    meter = Meter(args.device, watched=False)
    with torch.no_grad(), meter:
        list(map_rows(trainer.decoder, rows[-1], hidden_states))
    forward = meter.seconds / sum(item.num_tokens for item in rows[-1])
    return Forecast(
        found,
        steps,
        memory(found.longest_row),
        meter.available(),
        _largest(memory, meter.available(), FAR * found.longest_row),
        steps * (epoch / steps_per_epoch + float(np.median(trainer.between))),
        forward * sum(item.num_tokens for item in scored),
        measured,
    )


def _of_head(
    model: RewardModel, pool: Sequence[EncodedRanking], scored: Sequence[EncodedRanking], rewards: int, recipe: Recipe
) -> Forecast:
    """Features of the frozen backbone; the fit on them is not measured: it takes seconds to minutes."""
    found = tally(pool, ([[i]] for i in range(len(pool))), TOKENS_PER_ROW)
    largest = max(pool, key=lambda item: item.num_tokens)
    taken: list[tuple[int, float, int]] = []
    bf16 = bool(recipe.trainer.get("bf16"))
    for part in PARTS * ROUNDS:
        own = _fill([largest], part * found.longest_row)
        meter = Meter(model.model.device, watched=len(taken) < len(PARTS))
        with torch.autocast(model.model.device.type, torch.bfloat16, enabled=bf16), meter:
            list(map_rows(model.model, own, hidden_states))
        taken.append((sum(item.num_tokens for item in own), meter.seconds, meter.peak))
    measured = _best(taken)
    tokens, seconds, peaks = map(np.array, zip(*measured, strict=True))
    memory = _memory_line(tokens, peaks, attention_of(model.model) == "reference")
    per_token = float(seconds[1:].sum() / tokens[1:].sum())
    # standardised features in float64 (those of the path and those of the last fit), a chunk with its temporaries, and the
    # matrices of a covariance
    width = model.model.config.get_text_config().hidden_size
    features = 8 * rewards * width
    fit = 2 * min(features, IN_MEMORY) + 3 * min(features, 8 * CHUNK) + 10 * 8 * width**2
    need = max(memory(found.longest_row), measured[-1][2] + fit)
    return Forecast(
        found,
        1,
        need,
        meter.available(),
        _largest(memory, meter.available(), FAR * found.longest_row),
        per_token * found.run,
        per_token * sum(item.num_tokens for item in scored),
        measured,
    )


def _best(taken: list[tuple[int, float, int]]) -> list[tuple[int, float, int]]:
    """Of all rounds the shortest time and the highest peak of each row."""
    rows = [taken[i :: len(PARTS)] for i in range(len(PARTS))]
    return [(own[0][0], min(s for _, s, _ in own), max(p for _, _, p in own)) for own in rows]


def _fill(items: Sequence[EncodedRanking], target: float) -> list[EncodedRanking]:
    """A row of about ``target`` tokens: rankings in order while they fit, then some responses of one that fills the rest."""
    row: list[EncodedRanking] = []
    free = int(target)
    for item in items:
        if item.num_tokens <= free:
            row.append(item)
            free -= item.num_tokens
    pieces = [piece for item in items for piece in split(item, free)]
    fitting = [piece for piece in pieces if piece.num_tokens <= free]
    if fitting:
        row.append(max(fitting, key=lambda piece: piece.num_tokens))
    return row or [min(pieces, key=lambda piece: piece.num_tokens)]


def _memory_line(tokens: np.ndarray, peaks: np.ndarray, dense: bool) -> Callable[[float], float]:
    """Least squares through the measured peaks but the first, warming up; with a square where the mask is N x N. Never falling.

    Raises ``ValueError`` where fewer than two lengths were measured: one point makes no line.
    """
    tokens, peaks = tokens[1:], peaks[1:]
    if len(set(tokens.tolist())) < 2:
        raise ValueError("these rankings are too few or too short to measure rows of different length on")
    columns = [np.ones(len(tokens)), tokens.astype(float)] + ([tokens.astype(float) ** 2] if dense else [])
    scale = np.array([column.max() for column in columns])
    found = nnls(np.array(columns).T / scale, peaks.astype(float))[0] / scale
    return lambda n: float(sum(each * n**power for power, each in enumerate(found)))


def _largest(memory: Callable[[float], float], available: float, bound: int) -> int:
    low, high = 0, bound + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if memory(middle) <= available else (low, middle)
    return low
