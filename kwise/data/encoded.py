"""Rankings of a file as token ids, encoded once by all cores and kept: an arrow file that training maps into memory.

::

    CACHE/encoded/KEY/tokens.arrow   ids of each ranking (prefix, then all suffixes), in batches of CHUNK rankings
    CACHE/encoded/KEY/index.arrow    all else: lengths, ranks, line numbers, hashes of prompts; the data check in its metadata
    CACHE/encoded/KEY/index.xxh3     hash of the index, which itself holds a hash of every batch of tokens

KEY is a hash of the file's content, of the tokenizer with its chat template, and of how it was read and cut. The folder gets its
name when it is whole, so what a killed process leaves is never read; a lock beside it lets one process encode and others wait.
"""

import errno
import json
import multiprocessing
import operator
import os
import shutil
import signal
import tempfile
import threading
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import xxhash
from filelock import FileLock, Timeout

from kwise.data.baselines import text_hash
from kwise.data.cache import cache_folder, content_hash
from kwise.data.check import Checker
from kwise.data.encode import Encoder
from kwise.data.lines import content_key
from kwise.data.sources import scan_rows
from kwise.records import DataError, EncodedRanking, Ranking

VERSION = 1  # counts up when ids, or what is kept beside them, come out differently
CHUNK = 64  # rankings encoded together, and one batch of the arrow file
ALONE = 2**23  # characters that this process encodes before it starts others, which takes them seconds
MOST = 32  # processes: more than one reader can feed


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
    """A hash of all ids and ranks of ``items``, of the hashes on file where they were read from the cache."""
    digest = xxhash.xxh3_128()
    if isinstance(items, EncodedRankings):
        for part in items.parts:
            digest.update(json.dumps(part.about["hashes"]).encode())
        digest.update(np.ascontiguousarray(items.ranks).data)
    else:
        for item in items:
            lists: list[Sequence[float]] = [item.prefix, *item.suffixes, item.ranks]
            for values in lists:
                digest.update(np.array([len(values), *values], dtype=np.float64).data)
    return str(digest.hexdigest())


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
        if offsets is not None and len(offsets) != len(self):
            raise ValueError(f"there are {len(offsets)} lists of offsets for {len(self)} rankings")

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

    def with_offsets(self, offsets: Sequence[Sequence[float]]) -> "EncodedRankings":
        """The same with ``EncodedRanking.offsets``."""
        return EncodedRankings(self.parts, self.fingerprint, offsets)

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
        number, row = divmod(i, CHUNK)
        column = self._batches.get_batch(number).column(0)
        offsets, values = np.asarray(column.offsets), np.asarray(column.values)
        if number not in self.sound:
            if _batch_hash(offsets, values) != self.about["hashes"][number]:
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


def _batch_hash(offsets: np.ndarray, values: np.ndarray) -> str:
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


def encode_files(
    encoder: Encoder,
    files: Sequence[str],
    source: str = "auto",
    say: Callable[[str], None] = lambda message: None,
    progress: Callable[[int], None] = lambda done: None,
) -> EncodedRankings:
    """The rankings of ``files`` (as ``read_lines`` takes them), encoded now or, where nothing has changed since, before.

    ``say`` is told which of the two it was, and the rate; ``progress`` the number of rankings done. Large files are encoded by a
    process for each core this one may use; memory grows by about a kilobyte a ranking. Like all that starts processes, a
    script that calls this needs its ``if __name__ == "__main__"``. Raises ``DataError`` at the first line, in the order of the
    file, that cannot be read or encoded; nothing is kept then.
    """
    made_by = fingerprint(encoder)
    return EncodedRankings([_encoded(encoder, made_by, file, source, say, progress) for file in files], made_by)


def _encoded(
    encoder: Encoder,
    made_by: str,
    file: str,
    source: str,
    say: Callable[[str], None],
    progress: Callable[[int], None],
) -> Part:
    key = xxhash.xxh3_128_hexdigest(json.dumps([made_by, content_key(file), source]).encode())
    folder = cache_folder() / "encoded" / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{folder}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"{file}: another process encodes it; waiting")
        lock.acquire()
    try:
        return _known(folder, file, say) or _made(folder, encoder, file, source, say, progress)
    finally:
        lock.release()


def _known(folder: Path, file: str, say: Callable[[str], None]) -> Part | None:
    """What an earlier run left in ``folder``, or None: one that is damaged is removed."""
    if not folder.exists():
        return None
    try:
        part = Part(folder, file)
    except Damaged as damage:
        say(f"WARNING: {folder} is not used, and removed: {damage}. {file} is encoded anew")
        shutil.rmtree(folder)
        return None
    say(f"{file}: {part}, encoded before; read from {folder}")
    return part


def _made(
    folder: Path,
    encoder: Encoder,
    file: str,
    source: str,
    say: Callable[[str], None],
    progress: Callable[[int], None],
) -> Part:
    unfinished = folder.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
    unfinished.mkdir()
    try:
        _write(unfinished, encoder, file, source, progress)
        unfinished.rename(folder)
    except BaseException as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(folder.parent).free / 2**20
            raise OSError(
                f"the ids of {file} do not fit into {folder.parent} ({error}); {free:.0f} MiB are free there: make room, or set "
                "KWISE_CACHE to another folder"
            ) from error
        raise
    part = Part(folder, file)
    say(f"{file}: {part}; kept in {folder} ({sum(p.stat().st_size for p in folder.iterdir()) / 2**20:.0f} MiB)")
    return part


def _write(folder: Path, encoder: Encoder, file: str, source: str, progress: Callable[[int], None]) -> None:
    import pyarrow

    start = time.perf_counter()
    checker = Checker(file)
    columns: dict[str, list[np.ndarray]] = {name: [] for name in Chunk._fields}
    hashes, done, most = [], 0, 1
    schema = pyarrow.schema([("ids", pyarrow.list_(pyarrow.int32()))])
    with (
        pyarrow.OSFile(str(folder / "tokens.arrow"), "wb") as sink,
        pyarrow.ipc.new_file(sink, schema) as writer,
    ):
        for processes, chunk in _chunks(encoder, _read(file, source, checker)):
            offsets = np.concatenate([[0], np.cumsum(chunk.length)]).astype(np.int32)
            most = max(most, processes)
            hashes.append(_batch_hash(offsets, chunk.ids))
            lists = pyarrow.ListArray.from_arrays(offsets, chunk.ids)
            writer.write_batch(pyarrow.record_batch([lists], schema=schema))
            for name in columns.keys() - {"ids"}:
                columns[name].append(getattr(chunk, name))
            done += len(chunk.line)
            progress(done)
    found = {name: np.concatenate(values) for name, values in columns.items() if values}
    bounds = np.concatenate([[0], np.cumsum(found["size"])]).astype(np.int32)
    for name in ("suffix", "reward_at", "cut", "ranks"):
        found[name] = pyarrow.ListArray.from_arrays(bounds, found[name])
    about = {
        "report": checker.result().to_json(),
        "tokens": int(found["length"].sum()),
        "bytes": (folder / "tokens.arrow").stat().st_size,
        "hashes": hashes,
        "processes": most,
        "seconds": time.perf_counter() - start,
    }
    index = pyarrow.table(found).replace_schema_metadata({"kwise": json.dumps(about)})
    with pyarrow.OSFile(str(folder / "index.arrow"), "wb") as sink, pyarrow.ipc.new_file(sink, index.schema) as writer:
        writer.write_table(index)
    (folder / "index.xxh3").write_text(content_hash(folder / "index.arrow"), encoding="ascii")


def _read(file: str, source: str, checker: Checker) -> Iterator[list[Ranking]]:
    """The rankings of ``file``, ``CHUNK`` by ``CHUNK``, those before a bad line too; then its ``DataError``."""
    chunk: list[Ranking] = []
    for number, _, item in scan_rows(file, source):
        if isinstance(item, DataError):
            if chunk:
                yield chunk
            raise item
        checker.add(number, item)
        chunk.append(item)
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


class Chunk(NamedTuple):
    """Encoded rankings, as arrays: for each its ``line``, ``size`` (K), ``length`` and ``prefix`` in tokens and the hashes of its
    ``prompt`` and ``group``; for each response its ``suffix`` (length), ``reward_at``, ``cut`` and ``ranks``; ``ids`` of all."""

    line: np.ndarray
    size: np.ndarray
    length: np.ndarray
    prefix: np.ndarray
    prompt: np.ndarray
    group: np.ndarray
    suffix: np.ndarray
    reward_at: np.ndarray
    cut: np.ndarray
    ranks: np.ndarray
    ids: np.ndarray


def _encode(encoder: Encoder, rankings: list[Ranking]) -> Chunk:
    items = [encoder.encode_ranking(ranking) for ranking in rankings]

    def array(values: Iterable[Any], kind: type = np.int32) -> np.ndarray:
        return np.fromiter(values, dtype=kind)

    return Chunk(
        array((item.line for item in items), np.int64),
        array(len(item.suffixes) for item in items),
        array((item.num_tokens for item in items), np.int64),
        array(len(item.prefix) for item in items),
        array((text_hash(ranking.prompt) for ranking in rankings), np.uint64),
        array((text_hash(ranking.group) for ranking in rankings), np.uint64),
        array(len(suffix) for item in items for suffix in item.suffixes),
        array(each for item in items for each in item.reward_at),
        array(each for item in items for each in item.cut),
        array((each for item in items for each in item.ranks), np.float64),
        np.concatenate([np.asarray(ids, dtype=np.int32) for item in items for ids in (item.prefix, *item.suffixes)]),
    )


def _chunks(encoder: Encoder, rankings: Iterator[list[Ranking]]) -> Iterator[tuple[int, Chunk]]:
    """Each of ``rankings`` encoded, in order, with the number of processes at work; few are waiting at any time."""
    characters = 0
    cores = min(_cores(), MOST)
    for own in rankings:
        yield 1, _encode(encoder, own)
        characters += sum(len(response) for ranking in own for response in ranking.responses)
        if characters > ALONE and cores > 1:
            break
    else:
        return
    # never a plain fork: threads of torch or of the tokenizer may hold locks
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload([__name__, type(encoder.tokenizer).__module__])
    waiting: deque[Future[Chunk]] = deque()
    problem: DataError | None = None
    with ProcessPoolExecutor(cores, context, _start, (encoder,)) as pool:
        try:
            while True:
                while problem is None and len(waiting) < 2 * cores:
                    try:
                        own = next(rankings)
                    except StopIteration:
                        break
                    except DataError as error:
                        problem = error  # once what came before it is known to be sound
                        break
                    waiting.append(pool.submit(_encode_here, own))
                if not waiting:
                    break
                yield cores, waiting.popleft().result()
        except BrokenProcessPool as error:
            raise ChildProcessError(
                "a process that encodes was killed, most likely for want of memory: start again, with fewer cores (taskset)"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)
    if problem is not None:
        raise problem


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_encoder: Encoder  # in a worker process


def _start(encoder: Encoder) -> None:
    global _encoder
    _encoder = encoder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # every core has a process already
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends its workers
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()  # a parent that is killed cannot end its workers


def _encode_here(rankings: list[Ranking]) -> Chunk:
    return _encode(_encoder, rankings)
