"""The rule ``card`` against the model card's code, written again here, on Llama's kind of tokenizer."""

from itertools import pairwise

import pytest
import torch
from foreign_models import CardModel, llama_config, scatter
from transformers import LlamaForSequenceClassification

from kwise import RewardModel
from kwise.model.attention import set_attention
from kwise.model.backbone import TEMPLATES
from kwise.model.reward_at import LastToken
from kwise.model.reward_model import Settings

PROMPT = "Which sea is the saltiest?"
ANSWERS = [
    "The Dead Sea, which is really a lake.",
    "No idea.",
    "x",
    "The <unk> Sea, and then much more about it.",
    "long " * 40,
    "",
]


def card_reward(model, tokenizer, samples, max_length):
    """What the card's ``get_reward`` does, in the order it does it."""
    tokenizer.pad_token = tokenizer.unk_token
    model.pad_id = tokenizer(tokenizer.pad_token)["input_ids"][0]
    tokenizer.truncation_side, tokenizer.padding_side = "left", "right"
    batch = tokenizer(samples, truncation=True, max_length=max_length, padding="max_length", return_tensors="pt")
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])


def card_string(prompt, answer):
    return f"<s>[INST] {prompt} </s> [/INST] {answer}</s>"


@pytest.fixture
def pair(llama2_tokenizer):
    """The card's model, and a function that gives the same weights as a ``RewardModel`` of a rule."""
    card = scatter(CardModel(llama_config(len(llama2_tokenizer)))).double()

    def ours(rule, max_length, tokenizer=llama2_tokenizer, template="starling_card"):
        model = LlamaForSequenceClassification(
            llama_config(len(tokenizer), num_labels=1, pad_token_id=tokenizer.unk_token_id)
        )
        model = model.double()
        model.model.load_state_dict(card.transformer.state_dict())
        model.score.load_state_dict(card.v_head.state_dict())
        set_attention(model.eval())
        tokenizer.chat_template = TEMPLATES[template].read_text()
        return RewardModel(model, tokenizer, Settings(max_length, reward_at=rule))

    return card, ours


@pytest.mark.parametrize("max_length", [60, 128, 2048])
def test_card_gives_what_the_cards_code_gives(pair, make_llama2_tokenizer, max_length):
    card, ours = pair
    model = ours("card", max_length)
    samples = [card_string(PROMPT, answer) for answer in ANSWERS]
    expected = card_reward(card, make_llama2_tokenizer(), samples, max_length)
    assert expected[0] != expected[1] and card.pad_id == 1  # BOS
    encoded = model.encoder.encode([{"role": "user", "content": PROMPT}], ANSWERS)
    assert any(encoded.cut) == (max_length < 2048)
    assert next(model.score_encoded([encoded])) == pytest.approx(expected, abs=1e-6)
    assert model.score(PROMPT, ANSWERS[1]) == pytest.approx(expected[1:2], abs=1e-6)


def test_card_begins_with_two_bos_and_truncates_from_the_left_behind_one(pair, make_llama2_tokenizer):
    _, ours = pair
    plain = make_llama2_tokenizer()
    ids = plain(card_string(PROMPT, ANSWERS[4])).input_ids
    assert ids[:2] == [1, 1]
    whole = ours("card", 4096).encoder.encode([{"role": "user", "content": PROMPT}], [ANSWERS[4]])
    short = ours("card", 30).encoder.encode([{"role": "user", "content": PROMPT}], [ANSWERS[4]])
    assert whole.prefix + whole.suffixes[0] == ids and whole.cut == [0]
    assert short.prefix + short.suffixes[0] == [1, *ids[-29:]] and short.cut == [len(ids) - 30]


def test_a_score_of_card_moves_with_the_padding_and_one_of_last_token_does_not(pair):
    _, ours = pair
    by_card = [ours("card", length).score(PROMPT, ANSWERS[:2]) for length in (128, 256, 512)]
    by_last = [ours("last_token", length).score(PROMPT, ANSWERS[:2]) for length in (128, 256, 512)]
    for k in range(2):
        values = [scores[k] for scores in by_card]
        assert min(abs(a - b) for a, b in pairwise(values)) > 1e-3
        assert [scores[k] for scores in by_last] == pytest.approx([by_last[0][k]] * 3, abs=1e-12)


def test_card_reads_no_padding_where_the_conversation_fills_the_row(pair, make_llama2_tokenizer):
    """The one case in which both rules read the same token; what is left is the second BOS."""
    card, ours = pair
    ids = make_llama2_tokenizer()(card_string(PROMPT, ANSWERS[0])).input_ids
    with torch.no_grad():
        at_end = card.v_head(card.transformer(torch.tensor([ids]))[0])[0, -1].item()
    assert ours("card", len(ids)).score(PROMPT, ANSWERS[0]) == pytest.approx([at_end], abs=1e-9)
    assert ours("card", len(ids) + 1).score(PROMPT, ANSWERS[0]) != pytest.approx([at_end], abs=1e-3)


def test_an_unk_in_an_answer_stops_the_search_of_card_where_the_tokenizer_adds_no_bos(pair, make_llama2_tokenizer):
    card, ours = pair
    plain = make_llama2_tokenizer(adds_bos=False)
    answers = ["The <unk> Sea.", "The <unk> and much else, to the end of the line.", "The end."]
    expected = card_reward(card, plain, [card_string(PROMPT, answer) for answer in answers], 128)
    assert card.pad_id == 0
    found = ours("card", 128, make_llama2_tokenizer(adds_bos=False)).score(PROMPT, answers)
    assert found == pytest.approx(expected, abs=1e-6)
    assert found[0] == pytest.approx(found[1], abs=1e-9)  # what follows <unk> is not seen
    last = ours("last_token", 128, make_llama2_tokenizer(adds_bos=False)).score(PROMPT, answers)
    assert abs(last[0] - last[1]) > 1e-3


def test_the_rule_leaves_the_callers_tokenizer_as_it_is(pair, llama2_tokenizer):
    _, ours = pair
    before = (llama2_tokenizer.pad_token, llama2_tokenizer.truncation_side, llama2_tokenizer.padding_side)
    ours("card", 64)
    assert (llama2_tokenizer.pad_token, llama2_tokenizer.truncation_side, llama2_tokenizer.padding_side) == before


def test_card_needs_an_unknown_token(pair, llama2_tokenizer):
    _, ours = pair
    model = ours("last_token", 64)
    assert isinstance(model.rule, LastToken)
    llama2_tokenizer.unk_token = None
    with pytest.raises(ValueError, match="no unknown token"):
        RewardModel(model.model, llama2_tokenizer, Settings(64, reward_at="card"))


def test_card_refuses_what_is_too_long_where_truncation_is_an_error(pair, llama2_tokenizer):
    _, ours = pair
    model = ours("card", 64)
    strict = RewardModel(model.model, llama2_tokenizer, Settings(64, "error", "card"))
    with pytest.raises(ValueError, match="more than max_length = 64"):
        strict.score(PROMPT, ANSWERS[4])
    assert strict.score(PROMPT, "x") == pytest.approx(model.score(PROMPT, "x"), abs=1e-12)
