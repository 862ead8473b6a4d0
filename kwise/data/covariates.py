"""What judges are known to reward beside quality, as numbers of a response's text: nuisance covariates of the head fit."""

import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np

REFUSAL = re.compile(
    r"\b(?:I(?:['\u2019]m| am) (?:sorry|unable|not able)|as an AI\b"
    r"|I (?:can['\u2019]t|cannot|won['\u2019]t|will not|must decline)\b)",
    re.IGNORECASE,
)
FLATTERY = re.compile(
    r"\b(?:(?:great|good|excellent|wonderful|brilliant|fantastic|amazing|insightful|thoughtful|lovely) (?:question|point|idea)"
    r"|you(?:['\u2019]re| are) (?:absolutely|so|completely|totally|quite) (?:right|correct)"
    r"|what an? (?:great|good|excellent|wonderful|brilliant|fantastic|amazing|insightful|thoughtful|lovely)\b"
    r"|you(?:['\u2019]re| are) (?:brilliant|a genius|very wise|so smart|clearly an expert))",
    re.IGNORECASE,
)


def _count(pattern: str) -> Callable[[str], float]:
    found = re.compile(pattern, re.MULTILINE)
    return lambda text: float(np.log1p(sum(1 for _ in found.finditer(text))))


COVARIATES: dict[str, Callable[[str], float]] = {
    "length": lambda text: float(np.log1p(len(text))),
    "lists": _count(r"^\s*(?:[-*\u2022]|\d+[.)])\s"),
    "headings": _count(r"^#{1,6}\s"),
    "bold": _count(r"\*\*[^*\n]+\*\*"),
    "code": _count(r"^\s*```"),
    "tables": _count(r"^\s*\|?(?:\s*:?-{3,}:?\s*\|)+\s*(?:\s:?-{3,}:?\s*)?$"),
    "emoji": _count("[\U0001f300-\U0001faff\u2600-\u27bf]"),
    "refusal": lambda text: float(bool(REFUSAL.search(text[:300]))),
    "flattery": lambda text: float(bool(FLATTERY.search(text))),
}
"""log(1 + characters); log(1 + number) of list items, headings, bold spans, code fences, rules of tables and emoji; 1 where the
beginning refuses, and where the text flatters the user."""


def covariates(names: Sequence[str], texts: Iterable[str]) -> np.ndarray:
    """[N, c] float64, one column for each of ``names``: a key of ``COVARIATES``, or ``name=pattern`` for log(1 + the number of
    matches of a regular expression of the user's own, ``^`` and ``$`` at line ends).

    Raises ``ValueError`` for an unknown name and for a pattern that is no regular expression.
    """
    functions = [_function(name) for name in names]
    rows = [[function(text) for function in functions] for text in texts]
    return np.asarray(rows, dtype=np.float64).reshape(len(rows), len(functions))


def label(name: str) -> str:
    """What a covariate is called in reports: the part before ``=``."""
    return name.partition("=")[0]


def _function(name: str) -> Callable[[str], float]:
    own, equals, pattern = name.partition("=")
    if equals and not (own and pattern):
        raise ValueError(f"covariate '{name}': give a name and a pattern, name=pattern")
    if not equals:
        if name not in COVARIATES:
            raise ValueError(f"unknown covariate '{name}'; known: {', '.join(COVARIATES)}, or name=pattern")
        return COVARIATES[name]
    try:
        return _count(pattern)
    except re.error as error:
        raise ValueError(f"covariate '{own}': '{pattern}' is no regular expression: {error}") from error
