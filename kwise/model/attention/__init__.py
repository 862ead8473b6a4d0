"""A row in, the hidden states of its reward tokens out: one rule of who sees whom, several ways to run it.

``rule``       takes a Row        who sees whom, stated once                     gives the dense mask and the blocks
``reference``  the dense mask: N x N, slow, exact, for any decoder that takes a four-dimensional mask
``blockwise``  a call per prefix and per response: any device, windows, caps and sinks
``cascade``    the CPU's flash kernels, prefix and own block merged
``varlen``     CUDA's ragged flash kernel, one call a layer
``flex``       CUDA's FlexAttention
``last_mlp``   the last layer's MLP on reward tokens only, with any backend but ``reference``
``demands``    what a decoder asks of its attention
``exact``      takes a model      two small rankings, in a row and alone          refuses a decoder that rows are not exact for

A backend is an entry of ``BACKENDS``. It registers with transformers' ``AttentionInterface``; no model file is touched.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from kwise.model.attention import blockwise, cascade, flex, varlen
from kwise.model.attention.demands import Demands, demands
from kwise.model.attention.last_mlp import skip_unread
from kwise.model.attention.rule import dense_mask, spans
from kwise.records import Row


class Backend(NamedTuple):
    """``attention`` runs a layer (None: the model's own); ``inputs(row, model)`` are the keyword arguments that it needs beside
    ids and positions; ``unsupported(model, demands)`` says why it cannot run the decoder, or None."""

    attention: Callable[..., Any] | None
    inputs: Callable[[Row, PreTrainedModel], dict[str, Any]]
    unsupported: Callable[[PreTrainedModel, Demands], str | None]


def _by_blocks(row: Row, model: PreTrainedModel) -> dict[str, Any]:
    # transformers hands a four-dimensional mask on as it is; without one it would build N x N of its own
    return {"attention_mask": torch.empty(1, 1, 0, 0, device=model.device), "row_spans": spans(row)}


def _by_ragged_blocks(row: Row, model: PreTrainedModel) -> dict[str, Any]:
    inputs = _by_blocks(row, model)
    return inputs | {"row_ragged": varlen.ragged(inputs["row_spans"], model.device)}


def _no_cascade(model: PreTrainedModel, asked: Demands) -> str | None:
    if model.device.type != "cpu":
        return "its kernels run on the CPU only"
    if asked.capped or asked.sinks:
        return "attention logits are soft-capped or have sinks"
    return asked.foreign or asked.uneven_heads or cascade.fault()


def _no_varlen(model: PreTrainedModel, asked: Demands) -> str | None:
    if model.device.type != "cuda":
        return "its kernel runs on CUDA only"
    if varlen.varlen_attn is None:
        return f"torch {torch.__version__} has no torch.nn.attention.varlen with num_splits"
    if asked.capped or asked.sinks:
        return "attention logits are soft-capped or have sinks"
    if asked.head_size > 256 or asked.head_size % 8:
        return f"attention heads have {asked.head_size} dimensions, the kernel takes multiples of 8 up to 256"
    if torch.cuda.get_device_capability(model.device) < (8, 0):
        return "its kernel needs a card of compute capability 8.0 (Ampere) or later"
    return asked.foreign or asked.uneven_heads or varlen.fault(model.device)


def _no_flex(model: PreTrainedModel, asked: Demands) -> str | None:
    if model.device.type != "cuda":
        return "FlexAttention has no backward on the CPU"
    if asked.sinks or asked.dropout:
        return "attention has sinks or dropout"
    if asked.head_size < 16:
        return f"attention heads have {asked.head_size} dimensions, its kernel needs 16"
    return asked.foreign or asked.uneven_heads


BACKENDS = {
    "reference": Backend(None, lambda row, model: {"attention_mask": dense_mask(row, model)}, lambda *_: None),
    "blockwise": Backend(blockwise.attention, _by_blocks, lambda _, asked: asked.foreign),
    "cascade": Backend(cascade.attention, _by_blocks, _no_cascade),
    "varlen": Backend(varlen.attention, _by_ragged_blocks, _no_varlen),
    "flex": Backend(flex.attention, lambda row, model: {"attention_mask": flex.block_mask(row, model)}, _no_flex),
}
ORDER = ("varlen", "flex", "cascade", "blockwise", "reference")  # "auto" takes the first that supports the decoder
ATTENTION = ("auto", *BACKENDS)
STOCK = ("sdpa", "eager")  # transformers' implementations that take a dense mask: "reference" leaves them as they are
PREFIX = "kwise_"  # of the names under which transformers knows the backends


def set_attention(model: PreTrainedModel, name: str = "auto") -> str:
    """Choose how ``model`` runs rows; gives the name chosen.

    Raises ``ValueError`` for an unknown name and, with the reason, for a backend that does not support the decoder.
    """
    if name not in ATTENTION:
        raise ValueError(f"unknown attention '{name}'; known: {', '.join(ATTENTION)}")
    asked = demands(model)
    reasons = {each: BACKENDS[each].unsupported(model, asked) for each in ORDER}
    if name == "auto":
        name = next(each for each in ORDER if reasons[each] is None)
    elif reasons[name]:
        raise ValueError(f"attention '{name}' does not support {type(model).__name__}: {reasons[name]}; use 'auto'")
    attention = BACKENDS[name].attention
    if attention is not None:
        AttentionInterface.register(PREFIX + name, torch.compiler.disable(attention))
        AttentionMaskInterface.register(PREFIX + name, sdpa_mask)  # for plain calls of the model
        model.set_attn_implementation(PREFIX + name)
        skip_unread(model)
    elif model.config._attn_implementation not in STOCK:
        model.set_attn_implementation(asked.own)
    return name


def attention_of(model: PreTrainedModel) -> str:
    """The backend that ``model`` is set to. Raises ``ValueError`` where that is neither ours nor takes a dense mask."""
    implementation = str(model.config._attn_implementation)
    if implementation in STOCK:
        return "reference"
    if not implementation.startswith(PREFIX):
        raise ValueError(f"the model is set to attention '{implementation}', which runs no rows; call set_attention")
    return implementation.removeprefix(PREFIX)


def reward_tokens(row: Row, model: PreTrainedModel) -> torch.Tensor:
    """[R] where in the row a reward is read, on ``model``'s device."""
    return torch.tensor(row.reward_at, device=model.device)


def row_inputs(row: Row, model: PreTrainedModel) -> dict[str, Any]:
    """Keyword arguments that make ``model``'s backbone read ``row`` by the rule, with the attention it is set to."""
    inputs = {
        "input_ids": torch.tensor([row.ids], device=model.device),
        "position_ids": torch.tensor([row.positions], device=model.device),
        "use_cache": False,
    }
    backend = BACKENDS[attention_of(model)]
    if backend.attention is not None:  # a decoder whose attention can be exchanged hands keywords on
        inputs["row_rewards"] = reward_tokens(row, model)
    return inputs | backend.inputs(row, model)


def hidden_states(model: PreTrainedModel, row: Row) -> torch.Tensor:
    """[R, d] last hidden states, after the final norm, of the row's reward tokens."""
    hidden = model.base_model(**row_inputs(row, model)).last_hidden_state
    return cast(torch.Tensor, hidden[0, row.reward_at])
