"""Where a reward is read, by name (``Settings.reward_at``).

A rule has an ``encoder``, which makes ids of conversations, and ``hidden_states(model, row)``: [R, d], what the head reads of the
responses of a row, in order.

``last_token``  ids with one BOS, responses in shared rows, the state of the last token
``card``        what the code on the Starling-RM-7B-alpha model card computes, quirks included
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kwise.data.encode import Encoder
from kwise.model import attention
from kwise.model.attention.rule import spans
from kwise.records import Message, Row


class LastToken:
    """The last token of the conversation as the chat template renders it, whatever else is in its row."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, truncation: str) -> None:
        self.encoder = Encoder(tokenizer, max_length, truncation)

    def hidden_states(self, model: PreTrainedModel, row: Row) -> torch.Tensor:
        """One forward pass over the row (``attention.hidden_states``)."""
        return attention.hidden_states(model, row)


@dataclass(frozen=True)
class TextEncoder(Encoder):
    """``Encoder`` for code that renders the template as text and tokenises that: the BOS that the template writes and the one
    that the tokenizer adds both stay, and the tokenizer truncates."""

    def _sequences(self, conversations: list[list[Message]]) -> list[tuple[list[int], int]]:
        return [self._sequence(conversation) for conversation in conversations]

    def _sequence(self, conversation: list[Message]) -> tuple[list[int], int]:
        text = self.tokenizer.apply_chat_template(conversation, tokenize=False)
        ids: list[int] = self.tokenizer(text).input_ids
        if not ids:
            raise ValueError("the chat template renders the conversation as nothing")
        if len(ids) <= self.max_length or self.truncation == "error":
            return self._truncate(ids), 0
        return self.tokenizer(text, truncation=True, max_length=self.max_length).input_ids, len(ids) - self.max_length


class Card:
    """The behaviour of the code on the model card of berkeley-nest/Starling-RM-7B-alpha, to reproduce figures published with it.

    The card sets ``pad_token = unk_token`` and ``truncation_side = "left"``, tokenises a text that begins with ``<s>`` (so
    Llama's tokenizer makes it two BOS), pads it to ``max_length`` (2048 there), hands ids and attention mask to the decoder, and
    reads the position before the first id that equals ``PAD_ID = tokenizer(pad_token)["input_ids"][0]``. Two quirks follow:

    - With a tokenizer that puts BOS in front of texts, as Llama's, that id is BOS and not pad. The first match is position 0,
      position -1 is meant by the one before, and so the reward is read at the **last slot of the padded row**: an ``<unk>`` at
      position ``max_length - 1`` that attends to all real tokens and to no padding, itself included. It changes with the length
      of the padding. Only a conversation that fills the row is read at its last token.
    - With any other tokenizer it is pad, and an ``<unk>`` within the text ends the search there: what follows is not scored.

    Padding is to the right, which puts slot -1 where the above says; the card itself leaves the side to the tokenizer's
    config. Each response is run alone: rows that responses share have no padding to read. Raises ``ValueError`` for a
    tokenizer without an unknown token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, truncation: str) -> None:
        if tokenizer.unk_token is None:
            raise ValueError("the tokenizer has no unknown token, which the rule 'card' pads with; use 'last_token'")
        own = copy.deepcopy(tokenizer)  # the caller's keeps its pad token and side
        own.pad_token, own.truncation_side = own.unk_token, "left"
        self.encoder: Encoder = TextEncoder(own, max_length, truncation)
        self.pad: int = own.pad_token_id
        self.searched: int = own(own.pad_token).input_ids[0]

    def hidden_states(self, model: PreTrainedModel, row: Row) -> torch.Tensor:
        """A forward pass over ``max_length`` positions for each response of the row."""
        return torch.stack([self._state(model, ids) for ids in sequences(row)])

    def _state(self, model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
        padding = self.encoder.max_length - len(ids)
        padded = torch.tensor([ids + [self.pad] * padding], device=model.device)
        mask = torch.tensor([[1] * len(ids) + [0] * padding], device=model.device)
        hidden: torch.Tensor = model.base_model(padded, attention_mask=mask, use_cache=False).last_hidden_state[0]
        found = (padded[0] == self.searched).nonzero()
        return hidden[int(found[0]) - 1 if len(found) else -1]


def sequences(row: Row) -> list[list[int]]:
    """The ids of each response of ``row`` with its prefix, in order of ``reward_at``."""
    found = []
    for (start, end), *responses in spans(row):
        found += [row.ids[start:end] + row.ids[a:b] for a, b in responses or [(end, end)]]
    return found


Rule = LastToken | Card
RULES: dict[str, Callable[[PreTrainedTokenizerBase, int, str], Rule]] = {"last_token": LastToken, "card": Card}
