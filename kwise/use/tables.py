"""What the commands found, as tables and lines for a terminal."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:  # the command line imports this module before it knows whether anything heavy is needed
    from kwise.data.check import Report
    from kwise.objective.metrics import Difference, Draws, Metric
    from kwise.use.calibrate import Calibrated
    from kwise.use.evaluation import Data, Splits

COLUMNS = 2  # what a terminal of 80 columns shows whole
BASELINES = ("longer_wins", "better_model_wins")


def metrics_table(title: str, columns: "Mapping[str, Mapping[str, Metric]]") -> Table:
    """Metrics as rows, splits as columns; shares in per cent with their 95 % interval."""
    table = _table(title, "95 % interval", columns)
    names = list(dict.fromkeys(name for metrics in columns.values() for name in metrics))
    for rows in ([name for name in names if name not in BASELINES], BASELINES):
        for name in rows:
            cells = [metrics.get(name) for metrics in columns.values()]
            if any(each is not None and each.value is not None for each in cells):
                table.add_row(name, *(cell(name, each) for each in cells))
        table.add_section()
    return table


def evaluation_tables(data: "Data", found: "Mapping[str, Splits]") -> "Iterator[Table | str]":
    """The metrics of one data set by models: splits, or models and their differences, as columns; of a suite also what was
    published of others, and which figures could not be had."""
    from kwise.objective.metrics import compare
    from kwise.use.evaluation import LONGER

    yield from data.notes
    first, *others = found
    if not others:
        yield from _in_parts(data.name, {split: _metrics(own) for split, own in found[first].items()})
    for split in found[first] if others else ():
        columns = {model: _metrics(splits[split]) for model, splits in found.items()}
        if split == LONGER:
            yield metrics_table(data.name, {LONGER: columns[first]})
            continue
        yield from _in_parts(f"{data.name}, {split}", columns)
        gaps = {model: compare(found[first][split], found[model][split]) for model in others}
        table = _table(f"{data.name}, {split}: less {first}", "paired 95 %, P(better)", gaps)
        for name in next(iter(gaps.values())):
            if any(gap[name].value is not None for gap in gaps.values()):
                table.add_row(name, *(_difference_cell(name, gap[name]) for gap in gaps.values()))
        yield table
    if data.suite is not None:
        yield from _published(data, found)


def _published(data: "Data", found: "Mapping[str, Splits]") -> "Iterator[Table | str]":
    from kwise.use.evaluation import ALL

    figures, published = (data.suite.figures, data.suite.published) if data.suite is not None else ({}, ())
    ours = {
        model: {name: draws.value for name, draws in splits[ALL].items() if draws.value is not None}
        for model, splits in found.items()
    }
    missing = [name for name in figures if all(name not in own for own in ours.values())]
    if missing:
        yield f"left out, as these data do not hold all their parts: {', '.join(missing)}"
    names = [name for name in figures if any(name in each.figures for each in published)]
    table = Table(title=f"{escape(data.name)}, beside published figures", title_justify="left")
    for name in ("model", *names, "source"):
        table.add_column(name, overflow="fold")  # cut short, two models of one family look the same
    for model, own, source in [
        *((model, own, "here") for model, own in ours.items()),
        *((each.model, each.figures, each.source) for each in published),
    ]:
        cells = (f"{100 * own[name]:.1f}" if name in own else "-" for name in names)
        table.add_row(escape(model), *cells, escape(source))
    yield table


def _in_parts(title: str, columns: "Mapping[str, Mapping[str, Metric]]") -> Iterator[Table]:
    names = list(columns)
    for start in range(0, len(names), COLUMNS):
        yield metrics_table(title, {name: columns[name] for name in names[start : start + COLUMNS]})


def _metrics(own: "Mapping[str, Draws]") -> "dict[str, Metric]":
    return {name: draws.metric() for name, draws in own.items()}


def _table(title: str, corner: str, columns: Mapping[str, object]) -> Table:
    table = Table(title=escape(title), title_justify="left")
    table.add_column(corner, no_wrap=True)
    for name in columns:
        table.add_column(escape(name), justify="right", no_wrap=True)
    return table


def cell(name: str, metric: "Metric | None") -> str:
    """``value [low, high]`` of the metric of that name, as markup."""
    return "-" if metric is None or metric.value is None else _interval(name, metric.value, metric.low, metric.high, "")


def _difference_cell(name: str, gap: "Difference") -> str:
    if gap.value is None:
        return "-"
    text = _interval(name, gap.value, gap.low, gap.high, "+")
    return text if gap.better is None else f"{text}, {100 * gap.better:.0f} %"


def _interval(name: str, value: float, low: float | None, high: float | None, sign: str) -> str:
    factor, digits = _unit(name)
    number = f"{factor * value:{sign}.{digits}f}"
    if low is None or high is None:
        return number
    return f"{number} \\[{factor * low:{sign}.{digits}f}, {factor * high:{sign}.{digits}f}]"


def _unit(name: str) -> tuple[int, int]:
    """Shares in per cent with one digit, all others as they are with three."""
    plain = name.endswith("nll") or name.startswith("kendall_tau") or name == "length_correlation"
    return (1, 3) if plain else (100, 1)


def calibration_tables(result: "Calibrated", length: bool) -> "Iterator[Table | str]":
    """What ``kwise calibrate`` found: the fit, what it changes, and the reliability curve of pairs."""
    found = result.calibration
    yield f"{found.rankings} rankings, {found.pairs} pairs"
    yield f"temperature {found.temperature:.4g} (standard error {found.temperature_error:.2g})"
    yield f"centre {found.centre:.4g}"
    if length:
        slope = f"{found.length_slope:.4g} (standard error {found.length_slope_error:.2g})"
        yield f"length slope {slope} a unit of log(1 + characters)"
    table = Table("95 % interval", title="held-out rankings, after: other prompts' fit", title_justify="left")
    names = list(result.figures["before"]) if length else ["pair_nll", "ece", "top1_ece"]
    for stage in result.figures:
        table.add_column(stage, justify="right", no_wrap=True)
    for name in names:
        table.add_row(name, *(cell(name, metrics.get(name)) for metrics in result.figures.values()))
    yield table
    table = Table("sure by, %", title="reliability of pairs: mean confidence and share right", title_justify="left")
    for stage in result.curves:
        for title in ("pairs", "says, %", "is right, %"):
            table.add_column(f"{title}\n{stage}", justify="right", no_wrap=True)
    for bins in zip(*(kinds["pairs"] for kinds in result.curves.values()), strict=True):
        cells = [
            cell
            for each in bins
            for cell in (
                str(each.n),
                *("-" if share is None else f"{100 * share:.1f}" for share in (each.confidence, each.right)),
            )
        ]
        table.add_row(f"{100 * bins[0].low:.0f} to {100 * bins[0].high:.0f}", *cells)
    yield table


def report_tables(report: "Report") -> "Iterator[Table | str]":
    """The report of ``kwise data check``."""
    facts = Table(title=escape(report.file), title_justify="left", show_header=False)
    shares = {
        "longer_wins": "pairs in which the longer answer is better",
        "better_model_wins": "pairs in which the on-average-better model is better",
    }
    facts.add_row("rows", str(report.rows))
    facts.add_row("readable rankings", str(report.rankings))
    for name, value in report.facts.items():
        if name in shares:
            facts.add_row(shares[name], "-" if value is None else f"{100 * value:.1f} %")
        else:
            text = (
                ", ".join(f"{key}: {count}" for key, count in value.items()) if isinstance(value, dict) else str(value)
            )
            facts.add_row(name.replace("_", " "), text)
    for name, (_, median, p90, p99, longest) in report.lengths.items():
        facts.add_row(f"tokens, {name}", f"median {median}, 90 % {p90}, 99 % {p99}, longest {longest}")
    yield facts
    for title, defects in (("errors", report.errors), ("warnings", report.warnings)):
        if defects:
            table = Table("what", "rows", "lines", title=title, title_justify="left")
            for name, lines in defects.items():
                more = f" ... {len(lines) - 10} more" if len(lines) > 10 else ""
                table.add_row(name, str(len(lines)), ", ".join(map(str, lines[:10])) + more)
            yield table
    yield from report.messages[:10]
    if len(report.messages) > 10:
        yield f"... and {len(report.messages) - 10} more"
