"""Rankings and scores -> the plain figures of an audit: how rewards lie, drift, calibrate, go with length and layout, and
err."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

import numpy as np
from scipy.stats import rankdata

from kwise.data.baselines import Terms, wins
from kwise.objective.calibration import cross_fitted, curves, figures, fit_calibration
from kwise.objective.metrics import Metric, metric_terms, resample, sum_by_group, summarise
from kwise.records import Ranking
from kwise.use.audit.features import COUNTED, LABELS, MIN_PROMPTS, Answers
from kwise.use.results import file_names
from kwise.use.suites.suite import PART

BINS = 30  # of the histogram of rewards, at most
STEPS = 10  # of the place in the data, at most, and of length
MISTAKES = 8
PROMPT, ANSWER = 400, 700  # characters of a mistake that are shown
OVERVIEW = ("pair_accuracy", "top1", "kendall_tau", "ndcg", "longer_wins", "better_model_wins", "equal_scores")
Table = Sequence[Sequence[float]]


def overview(rankings: Sequence[Ranking], rewards: Table) -> dict[str, Any]:
    """How often the scores agree with the ranks, beside what needs no model."""
    found = summarise(metric_terms(rankings, rewards), [ranking.group for ranking in rankings])
    return {name: found[name].to_json() for name in OVERVIEW if name in found}


def distribution(answers: Answers, scores: np.ndarray) -> dict[str, Any]:
    """Histograms of the rewards of best, middle and worst answers on common ``edges``, and their moments."""
    last = answers.level == answers.levels - 1
    kinds = {
        "best": (answers.level == 0) & ~last,
        "middle": (answers.level > 0) & ~last,
        "worst": last & (answers.level > 0),
    }
    edges = np.histogram_bin_edges(scores, min(BINS, max(5, round(np.sqrt(len(scores))))))
    percentiles = np.percentile(scores, (1, 25, 50, 75, 99))
    return {
        "mean": float(scores.mean()),
        "sd": float(scores.std()),
        "within_prompt_sd": answers.spread(scores),
        "percentiles": dict(zip(("1", "25", "50", "75", "99"), map(float, percentiles), strict=True)),
        "edges": edges.tolist(),
        "counts": {kind: np.histogram(scores[own], edges)[0].tolist() for kind, own in kinds.items()},
    }


def drift(rankings: Sequence[Ranking], rewards: Table, by: str | None) -> dict[str, list[dict[str, Any]]]:
    """The mean reward by file (``file_names``), by part (of a suite, or of the column ``by``), and by tenth of the data in
    their order (fewer steps if there are few rankings). What has less than ``MIN_PROMPTS`` rankings has no interval."""
    names = file_names(ranking.file for ranking in rankings)
    parts = {"file": [names[ranking.file] for ranking in rankings]}
    column = by or PART
    if any(column in ranking.columns for ranking in rankings):
        parts[column] = [str(ranking.columns.get(column, "-")) for ranking in rankings]
    steps = min(STEPS, len(rankings) // MIN_PROMPTS)
    if steps > 1:
        parts["place in the data"] = [f"{1 + i * steps // len(rankings)}" for i in range(len(rankings))]
    return {name: _means(labels, rankings, rewards) for name, labels in parts.items()}


def _means(labels: Sequence[str], rankings: Sequence[Ranking], rewards: Table) -> list[dict[str, Any]]:
    groups = [ranking.group for ranking in rankings]
    numbers = {
        label: str(i) for i, label in enumerate(dict.fromkeys(labels))
    }  # a label may be any text, a metric's name not
    terms: list[Terms] = [{numbers[label]: (sum(own), len(own))} for label, own in zip(labels, rewards, strict=True)]
    found = summarise(terms, groups)
    rows = []
    for label, number in numbers.items():
        few = labels.count(label) < MIN_PROMPTS
        row = {"label": label, "rankings": labels.count(label)} | found[number].to_json()
        rows.append(row | ({"low": None, "high": None} if few else {}))
    return rows


def calibration(rankings: Sequence[Ranking], rewards: Table) -> dict[str, Any]:
    """Errors and reliability of the rewards as log-odds, as they are and after a temperature (cross-fitted by prompt).

    Where the rankings fix no temperature, ``why_not`` says why.
    """
    ranks, groups = [ranking.ranks for ranking in rankings], [ranking.group for ranking in rankings]
    lengths = [[len(text) for text in ranking.responses] for ranking in rankings]
    tables: dict[str, Table] = {"as they are": rewards}
    found: dict[str, Any] = {}
    try:
        fit = fit_calibration(rewards, ranks, groups)
        found = {"temperature": fit.temperature, "temperature_error": fit.temperature_error}
        tables["after a temperature"] = cross_fitted(rewards, ranks, groups)
    except ValueError as error:  # the rankings fix no temperature: a finding, not a failure
        found["why_not"] = str(error)
    return found | {
        "stages": {
            stage: {
                "figures": {name: own.to_json() for name, own in figures(ranks, table, groups, lengths).items()},
                "curve": [asdict(each) for each in curves(ranks, table)["pairs"]],
            }
            for stage, table in tables.items()
        }
    }


def length(rankings: Sequence[Ranking], rewards: Table, answers: Answers) -> dict[str, Any]:
    """Correlation of length (characters) and score, how often the longer answer is picked, accuracy where the better one is
    longer and shorter, and the mean of score and of rank by length within prompts."""
    groups = [ranking.group for ranking in rankings]
    terms: list[Terms] = []
    for ranking, own in zip(rankings, rewards, strict=True):
        sizes = [len(text) for text in ranking.responses]
        right: dict[str, list[float]] = {"longer_picked": [], "longer_better": [], "shorter_better": []}
        for i, j in combinations(range(len(own)), 2):
            if sizes[i] == sizes[j]:
                continue
            long, short = (i, j) if sizes[i] > sizes[j] else (j, i)
            right["longer_picked"].append(wins(own[long], own[short]))
            if ranking.ranks[i] != ranking.ranks[j]:
                better, worse = (i, j) if ranking.ranks[i] < ranking.ranks[j] else (j, i)
                right["longer_better" if better == long else "shorter_better"].append(wins(own[better], own[worse]))
        terms.append({name: (sum(each), len(each)) for name, each in right.items()})
    scores = np.array([score for own in rewards for score in own])
    found: dict[str, Any] = {name: own.to_json() for name, own in summarise(terms, groups).items()}
    found["spearman"] = spearman(answers, answers.characters, scores).to_json()
    found["curve"] = _length_curve(answers, scores)
    return found


def trend(answers: Answers, scores: np.ndarray) -> dict[str, Any]:
    """Spearman's correlation of the reward and the place of its ranking in the data."""
    return spearman(answers, answers.owner.astype(float), scores).to_json()


def spearman(answers: Answers, x: np.ndarray, y: np.ndarray) -> Metric:
    """Rank correlation over all answers, with its interval by bootstrap over prompt groups; the ranks are those of all the data
    in every draw."""
    a, b = rankdata(x), rankdata(y)
    terms = np.stack([np.ones(len(a)), a, b, a * b, a * a, b * b], 1)
    sums = sum_by_group(list(terms), [str(group) for group in answers.group])

    def correlation(total: np.ndarray) -> np.ndarray:
        n, sa, sb, sab, saa, sbb = total.T
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray((sab - sa * sb / n) / np.sqrt((saa - sa * sa / n) * (sbb - sb * sb / n)))

    if len(set(a)) < 2 or len(set(b)) < 2:
        return Metric(None, None, None, 0)
    low, high = np.nanpercentile(correlation(resample(sums, np.random.default_rng(0))), [2.5, 97.5])
    return Metric(float(correlation(sums.sum(0))), float(low), float(high), len(a))


def _length_curve(answers: Answers, scores: np.ndarray) -> list[dict[str, float]]:
    """Tenths of length relative to the prompt's mean (of logarithms): mean ``times``, ``score`` and ``rank`` (higher is
    better), both in within-prompt standard deviations, and the standard error of ``score`` as if answers were unrelated."""
    relative = answers.within(np.log(np.maximum(answers.characters, 1)))
    place = 1 - answers.level / np.maximum(answers.levels - 1, 1)
    columns = [answers.within(own) / (answers.spread(own) or 1.0) for own in (scores, place)]
    found = []
    for own in np.array_split(np.argsort(relative, kind="stable"), STEPS):
        if len(own) > 1:
            score, rank = (column[own] for column in columns)
            found.append(
                {
                    "times": float(np.exp(relative[own].mean())),
                    "score": float(score.mean()),
                    "score_error": float(score.std(ddof=1) / np.sqrt(len(own))),
                    "rank": float(rank.mean()),
                }
            )
    return found


def layout(rankings: Sequence[Ranking], rewards: Table, answers: Answers) -> list[dict[str, Any]]:
    """For each trait counted in texts: how often the answer that has it is picked over one without, how often it is the better
    one, and the accuracy where the better one has it (``with``) and where the worse one has it (``without``). A trait that
    less than ``MIN_PROMPTS`` prompts tell of has no intervals."""
    groups = [ranking.group for ranking in rankings]
    starts = np.r_[0, np.cumsum([len(own) for own in rewards])]
    found = []
    for trait in answers.traits:
        if trait.name not in COUNTED:
            continue
        terms: list[Terms] = []
        for i, (ranking, own) in enumerate(zip(rankings, rewards, strict=True)):
            has = trait.column[starts[i] : starts[i + 1]] > 0
            picked: list[float] = []
            right: dict[bool, list[float]] = {True: [], False: []}
            for a, b in combinations(range(len(own)), 2):
                if has[a] == has[b] or ranking.ranks[a] == ranking.ranks[b]:
                    continue
                better, worse = (a, b) if ranking.ranks[a] < ranking.ranks[b] else (b, a)
                right[bool(has[better])].append(wins(own[better], own[worse]))
                picked.append(wins(own[a], own[b]) if has[a] else wins(own[b], own[a]))
            terms.append(
                {
                    "picked": (sum(picked), len(picked)),
                    "better": (len(right[True]), len(picked)),
                    "with": (sum(right[True]), len(right[True])),
                    "without": (sum(right[False]), len(right[False])),
                }
            )
        own_figures = {name: metric.to_json() for name, metric in summarise(terms, groups).items()}
        if answers.prompts_with(trait.column) < MIN_PROMPTS:  # a bootstrap of a few prompts is no interval
            own_figures = {name: own | {"low": None, "high": None} for name, own in own_figures.items()}
        found.append({"trait": trait.name, "label": LABELS[trait.name]} | own_figures)
    return found


def harm(rankings: Sequence[Ranking], rewards: Table, answers: Answers) -> list[dict[str, Any]]:
    """Requests that call for harmlessness against all others: accuracy, and by how much refusals are scored above answers to
    the same prompt. Empty where the data do not say which is which (``asks_for_harm``) or hold only one kind."""
    kinds = [asks_for_harm(ranking) for ranking in rankings]
    names = {True: "harmful requests", False: "other requests"}
    if not {True, False} <= set(kinds):
        return []
    refusal = next(trait.column for trait in answers.traits if trait.name == "refusal") > 0
    scores = np.array([score for own in rewards for score in own])
    centred = answers.within(scores) / (answers.spread(scores) or 1.0)
    found = []
    for kind, name in names.items():
        own = [i for i, each in enumerate(kinds) if each is kind]
        metrics = summarise(
            metric_terms([rankings[i] for i in own], [rewards[i] for i in own]), [rankings[i].group for i in own]
        )
        of_kind = np.isin(answers.owner, own)
        row: dict[str, Any] = {"kind": name, "rankings": len(own), "pair_accuracy": metrics["pair_accuracy"].to_json()}
        row["refusals"] = int((refusal & of_kind).sum())
        for what, mask in (("refusal_score", refusal & of_kind), ("answer_score", ~refusal & of_kind)):
            row[what] = float(centred[mask].mean()) if mask.any() else None
        found.append(row)
    return found


def asks_for_harm(ranking: Ranking) -> bool | None:
    """What the data say of a prompt: column ``good_natured`` (Nectar), ``category`` (starter rankings) or ``part`` (Starling's
    suites); None where they say nothing."""
    columns: Mapping[str, Any] = ranking.columns
    if isinstance(columns.get("good_natured"), bool):
        return not columns["good_natured"]
    if "category" in columns:
        return bool(columns["category"] == "refuse")
    if columns.get(PART) in ("safety", "human"):
        return bool(columns[PART] == "safety")
    return None


def mistakes(rankings: Sequence[Ranking], rewards: Table, spread: float) -> list[dict[str, Any]]:
    """The wrongly ordered pairs with the largest gap of score, one for each prompt group, with the beginnings of their
    texts."""
    worst: dict[str, tuple[float, int, int, int]] = {}
    for i, (ranking, own) in enumerate(zip(rankings, rewards, strict=True)):
        for a, b in combinations(range(len(own)), 2):
            if ranking.ranks[a] == ranking.ranks[b]:
                continue
            better, worse = (a, b) if ranking.ranks[a] < ranking.ranks[b] else (b, a)
            gap = own[worse] - own[better]
            if gap > worst.get(ranking.group, (0.0,))[0]:
                worst[ranking.group] = (gap, i, better, worse)
    found, names = [], file_names(ranking.file for ranking in rankings)
    for gap, i, better, worse in sorted(worst.values(), reverse=True)[:MISTAKES]:
        ranking = rankings[i]
        sides = {
            name: {
                "rank": ranking.ranks[k],
                "score": rewards[i][k],
                "model": ranking.models[k],
                "characters": len(ranking.responses[k]),
                "text": beginning(ranking.responses[k], ANSWER),
            }
            for name, k in (("better", better), ("worse", worse))
        }
        where = {"file": names[ranking.file], "line": ranking.line}
        prompt = beginning(ranking.messages[-1]["content"], PROMPT)
        found.append(where | {"prompt": prompt, "gap": gap, "gap_sd": gap / spread} | sides)
    return found


def beginning(text: str, most: int) -> str:
    """The first ``most`` characters, with a mark that says how many are left out."""
    return text if len(text) <= most else f"{text[:most].rstrip()} … [{len(text) - most} more characters]"
