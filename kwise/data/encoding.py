"""Rankings of a file encoded once, by all cores, into the files of ``kwise.data.encoded``.

A folder of the cache gets its name when it is whole, so what a killed process leaves is never read; a lock beside it lets one
process encode and others wait.
"""

import errno
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from filelock import FileLock, Timeout

from kwise.data.baselines import text_hash
from kwise.data.cache import cache_folder, content_hash
from kwise.data.check import Checker
from kwise.data.encode import Encoder
from kwise.data.encoded import Damaged, EncodedRankings, Part, batch_hash, fingerprint
from kwise.data.lines import content_key
from kwise.data.sources import scan_rows
from kwise.records import DataError, Ranking

CHUNK = 64  # rankings encoded together, and one batch of the arrow file
ALONE = 2**23  # characters that this process encodes before it starts others, which takes them seconds
MOST = 32  # processes: more than one reader can feed


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
            hashes.append(batch_hash(offsets, chunk.ids))
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
        "batch": CHUNK,
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
