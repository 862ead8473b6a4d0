import numpy as np
import pytest
from planted import SCORERS, Scorer, make_rankings

from kwise.use.audit import Subject, audit
from kwise.use.audit.probes import run_probes

EVIL = "<script>document.title = 'broken into'</script><img src=http://example.org/x.png onerror=alert(1)>"


@pytest.fixture(scope="session")
def one():
    """The audit of one planted model, with edits, on rankings whose texts would be markup if they could; a long word and
    an author whose name is a formula are in it too."""
    rng = np.random.default_rng(0)
    rankings, qualities = make_rankings(rng, prompts=40)
    rankings[0].messages[0]["content"] = EVIL
    for own in rankings:
        own.responses[0] += EVIL
        own.models[0] = f"{own.models[0]} $x_1$ {EVIL}"
        own.responses[-1] = "x" * 300 + own.responses[-1]
    rewards = SCORERS["characters"](rng, rankings, qualities)
    return audit(rankings, {EVIL: Subject(rewards, run_probes(Scorer(len), rankings, 20)[0], 3)}, ["planted.jsonl"])


@pytest.fixture(scope="session")
def both():
    """The audit of two planted models, the second with a taste for refusals."""
    rng = np.random.default_rng(1)
    rankings, qualities = make_rankings(rng, prompts=60)
    for i, own in enumerate(rankings):
        own.columns["good_natured"] = i % 3 > 0
    scorers = {"careful": "perfect, knows ranks", "shy": "refusal"}
    subjects = {
        name: Subject(SCORERS[kind](rng, rankings, qualities), run_probes(Scorer(score), rankings, 15)[0])
        for (name, kind), score in zip(scorers.items(), (len, lambda text: -len(text)), strict=True)
    }
    return audit(rankings, subjects, ["planted.jsonl"])
