"""Two local workers, one of them killed."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch

from kwise import RewardModel
from kwise.model import backbone
from kwise.model.reward_model import Settings
from kwise.use.scorable import without
from kwise.use.score_file import score_file
from kwise.use.scored_lines import WINDOW

ray = pytest.importorskip("ray", reason="kwise[ray] is not installed")
pytest.importorskip("ray.data")

LINES = 6 * WINDOW + 7


@pytest.fixture(scope="module")
def cluster():
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test
    ray.init(num_cpus=3, include_dashboard=False, logging_level="error", log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


@pytest.fixture
def model(base, tmp_path):
    torch.manual_seed(1)
    model = backbone.from_causal_lm(base)
    torch.nn.init.normal_(model.score.weight)
    RewardModel(model, backbone.load_tokenizer(base), Settings(96)).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def file(tmp_path):
    rows = [{"prompt": f"question {i // 3}", "response": f"answer {i} " * (1 + i % 5)} for i in range(LINES)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "in.jsonl")


@pytest.fixture
def whole(model, file, tmp_path):
    """What one process writes."""
    score_file(RewardModel.from_pretrained(model), file, str(tmp_path / "whole.jsonl"))
    return (tmp_path / "whole.jsonl").read_bytes()


def kill_once(marker):
    """End this process as SIGKILL does, unless one was ended before."""
    try:
        Path(marker).touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_data_set_scored_while_a_worker_is_killed_has_every_row_once_and_in_order(
    cluster, model, file, whole, tmp_path, monkeypatch
):
    from kwise.use import ray_scores

    marker = str(tmp_path / "killed")

    class Killed(ray_scores.RowScorer):
        def __call__(self, batch):
            scored = super().__call__(batch)
            if any(each["id"] > LINES // 2 for each in batch.to_pylist()):
                kill_once(marker)
            return scored

    monkeypatch.setattr(ray_scores, "RowScorer", Killed)
    rows = [json.loads(line) | {"id": i} for i, line in enumerate(Path(file).read_text().splitlines())]
    dataset = ray.data.from_items(rows, override_num_blocks=7)
    found = ray_scores.score_dataset(dataset, model, workers=2, num_cpus=0.5).take_all()
    expected = [json.loads(line) | {"id": i} for i, line in enumerate(whole.splitlines())]
    assert (tmp_path / "killed").exists()
    assert [without(row, "score") for row in found] == [without(row, "score") for row in expected]
    assert [row["score"] for row in found] == pytest.approx([row["score"] for row in expected], abs=1e-5)


def test_a_file_scored_while_a_worker_is_killed_has_the_bytes_of_one_process(
    cluster, model, file, whole, tmp_path, monkeypatch
):
    from kwise.use import ray_scores

    marker, out = str(tmp_path / "killed"), tmp_path / "out.jsonl"

    class Killed(ray_scores.ShareScorer):
        def __call__(self, batch):
            self.how["progress"] = lambda lines: kill_once(marker)  # after the first window of a share
            return super().__call__(batch)

    monkeypatch.setattr(ray_scores, "ShareScorer", Killed)
    counts = ray_scores.score_file_on_ray(model, file, str(out), workers=2, shares=4, num_cpus=0.5)
    assert counts["written"] + counts["kept"] == len(whole.splitlines()) and counts["shortened"] == 0
    assert (tmp_path / "killed").exists()
    assert out.read_bytes() == whole
    assert list(tmp_path.glob("out.jsonl.*")) == []


def test_a_row_that_cannot_be_scored_stops_the_run_and_is_named(cluster, model):
    from kwise.use.ray_scores import score_dataset

    dataset = ray.data.from_items([{"prompt": "question", "reply": "answer"}])
    with pytest.raises(Exception, match="a line needs 'messages', 'prompt' and 'response'"):
        score_dataset(dataset, model, workers=1, num_cpus=0.5).take_all()
