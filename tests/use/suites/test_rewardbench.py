"""RewardBench: published subset scores give the published overall scores; weights and rules by hand; the published layouts."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from kwise import DataError
from kwise.use.evaluation import foreign_scores, measure, open_data
from kwise.use.suites.rewardbench import COUNTS, FIGURES, PRIOR_SETS, SUBSETS, WITH_PRIOR

# Starling-RM-7B-alpha, arXiv 2403.13787v2, tables 9 and 11 to 14, in per cent
SEVEN_B = {
    "mt-bench-hard": 75.7,
    "llmbar-natural": 80.0,
    "llmbar-adver-neighbor": 31.3,
    "llmbar-adver-GPTInst": 23.9,
    "llmbar-adver-GPTOut": 48.9,
    "llmbar-adver-manual": 28.3,
    "refusals-dangerous": 87.0,
    "refusals-offensive": 99.0,
    "xstest-should-refuse": 96.1,
    "xstest-should-respond": 85.6,
    "donotanswer": 56.6,
    "anthropic_hhh": 81.9,
    "anthropic_helpful": 63.6,
    "shp": 61.6,
    "summarize": 64.6,
}
# model: overall, Chat, Chat Hard, Safety, Reasoning, Prior Sets in the same paper
PAPER = {
    "Starling-RM-7B-alpha": (71.4, 98.0, 45.6, 85.8, 58.0, 67.9),
    "Starling-RM-34B": (81.4, 96.9, 57.2, 88.2, 88.5, 71.4),
    "FsfairX-LLaMA3-8B": (83.6, 99.4, 65.1, 87.8, 86.4, 74.9),
    "Eurus-RM-7b": (81.6, 98.0, 65.6, 81.2, 86.3, 71.7),
    "UltraRM-13b": (68.2, 96.4, 55.5, 56.0, 62.4, 72.9),
}


def weighted(weights, values):
    return sum(weight * values[name] for name, weight in weights.items())


def test_published_subset_scores_give_the_published_section_scores():
    assert weighted(FIGURES["Chat Hard"], SEVEN_B) == pytest.approx(45.6, abs=0.06)
    assert weighted(WITH_PRIOR["Prior Sets"], SEVEN_B) == pytest.approx(67.9, abs=0.06)
    # the paper exchanged the two XSTest counts
    exchanged = SEVEN_B | {
        "xstest-should-refuse": SEVEN_B["xstest-should-respond"],
        "xstest-should-respond": SEVEN_B["xstest-should-refuse"],
    }
    assert weighted(FIGURES["Safety"], exchanged) == pytest.approx(85.8, abs=0.06)
    assert weighted(FIGURES["Safety"], SEVEN_B) == pytest.approx(84.5, abs=0.06)


@pytest.mark.parametrize("model", PAPER)
def test_published_section_scores_give_the_published_overall_score(model):
    overall, *sections, prior = PAPER[model]
    by_subset = {
        subset: value for counts, value in zip(COUNTS.values(), sections, strict=True) for subset in counts
    } | dict.fromkeys(PRIOR_SETS, prior)
    assert weighted(WITH_PRIOR["overall with Prior Sets"], by_subset) == pytest.approx(overall, abs=0.1)
    assert weighted(FIGURES["overall"], by_subset) == pytest.approx(sum(sections) / 4)


def test_the_leaderboard_without_prior_sets_is_the_mean_of_four_sections():
    """Starling-RM-34B on a later board: 96.9, 57.2, 87.7, 88.5 and 82.6."""
    sections = dict(zip(COUNTS, (96.9, 57.2, 87.7, 88.5), strict=True))
    by_subset = {subset: sections[name] for name, counts in COUNTS.items() for subset in counts}
    assert weighted(FIGURES["overall"], by_subset) == pytest.approx(82.6, abs=0.06)


def test_counts_are_the_published_ones():
    assert {name: sum(counts.values()) for name, counts in COUNTS.items()} == {
        "Chat": 358,
        "Chat Hard": 456,
        "Safety": 740,
        "Reasoning": 1968,
    }
    # with the 447 real pairs of math-prm, the 2,985 of the data set
    assert sum(sum(counts.values()) for counts in COUNTS.values()) - 984 + 447 == 2985


def rows_of(subset, rights, start=0):
    """Pairs with scores: right, wrong, or equal (which is wrong)."""
    scores = {True: (1.0, 0.0), False: (0.0, 1.0), None: (0.5, 0.5)}
    return [
        {
            "id": start + i,
            "prompt": f"{subset} {i}",
            "chosen": "yes",
            "rejected": "no",
            "subset": subset,
            "scores_chosen": scores[right][0],
            "scores_rejected": scores[right][1],
        }
        for i, right in enumerate(rights)
    ]


def figures(word):
    [(_, data, scored)] = foreign_scores([open_data(word)])
    return {name: draws.metric() for name, draws in measure(data, scored)["all"].items()}


def test_a_folder_as_the_hub_has_it_by_hand(tmp_path):
    """Two pairs of every subset, both right, but one of each section's first subset wrong and one equal."""
    rows = []
    for counts in COUNTS.values():
        for i, subset in enumerate(counts):
            rows += rows_of(subset, (False, None) if i == 0 else (True, True))
    (tmp_path / "data").mkdir()
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, tmp_path / "data" / "filtered-00000-of-00001.parquet")
    pyarrow.parquet.write_table(table.slice(0, 1), tmp_path / "data" / "raw-00000-of-00001.parquet")
    found = figures(f"rewardbench:{tmp_path}")
    sections = {"Chat": 258 / 358, "Chat Hard": 419 / 456, "Safety": 640 / 740, "Reasoning": 984 / 1968}
    for name, value in sections.items():
        assert found[name].value == pytest.approx(value), name
    assert found["overall"].value == pytest.approx(sum(sections.values()) / 4)
    assert found["overall"].n == len(rows)
    assert found["alpacaeval-easy"].value == 0


def test_prior_sets_weigh_half(tmp_path):
    """All of the core right, of the prior sets all, all, half and none: (4 + 0.625 / 2) / 4.5."""
    core = [row for subset in SUBSETS for row in rows_of(subset, (True,))]
    (tmp_path / "filtered.jsonl").write_text("".join(json.dumps(row) + "\n" for row in core))
    for name, rights in zip(PRIOR_SETS, ((True,), (True,), (True, False), (False,)), strict=True):
        rows = rows_of("its own subset", rights)
        for row in rows:
            row["prompt"] = [{"role": "user", "content": row["prompt"]}]
        (tmp_path / f"{name}-00000-of-00001.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = figures(f"rewardbench-prior:{tmp_path}")
    assert found["Prior Sets"].value == pytest.approx(2.5 / 4)
    assert found["overall with Prior Sets"].value == pytest.approx((4 + 2.5 / 4 / 2) / 4.5)
    assert found["overall"].value == 1
    # one pair a subset: hardly a sample holds all of them, and none does here
    assert (found["overall"].low, found["overall"].high) == (None, None)


def test_a_figure_whose_subsets_are_not_all_there_has_no_value(tmp_path):
    rows = [row for subset in COUNTS["Safety"] for row in rows_of(subset, (True, False))]
    (tmp_path / "part.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = figures(f"rewardbench:{tmp_path / 'part.jsonl'}")
    assert found["Safety"].value == 0.5
    assert found["overall"].value is None and found["Chat"].value is None and found["hep-go"].value is None


@pytest.mark.parametrize("subset", ["chat", None, 3])
def test_an_unknown_subset_is_refused(tmp_path, subset):
    file = tmp_path / "x.jsonl"
    file.write_text(json.dumps(rows_of("donotanswer", (True,))[0] | {"subset": subset}) + "\n")
    with pytest.raises(DataError, match=r"x\.jsonl, line 1, field 'subset': must be one of RewardBench's subsets"):
        open_data(f"rewardbench:{file}")


def test_a_folder_without_its_files_says_which_and_where_they_are(tmp_path):
    with pytest.raises(DataError, match=r"no data file named filtered\*; .*allenai/reward-bench, split filtered"):
        open_data(f"rewardbench:{tmp_path}")


def test_without_a_path_it_asks_the_hub_for_the_published_data_set(monkeypatch):
    """The data sets' client is replaced: there is no network here."""
    import datasets

    asked = []

    def load_dataset(name, split, streaming):
        asked.append((name, split))
        return rows_of("hep-go", (True, True, False)) if name == "allenai/reward-bench" else rows_of("x", (True,))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert figures("rewardbench")["hep-go"].value == pytest.approx(2 / 3)
    assert asked == [("allenai/reward-bench", "filtered")]
    assert figures("rewardbench-prior")["Prior Sets"].value == 1
    assert asked[1:] == [
        ("allenai/reward-bench", "filtered"),
        *(("allenai/pref-test-sets", name) for name in PRIOR_SETS),
    ]


@pytest.mark.parametrize(("side", "texts"), [("chosen", ["a", "b"]), ("rejected", ["c", "d"])])
def test_a_row_with_several_responses_on_a_side_is_no_pair(tmp_path, side, texts):
    rows = [{"prompt": f"q{i}", "chosen": ["x"], "rejected": ["y"], "subset": "hep-go"} for i in range(2)]
    rows[1][side] = texts
    (tmp_path / "filtered.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=f"line 2, field '{side}': must hold one response, this has 2"):
        open_data(f"rewardbench:{tmp_path}")


@pytest.mark.parametrize("other", ["filtered.json", "old/filtered.jsonl"])
def test_a_file_that_a_folder_holds_twice_is_not_counted_twice(tmp_path, other):
    row = json.dumps({"prompt": "q", "chosen": "x", "rejected": "y", "subset": "hep-go"}) + "\n"
    (tmp_path / "old").mkdir()
    for name in ("filtered.jsonl", other):
        (tmp_path / name).write_text(row)
    with pytest.raises(DataError, match="its rows would count twice"):
        open_data(f"rewardbench:{tmp_path}")
    assert len(open_data(f"rewardbench:{tmp_path / other}").rankings) == 1
