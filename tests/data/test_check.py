import json
import math
from pathlib import Path
from typing import Any

import pytest
from nectar_rows import GOOD, answer, row, two, written

from kwise.data.check import check
from kwise.data.fix import fix
from kwise.records import DataError


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
