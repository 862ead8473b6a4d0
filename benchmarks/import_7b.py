"""What it costs to import a reward model of 7B: the state dict of the Starling-RM-7B-alpha card's class, one .pt in float16.

Llama-2-7B's layers with SmolLM2's vocabulary and made-up weights (a block of random numbers, repeated): 14 GB, written to
--folder through mapped files, so that this program needs little memory itself. Then ``kwise import`` runs in a process of
its own; memory is read as in ``large_data.py``, pages of mapped files counted in PSS and not in the anonymous part. Every
tensor written is compared with what it was made of. All is removed at the end; three times the size must be free on the disk.

    python benchmarks/import_7b.py --folder /somewhere/with/45GB          or, for a try,    --layers 2
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import measure
import torch
from large_data import watched
from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM

from kwise.model.backbone import load_tokenizer
from kwise.model.smollm2 import smollm2


def write_base(folder: Path, layers: int) -> LlamaConfig:
    """Config (the defaults are Llama-2-7B's) and tokenizer, no weights: all that an import asks of its base."""
    tokenizer = load_tokenizer(smollm2())
    config = LlamaConfig(vocab_size=len(tokenizer), num_hidden_layers=layers, max_position_embeddings=4096)
    tokenizer.save_pretrained(folder)
    config.save_pretrained(folder)
    return config


def write_checkpoint(path: Path, config: LlamaConfig) -> dict[str, torch.Tensor]:
    """The card's names: the decoder twice (one storage), the LM head, ``v_head``. Gives the tensors, which stay mapped."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    shapes["v_head.weight"] = torch.Size([1, config.hidden_size])
    block = torch.randn(1 << 22, generator=torch.Generator().manual_seed(0)).half() / 50
    made: dict[str, torch.Tensor] = {}
    for number, (name, shape) in enumerate(shapes.items()):
        mapped = torch.from_file(f"{path}.{number}", shared=True, size=shape.numel(), dtype=torch.float16)
        for start in range(0, len(mapped), len(block)):
            mapped[start : start + len(block)] = block[: len(mapped) - start].roll(number + start)
        made[name] = mapped.view(shape)
    names = {"v_head.weight": made["v_head.weight"]}
    for name, tensor in made.items():
        if name != "v_head.weight":
            names[f"model.{name}"] = tensor
        if name.startswith("model."):
            names[f"transformer.{name.removeprefix('model.')}"] = tensor
    torch.save(names, path)
    return made


def differing(folder: Path, made: dict[str, torch.Tensor]) -> list[str]:
    """Names of tensors in ``folder`` that are not those made, bit for bit, or are not there."""
    weight_map = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    wrong = []
    for name, tensor in made.items():
        if name == "lm_head.weight":
            continue
        name = "score.weight" if name == "v_head.weight" else name
        with safe_open(folder / weight_map[name], "pt") as file:
            if not torch.equal(file.get_tensor(name), tensor):
                wrong.append(name)
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where the files are written")
    parser.add_argument("--layers", type=int, default=32, help="decoder layers, 32 unless given")
    given = parser.parse_args()
    measure.print_header(measure.header(given))
    with tempfile.TemporaryDirectory(dir=given.folder) as temporary:
        folder = Path(temporary)
        made = write_checkpoint(folder / "reward.pt", write_base(folder / "base", given.layers))
        words = ["import", str(folder / "reward.pt"), "--base", str(folder / "base"), "-o", str(folder / "out")]
        command = [sys.executable, "-c", "from kwise.cli import app; app()", *words]
        seconds, pss, anonymous, _ = watched(command, folder / "cache")
        if wrong := differing(folder / "out", made):
            raise SystemExit(f"not what was written: {', '.join(wrong)}")
        size = sum(file.stat().st_size for file in (folder / "out").glob("*.safetensors")) / 2**20
        print(f"\n{len(made) - 1} tensors of the imported model compared, all equal\n")
        row = [f"{size:.0f}", f"{seconds:.0f}", f"{pss:.0f}", f"{anonymous:.0f}", f"{pss / size:.2f}"]
        measure.print_table(["model, MiB", "s", "peak PSS, MiB", "anonymous, MiB", "PSS / model"], [row])


if __name__ == "__main__":
    main()
