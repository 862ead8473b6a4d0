"""Best of n by a reward model that has seen too little: gold reward against n, greedy and by lower bounds ``r - c * error``.

A world is a gold reward <theta, phi> over d = 32 directions and 128 rankings of K = 4 responses (Plackett-Luce of the gold
reward). The ranked responses vary by 1/j in direction j: the first 8 hold 95 % of the variance, the last ones hardly vary.
theta is normal, over all directions or over the first 8 alone, and scaled so that a ranked response's gold reward has
deviation 1.5. The proxy is kwise's head fit, its ridge chosen on held-out prompts; its error is the Fisher covariance's.

What is then chosen from are n responses
    covered          distributed as those that were ranked
    broad            that vary by 1/sqrt(j): every response goes a little where no ranking went
    odd anywhere     as ranked, but one in 50 varies by 1 in every direction
    odd elsewhere    as ranked, but one in 50 varies by 1 in every direction beyond the first 8

and gold either ignores what rankings did not show (theta is 0 beyond the first 8) or cares as much for it as for the rest: so
pessimism may win, lose, or have nothing to do. All numbers and the first three kinds were set before the first run. In a
trial of three worlds none of these had gold fall with n, since wide responses are wide in what gold cares for too; so the
fourth was added.

    python benchmarks/over_optimisation.py --figure benchmarks/results/over_optimisation        gives .svg and .png
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import measure
import numpy as np
import torch
from figure import COLOURS, MARKERS
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kwise.model.uncertainty import Uncertainty
from kwise.objective.covariance import head_uncertainty
from kwise.objective.design import Design
from kwise.objective.head import fit_head
from kwise.objective.plackett_luce import plackett_luce

D, COVERED, RANKINGS, K, SIZE = 32, 8, 128, 4, 1.5
RANKED = 1 / np.arange(1, D + 1)  # deviation in each direction
SIZES = 2 ** np.arange(11)  # n, 1 to 1024
PROMPTS = 16  # draws of n responses in a world
BOUNDS = (0.0, 0.5, 1.0, 2.0, 4.0)
WAYS = ["greedy", *(f"c = {c:g}" for c in BOUNDS[1:]), "gold"]
CANDIDATES = ("covered", "broad", "odd anywhere", "odd elsewhere")
GOLDS = {"ignored": "gold ignores what rankings did not show", "cared for": "gold cares for it as much"}


def candidates(rng: np.random.Generator, kind: str) -> np.ndarray:
    """[PROMPTS, largest n, D] features."""
    z = rng.normal(size=(PROMPTS, SIZES[-1], D))
    if kind == "broad":
        return z * np.sqrt(RANKED)
    odd = kind.startswith("odd") & (rng.random((PROMPTS, SIZES[-1], 1)) < 0.02)
    first = COVERED if kind == "odd elsewhere" else 0
    return z * np.where(odd & (np.arange(D) >= first), 1.0, RANKED)


def proxy(rng: np.random.Generator, theta: np.ndarray) -> tuple[np.ndarray, Uncertainty, float]:
    """The fitted head [D], its uncertainty, and the ridge."""
    features = rng.normal(size=(RANKINGS * K, D)) * RANKED
    utility = (features @ theta + rng.gumbel(size=len(features))).reshape(RANKINGS, K)
    places = np.arange(RANKINGS * K).reshape(RANKINGS, K).tolist()
    ranks = (1 + (-utility).argsort(1).argsort(1)).tolist()
    design = Design(features, places, ranks, [str(i) for i in range(RANKINGS)])
    fitted = fit_head({0: design}, plackett_luce)
    head = torch.from_numpy(fitted.weight)[None]
    uncertainty, _ = head_uncertainty(design, plackett_luce, head, fitted.coefficients, fitted.ridge, "fisher")
    return fitted.weight, uncertainty, fitted.ridge


def best_of(values: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """[P, n] what is gone by, [P, n] gold rewards -> [SIZES] mean gold reward of the first n's best, for each n."""
    return np.array([np.take_along_axis(gold, values[:, :n].argmax(1)[:, None], axis=1).mean() for n in SIZES])


def world(seed: int, gold: str) -> tuple[dict[str, np.ndarray], float]:
    """For each kind of candidates [WAYS, SIZES] mean gold reward over the world's prompts; and the ridge."""
    rng = np.random.default_rng(seed)
    theta = rng.normal(size=D)
    if gold == "ignored":
        theta[COVERED:] = 0
    theta *= SIZE / np.linalg.norm(theta * RANKED)
    weight, uncertainty, ridge = proxy(rng, theta)
    found = {}
    for kind in CANDIDATES:
        features = candidates(rng, kind)
        gold_rewards, rewards = features @ theta, features @ weight
        errors = uncertainty.errors(torch.from_numpy(features.reshape(-1, D))).view(PROMPTS, -1).double().numpy()
        ways = [rewards - c * errors for c in BOUNDS] + [gold_rewards]
        found[kind] = np.array([best_of(values, gold_rewards) for values in ways])
    return found, ridge


Found = dict[tuple[str, str], np.ndarray]  # by gold and candidates: [worlds, WAYS, SIZES]


def table_rows(found: Found) -> Iterator[list[str]]:
    shown = [int(np.flatnonzero(n == SIZES)[0]) for n in (1, 4, 16, 64, 256, 1024)]
    for (gold, kind), own in found.items():
        middle, doubt = own.mean(0), own.std(0, ddof=1) / np.sqrt(len(own))
        for way, m, s in zip(WAYS, middle, doubt, strict=True):
            yield [gold, kind, way, *(f"{m[i]:.2f} ± {s[i]:.2f}" for i in shown)]


def against_greedy_rows(found: Found) -> Iterator[list[str]]:
    """At the largest n: regret to the best response, and each bound less greedy in the same worlds."""
    for (gold, kind), own in found.items():
        last = own[:, :, -1]
        regret = last[:, -1] - last[:, 0]
        gains = last[:, 1:-1] - last[:, :1]
        cells = np.column_stack([regret, gains])
        middle, doubt = cells.mean(0), cells.std(0, ddof=1) / np.sqrt(len(cells))
        yield [gold, kind, *(f"{m:.2f} ± {s:.2f}" for m, s in zip(middle, doubt, strict=True))]


def draw(axes: Axes, own: np.ndarray) -> None:
    middle, doubt = own.mean(0), own.std(0, ddof=1) / np.sqrt(len(own))
    colours, markers = [*COLOURS, "#56B4E9"], [*MARKERS, "v"]
    for way, m, s, colour, marker in zip(WAYS, middle, doubt, colours, markers, strict=False):
        axes.errorbar(SIZES, m, s, label=way, color=colour, marker=marker, markersize=4, linewidth=1.5, capsize=2)
    axes.plot(SIZES, middle[-1], color="#888888", linewidth=1, linestyle=(0, (4, 3)), label="best of n by gold")
    axes.set_xscale("log", base=2)
    ticks = SIZES[::2]
    axes.set_xticks(ticks, [str(n) for n in ticks])
    axes.minorticks_off()
    axes.set_ylim(-0.4, 1.15 * middle[:-1].max())  # the best by gold may leave the picture
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)


def draw_all(found: Found, path: Path, facts: str) -> None:
    matplotlib.rcParams.update({"svg.hashsalt": "kwise", "axes.spines.top": False, "axes.spines.right": False})
    figure = Figure(figsize=(12.5, 6.2), layout="constrained")
    panels = figure.subplots(len(GOLDS), len(CANDIDATES))
    for row, gold in zip(panels, GOLDS, strict=True):
        for axes, kind in zip(row, CANDIDATES, strict=True):
            draw(axes, found[gold, kind])
            axes.set_title(f"{kind}\n{GOLDS[gold]}", loc="left", fontsize=8.5)
        row[0].set_ylabel("gold reward of the response chosen")
    for axes in panels[-1]:
        axes.set_xlabel("n")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=6, frameon=False)
    figure.supxlabel(facts, fontsize=7.5, color="#444444")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    figure.savefig(path.with_suffix(".png"), dpi=160)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="torch's threads, 1 unless given")
    parser.add_argument("--reps", type=int, default=200, help="worlds drawn of each kind of gold, 200 unless given")
    parser.add_argument("--figure", type=Path, help="path of the figure, without .svg or .png")
    given = parser.parse_args()
    measure.quiet(given.threads)
    header = measure.header(given)
    measure.print_header(header)
    found: Found = {}
    for gold in GOLDS:
        worlds = [world(seed, gold) for seed in range(given.reps)]
        found.update({(gold, kind): np.array([own[kind] for own, _ in worlds]) for kind in CANDIDATES})
        ridges, counts = np.unique([ridge for _, ridge in worlds], return_counts=True)
        chosen = ", ".join(f"{ridge:g}: {count}" for ridge, count in zip(ridges, counts, strict=True))
        print(f"ridges chosen, {gold}: {chosen}  ")
    print("\nmean gold reward of the response chosen from n, and its standard error over worlds\n")
    columns = ["beyond rankings", "candidates", "chosen by", *(f"n = {n}" for n in (1, 4, 16, 64, 256, 1024))]
    measure.print_table(columns, table_rows(found))
    print(f"n = {SIZES[-1]}: regret of greedy to the best of n, and gold reward gained by each bound over greedy\n")
    columns = ["beyond rankings", "candidates", "regret of greedy", *WAYS[1:-1]]
    measure.print_table(columns, against_greedy_rows(found))
    if given.figure:
        draw_all(found, given.figure, f"{given.reps} worlds, bars: one standard error. {header['date']}")


if __name__ == "__main__":
    main()
