"""What ``KwiseTrainer`` is given: taken where rankings can be trained on with it, refused in words where they cannot."""

from collections.abc import Iterable, Mapping
from typing import Any

from peft import PeftConfig
from transformers import PreTrainedTokenizerBase

from kwise.data.strength import THIRDS, pair_thirds
from kwise.records import Ranking
from kwise.train.config import KwiseConfig

UNCALLED = {"compute_metrics", "compute_loss_func", "preprocess_logits_for_metrics"}


def check_arguments(
    args: KwiseConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    peft_config: PeftConfig | None,
    options: Mapping[str, Any],
) -> None:
    """Raise ``ValueError`` for what cannot be meant; ``options`` are those that go on to ``transformers.Trainer``."""
    if tokenizer is None:
        raise ValueError("processing_class: a tokenizer with a chat template is needed")
    if args.device.type == "mps":
        raise ValueError("use_cpu: set it to True; MPS has no float64, which ranks and likelihoods are held in")
    if idle := sorted(UNCALLED & {name for name, value in options.items() if value is not None}):
        raise ValueError(f"{', '.join(idle)}: would not be called; rankings have metrics and objectives of their own")
    if peft_config is not None and peft_config.is_prompt_learning:
        raise ValueError(
            "peft_config: prompt and prefix tuning put tokens of their own before a row, which has many prompts"
        )
    if peft_config is not None and peft_config.task_type not in (None, "SEQ_CLS"):
        raise ValueError(f"peft_config: it has task_type {peft_config.task_type}, a reward model's is SEQ_CLS")


def rankings_of(name: str, given: Iterable[Any] | None) -> list[Ranking]:
    """The rankings of the argument ``name``, none for None. Raises ``ValueError`` for what holds anything else."""
    if isinstance(given, Mapping):
        raise ValueError(f"{name}: several data sets are not supported; give the rankings of one")
    items = list(given or [])
    for other in (each for each in items if not isinstance(each, Ranking)):
        raise ValueError(
            f"{name}: must be rankings, as kwise.read_rankings gives them of a file or a hub data set; this has a "
            f"{type(other).__name__}"
        )
    return items


def check_best_by(metric: str | None, held_out: list[Ranking]) -> None:
    """Raise ``ValueError`` for a ``metric_for_best_model`` of pairs by strength where no ranking of ``held_out`` tells them."""
    third = (metric or "").removeprefix("eval_")
    if held_out and third in THIRDS and not any(third in own.values() for own in pair_thirds(held_out)):
        raise ValueError(
            f"metric_for_best_model: no held-out ranking has {third}; they are told by columns judge_values or margin"
        )
