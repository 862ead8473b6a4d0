"""Prompts and completions in, rewards out: what the bindings of all trainers share."""

import json
import os
import threading
import warnings
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache

import torch

from kwise.data.turns import FieldError, answers_to, prompt_messages, response_text
from kwise.model.reward_model import RewardModel
from kwise.model.uncertainty import check_bound
from kwise.records import EncodedRanking, Message

LOCK = threading.Lock()  # trainers call from several threads; a model is loaded, and runs, once at a time


@lru_cache
def load(folder: str) -> RewardModel:
    """The model in ``folder``, in the precision of its file, on this process's GPU where there is one. Hold ``LOCK``."""
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    return RewardModel.from_pretrained(folder, f"cuda:{rank}" if rank < torch.cuda.device_count() else None, dtype=None)


class Scorer:
    """Scores with the reward model in ``folder``, loaded here, once a process whatever the number of scorers.

    ``calibrated`` gives ``RewardModel.calibrated`` rewards; ``lower_bound`` c gives rewards less c errors of the head
    (``RewardModel.assess``). Raises ``ValueError`` for a folder that cannot be loaded and for a model that lacks what is asked.
    """

    def __init__(self, folder: str, calibrated: bool = False, lower_bound: float | None = None) -> None:
        with LOCK:
            self.model = load(os.fspath(folder))
        if calibrated and self.model.settings.calibration is None:
            raise ValueError(f"{folder} has not been calibrated: run kwise calibrate on held-out rankings first")
        if lower_bound is not None:
            check_bound(lower_bound)
            self.model.known_uncertainty()
        self.calibrated, self.lower_bound = calibrated, lower_bound

    def __call__(self, prompts: Sequence[object], completions: Sequence[object]) -> list[float]:
        """One reward per completion, in order. Completions of one prompt share its row, wherever in the list they are.

        A prompt is text (a transcript, or one user turn) or a list of messages that ends with the user's; a completion is text or
        a list of one assistant message. Raises ``ValueError`` naming the place for anything else.
        """
        if len(prompts) != len(completions):
            raise ValueError(f"{len(prompts)} prompts for {len(completions)} completions: give one each")
        members: dict[str, list[int]] = defaultdict(list)
        turns: dict[str, list[Message]] = {}
        texts = []
        for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            try:
                messages = prompt_messages(prompt, f"prompts[{i}]")
                texts += answers_to(prompt, [response_text(completion, f"completions[{i}]")])
            except FieldError as error:
                raise ValueError(f"{error.field}: {error.problem}") from error
            key = json.dumps(messages)
            members[key].append(i)
            turns[key] = messages
        rewards = [0.0] * len(texts)
        with LOCK:
            encoded = [self.model.encoder.encode(turns[key], [texts[i] for i in own]) for key, own in members.items()]
            if cut := sum(removed > 0 for each in encoded for removed in each.cut):
                limit = self.model.settings.max_length
                warnings.warn(f"{cut} completions with their prompts were cut to {limit} tokens", stacklevel=2)
            for own, scored in zip(members.values(), self._score(encoded, members, texts), strict=True):
                for i, reward in zip(own, scored, strict=True):
                    rewards[i] = reward
        return rewards

    def _score(
        self, encoded: list[EncodedRanking], members: dict[str, list[int]], texts: list[str]
    ) -> list[list[float]]:
        scale = self.model.temperature if self.calibrated else 1.0
        if self.lower_bound is None:
            found = [(rewards, [0.0] * len(rewards)) for rewards in self.model.score_encoded(encoded)]
        else:
            found = list(self.model.score_with_errors(encoded))
        scored = []
        for own, (rewards, errors) in zip(members.values(), found, strict=True):
            levels = self.model.calibrated(rewards, [texts[i] for i in own]) if self.calibrated else rewards
            c = (self.lower_bound or 0.0) / scale
            scored.append([level - c * error for level, error in zip(levels, errors, strict=True)])
        return scored
