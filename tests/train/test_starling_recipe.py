"""``recipes/starling_rm_7b.toml`` from Nectar rows to a scored model, as it stands, on a Llama-2 cut down in size alone."""

import json
import math
import random
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from kwise import RewardModel
from kwise.cli import app
from kwise.train.recipe import load_recipe

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "starling_rm_7b.toml"
# what Llama-2-chat's template renders: a BOS before and a space after every [INST] turn, an EOS after every answer
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'].strip() + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}"
    "{% else %}{{ raise_exception('roles must be user and assistant') }}{% endif %}{% endfor %}"
)
TOPICS = ["tides", "yeast", "glass", "frost", "rust", "echoes", "tin", "moss"]


def llama2_tokenizer():
    """Llama-2's kind: BPE over texts whose spaces are U+2581, bytes for what is unknown, BOS in front, and no pad token."""
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=["<unk>", "<s>", "</s>", *pieces], show_progress=False)
    backend.train_from_iterator(["[INST] [/INST] why what how " + " ".join(TOPICS) + " clear true vague"] * 8, trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE
    )


@pytest.fixture
def base(tmp_path):
    tokenizer = llama2_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=86,  # 11,008 of 4,096
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,  # as many as heads: Llama-2-7B has no grouped queries
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        pad_token_id=None,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "Llama-2-tiny-chat-hf")
    tokenizer.save_pretrained(tmp_path / "Llama-2-tiny-chat-hf")
    return tmp_path / "Llama-2-tiny-chat-hf"


def nectar_row(i, rng):
    """Nectar's columns. The more often an answer is 'clear' the better its rank; the list is shuffled, as Nectar's is."""
    turns = [f"what of {TOPICS[i % 8]} {i}?"] if i % 3 else [f"why {TOPICS[i % 8]}?", f"and how {i}?"]
    prompt = "\n\nAssistant: no one knows".join(f"\n\nHuman: {turn}" for turn in turns) + "\n\nAssistant: "
    answers = [
        {"answer": "clear " * (7 - rank) + "vague " * rank + f"tin {i}", "model": f"m{rank}", "rank": float(rank)}
        for rank in range(1, 8)
    ]
    rng.shuffle(answers)
    kind = {"turns": len(turns), "num_responses": 7, "source": ["sharegpt"], "good_natured": bool(i % 2)}
    return {"prompt": prompt, "answers": answers, **kind}


@pytest.fixture
def nectar(tmp_path):
    rng = random.Random(0)
    for name, numbers in (("train", range(24)), ("valid", range(100, 106)), ("test", range(200, 210))):
        rows = [nectar_row(i, rng) for i in numbers]
        assert any([a["rank"] for a in row["answers"]] != sorted(a["rank"] for a in row["answers"]) for row in rows)
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def kwise(*words):
    result = CliRunner().invoke(app, [str(word) for word in words], terminal_width=200)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_the_recipe_has_the_authors_numbers():
    recipe = load_recipe(RECIPE)
    trainer = recipe.trainer
    assert (recipe.method, recipe.objective, recipe.data.truncation) == ("full", "plackett_luce", "left")
    assert (trainer["learning_rate"], trainer["warmup_steps"], trainer["max_steps"]) == (1e-5, 100, 1400)
    assert trainer["rankings_per_step"] == round(162954 / 1567)
    assert (
        recipe.lora == load_recipe(RECIPE, ["method=lora", "model.dtype=bfloat16"]).lora
    )  # as the walk-through has it


def test_the_whole_way_from_nectar_rows_to_a_scored_model(base, nectar, tmp_path):
    clean = nectar / "clean.jsonl"
    kwise("data", "check", nectar / "train.jsonl", "--fix", clean, "--tokenizer", base)
    run = tmp_path / "run"
    kwise(
        "train",
        RECIPE,
        f'data.train=["{clean}"]',
        f'data.eval=["{nectar / "valid.jsonl"}"]',
        f"model.base={base}",
        f"output={run}",
        # the size of everything, and a rate for weights this small; all else is the recipe's
        "trainer.max_steps=12",
        "trainer.rankings_per_step=8",
        "trainer.warmup_steps=2",
        "trainer.learning_rate=6e-3",
        "trainer.eval_steps=6",
        "trainer.save_steps=6",
        "trainer.tokens_per_row=600",
        "trainer.use_cpu=true",
    )
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    first = next(line for line in logged if "nll" in line)
    assert first["nll"] == pytest.approx(math.log(math.factorial(7)), abs=1e-5), "the head starts at 0"
    assert sorted(path.name for path in (run / "checkpoints").glob("checkpoint-*")) == ["checkpoint-12", "checkpoint-6"]
    weights = AutoModelForSequenceClassification.from_pretrained(run / "model").state_dict()
    before = LlamaForCausalLM.from_pretrained(base).state_dict()
    changed = [name for name, value in before.items() if name in weights and not torch.equal(weights[name], value)]
    assert len(changed) == len(before) - 1, "all weights but the LM head's are trained"

    kwise("eval", run / "model", nectar / "test.jsonl", "--by", "good_natured", "--json", tmp_path / "found.json")
    (found,) = json.loads((tmp_path / "found.json").read_text()).values()
    assert set(found) == {"all", "good_natured = False", "good_natured = True"} or set(found) == {
        "all",
        "False",
        "True",
    }
    assert found["all"]["pair_accuracy"]["n"] == 10 * 21
    assert found["all"]["pair_accuracy"]["value"] > 0.9

    model = RewardModel.from_pretrained(run / "model")
    chat = [
        {"role": "user", "content": "why?"},
        {"role": "assistant", "content": "clear"},
        {"role": "user", "content": "how?"},
    ]
    item = model.encoder.encode(chat, ["clear tin"])
    ids = item.prefix + item.suffixes[0]
    assert model.tokenizer.pad_token == "<unk>" and model.tokenizer.eos_token_id == ids[-1] == 2
    assert ids[0] == 1 != ids[1], "one BOS, where the authors' code has two"
    assert item.reward_at == [len(item.suffixes[0]) - 1]
