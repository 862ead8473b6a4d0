"""Tiny trainers, and rankings for them."""

import torch
from peft import LoraConfig
from transformers import LlamaConfig, LlamaForSequenceClassification

from kwise import KwiseConfig, KwiseTrainer, Ranking

WORDS = ["salt", "sea", "water", "is", "the", "a", "of", "deep", "blue", "dead", "red", "and", "not", "very", "cold"]
LORA = LoraConfig(task_type="SEQ_CLS", r=4, target_modules="all-linear")


def make_rankings(num: int = 12, seed: int = 0) -> list[Ranking]:
    """Rankings of K = 2 to 6 answers in which the answer with more of the word 'salt' is better."""
    generator = torch.Generator().manual_seed(seed)

    def pick(high: int) -> int:
        return int(torch.randint(high, (1,), generator=generator))

    rankings = []
    for i in range(num):
        k = 2 + pick(5)
        ranks = (torch.randperm(k, generator=generator) + 1).tolist()
        answers = [
            " ".join(["salt"] * (k - rank) + [WORDS[1 + pick(14)] for _ in range(1 + pick(12))]) for rank in ranks
        ]
        prompt = " ".join(WORDS[pick(15)] for _ in range(1 + pick(20)))
        message = {"role": "user", "content": f"{i} {prompt}"}
        rankings.append(Ranking([message], answers, [float(r) for r in ranks], [None] * k, "made.jsonl", i + 1))
    return rankings


def make_model(vocab_size: int, pad: int = 0) -> LlamaForSequenceClassification:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_labels=1,
        pad_token_id=pad,
    )
    return LlamaForSequenceClassification(config)


def make_trainer(tokenizer, folder, rankings=None, held_out=None, peft_config=None, offsets=None, **options):
    settings = {
        "rankings_per_step": 6,
        "learning_rate": 1e-3,
        "num_train_epochs": 1,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "max_length": 128,
        **options,
    }
    rankings = make_rankings() if rankings is None else rankings
    model = make_model(len(tokenizer), tokenizer.pad_token_id)
    return KwiseTrainer(
        model, KwiseConfig(output_dir=str(folder), **settings), rankings, held_out, tokenizer, peft_config, offsets
    )


def logged(trainer, key="loss"):
    return [entry[key] for entry in trainer.state.log_history if key in entry]
