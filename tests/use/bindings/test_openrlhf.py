"""The call that OpenRLHF 0.11.2 makes: the user's file is loaded by path, the function called positionally with one sample, from
a thread, and what it gives goes into ``torch.tensor([...])`` (``utils/agent.py``, ``ppo_utils/samples_generator.py``)."""

import asyncio
import importlib.util
import json

import pytest
import torch

from kwise.use.bindings.openrlhf import _answer, make_reward_func

PROMPT = [{"role": "user", "content": "Which sea is the saltiest?"}]
TEXTS = ["The Dead Sea.", "No idea.\n", "\nThe Red Sea"]


def rendered(tokenizer, messages=PROMPT):
    """The prompt as OpenRLHF's ``preprocess_data`` hands it on with ``--data.apply_chat_template``."""
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def query(tokenizer, prompt, answer):
    """Prompt and answer decoded from ids with special tokens, as ``SingleTurnAgentExecutor.execute`` does."""
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    ids = ids + tokenizer(answer + "<|im_end|>", add_special_tokens=False)["input_ids"]
    return tokenizer.decode(ids, skip_special_tokens=False)


def test_a_file_of_two_lines_gives_openrlhf_its_rewards(folder, alone, tokenizer, tmp_path):
    file = tmp_path / "reward.py"
    file.write_text(
        "from kwise.use.bindings.openrlhf import make_reward_func\n" + f"reward_func = make_reward_func({folder!r})\n"
    )
    spec = importlib.util.spec_from_file_location("reward_func", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    prompt = rendered(tokenizer)

    async def run():
        tasks = [
            asyncio.to_thread(module.reward_func, [query(tokenizer, prompt, text)], [prompt], [PROMPT])
            for text in TEXTS
        ]
        return await asyncio.gather(*tasks)

    found = asyncio.run(run())
    for given, text in zip(found, TEXTS, strict=True):
        expected = pytest.approx(alone(PROMPT, text), abs=1e-5)
        assert torch.tensor([given["rewards"]]).item() == torch.tensor([given["scores"]]).item() == expected


def test_several_at_once_and_labels_of_every_form(folder, alone, tokenizer):
    prompt = rendered(tokenizer)
    labels = [PROMPT, json.dumps(PROMPT), PROMPT[0]["content"]]
    queries = [query(tokenizer, prompt, text) for text in TEXTS]
    found = make_reward_func(folder)(queries, [prompt] * 3, labels)
    assert found["rewards"].dtype == torch.float32
    assert found["rewards"].tolist() == pytest.approx([alone(PROMPT, text) for text in TEXTS], abs=1e-5)


def test_a_question_that_begins_like_messages_is_text(folder, alone, tokenizer):
    question = '[{"sea": "Dead"}, {"sea": "Red"}] Which is saltier?'
    prompt = rendered(tokenizer)
    found = make_reward_func(folder)([query(tokenizer, prompt, TEXTS[0])], [prompt], [question])
    assert found["rewards"].tolist() == [
        pytest.approx(alone([{"role": "user", "content": question}], TEXTS[0]), abs=1e-5)
    ]


def test_an_answer_without_an_end_is_scored_as_it_is(folder, alone, tokenizer):
    prompt = rendered(tokenizer)
    assert make_reward_func(folder)([prompt + "cut off in the mi"], [prompt], [PROMPT])["rewards"].tolist() == [
        pytest.approx(alone(PROMPT, "cut off in the mi"), abs=1e-5)
    ]


@pytest.mark.parametrize(
    ("query", "prompt", "answer"),
    [
        ("<s>[INST] x [/INST] y</s>", "<s>[INST] x [/INST]", " y"),
        ("<s> [INST] x  [/INST] y</s></s>", "<s>[INST] x [/INST]", " y"),  # SentencePiece puts spaces in when decoding
        ("user\nx\nassistant\n\n y", "user\nx\nassistant\n", "\n y"),
        ("user\nx\nassistanty", "user\nx\nassistant\n", "y"),
        ("x</s>y</s>", "x</s>", "y"),
    ],
)
def test_the_answer_is_what_follows_the_prompt_less_its_end(query, prompt, answer):
    assert _answer(query, prompt, ["</s>"]) == answer


def test_mistakes_are_raised_and_logged_since_openrlhf_goes_on_without_a_reward(folder, tokenizer, caplog):
    prompt = rendered(tokenizer)
    function = make_reward_func(folder)
    whole = query(tokenizer, prompt, "An answer.")
    for queries, labels, message in (
        ([whole[5:]], [PROMPT], "the query does not begin with the prompt"),
        ([whole], [""], "the label is empty: set --data.label_key"),
        ([prompt + "An answer.<|eot_id|>"], [PROMPT], r"ends with '<\|eot_id\|>': name it"),
        ([whole], [[*PROMPT, {"role": "assistant", "content": "x"}]], "must end with a user turn"),
    ):
        caplog.clear()
        with pytest.raises(ValueError, match=message):
            function(queries, [prompt], labels)
        assert "kwise gives no reward" in caplog.text
    named = make_reward_func(folder, stop=["<|eot_id|>"])([prompt + "An answer.<|eot_id|>"], [prompt], [PROMPT])
    assert named["rewards"].tolist() == pytest.approx(
        function([whole], [prompt], [PROMPT])["rewards"].tolist(), abs=1e-6
    )


def test_a_folder_that_is_none_is_an_error_when_openrlhf_loads_the_file(tmp_path):
    with pytest.raises(ValueError, match="is no folder here"):
        make_reward_func(tmp_path / "nowhere")
