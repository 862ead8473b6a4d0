from pathlib import Path

import pytest
from source_rows import ARENA, USER, nectar, parsed, refused, said

from kwise.data.sources import pairs
from kwise.data.turns import FieldError, conversation


@pytest.mark.parametrize(
    ("prompt", "messages"),
    [
        ("\n\nHuman: Hi\n\nAssistant: ", [("user", "Hi")]),
        ("\n\nHuman: Hi\n\nAssistant:", [("user", "Hi")]),
        ("\n\nHuman: Hi", [("user", "Hi")]),
        (
            "\n\nHuman: a\n\nAssistant: b\n\nHuman:  c\nd \n\nAssistant: ",
            [("user", "a"), ("assistant", "b"), ("user", "c\nd")],
        ),
        ("Human: Hi\n\nAssistant:", [("user", "Hi")]),
        ("\nHuman: Hi\n\nAssistant: ", [("user", "Hi")]),
        (" \n\n\nHuman: Hi\n\nAssistant: ", [("user", "Hi")]),
        ("\r\n\r\nHuman: Hi\r\n\r\nAssistant: ", [("user", "Hi")]),
        ("\r\n\r\nHuman: Hi", [("user", "Hi")]),
        (
            "Human: a\r\n\r\nAssistant: b\r\n\r\nHuman: c\r\nd\r\n\r\nAssistant:\r\n",
            [("user", "a"), ("assistant", "b"), ("user", "c\r\nd")],
        ),
        ("Human: rights\n\nare what?", [("user", "Human: rights\n\nare what?")]),
        ("Human: Hi\nAssistant: Hi", [("user", "Human: Hi\nAssistant: Hi")]),
        ("Who says\n\nHuman: Hi\n\nAssistant:", [("user", "Who says\n\nHuman: Hi\n\nAssistant:")]),
        ("\n\nHuman: one\n\nHuman: two\n\nAssistant: ", [("user", "one\n\ntwo")]),
        (
            "\n\nHuman: a\n\nAssistant: b\n\nAssistant: c\n\nHuman: d",
            [("user", "a"), ("assistant", "b\n\nc"), ("user", "d")],
        ),
        ("  What is Human: in\n\nthis? ", [("user", "  What is Human: in\n\nthis? ")]),
        ([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], [("system", "s"), ("user", "u")]),
        ([{"role": "user", "content": "u", "name": "Ann"}], [("user", "u")]),
    ],
)
def test_prompts_become_turns(prompt: object, messages: list[tuple[str, str]]) -> None:
    read = parsed(nectar(prompt=prompt), "nectar").messages
    assert read == [{"role": role, "content": content} for role, content in messages]


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        (None, "field 'prompt': must be text, this is null"),
        (7, "field 'prompt': must be text, this is a number"),
        ("", "field 'prompt': the prompt is empty"),
        (" \n", "field 'prompt': the prompt is empty"),
        ([{"role": "user", "content": " "}], "field 'prompt': the prompt is empty"),
        ("\n\nHuman: \n\nAssistant: ", "field 'prompt': the prompt is empty"),
        (
            [USER, {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}, USER],
            "field 'prompt[1].tool_calls': kwise reads the text in 'content' only, and the rest would be lost",
        ),
        ("\n\nAssistant: Hi", "field 'prompt': the conversation must begin with a Human turn"),
        (
            "\n\nHuman: a\n\nAssistant: b",
            "field 'prompt': the prompt must end with a user turn, this ends with 'assistant'",
        ),
        ([], "field 'prompt': the list of messages is empty"),
        (["Hi"], "field 'prompt[0]': must be an object, this is text"),
        (
            [USER, {"role": "human", "content": "x"}],
            "field 'prompt[1].role': must be one of system, user, assistant, this is 'human'",
        ),
        (
            [{"role": "user", "content": ["x"]}],
            "field 'prompt[0].content': of a content in parts kwise reads one of type 'text' and nothing else",
        ),
        (
            [USER, {"role": "system", "content": "x"}],
            "field 'prompt': the prompt must end with a user turn, this ends with 'system'",
        ),
    ],
)
def test_unreadable_prompts_name_the_field(prompt: object, told: str) -> None:
    assert refused(nectar(prompt=prompt), "nectar") == f"f.jsonl, line 7, {told}"


def test_content_in_parts_is_read_where_it_is_one_text(tmp_path: Path) -> None:
    """As lmarena-ai/arena-human-preference-140k has it."""

    def parts(text):
        return [{"type": "text", "text": text, "image": None, "mimeType": None}]

    rows = {
        side: [{"role": "user", "content": parts("Hi")}, {"role": "assistant", "content": parts(side[-1])}]
        for side in ("conversation_a", "conversation_b")
    }
    ranking = parsed(ARENA | rows, "arena")
    assert (ranking.messages, ranking.responses) == ([USER], ["a", "b"])
    picture = [{"role": "user", "content": [{"type": "image", "image": "x.png"}]}, *rows["conversation_a"][1:]]
    told = "field 'conversation_a[0].content': of a content in parts kwise reads one of type 'text' and nothing else"
    assert refused(ARENA | {"conversation_a": picture}, "arena") == f"f.jsonl, line 7, {told}"
    two = [rows["conversation_a"][0] | {"content": parts("Hi") * 2}, *rows["conversation_a"][1:]]
    assert refused(ARENA | {"conversation_a": two}, "arena") == f"f.jsonl, line 7, {told}"


def test_answers_to_a_transcript_are_stripped_in_every_source_as_they_are_inside_one() -> None:
    prompt = "\n\nHuman: Is water wet?\n\nAssistant:"
    inside = parsed({"chosen": prompt + " Yes it\n is. ", "rejected": prompt + "\nNo."}, "pairs")
    assert (inside.messages, inside.responses) == ([said("user", "Is water wet?")], ["Yes it\n is.", "No."])
    yes, no = " Yes it\n is. ", "\nNo."
    ranked = [{"answer": yes, "rank": 1}, {"answer": no, "rank": 2}]
    completed = [{"completion": [said("assistant", yes)], "rank": 1}, {"completion": no, "rank": 2}]
    for source, row in {
        "nectar": {"prompt": prompt, "answers": ranked},
        "completions": {"context": prompt, "completions": completed},
        "pairs": {"prompt": prompt, "chosen": yes, "rejected": [no]},
        "battles": {"prompt": prompt, "response_a": yes, "response_b": no, "winner": "model_a"},
    }.items():
        beside = parsed(row, source)
        assert (beside.messages, beside.responses) == (inside.messages, inside.responses)


@pytest.mark.parametrize("prompt", ["Is water wet?", [said("user", "Is water wet?")]])
def test_answers_to_other_prompts_are_read_as_they_are(prompt: object) -> None:
    assert parsed({"prompt": prompt, "chosen": " Yes. ", "rejected": "\nNo."}, "pairs").responses == [" Yes. ", "\nNo."]


@pytest.mark.parametrize("turn", ["\n\nHuman: and?", " \n\nHuman: and?"])
def test_a_turn_at_the_front_of_an_answer_to_a_transcript_stays_one(turn: str) -> None:
    row = {"prompt": "Human: Hi\n\nAssistant:", "chosen": turn + " ", "rejected": " a"}
    assert parsed(row, "pairs").responses == [turn, "a"]


def test_a_conversation_to_score_ends_with_an_assistant_turn_after_a_prompt() -> None:
    good = [USER, said("assistant", "x")]
    assert conversation(good, "messages") == good
    for bad in ([USER], [said("assistant", "x")], [*good, USER]):
        with pytest.raises(FieldError, match="must end with an assistant turn after a prompt"):
            conversation(bad, "messages")


@pytest.mark.parametrize(
    ("turns", "told"),
    [
        ([said("user", " ")], "the prompt is empty"),
        ([said("system", "x")], "the prompt must end with a user turn, this ends with 'system'"),
        ([USER, said("assistant", "x")], "the prompt must end with a user turn, this ends with 'assistant'"),
    ],
)
def test_a_prompt_inside_whole_conversations_is_held_to_what_one_in_a_column_is(turns, told) -> None:
    one, other = ([*turns, said("assistant", text)] for text in "ab")
    assert refused({"chosen": one, "rejected": other}, "pairs") == f"f.jsonl, line 7, field 'chosen': {told}"
    sides = {"conversation_a": one, "conversation_b": other}
    assert refused(ARENA | sides, "arena") == f"f.jsonl, line 7, field 'conversation_a': {told}"
    with pytest.raises(FieldError, match=told):
        conversation(one, "messages")


def test_an_empty_prompt_in_front_of_two_transcripts_is_refused() -> None:
    row = {"chosen": "\n\nHuman: \n\nAssistant: a", "rejected": "\n\nHuman: \n\nAssistant: b"}
    assert refused(row, "pairs") == "f.jsonl, line 7, field 'chosen': the prompt is empty"


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"prompt": "q \ud800", "chosen": "a", "rejected": "b"}, "prompt"),
        ({"prompt": "q", "chosen": "a \udfff", "rejected": "b"}, "chosen"),
        ({"prompt": "q", "chosen": ["a", "\ud83d"], "rejected": ["b"]}, "chosen[1]"),
        ({"prompt": [{"role": "user", "content": "\ud800"}], "chosen": "a", "rejected": "b"}, "prompt[0].content"),
    ],
)
def test_half_of_a_surrogate_pair_is_no_text_and_named(row, field):
    """In Python, where no file was read that would have refused it."""
    with pytest.raises(FieldError, match=r"is no Unicode text: character \d is half of a pair") as caught:
        pairs(row)
    assert caught.value.field == field
