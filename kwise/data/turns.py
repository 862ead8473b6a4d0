"""A field of a row -> turns and texts: messages, transcripts, plain text; whatever is none of these is a ``FieldError``."""

import re
from typing import Any

from kwise.data.lines import kind_of
from kwise.records import Message

ROLES = ("system", "user", "assistant")
# what else a message may say, as the formats of chat servers and of datasets call it
BESIDE_CONTENT = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking", "images", "audio")
ROLE_MARKER = re.compile(r"\r?\n\r?\n(Human|Assistant):")
TURN_FIRST = re.compile(r"\s*" + ROLE_MARKER.pattern)
# as HH-RLHF writes it, or with other white space at its front, where a text may begin with "Human:" and be none: then a later
# turn of the assistant tells
TRANSCRIPT = re.compile(r"\r?\n\r?\n(?:Human|Assistant):|\s*Human:.*?\r?\n\r?\nAssistant:", re.DOTALL)
SURROGATE = re.compile("[\ud800-\udfff]")  # alone none is a character, and no tokenizer takes it


class FieldError(ValueError):
    """What is wrong with one field of one row."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(problem)
        self.field, self.problem = field, problem


def prompt_messages(prompt: object, field: str) -> list[Message]:
    """A prompt as messages: a list of messages, a transcript (``TRANSCRIPT``), or one user turn of plain text.

    Raises ``FieldError`` when it is empty or when the last turn is not the user's.
    """
    if isinstance(prompt, list):
        messages = messages_of(prompt, field)
    else:
        text = text_of(prompt, field)
        if not text.strip():
            raise FieldError(field, "the prompt is empty")
        messages = transcript(text, field) if TRANSCRIPT.match(text) else [Message(role="user", content=text)]
        if len(messages) > 1 and messages[-1] == Message(role="assistant", content=""):
            messages.pop()
    return asked(messages, field)


def asked(messages: list[Message], field: str) -> list[Message]:
    """``messages`` if they are a prompt. Raises ``FieldError`` when they are empty or the last turn is not the user's."""
    if not any(message["content"].strip() for message in messages):
        raise FieldError(field, "the prompt is empty")
    if messages[-1]["role"] != "user":
        raise FieldError(field, f"the prompt must end with a user turn, this ends with '{messages[-1]['role']}'")
    return messages


def answers_to(prompt: object, responses: list[str]) -> list[str]:
    """``responses`` as a model is to read them after ``prompt``: after a transcript without the white space around them, which
    is no part of a turn, so that a conversation in two columns scores what it does in one; else as they are."""
    if not (isinstance(prompt, str) and TRANSCRIPT.match(prompt)):
        return responses
    # a turn at the front of a response stays one, for data check to find
    return [text.rstrip() if TURN_FIRST.match(text) else text.strip() for text in responses]


def transcript(text: str, field: str) -> list[Message]:
    """``\\n\\nHuman: a\\n\\nAssistant: b`` as messages, whatever white space is at its front. Two turns in a row of one role (a
    marker inside a text) become one."""
    before, *pieces = ROLE_MARKER.split("\n\n" + text.lstrip())
    if before or pieces[:1] != ["Human"]:
        raise FieldError(field, "the conversation must begin with a Human turn")
    messages: list[Message] = []
    for marker, said in zip(pieces[::2], pieces[1::2], strict=True):
        role, content = ("user" if marker == "Human" else "assistant"), said.strip()
        if messages and messages[-1]["role"] == role:
            content = "\n\n".join(filter(None, [messages.pop()["content"], content]))
        messages.append(Message(role=role, content=content))
    return messages


def conversation(value: object, field: str) -> list[Message]:
    """A whole conversation: messages that end with an assistant turn after at least one other. Raises ``FieldError``."""
    messages = messages_of(value, field)
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise FieldError(field, "a conversation to score must end with an assistant turn after a prompt")
    asked(messages[:-1], field)
    return messages


def messages_of(value: object, field: str) -> list[Message]:
    """A list of messages with a known role and a text each, at least one. Raises ``FieldError``."""
    messages = []
    for i, item in enumerate(objects_of(value, field)):
        role = item.get("role")
        if role not in ROLES:
            raise FieldError(f"{field}[{i}].role", f"must be one of {', '.join(ROLES)}, this is {role!r}")
        messages.append(Message(role=role, content=_content(item, f"{field}[{i}]")))
    if not messages:
        raise FieldError(field, "the list of messages is empty")
    return messages


def response_text(value: object, field: str) -> str:
    """A response: plain text, or a list of exactly one assistant message."""
    if isinstance(value, str):
        return text_of(value, field)
    if not isinstance(value, list):
        raise FieldError(field, f"must be text or a list with one assistant message, this is {kind_of(value)}")
    items = objects_of(value, field)
    if len(items) != 1 or items[0].get("role") != "assistant":
        raise FieldError(field, "must be text or a list with one assistant message")
    return _content(items[0], f"{field}[0]")


def _content(message: dict[str, Any], field: str) -> str:
    """The text of a message, which must be all that it says."""
    for part in BESIDE_CONTENT:
        if message.get(part):
            raise FieldError(f"{field}.{part}", "kwise reads the text in 'content' only, and the rest would be lost")
    content = message.get("content")
    if isinstance(content, list):  # parts, as chat servers take them
        if len(content) != 1 or not isinstance(content[0], dict) or content[0].get("type") != "text":
            raise FieldError(
                f"{field}.content", "of a content in parts kwise reads one of type 'text' and nothing else"
            )
        return text_of(content[0].get("text"), f"{field}.content[0].text")
    return text_of(content, f"{field}.content")


def text_of(value: object, field: str) -> str:
    """Text that a tokenizer takes. Raises ``FieldError``."""
    if not isinstance(value, str):
        raise FieldError(field, f"must be text, this is {kind_of(value)}")
    if half := SURROGATE.search(value):
        raise FieldError(field, f"is no Unicode text: character {half.start()} is half of a pair, {half[0]!r}")
    return value


def objects_of(value: object, field: str) -> list[dict[str, Any]]:
    """A list of JSON objects. Raises ``FieldError``."""
    if not isinstance(value, list):
        raise FieldError(field, f"must be a list, this is {kind_of(value)}")
    for i, item in enumerate(value):
        if not isinstance(item, dict):
            raise FieldError(f"{field}[{i}]", f"must be an object, this is {kind_of(item)}")
    return value
