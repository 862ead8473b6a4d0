"""Thirds of pairs by how sure the judge was."""

import pytest

from kwise import DataError
from kwise.data.strength import pair_thirds


def test_pairs_are_in_thirds_of_the_differences_of_judge_values(ranking):
    """Values 0, 1, 3, 7: strengths 1 (0-1), 2 (1-3), 3 (0-3), 4 (3-7), 6 (1-7), 7 (0-7); two in each third."""
    one = ranking(responses=["a", "b", "c", "d"], ranks=[4, 3, 2, 1], judge_values=[0, 1, 3, 7])
    assert pair_thirds([one]) == [
        {
            (1, 0): "weak_pairs",
            (2, 1): "weak_pairs",
            (2, 0): "middle_pairs",
            (3, 2): "middle_pairs",
            (3, 1): "strong_pairs",
            (3, 0): "strong_pairs",
        }
    ]


def test_thirds_are_of_all_rankings_together_and_margins_have_no_sign(ranking):
    made = [ranking(f"q{m}", margin=m) for m in (-5, 1, 2, 3, 4, None)]
    found = [list(own.values()) for own in pair_thirds(made)]
    assert found == [["strong_pairs"], ["weak_pairs"], ["weak_pairs"], ["middle_pairs"], ["strong_pairs"], []]


def test_pairs_of_one_rank_or_an_unknown_value_are_in_no_third(ranking):
    one = ranking(responses=["a", "b", "c", "d"], ranks=[1, 1, 2, 3], judge_values=[9, 8, None, 0])
    other = ranking("other", margin=20)
    assert pair_thirds([one, other]) == [{(0, 3): "middle_pairs", (1, 3): "weak_pairs"}, {(0, 1): "strong_pairs"}]


def test_a_margin_of_a_longer_list_says_nothing_of_its_pairs(ranking):
    longer = ranking(responses=["a", "b", "c"], margin=2)
    assert pair_thirds([longer, *(ranking(f"q{m}", margin=m) for m in (1, 2, 3))])[0] == {}


@pytest.mark.parametrize("margins", [(1, 1, 1, 1), (1, 2, 2, 1), (None, None)])
def test_fewer_than_three_strengths_make_no_thirds(ranking, margins):
    assert pair_thirds([ranking(f"q{i}", margin=m) for i, m in enumerate(margins)]) == [{}] * len(margins)


@pytest.mark.parametrize(
    ("columns", "field", "problem"),
    [
        ({"margin": "big"}, "margin", "must be a number, this is text"),
        ({"margin": float("nan")}, "margin", "must be a finite number, this is nan"),
        ({"judge_values": [1]}, "judge_values", "must be a list of 2 numbers"),
        ({"judge_values": [1, True]}, r"judge_values\[1\]", "must be a number, this is true or false"),
    ],
    ids=str,
)
def test_what_is_no_strength_is_told_with_its_place(ranking, columns, field, problem):
    with pytest.raises(DataError, match=f"made.jsonl, line 1, field '{field}': .*{problem}"):
        pair_thirds([ranking(**columns)])
