"""Starling's three prompt strings, written out by hand from its card, its PPO code and Llama-2-chat's template."""

import pytest
from jinja2 import TemplateError

from kwise.data.encode import Encoder
from kwise.model import backbone

SYSTEM = {"role": "system", "content": "Be brief."}
ONE = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hi, how can I help you?"}]
TWO = [*ONE, {"role": "user", "content": " Bye \n"}, {"role": "assistant", "content": " Bye! "}]
STRINGS = {
    "starling_card": (
        "<s>[INST] Hello? </s> [/INST] Hi, how can I help you?</s>",
        "<s>[INST] Hello? </s> [/INST] Hi, how can I help you?</s> [INST]  Bye \n </s> [/INST]  Bye! </s>",
    ),
    "starling_ppo": (
        "[INST] Hello? [/INST] Hi, how can I help you?</s>",
        "[INST] Hello? [/INST] Hi, how can I help you?</s> [INST] Bye [/INST] Bye!</s>",
    ),
    "starling_training": (
        "<s>[INST] Hello? [/INST] Hi, how can I help you? </s>",
        "<s>[INST] Hello? [/INST] Hi, how can I help you? </s><s>[INST] Bye [/INST] Bye! </s>",
    ),
}


@pytest.fixture
def named(llama2_tokenizer, tmp_path):
    llama2_tokenizer.save_pretrained(tmp_path)
    return lambda name: backbone.load_tokenizer(tmp_path, name)


def test_these_are_the_names(named):
    assert backbone.TEMPLATES.keys() == STRINGS.keys()


@pytest.mark.parametrize("name", STRINGS)
def test_a_template_renders_its_published_string(named, name):
    rendered = [named(name).apply_chat_template(turns, tokenize=False) for turns in (ONE, TWO)]
    assert rendered == list(STRINGS[name])


def test_the_three_differ_in_tokens_too(named):
    encoded = [Encoder(named(name), 256).encode(ONE[:1], [ONE[1]["content"]]) for name in STRINGS]
    assert len({tuple(each.prefix + each.suffixes[0]) for each in encoded}) == 3


def test_a_system_turn_goes_into_the_first_user_turn_or_is_refused(named):
    rendered = named("starling_training").apply_chat_template([SYSTEM, *TWO], tokenize=False)
    assert rendered.startswith("<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHello? [/INST] Hi, ")
    assert rendered.endswith("</s><s>[INST] Bye [/INST] Bye! </s>")
    for name in ("starling_card", "starling_ppo"):
        with pytest.raises(TemplateError, match="no system turn"):
            named(name).apply_chat_template([SYSTEM, *ONE], tokenize=False)


def test_a_template_that_is_no_name_and_no_file_is_refused_with_the_names(named, tmp_path):
    file = tmp_path / "own.jinja"
    file.write_text("{{ messages[0]['content'] }}")
    assert named(str(file)).chat_template == "{{ messages[0]['content'] }}"
    with pytest.raises(ValueError, match=r"'starling' is neither a file nor one of starling_card, starling_ppo"):
        named("starling")
