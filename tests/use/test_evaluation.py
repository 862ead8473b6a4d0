import json

import pytest
from stub import evaluate, stub_reward_model

from kwise import DataError
from kwise.use.evaluation import (
    evaluation_json,
    foreign_scores,
    measure,
    model_words,
    open_data,
    refuse_repeated,
    score_data,
)


@pytest.fixture
def file(tmp_path):
    """Three rankings; the stub scores by number of words, so by hand: 3 of 3 pairs right, 0 of 1, and 1 of 3."""
    rows = [
        ("q1", [("a b c", 1), ("a b", 2), ("a", 3)], "x"),
        ("q2", [("a", 1), ("a b", 2)], "y"),
        ("q3", [("a b", 1), ("a b c", 2), ("a", 3)], "x"),
    ]
    path = tmp_path / "rankings.jsonl"
    path.write_text(
        "".join(
            json.dumps(
                {
                    "context": [{"role": "user", "content": q}],
                    "kind": kind,
                    "completions": [{"completion": text, "rank": rank} for text, rank in answers],
                }
            )
            + "\n"
            for q, answers, kind in rows
        )
    )
    return str(path)


def test_metrics_per_file_and_split_by_hand(tokenizer, file):
    found = evaluate(stub_reward_model(tokenizer), file, by="kind")
    assert list(found) == ["all", "x", "y"]
    accuracy = {split: (metrics["pair_accuracy"].value, metrics["pair_accuracy"].n) for split, metrics in found.items()}
    assert accuracy == {"all": (pytest.approx(5 / 7), 7), "x": (pytest.approx(5 / 6), 6), "y": (0.0, 1)}
    assert found["all"]["top1"].value == pytest.approx(1 / 3)
    assert found["x"]["longer_wins"].value == pytest.approx(5 / 6)


def test_a_column_that_is_not_there_is_named_with_those_that_are(file):
    with pytest.raises(DataError, match=r"line 1, field 'selection'.*it has kind"):
        open_data(file, by="selection")


def test_equal_conversations_are_scored_once(tokenizer, tmp_path):
    path = tmp_path / "pairs.jsonl"
    pairs = [("a b", "c"), ("a b", "d e f"), ("a b", "c")]
    path.write_text("".join(json.dumps({"prompt": "q", "chosen": c, "rejected": r}) + "\n" for c, r in pairs))
    model = stub_reward_model(tokenizer)
    assert evaluate(model, str(path))["all"]["pair_accuracy"].value == pytest.approx(2 / 3)
    assert model.model.scored == 3


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_split_whose_value_is_all_is_not_mixed_with_the_whole(tokenizer, tmp_path):
    rows = [{"prompt": f"q{i}", "chosen": "a b", "rejected": "c", "kind": kind} for i, kind in enumerate(("all", "x"))]
    found = evaluate(stub_reward_model(tokenizer), write_rows(tmp_path / "pairs.jsonl", rows), by="kind")
    assert {split: metrics["pair_accuracy"].n for split, metrics in found.items()} == {
        "all": 2,
        "kind = all": 1,
        "x": 1,
    }


def test_the_better_model_is_known_from_all_other_prompts_of_the_file_not_of_the_split(tokenizer, tmp_path):
    """In each split alone there is one prompt, so nothing would be known of any model."""
    rows = [
        {"prompt": f"q{i}", "chosen": "a", "rejected": "b", "models": ["good", "bad"], "kind": str(i)} for i in range(3)
    ]
    found = evaluate(stub_reward_model(tokenizer), write_rows(tmp_path / "pairs.jsonl", rows), by="kind")
    assert [(metrics["better_model_wins"].value, metrics["better_model_wins"].n) for metrics in found.values()] == [
        (1.0, 3),
        (1.0, 1),
        (1.0, 1),
        (1.0, 1),
    ]


def test_cut_responses_are_counted(tokenizer, tmp_path):
    rows = [{"prompt": "q", "chosen": "a " * 40, "rejected": "b"}]
    file = write_rows(tmp_path / "pairs.jsonl", rows)
    assert score_data(stub_reward_model(tokenizer, max_length=60), open_data(file)).shortened == 1


def pair(i, chosen, rejected, **more):
    return {
        "prompt": f"q{i}",
        "chosen": "a",
        "rejected": "b",
        "chosen_score": chosen,
        "rejected_score": rejected,
    } | more


def scored(path, scores):
    return write_rows(path, [pair(i, *each) for i, each in enumerate(scores)])


def test_scores_of_anyone_get_the_metrics_of_a_model(tokenizer, tmp_path):
    """The stub's scores written into the file, and the stub itself, come to the same."""
    texts = [("a b", "c"), ("a", "b c"), ("a b c", "d")]
    rows = [
        {
            "prompt": f"q{i}",
            "chosen": c,
            "rejected": r,
            "chosen_score": len(c.split()),
            "rejected_score": len(r.split()),
        }
        for i, (c, r) in enumerate(texts)
    ]
    file = write_rows(tmp_path / "scored.jsonl", rows)
    [(name, data, own)] = foreign_scores([open_data(file)])
    found = {metric: draws.metric() for metric, draws in measure(data, own)["all"].items()}
    assert name == "scores"
    assert found == evaluate(stub_reward_model(tokenizer), file)["all"]
    assert found["pair_accuracy"].value == pytest.approx(2 / 3)


def test_scores_of_one_file_by_two_models_are_compared_ranking_by_ranking(tmp_path):
    """a is right on 0 and 2, b on 0, 1 and 2: b - a = 1/3."""
    files = [
        scored(tmp_path / "a.jsonl", [(2, 1), (0, 1), (5, 1)]),
        scored(tmp_path / "b.jsonl", [(2, 1), (2, 1), (3, 1)]),
    ]
    runs = list(foreign_scores([open_data(file) for file in files], compared=True))
    assert [name for name, _, _ in runs] == files
    found = {name: {data.name: measure(data, own)} for name, data, own in runs}
    gap = evaluation_json(found)["differences"][f"{files[1]} - {files[0]}"][files[0]]["all"]["pair_accuracy"]
    assert gap["value"] == pytest.approx(1 / 3)
    assert gap["low"] == pytest.approx(0)
    # b - a is the share of prompt 1 among three draws: it is 0 with probability (2/3)^3, and such draws count half
    assert gap["better"] == pytest.approx(1 - (2 / 3) ** 3 / 2, abs=0.03)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([pair(0, 1, 2), pair(7, 1, 2)], "line 2: this is not the ranking of .*a.jsonl, line 2"),
        ([pair(0, 1, 2)], "it has 1 rankings, .*a.jsonl has 2"),
    ],
)
def test_scores_of_different_rankings_are_not_compared(tmp_path, rows, message):
    files = [scored(tmp_path / "a.jsonl", [(2, 1), (0, 1)]), write_rows(tmp_path / "b.jsonl", rows)]
    with pytest.raises(DataError, match=message):
        list(foreign_scores([open_data(file) for file in files], compared=True))


def test_models_are_told_from_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "data.jsonl").write_text("")
    (tmp_path / "folder").mkdir()
    cases = {
        "a data.jsonl": ["a"],
        "a b data.jsonl starling": ["a", "b"],
        "owner/a owner/b rewardbench:folder": ["owner/a", "owner/b"],
        "owner/a owner/data": ["owner/a"],
        "owner/a owner/b owner/data": ["owner/a", "owner/b"],
        "owner/a owner/data:test owner/more": ["owner/a"],
        "a folder": ["a"],
        "a missing/data.jsonl": ["a"],
        "a starter:heldout": ["a"],
    }
    for words, models in cases.items():
        assert model_words(words.split()) == models, words


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("a", "a is taken for a model; name data after it"),
        (
            "rewardbench data.jsonl",
            "rewardbench is data and cannot be taken for a model: name one before it, or give --scores",
        ),
        ("data.jsonl starling:x", "data.jsonl is data and cannot be taken for a model"),
        ("starter:heldout a", "starter:heldout is data and cannot be taken for a model"),
        ("a starling b", "b is a model: name all models before the data"),
    ],
)
def test_words_that_make_no_sense_are_refused(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "data.jsonl").write_text("")
    with pytest.raises(ValueError, match=message):
        model_words(words.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("a starling a", "^a is named twice$"),
        ("a ./a data.jsonl", "a is named twice, also as ./a"),
        ("a data.jsonl ../{here}/data.jsonl", "data.jsonl is named twice, also as ../{here}/data.jsonl"),
        ("a starling:b starling:./b", "starling:b is named twice, also as starling:./b"),
    ],
)
def test_nothing_is_compared_with_itself_or_counted_twice(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "data.jsonl").write_text("")
    with pytest.raises(ValueError, match=message.format(here=tmp_path.name)):
        refuse_repeated(words.format(here=tmp_path.name).split())
    refuse_repeated(["a", "starling:b", "rewardbench:b", "owner/a", "owner/a:test", "data.jsonl"])


def test_a_suite_is_not_split_by_a_column():
    with pytest.raises(ValueError, match="starling:x is a suite, with parts of its own"):
        open_data("starling:x", by="kind")
