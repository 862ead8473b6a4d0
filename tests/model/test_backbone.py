import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import SHAPE, tiny_model
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM

from kwise.data.encode import Encoder
from kwise.model import backbone


@pytest.fixture
def causal(tmp_path):
    """A tiny causal LM on disk."""
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def edit(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_causal_lm_becomes_a_regression_classifier_with_its_own_weights_and_a_zero_head(causal):
    model = backbone.from_causal_lm(causal)
    original = LlamaForCausalLM.from_pretrained(causal)
    assert type(model).__name__ == "LlamaForSequenceClassification"
    assert (model.config.num_labels, model.config.problem_type, model.score.bias) == (1, "regression", None)
    for name, tensor in original.model.state_dict().items():
        assert torch.equal(tensor, model.model.state_dict()[name]), name
    assert not model.score.weight.any()


def test_layers_keeps_the_first_layers_and_the_final_norm(causal):
    model = backbone.from_causal_lm(causal, layers=2)
    original = LlamaForCausalLM.from_pretrained(causal)
    assert model.config.num_hidden_layers == len(model.model.layers) == 2
    assert torch.equal(model.model.layers[1].mlp.up_proj.weight, original.model.layers[1].mlp.up_proj.weight)
    assert torch.equal(model.model.norm.weight, original.model.norm.weight)


@pytest.mark.parametrize("layers", [0, 4, -1])
def test_an_impossible_number_of_layers_is_an_error(causal, layers):
    with pytest.raises(ValueError, match="between 1 and 3"):
        backbone.from_causal_lm(causal, layers=layers)


def test_a_missing_backbone_tensor_is_named(causal):
    edit(causal, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ValueError, match=r"lacks model\.layers\.1\.mlp\.up_proj\.weight"):
        backbone.from_causal_lm(causal)


def test_a_renamed_tensor_is_named_as_lacking_and_as_left_over(causal):
    edit(
        causal,
        lambda tensors: tensors.update({"model.layers.1.mlp.extra": tensors.pop("model.layers.1.mlp.up_proj.weight")}),
    )
    with pytest.raises(ValueError) as caught:
        backbone.from_causal_lm(causal)
    assert "lacks model.layers.1.mlp.up_proj.weight" in str(caught.value)
    assert "no place for model.layers.1.mlp.extra" in str(caught.value)


def test_a_checkpoint_under_another_prefix_is_refused_instead_of_loading_random_weights(causal):
    """The silent failure of the released Starling training script (quirk 8)."""
    edit(
        causal,
        lambda tensors: [
            tensors.update({name.replace("model.", "transformer.", 1): tensors.pop(name)}) for name in [*tensors]
        ],
    )
    with pytest.raises(ValueError, match="lacks"):
        backbone.from_causal_lm(causal)


def test_a_saved_model_without_its_head_is_refused(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    backbone.load(tmp_path)
    edit(tmp_path, lambda tensors: tensors.pop("score.weight"))
    with pytest.raises(ValueError, match=r"lacks score\.weight"):
        backbone.load(tmp_path)


def test_a_classifier_with_two_labels_is_refused(tmp_path):
    tiny_model(num_labels=2).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="one label"):
        backbone.load(tmp_path)


def test_a_tensor_of_another_shape_is_named(causal):
    config = json.loads((causal / "config.json").read_text())
    (causal / "config.json").write_text(json.dumps(config | {"intermediate_size": 50}))
    with pytest.raises(
        ValueError, match=r"up_proj.weight has shape \[48, 32\] in the checkpoint, \[50, 32\] in the model"
    ):
        backbone.from_causal_lm(causal)


@pytest.mark.parametrize("pad", [None, "<eos>", "<bos>"])
def test_a_missing_pad_token_or_one_that_ends_texts_becomes_another(causal, tokenizer, pad):
    tokenizer.pad_token = pad and {"<eos>": tokenizer.eos_token, "<bos>": tokenizer.bos_token}[pad]
    model = backbone.from_causal_lm(causal)
    model.config.eos_token_id = tokenizer.eos_token_id
    assert backbone.set_pad_token(model, tokenizer)
    assert tokenizer.pad_token_id == model.config.pad_token_id
    assert tokenizer.pad_token_id not in (tokenizer.eos_token_id, tokenizer.bos_token_id, None)


def test_a_pad_token_that_conversations_end_with_becomes_another(causal, make_tokenizer):
    tokenizer = make_tokenizer(template="{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}")
    tokenizer.pad_token = "<|im_end|>"  # which is not its EOS
    note = backbone.set_pad_token(backbone.from_causal_lm(causal), tokenizer)
    assert note == "pad token set to '<unk>' (was '<|im_end|>')"


def test_a_template_that_asks_for_a_system_turn_is_aligned_too(causal, make_tokenizer):
    asks = "{% if messages[0]['role'] != 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    tokenizer = make_tokenizer(template=asks + "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}")
    tokenizer.pad_token = tokenizer.eos_token
    assert "pad token set to '<unk>' (was '</s>')" in backbone.align(backbone.from_causal_lm(causal), tokenizer)


def test_a_pad_token_is_added_to_the_vocabulary_when_none_can_serve(causal, tokenizer, tmp_path):
    tokenizer.pad_token = tokenizer.unk_token = None
    model = backbone.from_causal_lm(causal)
    assert backbone.set_pad_token(model, tokenizer) == "pad token set to '<|pad|>' (was None)"
    assert model.get_input_embeddings().num_embeddings > tokenizer.pad_token_id
    model.save_pretrained(tmp_path / "saved")
    assert (
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").config.pad_token_id
        == tokenizer.pad_token_id
    )


def test_a_pad_token_that_came_with_the_tokenizer_gets_its_row_in_every_model(causal, tokenizer):
    """As when one tokenizer serves several bases one after another."""
    tokenizer.pad_token = tokenizer.unk_token = None
    backbone.set_pad_token(backbone.from_causal_lm(causal), tokenizer)
    second = backbone.from_causal_lm(causal)
    assert second.get_input_embeddings().num_embeddings <= tokenizer.pad_token_id
    backbone.set_pad_token(second, tokenizer)
    assert second.get_input_embeddings().num_embeddings > tokenizer.pad_token_id == second.config.pad_token_id


def test_a_good_pad_token_is_left_alone(causal, tokenizer):
    before = tokenizer.pad_token
    assert backbone.set_pad_token(backbone.from_causal_lm(causal), tokenizer) is None
    assert tokenizer.pad_token == before


def test_a_config_with_fewer_layers_than_the_checkpoint_is_refused_unless_a_cut_was_asked_for(causal):
    config = json.loads((causal / "config.json").read_text())
    (causal / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    with pytest.raises(ValueError, match=r"no place for model\.layers\.2\."):
        backbone.from_causal_lm(causal)


def test_a_classifier_is_no_base_since_its_head_would_be_lost(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="classifier already"):
        backbone.from_causal_lm(tmp_path)


def test_weights_cut_short_are_an_error_that_names_the_folder(causal):
    weights = causal / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="base cannot be loaded"):
        backbone.from_causal_lm(causal)


def test_a_tokenizer_or_config_of_a_kind_that_is_not_known_is_an_error_that_names_the_folder(causal, tokenizer):
    tokenizer.save_pretrained(causal)
    content = json.loads((causal / "tokenizer.json").read_text())
    content["model"]["type"] = "of a later version"
    (causal / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="base cannot be loaded: data did not match any variant"):
        backbone.load_tokenizer(causal)
    config = json.loads((causal / "config.json").read_text())
    (causal / "config.json").write_text(json.dumps(config | {"vocab_size": None}))
    with pytest.raises(ValueError, match=r"base cannot be loaded: .*'vocab_size'"):
        backbone.from_causal_lm(causal)


@pytest.mark.parametrize("load", [backbone.from_causal_lm, backbone.load, backbone.load_tokenizer])
def test_a_folder_that_holds_no_model_is_named(tmp_path, load):
    with pytest.raises(ValueError, match=f"{tmp_path} cannot be loaded"):
        load(tmp_path)


@pytest.mark.parametrize("writes", [True, False])
def test_the_template_alone_writes_bos_and_the_ids_that_are_scored_stay(llama_tokenizer, tmp_path, writes):
    """So that plain apply_chat_template gives them, and so does the saved tokenizer given the rendered text."""
    if not writes:
        llama_tokenizer.chat_template = llama_tokenizer.chat_template.replace("{{ bos_token }}", "")
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    before = Encoder(llama_tokenizer, 100).encode(chat[:1], ["b"])
    scored = before.prefix + before.suffixes[0]
    assert scored[0] == llama_tokenizer.bos_token_id not in scored[1:]
    notes = backbone.align(tiny_model(vocab_size=300, problem_type="regression"), llama_tokenizer)
    assert len(notes) == (1 if writes else 2) and "no BOS any more" in notes[-1]
    assert writes or "'<s>'" in notes[0]
    llama_tokenizer.save_pretrained(tmp_path)
    saved = backbone.load_tokenizer(tmp_path)
    assert Encoder(saved, 100).encode(chat[:1], ["b"]) == before
    assert saved.apply_chat_template(chat, return_dict=False) == scored
    assert saved(saved.apply_chat_template(chat, tokenize=False)).input_ids == scored
    assert backbone.leave_bos_to_template(saved) == [], "done once"


def test_of_named_chat_templates_the_default_is_kept_and_mended(llama_tokenizer):
    plain = llama_tokenizer.chat_template.replace("{{ bos_token }}", "")
    llama_tokenizer.chat_template = {"default": plain, "tool_use": "{{ bos_token }}tools"}
    notes = backbone.leave_bos_to_template(llama_tokenizer)
    assert "the default is kept" in notes[0] and llama_tokenizer.chat_template == "{{ bos_token }}" + plain


def test_a_model_without_problem_type_becomes_one_whose_score_pipelines_read_raw(tokenizer):
    model = tiny_model(vocab_size=len(tokenizer))
    assert model.config.problem_type is None
    assert "sigmoid" in backbone.align(model, tokenizer)[-1]
    assert model.config.problem_type == "regression"


def test_where_neither_writes_bos_there_is_none(tokenizer):
    before = tokenizer.chat_template
    assert backbone.leave_bos_to_template(tokenizer) == []
    assert tokenizer.chat_template == before
