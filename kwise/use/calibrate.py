"""``kwise calibrate``: held-out rankings -> what makes a model's rewards hold as log-odds, written beside the model."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import NamedTuple

from kwise.data.lines import public_name
from kwise.data.sources import read_rankings
from kwise.model.calibrated import Calibration
from kwise.model.reward_model import RewardModel
from kwise.objective.calibration import cross_fitted, curves, figures, fit_calibration
from kwise.objective.metrics import Metric
from kwise.objective.reliability import Bin
from kwise.use.evaluation import refuse_repeated


class Calibrated(NamedTuple):
    """``figures[stage]`` and ``curves[stage]`` of ``kwise.objective.calibration``, for the rewards as they are (``"before"``) and
    cross-fitted by prompt (``"after"``); ``shortened`` counts the distinct responses that were cut to ``max_length``."""

    calibration: Calibration
    figures: dict[str, dict[str, Metric]]
    curves: dict[str, dict[str, list[Bin]]]
    shortened: int


def calibrate(
    model: RewardModel,
    files: Sequence[str],
    length: bool = False,
    source: str = "auto",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Calibrated:
    """Score the rankings of all ``files`` and fit ``model``'s calibration to them, whatever calibration it has; ``length`` also
    takes the length slope off. The fit is of all rankings; the figures "after" are of fits that did not see the prompt.

    Raises ``DataError`` for a line that cannot be read, and ``ValueError`` where ``fit_calibration`` does.
    """
    refuse_repeated(files)
    rankings = [ranking for file in files for ranking in read_rankings(file, source)]
    rewards, shortened = model.score_rankings(rankings, progress)
    ranks, groups = [ranking.ranks for ranking in rankings], [ranking.group for ranking in rankings]
    lengths = [[len(response) for response in ranking.responses] for ranking in rankings]
    fitted_on = lengths if length else None
    fit = fit_calibration(rewards, ranks, groups, fitted_on)
    tables = {"before": rewards, "after": cross_fitted(rewards, ranks, groups, fitted_on)}
    found = {stage: figures(ranks, table, groups, lengths) for stage, table in tables.items()}
    kept = {stage: {name: metric.to_json() for name, metric in each.items()} for stage, each in found.items()}
    return Calibrated(
        replace(fit, data=[public_name(file) for file in files], figures=kept),
        found,
        {stage: curves(ranks, table) for stage, table in tables.items()},
        shortened,
    )


def to_json(result: Calibrated) -> dict[str, object]:
    """The calibration as in ``kwise.json``, and the reliability curves."""
    rows = {
        stage: {kind: [asdict(each) for each in bins] for kind, bins in kinds.items()}
        for stage, kinds in result.curves.items()
    }
    return asdict(result.calibration) | {"curves": rows}
