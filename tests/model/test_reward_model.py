import json
import math
import random

import numpy as np
import pytest
import torch
from tiny_models import tiny_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from kwise import RewardModel
from kwise.model import reward_model as reward_model_module
from kwise.model.calibrated import Calibration
from kwise.model.reward_model import Settings, map_rows, row_rewards
from kwise.model.uncertainty import FILE, Uncertainty

PROMPT = [{"role": "user", "content": "Which sea is the saltiest?"}]
ANSWERS = [
    "The Dead Sea.",
    "I would rather not say.",
    "It is the Red Sea, as everybody knows, and the water there is red.",
    "Sea",
]


@pytest.fixture
def reward_model(tokenizer):
    model = tiny_model(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    return RewardModel(model, tokenizer, Settings(max_length=256))


def test_a_saved_model_scores_in_plain_transformers_as_it_does_here(reward_model, tmp_path):
    reward_model.save_pretrained(tmp_path)
    expected = RewardModel.from_pretrained(tmp_path).score(PROMPT, ANSWERS)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    chats = [[*PROMPT, {"role": "assistant", "content": answer}] for answer in ANSWERS]
    with torch.no_grad():
        one_by_one = [
            plain(torch.tensor([tokenizer.apply_chat_template(c, return_dict=False)])).logits.item() for c in chats
        ]
        batch = tokenizer.apply_chat_template(chats, padding=True, return_tensors="pt", return_dict=True)
        padded = plain(**batch).logits[:, 0].tolist()
    assert max(expected) - min(expected) > 0.05
    assert one_by_one == pytest.approx(expected, abs=1e-5)
    assert padded == pytest.approx(expected, abs=1e-5)


def test_the_same_conversation_scores_the_same_in_any_row(reward_model):
    rng = random.Random(0)
    words = ["salt", "sea", "water", "is", "the", "a", "of", "deep", "blue", "dead"]

    def text():
        return " ".join(rng.choices(words, k=rng.randint(1, 30)))

    target = reward_model.encoder.encode(PROMPT, ANSWERS[:1])
    alone = next(reward_model.score_encoded([target]))[0]
    for _ in range(100):
        others = [
            reward_model.encoder.encode(
                [{"role": "user", "content": text()}], [text() for _ in range(rng.randint(1, 5))]
            )
            for _ in range(rng.randint(0, 5))
        ]
        place = rng.randint(0, len(others))
        stream = [*others[:place], target, *others[place:]]
        scores = list(reward_model.score_encoded(stream, tokens_per_row=rng.choice([64, 200, 1000])))
        assert scores[place][0] == pytest.approx(alone, abs=1e-5)


def test_score_takes_text_or_turns_and_one_or_many_responses(reward_model):
    many = reward_model.score(PROMPT, ANSWERS)
    assert reward_model.score("Which sea is the saltiest?", ANSWERS) == pytest.approx(many)
    assert reward_model.score(PROMPT, ANSWERS[0]) == pytest.approx(many[:1], abs=1e-5)
    assert reward_model.score(PROMPT, []) == []


def test_rewards_come_back_in_order_whatever_the_row_budget(reward_model):
    encoded = [reward_model.encoder.encode(PROMPT, ANSWERS[: k % 4 + 1]) for k in range(40)]
    small, large = (list(map_rows(reward_model.model, encoded, row_rewards, budget)) for budget in (50, 5000))
    assert [len(each) for each in small] == [k % 4 + 1 for k in range(40)]
    for a, b in zip(small, large, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_rewards_of_a_bfloat16_model_are_float32_from_the_head_on(reward_model):
    model = reward_model.model.to(torch.bfloat16)
    rewards = next(map_rows(model, [reward_model.encoder.encode(PROMPT, ANSWERS)], row_rewards))
    assert rewards.dtype == torch.float32
    assert any(value != torch.tensor(value).bfloat16().item() for value in rewards.tolist())


def test_settings_travel_with_the_model(reward_model, tmp_path):
    reward_model.settings.max_length = 77
    reward_model.save_pretrained(tmp_path)
    assert RewardModel.from_pretrained(tmp_path).encoder.max_length == 77


def test_an_unknown_reward_rule_is_refused(reward_model, tmp_path):
    reward_model.settings.reward_at = "first_token"
    reward_model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"unknown reward rule 'first_token'; .* knows last_token, card"):
        RewardModel.from_pretrained(tmp_path)


def test_the_uncertainty_is_fetched_when_it_is_asked_for_and_once(reward_model, tmp_path, monkeypatch):
    head = reward_model.model.score.weight.detach()[0]
    reward_model.uncertainty = Uncertainty(torch.eye(len(head)), torch.zeros(len(head)), head, {"kind": "fisher"})
    reward_model.save_pretrained(tmp_path)
    fetched = []
    fetch = reward_model_module.cached_file
    monkeypatch.setattr(
        reward_model_module,
        "cached_file",
        lambda source, name, **how: fetched.append(name) or fetch(source, name, **how),
    )
    found = RewardModel.from_pretrained(tmp_path)
    found.score("a question", ["an answer"])
    assert FILE not in fetched
    assert found.assess("a question", ["an answer"]).errors[0] > 0
    assert found.uncertainty is found.known_uncertainty()
    assert fetched.count(FILE) == 1
    found.uncertainty = None
    assert found.uncertainty is None
    (tmp_path / FILE).unlink()
    bare = RewardModel.from_pretrained(tmp_path)
    assert bare.uncertainty is None and bare.uncertainty is None
    assert fetched.count(FILE) == 2


def test_a_folder_without_kwise_json_uses_the_models_context(reward_model, tmp_path):
    reward_model.save_pretrained(tmp_path)
    (tmp_path / "kwise.json").unlink()
    assert RewardModel.from_pretrained(tmp_path).settings.max_length == 512


def test_a_loaded_model_scores_without_the_dense_mask(reward_model, tmp_path):
    reward_model.save_pretrained(tmp_path)
    assert RewardModel.from_pretrained(tmp_path).model.config._attn_implementation == "kwise_cascade"


def test_settings_with_an_unknown_key_are_refused(reward_model, tmp_path):
    reward_model.save_pretrained(tmp_path)
    (tmp_path / "kwise.json").write_text('{"max_length": 5, "temperature": 2}')
    with pytest.raises(ValueError, match=r"kwise\.json is not .*'temperature'"):
        RewardModel.from_pretrained(tmp_path)


def test_a_response_that_is_cut_is_warned_of(reward_model):
    with pytest.warns(UserWarning, match="1 responses were cut to 256 tokens"):
        reward_model.score(PROMPT, ["short", "long " * 200])


@pytest.mark.parametrize(
    ("prompt", "responses", "problem"),
    [
        ("q", ["a", None], r"responses\[1\]: .* this is null"),
        ("q", [3], r"responses\[0\]: .* this is a number"),
        ([], ["a"], "messages: the list of messages is empty"),
        ([{"role": "user"}], ["a"], r"messages\[0\].content: must be text"),
        ([{"role": "human", "content": "q"}], ["a"], r"messages\[0\].role: must be one of"),
        ([*PROMPT, {"role": "assistant", "content": "a"}], ["a"], "must end with a user turn"),
        (["q"], ["a"], r"messages\[0\]: must be an object"),
        ("q", None, "responses: must be text or a list of texts, this is null"),
        ("q", 3, "responses: must be text or a list of texts, this is a number"),
        ("q", {"a": 1}, "responses: must be text or a list of texts, this is an object"),
        ("q", {"a", "b"}, "responses: must be text or a list of texts, this is set"),
        ("q", b"ab", "responses: must be text or a list of texts, this is bytes"),
        ("q", (text for text in "ab"), "responses: must be text or a list of texts, this is generator"),
    ],
)
def test_what_is_no_prompt_or_no_text_gets_no_score(reward_model, prompt, responses, problem):
    with pytest.raises(ValueError, match=problem):
        reward_model.score(prompt, responses)


def test_responses_may_come_in_any_sequence(reward_model):
    expected = reward_model.score(PROMPT, ANSWERS)
    assert reward_model.score(PROMPT, tuple(ANSWERS)) == reward_model.score(PROMPT, np.array(ANSWERS)) == expected


@pytest.mark.parametrize("c", [-1.0, math.nan, math.inf])
def test_the_best_by_no_lower_bound_at_all_is_refused(reward_model, c):
    with pytest.raises(ValueError, match="c >= 0"):
        reward_model.best(PROMPT, ANSWERS, c)
    head = reward_model.model.score.weight.detach()[0]
    reward_model.uncertainty = Uncertainty(torch.eye(len(head)), torch.zeros(len(head)), head, {"kind": "fisher"})
    with pytest.raises(ValueError, match="c >= 0"):
        reward_model.assess(PROMPT, ANSWERS, c)


def test_a_response_given_as_a_message_is_as_long_as_its_text(reward_model):
    reward_model.settings.calibration = Calibration(temperature=0.5, centre=9.0, length_slope=1.0)
    head = reward_model.model.score.weight.detach()[0]
    reward_model.uncertainty = Uncertainty(torch.eye(len(head)), torch.zeros(len(head)), head, {"kind": "fisher"})
    turns = [[{"role": "assistant", "content": text}] for text in ANSWERS[:2]]
    wanted = reward_model.probability(PROMPT, *ANSWERS[:2])
    assert reward_model.probability(PROMPT, *turns) == pytest.approx(wanted)
    found, wanted = (reward_model.assess(PROMPT, given).beats for given in (turns, ANSWERS[:2]))
    assert torch.tensor(found).numpy() == pytest.approx(torch.tensor(wanted).numpy())
    assert reward_model.assess(PROMPT, ANSWERS[0]).rewards == pytest.approx(reward_model.score(PROMPT, ANSWERS[0]))


def test_probability_is_the_sigmoid_of_the_difference_of_rewards(reward_model):
    for model, weight in ((reward_model, 1), (reward_model, 1e4)):
        model.model.score.weight.data.mul_(weight)
        first, second = model.score(PROMPT, ANSWERS[:2])
        found = model.probability(PROMPT, ANSWERS[0], ANSWERS[1])
        expected = 1 / (1 + math.exp(min(second - first, 700)))
        assert found == pytest.approx(expected, abs=1e-7)
        assert found + model.probability(PROMPT, ANSWERS[1], ANSWERS[0]) == pytest.approx(1)


def test_probability_uses_temperature_and_length_slope(reward_model):
    reward_model.settings.calibration = Calibration(temperature=0.5, centre=9.0, length_slope=0.1)
    first, second = reward_model.score(PROMPT, ANSWERS[:2])
    gap = first - second - 0.1 * (math.log(1 + len(ANSWERS[0])) - math.log(1 + len(ANSWERS[1])))
    expected = 1 / (1 + math.exp(-gap / 0.5))
    assert reward_model.probability(PROMPT, ANSWERS[0], ANSWERS[1]) == pytest.approx(expected, abs=1e-6)


def test_a_kwise_json_from_before_calibration_loads(reward_model, tmp_path):
    reward_model.save_pretrained(tmp_path)
    old = {"max_length": 99, "truncation": "left", "reward_at": "last_token", "trained": {"rankings": 5}}
    (tmp_path / "kwise.json").write_text(json.dumps(old))
    loaded = RewardModel.from_pretrained(tmp_path)
    assert loaded.settings == Settings(99, trained={"rankings": 5}) and loaded.settings.calibration is None


@pytest.mark.parametrize(
    ("calibration", "problem"),
    [({"temperature": 0}, "above 0"), ({"temperature": 1.0, "slope": 2}, "'slope'"), (3, "mapping")],
)
def test_a_calibration_that_cannot_be_applied_is_refused_with_its_file(reward_model, tmp_path, calibration, problem):
    reward_model.save_pretrained(tmp_path)
    (tmp_path / "kwise.json").write_text(json.dumps({"max_length": 99, "calibration": calibration}))
    with pytest.raises(ValueError, match=rf"kwise\.json is not .*{problem}"):
        RewardModel.from_pretrained(tmp_path)


def test_a_settings_file_that_cannot_be_written_leaves_the_old_one(tmp_path):
    Settings(7).write(tmp_path)
    with pytest.raises(TypeError):
        Settings(8, trained={"what": object()}).write(tmp_path)
    assert Settings.read(tmp_path / "kwise.json").max_length == 7
    assert [path.name for path in tmp_path.iterdir()] == ["kwise.json"]
