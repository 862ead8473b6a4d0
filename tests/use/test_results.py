"""Result files as others read them: the layout of RewardBench's results, and model-index through the hub's own reader."""

import json

import pytest
import yaml
from huggingface_hub.repocard_data import model_index_to_eval_results

from kwise.use.evaluation import foreign_scores, measure, open_data
from kwise.use.results import labels, model_index, refuse_shared_files, write_results


def rewardbench_file(folder):
    rows = [
        {
            "prompt": f"{subset} {i}",
            "chosen": "y",
            "rejected": "n",
            "subset": subset,
            "chosen_score": i,
            "rejected_score": 1,
        }
        for subset in ("donotanswer", "hep-go")
        for i in range(4)
    ]
    file = folder / "filtered.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"rewardbench:{file}"


def pairs_file(folder):
    file = folder / "pairs.jsonl"
    rows = [{"prompt": "p", "chosen": "y", "rejected": "n", "chosen_score": 2, "rejected_score": 1}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def evaluated(*words):
    data = [open_data(word) for word in words]
    return {place.name: measure(place, scored) for _, place, scored in foreign_scores(data)}, data


def test_rewardbench_results_have_the_layout_of_allenais_data_set(tmp_path):
    found, data = evaluated(rewardbench_file(tmp_path), pairs_file(tmp_path))
    written = write_results(tmp_path / "out", "org/name", found, data)
    file = tmp_path / "out" / "reward-bench-results" / "eval-set" / "org" / "name.json"
    assert file in written
    # of scores 0, 1, 2, 3 against 1 two are higher; an equal one is wrong
    assert json.loads(file.read_text()) == {
        "model": "org/name",
        "model_type": "Seq. Classifier",
        "chat_template": "tokenizer",
        "donotanswer": 0.5,
        "hep-go": 0.5,
    }
    assert sorted(written) == sorted(each for each in (tmp_path / "out").rglob("*") if each.is_file())


def test_model_index_is_yaml_that_the_hub_reads_back(tmp_path):
    found, data = evaluated(rewardbench_file(tmp_path), pairs_file(tmp_path))
    write_results(tmp_path / "out", "name", found, data)
    card = yaml.safe_load((tmp_path / "out" / "name.model-index.json").read_text())
    name, results = model_index_to_eval_results(card["model-index"])
    assert name == "name"
    by_metric = {(each.dataset_type, each.metric_name): each.metric_value for each in results}
    assert by_metric["allenai/reward-bench", "donotanswer"] == 0.5
    assert by_metric["pairs.jsonl", "pair_accuracy"] == 1
    assert ("allenai/reward-bench", "overall") not in by_metric
    assert {each.task_type for each in results} == {"preference_evaluation"}
    assert str(tmp_path) not in json.dumps(card)


def test_a_later_evaluation_adds_to_the_model_index_and_replaces_what_is_of_the_same_data(tmp_path):
    def names():
        (entry,) = json.loads((tmp_path / "m.model-index.json").read_text())["model-index"]
        return [(result["dataset"]["name"], len(result["metrics"])) for result in entry["results"]]

    write_results(tmp_path, "m", *evaluated(rewardbench_file(tmp_path)))
    ((suite, figures),) = names()
    write_results(tmp_path, "m", *evaluated(pairs_file(tmp_path)))
    assert [name for name, _ in names()] == [suite, "pairs.jsonl"]
    write_results(tmp_path, "m", *evaluated(rewardbench_file(tmp_path)))
    assert [name for name, _ in names()] == ["pairs.jsonl", suite] and names()[1] == (suite, figures)
    (tmp_path / "m.model-index.json").write_text("[]")
    with pytest.raises(ValueError, match=r"m\.model-index\.json is no model index"):
        write_results(tmp_path, "m", *evaluated(pairs_file(tmp_path)))
    assert (tmp_path / "m.model-index.json").read_text() == "[]"


def test_a_data_set_without_a_figure_gives_no_entry(tmp_path):
    found, data = evaluated(pairs_file(tmp_path))
    empty = {name: {"all": {}} for name in found}
    assert model_index("name", empty, data)["model-index"][0]["results"] == []


def test_models_have_short_names_unless_these_are_the_same(tmp_path):
    paths = [tmp_path / "one" / "model", tmp_path / "two" / "model", tmp_path / "other" / "two"]
    for path in paths:
        path.mkdir(parents=True)
    first, second, third = map(str, paths)
    assert labels([first, second, "org/name"]) == {first: "one", second: "two", "org/name": "org/name"}
    assert labels([second, third]) == {second: second, third: third}
    with pytest.raises(ValueError, match="two of these models have one name"):
        labels([second, third], for_files=True)


@pytest.mark.parametrize("words", [["rewardbench:a", "rewardbench:b"], ["x.jsonl", "rewardbench", "rewardbench-prior"]])
def test_two_data_sets_whose_results_are_one_file_are_refused(words):
    with pytest.raises(ValueError, match="are one file in reward-bench-results/eval-set"):
        refuse_shared_files(words)


def test_data_sets_whose_results_are_files_of_their_own_are_not_refused():
    refuse_shared_files(["rewardbench:a", "rewardbench2:b", "a/x.jsonl", "b/x.jsonl", "starling:a", "starling:b"])
