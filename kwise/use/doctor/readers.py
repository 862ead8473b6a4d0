"""What each tool reads from a reward-model folder: run where the tool is here, else re-enacted by its documented rule.

A reader takes the folder as transformers loads it and the probes, and gives one ``Reading`` a probe. Which position is read is
measured, not told: it is the one whose logit comes out. Readers "by rule" feed the ids that the tool would and read where it
would, in float32: the precision those tools run in (``rule`` says which) is not part of the comparison.
"""

import contextlib
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, pipeline

from kwise.model.backbone import HEAD
from kwise.model.reward_model import RewardModel
from kwise.use.doctor.probes import Probe

# What a tool raises on a folder it cannot read is its verdict on the folder, not a fault of the examination.
REFUSALS = (ValueError, TypeError, RuntimeError, IndexError, KeyError, AttributeError, OSError, TemplateError)


class Reading(NamedTuple):
    """``score`` as the tool gives it, ``logit`` before its activation, the real tokens ``ids`` it fed, and ``at``, the index of
    the one it read; outside of ``ids`` it read padding. ``refused`` says in words why there is no score."""

    score: float | None = None
    logit: float | None = None
    ids: Sequence[int] = ()
    at: int | None = None
    refused: str = ""


@dataclass(frozen=True)
class Plain:
    """The folder as transformers loads it by default; ``context`` is its longest sequence, in tokens."""

    folder: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    context: int

    def text(self, probe: Probe) -> str:
        """The conversation as the chat template renders it."""
        return str(self.tokenizer.apply_chat_template(probe.chat, tokenize=False))


Read = Callable[[Plain, list[Probe]], list[Reading | None]]


class Reader(NamedTuple):
    """``read`` gives None for a probe that the tool's data cannot hold. ``traits`` say what may lead it astray:

    ``pad``        looks for the last token that is not pad      ``pads``  pads a batch
    ``ids``        takes the template's ids as they are          ``text``  tokenises the rendered text, adding special tokens
    ``activation`` may apply a sigmoid                           ``dtype`` runs in the folder's own dtype
    ``prefix``     finds the head by ``value_head_prefix``       ``ending`` changes how the text ends, whatever the folder says
    """

    name: str
    run: bool
    rule: str
    source: str
    traits: frozenset[str]
    read: Read


class _Call(NamedTuple):
    ids: torch.Tensor  # [B, N]
    mask: torch.Tensor  # [B, N]
    every: torch.Tensor  # [B, N, labels], the logits of all positions
    logits: torch.Tensor  # [B, labels], what came out


@contextlib.contextmanager
def _watched(model: PreTrainedModel) -> Iterator[list[_Call]]:
    """Every call of ``model`` while the block runs, whoever makes it."""
    calls: list[_Call] = []
    hidden: list[torch.Tensor] = []

    def keep(_: Any, __: Any, output: Any) -> None:
        hidden.append(output[0])

    def note(_: Any, __: Any, given: dict[str, Any], output: Any) -> None:
        ids = given["input_ids"]
        mask = given.get("attention_mask")
        every = getattr(model, HEAD)(hidden.pop())
        calls.append(_Call(ids, torch.ones_like(ids) if mask is None else mask, every, output.logits))

    hooks = [model.base_model.register_forward_hook(keep), model.register_forward_hook(note, with_kwargs=True)]
    try:
        with torch.no_grad():
            yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _readings(calls: list[_Call], scores: list[float] | None = None) -> list[Reading]:
    """One reading a row of ``calls``; ``scores`` are what the tool made of the logits, where it is not the logits."""
    found: list[Reading] = []
    for ids, mask, every, logits in calls:
        for row in range(len(ids)):
            gap = torch.nan_to_num((every[row] - logits[row]).abs().amax(-1), nan=torch.inf)
            same = gap <= gap.min()
            real = mask[row].bool()
            at = int((same & real if bool((same & real).any()) else same).nonzero()[-1])
            start = int(real.nonzero()[0])
            feed, place = ids[row][real].tolist(), at - start
            if logits.shape[-1] != 1:
                found.append(Reading(ids=feed, at=place, refused=f"{logits.shape[-1]} logits, not one score"))
            else:
                logit = float(logits[row, 0])
                found.append(Reading(logit if scores is None else scores[len(found)], logit, feed, place))
    return found


def _each(read: Callable[[Probe], Reading | None], probes: list[Probe]) -> list[Reading | None]:
    """``read`` of every probe by itself; what it raises is a refusal."""
    found: list[Reading | None] = []
    for probe in probes:
        try:
            found.append(read(probe))
        except REFUSALS as refusal:
            found.append(Reading(refused=_words(refusal)))
    return found


def _words(refusal: Exception) -> str:
    return f"{type(refusal).__name__}: {' '.join(str(refusal).split())[:200]}"


@contextlib.contextmanager
def _config_pad(model: PreTrainedModel, pad: int | None) -> Iterator[None]:
    """``pad`` as the pad token of the model's config while the block runs."""
    config = model.config.get_text_config()
    before, config.pad_token_id = config.pad_token_id, pad
    try:
        yield
    finally:
        config.pad_token_id = before


def _forward(plain: Plain, **inputs: Any) -> list[Reading]:
    with _watched(plain.model) as calls:
        plain.model(**{name: value.to(plain.model.device) for name, value in inputs.items()})
    return _readings(calls)


def _at_the_end(plain: Plain, ids: list[int]) -> Reading:
    """What a tool reads that takes the last token, whatever it is."""
    with _watched(plain.model) as calls:
        plain.model(input_ids=torch.tensor([ids], device=plain.model.device))
    last = calls[0]._replace(logits=calls[0].every[:, -1])
    return _readings([last])[0]


def one_by_one(plain: Plain, probes: list[Probe]) -> list[Reading | None]:
    """``model(**tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True))``."""

    def read(probe: Probe) -> Reading:
        ids = plain.tokenizer.apply_chat_template(probe.chat, return_tensors="pt", return_dict=True)
        return _forward(plain, input_ids=ids["input_ids"], attention_mask=ids["attention_mask"])[0]

    return _each(read, probes)


def padded(side: str) -> Read:
    """All compared probes in one batch, padded on ``side``."""

    def read(plain: Plain, probes: list[Probe]) -> list[Reading | None]:
        batch = [probe for probe in probes if probe.compared]
        tokenizer = AutoTokenizer.from_pretrained(plain.folder)
        tokenizer.padding_side = side
        chats = [probe.chat for probe in batch]
        ids = tokenizer.apply_chat_template(chats, padding=True, return_tensors="pt", return_dict=True)
        found = iter(_forward(plain, input_ids=ids["input_ids"], attention_mask=ids["attention_mask"]))
        return [next(found) if probe.compared else None for probe in probes]

    return read


def text_pipeline(plain: Plain, probes: list[Probe]) -> list[Reading | None]:
    """``pipeline("text-classification", model)`` on the rendered text, as its documentation calls it."""
    classify = pipeline("text-classification", model=plain.model, tokenizer=plain.tokenizer)

    def read(probe: Probe) -> Reading:
        with _watched(plain.model) as calls:
            result = classify(plain.text(probe))
        return _readings(calls, [float(result[0]["score"])])[0]

    return _each(read, probes)


def trl_reward_trainer(plain: Plain, probes: list[Probe]) -> list[Reading | None]:
    """TRL's ``RewardTrainer(model=folder)``: its loading, its tokens, its collator, then its model."""
    import datasets
    import trl

    bars = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        return _trl_rows(trl, datasets.Dataset, plain, probes)
    finally:
        if bars:
            datasets.enable_progress_bars()


def _trl_rows(trl: Any, dataset: Any, plain: Plain, probes: list[Probe]) -> list[Reading | None]:
    short = [{"role": "assistant", "content": "No."}]
    rows: list[dict[str, Any]] = [
        {"prompt": probe.messages, "chosen": [probe.chat[-1]], "rejected": short, "probe": i}
        for i, probe in enumerate(probes)
    ]
    with tempfile.TemporaryDirectory() as output, torch.random.fork_rng():
        settings = {"report_to": "none", "use_cpu": plain.model.device.type == "cpu", "disable_tqdm": True}
        arguments = trl.RewardConfig(output, bf16=False, gradient_checkpointing=False, **settings)
        trainer = trl.RewardTrainer(str(plain.folder), arguments, train_dataset=dataset.from_list(rows))
        found: list[Reading | None] = [Reading(refused=f"dropped: more than {arguments.max_length} tokens")] * len(rows)
        kept = list(trainer.train_dataset)
        batches = [[row for row in kept if probes[row["probe"]].compared is compared] for compared in (True, False)]
        for batch in filter(None, batches):
            with _watched(trainer.model.eval()) as calls:
                inputs = trainer.data_collator(batch)
                trainer.model(**{name: value.to(trainer.model.device) for name, value in inputs.items()})
            for row, reading in zip(batch, _readings(calls), strict=False):  # the second half are the rejected ones
                found[row["probe"]] = reading
    return found


def trl_grpo(plain: Plain, probes: list[Probe]) -> list[Reading | None]:
    """A model as reward function of TRL's ``GRPOTrainer``: the text by TRL's own rendering, no special tokens, padded right."""
    from trl.data_utils import apply_chat_template

    tokenizer = AutoTokenizer.from_pretrained(plain.folder)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    options = {"return_tensors": "pt", "padding": True, "padding_side": "right"}
    found: dict[str, Reading] = {}
    with _config_pad(plain.model, tokenizer.pad_token_id):
        for compared in (True, False):
            batch = [p for p in probes if p.compared is compared]
            if not batch:
                continue
            texts = [apply_chat_template({"messages": p.chat}, tokenizer)["text"] for p in batch]
            inputs = tokenizer(text=texts, add_special_tokens=False, **options)
            found |= zip((p.name for p in batch), _forward(plain, **inputs), strict=True)
    return [found[probe.name] for probe in probes]


def rewardbench(plain: Plain, probes: list[Probe]) -> list[Reading | None]:
    """``RewardBenchPipeline``: the rendered text with special tokens, padded left, the first of two BOS masked out."""
    tokenizer = AutoTokenizer.from_pretrained(plain.folder)
    tokenizer.padding_side = "left"
    pad = plain.model.config.get_text_config().pad_token_id
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
        pad = tokenizer.pad_token_id
    found: dict[str, Reading] = {}
    with _config_pad(plain.model, tokenizer.pad_token_id if pad is None else pad):
        for compared in (True, False):
            batch = [p for p in probes if p.compared is compared and p.messages[0]["role"] != "system"]
            if not batch:
                continue
            inputs = tokenizer([plain.text(p) for p in batch], padding=True, return_tensors="pt")
            ids, mask = inputs["input_ids"], inputs["attention_mask"]
            rows, start = torch.arange(len(ids)), mask.argmax(1)
            following = (start + 1).clamp(max=ids.shape[1] - 1)
            bos = tokenizer.bos_token_id
            double = (ids[rows, start] == bos) & (ids[rows, following] == bos)
            mask[rows[double], start[double]] = 0
            found |= zip((p.name for p in batch), _forward(plain, input_ids=ids, attention_mask=mask), strict=True)
    return [found.get(probe.name) for probe in probes]


def _needs_head(plain: Plain) -> None:
    prefix = getattr(plain.model.config, "value_head_prefix", HEAD)
    if prefix != HEAD:
        raise ValueError(f"looks for its head as '{prefix}', not '{HEAD}': it would be random")


def openrlhf_serve(plain: Plain, probes: list[Probe]) -> list[Reading | None]:
    """``openrlhf.cli.serve_rm``: the text it is sent, no special tokens, at most 2,048 tokens, the last one by the mask."""
    _needs_head(plain)

    def read(probe: Probe) -> Reading:
        options = {"add_special_tokens": False, "max_length": 2048, "truncation": True}
        return _at_the_end(plain, plain.tokenizer(plain.text(probe), **options).input_ids)

    return _each(read, probes)


def openrlhf_train(plain: Plain, probes: list[Probe]) -> list[Reading | None]:
    """``RewardDataset`` of ``openrlhf.cli.train_rm``: no final line breaks, EOS, at most 512 tokens, the last made EOS."""
    _needs_head(plain)
    eos, eos_id = plain.tokenizer.eos_token, plain.tokenizer.eos_token_id

    def read(probe: Probe) -> Reading:
        text = plain.text(probe).rstrip("\n")
        text += "" if text.endswith(eos) else f" {eos}"
        options = {"add_special_tokens": False, "max_length": 512, "truncation": True}
        ids = plain.tokenizer(text, **options).input_ids
        return _at_the_end(plain, [*ids[:-1], eos_id])

    return _each(read, probes)


def vllm_classify(special: bool) -> Read:
    """``/classify`` with ``messages`` (``special`` False) or with the rendered text as ``input`` (True)."""

    def read(plain: Plain, probes: list[Probe]) -> list[Reading | None]:
        def one(probe: Probe) -> Reading:
            ids = plain.tokenizer(plain.text(probe), add_special_tokens=special).input_ids
            if len(ids) > plain.context:
                return Reading(refused=f"refused: more than {plain.context} tokens")
            reading = _at_the_end(plain, ids)
            if reading.score is None or plain.model.config.problem_type == "regression":
                return reading
            return reading._replace(score=float(torch.tensor(reading.score).sigmoid()))

        return _each(one, probes)

    return read


TRANSFORMERS = "https://github.com/huggingface/transformers/blob/main/src/transformers/"
OPENRLHF = "https://github.com/OpenRLHF/OpenRLHF/blob/3c3be6234e0cb353e76bb8019947db9dfe99fca7/openrlhf/"
VLLM = "https://docs.vllm.ai/en/latest/models/pooling_models/"
LAST = "reads the rightmost token that is not config.pad_token_id"
ACTIVATION = "a sigmoid unless config.problem_type is 'regression'"


def _reader(name: str, rule: str, source: str, traits: str, read: Read, run: bool = True) -> Reader:
    return Reader(name, run, rule, source, frozenset(traits.split()), read)


READERS = (
    _reader(
        "transformers, one by one",
        f"apply_chat_template's ids; {LAST}, the last one where there is none",
        TRANSFORMERS + "modeling_layers.py",
        "pad ids dtype",
        one_by_one,
    ),
    _reader(
        "transformers, padded right",
        f"as above, in a batch; {LAST}",
        TRANSFORMERS + "modeling_layers.py",
        "pad pads ids dtype",
        padded("right"),
    ),
    _reader(
        "transformers, padded left",
        f"as above, in a batch; {LAST}",
        TRANSFORMERS + "modeling_layers.py",
        "pad pads ids dtype",
        padded("left"),
    ),
    _reader(
        "transformers pipeline",
        f"the rendered text is tokenised again with special tokens; not cut; {LAST}; {ACTIVATION}",
        TRANSFORMERS + "pipelines/text_classification.py",
        "pad text activation dtype",
        text_pipeline,
    ),
    _reader(
        "TRL RewardTrainer",
        "loads float32; apply_chat_template's ids; drops rows over 1,024 tokens; pads right with the tokenizer's pad token, or "
        "EOS, and writes that into the config. It trains under bfloat16 autocast by default",
        "https://github.com/huggingface/trl/blob/main/trl/trainer/reward_trainer.py",
        "pad pads ids",
        trl_reward_trainer,
    ),
    _reader(
        "TRL reward in GRPO",
        "the rendered text, no special tokens, not cut; pads right with the tokenizer's pad token, or EOS",
        "https://github.com/huggingface/trl/blob/main/trl/trainer/grpo_trainer.py",
        "pad pads ids dtype",
        trl_grpo,
    ),
    _reader(
        "RewardBench",
        "the rendered text with special tokens, the first of two BOS masked; padded left; EOS as pad where there is none; no "
        f"activation; {LAST}; not cut (--force_truncation: left, 512). Roles by turn, so no system turn. float16, in 8 bit",
        "https://github.com/allenai/reward-bench/blob/05a9005efb607249822c193590c8ecab87c77052/rewardbench/models/pipeline.py",
        "pad pads text",
        rewardbench,
        run=False,
    ),
    _reader(
        "OpenRLHF serve_rm",
        "the text it is sent, no special tokens, cut to 2,048 on the tokenizer's truncation side; reads the last token by the "
        "attention mask; head named by config.value_head_prefix, else 'score'; bfloat16",
        OPENRLHF + "cli/serve_rm.py",
        "ids prefix",
        openrlhf_serve,
        run=False,
    ),
    _reader(
        "OpenRLHF train_rm",
        "the rendered text without final line breaks, with ' ' and EOS where it does not end in EOS, cut to 512 tokens, the last "
        "of which is made EOS; read there; bfloat16",
        OPENRLHF + "datasets/reward_dataset.py",
        "ids prefix ending",
        openrlhf_train,
        run=False,
    ),
    _reader(
        "vLLM /classify, messages",
        f"the template's ids, pooling LAST; {ACTIVATION} (or the request says use_activation: false); longer than max_model_len "
        "is refused. /score, meant for query and document, applies a sigmoid in any case. float16 or bfloat16, head in float32",
        VLLM,
        "ids activation",
        vllm_classify(special=False),
        run=False,
    ),
    _reader(
        "vLLM /classify, text",
        "as above, the rendered text as input: special tokens are added (add_special_tokens: true by default)",
        VLLM,
        "text activation",
        vllm_classify(special=True),
        run=False,
    ),
)


def kwise_score(scorer: RewardModel, probes: list[Probe]) -> list[Reading | None]:
    """What ``kwise score`` reads."""

    def read(probe: Probe) -> Reading:
        item = scorer.encoder.encode(probe.messages, [probe.answer])
        score = next(scorer.score_encoded([item]))[0]
        return Reading(score, score, item.prefix + item.suffixes[0], len(item.prefix) + item.reward_at[0])

    return _each(read, probes)


def read_all(reader: Reader, plain: Plain, probes: list[Probe]) -> list[Reading | None] | str:
    """``reader``'s readings, or why there are none at all."""
    if reader.name.startswith("TRL") and find_spec("trl") is None:
        return "not installed (pip install trl)"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tools' advice to their own users
            return reader.read(plain, probes)
    except REFUSALS as refusal:
        return _words(refusal)


def activation(readings: list[Reading | None]) -> str:
    """What stands between logits and scores: ``none``, ``sigmoid``, or ``?`` where neither fits or there are no scores."""
    pairs = [(each.score, each.logit) for each in readings if each is not None and each.score is not None]
    scores, logits = torch.tensor(pairs, dtype=torch.float64).reshape(-1, 2).T
    if not pairs:
        return "?"
    if torch.allclose(scores, logits, atol=1e-6, equal_nan=True):
        return "none"
    return "sigmoid" if torch.allclose(scores, logits.sigmoid(), atol=1e-6) else "?"
