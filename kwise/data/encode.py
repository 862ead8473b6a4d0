"""Ranking -> EncodedRanking: the chat template once, one BOS, truncation by a named rule, the shared prefix of ids."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from kwise.records import DataError, EncodedRanking, Message, Ranking

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TRUNCATIONS = ("left", "error")


@dataclass(frozen=True)
class Encoder:
    """Turns a prompt and its responses into token ids. The same object encodes for training and for scoring.

    ``max_length`` is the longest sequence (prompt and one response) in tokens. ``truncation`` is the rule for longer ones:
    ``"left"`` keeps a leading BOS and the last tokens, so that the response and its end-of-turn survive (Starling's
    rule); ``"error"`` raises. Each sequence is cut by itself, so that what a response scores never depends on its
    neighbours.
    """

    tokenizer: "PreTrainedTokenizerBase"
    max_length: int
    truncation: str = "left"

    def __post_init__(self) -> None:
        if self.truncation not in TRUNCATIONS:
            raise ValueError(f"unknown truncation '{self.truncation}'; known: {', '.join(TRUNCATIONS)}")
        if self.max_length < 2:
            raise ValueError(f"max_length must be at least 2, this is {self.max_length}")
        if not self.tokenizer.chat_template:
            raise ValueError(
                'the tokenizer has no chat template; give one in the recipe: model.chat_template = "file.jinja"'
            )

    def encode(self, messages: list[Message], responses: Sequence[str], ranks: Sequence[float] = ()) -> EncodedRanking:
        """``messages`` and K >= 1 ``responses`` as ids. ``reward_at`` is the last token of the rendered conversation.

        That token is the one a plain forward pass over ``apply_chat_template``'s ids ends with, so every tool that
        renders the same template reads the same reward.
        """
        conversations = [[*messages, Message(role="assistant", content=response)] for response in responses]
        sequences, cut = zip(*self._sequences(conversations), strict=True)
        shared = min(shared_length(sequences), min(map(len, sequences)) - 1)
        suffixes = [ids[shared:] for ids in sequences]
        return EncodedRanking(sequences[0][:shared], suffixes, [len(s) - 1 for s in suffixes], list(cut), list(ranks))

    def encode_ranking(self, ranking: Ranking) -> EncodedRanking:
        """``encode`` of a ranking with its ranks. What the template or the truncation rule refuses is a ``DataError``."""
        try:
            encoded = self.encode(ranking.messages, ranking.responses, ranking.ranks)
            return replace(encoded, file=ranking.file, line=ranking.line)
        except (ValueError, TemplateError) as error:
            raise DataError(f"cannot be encoded: {error}", file=ranking.file, line=ranking.line) from error

    def _sequences(self, conversations: list[list[Message]]) -> list[tuple[list[int], int]]:
        """The ids of each conversation after truncation, and how many it removed."""
        # in one call: one for each takes two fifths longer
        rendered = self.tokenizer.apply_chat_template(conversations, tokenize=True, return_dict=False)
        found = []
        for ids in self._one_bos([list(ids) for ids in rendered]):
            if not ids:
                raise ValueError("the chat template renders the conversation as nothing")
            kept = self._truncate(ids)
            found.append((kept, len(ids) - len(kept)))
        return found

    def _one_bos(self, sequences: list[list[int]]) -> list[list[int]]:
        """Exactly one BOS: a doubled one is made one; a missing one is added where the tokenizer itself would add it."""
        bos = self.tokenizer.bos_token_id
        if bos is None:
            return sequences
        found = []
        for ids in sequences:
            doubled = 0
            while len(ids) > doubled + 1 and ids[doubled] == ids[doubled + 1] == bos:
                doubled += 1
            found.append(ids[doubled:])
        if any(ids[:1] != [bos] for ids in found) and self.tokenizer("").input_ids[:1] == [bos]:
            found = [ids if ids[:1] == [bos] else [bos, *ids] for ids in found]
        return found

    def _truncate(self, ids: list[int]) -> list[int]:
        if len(ids) <= self.max_length:
            return ids
        if self.truncation == "error":
            raise ValueError(f"a conversation has {len(ids)} tokens, more than max_length = {self.max_length}")
        head = 1 if ids[0] == self.tokenizer.bos_token_id else 0
        return ids[:head] + ids[head + len(ids) - self.max_length :]


def shared_length(sequences: Sequence[Sequence[object]]) -> int:
    """The number of leading elements that all ``sequences`` (lists of ids, or texts) have in common."""
    length = 0
    for column in zip(*sequences, strict=False):
        if any(each != column[0] for each in column):
            break
        length += 1
    return length
