"""An audit drawn: one figure each as SVG for the page, and all of them on one sheet as PNG.

Models differ by colour (Okabe and Ito's palette, told apart by the colour-blind), marker and line; accusations are filled
marks, all others hollow. matplotlib comes with the extra ``audit``.
"""

import io
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from kwise.use.audit.effects import SMALLEST
from kwise.use.audit.features import AUTHOR

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS, LINES = "osD^vP", ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))
GREY = "#6B6B6B"
WIDTH = 4.5  # inches: type of 9 points stays readable when a phone shrinks it to 360 pixels
PAIRS = 20  # fewer say nothing worth a mark
AUTHORS = 6  # with the largest effects, beside the accused ones
STYLE = {
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "text.parse_math": False,  # a user's name with a dollar in it is no formula
    "svg.hashsalt": "kwise",  # so that one audit gives one file
}
Models = Mapping[str, Mapping[str, Any]]


def require_matplotlib() -> None:
    """Raises ``ValueError`` that names the extra if matplotlib is not there."""
    try:
        version("matplotlib")
    except PackageNotFoundError as error:
        raise ValueError("drawing an audit needs matplotlib: pip install 'kwise[audit]'") from error


def check_models(models: Collection[str]) -> None:
    """Raise ``ValueError`` for more models than the figures tell apart: before anything is scored."""
    if len(models) > len(COLOURS):
        raise ValueError(f"{len(models)} models: an audit's figures tell {len(COLOURS)} apart")


def draw_effects(axes: Any, models: Models) -> None:
    """A forest of every trait's effect, accusations filled."""
    names = [own["trait"] for own in _shown(models)]
    labels = {own["trait"]: own["label"] for own in _shown(models)}
    rows = {model: {own["trait"]: own for own in facts["effects"]} for model, facts in models.items()}
    _forest(
        axes, models, [labels[name] for name in names], {m: [own[name] for name in names] for m, own in rows.items()}
    )
    for y, own in enumerate(_shown(models)):
        axes.barh(y, 2 * own["smallest"], 1.0, -own["smallest"], color="#000000", alpha=0.06, lw=0)
    axes.set_xlabel("change of the reward, SD")


def _shown(models: Models) -> list[dict[str, Any]]:
    """The traits that some model's effect is known of; of the authors only the accused and the largest."""
    kept: dict[str, dict[str, Any]] = {}
    for facts in models.values():
        known = [own for own in facts["effects"] if own["value"] is not None]
        authors = sorted((own for own in known if own["trait"].startswith(AUTHOR)), key=lambda own: -abs(own["value"]))
        guilty = [own for own in authors if own["verdict"] == "bias"]
        for own in (
            *(own for own in known if not own["trait"].startswith(AUTHOR)),
            *guilty[: 2 * AUTHORS],
            *[own for own in authors if own not in guilty][: max(0, AUTHORS - len(guilty))],
        ):
            kept.setdefault(own["trait"], own)
    return list(kept.values())


def draw_probes(axes: Any, models: Models) -> None:
    """What each edit does to the reward."""
    probed = {model: facts for model, facts in models.items() if facts["probes"]}
    first, names = next(iter(probed.values()))["probes"], _probed(models)
    labels = [_of(first, name)["label"] for name in names]
    _forest(axes, probed, labels, {m: [_of(facts["probes"], name) for name in names] for m, facts in probed.items()})
    axes.axvspan(-SMALLEST[False], SMALLEST[False], color="#000000", alpha=0.06, lw=0)
    axes.set_xlabel("change of the reward, SD")


def _probed(models: Models) -> list[str]:
    """The probes that enough answers tell of."""
    rows = [own for facts in models.values() for own in facts["probes"] or () if own["value"] is not None]
    return list(dict.fromkeys(own["probe"] for own in rows))


def _of(probes: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    return next(own for own in probes if own["probe"] == name)


def _forest(axes: Any, models: Models, labels: Sequence[str], rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    step = 0.6 / max(len(rows), 1)
    for k, (model, own) in enumerate(rows.items()):
        for y, row in enumerate(own):
            if row["value"] is None:
                continue
            at = y + (k - (len(rows) - 1) / 2) * step
            guilty = row["verdict"] in ("bias", "blind")
            axes.plot([row["low"], row["high"]], [at, at], color=COLOURS[k], lw=1.6, ls=LINES[k])
            axes.plot(
                row["value"],
                at,
                MARKERS[k],
                color=COLOURS[k],
                mfc=COLOURS[k] if guilty else "white",
                ms=6,
                label=model if y == 0 else None,
            )
    axes.axvline(0, color=GREY, lw=0.8)
    axes.set_yticks(range(len(labels)), [_short(label) for label in labels])
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    _legend(axes, rows)


def _short(label: str) -> str:
    return label if len(label) <= 34 else label[:33] + "…"


def _legend(axes: Any, models: Mapping[str, object]) -> None:
    if len(models) > 1:
        from matplotlib.lines import Line2D

        handles = [
            Line2D([], [], color=COLOURS[k], marker=MARKERS[k], mfc="white", ls=LINES[k], label=_short(model))
            for k, model in enumerate(models)
        ]
        axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)


def draw_distribution(axes: Any, models: Models) -> None:
    """Rewards of best, middle and worst answers of the first model; with several models, of all answers of each."""
    if len(models) > 1:
        for k, facts in enumerate(models.values()):
            own = facts["distribution"]
            counts = [sum(each) for each in zip(*own["counts"].values(), strict=True)]
            centred = [(edge - own["mean"]) / own["within_prompt_sd"] for edge in own["edges"]]
            share = [count / max(sum(counts), 1) / (centred[1] - centred[0]) for count in counts]
            axes.stairs(share, centred, color=COLOURS[k], ls=LINES[k], lw=1.6)
        axes.set_xlabel("reward less its mean, within-prompt SD")
        axes.set_ylabel("density")
        _legend(axes, models)
        return
    own = next(iter(models.values()))["distribution"]
    looks = {"worst": ("#D55E00", ":"), "middle": (GREY, "--"), "best": ("#0072B2", "-")}
    for kind, (colour, line) in looks.items():
        total = max(sum(own["counts"][kind]), 1)
        if sum(own["counts"][kind]):
            axes.stairs(
                [100 * count / total for count in own["counts"][kind]],
                own["edges"],
                color=colour,
                ls=line,
                lw=1.6,
                label=f"{kind} answers",
            )
    axes.set_xlabel("reward, nats")
    axes.set_ylabel("share of answers, %")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2)


def draw_drift(axes: Any, models: Models) -> None:
    """Mean reward by place in the data, or by file where there are too few, each model's around its own mean."""
    for k, facts in enumerate(models.values()):
        rows = facts["drift"].get("place in the data", facts["drift"]["file"])
        own = facts["distribution"]
        values, lows, highs = (
            [((own["mean"] if row[key] is None else row[key]) - own["mean"]) / own["within_prompt_sd"] for row in rows]
            for key in ("value", "low", "high")
        )
        at = [i + 0.12 * k for i in range(len(rows))]
        axes.vlines(at, lows, highs, color=COLOURS[k], lw=1.6)
        axes.plot(at, values, MARKERS[k], color=COLOURS[k], mfc="white", ls=LINES[k], lw=0.8, ms=5)
        axes.set_xticks(range(len(rows)), [row["label"] if len(rows) > 2 else _short(row["label"]) for row in rows])
    axes.axhline(0, color=GREY, lw=0.8)
    axes.set_xlabel("place in the data, first to last")
    axes.set_ylabel("mean reward, SD")
    _legend(axes, models)


def draw_calibration(axes: Any, models: Models) -> None:
    """How often the model is right by how sure it is; with one model also after its temperature."""
    axes.plot([50, 100], [50, 100], color=GREY, lw=0.8)
    stages = [
        (name, stage, own["curve"])
        for name, facts in models.items()
        for stage, own in facts["calibration"]["stages"].items()
        if len(models) == 1 or stage == "as they are"
    ]
    for k, (_, _stage, curve) in enumerate(stages):
        bins = [each for each in curve if each["n"] >= 10]
        x, y = ([100 * each[key] for each in bins] for key in ("confidence", "right"))
        axes.plot(x, y, MARKERS[k], color=COLOURS[k], ls=LINES[k], mfc="white", lw=1.4, ms=5)
    axes.set_xlabel("how sure the model is of a pair, %")
    axes.set_ylabel("how often it is right, %")
    axes.set_xlim(48, 102)
    _legend(axes, dict.fromkeys(models, 0) if len(models) > 1 else {stage: 0 for _, stage, _ in stages})


def draw_length(axes: Any, models: Models) -> None:
    """Score against length within prompts, beside what the ranks do."""
    first = next(iter(models.values()))["length"]["curve"]
    axes.plot(
        [row["times"] for row in first],
        [row["rank"] for row in first],
        color="black",
        lw=1.2,
        ls=":",
        label="the ranks",
    )
    for k, (name, facts) in enumerate(models.items()):
        rows = facts["length"]["curve"]
        x, y = ([row[key] for row in rows] for key in ("times", "score"))
        axes.errorbar(
            x,
            y,
            [1.96 * row["score_error"] for row in rows],
            color=COLOURS[k],
            marker=MARKERS[k],
            mfc="white",
            ls=LINES[k],
            lw=1.4,
            ms=5,
            label=_short(name),
        )
    axes.axhline(0, color=GREY, lw=0.8)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("length, times the prompt's mean")
    axes.set_ylabel("within-prompt SD")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)


def _accuracy_rows(models: Models) -> dict[str, str]:
    """What there are enough pairs for on both sides, and its label."""
    layout = next(iter(models.values()))["layout"]
    enough = {
        own["trait"]: own["label"]
        for own in layout
        if min(own["with"]["n"], own["without"]["n"]) >= PAIRS and own["with"]["low"] is not None
    }
    return {"longer": "longer"} | enough


def draw_accuracy(axes: Any, models: Models) -> None:
    """Accuracy where the better answer has the trait (filled) and where the worse one has it (hollow)."""
    rows = _accuracy_rows(models)
    step = 0.6 / len(models)
    for k, facts in enumerate(models.values()):
        layout = {own["trait"]: (own["with"], own["without"]) for own in facts["layout"]}
        layout["longer"] = (facts["length"]["longer_better"], facts["length"]["shorter_better"])
        for y, name in enumerate(rows):
            at = y + (k - (len(models) - 1) / 2) * step
            for own, face in zip(layout[name], (COLOURS[k], "white"), strict=True):
                if own["value"] is not None:
                    if own["low"] is not None:
                        ends = [100 * own["low"], 100 * own["high"]]
                        axes.plot(ends, [at, at], color=COLOURS[k], lw=1.4, ls=LINES[k])
                    axes.plot(100 * own["value"], at, MARKERS[k], color=COLOURS[k], mfc=face, ms=6)
    axes.axvline(50, color=GREY, lw=0.8)
    axes.set_yticks(range(len(rows)), rows.values())
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(
        "pairs right, %: filled where the better answer is or has it,\nhollow where the worse one is or has it"
    )
    _legend(axes, models)


FIGURES: dict[str, tuple[str, Callable[[Any, Models], None]]] = {
    "effects": ("What moves the reward, quality held fixed", draw_effects),
    "probes": ("What edits do to the reward", draw_probes),
    "length": ("Length", draw_length),
    "accuracy": ("Accuracy by what the better answer has", draw_accuracy),
    "calibration": ("Calibration", draw_calibration),
    "distribution": ("Rewards", draw_distribution),
    "drift": ("Drift", draw_drift),
}


def drawable(audit: Mapping[str, Any]) -> list[str]:
    """The keys of ``FIGURES`` that this audit has something to show for."""
    models = audit["models"]
    empty = {"probes": not _probed(models), "length": not next(iter(models.values()))["length"]["curve"]}
    return [name for name in FIGURES if not empty.get(name)]


def svg(name: str, audit: Mapping[str, Any]) -> str:
    """One figure as an SVG document, without a title."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, _height(name, audit)), layout="constrained")
        FIGURES[name][1](figure.subplots(), audit["models"])
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None}, transparent=True)
    return out.getvalue()


def png(audit: Mapping[str, Any], heading: Sequence[str], file: Path) -> None:
    """All figures on one sheet, below the lines of ``heading``."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    names = drawable(audit)
    left, right = names[::2], names[1::2]
    heights = [
        max(_height(name, audit) for name in row if name) for row in zip(left, [*right, ""][: len(left)], strict=True)
    ]
    title, *facts = heading
    lines = [line for fact in facts for line in textwrap.wrap(fact, 115, subsequent_indent="    ")]
    top = 0.45 + 0.2 * len(lines)
    with rc_context(STYLE):
        figure = Figure(figsize=(2 * WIDTH + 0.3, sum(heights) + 0.4 * len(heights) + top), layout="constrained")
        parts: Any = figure.subfigures(2, 1, height_ratios=[top, sum(heights) + 0.4 * len(heights)])
        head, body = parts
        head.text(0.01, 0.95, title, fontsize=13, fontweight="bold", va="top")
        head.text(0.01, 0.95 - 0.3 / top, "\n".join(lines), va="top", linespacing=1.4)
        for row, panels in enumerate(body.subfigures(len(left), 1, height_ratios=heights, squeeze=False)[:, 0]):
            for panel, name in zip(panels.subfigures(1, 2), names[2 * row : 2 * row + 2], strict=False):
                panel.suptitle(FIGURES[name][0], x=0.02, ha="left", fontweight="bold", fontsize=10)
                FIGURES[name][1](panel.subplots(), audit["models"])
        figure.savefig(file, format="png", dpi=130)


def _height(name: str, audit: Mapping[str, Any]) -> float:
    models = audit["models"]
    legend = 0.2 * ((len(models) + 1) // 2) if len(models) > 1 else 0.0
    rows = {
        "effects": lambda: len(_shown(models)),
        "probes": lambda: len(_probed(models)),
        "accuracy": lambda: len(_accuracy_rows(models)) + 1,
    }
    if name in rows:
        return 0.8 + legend + rows[name]() * (0.17 + 0.08 * len(models))
    return 2.9 + legend
