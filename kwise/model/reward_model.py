"""Conversations -> rewards. The one scoring path: training evaluation, ``kwise score``, ``kwise eval`` and the demo use it."""

import json
import math
import operator
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from kwise.data.lines import kind_of
from kwise.data.packing import build_row, plan, split
from kwise.data.turns import FieldError, prompt_messages, response_text
from kwise.data.unique import encode_distinct
from kwise.model import backbone
from kwise.model.attention import hidden_states, set_attention
from kwise.model.attention.exact import assert_exact
from kwise.model.calibrated import Calibration
from kwise.model.reward_at import RULES, Rule
from kwise.model.transformers4 import write_old_names
from kwise.model.uncertainty import FILE as UNCERTAINTY_FILE
from kwise.model.uncertainty import Uncertainty, check_bound, win_probability
from kwise.records import EncodedRanking, Message, Ranking, Row

SETTINGS_FILE = "kwise.json"
TOKENS_PER_ROW = 8192  # larger rows score faster, since a prompt of many responses is repeated less
TOGETHER_ON_CPU = 512  # one conversation keeps a CPU busy; more tokens at once leave its cache and slow it down
WINDOW = 16  # rankings looked at together when rows are planned while scoring a stream


def row_rewards(model: PreTrainedModel, row: Row) -> torch.Tensor:
    """[R] rewards of a row in float32 (float64 for a float64 model), in the row's order, with gradients."""
    return head_rewards(model, hidden_states(model, row))


def head_rewards(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """[R, d] hidden states -> [R] rewards. Float32 from here to the loss, also under autocast and for bfloat16 weights."""
    weight = getattr(model, backbone.HEAD).weight
    wide = torch.promote_types(weight.dtype, torch.float32)
    with torch.autocast(hidden.device.type, enabled=False):
        return torch.nn.functional.linear(hidden.to(wide), weight.to(wide))[:, 0]


@torch.no_grad()
def map_rows(
    model: PreTrainedModel, rankings: Iterable[EncodedRanking], read: Any, tokens_per_row: int = TOKENS_PER_ROW
) -> Iterator[torch.Tensor]:
    """For each ranking, in order, ``read(model, row)`` at its reward tokens: [K, ...] on the CPU.

    Works on a window of rankings at a time, so a stream of any length takes constant memory. Rankings share a row up to
    ``tokens_per_row`` on a GPU and up to ``TOGETHER_ON_CPU`` tokens on a CPU.
    """
    together = min(tokens_per_row, TOGETHER_ON_CPU) if model.device.type == "cpu" else tokens_per_row
    stream = iter(rankings)
    while window := list(islice(stream, WINDOW)):
        pieces = [(i, piece) for i, ranking in enumerate(window) for piece in split(ranking, tokens_per_row)]
        parts: list[torch.Tensor] = [torch.empty(0)] * len(pieces)
        encoded = [piece for _, piece in pieces]
        for members in plan([piece.num_tokens for piece in encoded], together):
            row = build_row(encoded, members)
            values = read(model, row).cpu()
            for member, value in zip(members, values.split(row.sizes), strict=True):
                parts[member] = value
        for i in range(len(window)):
            yield torch.cat([part for (owner, _), part in zip(pieces, parts, strict=True) if owner == i])


@dataclass
class Settings:
    """What a reward model folder says beyond the model itself, in ``kwise.json``; other tools ignore the file.

    ``reward_at`` names the rule of where a reward is read (``kwise.model.reward_at``). ``trained`` holds facts of the
    training run, ``imported`` what ``kwise import`` made the folder from, ``calibration`` what ``kwise calibrate`` found (None
    before), ``exported`` what ``kwise export`` measured of a copy in another precision.
    """

    max_length: int
    truncation: str = "left"
    reward_at: str = "last_token"
    trained: dict[str, Any] = field(default_factory=dict)
    imported: dict[str, Any] = field(default_factory=dict)
    calibration: Calibration | None = None
    exported: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Settings":
        """Raises ``ValueError`` for keys that this version does not know: they may change what a score means."""
        try:
            settings = cls(**json.loads(path.read_text(encoding="utf-8")))
            settings.max_length = operator.index(settings.max_length)
            if settings.calibration is not None:
                settings.calibration = Calibration(**settings.calibration)  # type: ignore[arg-type]  # a dict in the file
            return settings
        except (TypeError, ValueError) as error:  # also of JSON and of a calibration's numbers
            raise ValueError(f"{path} is not a settings file that this version of kwise can read: {error}") from error

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Write ``kwise.json`` into a model folder: the whole file, or nothing."""
        beside = Path(folder, f"{SETTINGS_FILE}.{os.getpid()}")
        try:
            beside.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
            beside.replace(Path(folder, SETTINGS_FILE))
        finally:
            beside.unlink(missing_ok=True)


class Assessment(NamedTuple):
    """Of K responses to one prompt: ``rewards`` in nats, their standard ``errors`` against the reference, ``lower`` bounds, and
    ``beats[i][j]``, the probability that a judge like the training one prefers i to j: ``RewardModel.probability`` with the
    head's error counted in (not of kind ``paper``, which is no standard error)."""

    rewards: list[float]
    errors: list[float]
    lower: list[float]
    beats: list[list[float]]


class RewardModel:
    """A chat model with one linear unit as its head: any prompt and response gets one scalar."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: Settings) -> None:
        if settings.reward_at not in RULES:
            raise ValueError(
                f"unknown reward rule '{settings.reward_at}'; this version of kwise knows {', '.join(RULES)}"
            )
        self.model, self.tokenizer, self.settings = model, tokenizer, settings
        self._uncertainty: Uncertainty | None = None
        # the folder or hub id that may have one, until it is asked for
        self._unread: str | os.PathLike[str] | None = None
        self.rule: Rule = RULES[settings.reward_at](tokenizer, settings.max_length, settings.truncation)
        self.encoder = self.rule.encoder

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike[str], device: str | None = None, dtype: torch.dtype | None = torch.float32
    ) -> "RewardModel":
        """Load a folder (or hub id) that kwise or another tool wrote: a one-label ``AutoModelForSequenceClassification``.

        ``device`` None takes CUDA where there is one, ``dtype`` None that of the file. Without ``kwise.json`` the longest
        sequence is the model's context. Raises ``ValueError`` for missing tensors and for a decoder that shared rows are not
        exact for.
        """
        model = backbone.load(folder, dtype).eval()
        model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        set_attention(model)
        assert_exact(model)
        file = cached_file(folder, SETTINGS_FILE, _raise_exceptions_for_missing_entries=False)
        if file is None:
            settings = Settings(max_length=model.config.get_text_config().max_position_embeddings)
        else:
            settings = Settings.read(Path(file))
        found = cls(model, backbone.load_tokenizer(folder), settings)
        found._unread = folder
        return found

    @property
    def uncertainty(self) -> Uncertainty | None:
        """The error of the head, where the folder or hub id has it; fetched and read when first asked for, as it takes 4 d^2
        bytes.

        Raises ``ValueError`` if the file in the folder belongs to another head.
        """
        if self._unread is not None:
            file = cached_file(self._unread, UNCERTAINTY_FILE, _raise_exceptions_for_missing_entries=False)
            if file is not None:
                self._uncertainty = Uncertainty.load(file, getattr(self.model, backbone.HEAD).weight)
            self._unread = None
        return self._uncertainty

    @uncertainty.setter
    def uncertainty(self, uncertainty: Uncertainty | None) -> None:
        self._uncertainty, self._unread = uncertainty, None

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write a folder that ``AutoModelForSequenceClassification`` and ``AutoTokenizer`` load, ``kwise.json``, and the
        uncertainty where there is one."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        write_old_names(folder)
        self.settings.write(folder)
        if self.uncertainty is not None:
            self.uncertainty.save(folder)

    def score(self, messages: str | list[Message], responses: str | Sequence[str]) -> list[float]:
        """One reward per response to the prompt ``messages`` (a list of turns, or the text of a single user turn).

        Rewards are in nats: under the model the odds that one response beats another are exp(difference). Their zero
        point means nothing. Raises ``ValueError`` for what is no prompt or no text: a chat template renders anything, so it
        would get a score.
        """
        encoded, _ = self._encode(messages, responses)
        return next(self.score_encoded([encoded])) if encoded.suffixes else []

    def assess(self, messages: str | list[Message], responses: Sequence[str], c: float = 1.0) -> "Assessment":
        """The rewards of ``score`` with what is known of their errors; the lower bound is ``reward - c * error``.

        Raises ``ValueError`` for a model without uncertainty, for a ``c`` below 0 or not finite, and for what ``score`` refuses.
        """
        check_bound(c)
        uncertainty = self.known_uncertainty()
        encoded, texts = self._encode(messages, responses)
        if not encoded.suffixes:
            return Assessment([], [], [], [])
        self.model.eval()
        features = next(map_rows(self.model, [encoded], self.rule.hidden_states))
        rewards = head_rewards(self.model, features.to(self.model.device)).cpu().double()
        errors = uncertainty.errors(features).double()
        calibrated = torch.tensor(self.calibrated(rewards.tolist(), texts), dtype=torch.float64)
        apart = uncertainty.difference_errors(features) / self.temperature
        if uncertainty.facts["kind"] == "paper":
            apart = torch.zeros_like(apart)  # a norm, not a standard error
        beats = win_probability(calibrated[:, None] - calibrated, apart)
        lower = rewards - c * errors
        return Assessment(rewards.tolist(), errors.tolist(), lower.tolist(), beats.tolist())

    def best(self, messages: str | list[Message], responses: Sequence[str], c: float = 0.0) -> int:
        """The index of the response with the highest lower bound ``reward - c * error`` (arXiv 2301.11270, Algorithm 1); with
        ``c`` 0 that is the highest reward, and any model will do. Of equals the first. Raises ``ValueError`` without
        responses, and for a ``c`` below 0 or not finite."""
        check_bound(c)
        if not responses:
            raise ValueError("responses: there is nothing to choose from")
        values = self.assess(messages, responses, c).lower if c else self.score(messages, responses)
        return max(range(len(values)), key=values.__getitem__)

    def known_uncertainty(self) -> Uncertainty:
        """``uncertainty``, or ``ValueError`` for a model that has none."""
        if self.uncertainty is None:
            raise ValueError("this model has no uncertainty beside it: make it from rankings with 'kwise uncertainty'")
        return self.uncertainty

    def _encode(
        self, messages: str | list[Message], responses: str | Sequence[str]
    ) -> tuple[EncodedRanking, list[str]]:
        """The conversations as ids, and the responses as texts, which are also given as lists of one assistant message."""
        turns = [Message(role="user", content=messages)] if isinstance(messages, str) else messages
        if isinstance(responses, Mapping | bytes) or not hasattr(responses, "__getitem__"):
            raise ValueError(f"responses: must be text or a list of texts, this is {kind_of(responses)}")
        try:
            prompt = prompt_messages(turns, "messages")
            given = [responses] if isinstance(responses, str) else responses
            answers = [response_text(each, f"responses[{k}]") for k, each in enumerate(given)]
        except FieldError as error:
            raise ValueError(f"{error.field}: {error.problem}") from error
        if not answers:
            return EncodedRanking([], [], [], []), []
        encoded = self.encoder.encode(prompt, answers)
        if any(encoded.cut):
            warnings.warn(
                f"{sum(map(bool, encoded.cut))} responses were cut to {self.settings.max_length} tokens", stacklevel=3
            )
        return encoded, answers

    def calibrated(self, rewards: Sequence[float], texts: Sequence[str]) -> list[float]:
        """The rewards of responses, given as ``texts``, as ``kwise calibrate`` corrects them (``Calibration``): unchanged for a
        model without one."""
        return (self.settings.calibration or Calibration()).apply(rewards, [len(text) for text in texts])

    @property
    def temperature(self) -> float:
        """What calibration divides rewards, and so their errors, by: 1 for a model without one."""
        return (self.settings.calibration or Calibration()).temperature

    def probability(self, messages: str | list[Message], better: str, worse: str) -> float:
        """P(``better`` beats ``worse``) as responses to the prompt: sigmoid of the difference of their calibrated rewards.

        A model that was never calibrated has temperature 1 and no length slope. Takes and raises what ``score`` does.
        """
        encoded, texts = self._encode(messages, [better, worse])
        first, second = self.calibrated(next(self.score_encoded([encoded])), texts)
        return (1 + math.tanh((first - second) / 2)) / 2  # the sigmoid, without overflow

    def score_rankings(
        self, rankings: Iterable[Ranking], progress: Callable[[int, int], None] = lambda done, total: None
    ) -> tuple[list[list[float]], int]:
        """The rewards of every ranking's responses, in order, and how many distinct responses were cut to ``max_length``.

        Equal conversations are run once. ``progress`` is told the number of distinct responses done, and of how many.
        """
        pool = encode_distinct(self.encoder, rankings)
        rewards: list[float] = []
        for own in self.score_encoded(pool.encoded):
            rewards += own
            progress(len(rewards), pool.num_responses)
        return [[rewards[place] for place in own] for own in pool.where], pool.shortened

    def score_with_errors(self, rankings: Iterable[EncodedRanking]) -> Iterator[tuple[list[float], list[float]]]:
        """The K rewards of each encoded ranking and their K errors (``Uncertainty.errors``), in order, streaming.

        Raises ``ValueError`` for a model without uncertainty.
        """
        uncertainty = self.known_uncertainty()
        self.model.eval()

        def read(model: PreTrainedModel, row: Row) -> torch.Tensor:
            features = self.rule.hidden_states(model, row)
            return torch.stack([head_rewards(model, features).double(), uncertainty.errors(features).double()], 1)

        for values in map_rows(self.model, rankings, read):
            yield values[:, 0].tolist(), values[:, 1].tolist()

    def score_encoded(
        self, rankings: Iterable[EncodedRanking], tokens_per_row: int = TOKENS_PER_ROW
    ) -> Iterator[list[float]]:
        """The K rewards of each encoded ranking, in order, streaming."""
        self.model.eval()

        def read(model: PreTrainedModel, row: Row) -> torch.Tensor:
            return head_rewards(model, self.rule.hidden_states(model, row))

        for rewards in map_rows(self.model, rankings, read, tokens_per_row):
            yield rewards.tolist()
