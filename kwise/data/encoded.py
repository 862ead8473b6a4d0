"""Rankings as token ids in files that training maps into memory. ``kwise.data.encoding`` writes them.

::

    CACHE/encoded/KEY/tokens.arrow   ids of each ranking (prefix, then all suffixes), in batches of so many rankings
    CACHE/encoded/KEY/index.arrow    all else: lengths, ranks, line numbers, hashes of prompts; the data check in its metadata
    CACHE/encoded/KEY/index.xxh3     hash of the index, which itself holds a hash of every batch of tokens

KEY is a hash of the file's content, of the tokenizer with its chat template, and of how it was read and cut.
"""

import json
import operator
import shutil
import tempfile
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, overload

import numpy as np
import xxhash

from kwise.data.baselines import text_hash
from kwise.data.cache import content_hash
from kwise.data.encode import Encoder
from kwise.records import EncodedRanking, Ranking

VERSION = 4  # counts up when ids, or what is kept beside them, come out differently, and when more is refused


@dataclass(frozen=True)
class Shapes:
    """Lengths in tokens of n rankings with R responses in all: ``prefix`` [n], ``suffix`` [R], of which those of ranking i are
    ``bounds[i]`` to ``bounds[i + 1]``; ``bounds`` [n + 1]. All int64."""

    prefix: np.ndarray
    suffix: np.ndarray
    bounds: np.ndarray

    @property
    def num_tokens(self) -> np.ndarray:
        """[n] ``EncodedRanking.num_tokens``."""
        return np.asarray(self.prefix + self.each(np.add))

    def each(self, function: np.ufunc, values: np.ndarray | None = None) -> np.ndarray:
        """[n] ``function`` (``np.add``, ``np.minimum``, ...) over the responses of each ranking: of ``values`` [R], else of their
        lengths."""
        return np.asarray(function.reduceat(self.suffix if values is None else values, self.bounds[:-1]))

    @property
    def shortest(self) -> int:
        """The ranking that has the shortest prompt with one response."""
        return int(np.argmin(self.prefix + self.each(np.minimum)))


def shapes(items: Sequence[EncodedRanking]) -> Shapes:
    """The lengths of ``items``, read off the index where there is one."""
    if isinstance(items, EncodedRankings):
        return items.shapes
    sizes = [len(item.suffixes) for item in items]
    return Shapes(
        np.array([len(item.prefix) for item in items], dtype=np.int64),
        np.array([len(suffix) for item in items for suffix in item.suffixes], dtype=np.int64),
        np.cumsum([0, *sizes], dtype=np.int64),
    )


def content(items: Sequence[EncodedRanking]) -> str:
    """A hash of all ids, ranks and offsets of ``items``, of the hashes on file where they were read from the cache."""
    digest = xxhash.xxh3_128()
    if isinstance(items, EncodedRankings):
        for part in items.parts:
            digest.update(json.dumps(part.about["hashes"]).encode())
        digest.update(np.ascontiguousarray(items.ranks).data)
        for own in items.offsets or ():
            digest.update(np.array(own, dtype=np.float64).data)
    else:
        for item in items:
            lists: list[Sequence[float]] = [item.prefix, *item.suffixes, item.ranks, item.offsets]
            for values in lists:
                digest.update(np.array([len(values), *values], dtype=np.float64).data)
    return str(digest.hexdigest())


@overload
def with_offsets(items: "EncodedRankings", offsets: Sequence[Sequence[float]]) -> "EncodedRankings": ...
@overload
def with_offsets(items: list[EncodedRanking], offsets: Sequence[Sequence[float]]) -> list[EncodedRanking]: ...
def with_offsets(items: Sequence[EncodedRanking], offsets: Sequence[Sequence[float]]) -> Sequence[EncodedRanking]:
    """``items`` with ``EncodedRanking.offsets``. Raises ``ValueError`` unless there is one for each response of each."""
    sizes = np.diff(shapes(items).bounds).tolist()
    if len(offsets) != len(sizes):
        raise ValueError(f"there are {len(offsets)} lists of offsets for {len(sizes)} rankings")
    for i, (own, size) in enumerate(zip(offsets, sizes, strict=True)):
        if len(own) != size:
            raise ValueError(f"offsets[{i}]: {len(own)} for {size} responses")
    if isinstance(items, EncodedRankings):
        return EncodedRankings(items.parts, items.fingerprint, offsets)
    return [replace(item, offsets=list(own)) for item, own in zip(items, offsets, strict=True)]


def prompt_hashes(rankings: "Sequence[Ranking] | EncodedRankings") -> tuple[np.ndarray, np.ndarray]:
    """Of each ranking a hash of ``prompt`` and one of ``group``: [n] uint64 both."""
    if isinstance(rankings, EncodedRankings):
        return rankings.prompts, rankings.groups
    return (
        np.array([text_hash(ranking.prompt) for ranking in rankings], dtype=np.uint64),
        np.array([text_hash(ranking.group) for ranking in rankings], dtype=np.uint64),
    )


class EncodedRankings(Sequence[EncodedRanking]):
    """The rankings of several files in their order, each read from the mapped arrow files when it is asked for.

    ``shapes`` are their lengths, ``prompts`` and ``groups`` their ``prompt_hashes``,
    ``reports`` the data check of each file as JSON, ``fingerprint`` the encoder that made it. Every batch of tokens is held
    against its hash when it is first read: one that is damaged is an ``OSError``, and the next start encodes anew.
    """

    def __init__(
        self, parts: "Sequence[Part]", fingerprint: str, offsets: Sequence[Sequence[float]] | None = None
    ) -> None:
        self.parts, self.fingerprint, self.offsets = list(parts), fingerprint, offsets
        self.starts = np.cumsum([0, *(part.count for part in self.parts)]).tolist()
        self.prompts, self.groups, self.lines, prefix = (
            np.concatenate([part.column(name) for part in self.parts]) for name in ("prompt", "group", "line", "prefix")
        )
        self.ranks, self.cut, self.reward_at, suffix = (
            np.concatenate([part.column(name) for part in self.parts])
            for name in ("ranks", "cut", "reward_at", "suffix")
        )
        sizes = np.concatenate([part.column("size") for part in self.parts])
        bounds = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self.shapes = Shapes(prefix.astype(np.int64), suffix.astype(np.int64), bounds)

    def __reduce__(self) -> tuple[Any, ...]:  # a mapped file cannot go to another process, its name can
        return EncodedRankings, (self.parts, self.fingerprint, self.offsets)

    @property
    def reports(self) -> dict[str, dict[str, Any]]:
        """File name -> ``Report.to_json()``."""
        return {part.file: part.about["report"] for part in self.parts}

    @property
    def num_cut(self) -> int:
        """How many rankings have a response that was shortened to ``max_length``."""
        return int((self.shapes.each(np.maximum, self.cut) > 0).sum())

    @property
    def all_tied(self) -> bool:
        """Whether no ranking says that anything is better."""
        return bool((self.shapes.each(np.maximum, self.ranks) == self.shapes.each(np.minimum, self.ranks)).all())

    def __len__(self) -> int:
        return int(self.starts[-1])

    @overload
    def __getitem__(self, index: int) -> EncodedRanking: ...
    @overload
    def __getitem__(self, index: slice) -> list[EncodedRanking]: ...
    def __getitem__(self, index: int | slice) -> EncodedRanking | list[EncodedRanking]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[operator.index(index)]
        number = bisect_right(self.starts, i) - 1
        part = self.parts[number]
        own = slice(self.shapes.bounds[i], self.shapes.bounds[i + 1])
        prefix = int(self.shapes.prefix[i])
        ends = (prefix + np.cumsum(self.shapes.suffix[own])).tolist()
        ids = part.ids(i - self.starts[number])
        return EncodedRanking(
            ids[:prefix],
            [ids[start:end] for start, end in zip([prefix, *ends], ends, strict=False)],
            self.reward_at[own].tolist(),
            self.cut[own].tolist(),
            self.ranks[own].tolist(),
            list(self.offsets[i]) if self.offsets is not None else [],
            part.file,
            int(self.lines[i]),
        )


class Damaged(Exception):
    """What is wrong with a cached encoding."""


class Part:
    """One folder of the cache, opened. Raises ``Damaged`` if it is not what was written."""

    def __init__(self, folder: Path, file: str) -> None:
        import pyarrow

        self.folder, self.file = folder, file
        try:
            raw = (folder / "index.arrow").read_bytes()
            if xxhash.xxh3_128_hexdigest(raw) != (folder / "index.xxh3").read_text(encoding="ascii"):
                raise Damaged("its index does not hold what was written")
            self.index = pyarrow.ipc.open_file(raw).read_all()
            self.about: dict[str, Any] = json.loads(self.index.schema.metadata[b"kwise"])
            size = (folder / "tokens.arrow").stat().st_size
            if size != self.about["bytes"]:
                raise Damaged(f"tokens.arrow has {size} bytes, {self.about['bytes']} were written")
            if self._batches.num_record_batches != len(self.about["hashes"]):
                raise Damaged("tokens.arrow has lost batches")
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            raise Damaged(str(error)) from error
        self.count = self.index.num_rows
        self.sound: set[int] = set()  # batches whose hash was compared

    def __reduce__(self) -> tuple[Any, ...]:
        return Part, (self.folder, self.file)

    def __str__(self) -> str:
        seconds, processes = self.about["seconds"], self.about["processes"]
        return (
            f"{self.count} rankings, {self.about['tokens']} tokens, {self.count / seconds:.0f} rankings a second "
            f"({seconds:.1f} s, {processes} process{'es' * (processes > 1)})"
        )

    def column(self, name: str) -> np.ndarray:
        """A column of the index; of one with a value for each response all values, in order."""
        import pyarrow

        column = self.index.column(name).combine_chunks()
        return np.asarray(column.flatten() if pyarrow.types.is_list(column.type) else column)

    def ids(self, i: int) -> list[int]:
        """The tokens of ranking ``i`` of this file: its prefix and all its suffixes."""
        number, row = divmod(i, self.about["batch"])
        column = self._batches.get_batch(number).column(0)
        offsets, values = np.asarray(column.offsets), np.asarray(column.values)
        if number not in self.sound:
            if batch_hash(offsets, values) != self.about["hashes"][number]:
                shutil.rmtree(self.folder, ignore_errors=True)
                raise OSError(
                    f"{self.folder} does not hold what was written (batch {number}), and was removed: start again, and "
                    f"{self.file} is encoded anew"
                )
            self.sound.add(number)
        found: list[int] = values[offsets[row] : offsets[row + 1]].tolist()
        return found

    @cached_property
    def _batches(self) -> Any:
        import pyarrow

        return pyarrow.ipc.open_file(pyarrow.memory_map(str(self.folder / "tokens.arrow")))


def batch_hash(offsets: np.ndarray, values: np.ndarray) -> str:
    """The hash that a batch of tokens is held against."""
    digest = xxhash.xxh3_64(np.ascontiguousarray(offsets).data)
    digest.update(np.ascontiguousarray(values).data)
    return str(digest.hexdigest())


def fingerprint(encoder: Encoder) -> str:
    """A hash of all that decides which ids a ranking has: tokenizer, chat template, longest sequence, truncation, versions."""
    parts = [VERSION, encoder.max_length, encoder.truncation, version("tokenizers"), version("transformers")]
    encoder.tokenizer("")  # forget a padding or truncation of an earlier call, which would be saved
    with tempfile.TemporaryDirectory() as folder:
        encoder.tokenizer.save_pretrained(folder)
        parts += [f"{path.name} {content_hash(path)}" for path in sorted(Path(folder).rglob("*")) if path.is_file()]
    return str(xxhash.xxh3_128_hexdigest(json.dumps(parts).encode()))
