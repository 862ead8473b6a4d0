"""``kwise export``: what it writes other tools load, the card says what was measured, and copies say what they changed."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny_models import tiny_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from kwise import KwiseConfig, KwiseTrainer, RewardModel, read_rankings
from kwise.cli import app
from kwise.model.backbone import from_causal_lm
from kwise.model.reward_model import Settings
from kwise.model.uncertainty import Uncertainty
from kwise.use import export as exporting
from kwise.use.doctor import diagnose
from kwise.use.export import export

PROMPT = [{"role": "user", "content": "Which sea is the saltiest?"}]
ANSWERS = ["The Dead Sea, a salt lake.", "No idea.", "It is the Red Sea, and that is because of the salt in it."]


@pytest.fixture
def folder(tokenizer, tmp_path):
    """A model as a training run leaves it."""
    model = tiny_model(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, problem_type="regression")
    trained = {
        "base": "/home/somebody/models/tiny-chat",
        "method": "head",
        "objective": "plackett_luce",
        "rankings": 1234,
        "covariates": {"length": {"coefficient": 0.25, "low": 0.125, "high": 0.375}},
        "held_out": {"pair_accuracy": {"value": 0.625, "low": 0.5, "high": 0.75, "n": 48}},
    }
    RewardModel(model, tokenizer, Settings(256, trained=trained)).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def rankings(tmp_path):
    """Three rankings in which the longer answer wins 4 of 7 pairs of different rank and different length."""
    rows = [
        ("one", [(1, "a long answer indeed"), (2, "short"), (3, "middling one")]),  # longer wins 2 of 3
        ("two", [(1, "tiny"), (2, "rather longer"), (3, "the longest of them all")]),  # 0 of 3
        ("three", [(1, "quite long"), (2, "no")]),  # 1 of 1
    ]
    path = tmp_path / "held.jsonl"
    path.write_text(
        "".join(
            json.dumps(
                {
                    "context": [{"role": "user", "content": prompt}],
                    "completions": [{"rank": rank, "completion": text} for rank, text in answers],
                }
            )
            + "\n"
            for prompt, answers in rows
        )
    )
    return str(path)


def metadata(out):
    return yaml.safe_load((out / "README.md").read_text().split("---")[1])


def plain_score(folder, answer):
    """What plain transformers gives."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    chat = [*PROMPT, {"role": "assistant", "content": answer}]
    with torch.no_grad():
        return model(**tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True)).logits.item()


def test_the_folder_written_scores_as_the_model_does_in_kwise_and_in_transformers(folder, tmp_path):
    expected = RewardModel.from_pretrained(folder).score(PROMPT, ANSWERS)
    export(folder, tmp_path / "out")
    assert RewardModel.from_pretrained(tmp_path / "out").score(PROMPT, ANSWERS) == expected
    assert [plain_score(tmp_path / "out", answer) for answer in ANSWERS] == pytest.approx(expected, abs=1e-5)
    assert not list((tmp_path / "out").glob("*.bin")) and (tmp_path / "out" / "model.safetensors").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"], "nothing unfinished stays"


def test_a_folder_of_another_tool_gets_what_keeps_its_score_one_and_raw(tokenizer, tmp_path):
    model = tiny_model(vocab_size=len(tokenizer), pad_token_id=None, eos_token_id=tokenizer.eos_token_id)
    model.save_pretrained(tmp_path / "model")
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path / "model")
    result = export(str(tmp_path / "model"), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["problem_type"] == "regression"
    assert config["pad_token_id"] == tokenizer.unk_token_id != config["eos_token_id"]
    assert any("pad token" in note for note in result.notes)


def test_an_imported_model_of_the_rule_card_keeps_its_score_and_the_card_warns_of_it(llama_tokenizer, tmp_path):
    model = tiny_model(vocab_size=len(llama_tokenizer), pad_token_id=llama_tokenizer.pad_token_id)
    imported = {"checkpoint": "/home/somebody/old.pt", "layout": "starling", "base": "meta-llama/Llama-2-7b-chat-hf"}
    settings = Settings(128, reward_at="card", imported=imported)
    RewardModel(model, llama_tokenizer, settings).save_pretrained(tmp_path / "model")
    expected = RewardModel.from_pretrained(tmp_path / "model").score(PROMPT, ANSWERS)
    export(str(tmp_path / "model"), tmp_path / "out")
    assert RewardModel.from_pretrained(tmp_path / "out").score(PROMPT, ANSWERS) == expected
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| imported from | old.pt |" in card and "by the rule 'card'" in card and "/home/somebody" not in card
    assert metadata(tmp_path / "out")["base_model"] == "meta-llama/Llama-2-7b-chat-hf"


def test_the_card_holds_what_kwise_json_knows_and_no_path_of_this_machine(folder, tmp_path):
    export(folder, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    for fact in ("tiny-chat", "| method | head |", "plackett_luce", "1234", "covariate length | 0.250 [0.125, 0.375]"):
        assert fact in card
    assert "62.5 [50.0, 75.0]" in card and "end of training" in card
    for file in (tmp_path / "out").iterdir():
        assert b"/home/somebody" not in file.read_bytes()
    (result,) = metadata(tmp_path / "out")["model-index"][0]["results"]
    assert result["dataset"]["name"] == "held-out rankings of the training run"
    assert result["metrics"][0]["value"] == 0.625
    assert "base_model" not in metadata(tmp_path / "out"), "a folder's name is no hub id"


def test_a_base_from_the_hub_is_named_in_the_metadata(folder, tmp_path):
    file = tmp_path / "model" / "kwise.json"
    file.write_text(file.read_text().replace("/home/somebody/models/tiny-chat", "smollm2"))
    export(folder, tmp_path / "out")
    assert metadata(tmp_path / "out")["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_eval_measures_the_bias_table_by_hand_count(folder, rankings, tmp_path):
    scores = {
        "one": [
            3.0,
            1.0,
            2.0,
        ],  # right about 1 > 2 and 1 > 3, both longer; wrong about 2 > 3, where the shorter is better
        "two": [1.0, 2.0, 3.0],  # wrong about all three, in all the shorter is better
        "three": [1.0, 0.0],  # right, the longer is better
    }
    model = RewardModel.from_pretrained(folder)
    found = list(read_rankings(rankings))
    measured = exporting._measured(model, found, [scores[ranking.messages[-1]["content"]] for ranking in found])
    assert measured["pair_accuracy"].value == pytest.approx(3 / 7)
    assert (measured["longer_better"].value, measured["longer_better"].n) == (1.0, 3)
    assert (measured["shorter_better"].value, measured["shorter_better"].n) == (0.0, 4)
    assert measured["longer_wins"].value == pytest.approx(3 / 7)


def test_two_files_of_one_name_are_both_in_the_card_and_neither_by_its_place(folder, rankings, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        shutil.copy(rankings, tmp_path / name / "held.jsonl")
    files = [str(tmp_path / name / "held.jsonl") for name in ("one", "two")]
    result = export(folder, tmp_path / "out", "bfloat16", files)
    names = ["held.jsonl", "held.jsonl (2)"]
    assert list(result.metrics) == result.change.data == names
    for file in ("README.md", "kwise.json"):
        text = (tmp_path / "out" / file).read_text()
        assert all(name in text for name in names) and str(tmp_path) not in text


def test_responses_that_were_cut_to_be_scored_are_counted(folder, rankings, tmp_path):
    result = export(folder, tmp_path / "whole", files=[rankings])
    assert not any("cut" in note for note in result.notes)
    long = {"context": PROMPT, "completions": [{"rank": i, "completion": "x " * 9000 + str(i)} for i in (1, 2)]}
    with Path(rankings).open("a") as file:
        file.write(json.dumps(long) + "\n")
    result = export(folder, tmp_path / "out", files=[rankings])
    assert any(note.startswith("2 responses of those scored were cut to ") for note in result.notes)


def test_metadata_is_what_the_hub_reads_with_the_task_of_rewardbench(folder, rankings, tmp_path):
    from huggingface_hub import ModelCard

    result = export(folder, tmp_path / "out", files=[rankings])
    data = ModelCard.load(tmp_path / "out" / "README.md").data
    accuracies = {each.metric_name.split(",")[0]: each for each in data.eval_results}
    assert {each.task_type for each in data.eval_results} == {"preference_evaluation"}
    assert {(each.metric_type, each.dataset_name) for each in data.eval_results} == {("accuracy", "held.jsonl")}
    metrics = result.metrics["held.jsonl"]
    assert accuracies["pairs in the right order"].metric_value == round(metrics["pair_accuracy"].value, 4)
    names = {
        "longer_better": "pairs whose longer response is better",
        "shorter_better": "pairs whose shorter response is better",
    }
    for key, name in names.items():
        assert accuracies[name].metric_value == round(metrics[key].value, 4)
    assert data.model_name == "out" and data.pipeline_tag == "text-classification"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8"])
def test_a_copy_says_by_how_much_its_rewards_moved_and_other_tools_load_it(dtype, folder, rankings, tmp_path):
    if dtype == "int8":
        pytest.importorskip("torchao")
    result = export(folder, tmp_path / "out", dtype, [rankings])
    original = RewardModel.from_pretrained(folder)
    copy = RewardModel.from_pretrained(tmp_path / "out", dtype=None)
    moved, flipped, pairs = [], 0, 0
    for ranking in read_rankings(rankings):
        old, new = (model.score(ranking.messages, ranking.responses) for model in (original, copy))
        moved += [abs(a - b) for a, b in zip(old, new, strict=True)]
        for i in range(len(old)):
            for j in range(i):
                pairs += 1
                flipped += (old[i] > old[j]) != (new[i] > new[j])
    change = result.change
    assert (change.dtype, change.responses, change.pairs, change.flipped) == (dtype, len(moved), pairs, flipped)
    # scored in rows of other company: half precision rounds differently there
    assert change.largest == pytest.approx(max(moved), rel=0.2) and max(moved) > 0
    assert change.mean == pytest.approx(sum(moved) / len(moved), rel=0.2)
    exported = json.loads((tmp_path / "out" / "kwise.json").read_text())["exported"]
    assert exported["largest"] == change.largest and exported["data"] == ["held.jsonl"]
    assert f"{change.largest:.4f} at most" in (tmp_path / "out" / "README.md").read_text()
    plain = [plain_score(tmp_path / "out", answer) for answer in ANSWERS]
    assert plain == pytest.approx(copy.score(PROMPT, ANSWERS), abs=0.03 * max(map(abs, plain)))


def test_int8_weights_are_whole_numbers_within_half_a_step_and_the_head_is_none_of_them(folder, rankings, tmp_path):
    pytest.importorskip("torchao")
    export(folder, tmp_path / "out", "int8", [rankings])
    before, after = (load_file(path / "model.safetensors") for path in (tmp_path / "model", tmp_path / "out"))
    linear = [name for name in before if name.endswith("_proj.weight")]
    assert linear
    for name in linear:
        weight = before[name].bfloat16().float()
        step = weight.abs().amax(1, keepdim=True) / 127
        stored, scale = (after[name.removesuffix("weight") + f"_weight_{part}"] for part in ("qdata", "scale"))
        assert stored.dtype == torch.int8
        assert ((stored.float() * scale.float() - weight).abs() <= 0.51 * step).all()
    assert torch.equal(after["score.weight"], before["score.weight"].bfloat16())
    size = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    assert size < (tmp_path / "model" / "model.safetensors").stat().st_size / 2


def test_without_files_a_copy_is_compared_on_the_starter_rankings(folder, tmp_path, monkeypatch):
    read = exporting.read_rankings
    monkeypatch.setattr(exporting, "read_rankings", lambda file, source="auto": list(read(file, source))[:2])
    result = export(folder, tmp_path / "out", "bfloat16")
    assert result.change.data == ["starter:heldout"] and result.metrics == {}
    assert "starter:heldout" in (tmp_path / "out" / "README.md").read_text()


def test_numbers_beyond_float16_are_an_error_and_leave_nothing_behind(folder, rankings, tmp_path):
    weights = tmp_path / "model" / "model.safetensors"
    state = load_file(weights)
    state["score.weight"] *= 1e6
    save_file(state, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="float16 copy scores NaN or infinity"):
        export(folder, tmp_path / "out", "float16", [rankings])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["held.jsonl", "model"]


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float16", "int8"])
def test_the_error_of_the_head_goes_along_in_every_precision(dtype, folder, rankings, tmp_path):
    if dtype == "int8":
        pytest.importorskip("torchao")
    head = AutoModelForSequenceClassification.from_pretrained(folder).score.weight.detach()[0]
    root = torch.eye(len(head))
    Uncertainty(root, torch.zeros(len(head)), head, {"kind": "fisher", "rankings": 5}).save(folder)
    export(folder, tmp_path / "out", dtype, [rankings])
    found = RewardModel.from_pretrained(tmp_path / "out", dtype=None).uncertainty
    assert torch.equal(found.root, root) and found.facts == {"kind": "fisher", "rankings": 5}
    assert "kind fisher, rankings 5" in (tmp_path / "out" / "README.md").read_text()


def test_the_error_of_another_head_is_an_error(folder, tmp_path):
    size = AutoModelForSequenceClassification.from_pretrained(folder).score.weight.shape[1]
    Uncertainty(torch.eye(size), torch.zeros(size), torch.ones(size), {}).save(folder)
    with pytest.raises(ValueError, match="belongs to another head"):
        export(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def adapter(tokenizer, tmp_path, ranking):
    """A LoRA adapter folder as ``KwiseTrainer`` saves it, of a base cut from three layers to two, and the model it came of."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    from peft import LoraConfig

    settings = KwiseConfig(
        output_dir=str(tmp_path / "run"),
        learning_rate=0.05,
        max_steps=2,
        rankings_per_step=2,
        max_length=128,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
    )
    trainer = KwiseTrainer(
        from_causal_lm(tmp_path / "base", layers=2),
        settings,
        [ranking(f"question {i}", ["a better answer", "no"], line=i) for i in range(2)],
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="SEQ_CLS", r=2, target_modules="all-linear"),
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    chat = tokenizer.apply_chat_template(
        [*PROMPT, {"role": "assistant", "content": ANSWERS[0]}], return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        expected = trainer.model.eval()(**chat).logits.item()  # peft's own forward pass, nothing merged
    return tmp_path / "adapter", expected


def test_whoever_wants_a_whole_model_is_told_what_to_do_with_an_adapter(adapter):
    what_to_do = f"is a LoRA adapter: make a whole model of it by kwise export {adapter[0]} -o FOLDER"
    with pytest.raises(ValueError, match=what_to_do):
        RewardModel.from_pretrained(adapter[0])
    (finding,) = diagnose(adapter[0]).findings
    assert finding.id == "not_loadable" and what_to_do in finding.what


def test_an_adapter_is_merged_into_the_cut_base_with_its_head(adapter, tmp_path):
    folder, expected = adapter
    assert expected != 0
    export(str(folder), tmp_path / "out")
    assert plain_score(tmp_path / "out", ANSWERS[0]) == pytest.approx(expected, abs=1e-5)
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    settings = Settings.read(tmp_path / "out" / "kwise.json")
    assert settings.max_length == 128


def spoil(folder, change):
    state = change(load_file(folder / "adapter_model.safetensors"))
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def test_adapters_that_do_not_fit_are_errors_that_say_why(adapter, tmp_path):
    folder, _ = adapter
    kept = tmp_path / "kept"
    shutil.copytree(folder, kept)

    def refused(match):
        with pytest.raises(ValueError, match=match):
            export(str(folder), tmp_path / "out")
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)

    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "/gone/to/base"}))
    refused("/gone/to/base is no folder here, and as a model of the hub cannot be loaded")
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    refused("adapter_model.safetensors is damaged")
    (folder / "kwise.json").unlink()
    refused("the adapter is of 2 layers, its base .* has 3")
    spoil(folder, lambda state: {name: value for name, value in state.items() if ".score." not in name})
    refused("has no head")
    name = next(name for name in load_file(folder / "adapter_model.safetensors") if "lora_A" in name)
    spoil(folder, lambda state: {key: value for key, value in state.items() if key != name})
    refused(f"missing or too many: .*{re.escape(name.removesuffix('.weight'))}")
    spoil(folder, lambda state: state | {"base_model.model.surplus.lora_A.weight": torch.zeros(1)})
    refused("surplus")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"layer_replication": [[0, 2], [1, 2]]}))
    refused("repeats layers of its base")
    (folder / "adapter_model.safetensors").unlink()
    refused("save the adapter as safetensors")


class Hub:
    """Stands for ``HfApi``: keeps the calls."""

    calls: list

    def __getattr__(self, name):
        return lambda *inputs, **named: Hub.calls.append((name, inputs, named))


def test_push_logs_in_first_and_uploads_the_finished_folder(folder, tmp_path, monkeypatch):
    Hub.calls = []
    monkeypatch.setattr(exporting, "HfApi", Hub)
    export(folder, tmp_path / "out", repo="somebody/rm")
    assert [name for name, *_ in Hub.calls] == ["whoami", "create_repo", "upload_folder"]
    assert Hub.calls[1][1:] == (("somebody/rm",), {"exist_ok": True})
    assert Hub.calls[2][2]["repo_id"] == "somebody/rm" and Hub.calls[2][2]["folder_path"] == str(tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert (
        'from_pretrained("somebody/rm")' in card
        and metadata(tmp_path / "out")["model-index"][0]["name"] == "somebody/rm"
    )


@pytest.mark.parametrize(
    ("call", "problem", "written"),
    [
        ("whoami", "the hub does not say who you are", False),
        ("create_repo", "out is written, but the hub did not take it", True),
        ("upload_folder", "upload it by 'hf upload somebody/rm", True),
    ],
)
def test_a_hub_out_of_reach_is_one_message(call, problem, written, folder, tmp_path, monkeypatch):
    class Down(Hub):
        def __getattr__(self, name):
            if name == call:
                raise RuntimeError("connection refused")  # as of the hub's HTTP library, neither ValueError nor OSError
            return super().__getattr__(name)

    Hub.calls = []
    monkeypatch.setattr(exporting, "HfApi", Down)
    result = CliRunner().invoke(app, ["export", folder, "-o", str(tmp_path / "out"), "--push", "somebody/rm"])
    text = " ".join(result.output.split())
    assert result.exit_code == 1 and problem in text and "(connection refused)" in text
    assert (tmp_path / "out").exists() == written


def test_what_push_hands_over_is_what_the_hub_library_takes():
    import inspect

    from huggingface_hub import HfApi

    for name, named in (("create_repo", {"exist_ok"}), ("upload_folder", {"repo_id", "folder_path", "commit_message"})):
        assert named <= inspect.signature(getattr(HfApi, name)).parameters.keys()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dtype", "int4"], "unknown dtype 'int4'; known: bfloat16, float16, int8"),
        (["--push", "nobody"], "'nobody' is no hub id"),
        (["--eval", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(words, message, folder, tmp_path):
    result = CliRunner().invoke(app, ["export", folder, "-o", str(tmp_path / "out"), *words])
    assert result.exit_code == 1 and message in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="nobody is no folder here, and as a model of the hub cannot be loaded"):
        export("nobody", tmp_path / "out")


def test_the_command_prints_metrics_and_change_and_never_writes_over_a_folder(folder, rankings, tmp_path):
    words = ["export", folder, "-o", str(tmp_path / "out"), "--dtype", "bfloat16", "--eval", rankings]
    result = CliRunner().invoke(app, words)
    text = " ".join(result.output.split())
    assert result.exit_code == 0 and "shorter_better" in text
    assert re.search(r"bfloat16 against the original in float32, over 8 responses of held\.jsonl", text)
    assert re.search(r"\d+ of 7 pairs of responses to one prompt", text)
    again = CliRunner().invoke(app, words)
    assert again.exit_code == 1 and "exists" in again.output


def test_a_card_of_one_prompt_claims_no_interval(folder, tmp_path):
    file = tmp_path / "one.jsonl"
    file.write_text(json.dumps({"prompt": "q", "chosen": "a longer one", "rejected": "short"}) + "\n")
    export(folder, tmp_path / "out", files=[str(file)])
    card = (tmp_path / "out" / "README.md").read_text()
    [row] = [line for line in card.splitlines() if line.startswith("| longer_wins ")]
    assert row.split("|")[2].strip() == "100.0"
    assert "95 % interval 0" not in card and "95 % interval 1" not in card
    assert "pairs in the right order, n = 1" in card
