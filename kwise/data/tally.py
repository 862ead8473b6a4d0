"""What training costs in tokens, counted from lengths alone, before anything is run."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kwise.data.packing import plan, split
from kwise.records import EncodedRanking


@dataclass
class Tally:
    """Tokens, over all processes. ``run`` go through the model in ``rows``; ``repeated`` of them are prompts of rankings over the
    budget, which each of their further rows has again; ``room`` is what the rows could hold, ``longest_row`` what one does hold.
    ``again`` of the tokens run are run forward twice (``KwiseTrainer.training_step``). ``waited`` counts what processes
    could have run while the one with the longest share of a step went on. ``padded`` and ``pairs`` are what
    the same rankings take as K sequences padded to the longest, and as K (K - 1) / 2 pairs, each padded to its longer one.
    ``seen`` is the number of pairs of tokens of which one sees the other: attention's share of the work."""

    rankings: int = 0
    rows: int = 0
    run: int = 0
    again: int = 0
    repeated: int = 0
    room: int = 0
    longest_row: int = 0
    waited: int = 0
    padded: int = 0
    pairs: int = 0
    seen: int = 0

    @property
    def wasted(self) -> float:
        """The share of tokens run or waited for that serves nothing: repeated prompts, idle processes. There is no padding."""
        return (self.repeated + self.waited) / max(self.run + self.waited, 1)

    def __str__(self) -> str:
        times_padded, times_pairs = (each / max(self.run, 1) for each in (self.padded, self.pairs))
        return (
            f"{self.run} tokens in {self.rows} rows, {100 * self.run / max(self.room, 1):.0f} % full; {100 * self.wasted:.1f} % "
            f"of them wasted ({self.repeated} of repeated prompts, {self.waited} waited for by processes); padded to K "
            f"sequences they would be {times_padded:.2f} times as many, as pairs {times_pairs:.2f} times"
        )


def tally(rankings: Sequence[EncodedRanking], steps: Iterable[Sequence[Sequence[int]]], budget: int) -> Tally:
    """Count ``steps``: for each step, which of ``rankings`` each process has, in rows of at most ``budget`` tokens."""
    found = Tally()
    for shares in steps:
        tokens = []
        for share in shares:
            rows = [[rankings[share[m]] for m in own] for own in plan([rankings[i].num_tokens for i in share], budget)]
            before = found.run
            for row in rows:
                _count(found, row, budget)
            tokens.append(found.run - before)
        found.waited += sum(max(tokens) - each for each in tokens)
    return found


def _count(found: Tally, row: list[EncodedRanking], budget: int) -> None:
    pieces = split(row[0], budget) if len(row) == 1 else []
    rows = [[piece] for piece in pieces] if len(pieces) > 1 else [row]
    lengths = [sum(item.num_tokens for item in each) for each in rows]
    found.rankings += len(row)
    found.rows += len(rows)
    found.run += sum(lengths)
    found.again += sum(lengths) if len(rows) > 1 else 0
    found.repeated += sum(lengths) - sum(item.num_tokens for item in row)
    found.room += sum(max(budget, each) for each in lengths)
    found.longest_row = max(found.longest_row, *lengths)
    for item in [each for own in rows for each in own]:
        found.seen += seen_pairs(item)
    for item in row:
        sizes = sorted(len(item.prefix) + len(suffix) for suffix in item.suffixes)
        found.padded += sizes[-1] * len(sizes)
        found.pairs += sum(2 * size * shorter for shorter, size in enumerate(sizes))


def seen_pairs(ranking: EncodedRanking) -> int:
    """How many pairs (token, token it sees) a ranking has in a row of its own; a sliding window is not counted."""
    prefix = len(ranking.prefix)
    own = sum(n * (n + 1) // 2 + n * prefix for n in map(len, ranking.suffixes))
    return prefix * (prefix + 1) // 2 + own
