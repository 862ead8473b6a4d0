import datetime
import gzip
import json
import math
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from kwise.data.check import check, fix
from kwise.data.sources import read_rankings
from kwise.records import DataError
from kwise.use.foreign import row_scores


def answer(text: Any, rank: Any, model: str | None = None) -> dict[str, Any]:
    return {"answer": text, "rank": rank, **({"model": model} if model else {})}


def row(prompt: Any, *answers: dict[str, Any], **columns: Any) -> dict[str, Any]:
    return {"prompt": prompt, "answers": list(answers), **columns}


GOOD = row("Good?", answer("yes", 1), answer("no", 2))


def written(folder: Path, *rows: dict[str, Any] | str, name: str = "rows.jsonl") -> str:
    path = folder / name
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return str(path)


def two(prompt: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    return prompt, answer("yes", 1), answer("no", 2)


# --- errors and warnings -----------------------------------------------------------------------------------------------


def test_every_kind_of_error_has_its_lines(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        GOOD,
        "{broken",
        "",
        '["a list"]',
        row("null rank", answer("a", None), answer("b", 2)),
        row("text rank", answer("a", 1), answer("b", "2")),
        row("NaN rank", answer("a", 1), answer("b", math.nan)),
        row("boolean rank", answer("a", 1), answer("b", True)),
        row("one answer", answer("a", 1)),
        row("", answer("a", 1), answer("b", 2)),
        row("null answer", answer(None, 1), answer("b", 2)),
        {"prompt": "no answers", "answers": None},
        row([{"role": "human", "content": "x"}], answer("a", 1), answer("b", 2)),
        row("last", answer("a", 1), answer("b", 2)),
        '{"prompt": "p", "answers": [{"answer": "a", "rank": 1, "rank": 2}, {"answer": "b", "rank": 1}]}',
        row("inexact rank", answer("a", 2**53), answer("b", 2**53 + 1)),
    )
    report = check(path)
    assert report.errors == {
        "not a JSON object": [2, 4],
        "rank is null, not a number, not finite or too large": [5, 6, 7, 8, 16],
        "fewer than two answers": [9],
        "prompt cannot be read": [10, 13],
        "a key twice in one object": [15],
        "answers cannot be read": [11, 12],
    }
    assert (report.rows, report.rankings) == (15, 2)  # the blank line 3 is no row
    assert [message.split(f"{path}, line ")[1].split(":")[0] for message in report.messages] == [
        "2",
        "4",
        "5, field 'answers[0].rank'",
        "6, field 'answers[1].rank'",
        "7, field 'answers[1].rank'",
        "8, field 'answers[1].rank'",
        "9, field 'answers'",
        "10, field 'prompt'",
        "11, field 'answers[0].answer'",
        "12, field 'answers'",
        "13, field 'prompt[0].role'",
        "15, field 'rank'",
        "16, field 'answers[1].rank'",
    ]
    assert report.warnings == {}


def test_every_kind_of_warning_has_its_lines(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        GOOD,
        row("same twice", answer("a", 1), answer("b", 2), answer("a", 3)),
        row("empty", answer("a", 1), answer(" \n", 2)),
        row("goes on", answer("a\n\nHuman: and then?", 1), answer("b", 2)),
        row("goes on here", answer("a", 1), answer("b\n\nAssistant: c", 2)),
        row("only speaks of Human: and\nAssistant:", answer("Human: a", 1), answer("b\nHuman: c", 2)),
        row("\n\nHuman: \n\nAssistant: yes\n\nHuman: go on\n\nAssistant: ", answer("a", 1), answer("b", 2)),
        row("all tied", answer("a", 1), answer("b", 1)),
        row("some tied", answer("a", 1), answer("b", 1), answer("c", 2)),
        GOOD,
        row("Good? Rather.", answer("a", 1), answer("b", 2), prompt_group="user: Good?"),
        row("one value too many", answer("a", 1), answer("b", 2), judge_values=[1, 2, 3]),
        row("no number", answer("a", 1), answer("b", 2), margin="much"),
        row("no float holds it", answer("a", 1), answer("b", 2), margin=10**400),
        row(" Human: not a transcript", answer("a", 1), answer("b", 2)),
        row("Assistant: nor this", answer("a", 1), answer("b", 2)),
        row("This neither:\r\n\r\nHuman: hi\r\n\r\nAssistant:", answer("a", 1), answer("b", 2)),
        row([{"role": "user", "content": "nor this\n\nHuman: hi"}], answer("a", 1), answer("b", 2)),
        row("Human: but this is\n\nAssistant:", answer("a", 1), answer("b\r\n\r\nHuman: c", 2)),
        row("before", answer("a", 1), answer(" b", 2)),
        row("after", answer("a\n", 1), answer("b", 2)),
        row("Human: no matter\n\nAssistant:", answer("a\n", 1), answer(" b", 2)),
    )
    report = check(path)
    assert report.warnings == {
        "duplicate answers": [2],
        "empty answer": [3],
        "white space at the edge of an answer": [20, 21],
        "role marker inside an answer": [4, 5, 19],
        "role marker inside a prompt turn": [15, 16, 17, 18],
        "empty turn in the prompt": [7],
        "all answers tied": [8],
        "prompt of an earlier line": [10, 11],
        "judge_values or margin that evaluation refuses": [12, 13, 14],
    }
    assert report.errors == {}
    assert report.rankings == 22


def test_a_prompt_taken_from_the_answers_is_counted_by_check_and_by_fix(tmp_path: Path) -> None:
    guessed = {"chosen": "What is 1 + 1? 2", "rejected": "What is 1 + 1? 3"}
    known = {"chosen": "Human: 1 + 1?\n\nAssistant: It is 2", "rejected": "Human: 1 + 1?\n\nAssistant: It is 3"}
    path = written(tmp_path, known, guessed, guessed | {"prompt": ""})
    assert check(path).warnings == {"prompt taken from what both answers begin with": [2]}
    assert fix(path, str(tmp_path / "clean.jsonl")) == {
        "rows read": 3,
        "rows written": 2,
        "rows whose prompt was taken from what both answers begin with": 1,
        "rows left out: prompt cannot be read": 1,
    }


def test_a_clean_file_has_neither_errors_nor_warnings(tmp_path: Path) -> None:
    report = check(written(tmp_path, GOOD))
    assert (report.errors, report.warnings, report.messages) == ({}, {}, [])


def test_what_is_no_ranking_file_raises(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no known kind of ranking"):
        check(written(tmp_path, {"text": "a"}))
    with pytest.raises(DataError, match="this looks like CSV"):
        check(written(tmp_path, "prompt,answer"))
    with pytest.raises(ValueError, match="unknown source"):
        check(written(tmp_path, GOOD), "parquet")


# --- facts ------------------------------------------------------------------------------------------------------------


def test_facts_by_hand(tmp_path: Path) -> None:
    several = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: "
    report = check(
        written(
            tmp_path,
            # longer is right 2 of 3; ranks 1 to 3
            row("p", answer("long one", 1, "x"), answer("ab", 2, "y"), answer("abc", 3, "z")),
            # longer is right 0 of 2, of three pairs one is tied
            row(several, answer("a", 1, "y"), answer("bb", 2, "x"), answer("cc", 2, "w")),
            # equally long: a half of 1; ranks from 0
            row("q", answer("aa", 0), answer("bb", 1)),
            row("p", answer("bbbb", 1, "x"), answer("aa", 2, "w"), id=4),
            row("bad", answer("aa", None), answer("bb", 1)),
        )
    )
    # longer: 2 + 0 + 0.5 + 1 of 3 + 2 + 1 + 1
    # models, p (lines 1 and 4 together are one prompt): from outside, line 2, y 1, x 1/4, w 1/4, z unknown.
    #   line 1: x over y, wrong, 0 of 1. line 4: x over w, equal, 0.5 of 1.
    # models, line 2: from p, x (1 + 1) / 2 = 1, y 1/2, w 0. y over x wrong, y over w right, 1 of 2.
    assert report.facts == {
        "prompts": 3,
        "answers": 10,
        "k": {"2": 2, "3": 2},
        "answers_of_known_author": 8,
        "rankings_with_ties": 1,
        "ranks_are_1_to_k": 2,
        "turns": {"1": 3, "3": 1},
        "longer_wins": 3.5 / 7,
        "better_model_wins": 1.5 / 4,
    }


def test_shares_of_nothing_are_unknown_not_zero(tmp_path: Path) -> None:
    facts = check(written(tmp_path, row("p", answer("a", 1), answer("b", 1)))).facts
    assert (facts["longer_wins"], facts["better_model_wins"]) == (None, None)


def test_the_report_as_json_holds_everything(tmp_path: Path, tokenizer) -> None:
    report = check(written(tmp_path, GOOD, "{broken", GOOD), tokenizer=tokenizer)
    assert json.loads(json.dumps(report.to_json())) == {
        "rows": 3,
        "rankings": 2,
        "errors": {"not a JSON object": [2]},
        "warnings": {"prompt of an earlier line": [3]},
        **report.facts,
        "token_lengths": report.lengths,
    }


# --- lengths in tokens --------------------------------------------------------------------------------------------------

BEFORE = 1 + len("user\n") + len("Hi") + 1 + 1 + 1 + len("assistant\n")  # a token a byte, and three special ones
AFTER = 2  # <|im_end|> and a line break


def sized(*lengths: int) -> dict[str, Any]:
    letters = iter("abcdefgh")
    return row("Hi", *(answer(next(letters) * length, rank) for rank, length in enumerate(lengths, 1)))


@pytest.mark.parametrize("max_length", [1000, BEFORE + AFTER + 6], ids=["nothing cut", "some cut"])
def test_lengths_by_hand_are_those_before_any_cut(tmp_path: Path, tokenizer, max_length: int) -> None:
    path = written(tmp_path, sized(1, 2), sized(6, 4), sized(3, 7, 5), sized(8, 9))
    report = check(path, tokenizer=tokenizer, max_length=max_length)
    full = BEFORE + AFTER
    # nine sequences of 1 to 9 bytes more than `full`; the median is the 5th, at 90 % and above the longest
    assert report.lengths["prompt and one answer"] == [9, full + 5, full + 9, full + 9, full + 9]
    if max_length == 1000:
        assert report.lengths["shared prefix"] == [4, BEFORE, BEFORE, BEFORE, BEFORE]
        # the four rankings take 4 + 3, 4 + 10, 6 + 15 and 4 + 17 tokens after the prefix; the median is the third
        assert report.lengths["whole ranking"] == [4] + [BEFORE + 21] * 4
        assert "longer" not in " ".join(report.warnings)
    else:
        assert report.warnings[f"longer than {max_length} tokens"] == [3, 4]


def test_what_the_chat_template_refuses_is_an_error_of_that_line(tmp_path: Path, make_tokenizer) -> None:
    template = "{{ raise_exception('no bad words') if 'bad' in messages[0]['content'] else messages[-1]['content'] }}"
    path = written(tmp_path, GOOD, "", row(*two("a bad one")), row(*two("fine")))
    report = check(path, tokenizer=make_tokenizer(template=template))
    assert report.errors == {"refused by the chat template": [3]}
    assert report.messages == [f"{path}, line 3: cannot be encoded: no bad words"]
    assert report.lengths["whole ranking"][0] == 2


def test_without_a_tokenizer_there_are_no_lengths(tmp_path: Path) -> None:
    assert check(written(tmp_path, GOOD)).lengths == {}


# --- fix ----------------------------------------------------------------------------------------------------------------


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


def test_dates_of_a_parquet_column_become_text(tmp_path: Path) -> None:
    path, out = tmp_path / "rows.parquet", tmp_path / "clean.jsonl"
    day = datetime.date(2024, 2, 29)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([GOOD | {"day": day}]), path)
    assert fix(str(path), str(out)) == {"rows read": 1, "rows written": 1}
    assert next(read_rankings(out)).columns == {"day": "2024-02-29"}
