"""A decoder made ready to be trained on rows: its call gives their rewards, and its head beside adapters is trained."""

import types
from typing import Any

import torch
from transformers import PreTrainedModel

from kwise.model import backbone
from kwise.model.reward_model import head_rewards


def train_head(decoder: PreTrainedModel) -> None:
    """Hold the head beside adapters in float32, as peft holds them: in half precision most steps would round to nothing.

    Raises ``ValueError`` for a head that is not trained itself: its adapter would be read by no reward.
    """
    weight = getattr(decoder, backbone.HEAD).weight
    if not weight.requires_grad:
        raise ValueError(
            f"the adapters leave the head as it is: give LoraConfig modules_to_save=['{backbone.HEAD}'], or hand the "
            "LoraConfig to KwiseTrainer as peft_config"
        )
    weight.data = weight.data.to(torch.promote_types(weight.dtype, torch.float32))


def read_rows(model: PreTrainedModel) -> None:
    """Let ``model(..., reward_at=...)`` give the rewards of a row. A call without ``reward_at`` stays the class's own.

    Training must go through the model's call, as engines (DDP, FSDP, PEFT, autocast) hook into that.
    """
    plain = type(model).forward
    # rows have no padding: a token that ends turns may be the base's pad, whose embedding would get no gradient
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            module.padding_idx = None

    def forward(self: PreTrainedModel, *inputs: Any, reward_at: torch.Tensor | None = None, **named: Any) -> Any:
        if reward_at is None:
            return plain(self, *inputs, **named)
        hidden = self.base_model(
            **{name: value for name, value in named.items() if value is not None}
        ).last_hidden_state
        rewards = head_rewards(self, hidden[0, reward_at])
        return rewards.clone()  # FSDP2 hooks into what is returned, which must not be a view

    model.forward = types.MethodType(forward, model)
