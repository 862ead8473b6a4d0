"""The last decoder layer's MLP, run on reward tokens only: no layer follows that could read what it makes of the others.

Hooks on the layer's two modules, so no model file is touched: the attention hears ``row_rewards`` (``row_inputs``) where a pass
carries it, and the MLP, which is told nothing, goes by that. Every other call of the model is left alone.
"""

import threading
from typing import Any

import torch
from transformers import PreTrainedModel

from kwise.model.backbone import decoder_layers


class _Now(threading.local):
    """Of the last layer that this thread is in: where rewards are read (``heard``; ``taken`` within the MLP), and of how many
    tokens. A thread's own, since servers score with one model in several threads."""

    heard: torch.Tensor | None = None
    taken: torch.Tensor | None = None
    tokens = 0


_now = _Now()


def skip_unread(model: PreTrainedModel) -> None:
    """Set the hooks, once. A decoder without a list of layers, or whose last has no such two modules, runs rows whole."""
    try:
        layer = decoder_layers(model)[-1]
    except ValueError:  # no one list: the saving is not worth refusing a decoder for
        return
    attention = getattr(layer, "self_attn", None) or getattr(layer, "attention", None)
    mlp = getattr(layer, "mlp", None)
    if attention is not None and mlp is not None and _gather not in mlp._forward_pre_hooks.values():
        attention.register_forward_pre_hook(_hear, with_kwargs=True)
        mlp.register_forward_pre_hook(_gather, with_kwargs=True)
        mlp.register_forward_hook(_scatter)


def _hear(attention: torch.nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
    """Within the layer and not before it: that is what gradient checkpointing runs again, when the pass is long over."""
    _now.heard = options.get("row_rewards")


def _gather(mlp: torch.nn.Module, inputs: tuple[torch.Tensor, ...], options: dict[str, Any]) -> Any:
    """[1, N, d] -> [1, R, d]. An MLP that gets more than the hidden states (a token's id, to route it by) runs whole."""
    _now.taken, _now.heard = (None if options or len(inputs) > 1 else _now.heard), None
    if _now.taken is None:
        return None
    _now.tokens = inputs[0].shape[1]
    return (inputs[0][:, _now.taken],), options


def _scatter(mlp: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: Any) -> Any:
    """[1, R, d] -> [1, N, d], zeros where no reward is read; of a mixture's outputs the first is the hidden states."""
    if _now.taken is None:
        return None
    rewards, _now.taken = _now.taken, None
    states, *rest = output if isinstance(output, tuple) else (output,)
    whole = states.new_zeros(1, _now.tokens, states.shape[-1]).index_copy(1, rewards, states)
    return (whole, *rest) if isinstance(output, tuple) else whole
