"""What the head sees: hidden states of a frozen backbone, computed once and kept on disk."""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
import xxhash
from transformers import PreTrainedModel

from kwise.model import backbone
from kwise.model.attention import hidden_states
from kwise.model.reward_model import WINDOW, map_rows
from kwise.records import EncodedRanking, Row


def cached_features(
    model: PreTrainedModel,
    encoded: Sequence[EncodedRanking],
    folder: str | os.PathLike[str],
    layers: Sequence[int],
    bf16: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[int, np.ndarray]:
    """[R, d] float32 features of all responses of ``encoded``, in order, for each of ``layers``, memory-mapped from ``folder``.

    The features of layer n are what the model cut after n decoder layers gives, its final norm included; all layers come
    from one forward pass. What ``compute_features`` left is used, by however many processes; the rest is computed here. Only
    one process may call this at a time. Disk: 4 d bytes a response and layer. Else as ``compute_features``.
    """
    paths = compute_features(model, encoded, folder, layers, bf16, progress)
    width = _width(model)
    for path in paths.values():
        _put_together(path, encoded, 4 * width)
    return {
        layer: np.memmap(path, dtype=np.float32, mode="r", shape=(_ends(encoded)[-1], width))
        for layer, path in paths.items()
    }


def compute_features(
    model: PreTrainedModel,
    encoded: Sequence[EncodedRanking],
    folder: str | os.PathLike[str],
    layers: Sequence[int],
    bf16: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    share: tuple[int, int] = (0, 1),
) -> dict[int, Path]:
    """Compute what is missing of ``cached_features``, or of it only ``share`` (i, n): every n-th block, from the i-th on.

    A block is ``WINDOW`` rankings. It has a file of its own for each layer, until ``cached_features`` puts all blocks
    together; one that was cut short is computed again. So a run that was cut off goes on where it stopped, with any number of
    processes, and windows are packed alike whoever computes them: the bytes do not depend on that. Gives the file of each
    layer. A file's name is a hash of the weights, the token ids and the precision, and the layer. ``bf16`` runs the backbone
    under bfloat16 autocast. ``progress`` is told how many responses of the share are done, and of how many. Raises
    ``ValueError`` for a layer that the model has not.
    """
    depth = len(backbone.decoder_layers(model))
    if max(layers) > depth:
        raise ValueError(f"there is no layer {max(layers)}: the model has {depth}")
    key, ends, bytes_each = _key(model, encoded, bf16), _ends(encoded), 4 * _width(model)
    paths = {layer: Path(folder, f"{key}.layer{layer}.f32") for layer in layers}
    Path(folder).mkdir(parents=True, exist_ok=True)
    own = _blocks(encoded)[share[0] :: share[1]]
    done, total = 0, sum(int(ends[last] - ends[first]) for first, last in own)
    for first, last in own:
        whole = (ends[last] - ends[first]) * bytes_each
        missing = {
            layer: part
            for layer, path in paths.items()
            if _size(path) < ends[last] * bytes_each and _size(part := _part(path, first, last)) < whole
        }
        if missing:
            found = torch.cat(list(_compute(model, encoded[first:last], list(missing), bf16))).float()
            for part, states in zip(missing.values(), found.unbind(1), strict=True):
                # a part of the right size is taken as whole: it must have reached the disk
                with part.open("wb") as file:
                    file.write(states.numpy().tobytes())
                    file.flush()
                    os.fsync(file.fileno())
        done += int(ends[last] - ends[first])
        progress(done, total)
    return paths


def _blocks(encoded: Sequence[EncodedRanking]) -> list[tuple[int, int]]:
    """First ranking of each block, and the one after its last."""
    return [(first, min(first + WINDOW, len(encoded))) for first in range(0, len(encoded), WINDOW)]


def _ends(encoded: Sequence[EncodedRanking]) -> np.ndarray:
    """[N + 1] how many responses there are before each of N rankings, and in all."""
    return np.cumsum([0, *(len(item.suffixes) for item in encoded)])


def _width(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config().hidden_size)


def _part(path: Path, first: int, last: int) -> Path:
    return path.with_name(f"{path.name}.{first}-{last}")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _put_together(path: Path, encoded: Sequence[EncodedRanking], bytes_each: int) -> None:
    """Append the blocks of ``path`` to it, in order; each goes when it has reached the disk there."""
    ends = _ends(encoded)
    with path.open("ab") as whole:
        for first, last in _blocks(encoded):
            if _size(path) >= ends[last] * bytes_each:
                continue
            whole.truncate(int(ends[first]) * bytes_each)  # what an earlier call was killed at
            with _part(path, first, last).open("rb") as part:
                shutil.copyfileobj(part, whole)
            whole.flush()
            os.fsync(whole.fileno())
            _part(path, first, last).unlink()
    for left in path.parent.glob(f"{path.name}.*"):  # of a call that was killed before it could remove one
        left.unlink()


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
    backbone = model.base_model
    # buffers that no file has hold what the config makes of positions
    for name, tensor in (*backbone.state_dict().items(), *backbone.named_buffers()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    for item in encoded:
        for ids in (item.prefix, *item.suffixes, item.reward_at):
            digest.update(np.asarray([len(ids), *ids], dtype=np.int64).tobytes())
    return str(digest.hexdigest())
