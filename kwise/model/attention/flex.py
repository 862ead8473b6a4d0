"""The rule as a block mask of torch's FlexAttention, compiled by transformers: second choice on CUDA.

Any head size and soft-capping, at the price of a compilation and of a block mask for every row.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import PreTrainedModel
from transformers.integrations.flex_attention import flex_attention_forward

from kwise.model.attention import blockwise
from kwise.model.attention.rule import layer_types, window_of
from kwise.records import Row

BLOCK = 128  # tokens; the kernel skips blocks of this size in which nobody sees anybody


def block_mask(row: Row, model: PreTrainedModel) -> BlockMask | dict[str, BlockMask]:
    """``rule.dense_mask`` in FlexAttention's form. Making it looks at all N x N pairs once, block by block of memory."""
    ranking, response, positions = (
        torch.tensor(each, device=model.device) for each in (row.ranking, row.response, row.positions)
    )

    def seen(_batch: Any, _head: Any, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return (k <= q) & (ranking[q] == ranking[k]) & ((response[q] == response[k]) | (response[k] == 0))

    size, window = len(row.ids), window_of(model)

    def made(rule: Callable[..., torch.Tensor]) -> BlockMask:
        return create_block_mask(rule, None, None, size, size, device=str(model.device), BLOCK_SIZE=BLOCK)

    if window is None:
        return made(seen)

    def near(batch: Any, head: Any, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return seen(batch, head, q, k) & (positions[q] - positions[k] < window)

    return made(near) if layer_types(model) is None else {"full_attention": made(seen), "sliding_attention": made(near)}


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | BlockMask | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Shapes as in ``blockwise.attention``, which runs plain calls."""
    if not isinstance(attention_mask, BlockMask):
        return blockwise.attention(module, query, key, value, attention_mask, scaling, **options)
    query, key = query.to(value.dtype), key.to(value.dtype)
    row: tuple[torch.Tensor, torch.Tensor | None]
    row = flex_attention_forward(module, query, key, value, attention_mask, scaling, **options)
    return row
