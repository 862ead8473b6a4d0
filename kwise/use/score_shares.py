"""One file scored by several processes, on any number of machines that share a folder, any of which may die at any time.

::

    OUT.share-I-of-N    what process I has written so far: every N-th window of lines, from the I-th on
    OUT.scored-I-of-N   the same once it is whole
    OUT                 all lines in order, once every share is: it appears whole, and the shares go

No process waits for another: whoever finishes last puts the shares together. A share that was cut off goes on after its whole
windows, and windows are packed alike whoever scores them, so that the bytes of OUT do not depend on who died when, nor on N.
"""

import os
import re
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

from filelock import FileLock

from kwise.data.lines import read_lines
from kwise.model.reward_model import RewardModel
from kwise.records import DataError
from kwise.use.kept_lines import belongs, keep
from kwise.use.score_file import assert_not_input, score_file
from kwise.use.scored_lines import WINDOW, columns_of

SHARE = re.compile(r"\.(?:share|scored)-\d+-of-(\d+)")


def score_share(
    model: RewardModel, file: str, out: str, process: int, processes: int, resume: bool = False, **options: Any
) -> dict[str, int]:
    """Share ``process`` (from 0) of ``score_file(model, file, out, resume, **options)`` among so many ``processes``.

    Gives ``score_file``'s counts of this share, all zero if it was whole before, and ``together``: how many lines ``out`` has,
    if this call put it together. Raises ``FileExistsError`` without ``resume`` for what an earlier call left, ``ValueError`` for
    shares of another number of processes or an ``out`` that one process began, and whatever ``score_file`` does.
    """
    target = Path(out)
    own, whole = (Path(f"{out}.{state}-{process}-of-{processes}") for state in ("share", "scored"))
    counts = {"written": 0, "kept": 0, "shortened": 0, "replaced": 0, "together": 0}
    assert_not_input(target, file)
    if target.exists() and resume:
        _assert_whole(model, target, file, **options)
        return counts
    others = {
        found[1]
        for path in target.parent.glob("*")
        if path.name.startswith(target.name) and (found := SHARE.fullmatch(path.name.removeprefix(target.name)))
    } - {str(processes)}
    if others:
        raise ValueError(
            f"{out} was begun by {', '.join(sorted(others))} processes: go on with as many, or remove its shares"
        )
    for left in (target, own, whole):
        if left.exists() and not resume:
            raise FileExistsError(f"{left} exists; go on with it by --resume, or remove it")
    if not whole.exists():
        counts |= score_file(model, file, str(own), resume, share=(process, processes), **options)
        own.replace(whole)
    counts["together"] = _together(target, file, processes)
    return counts


def _together(target: Path, file: str, processes: int) -> int:
    """Put the shares of ``target`` together if all are whole. Gives the number of lines, 0 if one is not, or another did it.
    Raises ``ValueError`` for a share whose lines are no longer those of ``file``."""
    shares = [Path(f"{target}.scored-{i}-of-{processes}") for i in range(processes)]
    with FileLock(f"{target}.lock") as lock:
        if target.exists() or not all(share.exists() for share in shares):
            return 0
        count = 0
        unfinished = Path(f"{target}.unfinished")
        with unfinished.open("wb") as output, ExitStack() as stack:
            opened = [stack.enter_context(share.open("rb")) for share in shares]
            source, window = read_lines(file), 0
            while rows := [row for _, row in islice(source, WINDOW)]:
                lines = list(islice(opened[window % processes], WINDOW))
                _assert_of(rows, lines, shares[window % processes], file)
                output.writelines(lines)
                count += len(lines)
                window += 1
            for share, left in zip(shares, opened, strict=True):
                _assert_of([], list(islice(left, 1)), share, file)
            output.flush()
            os.fsync(output.fileno())
        unfinished.replace(target)
        for share in shares:
            share.unlink()
        Path(lock.lock_file).unlink(missing_ok=True)  # who waited for it finds the target
    return count


def _assert_of(rows: list[dict[str, Any] | DataError], lines: list[bytes], share: Path, file: str) -> None:
    """Somebody may have taken out a line that another share stopped at: then all behind it belong elsewhere."""
    if len(rows) != len(lines) or not all(map(belongs, rows, lines)):
        raise ValueError(f"{share} was scored before {file} was changed: remove it, and start again")


def _assert_whole(
    model: RewardModel,
    target: Path,
    file: str,
    calibrated: bool = False,
    c: float | None = None,
    choose: bool = False,
    **_: Any,
) -> None:
    with target.open("rb") as scored:
        lines = sum(1 for _ in scored)
    if lines != sum(1 for _ in read_lines(file)):
        raise ValueError(f"{target} has {lines} lines and was begun by one process: go on with one")
    keep(model, target, read_lines(file), file, columns_of(model, calibrated, c), choose, 1)
    for left in target.parent.glob(f"{target.name}.scored-*"):  # of a process killed just after it put them together
        left.unlink()
