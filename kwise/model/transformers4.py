"""A model folder's files as transformers 4 reads them too.

transformers 5 writes some settings under new names, and 4 passes over names that it does not know. Without ``rope_theta`` it
rotates by its class's default and scores are other ones, in silence; without a tokenizer class that it knows it stops. Many tools
(RewardBench 0.1.4 asks for 4.51.0) run on 4. transformers 5 still reads the old names, so both are written.
"""

import json
import os
from pathlib import Path
from typing import Any

CONFIG, TOKENIZER = "config.json", "tokenizer_config.json"
PER_KIND = {"full_attention": "rope_theta", "sliding_attention": "rope_local_base_freq"}  # Gemma 3's names


def write_old_names(folder: str | os.PathLike[str]) -> None:
    """Add them to ``config.json`` (a folder of adapters has none) and ``tokenizer_config.json``, where those lack them."""
    for name, old_names in ((CONFIG, old_config), (TOKENIZER, old_tokenizer)):
        path = Path(folder, name)
        if path.exists():
            written = json.loads(path.read_text(encoding="utf-8"))
            path.write_text(json.dumps(old_names(written), indent=2, sort_keys=True) + "\n", encoding="utf-8")


def old_config(config: dict[str, Any]) -> dict[str, Any]:
    """``config.json`` with what transformers 4 calls ``torch_dtype``, ``rope_theta``, ``rope_scaling`` and so on."""
    found: dict[str, Any] = {"torch_dtype": config["dtype"]} if "dtype" in config else {}
    rope = config.get("rope_parameters") or {}
    if PER_KIND.keys() <= rope.keys():
        found |= {name: rope[kind]["rope_theta"] for kind, name in PER_KIND.items()}
        rope = rope["full_attention"]
    rope = dict(rope)
    found |= {name: rope.pop(name) for name in ("rope_theta", "partial_rotary_factor") if name in rope}
    if config.get("model_type") == "gpt_neox":
        found |= {"rotary_emb_base": found.get("rope_theta"), "rotary_pct": found.get("partial_rotary_factor")}
    kind = rope.get("rope_type", "default")
    if kind == "yarn" and rope.get("original_max_position_embeddings") == config.get("max_position_embeddings"):
        del rope["original_max_position_embeddings"]  # 4 would take their quotient, 1, for the factor
    if kind == "longrope" and config.get("model_type") == "phi3":  # it takes these three and no more
        rope = {"type": kind, "short_factor": rope["short_factor"], "long_factor": rope["long_factor"]}
    if kind != "default":
        found["rope_scaling"] = rope
    return found | config


def old_tokenizer(config: dict[str, Any]) -> dict[str, Any]:
    """``tokenizer_config.json`` with a tokenizer class and a name of further special tokens that transformers 4 knows."""
    found = dict(config)
    if found.get("tokenizer_class") == "TokenizersBackend":
        found["tokenizer_class"] = "PreTrainedTokenizerFast"  # what 5 still calls it too
        found.setdefault(
            "model_input_names", ["input_ids", "attention_mask"]
        )  # 4 adds token_type_ids, which decoders refuse
    if isinstance(found.get("extra_special_tokens"), list):
        found["additional_special_tokens"] = found.pop("extra_special_tokens")
    return found
