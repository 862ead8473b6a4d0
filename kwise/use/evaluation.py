"""``kwise eval``: how often a model agrees with rankings, per file and per split, beside what needs no model."""

from collections.abc import Callable
from typing import NamedTuple

from kwise.data.sources import read_rankings
from kwise.model.reward_model import RewardModel
from kwise.objective.metrics import Metric, metric_terms, summarise
from kwise.records import DataError

ALL = "all"


class Evaluation(NamedTuple):
    """``splits``: metrics under ``"all"`` and under each value of a column; ``shortened`` counts the distinct responses that were
    cut to the model's ``max_length``."""

    splits: dict[str, dict[str, Metric]]
    shortened: int


def evaluate_file(
    model: RewardModel,
    file: str,
    by: str | None = None,
    source: str = "auto",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Metrics (``kwise.objective.metrics``) over all rankings of ``file``, and over those with each value of the column ``by``.

    ``ece`` and ``top1_ece`` are those of the model with its own calibration, all others of the rewards as they are. Raises
    ``DataError`` for a line that cannot be read or that has no column ``by``.
    """
    rankings = list(read_rankings(file, source))
    members: dict[str, list[int]] = {ALL: list(range(len(rankings)))}
    if by is not None:
        for i, ranking in enumerate(rankings):
            if by not in ranking.columns:
                have = ", ".join(ranking.columns) or "none"
                raise DataError(
                    f"there is no such column to split by; it has {have}", file=file, line=ranking.line, field=by
                )
            members.setdefault(_label(by, ranking.columns[by]), []).append(i)
    rewards, shortened = model.score_rankings(rankings, progress)
    calibrated = [model.calibrated(own, ranking.responses) for own, ranking in zip(rewards, rankings, strict=True)]
    terms, groups = metric_terms(rankings, rewards, calibrated), [ranking.group for ranking in rankings]
    splits = {name: summarise([terms[i] for i in own], [groups[i] for i in own]) for name, own in members.items()}
    return Evaluation(splits, shortened)


def _label(by: str, value: object) -> str:
    label = " + ".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"{by} = {label}" if label == ALL else label
