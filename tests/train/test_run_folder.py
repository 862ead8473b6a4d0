"""What a run does not write over."""

import pytest
from workshop import write_rankings

from kwise.train.recipe import load_recipe
from kwise.train.run import train
from kwise.train.run_folder import WRITTEN


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("start_over", [False, True])
@pytest.mark.parametrize("name", WRITTEN)
def test_what_no_run_wrote_is_not_written_over(workshop, name, start_over):
    """Someone else's folder that happens to hold a file of one of our names, or another trainer's checkpoints."""
    place = workshop / "run" / name
    if "." in name and name != "model.unfinished":
        place.parent.mkdir()
        place.write_text('{"mine": 1}')
    else:
        (place / "checkpoint-500").mkdir(parents=True)
        (place / "checkpoint-500" / "model.bin").write_text("mine")
    before = contents(workshop)
    with pytest.raises(ValueError, match=rf"{name} was written by no run of kwise"):
        train(load_recipe(workshop / "recipe.toml"), start_over)
    assert contents(workshop) == before


@pytest.mark.parametrize("kind", ["train", "eval"])
@pytest.mark.parametrize("name", ["data.json", "metrics.jsonl"])
def test_data_in_the_output_folder_is_not_written_over(workshop, kind, name, monkeypatch):
    (workshop / "run").mkdir()
    write_rankings(workshop / "run" / name, 6)
    before = contents(workshop)
    monkeypatch.chdir(workshop)
    with pytest.raises(ValueError, match=f"run/{name} would be written over by the run"):
        train(load_recipe("recipe.toml", [f"data.{kind}=['run/{name}']"]))
    assert contents(workshop) == before


def test_a_folder_with_other_things_in_it_is_taken_and_they_stay(workshop):
    (workshop / "run").mkdir()
    (workshop / "run" / "notes.txt").write_text("mine")
    assert train(load_recipe(workshop / "recipe.toml")).model.is_dir()
    assert (workshop / "run" / "notes.txt").read_text() == "mine"
