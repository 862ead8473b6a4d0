"""``kwise uncertainty``: the error of a trained model's rewards, from the rankings it was trained on."""

from pathlib import Path

import numpy as np
from rich.console import Console

from kwise.data.sources import read_rankings
from kwise.data.unique import encode_distinct
from kwise.model import backbone
from kwise.model.reward_model import RewardModel
from kwise.model.uncertainty import Uncertainty
from kwise.objective import objective
from kwise.objective.covariance import KINDS, default_kind, head_uncertainty
from kwise.objective.head import fit_head
from kwise.train.recipe import load_recipe
from kwise.train.run import assert_something_ranked, head_designs


def add_uncertainty(
    model: RewardModel,
    files: list[str],
    cache: Path,
    kind: str | None,
    source: str,
    console: Console,
    bf16: bool = False,
) -> Uncertainty:
    """Give ``model``, however it was trained, the covariance of its head over its last layer's features, from the rankings in
    ``files``. Covers the error of the head alone: the layers below are taken as they are.

    The objective is the one the model was trained with (``kwise.json``; Plackett-Luce where it says nothing). So is the ridge;
    a head that was not fitted with one gets that of the head fit on the same features. ``kind`` None is
    ``default_kind``. Features are cached in ``cache``, computed under bfloat16 autocast if ``bf16``
    (``fitted_under_bf16``). Raises ``ValueError`` for an unknown kind, and for a model whose rewards
    are not read at the last token.
    """
    if model.settings.reward_at != "last_token":
        raise ValueError(f"rewards read by the rule '{model.settings.reward_at}' have no features to learn errors from")
    trained = model.settings.trained
    if trained.get("covariates"):
        raise ValueError(
            "the head was fitted with covariates, which are not in the model any more: its error is the one it was saved with; "
            "fit it again to get that anew"
        )
    name, options = trained.get("objective", "plackett_luce"), trained.get("objective_options", {})
    if kind is not None and kind not in KINDS:
        raise ValueError(f"unknown kind '{kind}'; known: {', '.join(KINDS)}")
    rankings = [ranking for file in files for ranking in read_rankings(file, source)]
    assert_something_ranked(rankings, files)
    pool = encode_distinct(model.encoder, rankings)
    if pool.shortened:
        console.print(f"{pool.shortened} distinct responses were cut to {model.settings.max_length} tokens")
    depth = len(backbone.decoder_layers(model.model))
    (design,) = head_designs(model, pool, rankings, cache, console, [depth], [], bf16).values()
    loss_function = objective(name, **options)
    device = "cuda" if model.model.device.type == "cuda" else "cpu"
    ridge = trained.get("ridge") if trained.get("method") == "head" else None
    if ridge is None:
        fit = fit_head({depth: design}, loss_function, device=device)
        ridge = fit.ridge
        console.print(f"ridge {ridge:g}, as a head fitted anew to these features takes", highlight=False)
    head = getattr(model.model, backbone.HEAD).weight
    kind = kind or default_kind(name, options, design.groups)
    model.uncertainty, _ = head_uncertainty(design, loss_function, head, np.zeros(0), ridge, kind, device)
    return model.uncertainty


def fitted_under_bf16(folder: Path) -> bool:
    """Were the features that the head in the model ``folder`` was fitted to computed under bfloat16 autocast? The recipe of its
    run folder says so; without one it counts as no. Raises ``ValueError`` for a recipe that cannot be read."""
    recipe = folder.resolve().parent / "recipe.toml"
    if not recipe.exists():
        return False
    run = load_recipe(recipe)
    return run.method == "head" and bool(run.trainer.get("bf16"))
