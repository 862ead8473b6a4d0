"""OpenRLHF: a file for ``--reward.remote_url`` (older: ``--remote_rm_url``) with two lines in it.

::

    from kwise.use.bindings.openrlhf import make_reward_func
    reward_func = make_reward_func("MODEL")

OpenRLHF calls ``reward_func(queries, prompts, labels)`` with one of each, from several threads (0.11.2,
``openrlhf/utils/agent.py``). A query is prompt and answer as one text with the policy's special tokens in it, and the prompt has
been through the policy's chat template, so neither says what the reward model must see. The label is the data's own: with
``--data.label_key`` set to the column of ``--data.input_key`` it is the prompt as it was before.
"""

import contextlib
import json
import logging
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch

from kwise.use.bindings.scorer import Scorer

logger = logging.getLogger(__name__)
END = re.compile(r"<[|\uff5c][^<>]*[|\uff5c]>$")  # <|im_end|>, <|eot_id|>, and DeepSeek's with wide bars


def make_reward_func(
    model: str | os.PathLike[str],
    stop: Sequence[str] = (),
    calibrated: bool = False,
    lower_bound: float | None = None,
) -> Callable[..., dict[str, Any]]:
    """A reward function over the reward model in the folder ``model``, loaded now.

    ``stop`` are the texts that end the policy's answers beside the reward model's own special tokens; they are taken off.
    ``calibrated`` and ``lower_bound``: ``Scorer``. The function gives ``{"rewards", "scores"}``, float32 tensors [N], and raises
    ``ValueError`` for a query that does not begin with its prompt (OpenRLHF cut the prompt to fit), for a label that is no
    prompt, and for an answer that ends in a special token nobody named. OpenRLHF only logs what a reward function raises
    and goes on without the reward, so it is logged here as an error too.
    """
    scorer = Scorer(os.fspath(model), calibrated, lower_bound)
    ends = sorted({*stop, *scorer.model.tokenizer.all_special_tokens}, key=len, reverse=True)

    def reward_func(queries: list[str], prompts: list[str], labels: list[Any], **_: Any) -> dict[str, Any]:
        try:
            answers = [_answer(query, prompt, ends) for query, prompt in zip(queries, prompts, strict=True)]
            rewards = torch.tensor(scorer([_asked(label) for label in labels], answers), dtype=torch.float32)
        except ValueError as error:
            logger.error("kwise gives no reward: %s", error)
            raise
        return {"rewards": rewards, "scores": rewards}

    return reward_func


def _asked(label: Any) -> Any:
    """The prompt in a label: text, messages, or messages as JSON."""
    if not label:
        raise ValueError(
            "the label is empty: set --data.label_key to the column of --data.input_key, so that it holds the prompt"
        )
    if isinstance(label, str) and label.startswith("[{"):
        with contextlib.suppress(ValueError):  # a question may begin so too
            return json.loads(label)
    return label


def _answer(query: str, prompt: str, ends: Sequence[str]) -> str:
    """What follows the prompt in ``query``, without what ends it. Decoding may have changed white space, so that is not looked
    at in the prompt."""
    place = 0
    for character in prompt:
        if character.isspace():
            continue
        while place < len(query) and query[place].isspace():
            place += 1
        if query[place : place + 1] != character:
            raise ValueError(
                "the query does not begin with the prompt: OpenRLHF has cut the prompt to fit; raise --data.max_len"
            )
        place += 1
    trailing = len(prompt) - len(prompt.rstrip())
    rest = query[place:]
    answer = rest[min(trailing, len(rest) - len(rest.lstrip())) :]
    while end := next((each for each in ends if each and answer.endswith(each)), None):
        answer = answer.removesuffix(end)
    if found := END.search(answer):
        raise ValueError(f"the answer ends with {found.group()!r}: name it in make_reward_func(stop=[...])")
    return answer
