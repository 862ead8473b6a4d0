"""``kwise export``: a reward model -> a folder to publish: safetensors, a card with measured figures, other precisions, push."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from huggingface_hub import HfApi
from transformers import AutoConfig, AutoModelForSequenceClassification, TorchAoConfig
from transformers.utils import cached_file

from kwise.data.lines import public_name
from kwise.data.sources import read_rankings
from kwise.model import backbone
from kwise.model.adapter import is_adapter, merge_adapter
from kwise.model.attention import set_attention
from kwise.model.attention.exact import assert_exact
from kwise.model.reward_model import SETTINGS_FILE, RewardModel, Settings
from kwise.model.smollm2 import HUB_NAME
from kwise.objective.calibration import figures
from kwise.objective.metrics import Metric, metric_terms, summarise
from kwise.records import Ranking
from kwise.use.model_card import model_card

PRECISIONS = ("bfloat16", "float16", "int8")
STARTER = "starter:heldout"
PLACES = ("base", "checkpoint", "chat_template")  # facts in kwise.json that may be paths
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Change:
    """What the rewards of a copy in ``dtype`` differ by from the original's in float32, over the rankings of ``data``.

    ``largest`` and ``mean`` are absolute differences of ``responses`` rewards, in nats. ``flipped`` of ``pairs`` are pairs of
    responses to one prompt, of different reward in the original, whose order the copy turns around or makes a tie.
    """

    dtype: str
    data: list[str]
    responses: int
    largest: float
    mean: float
    pairs: int
    flipped: int


class Exported(NamedTuple):
    """``metrics`` of the written folder per file, those of ``kwise eval`` with ``longer_better`` and ``shorter_better`` of
    ``kwise.objective.calibration.figures``; ``change`` of a copy in another precision; ``notes`` say what was mended."""

    metrics: dict[str, dict[str, Metric]]
    change: Change | None
    notes: list[str]


def export(
    folder: str,
    out: Path,
    dtype: str | None = None,
    files: Sequence[str] = (),
    source: str = "auto",
    repo: str | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Exported:
    """Write the reward model ``folder`` (or a LoRA adapter folder, merged first) to ``out``, whole or not at all.

    ``dtype`` None keeps the file's precision (float32 for a merged adapter); ``int8`` is torchao's weight-only quantisation of
    the linear layers but the head, one scale an output row, the rest bfloat16. The folder written is loaded again, in its own
    precision as transformers does, and what stands in its card is measured on that: metrics on the rankings of ``files``,
    and with ``dtype`` the ``Change`` of its rewards on them (on the starter's held-out rankings without ``files``). With
    ``repo`` the folder is uploaded to the hub as ``owner/name``.

    Raises ``ValueError`` for an ``out`` that exists, a quantised model, a precision that is unknown, not installed or too
    small for the model's numbers, what loading refuses, and a hub that cannot be had (``out`` is whole where only the upload
    failed); ``DataError`` for a bad line.
    """
    if dtype is not None and dtype not in PRECISIONS:
        raise ValueError(f"unknown dtype '{dtype}'; known: {', '.join(PRECISIONS)}")
    if dtype == "int8" and find_spec("torchao") is None:
        raise ValueError("int8 needs torchao: pip install 'kwise[int8]'")
    if out.exists():
        raise ValueError(f"{out} exists; choose another name")
    if repo is not None:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
            raise ValueError(f"'{repo}' is no hub id; give OWNER/NAME")
        with _hub_errors("the hub does not say who you are: is it in reach, and did you 'hf auth login'?"):
            HfApi().whoami()  # whoever is not logged in learns it before the work is done
    rankings = {file: list(read_rankings(file, source)) for file in files}
    compared = rankings or {STARTER: list(read_rankings(STARTER))}

    model, kept = load_float32(folder)
    model.model.config.problem_type = "regression"  # else serving engines pass the score through a sigmoid
    if model.settings.reward_at == "last_token":
        notes = backbone.align(model.model, model.tokenizer)
    else:  # the template stays: the rule "card" reads what it writes with the tokenizer's BOS before it
        notes = [note for note in (backbone.set_pad_token(model.model, model.tokenizer),) if note]
    before, _ = _score(model, compared, "scoring the original", progress) if dtype else ({}, 0)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as unfinished:
        written = Path(unfinished, "model")
        settings = model.settings
        _write(model, written, dtype or kept)
        del model  # the copy takes its place in memory
        copy = RewardModel.from_pretrained(written, dtype=None)
        after, shortened = _score(copy, compared if dtype else rankings, "scoring the folder written", progress)
        if shortened:  # the same of the original, which has the same tokenizer
            notes.append(f"{shortened} responses of those scored were cut to {copy.settings.max_length} tokens")
        change = _change(dtype, before, after) if dtype else None
        names = _names(rankings)
        metrics = {names[file]: _measured(copy, own, after[file]) for file, own in rankings.items()}
        copy.settings = _published(settings, change)
        copy.settings.write(written)
        card = model_card(repo or out.name, copy, metrics)
        Path(written, "README.md").write_text(card, encoding="utf-8")
        written.rename(out)
    if repo is not None:
        with _hub_errors(f"{out} is written, but the hub did not take it; upload it by 'hf upload {repo} {out}'"):
            api = HfApi()
            api.create_repo(repo, exist_ok=True)
            api.upload_folder(repo_id=repo, folder_path=str(out), commit_message="Reward model, by kwise export")
    return Exported(metrics, change, notes)


@contextmanager
def _hub_errors(problem: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the hub client raises many unrelated types; all mean that the hub cannot be had
        raise ValueError(f"{problem} ({error})") from error


def load_float32(folder: str) -> tuple[RewardModel, str]:
    """The model in ``folder``, in float32, an adapter merged; and the dtype that loses nothing when it is written again."""
    with backbone.naming(folder):
        config = None if is_adapter(folder) else AutoConfig.from_pretrained(folder)
    if config is not None:
        if getattr(config, "quantization_config", None):
            raise ValueError(f"{folder} is quantised already: export from the model it was made of")
        return RewardModel.from_pretrained(folder), str(config.dtype or torch.float32).removeprefix("torch.")
    file = cached_file(folder, SETTINGS_FILE, _raise_exceptions_for_missing_entries=False)
    settings = Settings.read(Path(file)) if file else None
    model, tokenizer = merge_adapter(folder, settings.trained.get("layers") if settings else None)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    set_attention(model)
    assert_exact(model)
    context = model.config.get_text_config().max_position_embeddings
    return RewardModel(model, tokenizer, settings or Settings(context)), "float32"


def _write(model: RewardModel, folder: Path, dtype: str) -> None:
    """The model in ``dtype``, its tokenizer and settings, and its uncertainty, which stays that of the head as rounded."""
    precision: torch.dtype = getattr(torch, "bfloat16" if dtype == "int8" else dtype)
    uncertainty = model.uncertainty  # raises for one of another head
    model.model.to(precision)
    if uncertainty is not None:
        head = getattr(model.model, backbone.HEAD).weight.detach()[0]
        model.uncertainty = replace(uncertainty, head=head.float().cpu())
    if dtype == "int8":
        from torchao.quantization import Int8WeightOnlyConfig

        plain = folder.with_name("bfloat16")
        model.model.save_pretrained(plain)
        scheme = TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=[backbone.HEAD])
        model.model = AutoModelForSequenceClassification.from_pretrained(
            plain, quantization_config=scheme, dtype=torch.bfloat16
        )
    model.save_pretrained(folder)


def _published(settings: Settings, change: Change | None) -> Settings:
    """Settings of the copy. Of what is a path the name alone: its place on this machine is nobody's business."""

    def public(facts: dict[str, Any]) -> dict[str, Any]:
        return {
            key: _name(value) if key in PLACES and isinstance(value, str) else value for key, value in facts.items()
        }

    return replace(
        settings,
        trained=public(settings.trained),
        imported=public(settings.imported),
        exported=asdict(change) if change else {},
    )


def _name(word: str) -> str:
    return HUB_NAME if word == "smollm2" else public_name(word)


def _names(files: Iterable[str]) -> dict[str, str]:
    """The ``_name`` of each file; of several that are called alike the later ones are numbered."""
    names: dict[str, str] = {}
    times: Counter[str] = Counter()
    for file in files:
        name = _name(file)
        times[name] += 1
        names[file] = name if times[name] == 1 else f"{name} ({times[name]})"
    return names


def _score(
    model: RewardModel, rankings: dict[str, list[Ranking]], what: str, progress: Progress
) -> tuple[dict[str, list[list[float]]], int]:
    found = {
        file: model.score_rankings(own, lambda done, total: progress(what, done, total))
        for file, own in rankings.items()
    }
    return {file: rewards for file, (rewards, _) in found.items()}, sum(shortened for _, shortened in found.values())


def _measured(model: RewardModel, rankings: list[Ranking], rewards: list[list[float]]) -> dict[str, Metric]:
    lengths = [[len(response) for response in ranking.responses] for ranking in rankings]
    ranks, groups = [ranking.ranks for ranking in rankings], [ranking.group for ranking in rankings]
    calibrated = [model.calibrated(own, ranking.responses) for own, ranking in zip(rewards, rankings, strict=True)]
    split = figures(ranks, rewards, groups, lengths)
    sides = {name: split[name] for name in ("longer_better", "shorter_better")}
    return summarise(metric_terms(rankings, rewards, calibrated), groups) | sides


def _change(dtype: str, before: dict[str, list[list[float]]], after: dict[str, list[list[float]]]) -> Change:
    """Raises ``ValueError`` where the copy's rewards are NaN or infinite: float16 holds nothing above 65,504."""
    differences: list[float] = []
    pairs = flipped = 0
    for file, tables in before.items():
        for old, new in zip(tables, after[file], strict=True):
            if not all(map(math.isfinite, new)):
                raise ValueError(f"a {dtype} copy scores NaN or infinity: this model's numbers need more range")
            differences += [abs(a - b) for a, b in zip(old, new, strict=True)]
            for i, j in combinations(range(len(old)), 2):
                if old[i] != old[j]:
                    pairs += 1
                    flipped += (old[i] - old[j]) * (new[i] - new[j]) <= 0
    mean = sum(differences) / len(differences)
    return Change(dtype, list(_names(before).values()), len(differences), max(differences), mean, pairs, flipped)
