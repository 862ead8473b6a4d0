import gzip
import json
import os
import random
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest
import xxhash
import zstandard

from kwise.data.lines import content_key, lasting_name, public_name, read_lines
from kwise.records import DataError

ROWS = [{"n": 1, "text": "ä"}, {"n": 2, "text": "b\u2028c"}, {"n": 3, "text": ""}]
PLAIN = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def write(folder: Path, data: bytes, name: str = "rows.jsonl") -> str:
    path = folder / name
    path.write_bytes(data)
    return str(path)


def parquet_bytes(table: pyarrow.Table, **options: object) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink, **options)
    return sink.getvalue().to_pybytes()


def refusal(path: str) -> DataError:
    with pytest.raises(DataError) as caught:
        list(read_lines(path))
    return caught.value


# --- what can be read -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.gz", "rows.parquet", "rows.zst", "rows"])
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(PLAIN, id="plain"),
        pytest.param(gzip.compress(PLAIN), id="gzip"),
        pytest.param(zstandard.compress(PLAIN), id="zstd"),
        pytest.param(parquet_bytes(pyarrow.Table.from_pylist(ROWS)), id="parquet"),
    ],
)
def test_the_kind_of_file_is_told_by_content_whatever_its_name(tmp_path: Path, data: bytes, name: str) -> None:
    assert list(read_lines(write(tmp_path, data, name))) == [(1, ROWS[0]), (2, ROWS[1]), (3, ROWS[2])]


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress], ids=["gzip", "zstd"])
def test_files_joined_after_compression_are_read_to_the_end_of_the_last(tmp_path: Path, compress) -> None:
    lines = [json.dumps({"n": n, "pad": "x" * 500}).encode() + b"\n" for n in range(3000)]
    data = b"".join(compress(b"".join(lines[i : i + 1000])) for i in (0, 1000, 2000))
    assert [(number, row["n"]) for number, row in read_lines(write(tmp_path, data))] == [
        (n + 1, n) for n in range(3000)
    ]


def test_windows_line_ends_and_a_byte_order_mark_change_nothing(tmp_path: Path) -> None:
    data = b"\xef\xbb\xbf" + PLAIN.replace(b"\n", b"\r\n")
    assert [row for _, row in read_lines(write(tmp_path, data))] == ROWS


def test_byte_order_marks_inside_joined_files_are_passed_over(tmp_path: Path) -> None:
    data = b'\xef\xbb\xbf{"n": 1}\n\xef\xbb\xbf{"n": 2}\n'
    assert list(read_lines(write(tmp_path, data))) == [(1, {"n": 1}), (2, {"n": 2})]


def test_blank_lines_are_passed_over_but_counted(tmp_path: Path) -> None:
    data = b'\n{"n": 2}\n   \n\r\n{"n": 5}'  # and the last line has no line break
    assert list(read_lines(write(tmp_path, data))) == [(2, {"n": 2}), (5, {"n": 5})]


def test_escaped_pairs_of_surrogates_are_characters(tmp_path: Path) -> None:
    data = rb'{"a": "\ud83d\ude00", "b": "\\ud83d"}'
    assert list(read_lines(write(tmp_path, data))) == [(1, {"a": "😀", "b": "\\ud83d"})]


def test_parquet_is_numbered_across_its_row_groups(tmp_path: Path) -> None:
    table = pyarrow.table({"n": list(range(600)), "answers": [[{"answer": "a", "rank": None}]] * 600})
    read = list(read_lines(write(tmp_path, parquet_bytes(table, row_group_size=7))))
    assert read == [(n + 1, {"n": n, "answers": [{"answer": "a", "rank": None}]}) for n in range(600)]


@pytest.mark.parametrize("name", ["train", "heldout"])
def test_the_starter_rankings_come_with_the_package(name: str) -> None:
    rows = [row for _, row in read_lines(f"starter:{name}")]
    assert rows and not any(isinstance(row, DataError) for row in rows)


# --- one bad line: told, and reading goes on --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (b'{"n": ', "not valid JSON (Expecting value at column 7)"),
        (b'["n", 7]', "a line must be a JSON object, this is a list"),
        (b"7", "a line must be a JSON object, this is a number"),
        (b'"n, 7"', "a line must be a JSON object, this is text"),
        (b"null", "a line must be a JSON object, this is null"),
        (b"true", "a line must be a JSON object, this is true or false"),
        (b'{"n": "caf\xe9"}', "not UTF-8 text (invalid continuation byte at byte 10)"),
        (b'{"n": "\xed\xa0\x80"}', "not UTF-8 text (invalid continuation byte at byte 7)"),
        (rb'{"n": "cut \uD83D"}', r"not valid text (half of a surrogate pair, \ud800 to \udfff)"),
        (b"[" * 200_000, "not valid JSON (nested too deeply)"),
    ],
)
def test_a_bad_line_7_is_told_and_line_8_is_read(tmp_path: Path, bad: bytes, problem: str) -> None:
    good = b'{"n": 0}'
    path = write(tmp_path, b"\n".join([good] * 6 + [bad, good]))
    read = list(read_lines(path))
    assert [number for number, _ in read] == [1, 2, 3, 4, 5, 6, 7, 8]
    error = read[6][1]
    assert isinstance(error, DataError)
    assert (error.file, error.line, error.field) == (path, 7, None)
    assert str(error) == f"{path}, line 7: {problem}"
    assert [row for number, row in read if number != 7] == [{"n": 0}] * 7


@pytest.mark.parametrize(
    ("bad", "key"),
    [
        (b'{"prompt": "q", "chosen": "good", "chosen": "bad", "rejected": "x"}', "chosen"),
        (b'{"n": 1, "m": 2, "n": 1}', "n"),
        (b'{"answers": [{"rank": 1}, {"rank": 1, "text": "a", "rank": 2}]}', "rank"),
        (b'{"a": {"b": {"": 1, "": 2}}}', ""),
        (rb'{"n": 1, "\u006e": 2}', "n"),
        (rb'{"\ud83d": 1, "\ud83d": 2}', r"\ud83d"),
    ],
    ids=["a pair", "with one value", "nested in a list", "nested, the empty key", "written in two ways", "no text"],
)
def test_a_key_that_stands_twice_in_one_object_is_one_bad_line(tmp_path: Path, bad: bytes, key: str) -> None:
    path = write(tmp_path, b'{"n": 0}\n' + bad + b'\n{"n": {"n": [{"n": 0}, {"n": 0}]}}\n')
    (_, first), (_, error), (_, last) = read_lines(path)
    assert (first, last) == ({"n": 0}, {"n": {"n": [{"n": 0}, {"n": 0}]}})
    problem = "this key stands twice in one object, and one of its values would be lost"
    assert str(error) == f"{path}, line 2, field '{key}': {problem}"


def test_a_number_of_too_many_digits_is_one_bad_line(tmp_path: Path) -> None:
    read = list(read_lines(write(tmp_path, b'{"n": 1}\n{"n": ' + b"7" * 5000 + b'}\n{"n": 3}\n')))
    assert [isinstance(row, DataError) for _, row in read] == [False, True, False]


# --- what is no file of lines at all ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["", "byte-order-mark"])
@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"prompt,chosen,rejected\na,b,c\n", "this looks like CSV; kwise reads JSON lines and parquet"),
        (b"prompt\tchosen\na\tb\n", "this looks like CSV; kwise reads JSON lines and parquet"),
        (b"prompt;chosen\na;b\n", "this looks like CSV; kwise reads JSON lines and parquet"),
        (b'[{"n": 1}, {"n": 2}]', "this is a JSON array; kwise reads JSON lines, one object a line"),
        (b'[\n{"n": 1},\n{"n": 2}\n]', "this is a JSON array; kwise reads JSON lines, one object a line"),
        (b'{\n  "n": 1\n}\n', "this is JSON spread over several lines; kwise reads one object a line"),
        (b'{\r\n  "n": 1\r\n}\r\n', "this is JSON spread over several lines; kwise reads one object a line"),
    ],
)
def test_other_formats_are_named_and_refused(tmp_path: Path, mark: bytes, data: bytes, problem: str) -> None:
    path = write(tmp_path, mark + data)
    assert str(refusal(path)) == f"{path}, line 1: {problem}"


def test_other_formats_are_known_by_their_first_line_that_is_not_blank(tmp_path: Path) -> None:
    path = write(tmp_path, b'\n\n[{"n": 1}]\n')
    assert str(refusal(path)) == f"{path}, line 3: this is a JSON array; kwise reads JSON lines, one object a line"


def test_a_broken_first_line_with_commas_is_not_taken_for_csv(tmp_path: Path) -> None:
    read = list(read_lines(write(tmp_path, b'{"n": 1, "m": 2\n{"n": 2}\n')))
    assert isinstance(read[0][1], DataError)
    assert read[1] == (2, {"n": 2})


def test_a_later_line_that_looks_like_an_array_or_csv_is_one_bad_line(tmp_path: Path) -> None:
    read = list(read_lines(write(tmp_path, b'{"n": 1}\n[1,2]\na,b\n{"n": 4}\n')))
    assert [isinstance(row, DataError) for _, row in read] == [False, True, True, False]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n \r\n",
        gzip.compress(b""),
        zstandard.compress(b"\n"),
        parquet_bytes(pyarrow.table({"n": pyarrow.array([], pyarrow.int64())})),
    ],
    ids=["nothing", "blank", "gzip", "zstd", "parquet"],
)
def test_an_empty_file_is_an_error_of_its_own(tmp_path: Path, data: bytes) -> None:
    path = write(tmp_path, data)
    assert str(refusal(path)) == f"{path}: the file is empty"


def noise(lines: int) -> bytes:
    """Lines that no compressor makes much smaller."""
    rng = random.Random(0)
    return b"".join(json.dumps({"n": n, "noise": rng.randbytes(200).hex()}).encode() + b"\n" for n in range(lines))


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress], ids=["gzip", "zstd"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.999])
def test_a_compressed_file_cut_short_never_passes_for_a_whole_one(tmp_path: Path, compress, share: float) -> None:
    data = noise(1000)
    packed = compress(data)
    path = write(tmp_path, packed[: int(share * len(packed))])
    read = []
    with pytest.raises(DataError, match=r"the compressed file is damaged or cut short") as caught:
        for item in read_lines(path):
            read.append(item)
    assert caught.value.file == path
    assert caught.value.line == len(read) + 1  # each line before it was given
    assert [row["n"] for _, row in read] == list(range(len(read)))


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress], ids=["gzip", "zstd"])
def test_damage_inside_a_compressed_file_is_a_data_error(tmp_path: Path, compress) -> None:
    packed = bytearray(compress(noise(500)))
    for seed in range(20):  # some damage is seen by the decoder, some only by the checksum at the end
        damaged = bytearray(packed)
        damaged[30:90] = random.Random(seed).randbytes(60)
        path = write(tmp_path, bytes(damaged))
        try:
            bad = [row for _, row in read_lines(path) if isinstance(row, DataError)]
        except DataError as error:
            assert error.file == path
        else:
            assert compress is zstandard.compress  # has no checksum unless asked: then lines are broken, not missing
            assert bad or sum(1 for _ in read_lines(path)) == 500


def test_a_damaged_parquet_file_is_a_data_error_wherever_the_damage_is(tmp_path: Path) -> None:
    rng = random.Random(1)
    table = pyarrow.table({"noise": [rng.randbytes(20).hex() for _ in range(5000)]})
    whole = parquet_bytes(table)
    middle = len(whole) // 2
    pages = whole[:middle] + b"\xff" * 200 + whole[middle + 200 :]
    for damaged in (whole[:middle], pages):
        path = write(tmp_path, damaged)
        assert str(refusal(path)).startswith(f"{path}: not a readable parquet file (")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = str(tmp_path / "rows.jsonl")
    assert str(refusal(path)) == f"{path}: no such file"


def test_a_missing_file_of_an_existing_folder_is_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **options: pytest.fail("asked the hub"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    assert str(refusal("data/rows.jsonl")) == "data/rows.jsonl: no such file"


def test_a_directory_is_refused_with_a_file_it_holds(tmp_path: Path) -> None:
    assert str(refusal(str(tmp_path))) == f"{tmp_path}: this is a directory; it holds no data file"
    for name in ("b.jsonl.gz", "c.parquet", "README.md", "a.txt"):
        write(tmp_path, b"", name)
    assert str(refusal(str(tmp_path))).endswith(
        f"this is a directory; name its files one by one, for example {tmp_path / 'b.jsonl.gz'}"
    )


# --- the hub, without a network ---------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch) -> None:
    """A working folder in which no hub id is a path."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("name", "split"), [("owner/name", "train"), ("owner/name:test_prefs", "test_prefs")])
def test_a_hub_data_set_is_streamed_and_numbered(elsewhere: None, monkeypatch, name: str, split: str) -> None:
    asked = []

    def load(path: str, **options: object) -> list[dict[str, int]]:
        asked.append((path, options))
        return [{"n": 1}, {"n": 2}]

    monkeypatch.setattr("datasets.load_dataset", load)
    assert list(read_lines(name)) == [(1, {"n": 1}), (2, {"n": 2})]
    assert asked == [("owner/name", {"split": split, "streaming": True})]


def test_a_hub_that_cannot_be_reached_is_a_data_error_that_says_both(elsewhere: None, monkeypatch) -> None:
    def load(*args: object, **options: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("datasets.load_dataset", load)
    assert str(refusal("owner/name")) == (
        "owner/name: no such file, and the hub gave no such data set (no route to host)"
    )


def test_a_hub_that_breaks_off_is_a_data_error_at_that_row(elsewhere: None, monkeypatch) -> None:
    def load(*args: object, **options: object):
        yield {"n": 1}
        raise RuntimeError("connection reset")

    monkeypatch.setattr("datasets.load_dataset", load)
    read = read_lines("owner/name")
    assert next(read) == (1, {"n": 1})
    with pytest.raises(DataError) as caught:
        next(read)
    assert str(caught.value) == "owner/name, line 2: the hub stopped giving rows (connection reset)"


def test_an_empty_hub_data_set_is_an_error(elsewhere: None, monkeypatch) -> None:
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **options: [])
    assert str(refusal("owner/name")) == "owner/name: the data set is empty"


def test_a_local_file_comes_before_the_hub(elsewhere: None, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **options: pytest.fail("asked the hub"))
    (tmp_path / "owner").mkdir()
    write(tmp_path, PLAIN, "owner/name")
    assert len(list(read_lines("owner/name"))) == 3


def test_a_pipe_is_refused_with_the_remedy(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "save it as one first" in refusal(str(tmp_path / "pipe")).problem


def test_utf_16_is_not_taken_for_csv(tmp_path: Path) -> None:
    assert "UTF-16" in refusal(write(tmp_path, '{"a": 1, "b": 2}\n'.encode("utf-16"))).problem


def test_what_is_public_of_a_word_is_never_a_place_on_this_machine(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("secret").mkdir()
    Path("secret/held.jsonl").touch()
    for word, name in {
        str(tmp_path / "secret" / "held.jsonl"): "held.jsonl",
        "secret/held.jsonl": "held.jsonl",
        "/gone/away/held.jsonl": "held.jsonl",
        f"rewardbench:{tmp_path}/secret": "rewardbench:secret",
        "rewardbench": "rewardbench",
        "starter:heldout": "starter:heldout",
        "owner/name": "owner/name",
        "owner/name:test": "owner/name:test",
        "rewardbench:owner/name": "rewardbench:owner/name",
    }.items():
        assert public_name(word) == name


def test_a_path_like_a_hub_id_is_kept_whole_and_all_else_as_it_is(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("models/tiny").mkdir(parents=True)
    Path("smollm2").mkdir()
    assert lasting_name("models/tiny") == str(tmp_path / "models" / "tiny")
    for word in ("smollm2", "owner/name", "./models/tiny", str(tmp_path)):
        assert lasting_name(word) == word


def test_the_key_of_a_file_is_its_content(tmp_path: Path) -> None:
    one, two = write(tmp_path, PLAIN, "one"), write(tmp_path, PLAIN, "two")
    assert content_key(one) == content_key(two) == xxhash.xxh3_128_hexdigest(PLAIN)
    write(tmp_path, PLAIN + b"\n", "two")
    assert content_key(one) != content_key(two)
    assert content_key("starter:train") != content_key("starter:heldout")


def test_the_key_of_a_hub_data_set_is_its_commit_and_split(elsewhere: None, monkeypatch) -> None:
    found = {"owner/name": SimpleNamespace(sha="abc")}
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda _, name: found[name])
    assert content_key("owner/name:test") == "owner/name:test@abc"
    with pytest.raises(DataError, match="the hub gave no such data set"):
        content_key("owner/other")
