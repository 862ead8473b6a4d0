import errno
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import psutil
import pytest

from kwise.data import encoding as module
from kwise.data.encode import Encoder
from kwise.data.encoded import EncodedRankings, Shapes, content, prompt_hashes, shapes, with_offsets
from kwise.data.encoding import encode_files
from kwise.data.packing import split
from kwise.data.sources import read_rankings
from kwise.data.tally import tally
from kwise.records import DataError

MAX_LENGTH = 90


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of the test's own, in batches of three rankings."""
    monkeypatch.setenv("KWISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "CHUNK", 3)
    return tmp_path / "cache" / "encoded"


def write(path, count, first=0, **columns):
    """Rankings of two to four answers, some over MAX_LENGTH, some tied."""
    with path.open("w") as file:
        for i in range(first, first + count):
            answers = [
                {"rank": k if i % 3 else 1 + k // 2, "completion": f"{k} " * (1 + 5 * k * (i % 4))}
                for k in range(2 + i % 3)
            ]
            file.write(json.dumps({"context": f"question {i // 2}", "completions": answers, **columns}) + "\n")
    return str(path)


def expected(encoder, *files):
    """By the encoder alone, one by one."""
    return [encoder.encode_ranking(ranking) for file in files for ranking in read_rankings(file)]


@pytest.fixture
def encoder(tokenizer):
    return Encoder(tokenizer, MAX_LENGTH)


def all_cores(monkeypatch, cores=2):
    monkeypatch.setattr(module, "ALONE", 0)
    monkeypatch.setattr(module, "_cores", lambda: cores)


def test_what_is_read_back_is_what_the_encoder_gives(tmp_path, encoder):
    files = [write(tmp_path / "a.jsonl", 7), write(tmp_path / "b.jsonl", 5, first=20)]
    found, items = encode_files(encoder, files), expected(encoder, *files)
    assert [*found] == items and len(found) == 12
    assert found[-1] == items[-1] and found[2:9:3] == items[2:9:3]
    assert found.num_cut == sum(any(item.cut) for item in items) > 0
    assert {item.file for item in found} == set(files) and found[8].line == 2
    with pytest.raises(IndexError):
        found[12]


def test_all_cores_give_the_same_in_the_same_order(tmp_path, encoder, monkeypatch):
    all_cores(monkeypatch)
    file = write(tmp_path / "a.jsonl", 40)
    messages = []
    assert [*encode_files(encoder, [file], say=messages.append)] == expected(encoder, file)
    assert "40 rankings" in messages[0] and "2 processes" in messages[0] and "rankings a second" in messages[0]


def test_a_worker_names_the_line_that_it_cannot_encode_and_the_first_bad_line_counts(
    tmp_path, tokenizer, monkeypatch, cache
):
    all_cores(monkeypatch)
    file = write(tmp_path / "a.jsonl", 30)
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    lines[10] = json.dumps({"context": "q", "completions": [{"rank": k, "completion": "x" * 300 * k} for k in (1, 0)]})
    lines[12] = json.dumps({"context": "q", "completions": [{"rank": None, "completion": "x"}] * 2})
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"a\.jsonl, line 11: cannot be encoded: a conversation has \d+ tokens"):
        encode_files(Encoder(tokenizer, 280, "error"), [file])
    with pytest.raises(DataError, match=r"a\.jsonl, line 13, field 'completions\[0\]\.rank'"):
        encode_files(Encoder(tokenizer, 2000, "error"), [file])
    assert [path for path in cache.iterdir() if path.suffix != ".lock"] == []


def test_few_rankings_wait_however_many_there_are(tmp_path, encoder, monkeypatch):
    all_cores(monkeypatch)
    rankings = list(read_rankings(write(tmp_path / "a.jsonl", 1)))
    taken = 0

    def source():
        nonlocal taken
        for _ in range(60):
            taken += 1
            yield rankings

    ahead = [taken - given for given, _ in enumerate(module._chunks(encoder, source()), 1)]
    assert len(ahead) == 60 and 1 < max(ahead) <= 2 * 2


def test_what_was_encoded_before_is_read_and_not_encoded(tmp_path, encoder, monkeypatch):
    file = write(tmp_path / "a.jsonl", 5)
    first = [*encode_files(encoder, [file])]
    monkeypatch.setattr(module, "_encode", None)
    (tmp_path / "a.jsonl").rename(tmp_path / "renamed.jsonl")
    messages = []
    again = encode_files(encoder, [str(tmp_path / "renamed.jsonl")], say=messages.append)
    assert "encoded before" in messages[0] and "rankings a second" in messages[0]
    assert [*again] == [replace(item, file=str(tmp_path / "renamed.jsonl")) for item in first]


def test_another_content_tokenizer_template_length_or_rule_is_encoded_anew(tmp_path, make_tokenizer, cache):
    file = write(tmp_path / "a.jsonl", 5)

    def count(tokenizer, max_length=MAX_LENGTH, truncation="left", source="auto"):
        encode_files(Encoder(tokenizer, max_length, truncation), [file], source)
        return len([path for path in cache.iterdir() if path.is_dir()])

    tokenizer = make_tokenizer()
    assert count(tokenizer) == 1
    tokenizer(["a", "longer text"], padding=True, truncation=True, max_length=3)  # leaves its mark in the backend
    assert count(tokenizer) == 1 and count(make_tokenizer()) == 1
    assert count(tokenizer, max_length=80) == 2
    assert count(tokenizer, max_length=1000, truncation="error") == 3
    assert count(tokenizer, source="completions") == 4
    assert count(make_tokenizer(template="{{ bos_token }}" + tokenizer.chat_template)) == 5
    assert count(make_tokenizer(adds_bos=True)) == 6
    write(tmp_path / "a.jsonl", 5, first=1)
    assert count(tokenizer) == 7


def test_an_encoding_that_is_damaged_is_made_anew_after_a_warning(tmp_path, encoder, cache):
    file = write(tmp_path / "a.jsonl", 10)
    items = [*encode_files(encoder, [file])]
    (folder,) = (path for path in cache.iterdir() if path.is_dir())

    def cut_short(path):
        path.write_bytes(path.read_bytes()[:-9])

    def flip(path):
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw)

    for damage, name in ((cut_short, "tokens.arrow"), (flip, "index.arrow"), (flip, "index.xxh3")):
        damage(folder / name)
        messages = []
        assert [*encode_files(encoder, [file], say=messages.append)] == items
        assert messages[0].startswith("WARNING") and "kept in" in messages[1]
    (folder / "tokens.arrow").unlink()
    assert [*encode_files(encoder, [file])] == items


def test_damaged_tokens_are_noticed_when_they_are_read_and_never_used(tmp_path, encoder, cache):
    file = write(tmp_path / "a.jsonl", 10)
    items = [*encode_files(encoder, [file])]
    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    raw = bytearray((folder / "tokens.arrow").read_bytes())
    place = bytes(raw).index(np.array(items[4].prefix, dtype=np.int32).tobytes())
    raw[place] ^= 1
    (folder / "tokens.arrow").write_bytes(raw)
    found = encode_files(encoder, [file])
    assert found[0] == items[0]  # of another batch
    with pytest.raises(OSError, match=r"does not hold what was written \(batch 1\), and was removed"):
        found[4]
    assert [*encode_files(encoder, [file])] == items


def test_a_killed_encoding_leaves_no_process_and_nothing_that_is_read(tmp_path, encoder, cache):
    file = write(tmp_path / "a.jsonl", 6000)
    encoder.tokenizer.save_pretrained(tmp_path / "tokenizer")
    script = tmp_path / "encode.py"
    script.write_text(f"""
from transformers import PreTrainedTokenizerFast
from kwise.data import encoding
from kwise.data.encode import Encoder
if __name__ == "__main__":
    encoding.ALONE, encoding.CHUNK, encoding._cores = 0, 3, lambda: 2
    tokenizer = PreTrainedTokenizerFast.from_pretrained({str(tmp_path / "tokenizer")!r})
    encoding.encode_files(Encoder(tokenizer, {MAX_LENGTH}), [{file!r}])
""")
    process = subprocess.Popen([sys.executable, str(script)])
    tree = psutil.Process(process.pid)
    until = time.monotonic() + 120
    while not (
        len(workers := tree.children(recursive=True)) >= 3
        and any(p.stat().st_size for p in cache.rglob("tokens.arrow"))
    ):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert [path.suffix for path in cache.iterdir() if path.is_dir()] == [".unfinished"]
    assert psutil.wait_procs(workers, timeout=60)[1] == []
    lines = (tmp_path / "a.jsonl").read_text().splitlines()[:20]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert [*encode_files(encoder, [file])] == expected(encoder, file)


def test_of_two_at_once_one_encodes_and_the_other_waits(tmp_path, encoder):
    file = write(tmp_path / "a.jsonl", 300)
    messages = []
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(lambda _: encode_files(encoder, [file], say=messages.append), range(2))
    assert [*one] == [*two]
    assert sorted("kept in" in message for message in messages if "waiting" not in message) == [False, True]


def test_lengths_hashes_and_reports_come_off_the_index(tmp_path, encoder):
    files = [write(tmp_path / "a.jsonl", 7), write(tmp_path / "b.jsonl", 5, first=20, prompt_group="one")]
    found, items = encode_files(encoder, files), expected(encoder, *files)
    of_index, of_items = shapes(found), shapes(items)
    assert all(np.array_equal(getattr(of_index, name), getattr(of_items, name)) for name in Shapes.__annotations__)
    assert of_index.num_tokens.tolist() == [item.num_tokens for item in items]
    smallest = min(piece.num_tokens for item in items for piece in split(item, 1))
    assert min(piece.num_tokens for piece in split(items[of_index.shortest], 1)) == smallest
    prompts, groups = prompt_hashes(found)
    assert len(set(prompts.tolist())) == 4 + 3 and len(set(groups.tolist())) == 4 + 1  # two rankings of most questions
    texts = [ranking for file in files for ranking in read_rankings(file)]
    assert all(map(np.array_equal, prompt_hashes(texts), (prompts, groups)))
    assert {file: found.reports[file]["rankings"] for file in files} == dict(zip(files, (7, 5), strict=True))
    assert found.reports[files[0]]["prompts"] == 4
    steps = [[[0, 3], [5]], [[11, 7, 2], [1]]]
    assert tally(found, steps, 150) == tally(items, steps, 150)


def test_it_knows_whether_anything_is_ranked(tmp_path, encoder):
    file = write(tmp_path / "a.jsonl", 6)
    assert not encode_files(encoder, [file]).all_tied
    answers = [{"rank": 2, "completion": text} for text in ("a", "b")]
    (tmp_path / "tied.jsonl").write_text(json.dumps({"context": "q", "completions": answers}))
    assert encode_files(encoder, [str(tmp_path / "tied.jsonl")]).all_tied


def test_offsets_belong_to_their_rankings_and_all_of_it_goes_to_another_process(tmp_path, encoder):
    file = write(tmp_path / "a.jsonl", 6)
    found = encode_files(encoder, [file])
    offsets = [[i + k / 10 for k in range(len(item.ranks))] for i, item in enumerate(found)]
    shifted = pickle.loads(pickle.dumps(with_offsets(found, offsets)))
    assert isinstance(shifted, EncodedRankings)
    assert [*shifted] == [replace(item, offsets=own) for item, own in zip(found, offsets, strict=True)]
    with pytest.raises(ValueError, match="5 lists of offsets for 6 rankings"):
        with_offsets(found, offsets[1:])
    with pytest.raises(ValueError, match=r"offsets\[2\]: 1 for 4 responses"):
        with_offsets(list(found), [*offsets[:2], offsets[2][:1], *offsets[3:]])
    plain, moved = content(found), content(with_offsets(found, offsets))
    assert len({plain, moved, content(list(found)), content(with_offsets(list(found), offsets))}) == 4


def test_a_full_disk_and_a_killed_worker_are_said_and_leave_nothing(tmp_path, encoder, monkeypatch, cache):
    file = write(tmp_path / "a.jsonl", 300)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write", full)
        with pytest.raises(OSError, match=r"do not fit into .*encoded \(.*No space left.*set KWISE_CACHE"):
            encode_files(encoder, [file])
    all_cores(monkeypatch)

    killed = []

    def kill_one(done):
        if done > 3 and not killed:
            (forkserver,) = [each for each in psutil.Process().children() if each.children()]
            killed.append(forkserver.children()[0])
            killed[0].kill()

    with pytest.raises(ChildProcessError, match="was killed"):
        encode_files(encoder, [file], progress=kill_one)
    assert [path for path in cache.iterdir() if path.suffix != ".lock"] == []


def test_a_hash_of_the_content_changes_with_ids_ranks_and_order_and_with_nothing_else(tmp_path, encoder):
    file = write(tmp_path / "a.jsonl", 5)
    first = content(encode_files(encoder, [str(file)]))
    (tmp_path / "copy.jsonl").write_bytes((tmp_path / "a.jsonl").read_bytes())
    assert content(encode_files(encoder, [str(tmp_path / "copy.jsonl")])) == first
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    swapped = [lines[1], lines[0], *lines[2:]]
    reranked = [lines[0].replace('"rank": 1', '"rank": 9'), *lines[1:]]
    assert reranked != lines
    for other in (swapped, reranked, lines[:-1]):
        (tmp_path / "other.jsonl").write_text("\n".join(other) + "\n")
        other_file = str(tmp_path / "other.jsonl")
        assert content(encode_files(encoder, [other_file])) != first
        plain = [list(encode_files(encoder, [each])) for each in (str(file), other_file)]
        assert content(plain[0]) != content(plain[1])
        assert content(plain[0]) == content(list(plain[0]))
