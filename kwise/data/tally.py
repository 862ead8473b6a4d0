"""What training costs in tokens, counted from lengths alone, before anything is run."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from kwise.data.encoded import Shapes, shapes
from kwise.data.packing import plan, spread
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
    found, lengths = Tally(), shapes(rankings)
    tokens = lengths.num_tokens.tolist()
    padded, pairs, seen = (each.tolist() for each in _costs(lengths))
    for shares in steps:
        run = []
        for share in shares:
            before = found.run
            for row in plan([tokens[i] for i in share], budget):
                own = [share[member] for member in row]
                pieces = [[0]]
                if tokens[own[0]] > budget:
                    first, last = lengths.bounds[own[0] : own[0] + 2]
                    prefix, suffixes = int(lengths.prefix[own[0]]), lengths.suffix[first:last].tolist()
                    pieces = spread(prefix, suffixes, budget)
                if len(pieces) > 1:
                    parts = [[suffixes[k] for k in piece] for piece in pieces]
                    rows = [prefix + sum(part) for part in parts]
                    found.again += sum(rows)
                    found.repeated += sum(rows) - tokens[own[0]]
                    found.seen += sum(_seen(prefix, part) for part in parts)
                else:
                    rows = [sum(tokens[i] for i in own)]
                    found.seen += sum(seen[i] for i in own)
                found.rankings += len(own)
                found.rows += len(rows)
                found.run += sum(rows)
                found.room += sum(max(budget, each) for each in rows)
                found.longest_row = max(found.longest_row, *rows)
                found.padded += sum(padded[i] for i in own)
                found.pairs += sum(pairs[i] for i in own)
            run.append(found.run - before)
        found.waited += sum(max(run) - each for each in run)
    return found


def _costs(lengths: Shapes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[n] int64 each: a ranking's tokens as padded sequences, as padded pairs, and its ``seen_pairs``."""
    sizes = np.diff(lengths.bounds)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    whole = lengths.prefix[owner] + lengths.suffix
    shorter = np.arange(len(whole)) - lengths.bounds[owner]  # of a ranking's sequences in order of length
    pairs = 2 * whole[np.lexsort((whole, owner))] * shorter
    own = lengths.suffix * (lengths.suffix + 1) // 2 + lengths.suffix * lengths.prefix[owner]
    seen = lengths.prefix * (lengths.prefix + 1) // 2 + lengths.each(np.add, own)
    return sizes * lengths.each(np.maximum, whole), lengths.each(np.add, pairs), seen


def seen_pairs(ranking: EncodedRanking) -> int:
    """How many pairs (token, token it sees) a ranking has in a row of its own; a sliding window is not counted."""
    return _seen(len(ranking.prefix), [*map(len, ranking.suffixes)])


def _seen(prefix: int, suffixes: list[int]) -> int:
    return prefix * (prefix + 1) // 2 + sum(n * (n + 1) // 2 + n * prefix for n in suffixes)
