"""Rankings whose truth is known, and scorers that do one known thing."""

import numpy as np

from kwise.records import Message, Ranking

AUTHORS = {f"author-{i}": strength for i, strength in enumerate((0.9, 0.5, 0.3, 0.0, 0.0, -0.3, -0.6, -0.8))}
FAVOURITE = "author-4"
TEXT = "the of light water city answer because number small river often people under simple reason"
WORDS = TEXT.split(" ")


def make_rankings(rng, prompts=150, sizes=(4, 5, 6, 7)):
    """Answers as they come: better ones are longer, have more layout, and come from better authors; what is laid out is longer;
    some prompts call for lists, some for code, some for refusals. Ranks are those of a quality nobody sees, which the
    list [L][K] that comes second holds."""
    rankings, qualities = [], []
    for i in range(prompts):
        size = int(rng.choice(sizes))
        names = rng.choice(list(AUTHORS), size, replace=False)
        wants_lists, wants_code, is_harmful = rng.normal(), rng.random() < 0.15, rng.random() < 0.3
        texts, quality = [], []
        for name in names:
            q = AUTHORS[name] + rng.normal()
            refuses = rng.random() < (0.5 if is_harmful else 0.05)
            q += (0.8 if is_harmful else -0.8) * refuses
            fancy = rng.normal() + 0.5 * q + 0.5 * wants_lists
            length = np.exp(4.3 + 0.35 * q + 0.25 * max(fancy, 0) + 0.5 * rng.normal() - 0.8 * refuses)
            texts.append(_text(rng, int(length) + 3, 0 if refuses else fancy, wants_code, refuses, q))
            quality.append(q)
        ranks = [float(1 + sum(other > own for other in quality)) for own in quality]
        prompt = [Message(role="user", content=f"question {i}")]
        rankings.append(Ranking(prompt, texts, ranks, list(map(str, names)), "planted.jsonl", i + 1))
        qualities.append(quality)
    return rankings, qualities


def _text(rng, words, fancy, wants_code, refuses, quality):
    said = list(rng.choice(WORDS, words))
    lines = [" ".join(said[i : i + 14]) + "." for i in range(0, len(said), 14)]
    if fancy > 0.6:
        lines = ["- " + line if rng.random() < 0.7 else line for line in lines]
    if fancy + rng.normal() > 1.2:
        lines.insert(0, "## Overview")
    if fancy + rng.normal() > 0.8:
        lines = [f"**Note** {line}" if rng.random() < 0.5 else line for line in lines]
    if wants_code and rng.random() < 0.6:
        lines += ["```", "x = 1", "```"]
    if rng.random() < 0.12:
        lines[0] += " 🙂"
    if rng.random() < 0.15 - 0.05 * np.tanh(quality):
        lines.insert(0, "Great question!")
    if refuses:
        lines.insert(0, "I'm sorry, but I can't help with that.")
    return "\n".join(lines)


def _flat(rankings, score):
    return [[float(score(text, model)) for text, model in zip(r.responses, r.models, strict=True)] for r in rankings]


def _noisy(rng, table, share=0.3):
    """Noise of ``share`` of the spread of ``table``."""
    spread = np.std([value for own in table for value in own])
    return [[value + share * spread * rng.normal() for value in own] for own in table]


def _layout(text, _):
    lines = text.split("\n")
    lists, heads = sum(line.startswith("- ") for line in lines), sum(line.startswith("#") for line in lines)
    return np.sqrt(lists) + 2.0 * (heads > 0) + 1.5 * ("**" in text)


SCORERS = {
    "characters": lambda rng, r, q: _noisy(rng, _flat(r, lambda text, _: len(text))),
    "words": lambda rng, r, q: _noisy(rng, _flat(r, lambda text, _: np.log(1 + len(text.split())))),
    "markdown": lambda rng, r, q: _noisy(rng, _flat(r, _layout)),
    "refusal": lambda rng, r, q: _noisy(rng, _flat(r, lambda text, _: "I can't help" in text)),
    "identity": lambda rng, r, q: _noisy(rng, _flat(r, lambda _, model: model == FAVOURITE)),
    "random": lambda rng, r, q: _flat(r, lambda *_: rng.normal()),
    "perfect, knows ranks": lambda rng, r, q: _noisy(rng, [[-rank for rank in own.ranks] for own in r], 0.7),
    "perfect, knows quality": lambda rng, r, q: _noisy(rng, q, 0.7),
}
GUILTY_OF = {
    "characters": {"length"},
    "words": {"length"},
    "markdown": {"lists", "headings", "bold"},
    "refusal": {"refusal"},
    "identity": {f"model: {FAVOURITE}"},
    "random": set(),
    "perfect, knows ranks": set(),
    "perfect, knows quality": set(),
}


class Scorer:
    """Stands where a reward model would: scores each text of each ranking by ``score(text)``."""

    def __init__(self, score):
        self.score = score

    def score_rankings(self, rankings, progress=lambda done, total: None):
        return [[float(self.score(text)) for text in ranking.responses] for ranking in rankings], 0
