"""Builders that every folder's tests share: a byte-level tokenizer made on the spot (no files, no network), and rankings."""

import os
from collections.abc import Callable
from typing import Any

import pytest

from kwise.records import Message, Ranking

# tiny models gain nothing from threads, and threads that spin while they wait slow everything else down
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

SPECIAL = ("<pad>", "<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")  # ids 0 to 5; the 256 bytes follow
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer(adds_bos: bool = False, template: str = CHATML) -> Any:
    """One token a byte. ``adds_bos``: calling the tokenizer puts BOS in front, as Llama's and Mistral's do."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokens = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


def build_llama2_tokenizer(adds_bos: bool = True) -> Any:
    """Llama-2's class, its ids of ``<unk>``, ``<s>``, ``</s>`` (0, 1, 2) and its byte fallback, with few merges and no pad
    token. Its chat template is ChatML, in plain characters here."""
    from transformers import LlamaTokenizer

    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581"]
    tokens += [chr(code) for code in range(33, 127) if chr(code) != "x"]  # "x" is left to the byte fallback
    merges = [("t", "h"), ("th", "e"), ("\u2581", "the"), ("I", "N"), ("S", "T"), ("IN", "ST")]
    tokens += [first + second for first, second in merges]
    return LlamaTokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=merges,
        add_bos_token=adds_bos,
        chat_template=CHATML,
    )


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """What tests encode goes to a cache of their own, which shares only the real model, where that was made."""
    from kwise.data.cache import cache_folder
    from kwise.model.smollm2 import FOLDER

    made, own = cache_folder() / FOLDER, tmp_path_factory.mktemp("cache")
    if made.exists():
        (own / FOLDER).symlink_to(made.resolve())
    os.environ["KWISE_CACHE"] = str(own)


@pytest.fixture
def llama2_tokenizer() -> Any:
    """See ``build_llama2_tokenizer``."""
    return build_llama2_tokenizer()


@pytest.fixture
def make_llama2_tokenizer() -> Callable[..., Any]:
    """``make_llama2_tokenizer(adds_bos=True)``."""
    return build_llama2_tokenizer


@pytest.fixture
def make_tokenizer() -> Callable[..., Any]:
    """``make_tokenizer(adds_bos=False, template=CHATML)``: for a test that needs a variant of its own."""
    return build_tokenizer


@pytest.fixture
def tokenizer() -> Any:
    """262 tokens; distinct pad, unk, BOS and EOS; a ChatML template; BOS is written by neither tokenizer nor template."""
    return build_tokenizer()


@pytest.fixture
def llama_tokenizer() -> Any:
    """Its tokenizer adds BOS and its template writes BOS too: whoever tokenizes a rendered conversation gets two."""
    return build_tokenizer(adds_bos=True, template="{{ bos_token }}" + CHATML)


@pytest.fixture
def ranking() -> Callable[..., Ranking]:
    """``ranking("prompt", ["best", "worst"])``: a one-turn ``Ranking``; ranks are 1 to K in that order unless given."""

    def build(
        prompt: str | list[Message] = "Name a colour.",
        responses: tuple[str, ...] | list[str] = ("Blue.", "No."),
        ranks: list[float] | None = None,
        models: list[str | None] | None = None,
        file: str = "made.jsonl",
        line: int = 1,
        **columns: Any,
    ) -> Ranking:
        messages = [Message(role="user", content=prompt)] if isinstance(prompt, str) else prompt
        count = len(responses)
        given = [float(rank) for rank in (ranks if ranks is not None else range(1, count + 1))]
        return Ranking(messages, list(responses), given, models or [None] * count, file, line, columns)

    return build


@pytest.fixture
def base(tmp_path, tokenizer):
    """The folder of a tiny chat model."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)  # so that responses differ clearly, as in a trained model
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"
