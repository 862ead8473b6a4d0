"""``kwise audit``: scores and rankings -> what a reward model rewards beside quality, how sure that is, and pages to look at.

``features``  what is in the answers            ``measures``  plain figures: distribution, drift, calibration, length, mistakes
``effects``   partial effects, and verdicts     ``probes``    edits of real answers, and what they do to the reward
``audit``     (here) all of it as one JSON-able dictionary, from which ``figures`` draws and ``report`` writes the pages
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np

from kwise.data.lines import public_name
from kwise.model.reward_model import RewardModel
from kwise.objective.metrics import bootstrap, compare, metric_terms
from kwise.records import Ranking
from kwise.use.audit import measures
from kwise.use.audit.effects import ALPHA, SMALLEST, Design, differences, effects, estimate, holm
from kwise.use.audit.features import AUTHOR, MIN_PROMPTS, Answers, read_answers
from kwise.use.audit.probes import ALL, Changes, judge_probes, mean_change, run_probes
from kwise.use.evaluation import Data, foreign_scores
from kwise.use.score_cache import ScoreCache

ACCUSED = ("bias", "blind")


class Subject(NamedTuple):
    """What is known of one model: its ``rewards`` [L][K], what ``probes`` did (None: there is no model to score edits with)
    and how many distinct responses, edits among them, were cut to its longest sequence."""

    rewards: Sequence[Sequence[float]]
    probes: list[Changes] | None = None
    shortened: int = 0


def audit(
    rankings: Sequence[Ranking], subjects: Mapping[str, Subject], data: Sequence[str], by: str | None = None
) -> dict[str, Any]:
    """Everything ``kwise audit`` says of the models ``subjects``, as JSON: ``{kwise, data, rules, models: {name: ...},
    differences}``.

    ``data`` are the names of what ``rankings`` were read from, ``by`` a column whose values are shown apart. Later models are
    compared with the first. Raises ``ValueError`` for a reward that is missing, NaN or infinite, for rankings of fewer than two
    prompts or all tied, and for scores that are all equal within prompts.
    """
    answers = read_answers(rankings)
    design = Design(answers)
    found = {name: _of_one(rankings, own, answers, design, name, by) for name, own in subjects.items()}
    first, *others = subjects.items()
    return {
        "kwise": version("kwise"),
        "data": {
            "names": [public_name(word) for word in data],
            "rankings": len(rankings),
            "answers": len(answers.owner),
            "prompts": len(design.clusters),
        },
        "rules": {
            "alpha": ALPHA,
            "smallest": {"graded": SMALLEST[True], "has_or_has_not": SMALLEST[False]},
            "multiple_testing": "Holm, over all traits of a model, and over all probes",
            "min_prompts": MIN_PROMPTS,
        },
        "models": found,
        "differences": {f"{name} - {first[0]}": _difference(rankings, first[1], own, design) for name, own in others},
    }


def foreign_subjects(data: Sequence[Data], compared: bool) -> tuple[list[Ranking], dict[str, Subject], list[str]]:
    """The rankings that have scores, and whose scores these are (``kwise.use.evaluation.foreign_scores``, which says what it
    raises and what ``compared`` means), and what to know of them."""
    rankings: list[Ranking] = []
    rewards: dict[str, list[list[float]]] = {}
    notes: list[str] = []
    for name, place, scored in foreign_scores(data, compared):
        rewards.setdefault(name, []).extend(scored.rewards)
        notes += place.notes
        if not compared or not rankings:
            rankings += place.rankings
    return rankings, {name: Subject(own) for name, own in rewards.items()}, notes


def model_subject(
    model: RewardModel | ScoreCache,
    rankings: Sequence[Ranking],
    probes: int,
    progress: Callable[[str, int, int], None],
) -> Subject:
    """Score the rankings, and the edits of one answer each of ``probes`` prompts (0: no edits)."""
    rewards, shortened = model.score_rankings(rankings, partial(progress, "scoring"))
    if not probes:
        return Subject(rewards, None, shortened)
    changes, edits_shortened = run_probes(model, rankings, probes, partial(progress, "scoring edits"))
    return Subject(rewards, changes, shortened + edits_shortened)


def _of_one(
    rankings: Sequence[Ranking], subject: Subject, answers: Answers, design: Design, name: str, by: str | None
) -> dict[str, Any]:
    rewards = subject.rewards
    overview = measures.overview(rankings, rewards)  # refuses rewards that are missing or not finite
    scores = _flat(rewards)
    spread = answers.spread(scores)
    if not spread:
        raise ValueError(f"{name} scores all answers to a prompt the same: there is nothing to audit")
    return {
        "overview": overview | {"shortened": subject.shortened},
        "distribution": measures.distribution(answers, scores),
        "drift": measures.drift(rankings, rewards, by),
        "trend": measures.trend(answers, scores),
        "calibration": measures.calibration(rankings, rewards),
        "length": measures.length(rankings, rewards, answers),
        "layout": measures.layout(rankings, rewards, answers),
        "harm": measures.harm(rankings, rewards, answers),
        "effects": [own.to_json() for own in effects(design, scores)],
        "probes": None if subject.probes is None else judge_probes(subject.probes, spread),
        "mistakes": measures.mistakes(rankings, rewards, spread),
    }


def accusations(model: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The effects and probes of one model of an ``audit`` that it is accused of: the largest first, authors last, since there
    may be many of them."""
    found = [own for own in (*model["effects"], *(model["probes"] or ())) if own["verdict"] in ACCUSED]
    return sorted(found, key=lambda own: (own.get("trait", "").startswith(AUTHOR), -abs(own["value"])))


def _difference(
    rankings: Sequence[Ranking], first: Subject, second: Subject, design: Design
) -> dict[str, list[dict[str, Any]]]:
    groups = [ranking.group for ranking in rankings]
    draws = [bootstrap(metric_terms(rankings, own.rewards), groups) for own in (first, second)]
    gaps = compare(*draws)
    return {
        "overview": [{"metric": name} | gaps[name].to_json() for name in measures.OVERVIEW if name in gaps],
        "effects": differences(design, _flat(first.rewards), _flat(second.rewards)),
        "probes": _probe_differences(first, second, design.answers),
    }


def _probe_differences(first: Subject, second: Subject, answers: Answers) -> list[dict[str, Any]]:
    """The change of the second model less that of the first, for the same edits of the same answers."""
    if first.probes is None or second.probes is None:
        return []
    spreads = [answers.spread(_flat(own.rewards)) for own in (first, second)]
    found: list[dict[str, Any]] = []
    for a, b in zip(first.probes, second.probes, strict=True):
        changes = [(np.array(own.after) - own.before) / spread for own, spread in zip((a, b), spreads, strict=True)]
        gap = mean_change(a.groups, changes[1] - changes[0])
        if gap is not None:
            found.append({"probe": a.probe, "label": ALL[a.probe].label} | estimate(*gap, 0.0).to_json())
    for own, p in zip(found, holm([each["p"] for each in found]), strict=True):
        own["adjusted"] = p
    return found


def _flat(rewards: Sequence[Sequence[float]]) -> np.ndarray:
    return np.array([score for own in rewards for score in own])
