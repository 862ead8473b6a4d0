"""Reward-model checkpoints of other trainers: their tensors by name, and where each belongs in a classifier with head ``score``.

The layouts were read in the trainers' public code: Starling's model cards and ``reward-model-training/models.py``, OpenRLHF's
``models/model.py``, TRL's ``modeling_value_head.py``, LLaMA-Factory's ``train/callbacks.py``, DeepSpeed-Chat's and trlX's
``reward_model.py``.
"""

import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel

from kwise.model import backbone

PICKLES = (".bin", ".pt", ".pth")
NOT_WEIGHTS = re.compile(
    r"(training_args|optimizer|scheduler|scaler|rng_state|random_states).*"
)  # what Trainers keep beside
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
HEAD_FILE = "value_head.bin"  # LLaMA-Factory's, beside the weights
LM_HEAD = re.compile(rf"([a-z_]+\.)*({'|'.join(backbone.LM_HEADS)})\.(weight|bias)")  # of no layer, which has a number
BUFFERS = re.compile(
    r".*(rotary_emb\.inv_freq|\.attn\.(masked_)?bias|\.attention\.(masked_)?bias)"
)  # computed, not learned
HEAD_WEIGHT = f"{backbone.HEAD}.weight"
SEVERAL_LAYERS = re.compile(r"(v_head|score|value_head)\.\w*\d\.(weight|bias)")  # trlX's critic, Qwen's reward models


class Checkpoint(NamedTuple):
    """``tensors`` are mapped from their files, so that nothing is read before it is used; ``files`` says which file each is in.
    ``config`` is config.json where there is one."""

    tensors: dict[str, torch.Tensor]
    files: dict[str, str]
    config: dict[str, Any]


class Layout(NamedTuple):
    """``bodies``: what the names of the decoder's tensors begin with (``{base}``: as transformers calls the decoder).
    ``head``: the name of the linear head (``{head}``: as config.json or a standard folder has it). ``max_length``: what the
    published code cuts to, None for the decoder's context."""

    bodies: tuple[str, ...]
    head: str
    max_length: int | None = None


LAYOUTS = {
    # Starling 7B holds its decoder up to twice, under transformer. and model.model.; 34B once; so does trlX's reward model
    "starling": Layout(("transformer.", "model.model.", "{base}."), "v_head", 2048),
    "deepspeed_chat": Layout(("rwtransformer.",), "v_head"),
    # also LLaMA-Factory's, which trains TRL's value head; pretrained_model. is what it leaves under ZeRO-3
    "trl": Layout(("{base}.", "pretrained_model.{base}."), "v_head.summary"),
    # also the standard folder
    "openrlhf": Layout(("{base}.",), "{head}"),
}


class Assignment(NamedTuple):
    """Which tensors of a checkpoint become which of the model.

    ``sources``: for every tensor of the model the one it is read from, then those that must equal it. ``dropped``: tensors
    with no place in a reward model, by kind. ``bias``: the name of the head's bias, which a bias-free head cannot hold, or
    None. The checkpoint's own code gives ``scale * (head(x) + bias) + shift``.
    """

    sources: dict[str, list[str]]
    dropped: dict[str, list[str]]
    bias: str | None
    scale: float
    shift: float


def open_checkpoint(name: str | os.PathLike[str]) -> Checkpoint:
    """The tensors of a file, a folder or a hub id, mapped and not read. In a folder safetensors go before pickles.

    Pickles are opened with ``weights_only``, so that no code in them runs. Raises ``ValueError`` for one that has code in it,
    for what cannot be read, for adapters, and for a tensor that two files hold.
    """
    path = Path(name)
    if not path.exists():
        path = _download(str(name))
    folder = path if path.is_dir() else path.parent
    files = _weights(path) if path.is_dir() else [path]
    tensors: dict[str, torch.Tensor] = {}
    where: dict[str, str] = {}
    for file in files:
        for key, tensor in _open(file).items():
            if key in tensors:
                raise ValueError(f"{name} holds '{key}' twice, in {where[key]} and in {file.name}; give one file")
            tensors[key], where[key] = tensor, file.name
    return Checkpoint(tensors, where, _config(folder))


def _download(name: str) -> Path:
    try:
        path = Path(snapshot_download(name, allow_patterns=["*.safetensors", "config.json"]))
        if not any(path.glob("*.safetensors")):
            path = Path(snapshot_download(name, allow_patterns=[f"*{kind}" for kind in PICKLES] + ["config.json"]))
    except (OSError, ValueError) as error:  # what the hub's client raises for ids, missing repositories and no network
        raise ValueError(f"{name} is no file or folder here, and as a hub id it cannot be had: {error}") from error
    return path


def _weights(folder: Path) -> list[Path]:
    adapters = [each for each in ADAPTERS if (folder / each).exists()]
    if adapters:
        raise ValueError(f"{folder} holds an adapter ({adapters[0]}): merge it into its base model first")
    pickles = [each for kind in PICKLES for each in folder.glob(f"*{kind}") if not NOT_WEIGHTS.match(each.name)]
    found = sorted(folder.glob("*.safetensors"))
    heads = [folder / HEAD_FILE] if found and not (folder / HEAD_FILE).with_suffix(".safetensors").exists() else []
    found += [each for each in heads if each.exists()]
    if not found and not pickles:
        raise ValueError(f"{folder} holds no weights: no .safetensors, {', '.join(PICKLES)} file")
    return found or sorted(pickles)


def _open(file: Path) -> dict[str, torch.Tensor]:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        # files from before torch 1.6 are no archives and cannot be mapped: they are read whole
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:  # its own words advise loading the file with code and all
        asked = re.search(r"GLOBAL (\S+)", str(error))
        if asked is None:
            raise ValueError(f"{file} cannot be read: it is no pickle of tensors") from error
        raise ValueError(
            f"{file} is refused, and nothing in it was run: beside tensors the pickle holds code ({asked[1]}), which loading it "
            "would run. Ask its author for safetensors, or for a file of tensors alone"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, SafetensorError) as error:  # cut short, or no weights at all
        raise ValueError(f"{file} cannot be read: {error}") from error
    strangers = (
        [key for key, value in found.items() if not isinstance(value, torch.Tensor)] if _named(found) else ["it"]
    )
    if strangers:
        raise ValueError(f"{file} must hold tensors by name and nothing else, but {strangers[0]} is no tensor")
    return found  # type: ignore[no-any-return]


def _named(found: object) -> bool:
    return isinstance(found, dict) and all(isinstance(key, str) for key in found)


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    return found if isinstance(found, dict) else {}


def detect_layout(checkpoint: Checkpoint) -> str:
    """The layout whose head the checkpoint holds. Raises ``ValueError`` for a head of several layers and for none."""
    names = checkpoint.tensors.keys()
    several = sorted(filter(SEVERAL_LAYERS.fullmatch, names))
    if several:
        raise ValueError(
            f"the checkpoint's head has several layers ({', '.join(several)}); kwise's is one linear unit, so it has no place "
            "for them"
        )
    if "v_head.weight" in names:
        return "deepspeed_chat" if any(name.startswith("rwtransformer.") for name in names) else "starling"
    if "v_head.summary.weight" in names:
        return "trl"
    if f"{_own_head(checkpoint)}.weight" in names:
        return "openrlhf"
    known = ", ".join(("v_head.weight", "v_head.summary.weight", f"{_own_head(checkpoint)}.weight"))
    raise ValueError(f"the checkpoint has no head that kwise knows, none of {known}")


def _own_head(checkpoint: Checkpoint) -> str:
    """The head of a folder whose config.json may name it, as OpenRLHF's does."""
    named = checkpoint.config.get("value_head_prefix")
    return named if isinstance(named, str) else "value_head" if "value_head.weight" in checkpoint.tensors else "score"


def vocab_size(checkpoint: Checkpoint, layout: str, model: PreTrainedModel) -> int | None:
    """How many rows the checkpoint's embedding has: trainers pad it. None where it has no embedding at all."""
    modules = {id(module): name for name, module in model.named_modules()}
    embedding = f"{modules[id(model.get_input_embeddings())]}.weight"
    where = _places(checkpoint, layout, model)
    return next((len(tensor) for name, tensor in checkpoint.tensors.items() if where(name) == embedding), None)


def assign(checkpoint: Checkpoint, layout: str, model: PreTrainedModel) -> Assignment:
    """Account for every tensor of ``checkpoint`` and of ``model`` (any device; only names and shapes count).

    Raises ``ValueError`` that names every tensor that is missing, has no place, has another shape, or is not of floats.
    """
    where, head = _places(checkpoint, layout, model), _head_name(checkpoint, layout)
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    sources: dict[str, list[str]] = {name: [] for name in shapes}
    dropped: dict[str, list[str]] = {}
    bias, problems = None, []
    for name, tensor in checkpoint.tensors.items():
        target, shape = where(name), list(tensor.shape)
        if target is not None:
            sources[target].append(name)
            if shape != shapes[target]:
                problems.append(f"{name} has shape {shape} in {checkpoint.files[name]}, {shapes[target]} in the model")
            elif not tensor.is_floating_point():
                problems.append(f"{name} holds {str(tensor.dtype).removeprefix('torch.')}, not floats: it is quantised")
        elif name == f"{head}.bias" and shape == [1]:
            bias = name
        elif LM_HEAD.fullmatch(name):
            dropped.setdefault("lm_head", []).append(name)
        elif BUFFERS.fullmatch(name):
            dropped.setdefault("buffers", []).append(name)
        else:
            problems.append(f"the model has no place for {name}")
    prefix = LAYOUTS[layout].bodies[0].format(base=model.base_model_prefix)
    lacking = [
        f"{head}.weight" if target == HEAD_WEIGHT else prefix + target.removeprefix(f"{model.base_model_prefix}.")
        for target, found in sources.items()
        if not found
    ]
    problems += [f"the checkpoint lacks {', '.join(lacking)}"] if lacking else []
    if problems:
        raise ValueError(f"in layout '{layout}' it does not fit {type(model).__name__}: {'; '.join(problems)}")
    scale, shift = _normalisation(checkpoint.config) if layout == "openrlhf" else (1.0, 0.0)
    return Assignment(sources, dropped, bias, scale, shift)


def _places(checkpoint: Checkpoint, layout: str, model: PreTrainedModel) -> Callable[[str], str | None]:
    """Which tensor of ``model`` a name of the checkpoint stands for, or None."""
    base, head = model.base_model_prefix, _head_name(checkpoint, layout)
    bodies, known = [each.format(base=base) for each in LAYOUTS[layout].bodies], set(model.state_dict())

    def place(name: str) -> str | None:
        if name == f"{head}.weight":
            return HEAD_WEIGHT
        targets = (f"{base}.{name.removeprefix(each)}" for each in bodies if name.startswith(each))
        return next((target for target in targets if target in known), None)

    return place


def _head_name(checkpoint: Checkpoint, layout: str) -> str:
    return LAYOUTS[layout].head.format(head=_own_head(checkpoint))


def _normalisation(config: dict[str, Any]) -> tuple[float, float]:
    """OpenRLHF gives (reward - mean) / std where ``normalize_reward`` is set: the scale and the shift of that."""
    if not config.get("normalize_reward") or "mean" not in config:
        return 1.0, 0.0
    mean, std = config["mean"], config.get("std", 1.0)
    if not all(isinstance(each, int | float) for each in (mean, std)) or not 0 < std < float("inf"):
        raise ValueError(f"config.json normalises rewards by mean {mean!r} and std {std!r}, which are no such numbers")
    return 1 / std, -mean / std


def checked(checkpoint: Checkpoint, names: list[str]) -> torch.Tensor:
    """The tensor of the first of ``names``. Raises ``ValueError`` if one has a NaN or an infinity, or if they differ."""
    first, *copies = names
    for name in names:
        if not finite(checkpoint.tensors[name]):
            raise ValueError(f"{name} in {checkpoint.files[name]} holds NaN or infinite values")
    tensor = checkpoint.tensors[first]
    for name in copies:
        if tensor.dtype != checkpoint.tensors[name].dtype or not torch.equal(tensor, checkpoint.tensors[name]):
            raise ValueError(f"{name} in {checkpoint.files[name]} is no copy of {first}, as it should be: they differ")
    return tensor


def finite(tensor: torch.Tensor) -> bool:
    """No NaN and no infinity, told without a second tensor of its size."""
    return not tensor.numel() or all(bool(torch.isfinite(end)) for end in torch.aminmax(tensor))
