"""The last decoder layer's MLP, run on reward tokens only: no layer follows that could read what it makes of the others.

Two hooks around the module and one on its layer, so no model file is touched. They act in passes that carry ``row_rewards``
(``row_inputs``) and leave every other call of the model alone.
"""

from typing import Any

import torch
from transformers import PreTrainedModel

from kwise.model.backbone import decoder_layers


def skip_unread(model: PreTrainedModel) -> None:
    """Set the hooks, once. A decoder without a list of layers, or whose last layer has no ``mlp``, runs rows whole."""
    try:
        layer = decoder_layers(model)[-1]
    except ValueError:  # no one list: the saving is not worth refusing a decoder for
        return
    mlp = getattr(layer, "mlp", None)
    if isinstance(mlp, torch.nn.Module) and _note not in layer._forward_pre_hooks.values():
        layer.register_forward_pre_hook(_note, with_kwargs=True)
        mlp.register_forward_pre_hook(_gather)
        mlp.register_forward_hook(_scatter)


def _note(layer: Any, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
    """Here and not before the pass: gradient checkpointing calls the layer again when the pass is long over."""
    layer.mlp.row_rewards = options.get("row_rewards")


def _gather(mlp: Any, inputs: tuple[torch.Tensor, ...]) -> Any:
    """[1, N, d] -> [1, R, d]."""
    if mlp.row_rewards is None:
        return None
    mlp.row_tokens = inputs[0].shape[1]
    return inputs[0][:, mlp.row_rewards], *inputs[1:]


def _scatter(mlp: Any, inputs: tuple[torch.Tensor, ...], output: Any) -> Any:
    """[1, R, d] -> [1, N, d], zeros where no reward is read; of a mixture's outputs the first is the hidden states."""
    if mlp.row_rewards is None:
        return None
    states, *rest = output if isinstance(output, tuple) else (output,)
    whole = states.new_zeros(1, mlp.row_tokens, states.shape[-1]).index_copy(1, mlp.row_rewards, states)
    return (whole, *rest) if isinstance(output, tuple) else whole
