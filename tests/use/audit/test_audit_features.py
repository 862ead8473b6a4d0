import numpy as np
import pytest

from kwise.use.audit.features import read_answers, spline


def test_columns_are_those_counted_by_hand(ranking):
    answers = read_answers(
        [
            ranking(
                "a",
                ["- one\n- two", "# Title\n**bold**", "I'm sorry, but no."],
                ranks=[2, 1, 1],
                models=["x", "y", None],
            ),
            ranking("b", ["Great question! 😀", "| a |\n|---|\n```\nx\n```"], models=["y", "x"]),
        ]
    )
    columns = {trait.name: trait.column.tolist() for trait in answers.traits}
    assert columns["lists"] == [1, 0, 0, 0, 0]
    assert columns["headings"] == columns["bold"] == [0, 1, 0, 0, 0]
    assert columns["refusal"] == [0, 0, 1, 0, 0]
    assert columns["flattery"] == columns["emoji"] == [0, 0, 0, 1, 0]
    assert columns["tables"] == columns["code"] == [0, 0, 0, 0, 1]
    assert columns["position"] == [0, 0.5, 1, 0, 1]
    assert columns["model: x"] == [1, 0, 0, 0, 1]
    assert columns["model: y"] == [0, 1, 0, 1, 0]
    assert answers.level.tolist() == [1, 0, 0, 0, 1]
    assert answers.levels.tolist() == [2, 2, 2, 2, 2]
    assert answers.characters.tolist() == [11, 16, 18, 17, 21]
    assert answers.group.tolist() == [0, 0, 0, 1, 1]


def test_within_and_spread_by_hand(ranking):
    answers = read_answers([ranking("a", ["x", "yy", "z"]), ranking("b", ["x", "y"])])
    column = np.array([1.0, 2.0, 6.0, 5.0, 5.0])
    assert answers.within(column).tolist() == [-2, -1, 3, 0, 0]
    assert answers.spread(column) == pytest.approx((14 / 3) ** 0.5)
    assert answers.prompts_with(column) == 1


def test_one_prompt_alone_cannot_be_audited(ranking):
    with pytest.raises(ValueError, match="at least two prompts"):
        read_answers([ranking("a", ["x", "y"])])


def test_a_spline_is_straight_beyond_its_outer_knots_and_bent_between():
    x = np.linspace(0, 1, 401)
    bent = np.abs(np.diff(spline(x), n=2, axis=0)).max(1)
    assert spline(x).shape == (401, 3)
    assert bent[x[1:-1] < 0.045].max() < 1e-12
    assert bent[x[1:-1] > 0.955].max() < 1e-12
    assert bent[(x[1:-1] > 0.1) & (x[1:-1] < 0.9)].min() > 1e-8


def test_a_spline_of_what_hardly_differs_has_no_columns():
    assert spline(np.r_[np.zeros(99), 1.0]).shape == (100, 0)
