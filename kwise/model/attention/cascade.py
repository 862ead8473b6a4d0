"""The rule in two passes merged by log-sum-exp, on the CPU: own block, and all responses of a ranking over its prefix.

Attention over the keys [prefix, own] is a mean of attention over each, weighted by the mass that each has in the common
softmax: with log-sum-exps l_p and l_o the prefix's share is sigmoid(l_p - l_o). Backward calls the flash kernel of each
block with the *merged* output and log-sum-exp, which makes its softmax weights those of the whole (as in ring attention,
arXiv 2310.01889), so nothing is computed twice, no keys are copied and no mask is made.

The kernels are private operators of torch: ``fault`` compares them with plain attention before they are relied on.
"""

import logging
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from kwise.model.attention import blockwise
from kwise.model.attention.rule import Spans

logger = logging.getLogger(__name__)
_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
At = tuple[slice, slice, slice]
# In a causal block of at most SKIPPING tokens the kernels compute the whole square. They get it in pieces of CHUNK queries over
# the keys up to the last of them, which need a mask at their end: a quarter faster forward and a fifth backward.
SKIPPING, CHUNK = 768, 96


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    row_spans: Spans | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """As ``blockwise.attention``, which runs what the kernels cannot: plain calls, windows that cut, caps, sinks, dropout."""
    too_long = sliding_window is not None and row_spans is not None and longest(row_spans) > sliding_window
    elsewhere = query.device.type != "cpu"  # the model was moved since the backend was chosen
    if row_spans is None or too_long or dropout or softcap is not None or s_aux is not None or elsewhere:
        options |= {"sliding_window": sliding_window, "softcap": softcap, "s_aux": s_aux}
        return blockwise.attention(
            module, query, key, value, attention_mask, scaling, dropout, row_spans=row_spans, **options
        )
    q, k, v = blockwise.by_key_head(query, key, value)
    out = Cascade.apply(q, k, v, row_spans, scaling)  # type: ignore[no-untyped-call]
    return out.flatten(1, 2).unsqueeze(0), None


def longest(spans: Spans) -> int:
    """Tokens of the longest sequence: a prefix and one of its responses."""
    return max(end - start + max((b - a for a, b in own), default=0) for (start, end), *own in spans)


class Cascade(torch.autograd.Function):
    """q [H_kv, G, N, D], k and v [H_kv, 1, N, D] -> [N, H_kv, G, D], the layout that the output projection reads."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spans: Spans, scale: float | None) -> Any:
        """Every token's own block, then every response over its prefix, merged in place."""
        k, v = (x.expand(-1, q.shape[1], -1, -1) for x in (k, v))
        rows = q.new_empty(q.shape[2], *q.shape[:2], q.shape[3])
        out = rows.permute(1, 2, 0, 3)
        lse = q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
        for own, keys, over_prefix, causal, mask in _calls(spans, q):
            part, mass = _forward(q[own], k[keys], v[keys], 0.0, causal, attn_mask=mask, scale=scale)
            if over_prefix:
                out[own].lerp_(part, torch.sigmoid(mass - lse[own]).to(part.dtype).unsqueeze(-1))
                lse[own] = torch.logaddexp(mass, lse[own])
            else:
                out[own], lse[own] = part, mass
        ctx.save_for_backward(q, k, v, rows, lse)
        ctx.spans, ctx.scale = spans, scale
        return rows

    @staticmethod
    def backward(ctx: Any, grad_rows: torch.Tensor) -> Any:
        """Each call's flash backward with the merged output and log-sum-exp."""
        q, k, v, rows, lse = ctx.saved_tensors
        out, grad = rows.permute(1, 2, 0, 3), grad_rows.permute(1, 2, 0, 3)
        dq, dk, dv = torch.empty_like(q), q.new_zeros(k.shape), q.new_zeros(v.shape)
        for own, keys, over_prefix, causal, mask in _calls(ctx.spans, q):
            inputs = grad[own], q[own], k[keys], v[keys], out[own], lse[own]
            dq_part, dk_part, dv_part = _backward(*inputs, 0.0, causal, attn_mask=mask, scale=ctx.scale)
            if over_prefix:
                dq[own] += dq_part
            else:
                dq[own] = dq_part
            dk[keys] += dk_part
            dv[keys] += dv_part
        return dq, dk.sum(1, keepdim=True), dv.sum(1, keepdim=True), None, None


class Call(NamedTuple):
    """Which queries meet which keys: all of them, or by ``causal`` or the additive ``mask``."""

    queries: At
    keys: At
    over_prefix: bool
    causal: bool = False
    mask: torch.Tensor | None = None


def _calls(spans: Spans, q: torch.Tensor) -> Iterator[Call]:
    """Each prefix and response itself, then all responses of a ranking over its prefix.

    Every token comes in one call of the first kind, and before those of the second: the former assign, the latter add.
    """
    seen = blockwise.causal(CHUNK, SKIPPING, None, q.device)
    mask = torch.zeros_like(seen, dtype=q.dtype).masked_fill_(~seen, -torch.inf)[None, None]
    for (start, end), *responses in spans:
        for first, last in [(start, end), *responses]:
            chunk = CHUNK if last - first <= SKIPPING else last - first
            for a in range(first, last, chunk):
                b = min(a + chunk, last)
                at_end = None if a == first else mask[..., a - b :, first - b :]
                yield Call(_tokens(a, b), _tokens(first, b), False, at_end is None, at_end)
        if end > start and responses:
            yield Call(_tokens(responses[0][0], responses[-1][1]), _tokens(start, end), True)


def _tokens(first: int, end: int) -> At:
    return slice(None), slice(None), slice(first, end)


@cache
def fault() -> str | None:
    """What is wrong with this torch's private kernels, or None: values and gradients against plain attention, once. A fault is
    logged as a warning."""
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode(False):
        found = _fault(generator)
    if found:
        logger.warning("attention 'cascade' is not used: %s", found)
    return found


def _fault(generator: torch.Generator) -> str | None:
    floats: dict[str, Any] = {"generator": generator, "dtype": torch.float32, "device": "cpu"}
    end = 11 + CHUNK + 8  # the last response is run in two pieces
    q, k, v = (torch.randn(2, heads, end, 8, **floats).requires_grad_() for heads in (2, 1, 1))
    spans = Spans([[(0, 6), (6, 11), (11, end)]])
    found = wanted = torch.zeros(())
    try:
        with torch.enable_grad(), torch.autocast("cpu", enabled=False):
            out = Cascade.apply(q, k, v, spans, None)  # type: ignore[no-untyped-call]
            weight = torch.randn(out.shape, **floats)
            found = torch.cat([x.flatten() for x in (out, *torch.autograd.grad((out * weight).sum(), (q, k, v)))])
            seen = blockwise.causal(end, end, None, q.device)
            seen[11:, 6:11] = False
            k_wide, v_wide = (x.expand(-1, 2, -1, -1) for x in (k, v))
            plain = F.scaled_dot_product_attention(q, k_wide, v_wide, attn_mask=seen).permute(2, 0, 1, 3)
            wanted = torch.cat([x.flatten() for x in (plain, *torch.autograd.grad((plain * weight).sum(), (q, k, v)))])
    except (RuntimeError, TypeError, AttributeError, NotImplementedError) as refusal:  # how a changed operator fails
        return f"torch {torch.__version__} refuses its flash kernels: {refusal}"
    error = (found - wanted).abs().max().item()
    return None if error < 1e-4 else f"torch {torch.__version__}'s flash kernels are off by {error:.1e}"
