"""EncodedRanking -> Row: which process gets a ranking, which rankings share a row, and the row itself."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from kwise.records import EncodedRanking, Row


def plan(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """First-fit decreasing: which of the ``lengths`` (tokens) go into one row of at most ``budget`` tokens.

    Deterministic; every index appears exactly once. A length over the budget stands alone.
    """
    rows: list[list[int]] = []
    free: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        for row, space in enumerate(free):
            if lengths[i] <= space:
                rows[row].append(i)
                free[row] -= lengths[i]
                break
        else:
            rows.append([i])
            free.append(budget - lengths[i])
    return rows


def deal(lengths: Sequence[int], shares: int) -> list[list[int]]:
    """Indices of ``lengths`` (tokens) for each of so many processes that run at once: the longest first, each to the process with
    the fewest tokens so far (Graham 1969: the longest share is at most 4/3 of the best possible), so that none waits long."""
    dealt: list[list[int]] = [[] for _ in range(shares)]
    tokens = [0] * shares
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        least = tokens.index(min(tokens))
        dealt[least].append(i)
        tokens[least] += lengths[i]
    return dealt


class Unit(NamedTuple):
    """Rankings whose losses are computed together. ``rows`` is one row, or, for a single ranking over the budget, several of
    whole responses with the prefix repeated in each; ``members`` are indices of the caller's rankings."""

    members: list[int]
    rows: list[Row]


def pack(rankings: Sequence[EncodedRanking], budget: int) -> list[Unit]:
    """All ``rankings`` in rows of at most ``budget`` tokens. Only a prefix with one response that is longer by itself exceeds it.

    Units of several rows come first, as the longest do in ``plan``.
    """
    units = []
    for members in plan([item.num_tokens for item in rankings], budget):
        pieces = split(rankings[members[0]], budget) if len(members) == 1 else []
        rows = [build_row([piece], [0]) for piece in pieces] if len(pieces) > 1 else [build_row(rankings, members)]
        units.append(Unit(members, rows))
    return units


def build_row(rankings: Sequence[EncodedRanking], members: Sequence[int]) -> Row:
    """The row of ``rankings[m] for m in members``: see ``Row`` for its layout."""
    row = Row([], [], [], [], [], [], list(members))
    for place, member in enumerate(members):
        item = rankings[member]
        _append(row, item.prefix, 0, place, 0)
        for k, suffix in enumerate(item.suffixes):
            row.reward_at.append(len(row.ids) + item.reward_at[k])
            _append(row, suffix, len(item.prefix), place, k + 1)
        row.sizes.append(len(item.suffixes))
    return row


def _append(row: Row, ids: list[int], first_position: int, ranking: int, response: int) -> None:
    row.ids.extend(ids)
    row.positions.extend(range(first_position, first_position + len(ids)))
    row.ranking.extend([ranking] * len(ids))
    row.response.extend([response] * len(ids))


def spread(prefix: int, suffixes: Sequence[int], budget: int) -> list[list[int]]:
    """Which of a ranking's ``suffixes`` (lengths) go into one row together, each row with the ``prefix``, within ``budget`` where
    possible."""
    pieces: list[list[int]] = []
    used = budget + 1
    for k, length in enumerate(suffixes):
        if used + length > budget:
            pieces.append([])
            used = prefix
        pieces[-1].append(k)
        used += length
    return pieces


def split(ranking: EncodedRanking, budget: int) -> list[EncodedRanking]:
    """``ranking`` in pieces of whole responses that fit ``budget`` where possible, the prefix repeated in each.

    Responses do not depend on one another, only a loss does on all of them. The pieces' suffixes in order are the ranking's.
    """
    return [
        replace(
            ranking,
            suffixes=[ranking.suffixes[k] for k in piece],
            reward_at=[ranking.reward_at[k] for k in piece],
            cut=[ranking.cut[k] for k in piece],
            ranks=[ranking.ranks[k] for k in piece] if ranking.ranks else [],
            offsets=[ranking.offsets[k] for k in piece] if ranking.offsets else [],
        )
        for piece in spread(len(ranking.prefix), [len(suffix) for suffix in ranking.suffixes], budget)
    ]
