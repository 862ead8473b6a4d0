"""How much of a machine training uses: seconds and memory a ranking, and the share of its arithmetic peak (MFU), on full rows.

A random Llama (--shape, --layers of its layers) is trained on rankings of exactly 2,048 tokens (a prompt of 123, seven
responses of 200 to 350), as many as fill a row of --tokens. One model and one optimiser serve all sides in turn, so that
7B fits one card:

    kwise     KwiseTrainer, all rankings in one row, once for each of --attention
    padded    a batch of seven padded sequences for each ranking, transformers' own SDPA, a bare loop
    TRL       trl.RewardTrainer on the 21 pairs of each ranking, at most --pairs a batch

bfloat16 weights, gradients and optimiser state on CUDA, float32 on a CPU; fused AdamW at a learning rate of 0, gradient norm
clipped to 1. Each timed step follows one that is not, by the same trainer. Seconds are of the wall clock, since a card has
no CPU seconds.

MFU is the operations that a ranking's mathematics asks for, over seconds and over the rate of a matrix product of the same
type in the same process: 2 a weight and token forward and 4 backward (2 with --method lora, whose frozen weights get no
gradient), 4 a layer, hidden dimension and pair of tokens that see each other forward and 8 backward. What checkpointing
runs again is not counted, nor is what the last MLP leaves out.

    python benchmarks/throughput.py --shape llama-2-7b --method lora --tokens 4096 16384 --attention varlen flex
    python benchmarks/throughput.py --layers 4 --tokens 4096                                  a try on a CPU
"""

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from typing import Any

import measure
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from training import MAX_LENGTH, SETTINGS, TOKENIZER, ranking, sequences
from transformers import LlamaConfig, LlamaForSequenceClassification, PrinterCallback, Trainer, TrainerCallback
from trl import RewardConfig, RewardTrainer

from kwise import KwiseConfig, KwiseTrainer, Ranking
from kwise.data.encode import Encoder
from kwise.data.packing import build_row
from kwise.model import backbone
from kwise.model.attention import ATTENTION, set_attention
from kwise.model.attention.rule import spans
from kwise.objective import plackett_luce

PROMPT, K, TOKENS = 123, 7, 2048  # of a ranking
SHAPES: dict[str, dict[str, int]] = {
    "smollm2": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "num_hidden_layers": 30,
        "vocab_size": 49152,
    },
    "llama-2-7b": {"num_hidden_layers": 32},  # the rest are LlamaConfig's defaults
}
Model = LlamaForSequenceClassification | PeftModel


def build_model(given: argparse.Namespace) -> Model:
    """Random weights, made on the device; the head and, for LoRA, the adapters of all linear layers are trained."""
    torch.manual_seed(0)
    shape = SHAPES[given.shape] | ({"num_hidden_layers": given.layers} if given.layers else {})
    ids = {name: getattr(TOKENIZER, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    config = LlamaConfig(num_labels=1, max_position_embeddings=8192, **shape, **ids)
    config.dtype = torch.bfloat16 if given.device == "cuda" else torch.float32
    with torch.device(given.device):
        model = LlamaForSequenceClassification._from_config(config)
    if given.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if given.compile:
        for layer in backbone.decoder_layers(model):
            layer.compile(dynamic=True)
    if given.method == "full":
        return model
    return get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", modules_to_save=[backbone.HEAD]))


class Clock(TrainerCallback):
    """The seconds between the ends of two steps."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(now(self.device))


def now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


class Bench:
    """One model and its optimiser. ``kwise``, ``padded`` and ``trl`` take two optimiser steps on ``items`` and give the second
    one's seconds and the loss."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.model = given, build_model(given)
        self.decoder = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=0.0, fused=True)
        self.settings = SETTINGS | {"max_steps": 2, "use_cpu": given.device == "cpu", "learning_rate": 0.0}
        self.settings |= {"output_dir": tempfile.gettempdir(), "activation_checkpointing": given.checkpointing}
        self.settings["activation_checkpointing_kwargs"] = {"use_reentrant": False}

    def kwise(self, items: Sequence[Ranking], attention: str) -> tuple[float, float]:
        config = KwiseConfig(
            rankings_per_step=len(items),
            tokens_per_row=len(items) * TOKENS,
            max_length=MAX_LENGTH,
            truncation="error",
            attention=attention,
            **self.settings,
        )
        return self.two_steps(KwiseTrainer, config, [*items] * 2)

    def trl(self, items: Sequence[Ranking]) -> tuple[float, float]:
        self.decoder.set_attn_implementation("sdpa")
        chosen, rejected = zip(*(pair for item in items for pair in combinations(sequences(item), 2)), strict=True)
        batch = math.gcd(self.given.pairs, len(chosen))  # of one size, since RewardTrainer takes the mean over each
        config = RewardConfig(
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=len(chosen) // batch,
            max_length=None,  # else longer pairs would be left out
            **self.settings,
        )
        pairs = Dataset.from_dict({"chosen_ids": chosen * 2, "rejected_ids": rejected * 2})
        return self.two_steps(RewardTrainer, config, pairs)

    def two_steps(self, kind: type[Trainer], config: Any, data: Any) -> tuple[float, float]:
        # built anew each time: the next trainer's settings take away the last one's devices
        trainer = kind(
            self.model, config, train_dataset=data, processing_class=TOKENIZER, optimizers=(self.optimizer, None)
        )
        clock = Clock(self.given.device)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(clock)
        loss: float = trainer.train().training_loss
        return clock.ends[1] - clock.ends[0], loss

    def padded(self, items: Sequence[Ranking]) -> tuple[float, float]:
        self.decoder.set_attn_implementation("sdpa")
        self.model.train()
        pad, device = TOKENIZER.pad_token_id, self.given.device
        batches = [
            torch.nn.utils.rnn.pad_sequence([torch.tensor(each) for each in sequences(item)], True, pad)
            for item in items
        ]
        ranks, lists = torch.tensor(items[0].ranks, device=device), torch.zeros(K, dtype=torch.long, device=device)

        def step() -> float:
            total = 0.0
            for batch in batches:
                ids = batch.to(device)
                logits = self.model(input_ids=ids, attention_mask=(ids != pad).long(), use_cache=False).logits[:, 0]
                loss = plackett_luce(logits.float(), ranks, lists)[0] / len(batches)
                loss.backward()
                total += loss.item()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings["max_grad_norm"])
            self.optimizer.step()
            self.optimizer.zero_grad()
            return total

        step()
        start = now(device)
        loss = step()
        return now(device) - start, loss


def operations(bench: Bench, item: Ranking) -> float:
    """Floating-point operations of forward and backward for one ranking, as said at the top."""
    config, layers = bench.decoder.config, backbone.decoder_layers(bench.decoder)
    encoded = Encoder(TOKENIZER, MAX_LENGTH, "error").encode_ranking(item)
    lora = bench.given.method == "lora"
    sizes = [  # adapters are left out: a hundredth of the whole
        [module.weight.numel() for name, module in part.named_modules() if is_base_linear(name, module)]
        for part in (layers, layers[-1].mlp)
    ]
    weights, last_mlp = map(sum, sizes)
    linear = weights * encoded.num_tokens - last_mlp * (encoded.num_tokens - K)
    seen = 0
    for (start, end), *responses in spans(build_row([encoded], [0])):
        for a, b in [(start, end), *responses]:
            seen += (b - a) * (b - a + 1) // 2 + (0 if a == start else (b - a) * (end - start))
    return (4 if lora else 6) * linear + 12 * config.hidden_size * config.num_hidden_layers * seen


def is_base_linear(name: str, module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear) and "lora_" not in name


def peak_rate(given: argparse.Namespace) -> float:
    """Operations a second of a large square matrix product: the best of five times ten."""
    size, dtype = (8192, torch.bfloat16) if given.device == "cuda" else (2048, torch.float32)
    a, b = (torch.randn(size, size, device=given.device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(6):
        start = now(given.device)
        for _ in range(10):
            a @ b
        seconds.append(now(given.device) - start)
    return 10 * 2 * size**3 / min(seconds[1:])


def compare(bench: Bench, tokens: int) -> dict[str, Any]:
    """Every single measurement on rows of ``tokens`` tokens."""
    given, items = bench.given, [ranking(PROMPT, K)] * (tokens // TOKENS)
    found: dict[str, Any] = {"tokens": tokens, "seconds": {}, "gib": {}, "losses": {}, "skipped": {}}
    ways: dict[str, Callable[[Sequence[Ranking]], tuple[float, float]]] = {}
    for name in given.attention:
        try:
            chosen = set_attention(bench.decoder, name)
        except ValueError as reason:
            found["skipped"][name] = str(reason)
        else:
            ways[f"kwise, {chosen}"] = partial(bench.kwise, attention=chosen)
    ways |= {name: way for name, way in (("padded", bench.padded), ("TRL", bench.trl)) if name in given.against}

    def noted(name: str) -> float:
        if given.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        seconds, loss = ways[name](items)
        found["losses"].setdefault(name, []).append(loss)
        if given.device == "cuda":
            found["gib"][name] = torch.cuda.max_memory_allocated() / 2**30
        return seconds / len(items)

    found["operations"] = operations(bench, items[0])
    found["seconds"] = measure.interleaved({name: partial(noted, name) for name in ways}, given.reps)
    found["peak"] = peak_rate(given)
    return found


def table(found: dict[str, Any]) -> list[list[object]]:
    first = next(iter(found["seconds"].values()))
    rows: list[list[object]] = []
    for name, seconds in found["seconds"].items():
        median, ours = statistics.median(seconds), name.startswith("kwise")
        gib = found["gib"].get(name)
        rows.append(
            [
                found["tokens"],
                name,
                f"{median:.3f}",
                measure.show(measure.ratios(seconds, first)),
                f"{TOKENS / median:.0f}" if ours else "",
                f"{found['operations'] / median / found['peak']:.1%}" if ours else "",
                "" if gib is None else f"{gib:.1f}",
                f"{found['losses'][name][-1]:.4f}",
            ]
        )
    return rows


def main() -> None:
    parser = measure.arguments(__doc__, layers=0, reps=3)
    parser.add_argument("--shape", choices=SHAPES, default="smollm2")
    parser.add_argument("--method", choices=("full", "lora"), default="full")
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096], help=f"of a row, multiples of {TOKENS}")
    parser.add_argument("--attention", nargs="+", choices=ATTENTION, default=["auto"])
    parser.add_argument("--against", nargs="*", choices=("padded", "TRL"), default=["padded", "TRL"])
    parser.add_argument("--pairs", type=int, default=7, help="TRL's pairs a batch at most, 7 unless given")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing, on all sides")
    parser.add_argument("--compile", action="store_true", help="torch.compile of each decoder layer, on all sides")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    if wrong := [tokens for tokens in given.tokens if tokens < TOKENS or tokens % TOKENS]:
        parser.error(f"--tokens {wrong[0]}: must be a multiple of {TOKENS}")
    measure.quiet(given.threads)
    found: dict[str, Any] = {"header": measure.header(given), "rows": []}
    if given.device == "cuda":
        found["header"]["machine"] = torch.cuda.get_device_name()
    measure.print_header(found["header"])
    bench = Bench(given)
    columns = ["tokens of a row", "way", "s a ranking", "over the first", "tokens a second", "MFU", "peak GiB", "loss"]

    def rows() -> Any:
        for tokens in given.tokens:
            found["rows"].append(compare(bench, tokens))
            measure.write_json(given.json, found)
            yield from table(found["rows"][-1])

    measure.print_table(columns, rows())
    for each in found["rows"]:
        print(f"{each['tokens']} tokens: matrix product {each['peak'] / 1e12:.2f} TFLOP/s", *each["skipped"].values())


if __name__ == "__main__":
    main()
