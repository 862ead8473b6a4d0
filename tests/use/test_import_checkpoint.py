"""Tiny checkpoints in the layouts of other trainers (``foreign_models``): imported scores are the foreign code's own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from foreign_models import (
    CardModel,
    DeepSpeedChat,
    OpenRLHF,
    Starling34B,
    TrlxReward,
    WithValueHead,
    llama_config,
    scatter,
)
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForSequenceClassification

from kwise import RewardModel
from kwise.model import backbone, foreign
from kwise.model.reward_model import Settings
from kwise.use import import_checkpoint as module
from kwise.use.export import export
from kwise.use.import_checkpoint import import_checkpoint

PROMPT = [{"role": "user", "content": "Which sea is the saltiest?"}]
ANSWERS = ["The Dead Sea.", "I would rather not say.", "Sea"]


@pytest.fixture
def base(llama2_tokenizer, tmp_path):
    """A base of config and tokenizer alone: weights are not asked for."""
    llama_config(len(llama2_tokenizer), architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path / "base")
    llama2_tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def config(llama2_tokenizer):
    return llama_config(len(llama2_tokenizer))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "foreign").mkdir()
    return tmp_path / "foreign"


@torch.no_grad()
def last_token_scores(foreign_model, base):
    """What the foreign model gives at the last token of each conversation, in float64."""
    tokenizer = backbone.load_tokenizer(base)
    backbone.leave_bos_to_template(tokenizer)
    chats = [[*PROMPT, {"role": "assistant", "content": answer}] for answer in ANSWERS]
    ids = [torch.tensor([tokenizer.apply_chat_template(chat, return_dict=False)]) for chat in chats]
    return [foreign_model.double().last(each) for each in ids]


def imported_scores(out):
    return RewardModel.from_pretrained(out, device="cpu", dtype=torch.float64).score(PROMPT, ANSWERS)


def settings(out):
    return json.loads((out / "kwise.json").read_text())


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


def starling_7b(config, folder):
    model = scatter(CardModel(config))
    model.last = lambda ids: model(ids, torch.ones_like(ids))[0]
    torch.save(model.state_dict(), folder / "reward.pt")
    return model


def starling_34b(config, folder):
    model = scatter(Starling34B(config))
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return model


def openrlhf(config, folder, prefix="score", **options):
    config.value_head_prefix, config.normalize_reward = prefix, False
    config.update(options)
    model = scatter(OpenRLHF(config))
    model.save_pretrained(folder)
    return model


def trl(config, folder):
    model = scatter(WithValueHead(config))
    model.save_trl(folder)
    return model


def trl_zero3(config, folder):
    model = scatter(WithValueHead(config))
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    torch.save({"args": 1}, folder / "training_args.bin")
    return model


def llama_factory(config, folder):
    model = scatter(WithValueHead(config))
    model.save_llama_factory(folder, safe=True)
    return model


def llama_factory_bin(config, folder):
    model = scatter(WithValueHead(config))
    model.save_llama_factory(folder, safe=False)
    return model


def deepspeed_chat(config, folder):
    """Its embeddings are padded to a multiple of 8; old transformers also saved the rotary frequencies."""
    config.vocab_size = 8 * -(-config.vocab_size // 8)
    model = scatter(DeepSpeedChat(config))
    tensors = {f"rwtransformer.layers.{n}.self_attn.rotary_emb.inv_freq": torch.rand(4) for n in range(2)}
    torch.save(model.state_dict() | tensors, folder / "pytorch_model.bin")
    return model


@pytest.mark.parametrize(
    ("write", "layout"),
    [
        (starling_7b, "starling"),
        (starling_34b, "starling"),
        (openrlhf, "openrlhf"),
        (lambda config, folder: openrlhf(config, folder, "value_head"), "openrlhf"),
        (lambda config, folder: openrlhf(config, folder, "my_head"), "openrlhf"),
        (trl, "trl"),
        (trl_zero3, "trl"),
        (llama_factory, "trl"),
        (llama_factory_bin, "trl"),
        (deepspeed_chat, "deepspeed_chat"),
    ],
)
@torch.no_grad()
def test_imported_scores_are_the_foreign_codes_own(write, layout, config, base, folder, tmp_path):
    expected = last_token_scores(write(config, folder), base)
    out = tmp_path / "out"
    import_checkpoint(folder, base, out)
    facts = settings(out)["imported"]
    assert facts["layout"] == layout
    assert max(expected) - min(expected) > 0.05
    found = [score + facts["constant"] for score in imported_scores(out)]
    assert found == pytest.approx(expected, abs=1e-6)
    loaded = AutoModelForSequenceClassification.from_pretrained(out)
    assert (loaded.config.num_labels, loaded.config.problem_type) == (1, "regression")
    assert loaded.config.pad_token_id == 0 != loaded.config.eos_token_id


def test_a_trlx_reward_model_on_gpt_neox_is_imported_from_a_single_file(tokenizer, tmp_path):
    model = scatter(TrlxReward(len(tokenizer)))
    model.causal[0].config.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    import_checkpoint(tmp_path / "pytorch_model.bin", tmp_path / "base", tmp_path / "out")
    expected = last_token_scores(model, tmp_path / "base")
    assert imported_scores(tmp_path / "out") == pytest.approx(expected, abs=1e-6)


def test_copies_and_dropped_tensors_are_counted(config, base, folder, tmp_path):
    model = starling_7b(config, folder)
    notes = import_checkpoint(folder, base, tmp_path / "out")
    body = len(model.transformer.state_dict())
    facts = settings(tmp_path / "out")["imported"]
    assert (facts["tensors"], facts["copies"], facts["dropped"]) == (body + 1, body, {"lm_head": 1})
    assert f"layout starling: {2 * body + 1} tensors used for {body + 1}" in notes
    assert any("dropped 1 tensors of the LM head" in note for note in notes)


@torch.no_grad()
def test_the_bias_of_a_head_is_told_and_kept_as_a_constant(config, base, folder, tmp_path):
    model = trl(config, folder)
    notes = import_checkpoint(folder, base, tmp_path / "out")
    bias = model.v_head.summary.bias.item()
    assert bias and settings(tmp_path / "out")["imported"]["constant"] == pytest.approx(bias, abs=1e-7)
    assert any("less" in note and "no order changes" in note for note in notes)


@torch.no_grad()
def test_openrlhfs_normalisation_is_folded_where_its_config_asks_for_it(config, base, folder, tmp_path):
    model = openrlhf(config, folder, normalize_reward=True, mean=0.7, std=2.5)
    expected = last_token_scores(model, base)
    notes = import_checkpoint(folder, base, tmp_path / "out", dtype=torch.float32)
    assert settings(tmp_path / "out")["imported"]["constant"] == pytest.approx(-0.7 / 2.5)
    assert [score - 0.7 / 2.5 for score in imported_scores(tmp_path / "out")] == pytest.approx(expected, abs=1e-6)
    assert any("multiplied by 0.4" in note for note in notes)


@torch.no_grad()
def test_openrlhfs_mean_is_not_applied_where_its_config_does_not_normalise(config, base, folder, tmp_path):
    expected = last_token_scores(openrlhf(config, folder, mean=0.7, std=2.5), base)
    notes = import_checkpoint(folder, base, tmp_path / "out")
    assert imported_scores(tmp_path / "out") == pytest.approx(expected, abs=1e-6)
    assert any("does not set normalize_reward" in note for note in notes)


def test_an_openrlhf_std_of_zero_is_refused(config, base, folder, tmp_path):
    openrlhf(config, folder, normalize_reward=True, mean=0.7, std=0.0)
    with pytest.raises(ValueError, match=r"mean 0\.7 and std 0\.0"):
        import_checkpoint(folder, base, tmp_path / "out")


UP = "model.model.layers.1.mlp.up_proj.weight"


def rename(tensors):
    tensors["transformer.layers.1.mlp.up.weight"] = tensors.pop("transformer.layers.1.mlp.up_proj.weight")


def forget(tensors):
    for name in ("transformer.layers.1.mlp.up_proj.weight", UP):
        del tensors[name]


def spoil(value):
    def change(tensors):
        tensors["transformer.norm.weight"] = tensors["transformer.norm.weight"].clone()
        tensors["transformer.norm.weight"][3] = value

    return change


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (rename, r"no place for transformer\.layers\.1\.mlp\.up\.weight"),
        (forget, r"lacks transformer\.layers\.1\.mlp\.up_proj\.weight"),
        (lambda t: t.pop("v_head.weight"), r"no head that kwise knows, none of v_head\.weight"),
        (lambda t: t.update(extra=torch.ones(3)), "no place for extra"),
        (lambda t: t.update({"v_head.bias": torch.ones(2)}), r"no place for v_head\.bias"),
        (spoil(float("nan")), r"transformer\.norm\.weight in reward\.pt holds NaN or infinite"),
        (spoil(float("inf")), r"transformer\.norm\.weight in reward\.pt holds NaN or infinite"),
        (spoil(7.0), r"transformer\.norm\.weight in reward\.pt is no copy of model\.model\.norm\.weight"),
        (lambda t: t.update({UP: t[UP][:-1]}), rf"{UP} has shape \[47, 32\] in reward\.pt, \[48, 32\] in the model"),
        (lambda t: t.update({UP: t[UP].to(torch.int8)}), f"{UP} holds int8, not floats"),
        (lambda t: t.update({"v_head.weight": torch.ones(2, 32)}), r"v_head\.weight has shape \[2, 32\]"),
        (
            lambda t: t.update({"transformer.embed_tokens.weight": t["transformer.embed_tokens.weight"][:9]}),
            r"transformer\.embed_tokens\.weight has shape \[9, 32\]",
        ),
        (
            lambda t: t.update({"transformer.layers.7.mlp.up_proj.weight": t[UP]}),
            r"no place for transformer\.layers\.7\.",
        ),
    ],
)
def test_every_tensor_that_is_not_as_it_should_be_is_named(change, problem, config, base, folder, tmp_path):
    tensors = dict(starling_7b(config, folder).state_dict())
    change(tensors)
    torch.save(tensors, folder / "reward.pt")
    before = left_in(tmp_path)
    with pytest.raises(ValueError, match=problem):
        import_checkpoint(folder, base, tmp_path / "out")
    assert left_in(tmp_path) == before


class Runs:
    """What a pickle can do to whoever loads it."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (os.mkdir, (str(self.file),))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_in_it_is_refused_and_not_run(zipped, config, base, folder, tmp_path):
    tensors = dict(starling_7b(config, folder).state_dict())
    tensors["transformer.norm.weight"] = Runs(tmp_path / "was run")
    torch.save(tensors, folder / "reward.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"reward\.pt is refused, and nothing in it was run: .* code \(posix\.mkdir\)"):
        import_checkpoint(folder, base, tmp_path / "out")
    assert not (tmp_path / "was run").exists() and not (tmp_path / "out").exists()
    torch.load(folder / "reward.pt", weights_only=False)
    assert (tmp_path / "was run").exists(), "the pickle of this test is harmless, so the test proves nothing"


def test_a_file_from_before_torch_1_6_is_read_too(config, base, folder, tmp_path):
    model = starling_7b(config, folder)
    torch.save(model.state_dict(), folder / "reward.pt", _use_new_zipfile_serialization=False)
    import_checkpoint(folder, base, tmp_path / "out")
    assert imported_scores(tmp_path / "out") == pytest.approx(last_token_scores(model, base), abs=1e-6)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"state_dict": {"v_head.weight": torch.ones(1, 32)}, "epoch": 3}, "'?state_dict'? is no tensor"),
        ([torch.ones(3)], "it is no tensor"),
        (b"PK\x03\x04 cut short", r"reward\.pt cannot be read"),
        (b"no pickle at all", r"reward\.pt cannot be read: it is no pickle of tensors"),
    ],
)
def test_a_file_of_anything_but_tensors_by_name_is_refused(content, problem, base, folder, tmp_path):
    if isinstance(content, bytes):
        (folder / "reward.pt").write_bytes(content)
    else:
        torch.save(content, folder / "reward.pt")
    with pytest.raises(ValueError, match=problem):
        import_checkpoint(folder, base, tmp_path / "out")


def test_a_head_of_several_layers_is_refused_in_words(config, base, folder, tmp_path):
    class Critic(nn.Module):  # trlX's
        def __init__(self):
            super().__init__()
            self.v_head = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 1))

    body = scatter(WithValueHead(config)).pretrained_model.state_dict()
    torch.save(body | Critic().state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"several layers \(v_head\.0\.bias, v_head\.0\.weight, .*one linear unit"):
        import_checkpoint(folder, base, tmp_path / "out")


def test_an_adapter_is_refused_with_the_way_out(base, folder, tmp_path):
    save_file({"a": torch.ones(1)}, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="merge it into its base model first"):
        import_checkpoint(folder, base, tmp_path / "out")


def test_a_folder_without_weights_and_a_tensor_in_two_files_are_errors(config, base, folder, tmp_path):
    with pytest.raises(ValueError, match="holds no weights"):
        import_checkpoint(folder, base, tmp_path / "out")
    model = starling_7b(config, folder)
    torch.save({"v_head.weight": model.v_head.weight.data}, folder / "more.pt")
    with pytest.raises(ValueError, match=r"'v_head\.weight' twice, in more\.pt and in reward\.pt"):
        import_checkpoint(folder, base, tmp_path / "out")


def test_an_existing_out_is_left_alone(config, base, folder, tmp_path):
    starling_7b(config, folder)
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError, match="choose another name"):
        import_checkpoint(folder, base, tmp_path / "out")
    assert left_in(tmp_path / "out") == []


@pytest.mark.parametrize(("option", "known"), [("layout", "auto, starling"), ("reward_at", "last_token, card")])
def test_an_unknown_name_is_answered_with_the_known_ones(option, known, base, folder, tmp_path):
    with pytest.raises(ValueError, match=f"'star'; known: {known}"):
        import_checkpoint(folder, base, tmp_path / "out", **{option: "star"})


def test_a_layout_that_is_named_is_held_to(config, base, folder, tmp_path):
    starling_7b(config, folder)
    with pytest.raises(ValueError, match=r"in layout 'trl' .*lacks .*v_head\.summary\.weight"):
        import_checkpoint(folder, base, tmp_path / "out", layout="trl")


def test_dtypes_are_the_files_unless_one_is_named(config, base, folder, tmp_path):
    tensors = {name: tensor.half() for name, tensor in starling_7b(config, folder).state_dict().items()}
    torch.save(tensors, folder / "reward.pt")
    import_checkpoint(folder, base, tmp_path / "same")
    import_checkpoint(folder, base, tmp_path / "other", dtype=torch.bfloat16)
    for name, dtype in (("same", torch.float16), ("other", torch.bfloat16)):
        found = load_file(tmp_path / name / "model.safetensors")
        assert {tensor.dtype for tensor in found.values()} == {dtype}
        assert json.loads((tmp_path / name / "config.json").read_text())["dtype"] == str(dtype).split(".")[1]
    assert torch.equal(found["score.weight"], tensors["v_head.weight"].bfloat16())


def test_a_value_too_large_for_the_dtype_is_an_error(config, base, folder, tmp_path):
    tensors = dict(starling_7b(config, folder).state_dict())
    tensors["v_head.weight"] = tensors["v_head.weight"] + 1e5
    torch.save(tensors, folder / "reward.pt")
    with pytest.raises(ValueError, match=r"v_head\.weight has values too large for torch\.float16"):
        import_checkpoint(folder, base, tmp_path / "out", dtype=torch.float16)
    assert not (tmp_path / "out").exists()


def test_a_large_model_is_written_in_shards_with_an_index(config, base, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHARD", "20KB")
    model = starling_34b(config, folder)
    import_checkpoint(folder, base, tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {path.name for path in (tmp_path / "out").glob("*.safetensors")}
    assert len(set(index["weight_map"].values())) > 2
    assert imported_scores(tmp_path / "out") == pytest.approx(last_token_scores(model, base), abs=1e-6)


def test_a_pad_token_that_must_be_added_gets_a_row_of_the_embedding(tokenizer, folder, tmp_path):
    """As for Llama-3: no unknown token, a vocabulary without a free row."""
    tokenizer.pad_token = tokenizer.unk_token = None
    llama_config(len(tokenizer)).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    model = openrlhf(llama_config(len(tokenizer)), folder)
    import_checkpoint(folder, tmp_path / "base", tmp_path / "out")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert loaded.config.pad_token_id == len(tokenizer) == loaded.get_input_embeddings().num_embeddings - 1
    expected = last_token_scores(model, tmp_path / "base")
    assert imported_scores(tmp_path / "out") == pytest.approx(expected, abs=1e-6)


def test_a_starling_folder_can_be_scored_as_the_card_does(config, base, folder, tmp_path, make_llama2_tokenizer):
    model = starling_7b(config, folder)
    out = tmp_path / "out"
    import_checkpoint(folder, base, out, chat_template="starling_card", reward_at="card")
    assert (settings(out)["reward_at"], settings(out)["max_length"]) == ("card", 2048)
    assert settings(out)["imported"]["chat_template"] == "starling_card"
    tokenizer = make_llama2_tokenizer()
    tokenizer.pad_token, tokenizer.truncation_side, tokenizer.padding_side = "<unk>", "left", "right"
    samples = [f"<s>[INST] {PROMPT[0]['content']} </s> [/INST] {answer}</s>" for answer in ANSWERS]
    batch = tokenizer(samples, truncation=True, max_length=2048, padding="max_length", return_tensors="pt")
    model.pad_id = tokenizer("<unk>")["input_ids"][0]
    expected = model.double()(batch["input_ids"], batch["attention_mask"])
    assert imported_scores(out) == pytest.approx(expected, abs=1e-6)


def test_the_ppo_template_has_one_bos_under_either_rule(config, base, folder, tmp_path, llama2_tokenizer):
    starling_7b(config, folder)
    found = {}
    for rule in ("card", "last_token"):
        import_checkpoint(folder, base, tmp_path / rule, chat_template="starling_ppo", reward_at=rule)
        encoded = RewardModel.from_pretrained(tmp_path / rule, device="cpu").encoder.encode(PROMPT, ["Sea"])
        found[rule] = encoded.prefix + encoded.suffixes[0]
        assert found[rule][0] == 1 and found[rule].count(1) == 1
    assert found["card"] == llama2_tokenizer("[INST] Which sea is the saltiest? [/INST] Sea</s>").input_ids


def test_lengths_are_starlings_or_the_models_unless_given(config, base, folder, tmp_path):
    starling_7b(config, folder)
    import_checkpoint(folder, base, tmp_path / "starling")
    import_checkpoint(folder, base, tmp_path / "given", max_length=99)
    (folder / "reward.pt").unlink()
    trl(config, folder)
    import_checkpoint(folder, base, tmp_path / "trl")
    found = [settings(tmp_path / name)["max_length"] for name in ("starling", "given", "trl")]
    assert found == [2048, 99, config.max_position_embeddings]


def test_a_hub_id_is_taken_by_the_hubs_client_safetensors_first(config, base, folder, tmp_path, monkeypatch):
    asked = []

    def snapshot(name, allow_patterns):
        asked.append((name, allow_patterns[0]))
        return str(folder)

    monkeypatch.setattr(foreign, "snapshot_download", snapshot)
    starling_7b(config, folder)
    import_checkpoint("owner/starling", base, tmp_path / "out")
    assert asked == [("owner/starling", "*.safetensors"), ("owner/starling", "*.bin")]
    assert settings(tmp_path / "out")["imported"]["checkpoint"] == "owner/starling"


def test_a_checkpoint_that_is_neither_here_nor_on_the_hub_is_named(base, tmp_path, monkeypatch):
    def snapshot(name, allow_patterns):
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(foreign, "snapshot_download", snapshot)
    with pytest.raises(ValueError, match=r"owner/none is no file or folder here, .* no network"):
        import_checkpoint("owner/none", base, tmp_path / "out")


MEASURE = """
import json, re, sys
from pathlib import Path
from kwise.use.import_checkpoint import import_checkpoint

def peak():  # of this program: ru_maxrss would count the one that started it
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

before = peak()
import_checkpoint(*sys.argv[1:])
size = sum(file.stat().st_size for file in Path(sys.argv[3]).glob("*.safetensors"))
print(json.dumps({"grown": peak() - before, "size": size}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["one pickle", "safetensors shards"])
def test_import_needs_little_more_memory_than_the_model_has_bytes(kind, llama2_tokenizer, folder, tmp_path):
    """600 MB of float16; the peak counts the pages of the mapped files too."""
    config = llama_config(len(llama2_tokenizer))
    config.update({"hidden_size": 1536, "intermediate_size": 4096, "num_hidden_layers": 10, "num_attention_heads": 12})
    config.num_key_value_heads = 12
    config.head_dim = 128
    llama2_tokenizer.save_pretrained(tmp_path / "base")
    config.save_pretrained(tmp_path / "base")
    model = CardModel(config).half() if kind == "one pickle" else Starling34B(config).half()
    if kind == "one pickle":
        torch.save(model.state_dict(), folder / "reward.pt")
    else:
        model.save_pretrained(folder, max_shard_size="100MB")
    del model
    words = [sys.executable, "-c", MEASURE, folder, tmp_path / "base", tmp_path / "out"]
    done = subprocess.run(
        list(map(str, words)), capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    found = json.loads(done.stdout)
    print(f"{kind}: {found['grown'] / found['size']:.2f} of {found['size']} bytes")
    assert found["size"] > 5e8
    assert 0.5 * found["size"] < found["grown"] < 1.3 * found["size"]  # below, the measurement would be at fault


def test_where_the_base_lies_is_known_from_any_folder_and_never_taken_for_a_hub_id(
    config, base, folder, tmp_path, monkeypatch
):
    starling_7b(config, folder)
    monkeypatch.chdir(tmp_path.parent)
    name = tmp_path.name
    import_checkpoint(f"{name}/{folder.name}", f"{name}/{base.name}", f"{name}/out")
    facts = settings(tmp_path / "out")["imported"]
    assert (facts["checkpoint"], facts["base"]) == (str(folder), str(base))
    monkeypatch.chdir(tmp_path)
    export("out", tmp_path / "published")
    assert "base_model" not in (tmp_path / "published" / "README.md").read_text()


def test_a_folder_of_kwise_is_no_foreign_checkpoint(base, tmp_path):
    """It has a longest sequence and a calibration of its own, which an import would lose."""
    (tmp_path / "model").mkdir()
    Settings(128).write(tmp_path / "model")
    with pytest.raises(ValueError, match="is a model of kwise already: use it as it is"):
        import_checkpoint(tmp_path / "model", base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("lm_head.weight", True),
        ("model.output.weight", True),
        ("rwtransformer.lm_head.bias", True),
        ("model.layers.0.attention.output.weight", False),
        ("output.0.weight", False),
    ],
)
def test_only_a_tensor_of_no_layer_is_taken_for_an_lm_head_and_left_out(name, known):
    assert bool(foreign.LM_HEAD.fullmatch(name)) is known
