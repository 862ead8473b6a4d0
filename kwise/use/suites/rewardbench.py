"""RewardBench (Lambert et al., arXiv 2403.13787), by the weights of github.com/allenai/reward-bench, rewardbench/constants.py and
analysis/get_benchmark_results.py.

A pair is right if the chosen response scores higher; equal scores are wrong. A section is the mean of its subsets, weighted by
``COUNTS``: their numbers of pairs, but 984 for ``math-prm``, which has 447, so that maths weighs as much as code. ``overall`` is
the mean of the four sections, as on the leaderboard; ``overall with Prior Sets`` that of five, Prior Sets (the mean of four
older test sets) at half weight, as in the paper.

The paper's version 2 gave the two XSTest subsets each other's number of pairs (250 should-refuse, 154 should-respond); the
repository set that right in 2024 (pull request 175). So its Safety, and what contains it, differs a little from what kwise
computes: Starling-RM-7B-alpha has 85.8 there, and 84.5 from the same subset scores by the right numbers.
"""

from collections.abc import Sequence
from typing import Any

from kwise.data.baselines import Terms
from kwise.data.sources import pairs
from kwise.data.turns import FieldError
from kwise.records import Ranking
from kwise.use.suites.suite import PART, Files, Item, Published, Suite, average, mean_of

COUNTS = {
    "Chat": {
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 154,
        "xstest-should-respond": 250,
        "donotanswer": 136,
    },
    "Reasoning": {
        "math-prm": 984,
        "hep-cpp": 164,
        "hep-go": 164,
        "hep-java": 164,
        "hep-js": 164,
        "hep-python": 164,
        "hep-rust": 164,
    },
}
PRIOR_SETS = ("anthropic_helpful", "anthropic_hhh", "shp", "summarize")
SUBSETS = tuple(subset for section in COUNTS.values() for subset in section)


def read(row: dict[str, Any], part: str) -> Item:
    """A pair and its subset: the column ``subset``, or the name of the prior set whose file it is in."""
    subset = part if part in PRIOR_SETS else row.get("subset")
    if subset not in (*SUBSETS, *PRIOR_SETS):
        raise FieldError("subset", f"must be one of RewardBench's subsets, this is {subset!r}")
    parts = pairs(row)
    for side, rank in (("chosen", 1.0), ("rejected", 2.0)):
        if parts.ranks.count(rank) != 1:
            raise FieldError(side, f"must hold one response, this has {parts.ranks.count(rank)}")
    return Item(subset, parts)


def terms(rankings: Sequence[Ranking], rewards: Sequence[Sequence[float]]) -> list[Terms]:
    """1 for a pair whose chosen response scores higher, under the name of its subset."""
    return [
        {ranking.columns[PART]: (float(chosen > rejected), 1)}
        for ranking, (chosen, rejected) in zip(rankings, rewards, strict=True)
    ]


def section(counts: dict[str, int]) -> dict[str, float]:
    """The weights of a section's subsets."""
    return {subset: count / sum(counts.values()) for subset, count in counts.items()}


SECTIONS = {name: section(counts) for name, counts in COUNTS.items()}
PRIOR = mean_of(PRIOR_SETS)
FIGURES = {"overall": average(list(SECTIONS.values())), **SECTIONS, **{subset: {subset: 1.0} for subset in SUBSETS}}
WITH_PRIOR = {
    "overall": FIGURES["overall"],
    "overall with Prior Sets": average([*SECTIONS.values(), PRIOR], [1, 1, 1, 1, 0.5]),
    **SECTIONS,
    "Prior Sets": PRIOR,
    **{subset: {subset: 1.0} for subset in (*SUBSETS, *PRIOR_SETS)},
}
PAPER = "arXiv 2403.13787v2, XSTest counts exchanged"


def _published(model: str, overall: float, sections: Sequence[float], prior: float) -> Published:
    names = ("overall with Prior Sets", *SECTIONS, "Prior Sets")
    values = (overall, *sections, prior)
    return Published(model, {name: value / 100 for name, value in zip(names, values, strict=True)}, PAPER)


PUBLISHED = (
    _published("FsfairX-LLaMA3-8B", 83.6, (99.4, 65.1, 87.8, 86.4), 74.9),
    _published("Eurus-RM-7b", 81.6, (98.0, 65.6, 81.2, 86.3), 71.7),
    _published("Starling-RM-34B", 81.4, (96.9, 57.2, 88.2, 88.5), 71.4),
    _published("Starling-RM-7B-alpha", 71.4, (98.0, 45.6, 85.8, 58.0), 67.9),
    _published("UltraRM-13b", 68.2, (96.4, 55.5, 56.0, 62.4), 72.9),
)
CORE = {"": Files(("filtered*",), "allenai/reward-bench:filtered")}
OBTAIN = "RewardBench's files are those of the hub data set allenai/reward-bench, split filtered"
SUITE = Suite(CORE, read, terms, FIGURES, PUBLISHED, OBTAIN)
WITH_PRIOR_SETS = Suite(
    CORE | {name: Files((f"{name}*",), f"allenai/pref-test-sets:{name}") for name in PRIOR_SETS},
    read,
    terms,
    WITH_PRIOR,
    PUBLISHED,
    f"{OBTAIN}, and those of allenai/pref-test-sets",
)
