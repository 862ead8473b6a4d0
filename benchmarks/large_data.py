"""What a data set of Nectar's size costs: 183,000 rankings of 7 answers, about 1.2 GB of JSON lines, made of generated words.

A recipe (method full, a tiny model with SmolLM2's tokenizer) is started twice, each time in a process of its own that ends
at its first training step: the first start encodes, the second finds the encoding in the cache. Memory is that of the whole tree
of processes, read every half second from /proc/PID/smaps_rollup (Linux): PSS, which shares out pages between the processes that
map them, and the anonymous part of it. Everything is written to a temporary folder, and removed.

    python benchmarks/large_data.py          or    python benchmarks/large_data.py --rankings 18300
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

RANKINGS, K = 183_000, 7
NAMES = [f"model-{n:02}" for n in range(15)]
RECIPE = """
method = "full"
output = "{output}"
[data]
train = ["{data}"]
max_length = 2048
[model]
base = "{base}"
[trainer]
use_cpu = true
save_strategy = "no"
disable_tqdm = true
"""


def write_rankings(path: Path, count: int) -> None:
    """Nectar's columns. Sentences are drawn from 20,000, their words from 8,000 by Zipf's law."""
    draw = random.Random(0)
    syllables = [a + b for a in "bcdfghlmnprstvw" for b in ("a", "e", "i", "o", "u", "ai", "er", "on", "est")]
    words = ["".join(draw.choices(syllables, k=draw.choice((1, 1, 2, 2, 3)))) for _ in range(8000)]
    weights = [1 / n for n in range(1, len(words) + 1)]
    sentences = [" ".join(draw.choices(words, weights, k=draw.randint(6, 24))).capitalize() + "." for _ in range(20000)]
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            turns = [" ".join(draw.choices(sentences, k=draw.randint(1, 6))) for _ in range(draw.choice((1, 1, 1, 3)))]
            prompt = "".join(f"\n\n{'Human' if n % 2 == 0 else 'Assistant'}: {turn}" for n, turn in enumerate(turns))
            answers = [
                {"answer": " ".join(draw.choices(sentences, k=draw.randint(2, 17))), "model": name, "rank": float(rank)}
                for rank, name in enumerate(draw.sample(NAMES, K), 1)
            ]
            row = {"prompt": f"{prompt} ({i})\n\nAssistant: ", "answers": answers, "turns": len(turns)}
            file.write(json.dumps(row) + "\n")


def write_base(folder: Path) -> None:
    """A Llama of 32 hidden units with SmolLM2's tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from kwise.model.backbone import load_tokenizer
    from kwise.model.smollm2 import smollm2

    tokenizer = load_tokenizer(smollm2())
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=8192, **shape)).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)


def start(recipe: str) -> None:
    """In a process of its own: ``kwise train`` up to its first training step."""
    from kwise.train.recipe import load_recipe
    from kwise.train.run import train
    from kwise.train.trainer import KwiseTrainer

    def first_step(self: KwiseTrainer, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        print(
            f"the first step has {len(inputs)} rankings, {sum(item.num_tokens for item in inputs)} tokens", flush=True
        )
        os._exit(0)

    KwiseTrainer.training_step = first_step  # type: ignore[method-assign]
    train(load_recipe(recipe))


def watched(command: list[str], cache: Path) -> tuple[float, float, float, int]:
    """Seconds of ``command``, its tree's peak PSS and peak anonymous PSS in MiB, and the most processes at once."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, env=os.environ | {"KWISE_CACHE": str(cache)})
    pss, anonymous, most = 0.0, 0.0, 0
    while process.poll() is None:
        tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        now = [rollup(each.pid) for each in tree]
        pss, anonymous = max(pss, sum(a for a, _ in now)), max(anonymous, sum(b for _, b in now))
        most = max(most, len(tree))
        time.sleep(0.5 if time.perf_counter() - begin > 20 else 0.05)
    seconds = time.perf_counter() - begin
    if process.returncode:
        raise SystemExit(f"{command} ended with {process.returncode}")
    return seconds, pss, anonymous, most


def rollup(pid: int) -> tuple[float, float]:
    """PSS and anonymous PSS of a process in MiB; nothing once it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (OSError, ProcessLookupError):
        return 0.0, 0.0
    found = {line.split()[0]: int(line.split()[1]) / 1024 for line in lines[1:]}
    return found["Pss:"], found["Pss_Anon:"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rankings", type=int, default=RANKINGS, help=f"how many; {RANKINGS} unless given")
    parser.add_argument("--start", metavar="RECIPE", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.start:
        start(given.start)
        return
    import measure  # here, since every process that encodes imports this file, and measure imports torch

    measure.print_header(measure.header(given))
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        data, cache = folder / "rankings.jsonl", folder / "cache"
        write_rankings(data, given.rankings)
        write_base(folder / "base")
        print(f"{given.rankings} rankings, {data.stat().st_size / 1e9:.2f} GB of JSON lines\n", flush=True)
        rows = []
        for name in ("first", "second", "third"):
            recipe = folder / f"{name}.toml"
            recipe.write_text(RECIPE.format(output=folder / name, data=data, base=folder / "base"))
            command = [sys.executable, str(Path(__file__).resolve()), "--start", str(recipe)]
            seconds, pss, anonymous, most = watched(command, cache)
            rows.append([name, f"{seconds:.1f}", f"{pss:.0f}", f"{anonymous:.0f}", most])
        size = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
        print()
        measure.print_table(["start", "s to the first step", "peak PSS, MiB", "anonymous, MiB", "processes"], rows)
        print(f"the cache holds {size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
