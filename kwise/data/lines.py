"""Rows of a file or a hub data set, one at a time, with their line numbers: JSON lines (plain, gzip, zstd) and parquet.

The kind of file is told by its first bytes, never by its name.
"""

import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from kwise.data.cache import content_hash
from kwise.records import DataError

STARTER = {name: Path(__file__).parent.parent / "starter" / f"{name}.jsonl" for name in ("train", "heldout")}
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")


class RepeatedKey(DataError):
    """A line in which an object has one key twice: of its values only one could be kept."""


def read_lines(path: str) -> Iterator[tuple[int, dict[str, Any] | DataError]]:
    """Yield ``(line number from 1, row)`` for a local file, for a hub data set ``owner/name[:split]``, or for the rankings that
    come with kwise: ``starter:train`` and ``starter:heldout``.

    A line that is not a JSON object is yielded as a ``DataError``, so that a caller may go on after it. Blank lines are
    passed over. Raises ``DataError`` for what cannot be read at all: a missing file, a directory, an empty file, a CSV, a
    JSON array.
    """
    local = _resolve(path)
    yield from _hub(path) if local is None else _local(str(local))


def public_name(word: str) -> str:
    """What data or a model may be called where others read it: a hub id or a packaged set as it is, of a path, also behind a
    suite's name, the last part. Where it lies on this machine is nobody's business."""
    if HUB_ID.fullmatch(word) and not Path(word).exists():
        return word
    suite, colon, path = word.partition(":")
    return f"{suite}:{public_name(path)}" if colon and "/" not in suite else Path(word).name


def lasting_name(word: str) -> str:
    """``word`` for facts that are read later, elsewhere: of a path that would be taken for a hub id there, the whole."""
    return str(Path(word).resolve()) if HUB_ID.fullmatch(word) and Path(word).exists() else word


def content_key(path: str) -> str:
    """What changes whenever the rows of ``path`` (as ``read_lines`` takes it) do: a hash of the file's bytes, or the commit of
    the hub's data set. Raises ``DataError`` for what is not there."""
    local = _resolve(path)
    if local is not None:
        return content_hash(local)
    from huggingface_hub import HfApi

    try:
        return f"{path}@{HfApi().dataset_info(path.partition(':')[0]).sha}"
    except Exception as error:  # the hub client raises many unrelated types; all mean that the data cannot be had
        raise DataError(f"no such file, and the hub gave no such data set ({error})", file=path) from error


def _resolve(path: str) -> Path | None:
    """The local file that ``path`` means, or None for a hub data set."""
    if path.startswith("starter:") and path.removeprefix("starter:") in STARTER:
        return STARTER[path.removeprefix("starter:")]
    local = Path(path)
    if local.is_dir():
        files = sorted(p.name for p in local.iterdir() if re.search(r"\.(jsonl?|parquet)(\.gz|\.zst)?$", p.name))
        hint = f"name its files one by one, for example {local / files[0]}" if files else "it holds no data file"
        raise DataError(f"this is a directory; {hint}", file=path)
    if local.exists() and not local.is_file():
        raise DataError(
            "this is a pipe or a device: kwise reads a file more than once, so save it as one first", file=path
        )
    if local.exists():
        return local
    if HUB_ID.fullmatch(path) and not Path(path.partition("/")[0]).exists():
        return None
    raise DataError("no such file", file=path)


def _local(path: str) -> Iterator[tuple[int, dict[str, Any] | DataError]]:
    with Path(path).open("rb") as file:
        head = file.read(4)
        file.seek(0)
        if head == b"PAR1":
            yield from _parquet(path)
        elif head[:2] == b"\x1f\x8b":
            yield from _json_lines(path, cast(BinaryIO, gzip.GzipFile(fileobj=file)))
        elif head == b"\x28\xb5\x2f\xfd":
            import pyarrow  # its reader tells a stream that was cut short; zstandard's ends as if all were well

            yield from _json_lines(path, cast(BinaryIO, pyarrow.CompressedInputStream(file, "zstd")))
        else:
            yield from _json_lines(path, file)


def _json_lines(path: str, stream: BinaryIO) -> Iterator[tuple[int, dict[str, Any] | DataError]]:
    number = seen = 0
    lines = io.BufferedReader(cast(io.RawIOBase, stream))
    while True:
        number += 1
        try:
            raw = lines.readline()
        except (OSError, EOFError, zlib.error) as error:  # what gzip and zstd raise when a file is cut short or damaged
            raise DataError(f"the compressed file is damaged or cut short ({error})", file=path, line=number) from error
        if not raw:
            break
        if not raw.strip():
            continue
        seen += 1
        row = _parse(path, number, raw)
        if seen == 1 and isinstance(row, DataError):
            _refuse_other_formats(path, number, raw)
        yield number, row
    if not seen:
        raise DataError("the file is empty", file=path)


class _KeyTwice(ValueError):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _KeyTwice(next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1))
    return found


DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _parse(path: str, number: int, raw: bytes) -> dict[str, Any] | DataError:
    try:
        # decoded here, since json.loads lets UTF-16 and broken UTF-8 pass; without the line's end, so that columns are right
        row = DECODER.decode(raw.decode("utf-8-sig").rstrip("\r\n"))
        if b"\\ud" in raw.lower():
            json.dumps(row, ensure_ascii=False).encode()
    except _KeyTwice as error:
        problem = "this key stands twice in one object, and one of its values would be lost"
        name = str(error).encode(errors="backslashreplace").decode()  # half of a surrogate pair cannot be shown
        return RepeatedKey(problem, file=path, line=number, field=name)
    except UnicodeEncodeError:  # no tokenizer takes it and no file can hold it
        return DataError("not valid text (half of a surrogate pair, \\ud800 to \\udfff)", file=path, line=number)
    except UnicodeDecodeError as error:
        return DataError(f"not UTF-8 text ({error.reason} at byte {error.start})", file=path, line=number)
    except json.JSONDecodeError as error:
        return DataError(f"not valid JSON ({error.msg} at column {error.colno})", file=path, line=number)
    except RecursionError:
        return DataError("not valid JSON (nested too deeply)", file=path, line=number)
    except ValueError as error:  # a number of more digits than Python reads
        return DataError(f"not valid JSON ({error})", file=path, line=number)
    if not isinstance(row, dict):
        return DataError(f"a line must be a JSON object, this is {kind_of(row)}", file=path, line=number)
    return row


def _refuse_other_formats(path: str, number: int, first: bytes) -> None:
    if first.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError("this is UTF-16 text; kwise reads UTF-8", file=path, line=number)
    text = first.decode("utf-8-sig", "replace").strip()
    if text.startswith("["):
        raise DataError("this is a JSON array; kwise reads JSON lines, one object a line", file=path, line=number)
    if text == "{":
        raise DataError("this is JSON spread over several lines; kwise reads one object a line", file=path, line=number)
    if not text.startswith("{") and re.search(r"[,;\t]", text):
        raise DataError("this looks like CSV; kwise reads JSON lines and parquet", file=path, line=number)


def _parquet(path: str) -> Iterator[tuple[int, dict[str, Any] | DataError]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        table = pyarrow.parquet.ParquetFile(path)
        for batch in table.iter_batches(batch_size=256):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (pyarrow.ArrowException, OSError) as error:  # the footer is read first, damaged pages are met on the way
        raise DataError(f"not a readable parquet file ({error})", file=path) from error
    if not number:
        raise DataError("the file is empty", file=path)


def _hub(name: str) -> Iterator[tuple[int, dict[str, Any] | DataError]]:
    from datasets import load_dataset

    dataset, _, split = name.partition(":")
    try:
        rows = load_dataset(dataset, split=split or "train", streaming=True)
    except Exception as error:  # the hub client raises many unrelated types; all mean that the data cannot be had
        raise DataError(f"no such file, and the hub gave no such data set ({error})", file=name) from error
    number = 0
    try:
        for row in rows:
            number += 1
            yield number, dict(row)
    except Exception as error:  # streaming fetches as it goes: the same errors, later
        raise DataError(f"the hub stopped giving rows ({error})", file=name, line=number + 1) from error
    if not number:
        raise DataError("the data set is empty", file=name)


def kind_of(value: object) -> str:
    """A JSON value's type in the user's words."""
    if value is None:
        return "null"
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)
