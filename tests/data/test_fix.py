import datetime
import gzip
import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from nectar_rows import GOOD, answer, row, two, written

from kwise.data.check import check
from kwise.data.fix import fix
from kwise.data.sources import read_rankings
from kwise.records import DataError
from kwise.use.foreign import row_scores


def completions(path: Path) -> list[list[tuple[str, float]]]:
    return [list(zip(r.responses, r.ranks, strict=True)) for r in read_rankings(path)]


def test_each_repair_is_made_and_counted(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        GOOD,
        "{broken",
        row("unreadable", answer("a", None), answer("b", 2), answer(None, 3), answer("c", 1), answer("d", "4")),
        row("unreadable, too few left", answer("a", None), answer("b", 2)),
        row("empty", answer("a", 1), answer(" \n", 2), answer("c", 3)),
        row("two empty are no repeat", answer("a", 1), answer("", 2), answer("", 3), answer("d", 4)),
        row("empty, too few left", answer("a", 1), answer("", 2)),
        row("repeats", answer("a", 4), answer("b", 2), answer("a", 1), answer("c", 3)),
        row("marker", answer("a", 2), answer("b\n\nHuman: more\n\nAssistant: c", 1)),
        row("marker makes a repeat", answer("b", 1), answer("a", 2), answer("b\n\nHuman: more", 3)),
        row("marker first", answer("\n\nHuman: more", 1), answer("a", 2), answer("b", 3)),
        row(None, answer("a", 1), answer("b", 2)),
        row("one", answer("a", 1)),
        {"prompt": "no list", "answers": "a"},
    )
    out = tmp_path / "clean.jsonl"
    assert fix(path, str(out)) == {
        "rows read": 14,
        "rows written": 8,
        "rows with unreadable answers removed": 1,
        "rows with empty answers removed": 4,
        "rows with repeated answers removed": 2,
        "rows with an answer cut at a role marker": 3,
        "rows left out: not a JSON object": 1,
        "rows left out: fewer than two answers": 2,
        "rows left out: fewer than two answers after cleaning": 1,
        "rows left out: prompt cannot be read": 1,
        "rows left out: answers cannot be read": 1,
    }
    assert completions(out) == [
        [("yes", 1), ("no", 2)],
        [("b", 2), ("c", 1)],
        [("a", 1), ("c", 3)],
        [("a", 1), ("d", 4)],
        [("b", 2), ("a", 1), ("c", 3)],  # of the two a, the one ranked 1
        [("a", 2), ("b", 1)],
        [("b", 1), ("a", 2)],
        [("a", 2), ("b", 3)],
    ]


def test_what_was_cleaned_is_clean(tmp_path: Path) -> None:
    bad = row("p", answer("a", 1), answer("a", 2), answer("", 3), answer("b\n\nHuman: c", 4), answer("d", math.nan))
    path = written(tmp_path, bad, row(*two("q")), "[]", row("r", answer("a", 1)))
    out = tmp_path / "clean.jsonl"
    fix(path, str(out))
    report = check(str(out))
    assert (report.rankings, report.errors, report.warnings) == (2, {}, {})
    again = tmp_path / "again.jsonl"
    assert fix(str(out), str(again)) == {"rows read": 2, "rows written": 2}
    assert again.read_bytes() == out.read_bytes()


@pytest.mark.parametrize(
    "given",
    [
        row("Hi", answer("b", 2, "y"), answer("a", 1, "x")),
        {
            "context": [{"role": "system", "content": "s"}, {"role": "user", "content": "ü"}],
            "completions": [{"rank": 1, "completion": "b", "model": "y"}, {"rank": 0, "completion": "a"}],
        },
        {"prompt": "Hi", "chosen": "a", "rejected": "b", "chosen_model": "x"},
        {"chosen": "\n\nHuman: Hi\n\nAssistant: a", "rejected": "\n\nHuman: Hi\n\nAssistant: b"},
    ],
    ids=["nectar", "completions", "pairs", "transcripts"],
)
def test_a_good_row_says_the_same_after_fix_with_its_extra_columns(tmp_path: Path, given: dict[str, Any]) -> None:
    extra = {"id": "7", "judge_values": [0.5, None], "nested": {"a": [1]}}  # judge_values in the order of answers
    path, out = written(tmp_path, given | extra), tmp_path / "clean.jsonl"
    assert fix(path, str(out)) == {"rows read": 1, "rows written": 1}
    (before,), (after,) = read_rankings(path), read_rankings(out)
    assert (after.messages, after.responses, after.ranks) == (before.messages, before.responses, before.ranks)
    assert after.models == before.models
    assert after.columns == before.columns
    assert after.columns.items() >= extra.items()


def test_what_stands_beside_an_answer_stays_with_it_when_others_are_removed(tmp_path: Path) -> None:
    def scored(text: str | None, rank: int, score: float) -> dict[str, Any]:
        return {"answer": text, "rank": rank, "score": score}

    path = written(
        tmp_path,
        row("repeats", scored("a", 2, 0.1), scored("a", 1, 0.2), scored("b", 3, 0.3), judge_values=[7, 8, 9]),
        row("unreadable", scored(None, 1, 0.4), scored("c", 2, 0.5), scored("d", 3, 0.6), judge_values=[4, 5, 6]),
    )
    out = tmp_path / "clean.jsonl"
    fix(path, str(out))
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [[each["score"] for each in row["completions"]] for row in rows] == [[0.2, 0.3], [0.5, 0.6]]
    assert [row["judge_values"] for row in rows] == [[8, 9], [5, 6]]


def test_columns_that_kwise_reads_per_answer_keep_the_values_of_the_answers_kept(tmp_path: Path) -> None:
    per_answer = {
        "judge_values": [1, 2, 3, 4],
        "scores": [0.1, 0.2, 0.3, 0.4],
        "models": ["w", "x", "y", "z"],
        "ranking_order": [3, 0, 2, 1],  # without answer 0: 3, 2, 1, which are then 2, 1, 0
    }
    others = {"tags": ["p", "q", "r"], "none": [], "words": "abcd"}
    given = row("p", answer(None, 1), answer("b", 2), answer("c", 3), answer("d", 4), **per_answer, **others)
    out = tmp_path / "clean.jsonl"
    # of three answers left one is a repeat in the second row: 1 and 3 stay
    repeats = given | {"answers": [answer("b", None), answer("b", 2), answer("b", 3), answer("d", 4)]}
    assert fix(written(tmp_path, given, repeats), str(out)) == {
        "rows read": 2,
        "rows written": 2,
        "rows with unreadable answers removed": 2,
        "rows with repeated answers removed": 1,
    }
    assert [each.columns for each in read_rankings(out)] == [
        {
            "judge_values": [2, 3, 4],
            "scores": [0.2, 0.3, 0.4],
            "models": ["x", "y", "z"],
            "ranking_order": [2, 1, 0],
            **others,
        },
        {"judge_values": [2, 4], "scores": [0.2, 0.4], "models": ["x", "z"], "ranking_order": [1, 0], **others},
    ]


def test_other_lists_as_long_as_the_answers_were_stay_and_are_counted(tmp_path: Path) -> None:
    three = {"tokens": [5, 6, 7], "ranking_order": [0, 1, 1]}  # the second is no order
    path = written(
        tmp_path,
        row("repeat", answer("a", 1), answer("a", 2), answer("b", 3), **three),
        row("unreadable", answer("a", 1), answer("a", None), answer("b", 3), tokens=[5, 6, 7], few=[1, 2]),
        row("nothing removed", answer("a", 1), answer("c", 2), answer("b", 3), **three),
    )
    out = tmp_path / "clean.jsonl"
    assert fix(path, str(out)) == {
        "rows read": 3,
        "rows written": 3,
        "rows with repeated answers removed": 1,
        "rows with unreadable answers removed": 1,
        "rows whose column 'tokens' still has a value for each answer that was there": 2,
        "rows whose column 'ranking_order' still has a value for each answer that was there": 1,
    }
    assert [each.columns for each in read_rankings(out)] == [three, {"tokens": [5, 6, 7], "few": [1, 2]}, three]


PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}
LISTS = {"prompt": "p", "chosen": ["a", "b"], "rejected": ["a", "c"]}  # the second a is a repeat
BATTLE = {"prompt": "p", "response_a": "a", "response_b": "b", "winner": "tie"}


@pytest.mark.parametrize(
    ("given", "scores"),
    [
        (PAIR | {"chosen_score": 2.5, "rejected_score": -1}, [2.5, -1]),
        (PAIR | {"scores_chosen": 2.5, "scores_rejected": -1}, [2.5, -1]),
        (PAIR | {"score_chosen": 2.5, "score_rejected": -1}, [2.5, -1]),
        (PAIR | {"scores": [2.5, -1]}, [2.5, -1]),
        (PAIR | {"score_a": 2.5, "score_b": -1}, [2.5, -1]),
        (LISTS | {"chosen_score": [1, 2], "rejected_score": [1, 3]}, [1, 2, 3]),
        (LISTS | {"scores": [1, 2, 1, 3]}, [1, 2, 3]),
        (BATTLE | {"score_a": 2.5, "score_b": -1}, [2.5, -1]),
        (BATTLE | {"winner": "model_b", "scores": [2.5, -1]}, [2.5, -1]),
    ],
)
def test_scores_that_eval_reads_from_a_file_it_reads_from_its_cleaned_copy(
    tmp_path: Path, given: dict[str, Any], scores: list[float]
) -> None:
    path, out = written(tmp_path, given | {"id": 7}), tmp_path / "clean.jsonl"
    (before,) = read_rankings(path)
    known = dict(zip(before.responses, row_scores(given, before), strict=True))
    done = fix(path, str(out))
    (after,) = read_rankings(out)
    assert row_scores(json.loads(out.read_text()), after) == [known[text] for text in after.responses] == scores
    assert after.columns == {"id": 7}
    assert sum("stand beside the answers now, as 'score'" in what for what in done) == 1


def test_the_scores_that_kwise_score_wrote_into_a_battle_come_before_a_list_of_the_users_own(tmp_path: Path) -> None:
    given, out = BATTLE | {"scores": [5, 3], "score_a": -1, "score_b": 2.5}, tmp_path / "clean.jsonl"
    path = written(tmp_path, given)
    assert row_scores(given, next(read_rankings(path))) == [-1, 2.5]
    fix(path, str(out))
    (after,) = read_rankings(out)
    assert row_scores(json.loads(out.read_text()), after) == [-1, 2.5] and after.columns == {"scores": [5, 3]}


def test_errors_and_lower_bounds_go_with_the_scores(tmp_path: Path) -> None:
    gains = {"score": (1, 2), "score_error": (0.1, 0.2), "score_lower": (0.9, 1.8)}
    pair = {f"{side}_{name}": both[i] for name, both in gains.items() for i, side in enumerate(("chosen", "rejected"))}
    battle = {f"{name}_{side}": both[i] for name, both in gains.items() for i, side in enumerate("ab")}
    out = tmp_path / "clean.jsonl"
    fix(written(tmp_path, PAIR | pair), str(out))
    fix(written(tmp_path, BATTLE | battle), str(tmp_path / "battle.jsonl"))
    for file in (out, tmp_path / "battle.jsonl"):
        cleaned = json.loads(file.read_text())
        assert cleaned.keys() == {"context", "completions"}
        assert [{name: each[name] for name in gains} for each in cleaned["completions"]] == [
            {name: both[i] for name, both in gains.items()} for i in (0, 1)
        ]


def test_scores_that_do_not_fit_their_sides_stay_where_they_are(tmp_path: Path) -> None:
    odd = {"chosen_score": [1, 2, 3], "rejected_score": [4]}  # two answers each
    out = tmp_path / "clean.jsonl"
    fix(written(tmp_path, LISTS | odd, PAIR | {"chosen_score": 1}), str(out))
    assert [each.columns for each in read_rankings(out)] == [odd, {"chosen_score": 1}]


def test_a_fix_that_keeps_no_row_says_why_and_leaves_no_file(tmp_path: Path) -> None:
    path, out = written(tmp_path, row("p", answer("a", 1)), row("p", answer("a", 1), answer("a", 2))), tmp_path / "out"
    with pytest.raises(DataError) as caught:
        fix(path, str(out))
    assert str(caught.value) == (
        f"{path}: no row is left after cleaning, so no copy is written (rows read: 2; rows left out: fewer than two answers: "
        "1; rows with repeated answers removed: 1; rows left out: fewer than two answers after cleaning: 1)"
    )
    assert not out.exists()


def test_a_column_that_has_the_name_of_one_written_gets_another_and_is_counted(tmp_path: Path) -> None:
    path = written(tmp_path, {"prompt": "Hi", "chosen": "a", "rejected": "b", "context": "a page", "completions": 2})
    out = tmp_path / "clean.jsonl"
    done = fix(path, str(out), "pairs")
    assert done["rows whose column 'context' is now 'own_context'"] == 1
    (after,) = read_rankings(out)
    assert (after.prompt, after.columns) == ("user: Hi", {"own_context": "a page", "own_completions": 2})


def test_unreadable_completions_are_removed_too(tmp_path: Path) -> None:
    said = [{"role": "assistant", "content": "x"}]
    items = [(0, "a"), (None, "b"), (1, [*said, *said]), (2, said)]
    given = {"context": "Hi", "completions": [{"rank": rank, "completion": each} for rank, each in items]}
    out = tmp_path / "clean.jsonl"
    assert fix(written(tmp_path, given), str(out))["rows with unreadable answers removed"] == 1
    assert completions(out) == [[("a", 0), ("x", 2)]]


def test_a_row_that_has_a_key_twice_is_left_out_by_fix_and_counted(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD, '{"prompt": "q", "chosen": "good", "chosen": "bad", "rejected": "x"}')
    done = fix(path, str(tmp_path / "clean.jsonl"))
    assert done == {"rows read": 2, "rows written": 1, "rows left out: a key twice in one object": 1}


def test_an_unreadable_side_of_a_pair_leaves_the_row_out(tmp_path: Path) -> None:
    pair = {"prompt": "Hi", "chosen": "a", "rejected": "b"}
    done = fix(written(tmp_path, pair, pair | {"chosen": None}), str(tmp_path / "clean.jsonl"))
    assert done == {"rows read": 2, "rows written": 1, "rows left out: answers cannot be read": 1}


def test_fix_refuses_to_overwrite_and_leaves_the_file_alone(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    before = Path(path).read_bytes()
    with pytest.raises(FileExistsError):
        fix(path, path)
    assert Path(path).read_bytes() == before


@pytest.mark.parametrize("kind", ["missing", "no ranking", "cut short", "unknown source"])
def test_a_fix_that_fails_leaves_no_half_copy_behind(tmp_path: Path, kind: str) -> None:
    path, out = tmp_path / "rows.jsonl", tmp_path / "clean.jsonl"
    if kind == "no ranking":
        written(tmp_path, {"text": "a"})
    elif kind == "cut short":
        path.write_bytes(gzip.compress("".join(json.dumps(GOOD) + "\n" for _ in range(9)).encode())[:-3])
    elif kind == "unknown source":
        written(tmp_path, GOOD)
    with pytest.raises(ValueError):  # DataError is one; which error each is, other tests say
        fix(str(path), str(out), "csv" if kind == "unknown source" else "auto")
    assert not out.exists()


def test_a_fix_that_is_killed_half_way_leaves_nothing_that_looks_like_a_copy(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text((json.dumps(GOOD) + "\n") * 200_000)
    command = "import sys; from kwise.data.fix import fix; fix(*sys.argv[1:])"
    run = subprocess.Popen([sys.executable, "-c", command, str(path), str(tmp_path / "clean.jsonl")])
    while not any(each.is_file() and each != path and each.stat().st_size for each in tmp_path.rglob("*")):
        assert run.poll() is None
        time.sleep(0.002)
    run.kill()
    assert run.wait() == -signal.SIGKILL
    assert not (tmp_path / "clean.jsonl").exists()


def test_dates_of_a_parquet_column_become_text(tmp_path: Path) -> None:
    path, out = tmp_path / "rows.parquet", tmp_path / "clean.jsonl"
    day = datetime.date(2024, 2, 29)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([GOOD | {"day": day}]), path)
    assert fix(str(path), str(out)) == {"rows read": 1, "rows written": 1}
    assert next(read_rankings(out)).columns == {"day": "2024-02-29"}
