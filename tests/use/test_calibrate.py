import json
import math

import numpy as np
import pytest
from stub import evaluate, stub_reward_model

from kwise.model.calibrated import Calibration
from kwise.model.reward_model import Settings
from kwise.objective.calibration import fit_calibration
from kwise.use.calibrate import calibrate, to_json


def rows(prompts, seed=0):
    """Rankings of three answers of 1 to 9 words, ranked by words / 3 and Gumbel noise; the stub's reward is the words' number."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(prompts):
        words = rng.choice(np.arange(1, 10), 3, replace=False)
        ranks = (-(words / 3 + rng.gumbel(size=3))).argsort().argsort() + 1
        answers = [
            {"completion": " ".join(["ab"] * int(n)), "rank": int(rank)} for n, rank in zip(words, ranks, strict=True)
        ]
        made.append({"context": [{"role": "user", "content": f"q{i}"}], "completions": answers})
    return made


def write(path, made):
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return str(path)


def test_it_fits_the_rewards_of_all_files_and_names_them_without_their_folders(tokenizer, tmp_path):
    made = rows(60)
    files = [write(tmp_path / "one.jsonl", made[:20]), write(tmp_path / "two.jsonl", made[20:])]
    result = calibrate(stub_reward_model(tokenizer), files)
    words = [[float(len(each["completion"].split())) for each in row["completions"]] for row in made]
    ranks = [[each["rank"] for each in row["completions"]] for row in made]
    expected = fit_calibration(words, ranks, [row["context"][0]["content"] for row in made])
    found = result.calibration
    assert (found.temperature, found.centre) == (pytest.approx(expected.temperature), pytest.approx(np.mean(words)))
    assert abs(found.temperature - 3) < 3.5 * found.temperature_error
    assert (found.rankings, found.pairs, found.data) == (60, 180, ["one.jsonl", "two.jsonl"])
    assert found.length_slope == 0.0 and found.length_slope_error is None


def test_before_is_the_model_as_it_scores_and_after_is_not_the_fit_to_itself(tokenizer, tmp_path):
    file = write(tmp_path / "one.jsonl", rows(60))
    model = stub_reward_model(tokenizer)
    model.settings.calibration = Calibration(temperature=50.0, centre=3.0)  # an earlier one plays no part
    result = calibrate(model, [file])
    raw = evaluate(stub_reward_model(tokenizer), file)["all"]
    for name in ("ece", "top1_ece", "pair_accuracy"):
        assert result.figures["before"][name] == raw[name]
    model.settings.calibration = result.calibration
    fitted = evaluate(model, file)["all"]
    assert result.figures["after"]["ece"].value != fitted["ece"].value
    assert fitted["nll"] == raw["nll"]
    assert result.figures["after"]["pair_nll"].value < result.figures["before"]["pair_nll"].value


def test_the_curves_hold_every_pair_and_every_ranking(tokenizer, tmp_path):
    result = calibrate(stub_reward_model(tokenizer), [write(tmp_path / "one.jsonl", rows(60))])
    written = json.loads(json.dumps(to_json(result)))
    for stage in ("before", "after"):
        assert sum(each["n"] for each in written["curves"][stage]["pairs"]) == 180
        assert sum(each["n"] for each in written["curves"][stage]["top1"]) == 60
        assert written["figures"][stage]["ece"].keys() == {"value", "low", "high", "n"}


def test_length_takes_the_slope_off(tokenizer, tmp_path):
    """The stub's reward is all length, so hardly anything of the order is left."""
    result = calibrate_length(tokenizer, tmp_path)
    assert result.calibration.length_slope > 3 and result.calibration.length_slope_error > 0
    before, after = result.figures["before"], result.figures["after"]
    assert before["length_correlation"].value > 0.9 and abs(after["length_correlation"].value) < 0.1
    assert before["longer_better"].value > 0.95 and before["shorter_better"].value < 0.15
    assert after["pair_accuracy"].value < before["pair_accuracy"].value


def calibrate_length(tokenizer, tmp_path):
    # a second word of another length, so that characters and words are not quite the same
    made = rows(80)
    for i, row in enumerate(made):
        row["completions"][i % 3]["completion"] += "abcdefgh"[: i % 8]
    return calibrate(stub_reward_model(tokenizer), [write(tmp_path / "one.jsonl", made)], length=True)


def test_a_calibration_comes_back_from_kwise_json_as_it_was(tokenizer, tmp_path):
    settings = Settings(64, calibration=calibrate_length(tokenizer, tmp_path).calibration)
    settings.write(tmp_path)
    assert Settings.read(tmp_path / "kwise.json") == settings
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kwise.json", "one.jsonl"]


def test_eval_judges_the_probabilities_of_the_models_own_calibration(tokenizer, tmp_path):
    # two pairs: 3 words against 1, right and wrong; as they are the model is sure by sigmoid(2), at temperature 4 by sigmoid(0.5)
    made = [{"prompt": "q", "chosen": "a b c", "rejected": "a"}, {"prompt": "r", "chosen": "a", "rejected": "a b c"}]
    file = write(tmp_path / "pairs.jsonl", made)
    model = stub_reward_model(tokenizer)
    for calibration, gap in ((None, 2.0), (Calibration(temperature=4.0), 0.5)):
        model.settings.calibration = calibration
        metric = evaluate(model, file)["all"]["ece"]
        assert (metric.value, metric.n) == (pytest.approx(1 / (1 + math.exp(-gap)) - 0.5), 2)
