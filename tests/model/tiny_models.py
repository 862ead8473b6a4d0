"""Tiny random decoders of every family that kwise names, as sequence classifiers."""

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 97,
    "pad_token_id": 0,
    "max_position_embeddings": 512,
}
FAMILIES = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "mistral with a window": {"sliding_window": 6},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma2": {
        "head_dim": 8,
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "gemma3_text": {
        "head_dim": 8,
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
    },
    "phi3": {"sliding_window": None},
    "gpt_neox": {},
    "olmo2": {},
    "smollm3": {"no_rope_layers": [1, 0, 1]},
    "phi3 with a window": {"sliding_window": 6},
    "mixtral": {"num_local_experts": 4, "sliding_window": None},
    "qwen3_moe": {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    "gpt_oss": {
        "head_dim": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "deepseek_v3": {
        "num_key_value_heads": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 8,
        "first_k_dense_replace": 3,
    },
}


def tiny_model(family: str = "llama", dtype: torch.dtype = torch.float32, seed: int = 0, **options: object):
    """A random model of that family; the scale of its weights makes responses differ clearly."""
    config = AutoConfig.for_model(family.split()[0], **{**SHAPE, **FAMILIES[family], "num_labels": 1, **options})
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_config(config).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    if dtype == torch.float64:
        model.set_experts_implementation("eager")  # the grouped product of mixtures of experts has no float64
    return model.eval()
