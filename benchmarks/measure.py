"""What the benchmarks share: interleaved runs in CPU seconds, token counts, and how both are written down."""

import argparse
import datetime
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any

# read once, when torch loads its thread library: threads that spin while they wait would count as work
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import datasets
import torch
import transformers

from kwise.cli import keep_memory


def arguments(doc: str | None, layers: int, reps: int) -> argparse.ArgumentParser:
    """The options that every benchmark takes; ``doc`` becomes the help text."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    usual = f"{layers} unless given; SmolLM2 has 30" if layers else "all unless given"
    parser.add_argument("--layers", type=int, default=layers, help=f"decoder layers, {usual}")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads, 1 unless given")
    parser.add_argument("--reps", type=int, default=reps, help=f"timed repetitions, {reps} unless given")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write every single measurement to this file")
    return parser


def interleaved(steps: Mapping[str, Callable[[], float]], reps: int) -> dict[str, list[float]]:
    """The CPU seconds that ``reps`` calls of each step give, the steps taking turns.

    Taking turns spreads what the machine does besides over all steps alike. Nothing is warmed up here.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(reps):
        for name, step in steps.items():
            seconds[name].append(step())
    return seconds


def timed(step: Callable[[], Any]) -> float:
    """CPU seconds (all threads of this process) of a call."""
    # a trainer collects garbage when it starts, a fifth of a second over all that is imported: no cost of a ranking
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    start = time.process_time()
    step()
    return time.process_time() - start


class Process:
    """A process of its own. ``kept``: with glibc's memory kept as kwise's command line keeps it, else as it is by default.

    ``build(*given)`` makes an object there; ``call("name", *inputs)`` is the result of its method, ``timed`` its CPU seconds.
    """

    def __init__(self, kept: bool, build: Callable[..., Any], *given: Any) -> None:
        self.pool = ProcessPoolExecutor(1, get_context("spawn"), _start, (kept, build, given))

    def call(self, method: str, *inputs: Any) -> Any:
        return self.pool.submit(_call, method, inputs).result()

    def timed(self, method: str, *inputs: Any) -> float:
        seconds: float = self.pool.submit(_timed, method, inputs).result()
        return seconds


held: Any = None  # in a Process: what it built


def _start(kept: bool, build: Callable[..., Any], given: tuple[Any, ...]) -> None:
    global held
    if kept:
        keep_memory()
    held = build(*given)


def _call(method: str, inputs: tuple[Any, ...]) -> Any:
    return getattr(held, method)(*inputs)


def _timed(method: str, inputs: tuple[Any, ...]) -> float:
    return timed(partial(_call, method, inputs))


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Median, least and greatest of the ratios of runs that stood next to each other."""
    each = [a / b for a, b in zip(above, below, strict=True)]
    return [statistics.median(each), min(each), max(each)]


def show(found: Sequence[float]) -> str:
    """``ratios`` in a table's cell."""
    return "{:.2f} ({:.2f} to {:.2f})".format(*found)


def count_tokens(model: torch.nn.Module) -> list[int]:
    """A list that grows by the tokens, padding included, of every forward pass of ``model`` from now on."""
    counts: list[int] = []
    model.get_input_embeddings().register_forward_hook(lambda _, inputs, __: counts.append(inputs[0].numel()))
    return counts


def header(given: argparse.Namespace) -> dict[str, object]:
    """When, on what, with which versions and by which command."""
    cpu = Path("/proc/cpuinfo")
    models = [line for line in cpu.read_text().splitlines() if line.startswith("model name")] if cpu.exists() else []
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers", "trl", "kwise")]
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{models[0].split(': ')[1] if models else platform.processor()}, {os.cpu_count()} cores",
        "versions": ", ".join([f"Python {platform.python_version()}", *versions]),
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words]),
        **{name: value for name, value in vars(given).items() if name in ("layers", "threads", "reps")},
    }


def quiet(threads: int) -> None:
    """Set the number of threads, and keep progress bars and notes out of the tables."""
    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Markdown, each row as soon as ``rows`` yields it, and an empty line after the last."""
    for line in chain([columns, ["---"] * len(columns)], rows):
        print("| " + " | ".join(map(str, line)) + " |", flush=True)
    print()


def print_header(found: Mapping[str, object]) -> None:
    """``header`` as Markdown, a line each."""
    print("\n".join(f"{name}: {value}  " for name, value in found.items()) + "\n")


def write_json(path: Path | None, found: dict[str, Any]) -> None:
    """Write ``found`` to ``path``, if there is one."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
