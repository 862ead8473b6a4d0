"""A recipe -> a run folder: data, model, training, evaluation."""

from dataclasses import dataclass, replace
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from rich.console import Console
from transformers import PreTrainedModel

from kwise.data.covariates import covariates, label
from kwise.data.encoded import EncodedRankings, with_offsets
from kwise.data.encoding import encode_files
from kwise.data.lines import lasting_name
from kwise.data.sources import read_rankings
from kwise.data.unique import EncodedPool, encode_distinct
from kwise.model import backbone
from kwise.model.attention import set_attention
from kwise.model.attention.exact import assert_exact
from kwise.model.features import cached_features, compute_features
from kwise.model.reward_model import RewardModel, Settings
from kwise.objective import objective
from kwise.objective.covariance import default_kind, head_uncertainty
from kwise.objective.design import Design
from kwise.objective.head import fit_head
from kwise.objective.metrics import Metric, evaluate
from kwise.records import Ranking
from kwise.train.config import KwiseConfig
from kwise.train.guards import StopOnSignal, TrainingStopped
from kwise.train.recipe import Recipe
from kwise.train.run_folder import MetricsFile, RunFolder, progress_bar
from kwise.train.trainer import KwiseTrainer

NOTHING = "{}: every ranking is tied throughout, so there is nothing to learn"
# unless told, accelerate takes each of several processes to be alone; and KwiseTrainer does not run on MPS
NO_ACCELERATOR = not torch.accelerator.is_available() or torch.backends.mps.is_available()
PATIENCE = timedelta(days=30)  # of processes for the main one; torch's own is 10 minutes (NCCL) or 30 (gloo)
NORMAL_95 = 1.959964  # deviations on either side of a 95 % interval


@dataclass(frozen=True)
class Result:
    """Where the model is, and held-out metrics before and after training (None without held-out rankings)."""

    model: Path
    before: dict[str, Metric] | None
    after: dict[str, Metric] | None


def train(recipe: Recipe, start_over: bool = False, console: Console | None = None) -> Result:
    """Run ``recipe``, or go on with the unfinished run in its output folder: from the newest whole checkpoint, or from the
    features cached so far. ``start_over`` removes that run's checkpoints instead.

    Under ``torchrun`` all processes compute features and train; the first one fits the head and writes. Raises ``ValueError``
    if the output folder holds a finished model, ``DataError`` for bad data; nothing is trained then.
    """
    fits_head = recipe.method == "head" or recipe.fit_head_first
    # first, so that its mistakes come out before any work is done
    config = None if recipe.method == "head" else trainer_config(recipe)
    processes = PartialState(cpu=NO_ACCELERATOR)  # what the config set up, where there is one
    # who waits while the main process fits the head or scores
    waiting = torch.distributed.new_group(timeout=PATIENCE, backend="gloo") if processes.num_processes > 1 else None
    folder = RunFolder(Path(recipe.output), console or Console(stderr=True, emoji=False), processes.is_main_process)
    folder.clear(recipe, start_over)
    checkpoint = folder.newest_checkpoint()
    rankings, held_out = read_data(recipe, fits_head)
    model = load_base(recipe, folder)
    training = rankings if config is None else encode(model, recipe, folder)
    folder.open(recipe, training, held_out)
    for key in recipe.trainer if config is None else ():
        if key != "bf16":
            folder.say(f"WARNING: trainer.{key} has no effect with method 'head'")

    # the new head is zero, so every reward is 0: nothing need be run to know that
    before = _evaluate(held_out, [[0.0] * len(ranking.ranks) for ranking in held_out], "before", folder)
    facts: dict[str, Any] = {
        "base": lasting_name(recipe.model.base),
        "method": recipe.method,
        "objective": recipe.objective,
        "objective_options": recipe.objective_options,
        "rankings": len(training),
        "kwise": version("kwise"),
    }
    if fits_head:
        facts |= _put_head(model, rankings, recipe, folder, waiting)
    if config is not None:
        assert isinstance(training, EncodedRankings)
        if coefficients := [found["coefficient"] for found in facts.get("covariates", {}).values()]:
            columns = (covariates(recipe.fit.covariates, ranking.responses) for ranking in rankings)
            training = with_offsets(training, [(own @ np.asarray(coefficients)).tolist() for own in columns])
        model.model = _train_backbone(model, training, held_out, recipe, config, folder, checkpoint)
    after = None
    if folder.main:
        folder.save_unfinished(model)
        if held_out:
            after = _evaluate(held_out, _score(model, held_out, recipe, folder), "after", folder)
        model.settings.trained = facts | ({"held_out": {k: m.to_json() for k, m in after.items()}} if after else {})
        folder.finish(model)
    if waiting is not None:
        torch.distributed.barrier(waiting)
        processes.destroy_process_group()
    return Result(folder.path / "model", before, after)


def read_data(recipe: Recipe, texts: bool) -> tuple[list[Ranking], list[Ranking]]:
    """The rankings to train on and those held out. Raises ``DataError``, and ``ValueError`` where nothing can be learned.

    Training alone needs ids and no ``texts``: then only the first ranking of each file is read, to see that it is there.
    """
    held_out = [ranking for file in recipe.data.eval for ranking in read_rankings(file, recipe.data.source)]
    if not texts:
        for file in recipe.data.train:
            next(read_rankings(file, recipe.data.source))
        return [], held_out
    rankings = [ranking for file in recipe.data.train for ranking in read_rankings(file, recipe.data.source)]
    assert_something_ranked(rankings, recipe.data.train)
    return rankings, held_out


def encode(model: RewardModel, recipe: Recipe, folder: RunFolder) -> EncodedRankings:
    """The rankings to train on as ids, from the cache where they are there. Raises as ``read_data`` does."""
    with progress_bar(folder.console) as bar:
        task = bar.add_task("rankings encoded", total=None, visible=False)
        encoded = encode_files(
            model.encoder,
            recipe.data.train,
            recipe.data.source,
            folder.say,
            lambda done: bar.update(task, completed=done, visible=folder.main),
        )
    if encoded.all_tied:
        raise ValueError(NOTHING.format(", ".join(recipe.data.train)))
    return encoded


def assert_something_ranked(rankings: list[Ranking], files: list[str]) -> None:
    """Raises ``ValueError`` where nothing can be learned."""
    if all(len(set(ranking.ranks)) == 1 for ranking in rankings):
        raise ValueError(NOTHING.format(", ".join(files)))


def trainer_config(recipe: Recipe) -> KwiseConfig:
    """Raises ``ValueError`` for values that the Trainer would refuse only after hours of other work."""
    if recipe.trainer.get("eval_strategy", "no") != "no" and not recipe.data.eval:
        raise ValueError("trainer.eval_strategy is set, but data.eval names no held-out rankings")
    if recipe.trainer.get("eval_on_start") and not recipe.data.eval:
        raise ValueError("trainer.eval_on_start is set, but data.eval names no held-out rankings")
    if recipe.trainer.get("save_only_model"):
        raise ValueError(
            "trainer.save_only_model leaves out what a run needs to go on: use trainer.save_total_limit instead"
        )
    if recipe.trainer.get("restore_callback_states_from_checkpoint"):
        raise ValueError(
            "trainer.restore_callback_states_from_checkpoint: leave it out; a run goes on as it was by itself"
        )
    options: dict[str, Any] = {"report_to": "none", "disable_tqdm": False, "use_cpu": NO_ACCELERATOR} | recipe.trainer
    return KwiseConfig(
        output_dir=str(Path(recipe.output, "checkpoints")),
        objective=recipe.objective,
        objective_options=recipe.objective_options,
        seed=recipe.seed,
        max_length=recipe.data.max_length,
        truncation=recipe.data.truncation,
        attention=recipe.model.attention,
        **options,
    )


def load_base(recipe: Recipe, folder: RunFolder) -> RewardModel:
    """The base model with a zero head, its tokenizer and settings."""
    torch.manual_seed(recipe.seed)
    base = backbone.resolve(recipe.model.base)
    tokenizer = backbone.load_tokenizer(base, recipe.model.chat_template or None)
    dtype: torch.dtype = getattr(torch, recipe.model.dtype)
    model = backbone.from_causal_lm(base, recipe.model.layers or None, dtype, bool(recipe.model.quantize))
    for note in backbone.align(model, tokenizer):
        folder.say(note)
    model.to(PartialState().device)
    folder.say(f"attention: {set_attention(model, recipe.model.attention)}")
    assert_exact(model)
    context = model.config.get_text_config().max_position_embeddings
    if recipe.data.max_length > context:
        folder.say(
            f"WARNING: data.max_length is {recipe.data.max_length}, but the base model was made for {context} tokens"
        )
    return RewardModel(model, tokenizer, Settings(recipe.data.max_length, recipe.data.truncation))


def _put_head(
    model: RewardModel,
    rankings: list[Ranking],
    recipe: Recipe,
    folder: RunFolder,
    waiting: torch.distributed.ProcessGroup | None,
) -> dict[str, Any]:
    """Fit the head on features of the frozen backbone, cut that where it reads best, and put the head in place.

    Every process computes a share of the features; the main one then fits, and the others get from it what came out. Gives
    what was chosen and reached. The head's uncertainty is kept with the main process's model where the head is all that is
    trained.
    """
    depth = model.model.config.get_text_config().num_hidden_layers
    pool = encode_distinct(model.encoder, rankings)
    layers, bf16 = recipe.fit.layers or [depth], bool(recipe.trainer.get("bf16"))
    if waiting is not None:
        share = waiting.rank(), waiting.size()
        with progress_bar(folder.console) as bar:
            task = bar.add_task("features, share of the main process", total=None, visible=folder.main)
            compute_features(
                model.model,
                pool.encoded,
                folder.path / "features",
                layers,
                bf16,
                lambda done, total: bar.update(task, completed=done, total=total),
                share,
            )
        torch.distributed.barrier(waiting)
    found = [_fit_head(model, pool, rankings, recipe, folder, layers, bf16) if folder.main else None]
    if waiting is not None:
        torch.distributed.broadcast_object_list(found, group=waiting)
    assert found[0] is not None
    head, facts = found[0]
    if facts["layer"] < depth:
        backbone.cut_after(model.model, facts["layer"])
    with torch.no_grad():
        getattr(model.model, backbone.HEAD).weight.copy_(head)
    return facts


def _fit_head(
    model: RewardModel,
    pool: EncodedPool,
    rankings: list[Ranking],
    recipe: Recipe,
    folder: RunFolder,
    layers: list[int],
    bf16: bool,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """[1, d] the head's weights in the model's precision, on the CPU, and what was chosen and reached. ``model`` only gets the
    uncertainty."""
    tokens = sum(item.num_tokens for item in pool.encoded)
    folder.say(f"{len(pool.encoded)} prompts, {pool.num_responses} distinct responses, {tokens} tokens")
    _say_cut(pool.shortened, "distinct responses", recipe, folder)
    designs = head_designs(
        model,
        pool,
        rankings,
        folder.path / "features",
        folder.console,
        layers,
        recipe.fit.covariates,
        bf16,
    )
    loss_function = objective(recipe.objective, **recipe.objective_options)
    device = "cuda" if model.model.device.type == "cuda" else "cpu"
    fit = fit_head(designs, loss_function, seed=recipe.seed, device=device)
    head = torch.from_numpy(fit.weight)[None].to(getattr(model.model, backbone.HEAD).weight.dtype)
    for tried in fit.path:
        folder.log({"layer": tried.layer, "ridge": tried.ridge, "ridge_held_out_loss": tried.held_out})
    folder.log({"layer": fit.layer, "ridge": fit.ridge, "loss": fit.loss})
    of_layers = f"layer {fit.layer}, " if recipe.fit.layers else ""
    folder.say(
        f"head fitted: {of_layers}ridge {fit.ridge:g} ({len(fit.path)} tried, by loss on a fifth of the training prompts), "
        f"{recipe.objective} loss {fit.loss:.4f} a ranking, largest gradient left {fit.gradient:.0e}"
    )
    own = [tried.ridge for tried in fit.path if tried.layer == fit.layer]
    if fit.ridge in (own[0], own[-1]):
        folder.say("WARNING: the best ridge is the last one tried on its side; a better one may lie beyond")
    facts: dict[str, Any] = {"layer": fit.layer, "ridge": fit.ridge, "loss": fit.loss}
    if recipe.method == "head" or recipe.fit.covariates:
        kind = default_kind(recipe.objective, recipe.objective_options, designs[fit.layer].groups)
        uncertainty, errors = head_uncertainty(
            designs[fit.layer], loss_function, head, fit.coefficients, fit.ridge, kind, device
        )
        model.uncertainty = uncertainty if recipe.method == "head" else None
        names = [label(each) for each in recipe.fit.covariates]
        facts["covariates"] = {
            name: {"coefficient": value, "low": value - NORMAL_95 * error, "high": value + NORMAL_95 * error}
            for name, value, error in zip(names, fit.coefficients.tolist(), errors.tolist(), strict=True)
        }
        for name, found in facts["covariates"].items():
            folder.say(f"covariate {name}: {found['coefficient']:.3f} [{found['low']:.3f}, {found['high']:.3f}] nats")
    return head, facts


def head_designs(
    model: RewardModel,
    pool: EncodedPool,
    rankings: list[Ranking],
    cache: Path,
    console: Console,
    layers: list[int],
    names: list[str],
    bf16: bool,
) -> dict[int, Design]:
    """What a head is fitted to: for each of ``layers`` the features of the pool's responses, with the covariates ``names``."""
    with progress_bar(console) as bar:
        task = bar.add_task("features", total=pool.num_responses)
        features = cached_features(
            model.model, pool.encoded, cache, layers, bf16, lambda done, total: bar.update(task, completed=done)
        )
    ranks, groups = [ranking.ranks for ranking in rankings], [ranking.group for ranking in rankings]
    columns = covariates(names, (response for prompt in pool.prompts for response in prompt.responses))
    for name, column in zip(names, columns.T, strict=True):
        if all(np.ptp(column[own]) == 0 for own in pool.where):
            raise ValueError(f"covariate '{name}' is the same for all responses of every ranking: it explains nothing")
    return {layer: Design(own, pool.where, ranks, groups, columns) for layer, own in features.items()}


def build_trainer(
    model: RewardModel,
    training: EncodedRankings,
    held_out: list[Ranking],
    recipe: Recipe,
    config: KwiseConfig,
    folder: RunFolder,
    kind: type[KwiseTrainer] = KwiseTrainer,
) -> KwiseTrainer:
    """The trainer of methods ``lora`` and ``full``."""
    adapters = LoraConfig(
        task_type="SEQ_CLS",
        r=recipe.lora.r,
        lora_alpha=recipe.lora.alpha,
        lora_dropout=recipe.lora.dropout,
        target_modules=recipe.lora.target_modules or "all-linear",
    )
    peft_config = adapters if recipe.method == "lora" else None
    callbacks = [MetricsFile(folder)]
    trainer = kind(model.model, config, training, held_out, model.tokenizer, peft_config, callbacks=callbacks)
    for name, count in trainer.cut.items():
        _say_cut(count, f"{name} rankings' responses", recipe, folder)
    return trainer


def _train_backbone(
    model: RewardModel,
    training: EncodedRankings,
    held_out: list[Ranking],
    recipe: Recipe,
    config: KwiseConfig,
    folder: RunFolder,
    checkpoint: Path | None,
) -> PreTrainedModel:
    """Adapters are merged into plain weights at the end."""
    trainer = build_trainer(model, training, held_out, recipe, config, folder)
    folder.say(f"an epoch is {trainer.tally()}")
    trainer.stop = StopOnSignal(folder.say)
    try:
        with trainer.stop.listening():
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except TrainingStopped as stopped:
        folder.say(f"{stopped.message}; the same command goes on from there")
        raise
    trained = trainer.whole_model()
    if not folder.main:
        return model.model
    if isinstance(trained, PeftModel) and recipe.model.quantize:
        trained = _on_whole_weights(trained, recipe, folder)
    if isinstance(trained, PeftModel):
        trained = trained.merge_and_unload()
        getattr(trained, backbone.HEAD).to(trained.dtype)  # adapters and head were trained in float32
    return trained


def _on_whole_weights(trained: PeftModel, recipe: Recipe, folder: RunFolder) -> PeftModel:
    """The adapters of ``trained`` on the base in its own precision, which they are merged into."""
    plain = load_base(replace(recipe, model=replace(recipe.model, quantize="")), folder).model
    if (depth := trained.config.get_text_config().num_hidden_layers) < plain.config.get_text_config().num_hidden_layers:
        backbone.cut_after(plain, depth)
    whole: PeftModel = get_peft_model(plain, trained.peft_config["default"])
    set_peft_model_state_dict(whole, get_peft_model_state_dict(trained))
    return whole


def _say_cut(count: int, what: str, recipe: Recipe, folder: RunFolder) -> None:
    folder.say(f"truncation '{recipe.data.truncation}' to {recipe.data.max_length} tokens shortened {count} {what}")
    folder.log({"shortened": count, "of": what, "max_length": recipe.data.max_length})


def _score(model: RewardModel, rankings: list[Ranking], recipe: Recipe, folder: RunFolder) -> list[list[float]]:
    with progress_bar(folder.console) as bar:
        task = bar.add_task("held-out rankings", total=None)
        rewards, shortened = model.score_rankings(
            rankings, lambda done, total: bar.update(task, completed=done, total=total)
        )
    _say_cut(shortened, "distinct held-out responses", recipe, folder)
    return rewards


def _evaluate(
    rankings: list[Ranking], rewards: list[list[float]], when: str, folder: RunFolder
) -> dict[str, Metric] | None:
    if not rankings:
        return None
    metrics = evaluate(rankings, rewards)
    folder.log({when: {name: metric.to_json() for name, metric in metrics.items()}})
    folder.say(f"held-out pair accuracy {when} training: {metrics['pair_accuracy']}")
    return metrics
