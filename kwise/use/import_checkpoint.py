"""``kwise import``: the checkpoint of another trainer into a standard folder, strictly, a shard at a time."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kwise.data.lines import lasting_name
from kwise.model import backbone
from kwise.model.foreign import (
    HEAD_WEIGHT,
    LAYOUTS,
    Assignment,
    Checkpoint,
    assign,
    checked,
    detect_layout,
    finite,
    open_checkpoint,
    vocab_size,
)
from kwise.model.reward_at import RULES
from kwise.model.reward_model import SETTINGS_FILE, Settings
from kwise.model.transformers4 import write_old_names

SHARD = "1GB"  # what is held in memory at once where a dtype changes
CARD_LENGTH = 2048


def import_checkpoint(
    checkpoint: str | os.PathLike[str],
    base: str | os.PathLike[str],
    out: str | os.PathLike[str],
    layout: str = "auto",
    chat_template: str | None = None,
    reward_at: str = "last_token",
    max_length: int | None = None,
    dtype: torch.dtype | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """Write ``checkpoint`` (file, folder or hub id, in one of ``LAYOUTS``) as a folder that ``RewardModel`` and other tools load.

    ``base`` (folder or hub id) gives config, tokenizer and chat template, not weights. ``layout`` "auto" goes by the names of
    the tensors. ``chat_template`` is a name or file as in ``load_tokenizer``, ``reward_at`` a rule of ``kwise.model.reward_at``.
    ``max_length`` None is 2048 for the rule ``card`` and for Starling's layout, else the model's context. ``dtype`` None keeps
    each tensor's own. ``progress`` is told how many tensors are written, and of how many.

    Gives what was done, in words. ``kwise.json`` has it as ``imported``: there ``constant`` is what the checkpoint's own code
    adds to every score (the bias of its head, its mean), which changes no order and which a bias-free head has no place for.

    Files are mapped and written shard by shard, so memory stays near the size of the checkpoint, nearly all of it pages of its
    files. Raises ``FileExistsError`` if ``out`` exists and ``ValueError`` for any tensor that is missing, left over, not finite,
    an unequal copy or of another shape, and for a folder that kwise itself wrote; then nothing is left behind.
    """
    target = Path(out)
    if target.exists():
        raise FileExistsError(f"{out} exists; choose another name")
    if Path(checkpoint, SETTINGS_FILE).is_file():
        raise ValueError(f"{checkpoint} is a model of kwise already: use it as it is, or copy it by kwise export")
    known = {"layout": ("auto", *LAYOUTS), "rule": tuple(RULES)}
    for kind, name in (("layout", layout), ("rule", reward_at)):
        if name not in known[kind]:
            raise ValueError(f"unknown {kind} '{name}'; known: {', '.join(known[kind])}")
    tokenizer = backbone.load_tokenizer(base, chat_template)
    found = open_checkpoint(checkpoint)
    layout = detect_layout(found) if layout == "auto" else layout
    model, assignment = _fit(found, layout, base, tokenizer)
    notes = [
        f"layout {layout}: {sum(map(len, assignment.sources.values()))} tensors used for {len(assignment.sources)}"
    ]
    if reward_at == "card":
        if tokenizer.unk_token is not None:  # else the rule itself says what is wrong
            tokenizer.pad_token = tokenizer.unk_token
        notes += [note for note in (backbone.set_pad_token(model, tokenizer),) if note]
    else:
        notes += backbone.align(model, tokenizer)
    standard = CARD_LENGTH if reward_at == "card" else LAYOUTS[layout].max_length
    length = max_length or standard or model.config.get_text_config().max_position_embeddings
    RULES[reward_at](tokenizer, length, "left")  # says what is wrong before hours of copying
    constant = assignment.shift
    if assignment.bias is not None:
        constant += float(checked(found, [assignment.bias])) * assignment.scale
    notes += _say(found, assignment, constant)
    facts: dict[str, Any] = {
        "checkpoint": lasting_name(str(checkpoint)),
        "layout": layout,
        "base": lasting_name(str(base)),
        "chat_template": chat_template,
        "tensors": len(assignment.sources),
        "copies": sum(map(len, assignment.sources.values())) - len(assignment.sources),
        "dropped": {kind: len(names) for kind, names in assignment.dropped.items()},
        "scale": assignment.scale,
        "constant": constant,
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as unfinished:
        folder = Path(unfinished, "model")
        folder.mkdir()
        _write_weights(found, assignment, model, dtype, folder, progress)
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_old_names(folder)
        Settings(length, reward_at=reward_at, imported=facts).write(folder)
        folder.rename(target)
    return notes


def _fit(
    checkpoint: Checkpoint, layout: str, base: str | os.PathLike[str], tokenizer: PreTrainedTokenizerBase
) -> tuple[PreTrainedModel, Assignment]:
    """The model that the checkpoint fills, without weights, and how. Rows of its embedding beyond the tokenizer's tokens stay."""
    model = backbone.skeleton(base)
    rows = vocab_size(checkpoint, layout, model)
    if rows is not None and rows >= len(tokenizer):
        model = backbone.skeleton(base, rows)
    return model, assign(checkpoint, layout, model)


def _say(checkpoint: Checkpoint, assignment: Assignment, constant: float) -> list[str]:
    kinds = {
        "lm_head": "of the LM head, which a reward model does not have",
        "buffers": "that are computed, not learned",
    }
    notes = [f"dropped {len(names)} tensors {kinds[kind]}" for kind, names in assignment.dropped.items()]
    if assignment.scale != 1:
        notes.append(f"the head was multiplied by {assignment.scale:g}, as config.json normalises rewards")
    elif "mean" in checkpoint.config and not checkpoint.config.get("normalize_reward"):
        notes.append(
            "config.json has a mean and std of rewards but does not set normalize_reward: they are not applied"
        )
    if constant:
        notes.append(
            f"scores are the checkpoint's own less {constant:g}, which kwise's head has no bias for; no order changes"
        )
    return notes


def _write_weights(
    checkpoint: Checkpoint,
    assignment: Assignment,
    model: PreTrainedModel,
    dtype: torch.dtype | None,
    folder: Path,
    progress: Callable[[int, int], None],
) -> None:
    """Safetensors, with an index if there are several, and their dtype into the config."""
    planned = {
        name: torch.empty_like(tensor, dtype=dtype or checkpoint.tensors[assignment.sources[name][0]].dtype)
        for name, tensor in model.state_dict().items()
    }
    if assignment.scale != 1:
        planned[HEAD_WEIGHT] = planned[HEAD_WEIGHT].to(dtype or torch.float32)
    model.config.dtype = next(iter(planned.values())).dtype
    shards = split_torch_state_dict_into_shards(planned, max_shard_size=SHARD)
    done = 0
    for file, names in shards.filename_to_tensors.items():
        tensors = {}
        for name in names:
            tensor, plan = checked(checkpoint, assignment.sources[name]), planned[name]
            if name == HEAD_WEIGHT and assignment.scale != 1:
                tensor = tensor.float() * assignment.scale
            if tensor.shape != plan.shape:  # an embedding that got a pad token: nothing reads its row
                tensor = torch.cat([tensor, tensor.new_zeros(len(plan) - len(tensor), plan.shape[1])])
            tensors[name] = tensor.to(plan.dtype).contiguous()
            if not finite(tensors[name]):
                raise ValueError(f"{assignment.sources[name][0]} has values too large for {plan.dtype}")
            done += 1
            progress(done, len(planned))
        save_file(tensors, folder / file, metadata={"format": "pt"})
    if shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
