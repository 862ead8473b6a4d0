"""A diagnosis as tables, and as JSON."""

from typing import Any

from rich.markup import escape
from rich.table import Table

from kwise.use.doctor import Diagnosis
from kwise.use.doctor.readers import READERS, Reading, activation


def tables(diagnosis: Diagnosis) -> list[Table]:
    """What every reader reads, then errors, then warnings."""
    found = [_readings(diagnosis)] if diagnosis.readings else []
    for level in ("error", "warning"):
        rows = [finding for finding in diagnosis.findings if finding.level == level]
        if rows:
            table = Table(title=f"{level}s", title_justify="left", show_lines=True)
            table.add_column("id", no_wrap=True)
            table.add_column("what is wrong", ratio=3)
            table.add_column("mend", ratio=2)
            for each in rows:
                table.add_row(each.id, escape(each.what), escape(each.mend))
            found.append(table)
    return found


def _readings(diagnosis: Diagnosis) -> Table:
    table = Table(title="what is read, and the largest difference from kwise", title_justify="left")
    table.add_column("reader", min_width=17)
    table.add_column("token read", ratio=2)
    table.add_column("activation", no_wrap=True)
    table.add_column("BOS", no_wrap=True)
    table.add_column("long input", ratio=2)
    table.add_column("difference", min_width=10)
    own = diagnosis.kwise
    if isinstance(own, str):
        table.add_row("kwise score", "-", "-", "-", "-", "cannot score")
    else:
        table.add_row("kwise score", *(escape(each) for each in _cells(diagnosis, own)), "")
    table.add_section()
    for reader in READERS:
        name = reader.name + ("" if reader.run else " *")
        readings = diagnosis.readings[reader.name]
        if isinstance(readings, str):
            table.add_row(name, "-", "-", "-", "-", escape(readings))
            continue
        gap = diagnosis.difference(reader.name)
        says = gap if isinstance(gap, str) else "-" if gap is None else f"{gap:.1e}"
        if "ending" in reader.traits and isinstance(gap, float) and gap > 0:
            says += ", by its rule"
        table.add_row(name, *(escape(each) for each in _cells(diagnosis, readings)), escape(says))
    table.caption = "* by its documented rule, in float32; the others were run"
    return table


def _cells(diagnosis: Diagnosis, readings: list[Reading | None]) -> tuple[str, str, str, str]:
    """Token, activation, number of BOS, and what becomes of the long probe."""
    assert diagnosis.facts is not None
    compared = [
        each for each, probe in zip(readings, diagnosis.probes, strict=True) if each and probe.compared and each.ids
    ]
    bos = diagnosis.facts.tokenizer.bos_token_id
    counts = sorted({sum(i == bos for i in each.ids[:2]) for each in compared})
    long = next((each for each, probe in zip(readings, diagnosis.probes, strict=True) if not probe.compared), None)
    tokens = dict.fromkeys(_token(diagnosis, each) for each in compared)
    return " or ".join(tokens) or "-", activation(readings), "/".join(map(str, counts)) or "-", _cut(diagnosis, long)


def _token(diagnosis: Diagnosis, reading: Reading) -> str:
    """``'</s>' 2``, and where it stands if that is not the end."""
    assert diagnosis.facts is not None
    if reading.at is None:
        return "-"
    if not 0 <= reading.at < len(reading.ids):
        return "padding"
    token = reading.ids[reading.at]
    behind = len(reading.ids) - 1 - reading.at
    return f"{diagnosis.facts.tokenizer.decode([token])!r} {token}" + (f", {behind} before the end" if behind else "")


def _cut(diagnosis: Diagnosis, long: Reading | None) -> str:
    assert diagnosis.facts is not None
    if long is None:
        return "-"
    if not long.ids:
        return long.refused
    probe = next(each for each in diagnosis.probes if not each.compared)
    whole = list(diagnosis.facts.tokenizer.apply_chat_template(probe.chat, return_dict=False))
    if len(long.ids) >= len(whole):
        return "whole"
    side = "left" if long.ids[-1] == whole[-1] and long.ids[-2] == whole[-2] else "right"
    return f"{len(long.ids)} tokens, {side} cut"


def to_json(diagnosis: Diagnosis) -> dict[str, Any]:
    """``findings``, ``kwise`` and ``readers``: rule, source, activation, difference and the reading of every probe."""

    def probes(readings: list[Reading | None] | str) -> Any:
        if isinstance(readings, str):
            return readings
        return {
            probe.name: None
            if each is None
            else {
                "score": each.score,
                "logit": each.logit,
                "token": _token(diagnosis, each),
                "tokens": len(each.ids),
                "at": each.at,
                "refused": each.refused or None,
            }
            for probe, each in zip(diagnosis.probes, readings, strict=True)
        }

    findings = [
        {"id": each.id, "level": each.level, "what": each.what, "mend": each.mend, "fix": each.mendable}
        for each in diagnosis.findings
    ]
    readers = {
        reader.name: {
            "run": reader.run,
            "rule": reader.rule,
            "source": reader.source,
            "activation": None if isinstance(found, str) else activation(found),
            "difference": diagnosis.difference(reader.name),
            "probes": probes(found),
        }
        for reader in READERS
        if (found := diagnosis.readings.get(reader.name)) is not None
    }
    return {"well": diagnosis.well, "findings": findings, "kwise": probes(diagnosis.kwise), "readers": readers}
