"""The head fit and its covariance at the widths of large models: seconds, and memory beside the features.

    python benchmarks/head.py --width 4096 --rankings 18300

makes rankings of 7 random feature vectors (float32, in a file that is memory-mapped; a tenth of Nectar with the numbers
above), and measures one pass with the Hessian (a Newton step is one pass), the solution of its linear system, and the
covariance of each kind. The numbers are noise: neither cost depends on them.
"""

import argparse
import platform
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kwise.losses import plackett_luce
from kwise.objective.covariance import KINDS, head_covariance
from kwise.objective.design import Design, Standardised, scaling
from kwise.objective.head import minimise

RESPONSES = 7


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--rankings", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        design = noise(Path(folder, "features.f32"), options.rankings, options.width)
        print(f"{options.rankings} rankings of {RESPONSES}, width {options.width}, {options.threads} threads, ", end="")
        print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}\n")
        print("| | seconds | peak memory, GB | in float64 matrices of width x width |")
        print("|---|---|---|---|")
        by = timed("means and deviations", options.width, lambda: scaling(design))
        data = Standardised(design, by)
        start = torch.zeros(design.width, dtype=torch.float64)
        step = timed(
            "one pass with the Hessian, and its system",
            options.width,
            lambda: minimise(data, plackett_luce, 0.1, start, 1e9),
        )
        weight = step[0].numpy() / by.scale
        for kind in KINDS:

            def covariance(kind: str = kind) -> np.ndarray:
                return head_covariance(design, plackett_luce, weight, np.zeros(0), 0.1, kind)

            timed(f"covariance, {kind}", options.width, covariance)


def noise(path: Path, rankings: int, width: int) -> Design:
    """Random features in a file, written in parts."""
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        for start in range(0, rankings, 1000):
            part = min(1000, rankings - start) * RESPONSES
            file.write(rng.standard_normal((part, width), dtype=np.float32).tobytes())
    features = np.memmap(path, dtype=np.float32, mode="r", shape=(rankings * RESPONSES, width))
    places = [list(range(RESPONSES * i, RESPONSES * (i + 1))) for i in range(rankings)]
    ranks = [(1 + rng.permutation(RESPONSES)).tolist() for _ in range(rankings)]
    return Design(features, places, ranks, [str(i) for i in range(rankings)])


def timed(name: str, width: int, work: Callable[[], Any]) -> Any:
    """Do the work and print its row."""
    before, most, done = anonymous(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.02):
            most = max(most, anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    found = work()
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    memory = most - before
    print(f"| {name} | {seconds:.1f} | {memory:.2f} | {memory * 1e9 / (8 * width**2):.1f} |", flush=True)
    return found


def anonymous() -> float:
    """Gigabytes of this process's own memory: pages of the mapped file, which the system may drop, are not counted."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("RssAnon:")[1].split()[0]) / 1e6


if __name__ == "__main__":
    main()
