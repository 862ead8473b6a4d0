import json
import os
import subprocess

import pytest
from tiny_models import tiny_model
from transformers import AutoConfig, AutoModelForSequenceClassification

from kwise.model.reward_model import RewardModel, Settings
from kwise.model.transformers4 import old_config, old_tokenizer

CHAT = [
    {"role": "user", "content": "Which is the longest river of Europe?"},
    {"role": "assistant", "content": "The Volga."},
]
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SCALED = {"rope_theta": 5e5, "original_max_position_embeddings": 16} | LLAMA3
LONG = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "rope_theta": 7e3}
MODELS = {
    "llama": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e5}},
    "llama, scaled": {"rope_parameters": SCALED},
    "llama, linear": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 2e4}},
    "qwen2, yarn": {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6}},
    "mistral": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "qwen3": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "gemma2": {"rope_parameters": {"rope_type": "default", "rope_theta": 3e4}},
    "phi3": {"rope_parameters": {"rope_type": "default", "rope_theta": 3e4}},
    "phi3, partial": {"rope_parameters": {"rope_type": "default", "rope_theta": 3e4, "partial_rotary_factor": 0.5}},
    "phi3, long": {"rope_parameters": LONG, "original_max_position_embeddings": 16},
    "gpt_neox": {"rope_parameters": {"rope_type": "default", "rope_theta": 3e4, "partial_rotary_factor": 0.5}},
    "gemma3_text": {
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 3e5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
        }
    },
    "olmo2": {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    "smollm3": {"rope_parameters": {"rope_type": "default", "rope_theta": 5e6}},
    "mixtral": {"rope_parameters": {"rope_type": "default", "rope_theta": 3e4}},
}
NOT_IN_4 = ("gemma3_text", "olmo2", "smollm3")

READ = """
import json, sys, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
tokenizer, model = (each.from_pretrained(sys.argv[2]) for each in (AutoTokenizer, AutoModelForSequenceClassification))
ids = tokenizer.apply_chat_template(json.loads(sys.argv[1]), return_tensors="pt")
with torch.no_grad():
    print(model.eval()(ids).logits.item(), *tokenizer("text").keys())
"""


@pytest.fixture(params=MODELS)
def folder(request, tokenizer, tmp_path):
    family = request.param.split(",")[0]
    model = tiny_model(family, vocab_size=len(tokenizer), max_position_embeddings=128, **MODELS[request.param])
    RewardModel(model, tokenizer, Settings(max_length=128)).save_pretrained(tmp_path)
    return tmp_path


def test_a_folder_is_to_transformers_5_what_it_would_be_without_the_old_names(folder, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    plain = tmp_path / "plain"
    model.save_pretrained(plain)
    both, new = (AutoConfig.from_pretrained(each).to_dict() for each in (folder, plain))
    assert both | {"_name_or_path": ""} == new | {"_name_or_path": ""}


def test_old_names_by_hand():
    rope = {"rope_type": "default", "rope_theta": 1e5}
    assert old_config({"dtype": "float16", "rope_parameters": rope}) == {
        "dtype": "float16",
        "torch_dtype": "float16",
        "rope_parameters": rope,
        "rope_theta": 1e5,
    }
    kinds = {"full_attention": {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0}, "sliding_attention": rope}
    gemma3 = old_config({"rope_parameters": kinds})
    assert (gemma3["rope_theta"], gemma3["rope_local_base_freq"]) == (1e6, 1e5)
    assert gemma3["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
    yarn = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32}
    shrunk, extended = (old_config({"max_position_embeddings": n, "rope_parameters": yarn}) for n in (32, 128))
    assert shrunk["rope_scaling"] == {"rope_type": "yarn", "factor": 4.0}
    assert extended["rope_scaling"] == shrunk["rope_scaling"] | {"original_max_position_embeddings": 32}
    assert old_config({"rope_theta": 7.0, "rope_parameters": rope})["rope_theta"] == 7.0  # what stands there, stands
    assert old_config({"n_positions": 1024}) == {"n_positions": 1024}


def test_a_tokenizer_of_another_class_keeps_it_and_further_special_tokens_get_their_old_name():
    given = {"tokenizer_class": "LlamaTokenizer", "extra_special_tokens": ["<x>"], "pad_token": "<pad>"}
    wanted = {"tokenizer_class": "LlamaTokenizer", "additional_special_tokens": ["<x>"], "pad_token": "<pad>"}
    assert old_tokenizer(given) == wanted
    named = {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": {"image_token": "<x>"}}
    inputs = ["input_ids", "attention_mask"]
    assert old_tokenizer(named) == named | {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": inputs}


@pytest.mark.slow
@pytest.mark.skipif(
    "KWISE_TRANSFORMERS4" not in os.environ, reason="KWISE_TRANSFORMERS4 names no python with transformers 4"
)
def test_transformers_4_gives_the_same_score(folder, request):
    if request.node.callspec.params["folder"] in NOT_IN_4:
        pytest.skip("transformers 4 has no sequence classifier of this family")
    words = [os.environ["KWISE_TRANSFORMERS4"], "-c", READ, json.dumps(CHAT), str(folder)]
    found = subprocess.run(words, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    (own,) = RewardModel.from_pretrained(folder).score(CHAT[:1], [CHAT[1]["content"]])
    score, *inputs = found.stdout.split()
    assert float(score) == pytest.approx(own, abs=1e-5)
    assert inputs == ["input_ids", "attention_mask"]
