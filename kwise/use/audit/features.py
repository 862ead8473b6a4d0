"""What is in the answers that are audited, as columns: length, layout, manner, place and author of each."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kwise.data.covariates import COVARIATES
from kwise.records import Ranking

LENGTH, POSITION, AUTHOR = "length", "position", "model: "
LABELS = {
    LENGTH: "length",
    "lists": "lists",
    "headings": "headings",
    "bold": "bold text",
    "code": "code blocks",
    "tables": "tables",
    "emoji": "emoji",
    "refusal": "refusals",
    "flattery": "flattery",
    POSITION: "late place in the list",
}
FORMAT = ("lists", "headings", "bold", "code", "tables", "emoji")
COUNTED = (*FORMAT, "refusal", "flattery")
MIN_PROMPTS = 10  # a trait that fewer prompts tell of is too rare to judge by
KNOTS = (5, 27.5, 50, 72.5, 95)  # percentiles; Harrell, Regression Modeling Strategies, 2nd ed., table 2.3


@dataclass(frozen=True)
class Trait:
    """One thing an answer may have. ``column`` [N] is what is tested; ``flexible`` [N, c] stands in its place when another
    trait is tested, so that a score that depends on this one in another form (a count, a share, a square) is still explained
    by it. ``graded`` traits are in within-prompt standard deviations, all others are 1 or 0 (has it, has it not)."""

    name: str
    label: str
    graded: bool
    column: np.ndarray
    flexible: np.ndarray


@dataclass(frozen=True)
class Answers:
    """All N answers of L rankings. ``owner`` [N] is the ranking of each, ``group`` [N] its prompt group, both counted from 0;
    ``level`` [N] the number of distinct ranks better than its own and ``levels`` [N] how many there are in its ranking."""

    owner: np.ndarray
    group: np.ndarray
    level: np.ndarray
    levels: np.ndarray
    characters: np.ndarray
    traits: tuple[Trait, ...]

    def within(self, columns: np.ndarray) -> np.ndarray:
        """[N, ...] less the mean of each ranking."""
        flat = columns.reshape(len(columns), -1)
        sums = np.zeros((self.owner[-1] + 1, flat.shape[1]))
        np.add.at(sums, self.owner, flat)
        means = sums / np.bincount(self.owner)[:, None]
        centred = flat - means[self.owner]
        centred[np.abs(centred) < 1e-12 * (1 + np.abs(flat))] = 0.0  # equal values differ from their mean by rounding
        return np.asarray(centred.reshape(columns.shape))

    def spread(self, column: np.ndarray) -> float:
        """The within-ranking standard deviation: root of the squares around each ranking's mean over N - L."""
        return float(np.sqrt(np.square(self.within(column)).sum() / (len(column) - self.owner[-1] - 1)))

    def prompts_with(self, column: np.ndarray) -> int:
        """In how many prompt groups the answers of a ranking differ in it."""
        return len(np.unique(self.group[self.within(column) != 0]))


def check_rankings(rankings: Sequence[Ranking]) -> None:
    """Raise ``ValueError`` for rankings of fewer than two prompts, and for such as rank nothing: before anything is scored."""
    prompts = len({ranking.group for ranking in rankings})
    if prompts < 2:
        raise ValueError(f"an audit needs rankings of at least two prompts, these are of {prompts}")
    if all(len(set(ranking.ranks)) < 2 for ranking in rankings):
        raise ValueError("in every ranking all answers are tied: there is no quality to hold the rewards against")


def read_answers(rankings: Sequence[Ranking]) -> Answers:
    """The answers of ``rankings`` in order. Raises ``ValueError`` where ``check_rankings`` does."""
    check_rankings(rankings)
    groups = {group: i for i, group in enumerate(dict.fromkeys(ranking.group for ranking in rankings))}
    owner = np.array([i for i, ranking in enumerate(rankings) for _ in ranking.ranks])
    level: list[int] = []
    levels: list[int] = []
    for ranking in rankings:
        distinct = {rank: i for i, rank in enumerate(sorted(set(ranking.ranks)))}
        level += [distinct[rank] for rank in ranking.ranks]
        levels += [len(distinct)] * len(ranking.ranks)
    texts = [text for ranking in rankings for text in ranking.responses]
    places = np.array([i / (len(ranking.ranks) - 1) for ranking in rankings for i in range(len(ranking.ranks))])
    models = [model for ranking in rankings for model in ranking.models]
    group = np.array([groups[rankings[i].group] for i in owner])
    without = Answers(
        owner, group, np.array(level), np.array(levels), np.array([float(len(text)) for text in texts]), ()
    )
    traits = [_length(texts), *(_counted(name, texts) for name in COUNTED)]
    traits.append(Trait(POSITION, LABELS[POSITION], True, places, np.stack([places, places**2, places == 0], 1)))
    for model, _ in Counter(models).most_common():
        if model is not None:
            has = np.array([float(each == model) for each in models])
            traits.append(Trait(AUTHOR + model, f"answers of {model}", False, has, has[:, None]))
    return Answers(owner, group, without.level, without.levels, without.characters, tuple(traits))


def _length(texts: Sequence[str]) -> Trait:
    characters = np.array([float(len(text)) for text in texts])
    words = np.array([float(len(text.split())) for text in texts])
    logs = np.log1p(characters)
    flexible = [logs, spline(logs), np.log1p(words), characters, words, spline(np.log1p(words))]
    return Trait(LENGTH, LABELS[LENGTH], True, logs, np.column_stack(flexible))


def _counted(name: str, texts: Sequence[str]) -> Trait:
    logs = np.array([COVARIATES[name](text) for text in texts])
    has = (logs > 0).astype(float)
    return Trait(name, LABELS[name], False, has, np.column_stack([has, logs, np.expm1(logs)]))


def spline(x: np.ndarray) -> np.ndarray:
    """[N, up to 3] the curved columns of a restricted cubic spline of ``x``: linear beyond the outer of ``KNOTS`` (Stone and
    Koo, 1985). Fewer where percentiles fall together."""
    knots = np.unique(np.percentile(x, KNOTS))
    if len(knots) < 3:
        return np.zeros((len(x), 0))
    last, before = knots[-1], knots[-2]

    def cube(knot: float) -> np.ndarray:
        return np.asarray(np.maximum(x - knot, 0.0) ** 3)

    columns = [
        (cube(knot) - cube(before) * (last - knot) / (last - before) + cube(last) * (before - knot) / (last - before))
        / (last - knots[0]) ** 2
        for knot in knots[:-2]
    ]
    return np.column_stack(columns)
