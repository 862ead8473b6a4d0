"""The distinct responses of each distinct prompt, so that nothing is run through a model twice."""

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from kwise.data.encode import Encoder
from kwise.records import EncodedRanking, Ranking


class Distinct(NamedTuple):
    """``prompts``: for each prompt, in order of first appearance, its first ranking with all its distinct responses in place of
    its own (and no ranks). ``where[i][k]`` is the place of response k of ranking i among all distinct responses."""

    prompts: list[Ranking]
    where: list[list[int]]


def distinct(rankings: Iterable[Ranking]) -> Distinct:
    """Pool ``rankings`` by prompt. Rankings of one prompt often share responses, and pair sets repeat them in many pairs."""
    seen: dict[tuple[tuple[str, str], ...], tuple[int, dict[str, int]]] = {}
    prompts: list[Ranking] = []
    places: list[tuple[int, list[int]]] = []
    for ranking in rankings:
        key = tuple((message["role"], message["content"]) for message in ranking.messages)
        number, known = seen.setdefault(key, (len(prompts), {}))
        if number == len(prompts):
            prompts.append(replace(ranking, responses=[], ranks=[], models=[]))
        for response in ranking.responses:
            if response not in known:
                known[response] = len(known)
                prompts[number].responses.append(response)
        places.append((number, [known[response] for response in ranking.responses]))
    start = [0]
    for prompt in prompts:
        start.append(start[-1] + len(prompt.responses))
    return Distinct(prompts, [[start[number] + k for k in own] for number, own in places])


class EncodedPool(NamedTuple):
    """Distinct responses as text and ids: ``prompts`` and ``where`` as in ``Distinct``, ``encoded`` per prompt; ``shortened``
    counts the distinct responses that the truncation rule cut."""

    prompts: list[Ranking]
    encoded: list[EncodedRanking]
    where: list[list[int]]
    shortened: int

    @property
    def num_responses(self) -> int:
        """The number of distinct responses."""
        return sum(len(item.suffixes) for item in self.encoded)


def encode_distinct(encoder: Encoder, rankings: Iterable[Ranking]) -> EncodedPool:
    """Pool and encode ``rankings``. What the template or the truncation rule refuses is a ``DataError`` with file and line."""
    pool = distinct(rankings)
    encoded = [encoder.encode_ranking(prompt) for prompt in pool.prompts]
    return EncodedPool(pool.prompts, encoded, pool.where, sum(cut > 0 for item in encoded for cut in item.cut))
