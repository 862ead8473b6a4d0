import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from kwise import RewardModel
from kwise.model import backbone
from kwise.model.reward_model import Settings
from kwise.use.score_file import score_file
from kwise.use.score_shares import score_share
from kwise.use.scored_lines import WINDOW

LINES = 5 * WINDOW + 7


@pytest.fixture
def model(base, tmp_path):
    """Random weights, head and all, so that scores have all their digits; loaded as the command does."""
    torch.manual_seed(1)
    tokenizer = backbone.load_tokenizer(base)
    model = backbone.from_causal_lm(base)
    torch.nn.init.normal_(model.score.weight)
    RewardModel(model, tokenizer, Settings(96)).save_pretrained(tmp_path / "model")
    return RewardModel.from_pretrained(tmp_path / "model")


@pytest.fixture
def file(tmp_path):
    rows = [{"prompt": f"question {i // 3}", "response": f"answer {i} " * (1 + i % 5)} for i in range(LINES)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "in.jsonl")


def beside(out):
    return sorted(path.name for path in out.parent.glob(f"{out.name}.*"))


@pytest.fixture
def whole(model, file, tmp_path):
    """What one process writes."""
    score_file(model, file, str(tmp_path / "whole.jsonl"))
    return (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.parametrize("processes", [2, 3, 8])
def test_shares_scored_in_any_order_are_what_one_process_writes(model, file, tmp_path, whole, processes):
    out = tmp_path / "out.jsonl"
    found = [score_share(model, file, str(out), i, processes) for i in reversed(range(processes))]
    assert [each["together"] for each in found] == [0] * (processes - 1) + [LINES]
    assert sum(each["written"] for each in found) == LINES
    assert out.read_bytes() == whole and beside(out) == []


@pytest.mark.parametrize("kept", [0, 1, 1000, 0.5, 0.99, 1.0])
def test_a_share_that_was_cut_off_anywhere_goes_on_without_loss_or_repetition(model, file, tmp_path, whole, kept):
    out, share = tmp_path / "out.jsonl", tmp_path / "out.jsonl.share-1-of-2"
    score_share(model, file, str(out), 1, 2)
    lines = (tmp_path / "out.jsonl.scored-1-of-2").rename(share).read_bytes()
    share.write_bytes(lines[: int(kept * len(lines)) if isinstance(kept, float) else kept])
    with pytest.raises(FileExistsError, match="share-1-of-2 exists; go on with it by --resume"):
        score_share(model, file, str(out), 1, 2)
    score_share(model, file, str(out), 0, 2, resume=True)
    again = score_share(model, file, str(out), 1, 2, resume=True)
    assert again["kept"] % WINDOW == 0 and again["kept"] + again["written"] == lines.count(b"\n")
    assert out.read_bytes() == whole and beside(out) == []


def test_whole_shares_are_not_scored_again(model, file, tmp_path, monkeypatch, whole):
    out = tmp_path / "out.jsonl"
    score_share(model, file, str(out), 0, 2)
    monkeypatch.setattr("kwise.use.score_shares.score_file", None)
    assert score_share(model, file, str(out), 0, 2, resume=True)["written"] == 0
    monkeypatch.undo()
    score_share(model, file, str(out), 1, 2, resume=True)
    # killed between putting together and cleaning up
    (tmp_path / "out.jsonl.scored-0-of-2").write_bytes(b"left")
    assert score_share(model, file, str(out), 0, 2, resume=True)["together"] == 0
    assert out.read_bytes() == whole and beside(out) == []


@pytest.mark.parametrize("lost", [0, -1, WINDOW])
@pytest.mark.parametrize("change", ["lines less", "lines more"])
@pytest.mark.parametrize("first", [0, 1])
def test_a_whole_share_is_refused_where_lines_of_the_input_went_or_came_since(
    model, file, tmp_path, first, change, lost
):
    """As by who takes out a bad line that another process stopped at."""
    out, lines = tmp_path / "out.jsonl", Path(file).read_text().splitlines(keepends=True)
    fewer = lines[lost:] if lost == WINDOW else lines[:lost] + lines[lost:][1:]
    before, after = (lines, fewer) if change == "lines less" else (fewer, lines)
    Path(file).write_text("".join(before))
    score_share(model, file, str(out), first, 2)
    Path(file).write_text("".join(after))
    stale, other = (Path(f"{out}.scored-{i}-of-2") for i in (first, 1 - first))
    if (first, lost) == (0, -1):  # the last line is of the other share
        assert score_share(model, file, str(out), 1, 2, resume=True)["together"] == len(after)
        return
    with pytest.raises(ValueError, match=f"{stale} was scored before {file} was changed: remove it"):
        score_share(model, file, str(out), 1 - first, 2, resume=True)
    assert not out.exists() and other.exists()
    stale.unlink()
    score_share(model, file, str(out), first, 2, resume=True)
    score_file(model, file, str(tmp_path / "whole.jsonl"))
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes() and beside(out) == []


def test_another_number_of_processes_is_refused(model, file, tmp_path):
    out = tmp_path / "out.jsonl"
    score_share(model, file, str(out), 0, 2)
    with pytest.raises(ValueError, match="begun by 2 processes"):
        score_share(model, file, str(out), 0, 3, resume=True)
    out.write_bytes(b"{}\n")
    with pytest.raises(ValueError, match="has 1 lines and was begun by one process"):
        score_share(model, file, str(out), 0, 3, resume=True)


def test_one_of_two_processes_killed_the_same_command_goes_on_to_the_same_bytes(model, file, tmp_path, whole):
    """By the command of docs/5-use.md."""
    out = tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "localhost:0", "--no-python", str(Path(sys.executable).with_name("kwise")), "score"]
    command += [str(tmp_path / "model"), file, "-o", str(out), "--resume"]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    until = time.monotonic() + 200
    while not (own := [each for each in psutil.Process(run.pid).children() if rank(each) == "1"]) or not any(
        path.stat().st_size for path in tmp_path.glob("out.jsonl.s*-1-of-2")
    ):
        assert run.poll() is None and time.monotonic() < until
        time.sleep(0.002)
    os.kill(own[0].pid, signal.SIGKILL)
    said, _ = run.communicate(timeout=200)
    if run.returncode == 0:
        pytest.skip("the process was done before it could be killed")
    assert not out.exists() and beside(out) != [], said
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"all shares are done: {out} has {LINES} lines" in " ".join(done.stderr.split())
    assert out.read_bytes() == whole and beside(out) == []


def rank(process):
    try:
        return process.environ().get("RANK") if "score" in process.cmdline() else None
    except psutil.Error:
        return None


def test_an_output_of_another_model_or_input_is_not_taken_for_whole(model, file, tmp_path, whole):
    out = tmp_path / "whole.jsonl"
    assert score_share(model, file, str(out), 0, 2, resume=True)["written"] == 0
    with pytest.raises(ValueError, match=r"in\.jsonl is the input file itself"):
        score_share(model, file, file, 0, 2, resume=True)
    other = tmp_path / "other.jsonl"
    other.write_text(Path(file).read_text().replace("question", "demand"))
    with pytest.raises(ValueError, match="it is the output of another input"):
        score_share(model, str(other), str(out), 0, 2, resume=True)
    model.model.score.weight.data.mul_(2)
    with pytest.raises(ValueError, match="has other scores than this model gives it"):
        score_share(model, file, str(out), 0, 2, resume=True)
    assert out.read_bytes() == whole
