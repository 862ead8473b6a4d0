"""An objective by its name and options, and what is said of those that are wrong."""

import pytest
import torch

from kwise import losses
from kwise.objective import OBJECTIVES, objective

ENTRIES = torch.tensor([0.3, -1.0, 2.0, 0.1]), torch.tensor([2, 1, 3, 3]), torch.tensor([0, 0, 0, 0])


def mistakes(name, /, **options):
    with pytest.raises(ValueError) as error:
        objective(name, **options)
    return str(error.value).splitlines()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_name_alone_is_the_plain_function_which_losses_has_too(name):
    assert objective(name)(*ENTRIES) == OBJECTIVES[name](*ENTRIES) == getattr(losses, name)(*ENTRIES)


def test_options_reach_the_function():
    given = {"gap_weights": [1.0, 3.0], "smoothing": 0.2}
    assert objective("all_pairs", **given)(*ENTRIES) == OBJECTIVES["all_pairs"](*ENTRIES, **given)


def test_centring_adds_its_penalty_to_the_loss_and_nothing_to_the_count():
    plain, count = objective("top1")(*ENTRIES)
    centred, same = objective("top1", centring=0.5)(*ENTRIES)
    assert same == count
    assert centred.item() == pytest.approx(plain.item() + 0.5 * (0.3 - 1.0 + 2.0 + 0.1) ** 2, rel=1e-6)


def test_an_unknown_name_is_told_with_all_known_ones_and_the_nearest():
    (mistake,) = mistakes("placket_luce")
    assert mistake == f"objective: 'placket_luce' is not one of {', '.join(OBJECTIVES)}; did you mean 'plackett_luce'?"


def test_an_unknown_option_is_told_with_the_nearest_and_those_that_this_objective_takes():
    assert mistakes("all_pairs", smooting=0.1) == [
        "smooting: 'all_pairs' takes only gap_weights, smoothing, centring; did you mean 'smoothing'?"
    ]
    assert mistakes("scaled_pairs", top=2) == ["top: 'scaled_pairs' takes only centring"]


@pytest.mark.parametrize("option", ["rewards", "ranks", "lists", "name"])
def test_what_the_function_is_given_anyway_is_no_option(option):
    assert mistakes("top1", **{option: 1}) == [f"{option}: 'top1' takes only centring"]


def test_all_mistakes_come_at_once_one_a_line():
    found = mistakes("all_pairs", smoothing=0.5, gap_weights=[], top=1, centring=-1)
    assert [line.partition(":")[0] for line in found] == ["smoothing", "gap_weights", "top", "centring"]


BAD = [
    ("plackett_luce", "top", [0, -1, 1.5, True, "2"]),
    ("plackett_luce", "stage_weights", [[], [1, -1], [0, 0], [float("nan")], [float("inf")], ["1"], 1.0, None]),
    ("all_pairs", "gap_weights", [[], [-0.1], [0.0], [True], "12", 2]),
    ("all_pairs", "smoothing", [0.5, -0.01, [0.1, 0.5], [], float("nan"), "0.1", True, None]),
    ("margin_pairs", "margin", [-1, float("inf"), "1", [1.0], False]),
    ("rao_kupper", "tie_rate", [0, 1, -0.1, 1.2, float("nan"), "0.1", [0.1]]),
    ("davidson", "tie_rate", [0.0, 1.0, -0.1, None]),
    ("scaled_pairs", "centring", [-1e-9, float("inf"), float("nan"), "0", None, True]),
]


@pytest.mark.parametrize(("name", "option", "value"), [(n, o, value) for n, o, values in BAD for value in values])
def test_an_illegal_value_is_told_with_its_option(name, option, value):
    (mistake,) = mistakes(name, **{option: value})
    assert mistake.startswith(f"{option}: ") and mistake.endswith(repr(value))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("plackett_luce", {"top": 1, "stage_weights": (0, 1)}),
        ("all_pairs", {"smoothing": 0, "gap_weights": [0, 1]}),
        ("all_pairs", {"smoothing": [0.499, 0]}),
        ("margin_pairs", {"margin": 0}),
        ("rao_kupper", {"tie_rate": 0.999}),
        ("davidson", {"tie_rate": 1e-6, "centring": 0}),
    ],
)
def test_values_at_the_edge_of_what_is_legal_are_taken(name, options):
    assert torch.isfinite(objective(name, **options)(*ENTRIES)[0])
