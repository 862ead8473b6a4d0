"""What a decoder asks of its attention function, learned by asking it."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from kwise.model.attention.rule import layer_types, window_of

LISTENER = "kwise_listener"


@dataclass(frozen=True)
class Demands:
    """``own``: the stock implementation the decoder runs by itself. ``foreign``: why its attention cannot be exchanged from
    outside, or None. ``capped``, ``sinks``: does a layer soft-cap its logits, or have attention sinks. ``uneven_heads``: a reason
    where keys and values differ in width, or None. ``head_size``: the width of a head. ``dropout``: of attention, in training."""

    own: str
    foreign: str | None = None
    capped: bool = False
    sinks: bool = False
    uneven_heads: str | None = None
    head_size: int = 0
    dropout: float = 0.0


@torch.no_grad()
def demands(model: PreTrainedModel) -> Demands:
    """Run two tokens through ``model`` with an attention function that only notes what each layer asks for.

    A decoder whose windowed layers (by its config) do not tell the function of their window is ``foreign``: only the dense
    mask can give it one.
    """
    own = "sdpa" if model._supports_sdpa else "eager"
    if not getattr(model, "_supports_attention_backend", False):
        return Demands(own, "its attention cannot be exchanged from outside")
    heard: list[dict[str, Any]] = []

    def listen(module: torch.nn.Module, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any) -> Any:
        heard.append({"key": key.shape[-1], "value": value.shape[-1], **options})
        known = {name: options.get(name) for name in ("dropout", "scaling")}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **known)

    AttentionInterface.register(LISTENER, listen)
    AttentionMaskInterface.register(LISTENER, sdpa_mask)
    before, training = model.config._attn_implementation, model.training
    model.eval()  # dropout would draw from the caller's random numbers
    model.set_attn_implementation(LISTENER)
    try:
        model.base_model(input_ids=torch.tensor([[1, 2]], device=model.device), use_cache=False)
    finally:
        model.set_attn_implementation(before)
        model.train(training)
    types = layer_types(model)
    windowed = types.count("sliding_attention") if types else len(heard)
    told = sum(each.get("sliding_window") is not None for each in heard)
    foreign = None
    if not heard:
        foreign = "its attention cannot be exchanged from outside"
    elif any(each.get("position_bias") is not None for each in heard):
        foreign = "its attention adds a bias of its own"
    elif told != (windowed if window_of(model) is not None else 0):
        foreign = "some layers attend to a sliding window that their attention function is not told of"
    uneven = any(each["key"] != each["value"] for each in heard)
    return Demands(
        own,
        foreign,
        any(each.get("softcap") is not None for each in heard),
        any(each.get("s_aux") is not None for each in heard),
        "keys and values differ in width" if uneven else None,
        max((each["key"] for each in heard), default=0),
        getattr(model.config.get_text_config(), "attention_dropout", 0.0) or 0.0,
    )
