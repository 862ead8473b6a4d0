"""What may be wrong with a reward-model folder, each under an id of its own, in words, with its mend."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from kwise.model.backbone import HEAD, LM_HEADS, RECOMPUTED, ending, refuse_adapter
from kwise.model.reward_model import SETTINGS_FILE, Settings
from kwise.model.transformers4 import CONFIG, TOKENIZER, old_config, old_tokenizer
from kwise.use.doctor.probes import Probe

HALF = {"F16": "float16", "BF16": "bfloat16"}
ABSURD_LENGTH = 10**15  # what a tokenizer says that was never told its length (1e30), with room
OLD_ROPE = {"rope_theta": 10_000.0, "rope_type": "default"}  # what transformers 4 takes of nearly every decoder
SHOWN = 3  # tensors named before "... and n more"


class Finding(NamedTuple):
    """``level`` is error, warning, or "measured": an error if a reader with one of the traits ``explains`` disagrees with kwise,
    else a warning. ``mendable``: ``--fix`` can. ``lost``: weights are gone, so that a copy would only hide it."""

    id: str
    level: str
    what: str
    mend: str
    mendable: bool = True
    explains: frozenset[str] = frozenset()
    lost: bool = False


@dataclass(frozen=True)
class Facts:
    """What is known of a folder: its tensors as the files hold them, and what transformers made of it.

    ``info`` is transformers' loading report; ``not_finite`` names tensors with NaN or infinity; ``settings`` is None
    without kwise.json.
    """

    folder: Path
    tensors: dict[str, tuple[str, tuple[int, ...]]]
    not_finite: list[str]
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    info: dict[str, Any]
    settings: Settings | None

    @property
    def context(self) -> int:
        """The longest sequence that the config allows, in tokens; a million where it does not say."""
        return int(getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or 10**6)

    @property
    def head(self) -> str:
        """The name of the head's weight."""
        return f"{HEAD}.weight"

    @property
    def other_heads(self) -> list[str]:
        """Tensors of a shape that only a head of one label has, which the model has no place for."""
        hidden = self.model.config.get_text_config().hidden_size
        return [name for name in sorted(self.info["unexpected_keys"]) if self.tensors[name][1] == (1, hidden)]

    @property
    def missing(self) -> list[str]:
        """Tensors that the model needs and the files lack."""
        return sorted(self.info["missing_keys"])

    @property
    def misshapen(self) -> list[str]:
        """Tensors of another shape in the files than in the model."""
        return sorted(each[0] for each in self.info["mismatched_keys"])

    @property
    def eos_ids(self) -> set[int]:
        """EOS of the tokenizer and of the config."""
        ids = self.model.config.get_text_config().eos_token_id
        return {self.tokenizer.eos_token_id, *(ids if isinstance(ids, list) else [ids])} - {None}

    @property
    def tokenizer_adds_bos(self) -> bool:
        """Does a text tokenised with special tokens begin with BOS?"""
        bos = self.tokenizer.bos_token_id
        return bos is not None and self.tokenizer("").input_ids[:1] == [bos]


def look(folder: Path, tokenizer: PreTrainedTokenizerBase) -> Facts:
    """Read ``folder``, whose tokenizer is loaded already. Raises ``ValueError`` in words for what nobody can load."""
    refuse_adapter(folder)
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    not_finite = []
    try:
        for file in weight_files(folder):
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118  # no mapping
                    tensor = opened.get_tensor(name)
                    tensors[name] = (opened.get_slice(name).get_dtype(), tuple(tensor.shape))
                    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                        not_finite.append(name)
        if not tensors:
            raise ValueError(f"{folder} holds no model in safetensors; kwise and doctor read no other weights")
        model, info = AutoModelForSequenceClassification.from_pretrained(
            folder, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except Exception as error:  # transformers, torch and safetensors raise many unrelated types
        raise ValueError(f"{folder} cannot be loaded by transformers: {error}") from error
    if not isinstance(getattr(model, HEAD, None), torch.nn.Linear):
        raise ValueError(f"{type(model).__name__} has no linear head '{HEAD}', which reward models of decoders have")
    settings = Settings.read(folder / SETTINGS_FILE) if (folder / SETTINGS_FILE).exists() else None
    return Facts(folder, tensors, not_finite, model.eval(), tokenizer, info, settings)


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers would read the model from."""
    return sorted(folder.glob("model*.safetensors"))


def check(facts: Facts, probes: list[Probe]) -> list[Finding]:
    """Every defect of the folder that the checks know, in the order in which ``--fix`` mends them."""
    return [finding for each in CHECKS for finding in each(facts, probes)]


def _named(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _head(facts: Facts, _: list[Probe]) -> Iterator[Finding]:
    bias = [name for name in facts.info["unexpected_keys"] if name.rsplit(".", 1)[-1] == "bias" and _is_head(name)]
    if facts.model.config.num_labels != 1 or facts.head in facts.misshapen:
        rows = facts.tensors.get(facts.head, ("", ()))[1][:1]
        what = f"num_labels is {facts.model.config.num_labels}, and the head in the file has {rows[0] if rows else 'no'} rows"
        one = rows == (1,)
        mend = "set num_labels to 1" if one else "none: which of the labels would be the reward? Train a model with one"
        yield Finding("num_labels", "error", what, mend, mendable=one, lost=not one)
    elif facts.head in facts.missing and len(facts.other_heads) == 1:
        what = f"the head is saved as '{facts.other_heads[0]}': transformers makes a new random one as '{facts.head}'"
        yield Finding("head_name", "error", what, f"save it as '{facts.head}'")
    elif facts.head in facts.missing:
        what = f"no file holds the head '{facts.head}': transformers makes a new random one at every load"
        mend = "none: the head is lost. Take it from the training run (with LoRA: modules_to_save = ['score'])"
        yield Finding("head_missing", "error", what, mend, mendable=False, lost=True)
    elif not bool(facts.model.get_parameter(facts.head).any()):
        yield Finding("head_zero", "error", "the head is all zero: it was never trained", "train it", mendable=False)
    else:
        head, embedding = facts.model.get_parameter(facts.head), facts.model.get_input_embeddings().weight
        if bool((embedding == head).all(1).any()):
            token = int((embedding == head).all(1).nonzero()[0])
            what = f"the head equals the embedding of token {token}: it is tied, or was never trained by itself"
            yield Finding("head_tied", "warning", what, "none that keeps the scores: train a head", mendable=False)
        if facts.tensors[facts.head][0] in HALF and facts.model.dtype == torch.float32:
            what = (
                f"the head is stored in {HALF[facts.tensors[facts.head][0]]}, the model in float32: its digits are gone"
            )
            mend = "save the head in float32 where it was trained; --fix stores its rounded values as float32"
            yield Finding("head_dtype", "warning", what, mend)
    if bias:
        what = f"the head has a bias, '{bias[0]}': transformers drops it without a word, kwise refuses it"
        yield Finding("head_bias", "error", what, "leave it out: all scores move by it, no difference does")
    prefix = getattr(facts.model.config, "value_head_prefix", HEAD)
    if prefix != HEAD and facts.head not in facts.missing:
        what = f"config.value_head_prefix is '{prefix}': OpenRLHF looks for the head there, and makes a new random one"
        yield Finding("value_head_prefix", "error", what, f"set it to '{HEAD}'", explains=frozenset(["prefix"]))


def _is_head(name: str) -> bool:
    return name.startswith((HEAD, "v_head", "value_head", "reward_head", "classifier"))


def _tensors(facts: Facts, _: list[Probe]) -> Iterator[Finding]:
    missing = [name for name in facts.missing if name != facts.head]
    missing += [name for name in facts.misshapen if name != facts.head]
    if missing:
        what = (
            f"the files lack, or hold in another shape, {_named(missing)}: transformers fills them with random numbers"
        )
        yield Finding("weights_missing", "error", what, "none: save the model again", mendable=False, lost=True)
    heads = facts.other_heads if facts.head in facts.missing and len(facts.other_heads) == 1 else []
    unused = [
        name
        for name in sorted(facts.info["unexpected_keys"])
        if name not in heads and not name.endswith(RECOMPUTED) and not (name.endswith("bias") and _is_head(name))
    ]
    if unused:
        language = all(name.partition(".")[0] in LM_HEADS for name in unused)
        mend = "leave it out" if language else "none: find out what they are; the model may be of another class"
        what = (
            f"the model has no place for {_named(unused)}: transformers drops them without a word, kwise refuses them"
        )
        yield Finding("weights_unused", "error", what, mend, mendable=language, lost=not language)
    if facts.not_finite:
        what = f"NaN or infinity in {_named(facts.not_finite)}"
        yield Finding("not_finite", "error", what, "none: go back to a sound checkpoint", mendable=False)
    rows = facts.model.get_input_embeddings().num_embeddings
    last = max(facts.tokenizer.get_vocab().values())
    if last >= rows:
        what = (
            f"the tokenizer has tokens up to id {last}, the embedding {rows} rows: such a token is an error or garbage"
        )
        mend = "if this is the model's own tokenizer: --fix adds rows, each the mean of the embedding"
        yield Finding("vocabulary", "error", what, mend)


def _precision(facts: Facts, _: list[Probe]) -> Iterator[Finding]:
    loaded = str(facts.model.dtype).removeprefix("torch.")
    if loaded in HALF.values():
        kinds = sorted({dtype for dtype, _ in facts.tensors.values()})
        what = f"transformers loads it in {loaded} (files: {', '.join(kinds)}), so scores have 3 digits; kwise takes float32"
        mend = "load it with dtype=torch.float32; --fix stores float32 (twice the size)"
        yield Finding("half_precision", "measured", what, mend, explains=frozenset(["dtype"]))


def _pad(facts: Facts, _: list[Probe]) -> Iterator[Finding]:
    own, config = facts.tokenizer.pad_token_id, facts.model.config.get_text_config().pad_token_id
    if own is None or config is None:
        lacking = [name for name, pad in (("the tokenizer", own), ("the config", config)) if pad is None]
        what = f"{' and '.join(lacking)} {'has' if len(lacking) == 1 else 'have'} no pad token: batches fail, or take EOS for it"
        yield Finding("pad_missing", "measured", what, "a pad token of its own, in both", explains=frozenset(["pads"]))
    elif own != config:
        what = f"the tokenizer pads with token {own}, the config says {config}: padding is scored as if it were text"
        yield Finding("pad_differs", "measured", what, "the same in both", explains=frozenset(["pad"]))
    if {own, config} & facts.eos_ids:
        what = "the pad token is EOS: transformers looks for the last token that is not pad, so it misses a final EOS"
        yield Finding("pad_is_eos", "measured", what, "a pad token of its own", explains=frozenset(["pad"]))
    elif {own, config} & ending(facts.tokenizer):
        what = "conversations end with the pad token: transformers looks for the last token that is not pad"
        yield Finding("pad_ends", "measured", what, "a pad token of its own", explains=frozenset(["pad"]))


def _activation(facts: Facts, _: list[Probe]) -> Iterator[Finding]:
    kind = facts.model.config.problem_type
    if kind != "regression" and facts.model.config.num_labels == 1:
        what = f"problem_type is {kind or 'not set'}: pipelines and vLLM put a sigmoid on the score"
        yield Finding("problem_type", "measured", what, "set it to 'regression'", explains=frozenset(["activation"]))


def _template(facts: Facts, probes: list[Probe]) -> Iterator[Finding]:
    tokenizer = facts.tokenizer
    if not probes:
        what = (
            "the chat template takes no conversation"
            if tokenizer.chat_template
            else "the tokenizer has no chat template"
        )
        mend = "give it the template of its training (chat_template.jinja); no one else can know it"
        yield Finding("no_template", "error", what, mend, mendable=False)
        return
    probe = probes[0]
    text = str(tokenizer.apply_chat_template(probe.chat, tokenize=False))
    _, answer, tail = text.rpartition(probe.answer)
    marks = [*tokenizer.all_special_tokens, *(str(each) for each in tokenizer.added_tokens_decoder.values())]
    end = max((tail.rfind(mark) + len(mark) for mark in marks if mark and mark in tail), default=0)
    if answer and (not end or tail[end:].strip()):
        what = (
            f"the chat template does not end the assistant's turn: after the answer comes {tail!r}, and that is scored"
        )
        mend = "give it the template of its training; if it had no end-of-turn either, train with one"
        yield Finding("open_turn", "error", what, mend, mendable=False)
    bos = tokenizer.bos_token_id
    once = list(tokenizer.apply_chat_template(probe.chat, return_dict=False))
    again = tokenizer(text).input_ids
    if bos is not None and once[:2] == [bos, bos]:
        what = "the chat template writes BOS twice; kwise reads one"
        explained = frozenset(["ids", "text"])
        yield Finding("double_bos", "measured", what, "write it once", mendable=False, explains=explained)
    elif bos is not None and again[:2] == [bos, bos]:
        what = "template and tokenizer both write BOS: a rendered text that is tokenised again begins with two"
        mend = "the template alone writes it (add_bos_token = false); or tokenise with add_special_tokens=False"
        yield Finding("double_bos", "measured", what, mend, explains=frozenset(["text"]))
    elif once[:1] != [bos] and facts.tokenizer_adds_bos:
        what = (
            "the tokenizer puts BOS before a text, the chat template does not: who takes the template's ids reads none"
        )
        yield Finding("bos_missing", "measured", what, "the template writes it", explains=frozenset(["ids"]))
    eos = tokenizer.eos_token_id
    if eos is not None and _ending(again, eos) > _ending(once, eos):
        what = "the tokenizer puts EOS after a text: a rendered text that is tokenised again is scored there"
        yield Finding("extra_eos", "measured", what, "add_eos_token = false", explains=frozenset(["text"]))


def _ending(ids: list[int], token: int) -> int:
    """How many of ``token`` the ids end with."""
    return next((i for i, each in enumerate(reversed(ids)) if each != token), len(ids))


def _lengths(facts: Facts, _: list[Probe]) -> Iterator[Finding]:
    length = facts.tokenizer.model_max_length
    wanted = facts.settings.max_length if facts.settings else 0
    if length > ABSURD_LENGTH or length < wanted:
        said = f"{length:.0e}" if length > ABSURD_LENGTH else str(length)
        against = f"kwise.json says {wanted}" if wanted else "it was never set"
        what = (
            f"the tokenizer's model_max_length is {said}, {against}: tools that cut by it cut elsewhere, or not at all"
        )
        yield Finding("max_length", "warning", what, "set it to the length of kwise.json, else to the context")
    if facts.settings is None:
        what = f"no {SETTINGS_FILE}: kwise takes the model's context as longest sequence and cuts left"
        yield Finding("no_settings", "warning", what, "write one; set max_length to that of the training")
    elif facts.settings.reward_at != "last_token":
        what = f"kwise reads it by rule '{facts.settings.reward_at}', which no other tool has"
        traits = frozenset(["ids", "text"])
        yield Finding("reward_rule", "measured", what, "score it with kwise", mendable=False, explains=traits)


def _old_names(facts: Facts, _: list[Probe]) -> Iterator[Finding]:
    config, tokenizer = (_json(facts.folder / name) for name in (CONFIG, TOKENIZER))
    lacking = old_config(config).keys() - config.keys() - {"torch_dtype"}  # without that 4 takes float32
    if lacking and config["rope_parameters"] != OLD_ROPE:
        named = ", ".join(sorted(lacking))
        what = f"config.json lacks {named}: transformers 4 takes its own, and scores otherwise without a word"
        yield Finding("rope_names", "error", what, "write the names of transformers 4 and 5")
    if old_tokenizer(tokenizer) != tokenizer:
        what = f"transformers 4 does not know the tokenizer class '{tokenizer.get('tokenizer_class')}', or its special tokens"
        yield Finding("tokenizer_names", "warning", what, "write the names of transformers 4, which 5 knows too")


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


CHECKS: tuple[Callable[[Facts, list[Probe]], Iterator[Finding]], ...] = (
    _head,
    _tensors,
    _precision,
    _pad,
    _activation,
    _template,
    _lengths,
    _old_names,
)
