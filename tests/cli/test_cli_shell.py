import json
import os
import platform
import resource
import subprocess
import sys

import pytest
from command import run
from rows_in_files import nectar_row, pairs_scored, ranked_by, write

from kwise.cli import shell


@pytest.mark.parametrize("command", ["check", "eval", "score", "train"])
def test_every_command_that_reads_a_file_names_file_line_and_field(command, model, tmp_path):
    row = nectar_row(1, 3)
    row["prompt"] = 5
    file = write(tmp_path / "bad.jsonl", [nectar_row(0, 3), row])
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f"method='head'\noutput='{tmp_path / 'run'}'\n[data]\ntrain=['{file}']\n[model]\nbase='{model}'\n"
    )
    words = {
        "check": ["data", "check", file],
        "eval": ["eval", model, file],
        "train": ["train", recipe],
        "score": ["score", model, file, "-o", tmp_path / "out.jsonl"],
    }
    code, text = run(*words[command])
    assert code == 1
    assert f"{file}, line 2, field 'prompt': must be text, this is a number" in text


@pytest.mark.parametrize("content", ["", "a,b,c\n1,2,3\n", "[1, 2]\n", "\n\n"])
def test_files_that_hold_no_rankings_are_an_error_in_one_line(content, model, tmp_path):
    file = tmp_path / "file.dat"
    file.write_text(content)
    for words in (["data", "check", file], ["eval", model, file], ["score", model, file, "-o", tmp_path / "out"]):
        code, text = run(*words)
        assert code == 1 and "error:" in text and str(file) in text and "Traceback" not in text


@pytest.mark.parametrize("missing", ["file", "directory"])
def test_a_missing_file_and_a_directory_are_errors(missing, model, tmp_path):
    path = tmp_path if missing == "directory" else tmp_path / "nowhere.jsonl"
    code, text = run("eval", model, path)
    assert code == 1 and ("directory" if missing == "directory" else "no such file") in text


def test_a_word_between_colons_is_printed_as_it_is(tmp_path):
    code, text = run("data", "check", tmp_path / "starter:train:")
    assert code == 1 and f"{tmp_path}/starter:train:: no such file" in text
    file = write(tmp_path / ":train:.jsonl", [nectar_row(0, 3)])
    code, text = run("data", "check", file)
    assert code == 0 and ":train:.jsonl" in text.replace(" ", "")  # a title is broken to fit


def test_a_folder_that_is_no_reward_model_is_an_error_in_one_line(tmp_path):
    file = write(tmp_path / "rankings.jsonl", [nectar_row(0, 2)])
    (tmp_path / "empty").mkdir()
    code, text = run("eval", tmp_path / "empty", file)
    assert code == 1 and "error:" in text


COMMAND = (
    "from typer.testing import CliRunner; from kwise.cli import app; CliRunner().invoke(app, ['data', 'check', ''])"
)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
@pytest.mark.parametrize(
    ("before", "environment", "kept"),
    [
        ("", {}, False),
        (COMMAND, {}, True),
        (COMMAND, {"MALLOC_TRIM_THRESHOLD_": "131072"}, False),
    ],
)
def test_the_command_line_lets_glibc_keep_freed_memory_unless_the_user_set_that_himself(before, environment, kept):
    """By the kernel's count of the process's resident pages, after 200 MiB were written to and freed."""
    script = f"""
import ctypes, os
{before}
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes, libc.memset.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE")
start, block = resident(), libc.malloc(200 << 20)
libc.memset(block, 1, 200 << 20)
libc.free(block)
print(resident() - start)
"""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    out = subprocess.run(
        [sys.executable, "-c", script], env=clean | environment, capture_output=True, text=True, check=True
    )
    assert (int(out.stdout) > 150 << 20) == kept


@pytest.mark.parametrize(
    "words",
    [
        ["eval", "--scores", "a.json", "--json", "a.json"],
        ["eval", "--scores", "./a.json", "b.jsonl", "--json", "link.json"],
        ["eval", "--scores", "starling:suite", "--json", "suite/human.json"],
        ["eval", "--scores", "rewardbench:a.json", "--json", "a.json"],
        ["eval", "--ceiling", "a.json", "--json", "a.json"],
        ["audit", "--scores", "a.json", "-o", "a.html"],
        ["audit", "--scores", "a.json", "b.html", "-o", "b.html"],
        ["audit", "--scores", "a.json", "c.png", "-o", "c.html"],
        ["calibrate", "model", "a.json", "--json", "a.json"],
        ["calibrate", "model", "b.jsonl", "--json", "model/kwise.json"],
    ],
    ids=" ".join,
)
def test_no_output_is_written_over_what_is_read(words, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "suite").mkdir()
    for name in ("a.json", "b.jsonl", "b.html", "c.png", "suite/human.json"):
        pairs_scored(tmp_path / name)
    (tmp_path / "link.json").symlink_to("a.json")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    code, text = run(*words)
    assert code == 1 and ("is read as" in text or "would be one of the files of starling:suite" in text)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("command", ["export", "import"])
def test_a_full_disk_is_an_error_in_one_line_and_leaves_no_folder(command, model, tmp_path):
    out = tmp_path / "out"
    words = {
        "export": ["export", model, "-o", out],
        "import": ["import", model / "model.safetensors", "--base", model, "-o", out],
    }
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
    try:
        code, text = run(*words[command])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 1 and "File too large" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


@pytest.mark.parametrize("out", [".", "none/out.json"])
@pytest.mark.parametrize("command", ["eval", "calibrate", "doctor"])
def test_an_output_that_cannot_be_written_is_refused_before_the_model_is_loaded(command, out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    file = write(tmp_path / "held.jsonl", [nectar_row(0, 3)])
    code, text = run(command, "empty", *([] if command == "doctor" else [file]), "--json", out)
    assert code == 1 and ("is a folder: name a file to write" in text or "none is no folder" in text)


@pytest.mark.parametrize("out", ["out.jsonl.gz", "out.jsonl.zst", "out.parquet"])
@pytest.mark.parametrize("words", [["score", "empty", "a.jsonl", "-o"], ["data", "check", "a.jsonl", "--fix"]])
def test_plain_text_is_not_written_under_the_name_of_another_format(words, out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pairs_scored(tmp_path / "a.jsonl")
    code, text = run(*words, out)
    assert code == 1 and "what is written is plain text" in text and not (tmp_path / out).exists()


def closed(*parts, **options):
    """Stands for a terminal whose reader has gone."""
    raise BrokenPipeError


@pytest.mark.parametrize("what", ["eval", "ceiling", "calibrate", "doctor"])
def test_what_was_found_is_written_before_anything_is_printed(what, model, tmp_path, monkeypatch):
    out = tmp_path / "out.json"
    held = ranked_by(model, tmp_path / "held.jsonl", 1.0)
    twice = write(tmp_path / "twice.jsonl", [nectar_row(i // 2, 3) for i in range(8)])
    (model / "kwise.json").unlink()
    words = {
        "eval": ["eval", "--scores", pairs_scored(tmp_path / "a.jsonl"), "--results", tmp_path / "results"],
        "ceiling": ["eval", "--ceiling", twice],
        "calibrate": ["calibrate", model, held],
        "doctor": ["doctor", model, "--fix", tmp_path / "mended"],
    }
    monkeypatch.setattr(shell.console, "print", closed)
    assert run(*words[what], "--json", out)[0] == 1
    assert json.loads(out.read_text())
    assert what != "eval" or (tmp_path / "results" / "scores.model-index.json").exists()
    assert what != "calibrate" or json.loads((model / "kwise.json").read_text())["calibration"]
    assert what != "doctor" or (tmp_path / "mended" / "kwise.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data", "check", "a.jsonl", "--max-length", 5], "--max-length counts tokens: give the --tokenizer"),
        (["data", "check", "a.jsonl", "--fix", "none/b.jsonl"], "none is no folder to write b.jsonl into"),
        (["data", "check", "a.jsonl", "--source", "nectar"], "field 'answers'"),
        (["eval", "--scores", "a.jsonl", "--no-cache"], "no model is run"),
        (["eval", "--scores", "a.jsonl", "--dtype", "bfloat16"], "no model is run"),
        (["eval", "--ceiling", "a.jsonl", "--dtype", "bfloat16"], "--ceiling is of judgements alone"),
        (["audit", "--scores", "a.jsonl", "-o", "out.html", "--probes", 60], "no model is run"),
    ],
)
def test_an_option_that_would_do_nothing_or_does_not_fit_is_an_error(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    pairs_scored(tmp_path / "a.jsonl")
    code, text = run(*words)
    assert code == 1 and message in text
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_version_is_printed_alone():
    from importlib.metadata import version

    assert run("--version") == (0, f"kwise {version('kwise')}")


def test_a_file_named_twice_is_refused_where_it_would_count_twice(model, base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "held.jsonl", [nectar_row(i, 3) for i in range(4)])
    code, text = run("calibrate", model, "held.jsonl", "./held.jsonl")
    assert code == 1 and "held.jsonl is named twice, also as ./held.jsonl" in text
    code, text = run("fit", base, "held.jsonl", "./held.jsonl", "-o", "out")
    assert code == 1 and "data.train: ./held.jsonl is named twice" in text
