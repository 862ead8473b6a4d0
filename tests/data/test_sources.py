import gzip
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from source_rows import ARENA, BATTLE, COMPLETIONS, NECTAR, PAIR, USER, answers, nectar, parsed, refused, said, written

from kwise.data import sources
from kwise.data.sources import read_rankings, scan_rankings
from kwise.data.turns import FieldError
from kwise.records import DataError, Ranking

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"


@pytest.mark.parametrize("row", [NECTAR, COMPLETIONS, PAIR, BATTLE, ARENA], ids=list(sources.SOURCES))
def test_each_source_is_told_by_its_columns_and_gives_the_same_ranking(tmp_path: Path, row: dict[str, Any]) -> None:
    (ranking,) = read_rankings(written(tmp_path, row))
    assert ranking.messages == [USER]
    assert dict(zip(ranking.responses, ranking.ranks, strict=True))["b"] == min(ranking.ranks)
    assert sorted(ranking.responses) == ["a", "b"]


def test_every_source_can_be_told_by_columns() -> None:
    assert sources.SOURCES.keys() == sources.COLUMNS.keys()


def test_unknown_columns_are_refused_with_what_they_are_and_what_is_read(tmp_path: Path) -> None:
    path = written(tmp_path, {"question": "Hi", "best": "a"})
    with pytest.raises(DataError) as caught:
        list(read_rankings(path))
    assert str(caught.value) == (
        f"{path}, line 1: no known kind of ranking: it has question, best; kwise reads "
        "answers, prompt (nectar); completions, context (completions); chosen, rejected (pairs); "
        "prompt, response_a, response_b, winner (battles); conversation_a, conversation_b, winner (arena)"
    )


def test_an_unknown_source_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="unknown source 'csv'; known: auto, nectar, completions, pairs, battles, arena"
    ):
        list(read_rankings(written(tmp_path, PAIR), "csv"))


def test_a_named_source_overrides_what_the_columns_say(tmp_path: Path) -> None:
    path = written(tmp_path, PAIR | NECTAR)
    assert next(read_rankings(path)).ranks == [2.0, 1.0]
    as_pairs = next(read_rankings(path, "pairs"))
    assert (as_pairs.responses, as_pairs.ranks) == (["b", "a"], [1.0, 2.0])
    assert as_pairs.columns == {"answers": NECTAR["answers"]}


def test_the_kind_is_told_by_the_first_line_that_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n{broken\n" + json.dumps(PAIR) + "\n")
    found = list(scan_rankings(path))
    assert isinstance(found[0], DataError) and found[0].line == 2
    assert isinstance(found[1], Ranking) and found[1].line == 3


def test_reading_stops_at_the_first_bad_line_and_scanning_goes_on(tmp_path: Path) -> None:
    path = written(tmp_path, PAIR, PAIR | {"chosen": None}, PAIR)
    reader = read_rankings(path)
    assert next(reader).line == 1
    with pytest.raises(DataError) as caught:
        next(reader)
    assert (
        str(caught.value)
        == f"{path}, line 2, field 'chosen': must be text or a list with one assistant message, this is null"
    )
    assert [item.line for item in scan_rankings(path)] == [1, 2, 3]
    assert [type(item) for item in scan_rankings(path)] == [Ranking, DataError, Ranking]


@pytest.mark.parametrize(
    ("row", "source", "used"),
    [
        (NECTAR, "nectar", {"prompt", "answers"}),
        (COMPLETIONS, "completions", {"context", "completions"}),
        (PAIR, "pairs", {"prompt", "chosen", "rejected"}),
    ],
)
def test_extra_columns_are_kept_as_they_came(row: dict[str, Any], source: str, used: set[str]) -> None:
    extra = {"id": 7, "judge_values": [1.5, None], "nested": {"a": [{}]}, "models": ["x", "y"]}
    assert parsed(extra | row, source).columns == extra
    assert set(row) == used


@pytest.mark.parametrize("size", range(2, 10))
def test_nectar_takes_any_k_and_reads_ranks_never_the_order_of_the_list(size: int) -> None:
    ranks = list(range(1, size + 1))
    random.Random(size).shuffle(ranks)
    ranking = parsed(nectar(answers=answers(*ranks)), "nectar")
    assert ranking.ranks == ranks
    assert ranking.responses == [f"answer {i}" for i in range(size)]
    assert ranking.models == [f"model {i}" for i in range(size)]


def test_ties_and_fractions_of_ranks_are_kept() -> None:
    assert parsed(nectar(answers=answers(2.5, 1, 2.5, -3)), "nectar").ranks == [2.5, 1.0, 2.5, -3.0]


def test_large_ranks_that_a_float_holds_exactly_stay_different() -> None:
    ranks = [2**53, 2**53 + 2, 2**53 - 1, -(2**60)]
    assert parsed(nectar(answers=answers(*ranks)), "nectar").ranks == [
        9007199254740992.0,
        9007199254740994.0,
        9007199254740991.0,
        -1152921504606846976.0,
    ]


def test_ranks_are_floats_whatever_they_were() -> None:
    assert all(type(rank) is float for rank in parsed(nectar(answers=answers(1, 2.0)), "nectar").ranks)


@pytest.mark.parametrize(
    ("rank", "told"),
    [
        (None, "a rank must be a number, this is null"),
        ("1", "a rank must be a number, this is text"),
        (True, "a rank must be a number, this is true or false"),
        ([1], "a rank must be a number, this is a list"),
        (math.nan, "a rank must be a finite number, this is nan"),
        (-math.inf, "a rank must be a finite number, this is -inf"),
        (2**53 + 1, "a rank must be a number that a 64-bit float holds exactly, this is 9007199254740993"),
        (-(2**60) - 1, "a rank must be a number that a 64-bit float holds exactly, this is -1152921504606846977"),
        pytest.param(10**400, f"a rank must be a finite number, this is {10**400}", id="1e400"),
    ],
)
@pytest.mark.parametrize("source", ["nectar", "completions"])
def test_unreadable_ranks_name_the_answer(rank: object, told: str, source: str) -> None:
    if source == "nectar":
        row, column = nectar(answers=answers(1, 2, rank)), "answers"
    else:
        column = "completions"
        row = COMPLETIONS | {column: [{"rank": each, "completion": "x"} for each in (1, 2, rank)]}
    assert refused(row, source) == f"f.jsonl, line 7, field '{column}[2].rank': {told}"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (None, "field 'answers': must be a list, this is null"),
        ({"0": "a"}, "field 'answers': must be a list, this is an object"),
        (["a", "b"], "field 'answers[0]': must be an object, this is text"),
        ([], "field 'answers': a ranking needs at least two answers, this has 0"),
        (answers(1), "field 'answers': a ranking needs at least two answers, this has 1"),
        ([*answers(1), {"answer": None, "rank": 2}], "field 'answers[1].answer': must be text, this is null"),
        ([*answers(1), {"rank": 2}], "field 'answers[1].answer': must be text, this is null"),
        ([*answers(1), {"answer": "x"}], "field 'answers[1].rank': a rank must be a number, this is null"),
    ],
)
def test_unreadable_answers_name_the_field(given: object, told: str) -> None:
    assert refused(nectar(answers=given), "nectar") == f"f.jsonl, line 7, {told}"


def test_a_model_that_is_no_name_is_unknown() -> None:
    given = [
        {"answer": "a", "rank": 1, "model": 7},
        {"answer": "b", "rank": 2},
        {"answer": "c", "rank": 3, "model": "m"},
    ]
    assert parsed(nectar(answers=given), "nectar").models == [None, None, "m"]


@pytest.mark.parametrize("first", [0, 1], ids=["0-based", "1-based"])
@pytest.mark.parametrize("messages", [False, True], ids=["text", "messages"])
def test_completions_are_read_with_ranks_from_0_or_1_as_text_or_message(first: int, messages: bool) -> None:
    def completion(text: str) -> object:
        return [{"role": "assistant", "content": text}] if messages else text

    row = {
        "context": [{"role": "system", "content": "Be brief."}, USER],
        "completions": [
            {"rank": first + 2, "completion": completion("c"), "model": "m"},
            {"rank": first, "completion": completion("a")},
            {"rank": first + 1, "completion": completion("b")},
        ],
    }
    ranking = parsed(row, "completions")
    assert ranking.messages == row["context"]
    assert ranking.responses == ["c", "a", "b"]
    assert ranking.ranks == [first + 2, first, first + 1]
    assert ranking.models == ["m", None, None]


@pytest.mark.parametrize(
    ("completion", "told"),
    [
        (
            [{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}],
            "completion': must be text or a list with one assistant message",
        ),
        ([], "completion': must be text or a list with one assistant message"),
        ([USER], "completion': must be text or a list with one assistant message"),
        (
            [{"role": "assistant", "content": "4", "reasoning_content": "2 + 2"}],
            "completion[0].reasoning_content': kwise reads the text in 'content' only, and the rest would be lost",
        ),
        ([{"role": "assistant", "content": None}], "completion[0].content': must be text, this is null"),
        (None, "completion': must be text or a list with one assistant message, this is null"),
    ],
)
def test_a_completion_must_be_one_assistant_message(completion: object, told: str) -> None:
    row = COMPLETIONS | {"completions": [{"rank": 0, "completion": "a"}, {"rank": 1, "completion": completion}]}
    assert refused(row, "completions") == f"f.jsonl, line 7, field 'completions[1].{told}"


def test_a_context_that_cannot_be_read_names_its_own_field() -> None:
    assert refused(COMPLETIONS | {"context": None}, "completions") == (
        "f.jsonl, line 7, field 'context': must be text, this is null"
    )


@pytest.mark.parametrize(
    ("winner", "ranks"),
    [("model_a", [1, 2]), ("model_b", [2, 1]), ("tie", [1, 1]), ("tie (bothbad)", [1, 1]), ("both_bad", [1, 1])],
)
def test_a_battle_is_ranked_by_its_winner_and_knows_its_authors(winner: str, ranks: list[float]) -> None:
    ranking = parsed(BATTLE | {"winner": winner, "model_a": "x", "model_b": "y", "judge": 3}, "battles")
    assert (ranking.responses, ranking.ranks, ranking.models) == (["a", "b"], ranks, ["x", "y"])
    assert ranking.columns == {"model_a": "x", "model_b": "y", "judge": 3}


@pytest.mark.parametrize("winner", [None, "a", 1, ["model_a"], {}])
def test_a_battle_without_a_known_winner_is_refused(winner: Any) -> None:
    told = f"'winner': must be one of model_a, model_b, tie, tie (bothbad), both_bad, this is {winner!r}"
    assert refused(BATTLE | {"winner": winner}, "battles") == f"f.jsonl, line 7, field {told}"


def test_an_arena_row_is_ranked_by_its_winner_and_knows_its_authors() -> None:
    ranking = parsed(ARENA, "arena")
    assert (ranking.responses, ranking.ranks, ranking.models) == (["a", "b"], [2, 1], ["x", "y"])
    assert ranking.columns == {"model_a": "x", "model_b": "y", "turn": 1}


def test_arena_conversations_that_part_before_the_last_turn_are_no_ranking() -> None:
    longer = [*ARENA["conversation_a"], {"role": "user", "content": "More"}, {"role": "assistant", "content": "c"}]
    other = [*ARENA["conversation_b"], {"role": "user", "content": "More"}, {"role": "assistant", "content": "d"}]
    told = "field 'conversation_b': its conversation differs from that of 'conversation_a' before the last turn"
    assert refused(ARENA | {"conversation_a": longer, "conversation_b": other}, "arena") == f"f.jsonl, line 7, {told}"


SKY = [said("user", "What colour is the sky?")]
PAIR_CASES = {
    "explicit text": {"prompt": "What colour is the sky?", "chosen": "Blue.", "rejected": "Red."},
    "explicit messages": {
        "prompt": SKY,
        "chosen": [said("assistant", "Blue.")],
        "rejected": [said("assistant", "Red.")],
    },
    "explicit transcript": {
        "prompt": "\n\nHuman: What colour is the sky?\n\nAssistant: ",
        "chosen": "Blue.",
        "rejected": "Red.",
    },
    "implicit text": {"chosen": "What colour is the sky? Blue.", "rejected": "What colour is the sky? Red."},
    "implicit lines": {"chosen": "What colour is the sky?\nBlue.", "rejected": "What colour is the sky?\nRed."},
    "implicit text alike": {"chosen": "What colour is the sky?\nBlue.", "rejected": "What colour is the sky?\nBlack."},
    "implicit messages": {
        "chosen": [*SKY, said("assistant", "Blue.")],
        "rejected": [*SKY, said("assistant", "Red.")],
    },
    "transcripts": {
        "chosen": "\n\nHuman: What colour is the sky?\n\nAssistant: Blue.",
        "rejected": "\n\nHuman: What colour is the sky?\n\nAssistant: Red.",
    },
    **{
        f"transcripts, {name}": {
            side: written.format(answer) for side, answer in (("chosen", "Blue."), ("rejected", "Red."))
        }
        for name, written in {
            "without the blank line at the front": "Human: What colour is the sky?\n\nAssistant: {}",
            "one line end at the front": "\nHuman: What colour is the sky?\n\nAssistant: {}",
            "three line ends at the front": "\n\n\nHuman: What colour is the sky?\n\nAssistant: {}",
            "CRLF": "\r\n\r\nHuman: What colour is the sky?\r\n\r\nAssistant: {}",
            "CRLF without the blank line": "Human: What colour is the sky?\r\n\r\nAssistant: {}\r\n",
        }.items()
    },
    "lists of one": {"prompt": "What colour is the sky?", "chosen": ["Blue."], "rejected": ["Red."]},
}


@pytest.mark.parametrize("case", PAIR_CASES)
def test_every_kind_of_pair_gives_the_same_prompt_and_chosen_before_rejected(case: str) -> None:
    ranking = parsed(PAIR_CASES[case] | {"id": 1}, "pairs")
    assert ranking.messages == SKY
    assert ranking.responses == ["Blue.", "Black." if case == "implicit text alike" else "Red."]
    assert ranking.ranks == [1.0, 2.0]
    assert ranking.columns == {"id": 1}


def test_transcripts_of_several_turns_share_all_turns_but_the_last() -> None:
    start = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: "
    ranking = parsed({"chosen": start + "good", "rejected": start}, "pairs")
    assert ranking.messages == [said("user", "a"), said("assistant", "b"), said("user", "c")]
    assert ranking.responses == ["good", ""]


def test_answers_that_begin_alike_are_no_part_of_the_prompt_of_a_transcript() -> None:
    start = "Human: What is the capital of France?\n\nAssistant: The capital of France is "
    ranking = parsed({"chosen": start + "Paris.", "rejected": start + "London."}, "pairs")
    assert ranking.messages == [said("user", "What is the capital of France?")]
    assert ranking.responses == ["The capital of France is Paris.", "The capital of France is London."]
    assert not ranking.prompt_from_answers


def test_a_prompt_taken_from_the_answers_is_known_as_such() -> None:
    taken = {case: parsed(row, "pairs").prompt_from_answers for case, row in PAIR_CASES.items()}
    assert {case for case in taken if taken[case]} == {"implicit text", "implicit lines", "implicit text alike"}


def test_lists_become_one_ranking_of_all_chosen_tied_before_all_rejected() -> None:
    ranking = parsed({"prompt": "p", "chosen": ["a", "b"], "rejected": ["c", "d", "e"]}, "pairs")
    assert ranking.responses == ["a", "b", "c", "d", "e"]
    assert ranking.ranks == [1.0, 1.0, 2.0, 2.0, 2.0]
    assert ranking.models == [None] * 5


@pytest.mark.parametrize(
    ("named", "models"),
    [
        ({"models": {"chosen": "x", "rejected": "y"}}, ["x", "y", "y"]),
        ({"models": ["x", "y", "z"]}, ["x", "y", "z"]),
        ({"models": ["x", "y"]}, [None, None, None]),  # two names for three answers: nobody knows whose
        ({"chosen_model": "x", "rejected_model": "y"}, ["x", "y", "y"]),
        ({"models": {"chosen": "x"}, "rejected_model": "y"}, ["x", "y", "y"]),
        ({"models": ["x", None, 3]}, ["x", None, None]),
        ({"models": "x"}, [None, None, None]),
        ({}, [None, None, None]),
    ],
)
def test_models_of_pairs_by_side_or_one_for_each_answer(named: dict[str, Any], models: list[str | None]) -> None:
    ranking = parsed({"prompt": "p", "chosen": ["a"], "rejected": ["b", "c"]} | named, "pairs")
    assert ranking.models == models
    assert ranking.columns == named


def test_two_models_in_a_list_name_chosen_then_rejected() -> None:
    assert parsed(PAIR | {"models": ["x", "y"]}, "pairs").models == ["x", "y"]


H = "\n\nHuman: a\n\nAssistant: "


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (
            {"prompt": "p", "chosen": [], "rejected": ["a"]},
            "'chosen': must be text or a list with one assistant message",
        ),
        ({"prompt": "p", "chosen": "a"}, "'rejected': must be text or a list with one assistant message, this is null"),
        ({"prompt": None, "chosen": "a", "rejected": "b"}, "'prompt': must be text, this is null"),
        ({"chosen": "x", "rejected": "y"}, "'prompt': there is no such column, and the two answers do not begin alike"),
        ({"chosen": "x", "rejected": None}, "'rejected': must be text, this is null"),
        ({"chosen": H + "x", "rejected": "y"}, "'rejected': the conversation must begin with a Human turn"),
        ({"chosen": "y", "rejected": H + "x"}, "'chosen': the conversation must begin with a Human turn"),
        ({"chosen": H + "x", "rejected": "y" + H + "x"}, "'rejected': the conversation must begin with a Human turn"),
        (
            {"chosen": H + "x", "rejected": "\n\nHuman: b\n\nAssistant: x"},
            "'rejected': its conversation differs from that of 'chosen' before the last turn",
        ),
        (
            {"chosen": H + "x\n\nHuman: y", "rejected": H + "x"},
            "'chosen': without a column 'prompt' it must hold the prompt and end with an assistant turn",
        ),
        (
            {"chosen": [said("assistant", "x")], "rejected": [said("assistant", "y")]},
            "'chosen': without a column 'prompt' it must hold the prompt and end with an assistant turn",
        ),
        (
            {"chosen": [*SKY, said("assistant", "x")], "rejected": [USER, said("assistant", "x")]},
            "'rejected': its conversation differs from that of 'chosen' before the last turn",
        ),
    ],
)
def test_unreadable_pairs_name_the_field(row: dict[str, Any], told: str) -> None:
    assert refused(row, "pairs") == f"f.jsonl, line 7, field {told}"


@pytest.fixture
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("the shared data is not beside this checkout")
    return SHARED


def plainly(file: Path) -> list[dict[str, Any]]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def test_real_rankings_keep_each_answer_with_its_own_rank_and_model(shared: Path) -> None:
    file = shared / "rankings-heldout.jsonl.gz"
    rows, rankings = plainly(file), list(read_rankings(file))
    assert len(rankings) == 765
    for row, ranking in zip(rows, rankings, strict=True):
        came = {(item["answer"], item["model"], item["rank"]) for item in row["answers"]}
        assert set(zip(ranking.responses, ranking.models, ranking.ranks, strict=True)) == came
        assert ranking.messages[-1]["role"] == "user" and "\n\nHuman:" not in ranking.messages[0]["content"]
        assert ranking.group == row["prompt_group"]


def test_real_pairs_are_all_read_chosen_first(shared: Path) -> None:
    counts: dict[str, int] = {}
    for file in sorted((shared / "pairs").glob("*.jsonl.gz")):
        if file.name.startswith(("rmbench", "hh-harmless")):
            continue  # large
        rows, rankings = plainly(file), list(read_rankings(file))
        assert [list(map(str.strip, r.responses)) for r in rankings] == [
            [row["chosen"].strip(), row["rejected"].strip()] for row in rows
        ]
        counts[file.name.removesuffix(".jsonl.gz")] = len(rankings)
    assert counts["llmbar"] == 290 and counts["gsm8k"] == 499 and len(counts) == 11


CHAT = [{"role": "user", "content": "Name a sea."}]


@pytest.mark.parametrize("prompt", ["Name a sea.", CHAT])
def test_a_prompt_column_beside_whole_conversations_is_read_once(prompt):
    """The layout of HuggingFaceH4/ultrafeedback_binarized."""
    sides = {side: [*CHAT, {"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    parts = sources.pairs({"prompt": prompt, **sides})
    assert (parts.messages, parts.responses, parts.ranks) == (CHAT, ["chosen", "rejected"], [1.0, 2.0])


def test_a_prompt_column_that_contradicts_the_conversations_is_an_error():
    sides = {side: [*CHAT, {"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    with pytest.raises(FieldError, match="is not the prompt of the conversations"):
        sources.pairs({"prompt": "Name a lake.", **sides})
