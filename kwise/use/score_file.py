"""``kwise score`` and ``kwise best``: the same lines with scores and choices, streamed, in order, and resumable."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kwise.data.lines import read_lines
from kwise.model.reward_model import RewardModel
from kwise.use.kept_lines import keep
from kwise.use.scored_lines import WINDOW, Lines, columns_of, scored_rows, take_window


def score_file(
    model: RewardModel,
    file: str,
    out: str,
    resume: bool = False,
    progress: Callable[[int], None] = lambda lines: None,
    calibrated: bool = False,
    c: float | None = None,
    choose: bool = False,
    share: tuple[int, int] = (0, 1),
) -> dict[str, int]:
    """Write every line of ``file`` with its scores to ``out``, in order; memory does not grow with the file.

    A conversation ``{"messages": [...]}`` or ``{"prompt", "response"}`` gains ``score``; every answer or completion of a ranking
    gains ``score``; ``{"prompt", "responses"}`` gains the list ``scores``; a pair gains ``chosen_score`` and ``rejected_score``
    (lists where it holds lists), a battle ``score_a`` and ``score_b``. All else stays as it is.

    With ``c`` each response also gains ``score_error`` and ``score_lower``, its score less ``c`` errors (arXiv 2301.11270,
    Algorithm 1), and the line ``score_lower_bound``, which is c; a model without uncertainty is a ``ValueError``. With
    ``choose`` a line gains ``best_index``, the index of the response with the highest lower bound (the highest score without
    ``c``; of equals the first), and ``best_text``; a line with one response, or a pair, is a ``DataError``. What an earlier
    scoring left in columns of these names is replaced, or goes.

    ``calibrated`` writes calibrated rewards (``Calibration``) as scores, and every line gains ``score_calibration``, which holds
    the temperature, centre and length slope; without it a line has no such column. Raises ``ValueError`` for a model that has
    none.

    ``share`` (i, n) writes only every n-th window of ``WINDOW`` lines, from the i-th on (``kwise.use.score_shares``).

    ``resume`` goes on after the complete lines of ``out`` (of a share: after its whole windows, which are packed alike whoever
    scores them), if the last of them belongs to its line of ``file``, was scored by the same calibration and ``c``, or by
    none, and gets the same scores again up to rounding; a half-written line is removed. Gives the counts of lines written, of
    lines kept from before, of responses shortened to ``max_length``, and of lines whose own scores were replaced. Raises
    ``FileExistsError`` without ``resume`` if ``out`` exists, ``ValueError`` while another process writes it, and ``DataError`` at
    a line that cannot be read or scored; what was written before stays.
    """
    how = columns_of(model, calibrated, c)  # before OUT is made
    target = Path(out)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target.parent} is no folder to write {target.name} into")
    assert_not_input(target, file)
    if target.exists() and not target.is_file():
        raise ValueError(f"{out} is no plain file, which could be gone on with: name one")
    if target.exists() and not resume:
        raise FileExistsError(f"{out} exists; go on with it by --resume, or remove it")
    with _alone(target):
        lines = _windows(read_lines(file), *share)
        kept = keep(model, target, lines, file, how, choose, WINDOW if share[1] > 1 else 1) if target.exists() else 0
        return _append(model, target, lines, file, how, choose, kept, progress)


def assert_not_input(target: Path, file: str) -> None:
    """Raise ``ValueError`` for a target that is the input, by whatever name."""
    if target.exists() and Path(file).exists() and target.samefile(file):
        raise ValueError(f"{target} is the input file itself")


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    lock = FileLock(f"{target}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(f"another process is writing {target}") from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _windows(lines: Lines, first: int, step: int) -> Lines:
    """Every ``step``-th window of ``lines``, from number ``first`` on."""
    return (line for i, line in enumerate(lines) if i // WINDOW % step == first)


def _append(
    model: RewardModel,
    target: Path,
    lines: Lines,
    file: str,
    how: dict[str, Any],
    choose: bool,
    kept: int,
    progress: Callable[[int], None],
) -> dict[str, int]:
    counts = {"written": 0, "kept": kept, "shortened": 0, "replaced": 0}
    window, problem = take_window(
        model, lines, file, choose
    )  # before OUT is made: what is no input at all leaves nothing behind
    if problem and not window:
        raise problem
    with target.open("a", encoding="utf-8") as output:
        while True:
            for each, scored in zip(window, scored_rows(model, window, file, how, choose), strict=True):
                # dates of a parquet file become text
                output.write(json.dumps(scored, ensure_ascii=False, default=str) + "\n")
                counts["written"] += 1
                counts["shortened"] += sum(cut > 0 for cut in each.encoded.cut)
                counts["replaced"] += each.replaces
            output.flush()
            progress(kept + counts["written"])
            if problem:
                raise problem
            if len(window) < WINDOW:
                return counts
            window, problem = take_window(model, lines, file, choose)
