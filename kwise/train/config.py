"""``KwiseConfig``: what a training run by ``KwiseTrainer`` can be told."""

import json
import math
from dataclasses import dataclass, field, fields
from typing import Any

from transformers import TrainingArguments

from kwise.objective import objective
from kwise.objective.metrics import LOWER_IS_BETTER, QUALITY

# of TrainingArguments: what neither rows nor the evaluation of rankings go by
UNREAD = (
    "label_smoothing_factor",
    "auto_find_batch_size",
    "average_tokens_across_devices",
    "torch_empty_cache_steps",
    "include_num_input_tokens_seen",
    "eval_do_concat_batches",
    "eval_use_gather_object",
    "length_column_name",
    "per_device_eval_batch_size",
    "eval_accumulation_steps",
    "prediction_loss_only",
    "batch_eval_metrics",
    "bf16_full_eval",
    "fp16_full_eval",
    "dataloader_drop_last",
    "dataloader_num_workers",
    "dataloader_persistent_workers",
    "dataloader_prefetch_factor",
    "label_names",
    "train_sampling_strategy",
)
BY_EVALUATION = ("reduce_lr_on_plateau", "greedy")  # schedules that go by metric_for_best_model
REFUSED = {
    "neftune_noise_alpha": "its noise is scaled by the tokens of a batch: the loss would depend on tokens_per_row",
    "ignore_data_skip": "a run that goes on would begin its epoch anew, on rankings that it was trained on",
    "enable_jit_checkpoint": "kwise train saves a checkpoint when it is told to stop, and transformers' would not be whole",
}


def trial(trainer: dict[str, Any]) -> dict[str, Any]:
    """A recipe's ``[trainer]`` for a run that nobody keeps: without evaluation, what goes by it, trackers and hub."""
    settings = {"eval_strategy": "no", "eval_on_start": False, "load_best_model_at_end": False}
    settings |= {"report_to": "none", "push_to_hub": False}
    if trainer.get("lr_scheduler_type") in BY_EVALUATION:
        settings["lr_scheduler_type"] = "constant"
    return trainer | settings


@dataclass
class KwiseConfig(TrainingArguments):
    """``TrainingArguments`` and what a ranking needs. One optimiser step is ``rankings_per_step`` rankings over all processes.

    ``tokens_per_row`` (memory and speed) never changes the loss. The Trainer's own batch size and accumulation are not
    used, nor is what ``UNREAD`` and ``REFUSED`` name: setting them is an error. Which way ``metric_for_best_model`` is better is
    known: ``greater_is_better`` need not be set.
    """

    objective: str = field(default="plackett_luce", metadata={"help": "a key of kwise.losses.OBJECTIVES"})
    objective_options: dict[str, Any] = field(default_factory=dict, metadata={"help": "of kwise.losses.objective"})
    rankings_per_step: int = field(default=32, metadata={"help": "rankings per optimiser step, over all processes"})
    tokens_per_row: int = field(default=4096, metadata={"help": "tokens in one forward pass"})
    max_length: int = field(default=2048, metadata={"help": "longest sequence: prompt and one response, in tokens"})
    truncation: str = field(default="left", metadata={"help": "rule for longer sequences, see kwise.data.encode"})
    attention: str = field(default="auto", metadata={"help": "auto, or a name of kwise.model.attention"})
    logging_steps: float = field(default=1, metadata={"help": "log every so many steps"})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "kwise stops at a non-finite loss"})
    fsdp: bool | None = field(default=None, metadata={"help": "shard weights over the GPUs, by FSDP2"})
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "a row uses every parameter"})
    remove_unused_columns: bool = field(default=False, metadata={"help": "a data set of rankings has no columns"})

    def __post_init__(self) -> None:
        self._know_the_better()
        super().__post_init__()
        if self.lr_scheduler_type in BY_EVALUATION:
            mode = "max" if self.greater_is_better else "min"  # torch's own is "min" whatever the metric
            self.lr_scheduler_kwargs: dict[str, Any] = {"mode": mode} | (self.lr_scheduler_kwargs or {})
        objective(self.objective, **self.objective_options)  # raises for what it does not know
        for name in ("rankings_per_step", "tokens_per_row"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, this is {getattr(self, name)}")
        if (
            self.gradient_accumulation_steps != 1
            or self.per_device_train_batch_size != TrainingArguments.per_device_train_batch_size
        ):
            raise ValueError(
                "a step is rankings_per_step rankings, cut into rows of tokens_per_row tokens; leave "
                "per_device_train_batch_size and gradient_accumulation_steps alone"
            )
        usual = {each.name: each.default for each in fields(TrainingArguments)}
        if idle := [name for name in UNREAD if name in usual and getattr(self, name) != usual[name]]:
            raise ValueError(f"{', '.join(idle)}: would have no effect on rankings; leave it alone")
        for name, why in REFUSED.items():
            if name in usual and getattr(self, name) != usual[name]:
                raise ValueError(f"{name}: {why}; leave it alone")
        if self.max_steps == 0 or (self.max_steps < 0 and self.num_train_epochs <= 0):
            raise ValueError("num_train_epochs or max_steps must be more than 0: there is nothing to train")
        if self.world_size == 1 and self.n_gpu > 1:
            raise ValueError(
                "several GPUs in one process (DataParallel) are not supported; start one process per GPU: torchrun"
            )

    def _know_the_better(self) -> None:
        """transformers takes the lower for better of what ends in "loss" alone, and learns after the first evaluation that there
        is no such metric."""
        if self.metric_for_best_model is None:
            return
        name = self.metric_for_best_model.removeprefix("eval_")
        if name not in ("loss", *QUALITY):
            raise ValueError(f"metric_for_best_model: '{name}' is not one of loss, {', '.join(QUALITY)}")
        if self.greater_is_better is None:
            self.greater_is_better: bool | None = not name.endswith(("loss", *LOWER_IS_BETTER))

    @property
    def what_is_trained(self) -> dict[str, Any]:
        """Beside the rankings, as JSON has it: what the state of an optimiser belongs to or holds itself (a new value would do
        nothing), and which rankings come next."""
        names = ["objective", "objective_options", "rankings_per_step", "seed", "data_seed", "optim", "learning_rate"]
        names += ["optim_args", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"]
        found: dict[str, Any] = json.loads(json.dumps({name: getattr(self, name) for name in names}))
        return found

    def steps_per_epoch(self, rankings: int) -> int:
        """The number of steps in which so many rankings are trained on once."""
        return math.ceil(rankings / self.rankings_per_step)

    def last_step(self, rankings: int) -> int:
        """The step with which training on so many rankings ends."""
        if self.max_steps > 0:
            return int(self.max_steps)
        return math.ceil(float(self.num_train_epochs) * self.steps_per_epoch(rankings))
