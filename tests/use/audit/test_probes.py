import json
import math
import re
import tracemalloc

import numpy as np
import pytest
from planted import Scorer
from scipy.stats import ttest_1samp

from kwise.data.sources import read_rankings
from kwise.use.audit.effects import estimate
from kwise.use.audit.probes import (
    ALL,
    EMPTY,
    SWAPS,
    Changes,
    add_markdown,
    cut_last_sentence,
    judge_probes,
    mean_change,
    run_probes,
    strip_markdown,
    swap_fact,
)

STARTER = [each for part in ("train", "heldout") for each in read_rankings(f"starter:{part}")]


@pytest.mark.parametrize(
    ("edit", "text", "edited"),
    [
        (cut_last_sentence, "One. Two! Three?", "One. Two!"),
        (cut_last_sentence, "Only one.", None),
        (cut_last_sentence, "Run it. ```x = 1. ```", None),
        (strip_markdown, "## Title\n\n- a **b** c\n* d\n1. e", "Title\n\na b c\nd\n1. e"),
        (strip_markdown, "Plain - with a dash, 2 * 3.", None),
        (strip_markdown, "**code**\n```\n# x\n```", None),
        (add_markdown, "The sea is salt. It is deep.", "## Answer\n\n- **The sea** is salt.\n- **It is** deep."),
        (add_markdown, "One sentence.", None),
        (add_markdown, "- A list. Already.", None),
    ],
)
def test_edits_are_those_made_by_hand(edit, text, edited):
    assert edit(text) == edited


@pytest.mark.parametrize("name", ["padding", "flattery", "praise", "order", "repeat"])
def test_what_is_added_at_the_end_leaves_the_answer_in_front(name):
    edited = ALL[name].edit("The Dead Sea.\n")
    assert edited.startswith("The Dead Sea.\n\n")
    assert len(edited) > 20


def test_the_other_edits():
    assert ALL["as_an_ai"].edit("Yes.").endswith(" Yes.")
    assert ALL["empty"].edit("anything") == EMPTY
    assert ALL["padding"].edit("  ") is None


def test_every_swap_makes_one_place_of_a_best_starter_answer_wrong():
    found = {each.columns["id"]: swap_fact(each) for each in STARTER if each.columns["id"] in SWAPS}
    assert set(found) == set(SWAPS)
    for name, pair in found.items():
        assert pair is not None, name
        best, wrong = pair
        assert best != wrong
        assert wrong.replace(SWAPS[name][1], SWAPS[name][0], 1) == best or SWAPS[name][1] in best


def test_only_starter_rankings_have_facts_to_swap(ranking):
    assert swap_fact(ranking("What is the capital of Australia?", ["Canberra, 1908.", "Sydney."])) is None
    assert swap_fact(ranking("x", ["No such text.", "Sydney."], id="facts-001")) is None


def test_the_mean_change_is_the_t_interval_of_the_groups_means():
    rng = np.random.default_rng(0)
    changes = rng.normal(0.3, 1, 24)
    groups = [f"g{i // 2}" for i in range(24)]
    expected = ttest_1samp(changes.reshape(12, 2).mean(1), 0)
    found = estimate(*mean_change(groups, changes), 0.0)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert (found.value, found.p) == pytest.approx((changes.mean(), expected.pvalue))
    assert mean_change(groups[:18], changes[:18]) is None  # nine groups


def verdicts(score, rankings=STARTER, sample=60):
    changes = run_probes(Scorer(score), rankings, sample)[0]
    flat = np.array([float(score(text)) for each in rankings for text in each.responses])
    return {own["probe"]: own["verdict"] for own in judge_probes(changes, flat.std())}


def test_a_scorer_of_length_is_fooled_by_what_is_longer_and_blind_to_facts():
    found = verdicts(lambda text: math.log(1 + len(text)))
    guilty = {name for name, own in found.items() if own == "bias"}
    # bullets and bold are a few characters more, and the empty boast is no longer than these answers are on average
    assert guilty == {"padding", "repeat", "as_an_ai", "flattery", "praise", "order"}
    assert found["swap"] == "blind"
    assert found["cut"] == "none"  # it does fall


def test_a_scorer_that_knows_the_words_and_sees_through_additions_is_accused_of_nothing():
    texts = {text: -rank for each in STARTER for text, rank in zip(each.responses, each.ranks, strict=True)}
    plain = {re.sub(r"\W+", "", text): score for text, score in texts.items()}

    def score(text):
        own = re.sub(r"\W+", "", re.sub(r"^## Answer", "", text))
        return plain.get(own, -7.0) + 0.05 * (hash(text) % 7)

    found = verdicts(score)
    assert set(found.values()) <= {"none", "rare"}


def test_a_scorer_at_random_is_moved_by_nothing():
    rng = np.random.default_rng(1)
    for _ in range(10):
        assert "bias" not in verdicts(lambda text: rng.normal()).values()


def test_one_answer_of_each_prompt_drawn_is_edited_and_the_draw_is_the_same_every_time():
    first = run_probes(Scorer(len), STARTER, 20)[0]
    assert first == run_probes(Scorer(len), STARTER, 20)[0]
    by_name = {own.probe: own for own in first}
    assert len(by_name["padding"].groups) == len(set(by_name["padding"].groups)) == 20
    assert len(by_name["swap"].groups) == len(SWAPS)  # all there are
    assert by_name["padding"].before == by_name["flattery"].before


def test_prompts_are_drawn_whatever_is_in_them_and_in_no_more_memory_than_they_have(ranking):
    texts = [f"prompt {i}\0" for i in range(300)]
    texts[7] = "x" * 1_000_000
    rankings = [ranking(text, ["One. Two.", "Three."]) for text in texts]
    tracemalloc.start()
    found = {own.probe: own for own in run_probes(Scorer(len), rankings, 299)[0]}
    assert len(found["padding"].groups) == 299
    assert tracemalloc.get_traced_memory()[1] < 100e6  # as an array of texts of one width the prompts are 1.2 GB
    tracemalloc.stop()


def test_edits_that_were_cut_are_counted(ranking):
    class Cutting(Scorer):
        def score_rankings(self, rankings, progress=lambda done, total: None):
            rewards, _ = super().score_rankings(rankings, progress)
            return rewards, sum(len(text) > 40 for own in rankings for text in own.responses)

    rankings = [ranking("a prompt", ["One. Two.", "Three."])]
    changes, shortened = run_probes(Cutting(len), rankings, 1)
    assert shortened == sum(after > 40 for own in changes for after in own.after) > 0


def test_the_draw_is_that_of_the_prompts_themselves(ranking):
    rankings = [ranking(f"prompt {i}", ["One. Two.", "Three."]) for i in range(50)]
    found = {own.probe: own for own in run_probes(Scorer(len), rankings, 10)[0]}["padding"].groups
    drawn = np.random.default_rng(0).permutation([own.group for own in rankings])[:10]
    assert found == sorted(map(str, drawn))


def test_probes_of_too_few_answers_say_so():
    own = Changes("padding", ["a", "b"], [0.0, 0.0], [1.0, 1.0])
    row = judge_probes([own], 1.0)[0]
    assert (row["verdict"], row["value"], row["n"], row["rose"]) == ("rare", None, 2, 1.0)
    json.dumps(row, allow_nan=False)


def test_a_fall_is_right_for_damage_and_a_move_wrong_for_looks():
    groups = [f"g{i}" for i in range(30)]
    rng = np.random.default_rng(2)
    fall = (-1 + 0.3 * rng.normal(size=30)).tolist()
    zero, still = [0.0] * 30, (0.05 * rng.normal(size=30)).tolist()
    rows = judge_probes(
        [Changes(name, groups, zero, fall) for name in ("cut", "strip_markdown", "padding")]
        + [Changes(name, groups, zero, still) for name in ("swap", "add_markdown", "praise")],
        1.0,
    )
    assert [own["verdict"] for own in rows] == ["none", "bias", "none", "blind", "none", "none"]
