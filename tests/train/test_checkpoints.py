import shutil

import pytest

from kwise.train.checkpoints import fault, newest, read_seal, seal, write_whole


def make(folder, step, sealed=True):
    checkpoint = folder / f"checkpoint-{step}"
    (checkpoint / "shards").mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(bytes(range(256)) * 10)
    (checkpoint / "shards" / "one.distcp").write_bytes(b"abc" * 100)
    if sealed:
        seal(checkpoint, {"step": step})
    return checkpoint


def flip(path):
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "kwise_seal.json").unlink(), "not written to its end"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
        (
            lambda folder: (folder / "shards" / "one.distcp").write_bytes(b"ab"),
            "one.distcp has 2 bytes, 300 were written",
        ),
        (lambda folder: flip(folder / "model.safetensors"), "model.safetensors does not hold what was written"),
        (lambda folder: (folder / "kwise_seal.json").write_text('{"step": 3, '), "its seal is damaged"),
    ],
)
def test_what_is_missing_cut_short_or_changed_is_found_and_the_checkpoint_before_it_used(tmp_path, damage, said):
    before, broken = make(tmp_path, 9), make(tmp_path, 10)
    assert fault(broken) is None
    damage(broken)
    assert said in fault(broken)
    messages = []
    assert newest(tmp_path, messages.append) == before
    assert len(messages) == 1 and str(broken) in messages[0] and said in messages[0]
    assert not broken.exists()


def test_the_newest_is_told_by_its_step_and_the_seal_gives_back_its_facts(tmp_path):
    for step in (2, 10, 9):
        make(tmp_path, step)
    (tmp_path / "checkpoint-final").mkdir()
    assert newest(tmp_path, pytest.fail) == tmp_path / "checkpoint-10"
    assert read_seal(tmp_path / "checkpoint-10")["step"] == 10
    shutil.rmtree(tmp_path)
    assert newest(tmp_path, pytest.fail) is None


def test_a_checkpoint_of_another_trainer_is_left_alone(tmp_path):
    foreign = make(tmp_path, 500, sealed=False)
    (foreign / "trainer_state.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="checkpoint-500 was written by another trainer"):
        newest(tmp_path, pytest.fail)
    assert (foreign / "model.safetensors").exists()
    (foreign / "sums_0.pt").touch()  # a KwiseTrainer's, killed before it was sealed
    assert newest(tmp_path, lambda said: None) is None
    assert not foreign.exists()


def test_a_folder_that_is_not_there_is_said_to_be_missing(tmp_path):
    assert fault(tmp_path / "checkpoint-5") == "there is no such folder"


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "recipe.toml"
    write_whole(path, "one")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "two \ud800")
    assert path.read_text() == "one"
