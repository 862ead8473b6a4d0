"""The rule block by block: no N x N mask, no work on pairs of tokens that do not see each other.

For each ranking one causal call over the prefix and one call per response over the keys [prefix, own tokens]. Runs on any
device; sliding windows, soft-capped logits, attention sinks and dropout included, the middle two in plain arithmetic.
"""

from typing import Any

import torch
import torch.nn.functional as F
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from kwise.model.attention.rule import Spans


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
    """An attention function for transformers' ``AttentionInterface``: [1, H, N, D] queries, [1, H_kv, N, D] keys, values of
    their own width [1, H_kv, N, V] -> [1, N, H, V].

    Without ``row_spans`` (a plain call of the model, any batch) it is transformers' own SDPA attention, or, with what that
    leaves out (soft-capping, sinks), plain arithmetic on the same mask.
    """
    if row_spans is None:
        if softcap is None and s_aux is None:
            options |= {"dropout": dropout, "scaling": scaling}
            plain: tuple[torch.Tensor, None] = sdpa_attention_forward(
                module, query, key, value, attention_mask, **options
            )
            return plain
        length = query.shape[2]
        allowed = attention_mask if attention_mask is not None else causal(length, key.shape[2], None, query.device)
        q, k, v = (x.unflatten(1, (key.shape[1], -1)) for x in (query, key, value))
        sinks = None if s_aux is None else s_aux.view(key.shape[1], -1, 1, 1)
        if allowed.dim() == 4:
            allowed = allowed.unsqueeze(2)
        return arithmetic(q, k, v, allowed, scaling, dropout, softcap, sinks).flatten(1, 2).transpose(1, 2), None
    q, k, v = by_key_head(query, key, value)
    sinks = None if s_aux is None else s_aux.view(key.shape[1], -1, 1, 1)

    def attend(queries: tuple[int, int], *keys: tuple[int, int]) -> torch.Tensor:
        ks, vs = (
            x[:, :, slice(*keys[0])] if len(keys) == 1 else torch.cat([x[:, :, slice(*each)] for each in keys], 2)
            for x in (k, v)
        )
        qs = q[:, :, slice(*queries)]
        n, m = qs.shape[2], ks.shape[2]
        window = sliding_window if sliding_window is not None and sliding_window < m else None
        if softcap is not None or sinks is not None:
            allowed = causal(n, m, window, q.device)
            return arithmetic(qs, ks, vs, allowed, scaling, dropout, softcap, sinks)
        mask = None if n == m and window is None else causal(n, m, window, q.device)
        ks, vs = (x.expand(-1, q.shape[1], -1, -1) for x in (ks, vs))
        return F.scaled_dot_product_attention(
            qs, ks, vs, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling
        )

    parts = []
    for (start, end), *responses in row_spans:
        if end > start:
            parts.append(attend((start, end), (start, end)))
        # of the prefix a response's first token sees no more than the last sliding_window - 1
        near = start if sliding_window is None else max(start, end - sliding_window + 1)
        parts += [attend(own, (near, end), own) for own in responses]
    return torch.cat(parts, 2).flatten(0, 1).transpose(0, 1).unsqueeze(0), None


def by_key_head(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries as [H_kv, H / H_kv, N, D], keys and values as [H_kv, 1, N, D], views all.

    Under autocast rotary embedding leaves queries and keys in float32 and values in bfloat16: they follow the values.
    """
    q = query[0].unflatten(0, (key.shape[1], -1)).to(value.dtype)
    return q, key[0].unsqueeze(1).to(value.dtype), value[0].unsqueeze(1)


def causal(n: int, m: int, window: int | None, device: torch.device) -> torch.Tensor:
    """[n, m] bool: the last of n queries stands at the last of m keys, and each sees itself and ``window`` - 1 before."""
    seen = torch.ones(n, m, dtype=torch.bool, device=device).tril(m - n)
    return seen if window is None else seen.triu(m - n - window + 1)


def arithmetic(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    scaling: float | None,
    dropout: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """[..., n, D] queries, [..., m, D] keys, [..., m, V] values -> [..., n, V]; softmax in float32 or wider.

    ``mask`` is bool (True: seen) or additive. ``softcap`` c turns a logit s into c tanh(s / c) (Gemma 2, arXiv 2408.00118);
    ``sinks``, one logit a head, take part in the softmax and have no value (gpt-oss).
    """
    logits = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logits = logits.masked_fill(~mask, torch.finfo(q.dtype).min) if mask.dtype == torch.bool else logits + mask
    if sinks is None:
        weights = torch.softmax(logits, -1)
    else:
        sink = sinks.to(logits.dtype).expand(*logits.shape[:-1], 1)
        weights = torch.softmax(torch.cat([logits, sink], -1), -1)[..., :-1]
    return F.dropout(weights, dropout).to(v.dtype) @ v
