"""What it costs to train on one ranking: kwise, a padded K-wise batch, and TRL's RewardTrainer on the exploded pairs.

All three train a random Llama of SmolLM2-135M's shape (--layers of its 30) in float32 on the same token ids, without
gradient checkpointing, and make one optimiser step: gradient norm clipped to 1, fused AdamW.

    kwise     KwiseTrainer.train() on a data set of that one ranking
    padded    K sequences padded on the right in one batch of LlamaForSequenceClassification with transformers' own SDPA,
              the same Plackett-Luce loss, in a bare loop that has no trainer's overhead to carry
    TRL       trl.RewardTrainer.train() on the K (K - 1) / 2 pairs, at most 7 pairs a batch (--pairs), gradients accumulated

Trainers are built, texts tokenized and the optimiser's state made before the clock starts. The learning rate is 0: the
arithmetic is the same, and since no weight moves, every run of kwise and padded must give one and the same loss, which is
checked. Responses have 200 to 350 tokens. "By tokens" is the ratio that tokens run through the decoder (padding included)
would give: it leaves out attention and all that is fixed.

    make bench          or    python benchmarks/training.py --full --json training.json
"""

import argparse
import random
import statistics
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import combinations
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import measure
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast, PrinterCallback
from trl import RewardConfig, RewardTrainer

from kwise import KwiseConfig, KwiseTrainer, Ranking
from kwise.data.encode import Encoder
from kwise.objective import plackett_luce
from kwise.records import Message

HEADLINE = [(200, 7), (1500, 7)]
FULL = [(prompt, k) for k in (2, 4, 7, 16) for prompt in (50, 200, 600, 1500)]
MEMORY = [(200, 7), (600, 7), (1500, 7)]
SMALL = (10, 2)
MAX_LENGTH = 2048
SETTINGS: dict[str, Any] = {
    "max_steps": 1,
    "max_grad_norm": 1.0,
    "lr_scheduler_type": "constant",
    "bf16": False,
    "use_cpu": True,
    "save_strategy": "no",
    "logging_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and a template that writes one token after each turn, so that lengths in tokens can be chosen."""
    tokens = ["<pad>", "<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        chat_template="{% for message in messages %}{{ message['content'] }}</s>{% endfor %}",
    )


TOKENIZER = byte_tokenizer()


def ranking(prompt: int, k: int) -> Ranking:
    """A prompt of so many tokens and k responses, their lengths spread evenly over 200 to 350 tokens, in shuffled order."""
    source = random.Random(1000 * prompt + k)
    lengths = [200 + round(150 * i / (k - 1)) for i in range(k)]
    source.shuffle(lengths)
    # no two responses begin alike, so that what they share is the prompt
    responses = [chr(ord("a") + i) + text(source, length - 2) for i, length in enumerate(lengths)]
    messages = [Message(role="user", content=text(source, prompt - 1))]
    return Ranking(messages, responses, [float(i) for i in range(k)], [None] * k, "made", 1)


def text(source: random.Random, length: int) -> str:
    return "".join(source.choices("abcdefghijklmnopqrstuvwxyz ", k=length))


def sequences(item: Ranking) -> list[list[int]]:
    """The K token id lists that kwise makes of ``item``."""
    encoded = Encoder(TOKENIZER, MAX_LENGTH, "error").encode_ranking(item)
    return [encoded.prefix + suffix for suffix in encoded.suffixes]


def build_model(layers: int) -> LlamaForSequenceClassification:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        max_position_embeddings=8192,
        num_hidden_layers=layers,
        num_labels=1,
        pad_token_id=TOKENIZER.pad_token_id,
        bos_token_id=TOKENIZER.bos_token_id,
        eos_token_id=TOKENIZER.eos_token_id,
    )
    return LlamaForSequenceClassification(config)


class Way:
    """A model, its optimiser and how it takes one step on a ranking."""

    def __init__(self, layers: int, pairs: int) -> None:
        self.model, self.pairs = build_model(layers), pairs
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.0, fused=True)
        self.prepare(ranking(*SMALL))()
        self.tokens = measure.count_tokens(self.model)

    def prepare(self, item: Ranking) -> Callable[[], float]:
        """A function that takes one optimiser step on ``item`` and gives the loss."""
        raise NotImplementedError


class Kwise(Way):
    def prepare(self, item: Ranking) -> Callable[[], float]:
        config = KwiseConfig(
            output_dir=tempfile.gettempdir(),
            rankings_per_step=1,
            tokens_per_row=8192,  # one row a ranking, since the padded batch does not save memory by running parts twice
            max_length=MAX_LENGTH,
            truncation="error",
            **SETTINGS,
        )
        trainer = KwiseTrainer(
            self.model, config, [item], processing_class=TOKENIZER, optimizers=(self.optimizer, None)
        )
        trainer.remove_callback(PrinterCallback)
        return lambda: trainer.train().training_loss


class Padded(Way):
    def prepare(self, item: Ranking) -> Callable[[], float]:
        pad = TOKENIZER.pad_token_id
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(each) for each in sequences(item)], True, pad)
        ranks, lists = torch.tensor(item.ranks), torch.zeros(len(item.ranks), dtype=torch.long)
        self.model.train()

        def step() -> float:
            rewards = self.model(input_ids=ids, attention_mask=(ids != pad).long(), use_cache=False).logits[:, 0]
            loss = plackett_luce(rewards, ranks, lists)[0]
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), SETTINGS["max_grad_norm"])
            self.optimizer.step()
            self.optimizer.zero_grad()
            return loss.item()

        return step


class Trl(Way):
    def prepare(self, item: Ranking) -> Callable[[], float]:
        chosen, rejected = zip(*combinations(sequences(item), 2), strict=True)  # best first, as item.ranks
        # batches of one size, since RewardTrainer takes the mean over each
        batch = max(n for n in range(1, self.pairs + 1) if len(chosen) % n == 0)
        config = RewardConfig(
            output_dir=tempfile.gettempdir(),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=len(chosen) // batch,
            activation_checkpointing=False,
            max_length=None,  # else longer pairs would be left out
            **SETTINGS,
        )
        pairs = Dataset.from_dict({"chosen_ids": chosen, "rejected_ids": rejected})
        trainer = RewardTrainer(
            self.model,
            config,
            train_dataset=pairs,
            processing_class=TOKENIZER,
            optimizers=(self.optimizer, None),
        )
        trainer.remove_callback(PrinterCallback)
        return lambda: trainer.train().training_loss


WAYS: dict[str, type[Way]] = {"kwise": Kwise, "padded": Padded, "TRL": Trl}


def cost(ways: dict[str, Way], prompt: int, k: int, reps: int) -> dict[str, Any]:
    """CPU seconds of every run and tokens of one run, for each way."""
    item = ranking(prompt, k)
    losses: dict[str, list[float]] = {name: [] for name in ways}

    def noted(name: str, step: Callable[[], float]) -> Callable[[], float]:
        return lambda: measure.timed(lambda: losses[name].append(step()))

    steps = {name: noted(name, way.prepare(item)) for name, way in ways.items()}
    for way in ways.values():
        way.tokens.clear()  # building a KwiseTrainer runs a few
    seconds = measure.interleaved(steps, reps)
    apart = max(abs(a - b) for a, b in zip(losses["kwise"], losses.get("padded", losses["kwise"]), strict=True))
    if apart > 1e-4:
        raise AssertionError(f"kwise and the padded batch do not compute the same loss: they are {apart:.1e} apart")
    tokens = {name: sum(way.tokens) // reps for name, way in ways.items()}
    return {"prompt": prompt, "k": k, "seconds": seconds, "tokens": tokens, "loss": losses}


def cost_row(cell: dict[str, Any]) -> list[object]:
    seconds, tokens = cell["seconds"], cell["tokens"]
    row: list[object] = [cell["prompt"], cell["k"]]
    row += [f"{statistics.median(own):.2f}" for own in seconds.values()]
    for name in [each for each in seconds if each != "kwise"]:
        row += [measure.show(measure.ratios(seconds[name], seconds["kwise"])), f"{tokens[name] / tokens['kwise']:.2f}"]
    return [*row, " / ".join(map(str, tokens.values()))]


def peak(name: str, layers: int, pairs: int, threads: int, kept: bool, prompt: int, k: int) -> int:
    """Bytes by which one step on a ranking raises this (fresh) process's peak memory over what it holds before.

    Before, the model and the optimiser's state exist, gradients do not. Read from Linux's /proc.
    """
    measure.quiet(threads)
    if kept:
        measure.keep_memory()
    way = WAYS[name](layers, pairs)
    before = resident("VmRSS")
    way.prepare(ranking(prompt, k))()
    return resident("VmHWM") - before


def resident(field: str) -> int:
    """``VmRSS`` (memory held now) or ``VmHWM`` (the most so far) of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def peaks(ways: list[str], given: argparse.Namespace, prompt: int, k: int) -> dict[str, Any]:
    """``peak`` of each way, each in a process of its own."""
    found = {}
    for name in ways:
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            found[name] = process.submit(
                peak, name, given.layers, given.pairs, given.threads, given.kept, prompt, k
            ).result()
    return {"prompt": prompt, "k": k, "bytes": found}


def peak_row(cell: dict[str, Any]) -> list[object]:
    found = cell["bytes"]
    sizes = [f"{size / 2**20:.0f}" for size in found.values()]
    shares = [f"{found['kwise'] / size:.2f}" for name, size in found.items() if name != "kwise"]
    return [cell["prompt"], cell["k"], *sizes, *shares]


def cell(words: str) -> tuple[int, int]:
    """``"200x7"``: prompt of 200 tokens, 7 responses."""
    prompt, k = words.split("x")
    return int(prompt), int(k)


def main() -> None:
    parser = measure.arguments(__doc__, layers=4, reps=3)
    parser.add_argument("--full", action="store_true", help="prompts of 50 to 1500 tokens by K of 2 to 16 (hours)")
    parser.add_argument("--cells", type=cell, nargs="+", metavar="PROMPTxK", help="these cells instead, as in 200x7")
    others = [name for name in WAYS if name != "kwise"]
    parser.add_argument("--against", nargs="+", choices=others, default=others, help="both unless given")
    parser.add_argument("--pairs", type=int, default=7, help="TRL's pairs a batch at most, 7 unless given")
    parser.add_argument(
        "--kept", action="store_true", help="keep freed memory on all sides, as kwise's command line does"
    )
    given = parser.parse_args()
    measure.quiet(given.threads)
    if given.kept:
        measure.keep_memory()
    found: dict[str, Any] = {"header": measure.header(given), "cells": [], "memory": []}
    measure.print_header(found["header"])
    names = ["kwise", *given.against]

    def cost_rows() -> Iterator[list[object]]:
        ways = {name: WAYS[name](given.layers, given.pairs) for name in names}
        for prompt, k in given.cells or (FULL if given.full else HEADLINE):
            found["cells"].append(cost(ways, prompt, k, given.reps))
            measure.write_json(given.json, found)
            yield cost_row(found["cells"][-1])

    def peak_rows() -> Iterator[list[object]]:
        for prompt, k in given.cells or MEMORY:
            found["memory"].append(peaks(names, given, prompt, k))
            measure.write_json(given.json, found)
            yield peak_row(found["memory"][-1])

    # first, since what the timed runs leave with this process's allocator may be most of the machine's memory
    print("Peak memory of one step over model and optimiser state, MiB\n")
    measure.print_table(["prompt", "K", *names, *(f"kwise / {name}" for name in given.against)], peak_rows())
    print(
        "CPU seconds a ranking (median); ratios to kwise: median (least to greatest); by tokens: the ratio of tokens run\n"
    )
    columns = ["prompt", "K", *(f"{name}, s" for name in names)]
    columns += [column for name in given.against for column in (f"{name} / kwise", "by tokens")]
    measure.print_table([*columns, "tokens " + " / ".join(names)], cost_rows())


if __name__ == "__main__":
    main()
