"""An audit as files: one HTML page that needs nothing else, the same as JSON, and a sheet of its figures as PNG."""

import base64
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from kwise.use.audit import accusations
from kwise.use.audit.figures import COLOURS, FIGURES, drawable, png, require_matplotlib, svg

WORDS = {
    "bias": ("▲", "bias"),
    "blind": ("▲", "blind to it"),
    "none": ("●", "none worth naming"),
    "unclear": ("◌", "cannot tell"),
    "rare": ("\u2013", "too rare to tell"),
}
PROBE_WORDS = WORDS | {"bias": ("▲", "fooled"), "none": ("●", "as it should be")}


def outputs(out: Path) -> list[Path]:
    """The three files that ``write`` makes. Raises ``ValueError`` for another name than .html, and without matplotlib."""
    require_matplotlib()
    if out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"{out}: the page's name must end in .html; .json and .png are written beside it")
    return [out, out.with_suffix(".json"), out.with_suffix(".png")]


def refuse_foreign(out: Path) -> None:
    """Raise ``ValueError`` for a file beside the page ``out`` that no audit wrote, and that an audit would write over."""
    for file in outputs(out)[1:]:
        if file.exists() and not _is_audit(out.with_suffix(".json")):
            raise ValueError(
                f"{file} exists and is of no audit, which would be written over it: choose another name than {out}"
            )


def _is_audit(file: Path) -> bool:
    try:
        return bool({"kwise", "rules", "models"} <= json.loads(file.read_text(encoding="utf-8")).keys())
    except (OSError, ValueError, AttributeError):  # not there, not JSON, or no table
        return False


def write(audit: Mapping[str, Any], out: Path) -> list[Path]:
    """Write ``out`` (HTML) and, beside it, the same name with .json and .png; gives the three. Texts of the data are escaped:
    they can be no markup, and the page forbids itself scripts and the network."""
    files = outputs(out)
    out.write_text(page(audit), encoding="utf-8")
    files[1].write_text(json.dumps(audit, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    png(audit, heading(audit), files[2])
    return files


def page(audit: Mapping[str, Any]) -> str:
    """The HTML page."""
    environment = Environment(
        loader=PackageLoader("kwise.use.audit", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., Any]] = {
        "share": partial(interval, factor=100, digits=1, unit=" %"),
        "number": partial(interval, digits=3),
        "signed": partial(interval, digits=2, sign="+"),
        "plain": plain,
        "p": p_value,
        "accusations": accusations,
        "sentence": sentence,
    }
    environment.filters |= filters
    figures = {
        name: {
            "title": FIGURES[name][0],
            "source": "data:image/svg+xml;base64," + base64.b64encode(svg(name, audit).encode()).decode(),
        }
        for name in drawable(audit)
    }
    return environment.get_template("report.html").render(
        audit=audit, figures=figures, words=WORDS, probe_words=PROBE_WORDS, colours=COLOURS, heading=heading(audit)
    )


def heading(audit: Mapping[str, Any]) -> list[str]:
    """What the sheet says above its figures: the title, the data, and of what each model is accused."""
    data = audit["data"]
    lines = [
        f"Audit of {', '.join(audit['models'])}",
        f"{data['rankings']} rankings, {data['answers']} answers, {data['prompts']} prompts: {', '.join(data['names'])}",
    ]
    for name, model in audit["models"].items():
        found = [f"{own['label']} {interval(own, unit=' SD', sign='+')}" for own in accusations(model)]
        more = f", and {len(found) - 5} more" if len(found) > 5 else ""
        lines.append(f"{name}: " + (", ".join(found[:5]) + more if found else "accused of nothing"))
    return lines


def interval(own: Mapping[str, Any] | None, factor: float = 1, digits: int = 2, unit: str = "", sign: str = "") -> str:
    """``value [low, high]`` of a metric or an estimate; a dash where there is none."""
    if own is None or own["value"] is None:
        return "\u2013"
    value, *ends = (
        None if own[key] is None else round(factor * own[key], digits) + 0.0 for key in ("value", "low", "high")
    )
    text = f"{value:{sign}.{digits}f}"
    if None not in ends:
        text += f" [{ends[0]:{sign}.{digits}f}, {ends[1]:{sign}.{digits}f}]"
    return (text + unit).replace("-", "\u2212")


def plain(value: float, digits: int = 2) -> str:
    """A bare number with a proper minus."""
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "\u2212")


def p_value(p: float) -> str:
    """With two digits, never as 0."""
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def sentence(own: Mapping[str, Any]) -> str:
    """An accusation in one sentence, with how sure it is."""
    size, sure = interval(own, unit=" SD", sign="+"), f"adjusted p {p_value(own['adjusted'])}"
    if "probe" in own:
        if own["verdict"] == "blind":
            return f"Does not notice: {own['label']} (change {size}, n = {own['n']})."
        direction = "raises" if own["value"] > 0 else "lowers"
        return f"An edit {direction} its reward: {own['label']} ({size}, {sure}, n = {own['n']})."
    liked = "Rewards" if own["value"] > 0 else "Marks down"
    unit = " for one within-prompt SD more" if own["graded"] else ""
    return f"{liked} {own['label']}, quality and all else held fixed: {size}{unit}, {sure}.{_judges(own)}"


def _judges(own: Mapping[str, Any]) -> str:
    """Whether the judges themselves go further than the model, or less far, if that is sure."""
    left = own["at_equal_score"]
    if left is None or left["low"] <= 0 <= left["high"]:
        return ""
    further = (left["value"] > 0) == (own["value"] > 0)
    size = interval(left, unit=" SD of the rank", sign="+")
    return f" The judges go {'even further' if further else 'less far'}: {size} at equal reward."
