"""``KwiseTrainer``: transformers' Trainer whose step is N rankings, however they are cut into rows and processes."""

import contextlib
import logging
import math
import shutil
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    set_seed,
)
from transformers.trainer_utils import rotate_checkpoints

from kwise.data.encode import Encoder
from kwise.data.encoded import EncodedRankings, content, fingerprint, shapes, with_offsets
from kwise.data.packing import build_row, pack, split
from kwise.data.tally import Tally, tally
from kwise.model import backbone
from kwise.model.attention import reward_tokens, row_inputs, set_attention
from kwise.model.attention.exact import assert_exact
from kwise.model.reward_model import Settings, map_rows
from kwise.model.transformers4 import write_old_names
from kwise.objective import objective
from kwise.objective.metrics import evaluate
from kwise.records import EncodedRanking, Ranking, Row
from kwise.train.arguments import check_arguments, check_best_by, rankings_of
from kwise.train.checkpoints import SEAL, fault, newest, read_seal, seal, step_of
from kwise.train.config import KwiseConfig
from kwise.train.decoder import read_rows, train_head
from kwise.train.guards import LosableTracker, Moments, StopOnSignal, TrainingStopped, spike
from kwise.train.sampler import StepLoader, StepSampler
from kwise.train.step import Pass, Step, random_state, random_state_of, where

logger = logging.getLogger(__name__)


class KwiseTrainer(Trainer):
    """Trains a one-label sequence classifier on rankings of any K with packed, prefix-shared rows.

    ``model`` comes from ``kwise.model.backbone.from_causal_lm`` or ``AutoModelForSequenceClassification``; ``train_dataset`` and
    ``eval_dataset`` give ``Ranking``s, the former also what ``kwise.data.encoding.encode_files`` gives. With
    ``peft_config`` adapters are trained and the head ``score`` is always trained and saved. ``offsets[i][k]`` is added to the
    reward of response k of training ranking i, and to none that is scored: what covariates explain (``kwise.data.covariates``)
    the model need not. Everything else (optimisers, schedules, trackers, checkpoints) is ``transformers.Trainer``'s. ``cut``
    holds, per data set, how many rankings had a response shortened to ``max_length``.

    Beside ``loss`` it logs ``nll``, the Plackett-Luce negative log-likelihood per ranking in nats, whatever the objective,
    averaged over the same steps. Where rewards are equal and ranks are not, that is log K!.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        args: KwiseConfig,
        train_dataset: Iterable[Ranking] | EncodedRankings | None = None,
        eval_dataset: Iterable[Ranking] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: PeftConfig | None = None,
        offsets: Sequence[Sequence[float]] | None = None,
        **options: Any,
    ) -> None:
        check_arguments(args, processing_class, peft_config, options)
        self.eval_rankings = rankings_of("eval_dataset", eval_dataset)
        check_best_by(args.metric_for_best_model, self.eval_rankings)
        if not isinstance(train_dataset, EncodedRankings):
            train_dataset = rankings_of("train_dataset", train_dataset)
        self.decoder: PreTrainedModel = model.get_base_model() if isinstance(model, PeftModel) else model
        backbone.require_head(self.decoder)
        self.decoder.to(args.device)  # before the attention is chosen: that depends on it
        set_attention(self.decoder, args.attention)
        assert_exact(self.decoder)
        for note in backbone.align(self.decoder, processing_class):
            logger.warning(note)
        read_rows(self.decoder)
        if peft_config is not None:
            set_seed(args.seed)  # adapters begin at random; transformers seeds when it takes the model
            peft_config.modules_to_save = sorted({backbone.HEAD, *(peft_config.modules_to_save or [])})
            model = get_peft_model(model, peft_config)
        if isinstance(model, PeftModel):
            train_head(self.decoder)
        if half := {str(p.dtype) for p in model.parameters() if p.requires_grad and p.dtype.itemsize < 4}:
            logger.warning(
                f"weights to be trained are in {', '.join(sorted(half))}: steps below about a thousandth of a weight round to "
                "nothing, and most of them may; load the model in float32 and set bf16=True"
            )
        self.objective = objective(args.objective, **args.objective_options)
        self.nll: float | torch.Tensor = 0.0  # summed over the steps since the last log
        self.nll_steps = 0
        self.settings = Settings(args.max_length, args.truncation)
        if isinstance(model, PeftModel):  # an adapter folder does not say that its base was cut
            self.settings.trained = {"layers": self.decoder.config.get_text_config().num_hidden_layers}
        self.encoder = Encoder(processing_class, args.max_length, args.truncation)
        if isinstance(train_dataset, EncodedRankings):
            if train_dataset.fingerprint != fingerprint(self.encoder):
                raise ValueError(
                    "train_dataset was encoded with another tokenizer, chat template, max_length or truncation (this trainer "
                    "mends pad token and BOS first: call kwise.model.backbone.align(model, tokenizer) before encode_files)"
                )
            training: EncodedRankings | list[EncodedRanking] = train_dataset
        else:
            training = [self.encoder.encode_ranking(ranking) for ranking in train_dataset]
        if offsets is not None:
            training = with_offsets(training, offsets)
        encoded = {"train": training, "eval": [self.encoder.encode_ranking(ranking) for ranking in self.eval_rankings]}
        self.cut = {
            name: items.num_cut if isinstance(items, EncodedRankings) else sum(any(item.cut) for item in items)
            for name, items in encoded.items()
        }
        super().__init__(
            model=model,
            args=args,
            train_dataset=encoded["train"],
            eval_dataset=encoded["eval"] or None,
            processing_class=processing_class,
            data_collator=lambda items: items,
            **options,
        )
        if args.fsdp and not self.is_fsdp_enabled:
            raise ValueError(
                "fsdp is set, but there is nothing to shard over: accelerate shards over several GPUs only"
            )
        if self.is_deepspeed_enabled and self.accelerator.state.deepspeed_plugin.zero_stage == 3:
            raise ValueError(
                "DeepSpeed ZeRO-3 is not supported: set fsdp = true, which shards weights too, or use ZeRO-2"
            )
        self.resumed_from: Path | None = None
        self.epoch_over = False
        self.add_callback(Moments(begin=self._go_on, epoch_end=self._end_epoch))
        for callback in list(self.callback_handler.callbacks):
            if type(callback).__module__.startswith("transformers.integrations"):
                self.remove_callback(callback)
                self.add_callback(LosableTracker(callback))
        # while it listens, a signal saves a checkpoint and raises TrainingStopped
        self.stop: StopOnSignal | None = None

    def get_train_dataloader(self) -> DataLoader[Any]:
        """One item per optimiser step: this process's share of the step's rankings."""
        return StepLoader(self.train_dataset, batch_sampler=self._sampler(), collate_fn=self.data_collator)

    def _sampler(self) -> StepSampler:
        return StepSampler(
            shapes(self.train_dataset).num_tokens.tolist(),
            self.args.rankings_per_step,
            seed=self.args.data_seed if self.args.data_seed is not None else self.args.seed,
            process=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
        )

    def tally(self) -> Tally:
        """Rows and tokens of the first epoch, over all processes."""
        return tally(self.train_dataset, self._sampler().steps(), self.args.tokens_per_row)

    def train(self, resume_from_checkpoint: str | bool | None = None, **named: Any) -> Any:
        """As ``transformers.Trainer.train``, from the newest whole checkpoint of ``output_dir`` for ``True``.

        What follows is what would have followed without the interruption, bit for bit where the machine's arithmetic is
        (docs/10-long-runs.md); but callbacks of the caller's own, such as transformers' EarlyStoppingCallback, count anew unless
        ``restore_callback_states_from_checkpoint`` is set. Raises ``ValueError`` for a checkpoint that is not whole or not of
        this run (``step_of``), and for ``True`` if there is none.
        """
        if resume_from_checkpoint is True:
            main = self.accelerator.is_main_process  # of several processes one removes what is not whole
            found = [newest(Path(self.args.output_dir), logger.warning) if main else None]
            broadcast_object_list(found)
            if found[0] is None:
                raise ValueError(f"there is no whole checkpoint in {self.args.output_dir}")
            resume_from_checkpoint = str(found[0])
        elif resume_from_checkpoint and (problem := fault(Path(resume_from_checkpoint))):
            raise ValueError(f"{resume_from_checkpoint} cannot be gone on from: {problem}")
        if not self.train_dataset:
            raise ValueError("there are no rankings to train on: give train_dataset")
        self.resumed_from, self.resumed_at = None, 0
        on_start = self.args.eval_on_start
        if resume_from_checkpoint:
            self.resumed_from = Path(resume_from_checkpoint)
            self.resumed_at = step_of(
                self.resumed_from,
                self._content,
                self.args.what_is_trained,
                self.args.last_step(len(self.train_dataset)),
            )
        self.nll, self.nll_steps = 0.0, 0  # an earlier run may have left steps that it never logged
        self.saved_at = self.asked_to_stop = 0
        self.epoch_over = False
        try:
            # of a run that goes on, the evaluation at the start is long logged
            self.args.eval_on_start = on_start and not resume_from_checkpoint
            return super().train(resume_from_checkpoint or None, **named)
        finally:
            self.args.eval_on_start = on_start

    def _go_on(self) -> None:
        """Log, evaluate and save as often as is asked now, where transformers goes by the checkpoint; go on with the sums that a
        log is made of, where the checkpoint's run left them between two logs."""
        if self.resumed_from is None:
            return
        self.state.compute_steps(self.args, self.state.max_steps)
        count = read_seal(self.resumed_from)["processes"]
        alike = count == self.accelerator.num_processes  # else each process takes the mean of all
        numbers = [self.accelerator.process_index] if alike else range(count)
        found = [torch.load(self.resumed_from / f"sums_{n}.pt", weights_only=True) for n in numbers]
        self._tr_loss += sum(each["loss"] for each in found).to(self._tr_loss.device) / len(found)
        self.nll = sum(each["nll"] for each in found).to(self.args.device) / len(found)
        self.nll_steps, self._total_loss_scalar = found[0]["nll_steps"], found[0]["total_loss"]
        self._globalstep_last_logged = found[0]["last_logged"]
        self._initial_global_step = 0  # so that train_loss is that of the whole run

    def _end_epoch(self) -> None:
        self.epoch_over = True

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        sums = {
            "loss": self._tr_loss,
            "nll": torch.as_tensor(self.nll),
            "nll_steps": self.nll_steps,
            "total_loss": self._total_loss_scalar,
            "last_logged": self._globalstep_last_logged,
        }
        torch.save(sums, Path(output_dir, f"sums_{self.accelerator.process_index}.pt"))

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """As transformers', and whole or not at all: sealed when it is complete, and only then are older ones removed."""
        folder = Path(self._get_output_dir(trial), f"checkpoint-{self.state.global_step}")
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        push, self.args.push_to_hub = self.args.push_to_hub, False
        try:
            if self.args.should_save:  # of an earlier run in the same folder
                (folder / SEAL).unlink(missing_ok=True)
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                facts = {"step": self.state.global_step, "processes": self.accelerator.num_processes}
                seal(folder, facts | {"rankings": self._content} | self.args.what_is_trained)
        except (OSError, SafetensorError, RuntimeError) as error:  # torch.save's own for a full disk is a RuntimeError
            free = shutil.disk_usage(self.args.output_dir).free
            shutil.rmtree(folder, ignore_errors=True)
            raise OSError(
                f"{folder.name} could not be written, and was removed ({error}); {free / 2**20:.0f} MiB were free in "
                f"{folder.parent}. Training stops; earlier checkpoints are whole: make room and start it again"
            ) from error
        finally:
            self.args.save_total_limit, self.args.push_to_hub = limit, push
        self.saved_at = self.state.global_step
        if push:
            self._push_from_checkpoint(str(folder))
        if self.args.should_save:
            # by time: an earlier run in the folder may have left later steps
            rotate_checkpoints(str(folder.parent), limit, self.state.best_model_checkpoint, use_mtime=True)

    def _maybe_log_save_evaluate(self, *inputs: Any, **named: Any) -> None:
        """As transformers', but after an epoch's last step only the loss is logged: the call at the epoch's end, which follows at
        once, evaluates and saves, so that a checkpoint never lies between a step and what belongs to its epoch's end."""
        step, control = self.state.global_step, self.control
        ends = control.should_training_stop or step % self.args.steps_per_epoch(len(self.train_dataset)) == 0
        if ends and not self.epoch_over:
            due = control.should_evaluate, control.should_save
            control.should_evaluate = control.should_save = False
            super()._maybe_log_save_evaluate(*inputs, **named)
            self.control.should_evaluate, self.control.should_save = due
        else:
            self.epoch_over = False
            super()._maybe_log_save_evaluate(*inputs, **named)
            if self.asked_to_stop:
                self._stop(self.asked_to_stop)

    def _stop(self, number: int) -> None:
        folder = Path(self._get_output_dir(None), f"checkpoint-{self.state.global_step}")
        if self.saved_at != self.state.global_step:
            self._save_checkpoint(self.model, None)
        self.accelerator.wait_for_everyone()
        raise TrainingStopped(number, f"stopped after step {self.state.global_step}, which {folder} holds")

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """As transformers', but a hub that cannot be reached is said, and no reason to stop training."""
        self._report_failed_pushes()
        try:
            super()._push_from_checkpoint(checkpoint_folder)
        except Exception as error:  # noqa: BLE001  the hub client raises many unrelated types
            logger.warning(f"{checkpoint_folder} was not pushed to the hub ({error}): it is here, and training goes on")

    def _finish_current_push(self) -> None:
        super()._finish_current_push()
        self._report_failed_pushes()

    def _report_failed_pushes(self) -> None:
        """transformers pushes in the background, and never asks what came of it."""
        pushes = getattr(self, "push_in_progress", None)
        for job in pushes.jobs if pushes is not None else ():
            if job.done() and (error := job.exception()):
                logger.warning(f"a push to the hub failed ({error}): what it pushed is in {self.args.output_dir}")

    def _run_epoch(self, *inputs: Any, **named: Any) -> None:
        if self.state.global_step >= self.state.max_steps:  # the checkpoint gone on from is the last
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*inputs, **named)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As ``transformers.Trainer.log``, with ``nll`` beside the training ``loss``."""
        if "train_runtime" in logs:  # which is that of this call, so that the rates must be too
            share = 1 - self.resumed_at / self.state.global_step
            logs["train_steps_per_second"] *= share
            trained = (self.state.epoch or 0.0) * len(self.train_dataset)  # transformers counts its own batch size
            logs["train_samples_per_second"] = round(trained * share / logs["train_runtime"], 3)
        if "loss" in logs and self.nll_steps:
            total = self.accelerator.gather(torch.as_tensor(self.nll, device=self.args.device).reshape(1)).mean()
            logs = {"loss": logs["loss"], "nll": total.item() / self.nll_steps, **logs}
            losses = [entry["loss"] for entry in self.state.log_history if "loss" in entry]
            if height := spike([*losses, logs["loss"]]):
                logs["loss_spike"] = height
                logger.warning(
                    f"the loss of step {self.state.global_step} is {logs['loss']:.4g}, {height:.0f} robust deviations above "
                    "the median of the last ones"
                )
            self.nll, self.nll_steps = 0.0, 0
        super().log(logs, start_time)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], int]:
        """A step is one batch; its count is the number of rankings over all processes."""
        share = next(epoch_iterator)
        return [share], sum(gather_object([len(share)]))

    def training_step(
        self, model: torch.nn.Module, inputs: list[EncodedRanking], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Forward and backward of one step's rankings, row by row. Gives the loss of the whole step.

        The loss is summed over rankings and divided once by the step's global count. Engines average gradients over
        processes, so each process's sum is multiplied by their number. Raises ``FloatingPointError``, in all processes, if it is
        not finite, and names the rankings to blame.

        A ranking over ``tokens_per_row`` is run in several rows: first without gradients, for the rewards and the gradient of the
        loss with respect to each; then row by row again, from those. Its loss and gradients are those of one row, its memory
        that of the budget, its time a third more (Gao et al. 2021, arXiv 2101.06983).
        """
        model.train()
        step = Step(self.accelerator.num_processes / num_items_in_batch, self.objective, self.args.device)
        units = pack(inputs, self.args.tokens_per_row)
        first = sum(len(unit.rows) for unit in units if len(unit.rows) > 1)
        # gradients are exchanged in the last backward pass, which a process with nothing to do must have too
        first, number = self._lockstep(first, max(1, sum(len(unit.rows) for unit in units)))
        passes: list[Pass] = []
        plain = self.accelerator.unwrap_model(model)  # DDP exchanges buffers in a forward pass, not always alike here
        for unit in units:
            own = [inputs[member] for member in unit.members]
            if len(unit.rows) == 1:
                passes.append(Pass(unit.rows[0], partial(step.loss, own)))
                continue
            states, parts = [], []
            with torch.no_grad():
                for row in unit.rows:
                    states.append(random_state(self.args.device))
                    parts.append(self._rewards(plain, row))
            first -= len(unit.rows)
            rewards = torch.cat(parts).requires_grad_()
            (gradient,) = torch.autograd.grad(step.loss(own, rewards), rewards)
            shares = gradient.split([len(part) for part in parts])
            passes += [
                Pass(row, partial(torch.dot, share), state)
                for row, share, state in zip(unit.rows, shares, states, strict=True)
            ]
        with torch.no_grad():
            for _ in range(first):
                self._rewards(plain, self._filler)
        passes += [Pass(self._filler, lambda rewards: 0.0 * rewards.sum())] * (number - len(passes))
        for count, (row, loss, state) in enumerate(passes, 1):
            last = count == number
            with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                # what dropout drew in the pass without gradients, it draws again
                with random_state_of(state, self.args.device) if state else contextlib.nullcontext():
                    value = loss(self._rewards(model, row))
                if last:
                    self._agree(step)
                self.accelerator.gradient_state._set_sync_gradients(last)  # at True DeepSpeed's backward also updates
                self.accelerator.backward(value)
        self.nll, self.nll_steps = self.nll + step.nll, self.nll_steps + 1
        self.inputs = inputs
        return step.total

    def _agree(self, step: Step) -> None:
        """What all must know of each other before gradients are exchanged: is a loss not finite, was a process told to stop?"""
        asked = self.stop.number if self.stop else 0
        mine = torch.tensor([step.total.isfinite().logical_not(), asked], dtype=torch.float64, device=self.args.device)
        bad, self.asked_to_stop = self.accelerator.gather(mine[None]).amax(0).int().tolist()
        if bad:
            blamed = step.not_finite() if mine[0] else []
            raise FloatingPointError(self._not_finite("loss", [*map(where, blamed)]))

    @cached_property
    def _content(self) -> str:
        return content(self.train_dataset)

    def _lockstep(self, *passes: int) -> list[int]:
        """How many passes of each kind this process runs, of those it needs.

        Where weights or gradients are sharded every pass is an exchange between all processes, so that all run as many as the
        one with the most.
        """
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return [max(each) for each in zip(*gather_object([passes]), strict=True)]
        return [*passes]

    def _rewards(self, model: torch.nn.Module, row: Row) -> torch.Tensor:
        with self.compute_loss_context_manager():
            inputs = row_inputs(row, self.decoder) | {"reward_at": reward_tokens(row, self.decoder)}
            rewards: torch.Tensor = model(**inputs)
        return rewards

    @cached_property
    def _filler(self) -> Row:
        """The shortest there is: one response."""
        shortest = self.train_dataset[shapes(self.train_dataset).shortest]
        return build_row([min(split(shortest, 1), key=lambda piece: piece.num_tokens)], [0])

    def _not_finite(self, what: str, own: list[str]) -> str:
        """The message of the guards, the same in every process."""
        places = sorted(set(gather_object(own)))
        cause = f"it comes from {'; '.join(places)}" if places else "no ranking of the step has it alone"
        late = what == "gradient" and self.is_deepspeed_enabled  # its backward pass updates before the norm is known
        return (
            f"the {what} of step {self.state.global_step + 1} is not finite: {cause}. "
            f"{'DeepSpeed has used it' if late else 'Nothing was updated'}; earlier checkpoints are whole. Look at these "
            "rankings, or start over with a lower learning rate"
        )

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        """As transformers', and a guard: a gradient that is not finite must not reach the optimiser."""
        norm = super()._get_grad_norm(model, grad_norm)
        # fp16: infinite gradients belong to finding the scale, and are skipped
        scales = self.accelerator.scaler is not None
        if norm is not None and not scales and not math.isfinite(norm):
            blamed = self.inputs
            if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):  # there no process can run a ranking by itself
                blamed = [item for item in self.inputs if not self._gradient_is_finite(model, item)]
            raise FloatingPointError(self._not_finite("gradient", [*map(where, blamed)]))
        return norm

    def _gradient_is_finite(self, model: torch.nn.Module, item: EncodedRanking) -> bool:
        model.zero_grad()
        step = Step(1.0, self.objective, self.args.device)
        with self.accelerator.no_sync(model):
            self.accelerator.backward(step.loss([item], self._rewards(model, build_row([item], [0]))))
        return all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())

    def evaluate(
        self,
        eval_dataset: Sequence[Ranking] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """The values of ``kwise.objective.metrics`` on the held-out rankings, or on those given; ``loss`` is the NLL in nats.

        Processes share the work; every ranking counts once, whatever their number. Raises ``ValueError`` without rankings.
        """
        rankings = self.eval_rankings if eval_dataset is None else list(eval_dataset)
        items = self.eval_dataset if eval_dataset is None else [self.encoder.encode_ranking(each) for each in rankings]
        if not rankings:
            raise ValueError("there are no rankings to evaluate on: give eval_dataset")
        own = range(self.accelerator.process_index, len(items), self.accelerator.num_processes)
        # the engine's model where its weights are sharded, else plain: DDP's would exchange buffers
        model = self.accelerator.unwrap_model(self.model_wrapped)
        model.eval()
        rows: list[Row] = []

        def plan(_model: PreTrainedModel, row: Row) -> torch.Tensor:
            rows.append(row)
            return torch.zeros(len(row.reward_at))

        def read(_model: PreTrainedModel, row: Row) -> torch.Tensor:
            return self._rewards(model, row)

        mine = [items[i] for i in own]
        for _ in map_rows(self.decoder, mine, plan, self.args.tokens_per_row):
            pass
        (number,) = self._lockstep(len(rows))  # before the first pass: nothing else may be exchanged between passes
        rewards = list(map_rows(self.decoder, mine, read, self.args.tokens_per_row))
        with torch.no_grad():
            for _ in range(number - len(rows)):
                self._rewards(model, self._filler)
        scored = dict(gather_object([(i, each.tolist()) for i, each in zip(own, rewards, strict=True)]))
        found = evaluate(rankings, [scored[i] for i in range(len(items))])
        metrics = {
            f"{metric_key_prefix}_{name}": metric.value
            for name, metric in found.items()
            if metric.value is not None and not name.startswith("distance_")
        }
        metrics[f"{metric_key_prefix}_loss"] = metrics[f"{metric_key_prefix}_nll"]
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)  # type: ignore[has-type]
        return metrics

    def whole_model(self) -> PreTrainedModel | PeftModel:
        """The model with plain weights, on this process's device. Where they are sharded all processes must call this, and the
        main one gets a copy with all of them; the others get the sharded model."""
        model: PreTrainedModel | PeftModel = self.accelerator.unwrap_model(self.model)
        if not self.is_fsdp_enabled:
            return model
        weights = self.accelerator.get_state_dict(self.model)
        if not self.accelerator.is_main_process:
            return model
        decoder = AutoModelForSequenceClassification.from_config(self.decoder.config, dtype=self.decoder.config.dtype)
        whole = get_peft_model(decoder, model.peft_config["default"]) if isinstance(model, PeftModel) else decoder
        whole.load_state_dict(weights)
        decoder.to(self.args.device)
        set_attention(decoder, self.args.attention)
        return whole

    def predict(self, *_: Any, **__: Any) -> Any:
        """Not for rankings: use ``RewardModel.score_rankings``."""
        raise TypeError("KwiseTrainer has no predict: score with kwise.RewardModel")

    def floating_point_ops(self, inputs: list[EncodedRanking]) -> int:
        """About six operations per parameter and token."""
        parameters: int = self.decoder.num_parameters(exclude_embeddings=True)
        return 6 * parameters * sum(item.num_tokens for item in inputs)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:  # transformers calls this in every process; the folder is the first one's to make
            folder = output_dir or self.args.output_dir
            self.settings.write(folder)
            write_old_names(folder)
