"""What each way to take length out of a reward does: to accuracy, and to the correlation of reward and length.

    python benchmarks/debias.py rankings-train.jsonl rankings-heldout.jsonl --cache features

fits heads on SmolLM2-135M-Instruct cut after layer 20 (features are computed once and kept in the cache), without and with
nuisance covariates, and takes the training rankings' length slope off the plain one; all are judged on the held-out file.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console

from kwise.data.covariates import COVARIATES, covariates
from kwise.data.sources import read_rankings
from kwise.data.unique import encode_distinct
from kwise.losses import plackett_luce
from kwise.model import backbone
from kwise.model.features import cached_features
from kwise.model.reward_model import RewardModel, Settings
from kwise.model.smollm2 import smollm2
from kwise.objective.calibration import figures, fit_length_slope
from kwise.objective.covariance import head_covariance
from kwise.objective.design import Design
from kwise.objective.head import fit_head
from kwise.objective.metrics import Metric
from kwise.train.run_folder import progress_bar

Rewards = list[list[float]]
WAYS = {"plain": [], "covariate length": ["length"], "all covariates": list(COVARIATES)}


def main() -> None:
    """Print the coefficients of the covariates and one table a split."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train")
    parser.add_argument("heldout")
    parser.add_argument("--cache", type=Path, required=True, help="folder for the features")
    parser.add_argument("--layers", type=int, default=20)
    options = parser.parse_args()
    model = backbone.from_causal_lm(smollm2(), options.layers)
    base = RewardModel(model, backbone.load_tokenizer(smollm2()), Settings(2048))
    backbone.align(model, base.tokenizer)
    rankings = {name: list(read_rankings(getattr(options, name))) for name in ("train", "heldout")}
    designs, texts = {}, {}
    for name, own in rankings.items():
        pool = encode_distinct(base.encoder, own)
        with progress_bar(Console(stderr=True)) as bar:
            task = bar.add_task(f"features, {name}", total=pool.num_responses)

            def progress(done: int, total: int, task=task, bar=bar) -> None:
                bar.update(task, completed=done)

            features = cached_features(model, pool.encoded, options.cache, [options.layers], progress=progress)
        ranks, groups = [each.ranks for each in own], [each.group for each in own]
        texts[name] = [response for prompt in pool.prompts for response in prompt.responses]
        designs[name] = Design(features[options.layers], pool.where, ranks, groups)

    lengths = {name: [[len(text) for text in each.responses] for each in own] for name, own in rankings.items()}
    judged: dict[str, Rewards] = {}
    for way, names in WAYS.items():
        columns = covariates(names, texts["train"])
        train = replace(designs["train"], covariates=columns)
        fit = fit_head({options.layers: train}, plackett_luce, seed=42)
        judged[way] = rewards(designs["heldout"], fit.weight)
        print(f"{way}: ridge {fit.ridge:g}", end="")
        root = head_covariance(train, plackett_luce, fit.weight, fit.coefficients, fit.ridge, "sandwich")
        errors = np.linalg.norm(root[train.num_features :], axis=1)
        for name, value, error in zip(names, fit.coefficients, errors, strict=True):
            print(f"; {name} {value:.2f} [{value - 1.96 * error:.2f}, {value + 1.96 * error:.2f}]", end="")
        print("\n")
        if way == "plain":
            groups = designs["train"].groups
            slope, error = fit_length_slope(rewards(designs["train"], fit.weight), lengths["train"], groups)
            print(
                f"length slope of the plain rewards on the training rankings {slope:.2f} (standard error {error:.2f})\n"
            )
            judged["plain, slope taken off"] = [
                [reward - slope * np.log1p(length) for reward, length in zip(own, sizes, strict=True)]
                for own, sizes in zip(judged[way], lengths["heldout"], strict=True)
            ]
    splits = {"all": list(range(len(rankings["heldout"])))}
    for i, ranking in enumerate(rankings["heldout"]):
        if "selection" in ranking.columns:
            splits.setdefault(str(ranking.columns["selection"]), []).append(i)
    for split, members in splits.items():
        print_table(split, members, judged, designs["heldout"], lengths["heldout"])


def rewards(design: Design, weight: np.ndarray) -> Rewards:
    """[L][K] rewards of the design's rankings."""
    by_response = np.asarray(design.features, dtype=np.float64) @ weight
    return [by_response[places].tolist() for places in map(list, design.places)]


def print_table(
    split: str, members: list[int], judged: dict[str, Rewards], design: Design, lengths: list[list[int]]
) -> None:
    """One line for each way."""
    names = ("pair_accuracy", "longer_better", "shorter_better", "length_correlation")
    print(f"**{split}** ({len(members)} rankings)\n\n| | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    for way, of in judged.items():
        own = design.take(members)
        found = figures(own.ranks, [of[i] for i in members], own.groups, [lengths[i] for i in members])
        print(f"| {way} | {' | '.join(show(found[name]) for name in names)} |")
    print()


def show(metric: Metric) -> str:
    """A figure with its 95 % interval."""
    return f"{metric.value:.3f} [{metric.low:.3f}, {metric.high:.3f}]"


if __name__ == "__main__":
    main()
