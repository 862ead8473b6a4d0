"""Does ``kwise train --dry-run`` tell the truth: its memory and time against those of the run itself.

Each recipe (SmolLM2-135M-Instruct cut to --layers of its 30, starter rankings) is forecast in one process and trained in
another. Memory is the trained process's highest resident set, as the kernel counts it; time is the trainer's own.

    python benchmarks/forecast.py --layers 4
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import measure

RECIPE = """
method = "full"
output = "run"
data = { train = ["starter:train"], max_length = 1024 }
model = { base = "smollm2" }
trainer = { num_train_epochs = 1, rankings_per_step = 16, save_strategy = "no" }
"""
CASES = {
    "full, rows of 512": ["trainer.tokens_per_row=512"],
    "full, rows of 2048": ["trainer.tokens_per_row=2048"],
    "full, rows of 4096": ["trainer.tokens_per_row=4096"],
    "full, rows of 4096, checkpointing": ["trainer.tokens_per_row=4096", "trainer.gradient_checkpointing=true"],
    "full, rows of 2048, dense mask": ["trainer.tokens_per_row=2048", "model.attention=reference"],
    "LoRA, rows of 2048": ["method=lora", "trainer.tokens_per_row=2048"],
    "LoRA, rows of 8192": ["method=lora", "trainer.tokens_per_row=8192"],
}
FORECAST = """
import sys
from kwise.cli import keep_memory
keep_memory()  # as the command line does before it trains
from kwise.train.forecast import forecast
from kwise.train.recipe import load_recipe
found = forecast(load_recipe(sys.argv[1], sys.argv[2:]))
print(found.memory, found.seconds)
"""


def forecast(recipe: Path, overrides: list[str]) -> tuple[float, float]:
    """Bytes and seconds foretold."""
    command = [sys.executable, "-c", FORECAST, str(recipe), *overrides]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    memory, seconds = done.stdout.split()[-2:]
    return float(memory), float(seconds)


def train(recipe: Path, overrides: list[str], output: Path) -> tuple[float, float]:
    """Bytes and seconds that the run took."""
    command = [
        sys.executable,
        "-c",
        "from kwise.cli import app; app()",
        "train",
        str(recipe),
        *overrides,
        f"output={output}",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"kwise train {' '.join(overrides)} failed")
    entries = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    seconds = next(entry["train_runtime"] for entry in entries if "train_runtime" in entry)
    return usage.ru_maxrss * 1024.0, float(seconds)


def main() -> None:
    args = measure.arguments(__doc__, layers=4, reps=1).parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    measure.print_header(measure.header(args))
    print("| recipe | GiB foretold | taken | ratio | s foretold | taken | ratio |\n|---|---|---|---|---|---|---|")
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder, "recipe.toml")
        recipe.write_text(RECIPE)
        for number, (name, overrides) in enumerate(CASES.items()):
            overrides = [*overrides, f"model.layers={args.layers}"]
            told, taken = forecast(recipe, overrides), train(recipe, overrides, Path(folder, f"run{number}"))
            cells = [
                f"{a:.2f} | {b:.2f} | {a / b:.2f}"
                for a, b in zip((told[0] / 2**30, told[1]), (taken[0] / 2**30, taken[1]), strict=True)
            ]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)
            found[name] = {"told": told, "taken": taken}
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
