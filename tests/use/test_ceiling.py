"""The ceiling of repeated judgements: by hand, against judges whose noise is known, and on the raw judgements of Nectar."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from kwise import DataError
from kwise.use.ceiling import Repeated, ceiling, read_repeated

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data" / "starling" / "judgements"


def metrics(lists):
    return {name: draws.metric() for name, draws in ceiling(lists).items()}


def test_agreement_and_its_bounds_by_hand():
    """1 2 3 4 against 1 3 2 4: five of six pairs, tau 2/3, the same best; against 2 1 3 4 the same but another best."""
    lists = [Repeated([[1, 2, 3, 4], [1, 3, 2, 4]], "p"), Repeated([[1, 2, 3, 4], [2, 1, 3, 4]], "q")]
    found = metrics(lists)
    assert (found["pair_agreement"].value, found["pair_agreement"].n) == (pytest.approx(10 / 12), 12)
    assert found["kendall_tau"].value == pytest.approx(2 / 3)
    assert (found["top1_agreement"].value, found["top1_agreement"].n) == (0.5, 2)
    # each of the two lists has the exchanged pair one rank apart on both sides; the first: 2 of 3 neighbours kept
    assert (found["distance_1"].value, found["distance_1"].n) == (pytest.approx(4 / 6), 6)
    assert found["distance_3"].value == 1
    assert found["pair_accuracy_ceiling"].value == pytest.approx((1 + math.sqrt(2 / 3)) / 2)
    assert found["kendall_tau_ceiling"].value == pytest.approx(math.sqrt(2 / 3))
    # t = 1/2 and K = 4: m with m^2 + (1 - m)^2 / 3 = 1/2
    m = found["top1_ceiling"].value
    assert m**2 + (1 - m) ** 2 / 3 == pytest.approx(1 / 2)
    assert m == pytest.approx((1 + math.sqrt(3)) / 4)


def test_judgements_that_agree_in_nothing_leave_a_coin():
    found = metrics([Repeated([[1, 2, 3], [3, 2, 1]], "p")])
    assert found["pair_agreement"].value == 0
    assert found["pair_accuracy_ceiling"].value == 0.5
    assert found["kendall_tau_ceiling"].value == 0
    assert found["top1_ceiling"].value == pytest.approx(1 / 3)


def test_a_list_judged_three_times_counts_its_pairs_once():
    orders = [[1, 2], [1, 2], [2, 1]]
    found = metrics([Repeated(orders, "p"), Repeated([[1, 2], [1, 2]], "q")])
    assert (found["pair_agreement"].value, found["pair_agreement"].n) == (pytest.approx((1 / 3 + 1) / 2), 2)


def test_ties_are_left_out():
    found = metrics([Repeated([[1, 1, 2], [1, 2, 3]], "p")])
    assert (found["pair_agreement"].value, found["pair_agreement"].n) == (1, 2)
    assert "top1_agreement" not in found


def test_equally_noisy_pairs_reach_the_upper_end():
    """A judgement is right with probability 0.8 on every pair: that is the best model's accuracy."""
    rng = np.random.default_rng(0)
    rights = rng.random((8000, 2)) < 0.8
    lists = [Repeated([[1, 2] if right else [2, 1] for right in own], str(i)) for i, own in enumerate(rights)]
    found = metrics(lists)
    assert found["pair_agreement"].value == pytest.approx(0.8**2 + 0.2**2, abs=0.02)
    assert found["pair_accuracy_ceiling"].value == pytest.approx(0.8, abs=0.02)
    assert found["top1_ceiling"].value == pytest.approx(found["pair_accuracy_ceiling"].value)


def test_certain_pairs_among_coins_reach_the_lower_end():
    """Half of the pairs are certain, half are coins: the best model is right on 0.75, and so do judgements agree."""
    rng = np.random.default_rng(1)
    lists = [
        Repeated([[1, 2] if i % 2 or coin < 0.5 else [2, 1] for coin in rng.random(2)], str(i)) for i in range(8000)
    ]
    assert metrics(lists)["pair_agreement"].value == pytest.approx(0.75, abs=0.02)


@pytest.mark.parametrize("spread", [0.5, 1.0, 2.0])
def test_what_the_best_model_reaches_lies_between_agreement_and_ceiling(spread):
    """Plackett-Luce judges of known utilities: the best model orders by utility."""
    rng = np.random.default_rng(2)
    lists, pairs, top, taus = [], [], [], []
    for i in range(3000):
        utility = spread * rng.normal(size=5)
        first, second = ((-(utility + rng.gumbel(size=5))).argsort().argsort() for _ in range(2))
        lists.append(Repeated([first.tolist(), second.tolist()], str(i)))
        right = [(utility[a] > utility[b]) == (first[a] < first[b]) for a in range(5) for b in range(a + 1, 5)]
        pairs.append(np.mean(right))
        taus.append(2 * np.mean(right) - 1)
        top.append(utility.argmax() == first.argmin())
    found = metrics(lists)
    slack = 0.015
    for reached, low, high in (
        (pairs, "pair_agreement", "pair_accuracy_ceiling"),
        (top, "top1_agreement", "top1_ceiling"),
        (taus, "kendall_tau", "kendall_tau_ceiling"),
    ):
        assert found[low].value - slack < np.mean(reached) < found[high].value + slack


def test_the_interval_of_the_ceiling_holds_it_in_95_of_100_simulations():
    rng = np.random.default_rng(3)
    repeats, covered = 100, 0
    for _ in range(repeats):
        rights = rng.random((250, 2)) < 0.85
        lists = [Repeated([[1, 2] if right else [2, 1] for right in own], str(i)) for i, own in enumerate(rights)]
        found = metrics(lists)["pair_accuracy_ceiling"]
        covered += found.low <= 0.85 <= found.high
    assert covered / repeats == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / repeats))


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def answers(order):
    return [{"answer": text, "rank": rank} for text, rank in order]


def test_judgements_are_read_from_one_line_or_from_several(tmp_path):
    rows = [
        {"prompt": "p", "answers": answers([("a", 2), ("b", 1), ("c", 3)]), "ranking_order": [2, 0, 1]},
        {"prompt": "q", "answers": answers([("a", 1), ("b", 2)])},
        {"prompt": "alone", "answers": answers([("a", 1), ("b", 2)])},
        {"prompt": "q", "answers": answers([("b", 1), ("a", 2)])},
        {"prompt": "q", "answers": answers([("b", 1), ("other", 2)])},
    ]
    assert read_repeated(write(tmp_path / "j.jsonl", rows)) == [
        Repeated([[2.0, 1.0, 3.0], [1.0, 2.0, 0.0]], "user: p"),
        Repeated([[1.0, 2.0], [2.0, 1.0]], "user: q"),
    ]


def test_a_line_that_comes_twice_with_a_second_judgement_each_is_two_lists(tmp_path):
    """The stored rank of both is one and the same judgement: it must not agree with itself."""
    rows = [
        {"prompt": "p", "answers": answers([("a", 1), ("b", 2)]), "ranking_order": order} for order in ([0, 1], [1, 0])
    ]
    assert metrics(read_repeated(write(tmp_path / "j.jsonl", rows)))["pair_agreement"].value == 0.5


@pytest.mark.parametrize("order", [[0, 0, 1], [0, 1], [0, 1, 3], "012", [0, 1, None], [0.0, 1.0, 2.0]])
def test_an_order_that_is_no_permutation_is_told_with_its_line(tmp_path, order):
    row = {"prompt": "p", "answers": answers([("a", 1), ("b", 2), ("c", 3)]), "ranking_order": order}
    with pytest.raises(DataError, match="line 1, field 'ranking_order': must hold each of 0 to 2 once"):
        read_repeated(write(tmp_path / "j.jsonl", [row]))


def test_a_file_without_repeated_lists_says_what_it_needs(tmp_path):
    with pytest.raises(DataError, match="no list is judged twice: give a column 'ranking_order'"):
        read_repeated(write(tmp_path / "j.jsonl", [{"prompt": "q", "answers": answers([("a", 1), ("b", 2)])}]))


@pytest.mark.skipif(not SHARED.is_dir(), reason="the raw judgements of Nectar are not here")
def test_judges_of_nectar_agree_as_counted_pair_by_pair():
    import gzip
    from itertools import combinations

    file = SHARED / "tiebreak_order_given_static.jsonl.gz"
    agree = total = same_best = 0
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    for row in rows:
        stored = [answer["rank"] for answer in row["answers"]]
        place = {k: i for i, k in enumerate(row["ranking_order"])}
        for i, j in combinations(range(7), 2):
            agree += (stored[i] < stored[j]) == (place[i] < place[j])
            total += 1
        same_best += stored.index(min(stored)) == row["ranking_order"][0]
    found = metrics(read_repeated(str(file)))
    assert found["pair_agreement"].n == total == 187 * 21
    assert found["pair_agreement"].value == pytest.approx(agree / total)
    assert 0.73 <= found["pair_agreement"].value <= 0.76
    assert found["top1_agreement"].value == pytest.approx(same_best / 187)
    assert found["pair_accuracy_ceiling"].value == pytest.approx((1 + math.sqrt(2 * agree / total - 1)) / 2)
