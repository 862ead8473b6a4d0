"""A mended copy of a model folder. The folder itself is never touched."""

import shutil
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from kwise.model import backbone
from kwise.model.reward_model import SETTINGS_FILE, Settings
from kwise.model.transformers4 import write_old_names
from kwise.use.doctor import Diagnosis
from kwise.use.doctor.checks import Facts, weight_files


def fix(diagnosis: Diagnosis, out: Path) -> list[str]:
    """Write a mended copy of the examined folder to ``out`` and say what was done, a line each.

    Raises ``ValueError`` where ``check_out`` does, if there is nothing to mend, and if weights are lost: transformers would fill
    them with random numbers, and the copy would no longer show it.
    """
    check_out(diagnosis.folder, out)
    lost = [finding for finding in diagnosis.findings if finding.lost]
    if lost or diagnosis.facts is None:  # without facts it cannot even be loaded, and the finding says why
        raise ValueError(f"no mended copy is possible: {'; '.join(finding.what for finding in lost)}")
    ids = [finding.id for finding in diagnosis.findings if finding.mendable]
    if not ids:
        raise ValueError("there is nothing that can be mended")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as unfinished:
        copy = Path(unfinished, "model")
        shutil.copytree(diagnosis.folder, copy)
        done = _mend(diagnosis.facts, ids, copy)
        copy.rename(out)
    return done


def check_out(folder: Path, out: Path) -> None:
    """Raise ``ValueError`` for a copy's place that exists, or that lies in the ``folder`` to copy."""
    if out.exists():
        raise ValueError(f"{out} exists; choose another name")
    if folder.resolve() in out.resolve().parents:
        raise ValueError(f"{out} lies in {folder}, which is copied to it: choose another place")


def _mend(facts: Facts, ids: list[str], copy: Path) -> list[str]:
    tokenizer = AutoTokenizer.from_pretrained(copy)
    model = AutoModelForSequenceClassification.from_pretrained(
        copy,
        config=AutoConfig.from_pretrained(copy, num_labels=1),
        dtype=torch.float32 if "half_precision" in ids else facts.model.dtype,
        ignore_mismatched_sizes=True,
    )
    config = model.config
    done = []
    if "num_labels" in ids:
        done.append("num_labels set to 1")
    if "head_name" in ids:
        model.score.weight.data.copy_(_tensor(facts.folder, facts.other_heads[0]))
        done.append(f"'{facts.other_heads[0]}' saved as '{facts.head}'")
    if "head_bias" in ids:
        done.append("the head's bias left out: scores moved by it, differences stayed")
    if "value_head_prefix" in ids:
        config.value_head_prefix = backbone.HEAD
        done.append(f"value_head_prefix set to '{backbone.HEAD}'")
    if "weights_unused" in ids:
        done.append("the language-model head left out")
    if "half_precision" in ids or "head_dtype" in ids:
        done.append(f"weights saved in {str(model.dtype).removeprefix('torch.')}; digits that rounding took stay lost")
    if "vocabulary" in ids:
        rows = max(tokenizer.get_vocab().values()) + 1
        done.append(f"embedding rows added up to {rows}, each the mean of the {_add_rows(model, rows)} before")
    if {"pad_missing", "pad_differs", "pad_is_eos", "pad_ends"} & set(ids):
        rows = model.get_input_embeddings().num_embeddings
        note = backbone.set_pad_token(model, tokenizer)
        grown = model.get_input_embeddings().num_embeddings > rows
        done.append((note or "the config pads as the tokenizer does") + (", with an embedding row of its own" * grown))
    if "problem_type" in ids:
        config.problem_type = "regression"
        done.append("problem_type set to 'regression'")
    if {"bos_missing", "double_bos"} & set(ids):
        done += backbone.leave_bos_to_template(tokenizer)
    if "extra_eos" in ids:
        tokenizer.add_eos_token = False
        done.append("the tokenizer adds no EOS any more")
    settings = facts.settings or Settings(max_length=facts.context)
    if "no_settings" in ids:
        settings.write(copy)
        done.append(f"{SETTINGS_FILE} written: max_length {settings.max_length}, truncation {settings.truncation}")
    if {"max_length", "no_settings"} & set(ids):
        tokenizer.model_max_length = settings.max_length
        done.append(f"model_max_length set to {settings.max_length}")
    for file in [*weight_files(copy), *copy.glob("model*.safetensors.index.json")]:
        file.unlink()
    model.save_pretrained(copy)
    tokenizer.save_pretrained(copy)
    write_old_names(copy)
    if {"rope_names", "tokenizer_names"} & set(ids):
        done.append("what transformers 4 calls otherwise, written under its names too")
    return done


def _tensor(folder: Path, name: str) -> torch.Tensor:
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as opened:
            if name in opened.keys():  # noqa: SIM118  # no mapping
                tensor: torch.Tensor = opened.get_tensor(name)
                return tensor
    raise ValueError(f"{folder} holds no tensor {name}")


def _add_rows(model: PreTrainedModel, rows: int) -> int:
    """Grow the input embedding to ``rows``; gives how many there were."""
    before = model.get_input_embeddings().weight.detach().clone()
    model.resize_token_embeddings(rows, mean_resizing=False)
    model.get_input_embeddings().weight.data[len(before) :] = before.float().mean(0).to(before.dtype)
    return len(before)
