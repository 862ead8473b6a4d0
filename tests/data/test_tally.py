"""Expected counts are worked by hand from lengths."""

from kwise.data.tally import seen_pairs, tally
from kwise.records import EncodedRanking


def made(prefix: int, *suffixes: int) -> EncodedRanking:
    return EncodedRanking([1] * prefix, [[2] * n for n in suffixes], [n - 1 for n in suffixes], [0] * len(suffixes))


def test_whole_rankings_in_rows() -> None:
    """A: 4 + 3 + 2 = 9 tokens. B: 2 + 2 + 5 + 1 = 10. Sequences of A are 7 and 6 long, of B 4, 7 and 3."""
    found = tally([made(4, 3, 2), made(2, 2, 5, 1)], [[[0, 1]]], budget=25)
    assert (found.rankings, found.rows, found.run, found.again, found.repeated, found.room) == (2, 1, 19, 0, 0, 25)
    assert (found.longest_row, found.waited, found.wasted) == (19, 0, 0.0)
    assert found.padded == 2 * 7 + 3 * 7
    # A: one pair padded to 7. B: (7, 4), (7, 3), (4, 3) padded to 7, 7, 4; two sequences each
    assert found.pairs == 2 * 7 + 2 * (7 + 7 + 4)


def test_a_ranking_over_the_budget_repeats_its_prompt_and_runs_twice() -> None:
    """Budget 7 holds prompt 4 and response 3; response 2 needs the prompt again: rows of 7 and 6."""
    found = tally([made(4, 3, 2)], [[[0]]], budget=7)
    assert (found.rows, found.run, found.again, found.repeated, found.room) == (2, 13, 13, 4, 14)
    assert found.wasted == 4 / 13
    assert found.longest_row == 7


def test_what_processes_wait_for() -> None:
    """Step 1: 9 tokens against 10. Step 2: 9 against none."""
    found = tally([made(4, 3, 2), made(2, 2, 5, 1)], [[[0], [1]], [[0], []]], budget=50)
    assert (found.rows, found.run, found.waited) == (3, 28, 1 + 9)
    assert found.wasted == 10 / 38


def test_pairs_of_tokens_that_see_each_other_counted_one_by_one() -> None:
    ranking = made(3, 2, 4)
    prefix, count = 3, 0
    for length in (2, 4):
        for i in range(length):
            count += prefix + i + 1
    count += 1 + 2 + 3
    assert seen_pairs(ranking) == count
