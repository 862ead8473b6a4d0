"""The conversations a model is examined with: short, several turns, a system turn, EOS in its text, and a long one."""

from dataclasses import dataclass

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from kwise.records import Message

LONG = 2100  # tokens: beyond what TRL (1,024) and OpenRLHF (2,048) take by default
SENTENCE = " The sea is salt because rivers carry salt into it."


@dataclass(frozen=True)
class Probe:
    """``messages`` and the ``answer`` to be scored. What readers make of a probe that is not ``compared`` is shown but is no
    disagreement: it is longer than some of them read, and each cuts by a rule of its own."""

    name: str
    messages: list[Message]
    answer: str
    compared: bool = True

    @property
    def chat(self) -> list[Message]:
        """The whole conversation."""
        return [*self.messages, Message(role="assistant", content=self.answer)]


def probes(tokenizer: PreTrainedTokenizerBase, context: int) -> list[Probe]:
    """The probes that ``tokenizer``'s chat template takes: none without one. ``context`` is the longest sequence of the model,
    in tokens."""
    if not tokenizer.chat_template:
        return []
    question = Message(role="user", content="Name a salty sea.")
    first = [Message(role="user", content="Name a sea."), Message(role="assistant", content="The Red Sea.")]
    system = Message(role="system", content="Answer in two words.")
    repeats = min(LONG, context) // len(tokenizer(SENTENCE, add_special_tokens=False).input_ids) + 1
    found = [
        Probe("short", [question], "The Dead Sea."),
        Probe("turns", [*first, Message(role="user", content="A saltier one?")], "The Dead Sea."),
        Probe("system", [system, question], "Dead Sea."),
        Probe("eos", [question], f"The Dead Sea. {tokenizer.eos_token or ''}".strip()),
        Probe("long", [question], SENTENCE.strip() + SENTENCE * repeats, compared=False),
    ]
    return [each for each in found if _takes(tokenizer, each)]


def _takes(tokenizer: PreTrainedTokenizerBase, probe: Probe) -> bool:
    try:
        tokenizer.apply_chat_template(probe.chat, tokenize=False)
    except TemplateError:  # many know no system turn; one that takes none of the probes is found by the checks
        return False
    return True
