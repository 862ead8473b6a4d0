import random

import pytest

from kwise.data.packing import build_row, deal, pack, plan, split
from kwise.records import EncodedRanking, Row


def made(rng: random.Random, ranked: bool = True) -> EncodedRanking:
    suffixes = [[rng.randrange(100) for _ in range(rng.randint(1, 6))] for _ in range(rng.randint(1, 5))]
    return EncodedRanking(
        prefix=[rng.randrange(100) for _ in range(rng.randint(0, 5))],
        suffixes=suffixes,
        reward_at=[rng.randrange(len(suffix)) for suffix in suffixes],
        cut=[rng.randrange(3) for _ in suffixes],
        ranks=[float(rng.randint(1, 4)) for _ in suffixes] if ranked else [],
    )


# --- plan -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_every_index_is_in_one_row_and_only_a_length_over_budget_breaks_it_alone(seed: int) -> None:
    rng = random.Random(seed)
    lengths = [rng.randint(1, 130) for _ in range(rng.randrange(60))]
    rows = plan(lengths, 100)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    for row in rows:
        assert sum(lengths[i] for i in row) <= 100 or len(row) == 1


def test_plan_by_hand() -> None:
    # decreasing: 9 (over budget), 6, 5, 3, 2, 2; 6 opens, 5 opens, 3 joins the 5, the first 2 joins the 6, the last opens
    assert plan([2, 5, 9, 3, 6, 2], 8) == [[2], [4, 0], [1, 3], [5]]


def test_a_length_of_exactly_the_budget_fills_a_row_and_equals_keep_their_order() -> None:
    assert plan([4, 8, 4, 4, 8], 8) == [[1], [4], [0, 2], [3]]


@pytest.mark.parametrize("seed", range(10))
def test_any_two_rows_together_are_over_budget(seed: int) -> None:
    rng = random.Random(seed)
    lengths = [rng.randint(1, 60) for _ in range(50)]
    totals = sorted(sum(lengths[i] for i in row) for row in plan(lengths, 100))
    assert all(a + b > 100 for a, b in zip(totals, totals[1:], strict=False))  # noqa: RUF007


def test_plan_of_nothing_is_no_row() -> None:
    assert plan([], 100) == []


# --- build_row --------------------------------------------------------------------------------------------------------


def test_the_row_drawn_in_the_records() -> None:
    a, b, c, d, e = 11, 12, 13, 14, 15
    item = EncodedRanking(prefix=[a, b], suffixes=[[c, d], [e]], reward_at=[1, 0], cut=[0, 0])
    assert build_row([item], [0]) == Row(
        ids=[a, b, c, d, e],
        positions=[0, 1, 2, 3, 2],
        ranking=[0, 0, 0, 0, 0],
        response=[0, 0, 1, 1, 2],
        reward_at=[3, 4],
        sizes=[2],
        members=[0],
    )


@pytest.mark.parametrize("seed", range(20))
def test_every_token_of_a_row_is_where_a_token_by_token_construction_puts_it(seed: int) -> None:
    rng = random.Random(seed)
    rankings = [made(rng) for _ in range(6)]
    members = rng.sample(range(6), rng.randint(1, 6))
    tokens: list[tuple[int, int, int, int]] = []  # id, position, ranking, response
    rewards: list[int] = []
    for place, member in enumerate(members):
        item = rankings[member]
        for position, token in enumerate(item.prefix):
            tokens.append((token, position, place, 0))
        for k, suffix in enumerate(item.suffixes):
            for j, token in enumerate(suffix):
                if j == item.reward_at[k]:
                    rewards.append(len(tokens))
                tokens.append((token, len(item.prefix) + j, place, k + 1))
    row = build_row(rankings, members)
    assert list(zip(row.ids, row.positions, row.ranking, row.response, strict=True)) == tokens
    assert row.reward_at == rewards
    assert row.sizes == [len(rankings[member].suffixes) for member in members]
    assert row.members == members
    assert len(row.ids) == sum(rankings[member].num_tokens for member in members)


def test_a_row_does_not_share_its_lists_with_the_rankings() -> None:
    item = EncodedRanking(prefix=[1], suffixes=[[2]], reward_at=[0], cut=[0])
    members = [0]
    build_row([item], members).members.append(9)
    build_row([item], members).ids.append(9)
    assert (members, item.prefix, item.suffixes) == ([0], [1], [[2]])


# --- split ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranked", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_pieces_put_back_together_are_the_ranking(seed: int, ranked: bool) -> None:
    rng = random.Random(seed)
    item = made(rng, ranked)
    for budget in range(1, item.num_tokens + 2):
        pieces = split(item, budget)
        assert all(piece.prefix == item.prefix for piece in pieces)
        assert all(piece.num_tokens <= budget or len(piece.suffixes) == 1 for piece in pieces)
        for name in ("suffixes", "reward_at", "cut", "ranks"):
            assert [each for piece in pieces for each in getattr(piece, name)] == getattr(item, name)
        assert all(len(piece.suffixes) == len(piece.reward_at) == len(piece.cut) > 0 for piece in pieces)


def test_what_fits_is_one_piece_and_one_token_less_is_two() -> None:
    item = EncodedRanking(prefix=[1, 2], suffixes=[[3, 4], [5], [6]], reward_at=[1, 0, 0], cut=[0, 0, 0])
    assert split(item, 6) == [item]
    assert [piece.suffixes for piece in split(item, 5)] == [[[3, 4], [5]], [[6]]]
    assert [piece.suffixes for piece in split(item, 1)] == [[[3, 4]], [[5]], [[6]]]


# --- deal -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_every_ranking_is_dealt_once_and_the_longest_share_exceeds_the_mean_by_less_than_its_last(seed: int) -> None:
    rng = random.Random(seed)
    shares = rng.randint(1, 5)
    lengths = [rng.randint(1, 100) for _ in range(rng.randint(1, 40))]
    dealt = deal(lengths, shares)
    assert sorted(i for share in dealt for i in share) == list(range(len(lengths)))
    assert deal(lengths, shares) == dealt
    longest = max(sum(lengths[i] for i in share) for share in dealt)
    last = min(lengths[i] for i in max(dealt, key=lambda share: sum(lengths[i] for i in share)))
    # the share that ends last was the shortest when its last ranking came, so it exceeds the mean by less than that one
    assert longest <= sum(lengths) / shares + last * (1 - 1 / shares) + 1e-9


def test_six_rankings_dealt_by_hand() -> None:
    """By hand: 9 | 8, then 5 to the 8, 4 to the 9, both at 13: 3 to the first, then 1 to the second."""
    assert [sum([3, 9, 4, 5, 8, 1][i] for i in share) for share in deal([3, 9, 4, 5, 8, 1], 2)] == [16, 14]


# --- pack -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_packed_rows_keep_the_budget_unless_one_response_alone_exceeds_it(seed: int) -> None:
    rng = random.Random(seed)
    rankings = [made(rng) for _ in range(rng.randint(1, 12))]
    budget = rng.randint(1, 40)
    units = pack(rankings, budget)
    assert sorted(m for unit in units for m in unit.members) == list(range(len(rankings)))
    for unit in units:
        assert len(unit.rows) == 1 or len(unit.members) == 1
        for row in unit.rows:
            single = len(row.reward_at) == 1
            assert len(row.ids) <= budget or single
    several = [len(unit.rows) > 1 for unit in units]
    assert several == sorted(several, reverse=True), "rows that are run again come first"


def test_a_ranking_over_the_budget_repeats_its_prefix_in_every_row() -> None:
    ranking = EncodedRanking([1, 2], [[3, 4], [5], [6, 7, 8]], [1, 0, 2], [0, 0, 0], [1.0, 2.0, 3.0])
    (unit,) = pack([ranking], 5)
    assert [row.ids for row in unit.rows] == [[1, 2, 3, 4, 5], [1, 2, 6, 7, 8]]
    assert [row.reward_at for row in unit.rows] == [[3, 4], [4]]


def test_pieces_share_out_ranks_and_offsets():
    ranking = EncodedRanking([1], [[2, 3], [4], [5, 6]], [1, 0, 1], [0, 0, 0], [1.0, 2.0, 3.0], [0.1, 0.2, 0.3])
    pieces = split(ranking, 4)
    assert [piece.ranks for piece in pieces] == [[1.0, 2.0], [3.0]]
    assert [piece.offsets for piece in pieces] == [[0.1, 0.2], [0.3]]
