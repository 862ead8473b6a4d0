"""The proof, on the real weights, that responses which share a prompt in one row get what they get alone."""

import torch
from transformers import PreTrainedModel

from kwise.data.packing import build_row
from kwise.model import attention
from kwise.records import EncodedRanking


@torch.no_grad()
def assert_exact(model: PreTrainedModel) -> None:
    """Raise ``ValueError`` unless this decoder gives shared rows the hidden states that separate sequences get.

    Layers that see in chunks, or in a window the dense mask does not know of, are refused by the config. All else is tried:
    two small rankings go through the real weights in one row, and may differ from separate sequences by 1e-3 of the
    largest hidden state in float32, 5e-2 in half precision. That catches recurrent layers, ALiBi, positions counted inside.
    """
    name, config = type(model).__name__, model.config.get_text_config()
    odd = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    odd |= {each for each in ("window_size", "attention_window", "attention_chunk_size") if getattr(config, each, None)}
    if odd:
        raise ValueError(f"{name} has attention that kwise cannot share rows for: {', '.join(sorted(odd))}")
    pieces = ([(7 * i + j) % config.vocab_size for j in range(n)] for i, n in enumerate((5, 3, 4, 2, 5, 1), 1))
    rankings = [
        EncodedRanking(next(pieces), own := [next(pieces), next(pieces)], [len(s) - 1 for s in own], [0, 0])
        for _ in "ab"
    ]
    training = model.training
    model.eval()
    try:
        shared = attention.hidden_states(model, build_row(rankings, [0, 1]))
    except (TypeError, ValueError, RuntimeError, KeyError) as refusal:  # how decoders fail on inputs they do not know
        raise ValueError(
            f"{name} does not take a four-dimensional mask and position ids ({refusal}), so kwise cannot train or score with it"
        ) from refusal
    finally:
        model.train(training)
    model.eval()
    sequences = [
        torch.tensor([item.prefix + suffix], device=model.device) for item in rankings for suffix in item.suffixes
    ]
    alone = torch.stack(
        [model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0, -1] for ids in sequences]
    )
    model.train(training)
    error = (shared.double() - alone.double()).abs().max() / alone.double().abs().max()
    if not error <= (1e-3 if model.dtype in (torch.float32, torch.float64) else 5e-2):
        raise ValueError(
            f"{name} gives responses that share a prompt in one row other hidden states than alone (relative difference "
            f"{error:.1e}), so kwise cannot train or score with it"
        )
