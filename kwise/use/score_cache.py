"""Scores kept on disk by what was scored and by what: a suite that was interrupted goes on, nothing is scored twice.

::

    CACHE/scores-1/MODEL/PROCESS.scores    records of 32 bytes: key of a conversation (16), score (float64), checksum (8)

MODEL is ``model_hash``, the key ``conversation_key``, and CACHE ``kwise.data.cache.cache_folder``. A process appends to one file
of its own, every window with one write, and reads those of all others when it starts: several at once cannot harm one another,
on a network file system neither, and a killed one loses no more than the window it was at.
"""

import json
import os
import secrets
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
import xxhash
from transformers import PreTrainedTokenizerBase

from kwise.data.cache import cache_folder, content_hash
from kwise.data.unique import encode_distinct
from kwise.model.reward_model import WINDOW, RewardModel
from kwise.records import EncodedRanking, Ranking

FOLDER = "scores-1"  # the figure counts up when the records below change
BODY = struct.Struct("<16sd")
RECORD = BODY.size + 8
SOURCES = ("records.py", "data/*.py", "model/**/*.py")  # the code between a conversation and its score


class ScoreCache:
    """A model's scores of conversations, those on disk and those that it makes.

    The model must stay as it is. ``say`` is told what is lost: records that are damaged, and a folder that cannot be written
    (scores are then kept in memory alone). ``asked`` counts the distinct conversations that ``score_rankings`` was asked for,
    call by call, and ``found`` those of them that were known already.
    """

    def __init__(self, model: RewardModel, say: Callable[[str], None]) -> None:
        self.model, self.say = model, say
        self.asked = self.found = 0
        self.folder = cache_folder() / FOLDER / model_hash(model)
        self._own: Path | None = self.folder / f"{os.getpid()}-{secrets.token_hex(4)}.scores"
        self._scores: dict[bytes, float] = {}
        for file in sorted(self.folder.glob("*.scores")):
            self._scores |= self._read(file)

    def score_rankings(
        self, rankings: Iterable[Ranking], progress: Callable[[int, int], None] = lambda done, total: None
    ) -> tuple[list[list[float]], int]:
        """What ``RewardModel.score_rankings`` gives, through the same ``score_encoded``, with known conversations left out.

        Conversations with the same token ids are one. What is scored is scored in the windows of ``RewardModel.score_rankings``,
        so that whole windows give the same bits with and without a cache, before and after a kill; a score made in other
        company (of another file, say) may differ from them in float32's last digits, as rows are computed together.
        """
        pool = encode_distinct(self.model.encoder, rankings)
        keys = [[conversation_key(item, k) for k in range(len(item.suffixes))] for item in pool.encoded]
        wanted = {key for own in keys for key in own}
        total = len(wanted)
        done = sum(key in self._scores for key in wanted)
        self.asked += total
        self.found += done
        progress(done, total)
        for start in range(0, len(keys), WINDOW):
            window = slice(start, start + WINDOW)
            scores = self._missing(pool.encoded[window], keys[window])
            if scores:
                self._scores |= scores
                self._append(scores)
                done += len(scores)
                progress(done, total)
        flat = [self._scores[key] for own in keys for key in own]
        return [[flat[place] for place in own] for own in pool.where], pool.shortened

    def _missing(self, encoded: Sequence[EncodedRanking], keys: Sequence[Sequence[bytes]]) -> dict[bytes, float]:
        """The scores of those conversations of a window that are not known."""
        claimed: dict[bytes, None] = {}
        parts = []
        for item, own in zip(encoded, keys, strict=True):
            places = []
            for k, key in enumerate(own):
                if key not in self._scores and key not in claimed:
                    claimed[key] = None
                    places.append(k)
            if places:
                parts.append(
                    replace(
                        item,
                        suffixes=[item.suffixes[k] for k in places],
                        reward_at=[item.reward_at[k] for k in places],
                        cut=[item.cut[k] for k in places],
                    )
                )
        if not parts:
            return {}
        found = (reward for rewards in self.model.score_encoded(parts) for reward in rewards)
        return dict(zip(claimed, found, strict=True))

    def _append(self, scores: Mapping[bytes, float]) -> None:
        """One write to the end of the process's own file. NaN and infinity are not kept."""
        bodies = [BODY.pack(key, score) for key, score in scores.items() if np.isfinite(score)]
        batch = b"".join(body + xxhash.xxh3_64_digest(body) for body in bodies)
        if self._own is None or not batch:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._own.open("ab", buffering=0) as file:
                if file.write(batch) != len(batch):
                    raise OSError("no space left")
        except OSError as error:  # scoring goes on: what cannot be kept is no less true
            self._own = None
            self.say(f"scores are not kept from here on: {self.folder} cannot be written ({error})")

    def _read(self, file: Path) -> dict[bytes, float]:
        """The sound records of ``file``; half a record at its end is passed over: a process was killed, or is writing it."""
        content = file.read_bytes()
        whole = len(content) - len(content) % RECORD
        found, damaged = {}, 0
        for start in range(0, whole, RECORD):
            body, check = content[start : start + BODY.size], content[start + BODY.size : start + RECORD]
            if xxhash.xxh3_64_digest(body) == check:
                key, score = BODY.unpack(body)
                found[key] = score
            else:
                damaged += 1
        if damaged:
            self.say(
                f"{damaged} of {whole // RECORD} scores in {file} are damaged and made again; the file may be removed"
            )
        return found


def conversation_key(item: EncodedRanking, k: int) -> bytes:
    """XXH3 (128 bits) of what the model sees of response ``k``: the ids of the conversation, and where its reward is read."""
    ids = [len(item.prefix) + item.reward_at[k], *item.prefix, *item.suffixes[k]]
    return bytes(xxhash.xxh3_128_digest(np.array(ids, dtype=np.int64).tobytes()))


def model_hash(model: RewardModel) -> str:
    """XXH3 (128 bits, hexadecimal) of all that moves a score.

    The weights and buffers as they are in memory, so also those that an adapter was merged into, with dtypes and names; config;
    tokenizer and chat template; of ``kwise.json`` the longest sequence, truncation and the rule of where a reward is read, but
    no calibration, which is applied to scores; the attention backend, the kind of device and, of a GPU, its name and whether it
    multiplies float32 in TF32; and the versions of torch and transformers and kwise's own code from a conversation to its score.
    Not in it, as float32's last digits alone depend on them: the number of threads and the kind of CPU.
    """
    network, settings, tokenizer = model.model, model.settings, model.tokenizer
    config = network.config.to_dict()
    config.pop("_name_or_path", None)  # where the folder lies
    device = network.device
    facts = {
        "config": config,
        "attention": network.config._attn_implementation,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "matmul": torch.get_float32_matmul_precision(),
        "settings": [settings.max_length, settings.truncation, settings.reward_at],
        "tokenizer": _tokenizer(tokenizer),
        "special": [tokenizer.bos_token_id, tokenizer.unk_token_id],
        "template": tokenizer.chat_template,
        "versions": [torch.__version__, transformers.__version__],
        "code": _code(),
    }
    digest = xxhash.xxh3_128(json.dumps(facts, sort_keys=True, default=str).encode())
    buffers = ((f"buffer {name}", buffer) for name, buffer in network.named_buffers())  # those that no file has too
    for name, value in (*network.state_dict().items(), *buffers):
        for part in _plain(value):
            digest.update(f"{name} {part.dtype} {tuple(part.shape)}".encode())
            digest.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return str(digest.hexdigest())


def _tokenizer(tokenizer: PreTrainedTokenizerBase) -> Any:
    if not tokenizer.is_fast:
        return sorted(tokenizer.get_vocab().items())
    facts = json.loads(tokenizer.backend_tokenizer.to_str())
    return [value for name, value in facts.items() if name not in ("padding", "truncation")]  # left over from a call


def _plain(value: Any) -> Iterator[torch.Tensor]:
    """The tensors that a quantised one is made of; any other is itself."""
    if hasattr(value, "__tensor_flatten__"):
        for name in value.__tensor_flatten__()[0]:
            yield from _plain(getattr(value, name))
    else:
        yield value


def _code() -> list[str]:
    root = Path(__file__).parents[1]
    return [content_hash(file) for pattern in SOURCES for file in sorted(root.glob(pattern))]
