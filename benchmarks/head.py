"""The head fit and its covariance at the widths of large models: seconds, and memory beside the features.

    python benchmarks/head.py --width 4096 --rankings 18300
    python benchmarks/head.py --width 4096 --rankings 183000 --fit --folder /somewhere/with/25GB

makes rankings of 7 random feature vectors (float32, in a file that is memory-mapped; a tenth of Nectar with the numbers of
the first line, all of it with those of the second), ranked by a Plackett-Luce judge whose utility is a known head of
length 1.5. The first measures one pass with the Hessian (a Newton step is one pass) and its linear system, and the covariance of
each kind. The second fits the head at one ridge, as ``kwise fit`` does at each of some ten, and compares it with the known
one: the squared error ought to be the trace of the inverse Fisher information.
"""

import argparse
import platform
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kwise.losses import plackett_luce
from kwise.objective.covariance import KINDS, head_covariance
from kwise.objective.design import Design, Standardised, scaling
from kwise.objective.head import fit_head, minimise

RESPONSES = 7
RIDGE = 1e-5


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--rankings", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--fit", action="store_true", help="fit the head, at one ridge")
    parser.add_argument("--folder", help="where the features are written; the system's temporary folder unless given")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        design, head = judged(Path(folder, "features.f32"), options.rankings, options.width)
        print(f"{options.rankings} rankings of {RESPONSES}, width {options.width}, {options.threads} threads, ", end="")
        print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}\n")
        print("| | seconds | peak memory, GB | in float64 matrices of width x width |")
        print("|---|---|---|---|")
        if options.fit:
            found = timed(f"fit, ridge {RIDGE}", options.width, lambda: fit_head({0: design}, plackett_luce, [RIDGE]))
            error = float(np.square(found.weight - head).sum())
            print(f"\nlargest gradient {found.gradient:.1e}; squared error {error:.5f}, ", end="", flush=True)
            root = covariance(design, found.weight, "fisher")
            print(f"expected {np.square(root).sum():.5f}")
            return
        by = timed("means and deviations", options.width, lambda: scaling(design))
        data = Standardised(design, by)
        start = torch.zeros(design.width, dtype=torch.float64)
        step = timed(
            "one pass with the Hessian, and its system",
            options.width,
            lambda: minimise(data, plackett_luce, RIDGE, start, 1e9),
        )
        weight = step[0].numpy() / by.scale
        for kind in KINDS:
            timed(f"covariance, {kind}", options.width, partial(covariance, design, weight, kind))


def covariance(design: Design, weight: np.ndarray, kind: str) -> np.ndarray:
    """[d, d] root of the fitted head's covariance."""
    return head_covariance(design, plackett_luce, weight, np.zeros(0), RIDGE, kind)


def judged(path: Path, rankings: int, width: int) -> tuple[Design, np.ndarray]:
    """Random features in a file, written in parts, their ranks, and the head [d] that the judge goes by."""
    rng = np.random.default_rng(0)
    head = rng.standard_normal(width)
    head *= 1.5 / np.linalg.norm(head)
    ranks: list[list[int]] = []
    with path.open("wb") as file:
        for start in range(0, rankings, 1000):
            part = rng.standard_normal((min(1000, rankings - start) * RESPONSES, width), dtype=np.float32)
            file.write(part.tobytes())
            # the order of utilities with Gumbel noise is Plackett-Luce's (Yellott 1977)
            utility = (part @ head + rng.gumbel(size=len(part))).reshape(-1, RESPONSES)
            ranks += (1 + (-utility).argsort(1).argsort(1)).tolist()
    features = np.memmap(path, dtype=np.float32, mode="r", shape=(rankings * RESPONSES, width))
    places = [list(range(RESPONSES * i, RESPONSES * (i + 1))) for i in range(rankings)]
    return Design(features, places, ranks, [str(i) for i in range(rankings)]), head


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
