"""A LoRA adapter folder, as ``KwiseTrainer`` and peft save it -> plain weights: the base model with the adapter merged in."""

import os
import re

import torch
from peft import PeftConfig, PeftModel, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME, cached_file

from kwise.model import backbone


def is_adapter(folder: str | os.PathLike[str]) -> bool:
    """Does the folder (or hub id) hold an adapter rather than a whole model?"""
    return cached_file(folder, ADAPTER_CONFIG_NAME, _raise_exceptions_for_missing_entries=False) is not None


def merge_adapter(
    folder: str | os.PathLike[str], layers: int | None, dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base model that ``folder`` names, with the adapter and the head of ``folder`` in it, and the tokenizer of
    ``folder``, or else of the base.

    ``layers`` is the depth that the base was cut to while training (None: nobody wrote it down, so it was not). Raises
    ``ValueError`` for an adapter without sound safetensors weights or without the head, for tensors that are missing or too many,
    for one that repeats layers, and where the adapter reaches fewer layers than the base has: then the base must have been cut.
    """
    weights = cached_file(folder, ADAPTER_SAFE_WEIGHTS_NAME, _raise_exceptions_for_missing_entries=False)
    if weights is None:
        raise ValueError(
            f"{folder} has no {ADAPTER_SAFE_WEIGHTS_NAME}: save the adapter as safetensors (kwise reads no pickles)"
        )
    try:
        state = load_file(weights)
    except SafetensorError as error:
        raise ValueError(f"{weights} is damaged: {error}") from error
    if not any(f".{backbone.HEAD}." in name for name in state):
        raise ValueError(
            f"{folder}: the adapter has no head; save it with modules_to_save=['{backbone.HEAD}'] (task_type SEQ_CLS)"
        )
    config = PeftConfig.from_pretrained(folder)
    config.inference_mode = True
    if getattr(config, "layer_replication", None):
        raise ValueError(
            f"{folder}: the adapter repeats layers of its base (layer_replication), which kwise does not merge"
        )
    base = config.base_model_name_or_path
    if not base:
        raise ValueError(f"{folder}: {ADAPTER_CONFIG_NAME} does not say which base model the adapter belongs to")
    with backbone.naming(base):
        whole = AutoConfig.from_pretrained(base)
    if any("Classification" in name for name in whole.architectures or ()):
        model = backbone.load(base, dtype)
    else:
        model = backbone.from_causal_lm(base, layers, dtype)
    depth = model.config.get_text_config().num_hidden_layers
    reached = {int(found.group(1)) for name in state if (found := re.search(r"\.(?:layers|h|blocks)\.(\d+)\.", name))}
    if reached and max(reached) + 1 != depth and not getattr(config, "layers_to_transform", None):
        raise ValueError(
            f"{folder}: the adapter is of {max(reached) + 1} layers, its base {base} has {depth}; if the base was cut in "
            'training, say so in kwise.json: "trained": {"layers": ' + f"{max(reached) + 1}" + "}"
        )
    own = cached_file(folder, "tokenizer_config.json", _raise_exceptions_for_missing_entries=False)
    tokenizer = backbone.load_tokenizer(base if own is None else folder)
    backbone.align(model, tokenizer)
    wrapped = PeftModel(model, config)
    found = set_peft_model_state_dict(wrapped, state)
    lacking = [name for name in found.missing_keys if "lora_" in name or "modules_to_save" in name]
    if lacking or found.unexpected_keys:
        names = ", ".join([*lacking, *found.unexpected_keys][:5])
        raise ValueError(f"{folder}: the adapter and its base {base} do not fit; tensors missing or too many: {names}")
    merged: PreTrainedModel = wrapped.merge_and_unload()
    return merged.eval(), tokenizer
