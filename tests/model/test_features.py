import pkgutil

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES, tiny_model

from kwise.model import backbone, features
from kwise.model.features import cached_features, compute_features
from kwise.records import EncodedRanking

DEPTH = len(backbone.decoder_layers(tiny_model()))
ENCODED = [EncodedRanking([i + 1, 2, 3], [[5 + i, 6], [7], [8, 9, 10]], [1, 0, 2], [0, 0, 0]) for i in range(40)]

LAYERS = [1, DEPTH]


def test_features_are_the_last_hidden_states_of_each_response_in_order(tmp_path):
    model = tiny_model()
    found = cached_features(model, ENCODED, tmp_path, [DEPTH])[DEPTH]
    rows = []
    for item in ENCODED:
        for suffix in item.suffixes:
            with torch.no_grad():
                rows.append(model.model(torch.tensor([item.prefix + suffix])).last_hidden_state[0, -1].numpy())
    assert found.shape == (120, 32)
    np.testing.assert_allclose(found, np.stack(rows), atol=1e-5)


@pytest.mark.parametrize("cut_bytes", [1, 128, 4 * 32 * 7, 4 * 32 * 100 + 3])
def test_a_cache_cut_anywhere_is_completed_without_loss_or_repetition(tmp_path, cut_bytes):
    model = tiny_model()
    whole = np.array(cached_features(model, ENCODED, tmp_path, [DEPTH])[DEPTH])
    (file,) = tmp_path.iterdir()
    with file.open("rb+") as handle:
        handle.truncate(file.stat().st_size - cut_bytes)
    again = cached_features(model, ENCODED, tmp_path, [DEPTH])[DEPTH]
    np.testing.assert_array_equal(again, whole)
    assert file.stat().st_size == 4 * whole.size


def test_a_full_cache_is_read_without_running_the_model(tmp_path, monkeypatch):
    model = tiny_model()
    cached_features(model, ENCODED, tmp_path, [DEPTH])[DEPTH]
    seen = []
    monkeypatch.setattr(features, "hidden_states", lambda *_: pytest.fail("the model was run"))
    cached_features(model, ENCODED, tmp_path, [DEPTH], progress=lambda done, total: seen.append((done, total)))
    assert seen == [(48, 120), (96, 120), (120, 120)]


@pytest.mark.parametrize("other", ["weights", "rotary base", "ids", "precision"])
def test_a_cache_of_something_else_is_not_used(tmp_path, other):
    model = tiny_model()
    cached_features(model, ENCODED, tmp_path, [DEPTH])[DEPTH]
    if other == "weights":
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    if other == "rotary base":  # in the config alone; the weights are the same
        base = 2 * model.config.rope_parameters["rope_theta"]
        other_model = tiny_model(rope_parameters={"rope_type": "default", "rope_theta": base})
        assert all(torch.equal(own, model.state_dict()[name]) for name, own in other_model.state_dict().items())
        model = other_model
    cached_features(model, ENCODED[::-1] if other == "ids" else ENCODED, tmp_path, [DEPTH], bf16=other == "precision")
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_features_of_an_earlier_layer_are_those_of_the_model_cut_there(tmp_path, family):
    model = tiny_model(family)
    depth = len(backbone.decoder_layers(model))
    found = cached_features(model, ENCODED[:4], tmp_path, [1, depth])
    assert np.abs(found[1] - found[depth]).max() > 1e-3
    np.testing.assert_array_equal(found[depth], cached_features(model, ENCODED[:4], tmp_path / "whole", [depth])[depth])
    backbone.cut_after(model, 1)
    cut = cached_features(model, ENCODED[:4], tmp_path / "cut", [1])[1]
    np.testing.assert_allclose(found[1], cut, atol=1e-6)


def test_a_cut_model_is_saved_and_loaded_as_a_model_of_that_depth(tmp_path):
    model = tiny_model()
    before = sum(each.numel() for each in model.parameters())
    backbone.cut_after(model, 1)
    model.save_pretrained(tmp_path)
    loaded = backbone.load(tmp_path)
    assert loaded.config.num_hidden_layers == len(backbone.decoder_layers(loaded)) == 1
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert sum(each.numel() for each in loaded.parameters()) < before


def test_a_cache_of_layers_of_different_length_is_completed_from_the_shortest(tmp_path):
    model = tiny_model()
    whole = {n: np.array(each) for n, each in cached_features(model, ENCODED, tmp_path, [1, DEPTH]).items()}
    (file,) = tmp_path.glob("*.layer1.f32")
    with file.open("rb+") as handle:
        handle.truncate(128 * 50)
    for n, each in cached_features(model, ENCODED, tmp_path, [1, DEPTH]).items():
        np.testing.assert_array_equal(each, whole[n])


def test_a_whole_file_is_kept_when_a_layer_is_added(tmp_path, monkeypatch):
    model = tiny_model()
    cached_features(model, ENCODED, tmp_path, [DEPTH])
    (file,) = tmp_path.iterdir()
    before = file.read_bytes()
    monkeypatch.setattr(features, "hidden_states", lambda *_: pytest.fail("cut off at once"))
    with pytest.raises(pytest.fail.Exception, match="cut off"):
        cached_features(model, ENCODED, tmp_path, [1, DEPTH])
    assert file.read_bytes() == before


def test_a_layer_beyond_the_models_depth_is_refused(tmp_path):
    with pytest.raises(ValueError, match=f"no layer {DEPTH + 1}: the model has {DEPTH}"):
        cached_features(tiny_model(), ENCODED, tmp_path, [1, DEPTH + 1])
    assert not list(tmp_path.iterdir())


@pytest.fixture
def blocks(tmp_path):
    """Three blocks, of 16, 16 and 8 rankings, 48, 48 and 24 responses. Gives what one process computes."""
    return {n: each.tobytes() for n, each in cached_features(tiny_model(), ENCODED, tmp_path / "one", LAYERS).items()}


def assert_whole(folder, blocks):
    found = cached_features(tiny_model(), ENCODED, folder, LAYERS)
    assert {n: each.tobytes() for n, each in found.items()} == blocks
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        path.name for path in (folder.parent / "one").iterdir()
    )


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_shares_computed_in_any_order_are_what_one_process_computes(tmp_path, monkeypatch, blocks, processes):
    told = []
    for i in reversed(range(processes)):
        share = (i, processes)
        compute_features(
            tiny_model(), ENCODED, tmp_path / "own", LAYERS, share=share, progress=lambda *of: told.append(of)
        )
    assert (
        told
        == {
            1: [(48, 120), (96, 120), (120, 120)],
            2: [(48, 48), (48, 72), (72, 72)],
            3: [(24, 24), (48, 48), (48, 48)],
        }[processes]
    )
    monkeypatch.setattr(features, "hidden_states", lambda *_: pytest.fail("the model was run"))
    assert_whole(tmp_path / "own", blocks)


@pytest.mark.parametrize("size", [0, 1, 4 * 32 * 47, 4 * 32 * 48 - 1, 4 * 32 * 48])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_a_share_that_was_cut_off_anywhere_goes_on_with_any_number_of_processes(
    tmp_path, monkeypatch, blocks, size, processes
):
    """Only blocks that were not whole are run again; the first was cut off in one layer of two."""
    own, model = tmp_path / "own", tiny_model()
    compute_features(model, ENCODED, own, LAYERS, share=(0, 2))
    (part,) = own.glob("*.layer1.f32.0-16")
    with part.open("rb+") as file:
        file.truncate(size)
    ran, plain = [], features.map_rows
    monkeypatch.setattr(
        features, "map_rows", lambda model, rankings, read: plain(model, ran.append(rankings) or rankings, read)
    )
    for i in range(processes):
        compute_features(model, ENCODED, own, LAYERS, share=(i, processes))
    again = sorted((item for rankings in ran for item in rankings), key=lambda item: item.prefix)
    assert again == ENCODED[16 if size == 4 * 32 * 48 else 0 : 32]
    assert_whole(own, blocks)


@pytest.mark.parametrize("call", range(6))  # three blocks of two layers
@pytest.mark.parametrize("name", ["os.fsync", "shutil.copyfileobj", "pathlib.Path.unlink"])
def test_a_kill_while_blocks_are_put_together_costs_nothing(tmp_path, monkeypatch, blocks, name, call):
    own, calls = tmp_path / "own", []
    owner, _, function = name.rpartition(".")
    target = pkgutil.resolve_name(owner.replace(".Path", ":Path"))
    plain = getattr(target, function)

    def killed(*inputs, **named):
        calls.append(name)
        if len(calls) == call + 1:
            if function == "copyfileobj":
                inputs[1].write(inputs[0].read(100))
            raise KeyboardInterrupt
        return plain(*inputs, **named)

    compute_features(tiny_model(), ENCODED, own, LAYERS)
    monkeypatch.setattr(features, "hidden_states", lambda *_: pytest.fail("the model was run"))
    with monkeypatch.context() as patch:
        patch.setattr(target, function, killed)
        with pytest.raises(KeyboardInterrupt):
            cached_features(tiny_model(), ENCODED, own, LAYERS)
    assert_whole(own, blocks)
