"""Who sees whom in a row, stated once, and the dense mask that follows from it.

A token sees itself and, among the tokens before it, those of its own response and those of its own ranking's prefix::

    row            prefix a b | response c d | response e        sees   a b c d e
                                                            a           x . . . .
                                                            b           x x . . .
                                                            c           x x x . .
                                                            d           x x x x .
                                                            e           x x . . x

A layer with a sliding window of w tokens sees, of these, only positions less than w behind.
"""

from collections.abc import Iterator
from itertools import groupby

import torch
from transformers import PreTrainedModel

from kwise.records import Row


class Spans:
    """Per ranking the first and end index of its prefix, then of each response.

    No list, though it is read as one: torch.compile guards every number in a list that it is given, and would compile anew
    for each row.
    """

    def __init__(self, rankings: list[list[tuple[int, int]]]) -> None:
        self.rankings = rankings

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter(self.rankings)


def sees(ranking: torch.Tensor, response: torch.Tensor) -> torch.Tensor:
    """[N] ranking and response numbers (``Row``) -> [N, N] bool, row = the token that looks, column = the one looked at."""
    index = torch.arange(len(ranking), device=ranking.device)
    before = index[None, :] <= index[:, None]
    own_ranking = ranking[None, :] == ranking[:, None]
    own_response = response[None, :] == response[:, None]
    return before & own_ranking & (own_response | (response == 0)[None, :])


def window_of(model: PreTrainedModel) -> int | None:
    """The sliding window of the decoder's windowed layers in tokens, or None where no layer has one."""
    config, types = model.config.get_text_config(), layer_types(model)
    used = getattr(config, "use_sliding_window", True) and (types is None or "sliding_attention" in types)
    return getattr(config, "sliding_window", None) if used else None


def layer_types(model: PreTrainedModel) -> list[str] | None:
    """The kinds of the decoder's layers where its config lists them, as transformers names them."""
    types = getattr(model.config.get_text_config(), "layer_types", None)
    return list(types) if types else None


def dense_mask(row: Row, model: PreTrainedModel) -> torch.Tensor | dict[str, torch.Tensor]:
    """[1, 1, N, N] additive mask in the model's dtype, or one per kind of layer where the decoder lists kinds.

    Additive, because eager attention adds a boolean mask as 0 and 1, in silence.
    """
    positions = torch.tensor(row.positions, device=model.device)
    ranking, response = (torch.tensor(each, device=model.device) for each in (row.ranking, row.response))
    allowed, window = sees(ranking, response), window_of(model)
    mask = _additive(allowed, model.dtype)
    if window is None:
        return mask
    near = _additive(allowed & (positions[:, None] - positions[None, :] < window), model.dtype)
    return near if layer_types(model) is None else {"full_attention": mask, "sliding_attention": near}


def _additive(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill_(~allowed, torch.finfo(dtype).min)[None, None]


def spans(row: Row) -> Spans:
    """Where each ranking's prefix (possibly empty) and responses lie in the row: the rule, block by block.

    A single response continues its prefix, so the two are one block: the prefix, with no response beside it.
    """
    found: list[list[tuple[int, int]]] = [[] for _ in row.sizes]
    start = 0
    for (ranking, response), tokens in groupby(zip(row.ranking, row.response, strict=True)):
        end = start + sum(1 for _ in tokens)
        if response == 1 and not found[ranking]:
            found[ranking].append((start, start))  # a ranking whose responses share nothing
        found[ranking].append((start, end))
        start = end
    return Spans([[(own[0][0], own[1][1])] if len(own) == 2 else own for own in found])
