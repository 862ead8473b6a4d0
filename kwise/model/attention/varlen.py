"""The rule as one call of a ragged flash kernel, on CUDA: queries as they lie, keys gathered as [prefix, own tokens].

Where keys outnumber queries the kernel aligns the causal mask at the bottom right, so a response's queries over [prefix, own]
need no mask, and a sliding window is the kernel's own. Gradients of the shared prefix add up in the gather's backward.

Which kernel torch runs, and so whether it does that, is the device's business: ``fault`` tries it before it is relied on.
"""

import inspect
import logging
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from kwise.model.attention import blockwise
from kwise.model.attention.rule import Spans

varlen_attn: Any = None
try:
    from torch.nn.attention import varlen

    # without num_splits the order of sums, so the last digits of a score, would depend on the row's other sequences
    if "num_splits" in inspect.signature(varlen.varlen_attn).parameters:
        varlen_attn = varlen.varlen_attn
except ImportError:  # an older torch: set_attention says so
    pass

logger = logging.getLogger(__name__)
HALF = (torch.bfloat16, torch.float16)  # what the kernel takes
DEVICES = ("cuda",)


@dataclass(eq=False)
class Ragged:
    """``keys`` [M] are indices into the row; ``ends_q`` and ``ends_k`` [S + 1] (int32) where each sequence begins and ends. An
    object for the reason that ``Spans`` is one."""

    keys: torch.Tensor
    ends_q: torch.Tensor
    ends_k: torch.Tensor
    longest_q: int
    longest_k: int


def ragged(spans: Spans, device: torch.device | str) -> Ragged:
    """Prefixes and responses as sequences of queries, in the row's order, and the keys that each one sees."""
    keys: list[int] = []
    queries_of, keys_of = [], []
    for (start, end), *responses in spans:
        for a, b in ([(end, end)] if end > start else []) + responses:
            own = [*range(start, end), *range(a, b)]
            keys += own
            keys_of.append(len(own))
            queries_of.append(b - a or end - start)
    ends_q, ends_k = (torch.tensor([0, *each]).cumsum(0).to(device, torch.int32) for each in (queries_of, keys_of))
    return Ragged(torch.tensor(keys, device=device), ends_q, ends_k, max(queries_of), max(keys_of))


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    row_spans: Spans | None = None,
    row_ragged: Ragged | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """As ``blockwise.attention``, which runs what the kernel cannot: plain calls, dropout, and anything but half precision."""
    if row_ragged is None or dropout or value.dtype not in HALF or value.device.type not in DEVICES:
        options |= {"row_spans": row_spans, "sliding_window": sliding_window}
        return blockwise.attention(module, query, key, value, attention_mask, scaling, dropout, **options)
    q, k, v = (x[0].transpose(0, 1).to(value.dtype) for x in (query, key, value))
    out = varlen_attn(
        q,
        k[row_ragged.keys],
        v[row_ragged.keys],
        row_ragged.ends_q,
        row_ragged.ends_k,
        row_ragged.longest_q,
        row_ragged.longest_k,
        scale=scaling,
        window_size=(-1 if sliding_window is None else sliding_window - 1, 0),
        enable_gqa=q.shape[1] != k.shape[1],
        num_splits=1,
    )
    return out.unsqueeze(0), None


@cache
def fault(device: torch.device) -> str | None:
    """What is wrong with the kernel on ``device``, or None: values and gradients against block-wise attention, once, with
    a sliding window and without. A fault is logged as a warning."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        found = _fault(device, None) or _fault(device, 40)
    if found:
        logger.warning("attention 'varlen' is not used: %s", found)
    return found


def _fault(device: torch.device, window: int | None) -> str | None:
    generator = torch.Generator().manual_seed(0)
    row = Spans([[(0, 70), (70, 100), (100, 230)], [(230, 231), (231, 260), (260, 300)], [(300, 340)]])
    shapes = [(1, heads, 340, 64) for heads in (4, 2, 2, 4)]
    *inputs, weight = (torch.randn(shape, generator=generator).to(device, HALF[0]) for shape in shapes)
    results = []
    for run in (attention, blockwise.attention):
        q, k, v = (each.clone().requires_grad_() for each in inputs)
        options: dict[str, Any] = {"row_spans": row, "sliding_window": window}
        try:
            if run is attention:
                options["row_ragged"] = ragged(row, device)
            out, _ = run(torch.nn.Module(), q, k, v, None, **options)
            grads = torch.autograd.grad((out * weight.transpose(1, 2)).sum(), (q, k, v))
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as refusal:  # how kernels refuse
            return f"torch {torch.__version__} refuses its ragged kernel on {device}: {refusal}"
        results.append([each.detach().float() for each in (out, *grads)])
    worst = max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(*results, strict=True))
    # half precision rounds to 0.4 %, a key too many or too few is 10 % and more
    return None if worst < 0.05 else f"torch {torch.__version__}'s ragged kernel on {device} is off by {worst:.1e}"
