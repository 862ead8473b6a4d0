"""One model a process, one reward a completion, whatever order and thread they come in."""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest

from kwise import RewardModel
from kwise.use.bindings import scorer
from kwise.use.bindings.scorer import Scorer

CHAT = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "And?"},
]


def test_mixed_prompts_come_back_in_order_with_the_scores_they_have_alone(folder, alone):
    prompts = ["one", CHAT, "one", "two", CHAT, "one"]
    completions = ["a", "b c", [{"role": "assistant", "content": "longer answer"}], "", "b c", "a"]
    found = Scorer(folder)(prompts, completions)
    texts = ["a", "b c", "longer answer", "", "b c", "a"]
    assert found == pytest.approx([alone(p, t) for p, t in zip(prompts, texts, strict=True)], abs=1e-5)
    assert Scorer(folder)([], []) == []


def test_completions_of_a_transcript_score_what_they_do_as_messages(folder, alone):
    transcript = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: And?\n\nAssistant:"
    assert Scorer(folder)([transcript, CHAT], [" b c\n", "b c"]) == pytest.approx([alone(CHAT, "b c")] * 2, abs=1e-5)


def test_completions_of_one_prompt_are_one_row(folder, monkeypatch):
    made = Scorer(folder)
    seen = []
    score = made.model.score_encoded
    monkeypatch.setattr(made.model, "score_encoded", lambda encoded: seen.append(len(encoded)) or score(encoded))
    made(["one", "two"] * 4, [f"answer {i}" for i in range(8)])
    assert seen == [2]


def test_calibrated_rewards_and_lower_bounds_by_their_formulas(folder, alone):
    prompts, texts = ["one", "two", "one"], ["a", "bb cc", "third answer"]
    plain = [alone(p, t) for p, t in zip(prompts, texts, strict=True)]
    level = [(r - 0.25 * math.log1p(len(t)) - 0.5) / 2.0 for r, t in zip(plain, texts, strict=True)]
    assert Scorer(folder, calibrated=True)(prompts, texts) == pytest.approx(level, abs=1e-5)
    model = RewardModel.from_pretrained(folder)
    errors = [model.assess(p, [t]).errors[0] for p, t in zip(prompts, texts, strict=True)]
    assert min(errors) > 0.01
    lower = [r - 1.5 * e for r, e in zip(plain, errors, strict=True)]
    assert Scorer(folder, lower_bound=1.5)(prompts, texts) == pytest.approx(lower, abs=1e-4)
    both = [own - 1.5 * e / 2.0 for own, e in zip(level, errors, strict=True)]
    assert Scorer(folder, True, 1.5)(prompts, texts) == pytest.approx(both, abs=1e-4)


def test_threads_share_one_model_and_get_their_own_scores(folder, alone, monkeypatch):
    loads = []
    load = RewardModel.from_pretrained.__func__
    monkeypatch.setattr(
        RewardModel, "from_pretrained", classmethod(lambda cls, *a, **k: loads.append(a) or load(cls, *a, **k))
    )
    scorer.load.cache_clear()
    jobs = [(f"prompt {i % 3}", f"answer number {i}") for i in range(24)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda job: Scorer(folder)([job[0]], [job[1]])[0], jobs))
    assert len(loads) == 1
    assert found == pytest.approx([alone(*job) for job in jobs], abs=1e-5)


@pytest.mark.parametrize(
    ("prompts", "completions", "message"),
    [
        (["a"], ["b", "c"], "1 prompts for 2 completions"),
        (["a", 5], ["b", "c"], r"prompts\[1\]: must be text"),
        (["a", ""], ["b", "c"], r"prompts\[1\]: the prompt is empty"),
        ([CHAT[:2]], ["b"], r"prompts\[0\]: the prompt must end with a user turn"),
        (["a"], [None], r"completions\[0\]: must be text or a list with one assistant message"),
        (["a"], [[*CHAT[1:2], *CHAT[1:2]]], r"completions\[0\]: must be text or a list with one assistant message"),
    ],
)
def test_what_is_no_prompt_or_completion_is_named_by_its_place(prompts, completions, message, folder):
    with pytest.raises(ValueError, match=message):
        Scorer(folder)(prompts, completions)


def test_what_the_model_lacks_is_said_before_training_starts(folder, tmp_path):
    plain = RewardModel.from_pretrained(folder)
    plain.settings.calibration = plain.uncertainty = None
    plain.save_pretrained(tmp_path / "plain")
    for options, message in (
        ({"calibrated": True}, "has not been calibrated: run kwise calibrate"),
        ({"lower_bound": 1.0}, "has no uncertainty beside it: make it"),
        ({"lower_bound": -1.0}, "a lower bound is c >= 0"),
        ({"lower_bound": math.nan}, "a lower bound is c >= 0"),
        ({"lower_bound": math.inf}, "a lower bound is c >= 0"),
    ):
        with pytest.raises(ValueError, match=message):
            Scorer(str(tmp_path / "plain"), **options)
    with pytest.raises(ValueError, match="nowhere is no folder here, and as a model of the hub cannot be loaded"):
        Scorer(str(tmp_path / "nowhere"))


def test_completions_that_are_cut_are_counted_in_a_warning(folder):
    with pytest.warns(UserWarning, match="1 completions with their prompts were cut to 512 tokens"):
        Scorer(folder)(["a", "a"], ["short", "x" * 600])
