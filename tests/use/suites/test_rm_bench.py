"""RM-Bench's style matrix: by hand, against matrices summed as its README tells, and from the layouts it is published in."""

import json

import numpy as np
import pytest

from kwise import DataError
from kwise.use.evaluation import foreign_scores, measure, open_data

FILES = {"chat": ["chat"], "code": ["code"], "math": ["math"], "safety": ["safety-refuse", "safety-response"]}


def row(domain, i, chosen, rejected):
    return {
        "id": i,
        "prompt": f"{domain} {i}",
        "chosen": ["short", "longer text", "## longest text"],
        "rejected": ["short!", "longer text!", "## longest text!"],
        "score_chosen": chosen,
        "score_rejected": rejected,
        "domain": domain,
    }


def figures(word):
    [(_, data, scored)] = foreign_scores([open_data(word)])
    return {name: draws.metric() for name, draws in measure(data, scored)["all"].items()}


def test_one_row_by_hand(tmp_path):
    """Rows of the matrix: 2 > (1, 2, 3) yes no no; 2.5 > yes yes no; 0 > no no no."""
    rows = [row(name, 0, [2, 2.5, 0], [1, 2, 3]) for names in FILES.values() for name in names]
    (tmp_path / "total_dataset.json").write_text(json.dumps(rows, indent=4))
    found = {name: metric.value for name, metric in figures(f"rm-bench:{tmp_path}").items()}
    assert found["hard"] == pytest.approx(0)
    assert found["normal"] == pytest.approx(2 / 3)
    assert found["easy"] == pytest.approx(1 / 3)
    assert found["overall"] == pytest.approx(1 / 3)
    matrix = [[1, 0, 0], [1, 1, 0], [0, 0, 0]]
    styles = ("concise", "detailed", "markdown")
    for i, right in enumerate(styles):
        for j, wrong in enumerate(styles):
            assert found[f"right {right}, wrong {wrong}"] == pytest.approx(matrix[i][j])


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    sizes = {"chat": 5, "code": 9, "math": 7, "safety-refuse": 4, "safety-response": 11}
    return [
        row(domain, i, rng.integers(0, 5, 3).tolist(), rng.integers(0, 5, 3).tolist())
        for domain, size in sizes.items()
        for i in range(size)
    ]


def by_the_readme(rows):
    """Per domain the share of rows in each cell; then triangles and diagonal."""
    found = {}
    for domain, names in FILES.items():
        own = [each for each in rows if each["domain"] in names]
        cells = np.array([np.greater.outer(each["score_chosen"], each["score_rejected"]) for each in own]).mean(0)
        found[domain] = {
            "hard": cells[np.triu_indices(3, 1)].mean(),
            "normal": np.diag(cells).mean(),
            "easy": cells[np.tril_indices(3, -1)].mean(),
        }
    return found


def test_domains_levels_and_overall_of_random_scores(tmp_path, rows):
    (tmp_path / "total_dataset.json").write_text(json.dumps(rows))
    found = {name: metric.value for name, metric in figures(f"rm-bench:{tmp_path / 'total_dataset.json'}").items()}
    expected = by_the_readme(rows)
    for domain, levels in expected.items():
        assert found[domain] == pytest.approx(np.mean(list(levels.values())))
        for level, value in levels.items():
            assert found[f"{domain} {level}"] == pytest.approx(value)
    for level in ("easy", "normal", "hard"):
        assert found[level] == pytest.approx(np.mean([levels[level] for levels in expected.values()]))
    assert found["overall"] == pytest.approx(np.mean([found[domain] for domain in FILES]))
    assert found["overall"] == pytest.approx(np.mean([found[level] for level in ("easy", "normal", "hard")]))


def test_the_files_of_single_domains_give_the_same_as_the_whole(tmp_path, rows):
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    (tmp_path / "whole" / "total_dataset.json").write_text(json.dumps(rows))
    for name in {each["domain"] for each in rows}:
        own = [{k: v for k, v in each.items() if k != "domain"} for each in rows if each["domain"] == name]
        (tmp_path / "parts" / f"{name}_filtered.json").write_text(json.dumps(own))
    whole, parts = (figures(f"rm-bench:{tmp_path / name}") for name in ("whole", "parts"))
    assert {name: metric.value for name, metric in whole.items()} == pytest.approx(
        {name: metric.value for name, metric in parts.items()}
    )


def test_a_missing_domain_leaves_its_own_and_the_means_without_value(tmp_path, rows):
    rest = [each for each in rows if each["domain"] != "math"]
    (tmp_path / "total_dataset.json").write_text(json.dumps(rest))
    found = figures(f"rm-bench:{tmp_path}")
    assert found["overall"].value is None and found["hard"].value is None and found["math"].value is None
    assert found["code hard"].value == pytest.approx(by_the_readme(rows)["code"]["hard"])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"domain": "law"}, "line 1, field 'domain': must begin with chat, code, math, safety"),
        ({"chosen": ["one"]}, "field 'chosen': must be a list of 3 responses"),
    ],
)
def test_rows_that_are_none_of_its_are_refused(tmp_path, columns, message):
    (tmp_path / "total_dataset.json").write_text(json.dumps([row("chat", 0, [1, 1, 1], [0, 0, 0]) | columns]))
    with pytest.raises(DataError, match=message):
        open_data(f"rm-bench:{tmp_path}")


@pytest.mark.parametrize(
    ("text", "message"),
    [("[]", "the file is empty"), ("[1]", "an entry must be a JSON object"), ("[{", "not valid JSON")],
)
def test_arrays_that_are_no_rows_are_refused(tmp_path, text, message):
    (tmp_path / "total_dataset.json").write_text(text)
    with pytest.raises(DataError, match=message):
        open_data(f"rm-bench:{tmp_path}")
