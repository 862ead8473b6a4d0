"""The figure of training costs: reads what ``training.py --full --json training.json`` wrote.

    python benchmarks/figure.py training.json benchmarks/results/training        gives training.svg and training.png

Lines differ by colour (Okabe and Ito's, of unequal lightness), marker and a label at their end. Bars reach from the least to the
greatest repetition.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib
import measure
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ["#000000", "#0072B2", "#D55E00", "#E69F00"]
MARKERS = ["o", "s", "^", "D"]
TITLES = {"TRL": "TRL's RewardTrainer on pairs / kwise", "padded": "padded K-wise batch / kwise"}


def draw(axes: Axes, cells: list[dict[str, Any]], way: str) -> None:
    """Cost of ``way`` over kwise's against tokens of the prompt, a line for each K, and dashed what tokens alone would give."""
    sizes = sorted({cell["k"] for cell in cells})
    for k, colour, marker in zip(sizes, COLOURS, MARKERS, strict=False):
        own = sorted((cell for cell in cells if cell["k"] == k), key=lambda cell: cell["prompt"])
        prompts = [cell["prompt"] for cell in own]
        found = [measure.ratios(cell["seconds"][way], cell["seconds"]["kwise"]) for cell in own]
        by_tokens = [cell["tokens"][way] / cell["tokens"]["kwise"] for cell in own]
        middle = [median for median, _, _ in found]
        reach = [[median - least for median, least, _ in found], [most - median for median, _, most in found]]
        axes.errorbar(prompts, middle, reach, color=colour, marker=marker, markersize=5, linewidth=1.8, capsize=2)
        axes.plot(prompts, by_tokens, color=colour, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.annotate(
            f"K = {k}", (prompts[-1], middle[-1]), (8, 0), textcoords="offset points", va="center", color=colour
        )
    prompts = sorted({cell["prompt"] for cell in cells})
    axes.set_xscale("log")
    axes.set_yscale("log", base=2)
    axes.set_xticks(prompts, prompts)
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.axhline(1, color="#888888", linewidth=0.8)
    axes.set_title(TITLES[way], loc="left", fontsize=10)
    axes.set_xlabel("prompt, tokens")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path, help="what training.py wrote")
    parser.add_argument("out", type=Path, help="path of the figure, without .svg or .png")
    given = parser.parse_args()
    found = json.loads(given.json.read_text(encoding="utf-8"))
    header = found["header"]
    matplotlib.rcParams.update({"svg.hashsalt": "kwise", "axes.spines.top": False, "axes.spines.right": False})
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, way in zip(panels, TITLES, strict=True):
        draw(axes, found["cells"], way)
    panels[0].set_ylabel("CPU seconds a ranking, ratio")
    setting = f"{header['layers']} layers of SmolLM2-135M's shape, float32, {header['threads']} thread(s)"
    figure.supxlabel(
        f"dashed: ratio of tokens run. {setting}, {header['machine']}, {header['date']}", fontsize=7.5, color="#444444"
    )
    given.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(given.out.with_suffix(".svg"), metadata={"Date": None})
    figure.savefig(given.out.with_suffix(".png"), dpi=160)


if __name__ == "__main__":
    main()
