"""What the head sees: hidden states of a frozen backbone, computed once and kept on disk."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
import xxhash
from transformers import PreTrainedModel

from kwise.model import backbone
from kwise.model.attention import hidden_states
from kwise.model.reward_model import map_rows
from kwise.records import EncodedRanking, Row


def cached_features(
    model: PreTrainedModel,
    encoded: Sequence[EncodedRanking],
    folder: str | os.PathLike[str],
    layers: Sequence[int],
    bf16: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[int, np.ndarray]:
    """[R, d] float32 features of all responses of ``encoded``, in order, for each of ``layers``, memory-mapped from ``folder``.

    The features of layer n are what the model cut after n decoder layers gives, its final norm included; all layers come
    from one forward pass. A file's name is a hash of the weights, the token ids and the precision, and the layer; files are
    appended to as features come, so a run that was cut off goes on where it stopped. ``bf16`` runs the backbone under
    bfloat16 autocast. ``progress`` is told the number of responses done. Disk: 4 d bytes a response and layer. Raises
    ``ValueError`` for a layer that the model has not.
    """
    depth = len(backbone.decoder_layers(model))
    if max(layers) > depth:
        raise ValueError(f"there is no layer {max(layers)}: the model has {depth}")
    sizes = [len(item.suffixes) for item in encoded]
    width = model.config.get_text_config().hidden_size
    key = _key(model, encoded, bf16)
    paths = {layer: Path(folder, f"{key}.layer{layer}.f32") for layer in layers}
    Path(folder).mkdir(parents=True, exist_ok=True)
    have = {layer: path.stat().st_size // (4 * width) if path.exists() else 0 for layer, path in paths.items()}
    short = [layer for layer in layers if have[layer] < sum(sizes)]  # a whole file stays as it is
    rows = min((have[layer] for layer in short), default=sum(sizes))
    ends = np.cumsum(sizes)
    complete = int(np.searchsorted(ends, rows, side="right"))  # rankings that lie whole in every file
    done = int(ends[complete - 1]) if complete else 0
    with ExitStack() as stack:
        files = [stack.enter_context(paths[layer].open("ab")) for layer in short]
        for file in files:
            file.truncate(done * 4 * width)
        progress(done)
        for features in _compute(model, encoded[complete:], short, bf16):
            for file, own in zip(files, features.float().unbind(1), strict=True):
                file.write(own.numpy().tobytes())
                file.flush()
            done += len(features)
            progress(done)
    return {
        layer: np.memmap(path, dtype=np.float32, mode="r", shape=(sum(sizes), width)) for layer, path in paths.items()
    }


def _compute(
    model: PreTrainedModel, encoded: Sequence[EncodedRanking], layers: list[int], bf16: bool
) -> Iterator[torch.Tensor]:
    """[K, layers, d] for each ranking."""
    model.eval()
    with torch.autocast(model.device.type, torch.bfloat16) if bf16 else nullcontext():
        yield from map_rows(model, encoded, partial(layer_states, layers=layers))


def layer_states(model: PreTrainedModel, row: Row, layers: list[int]) -> torch.Tensor:
    """[R, layers, d] hidden states of the row's reward tokens after each of ``layers``, normed as the last one's are."""
    stack = backbone.decoder_layers(model)
    norm = backbone.final_norm(model) if min(layers) < len(stack) else torch.nn.Identity()
    caught: dict[int, torch.Tensor] = {}

    def catch(number: int, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        states = output if isinstance(output, torch.Tensor) else output[0]
        caught[number] = states[0, row.reward_at]

    hooks = [
        stack[n - 1].register_forward_hook(lambda _module, _inputs, output, n=n: catch(n, output))
        for n in layers
        if n < len(stack)
    ]
    try:
        last = hidden_states(model, row)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack([norm(caught[n]) if n in caught else last for n in layers], 1)


def _key(model: PreTrainedModel, encoded: Sequence[EncodedRanking], bf16: bool) -> str:
    digest = xxhash.xxh3_128(f"bf16={bf16}".encode())
    for name, tensor in model.base_model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    for item in encoded:
        for ids in (item.prefix, *item.suffixes, item.reward_at):
            digest.update(np.asarray([len(ids), *ids], dtype=np.int64).tobytes())
    return str(digest.hexdigest())
