"""The README.md of a published model: what ``kwise.json`` knows, what was measured, and metadata in the hub's form."""

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from kwise.data.lines import HUB_ID
from kwise.model.reward_model import RewardModel
from kwise.objective.metrics import Metric

TASK = "preference_evaluation"  # RewardBench's, so that its results and these stand in one list (rewardbench.py, 0.1.4)
NATS = ("nll", "kendall_tau")  # all other metrics are shares
TRAINING = "held-out rankings of the training run"
USE = """```python
from kwise import RewardModel

model = RewardModel.from_pretrained("{name}", dtype=None)
model.score("Which sea is the saltiest?", ["The Dead Sea.", "No idea."])
```

With transformers alone:

```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForSequenceClassification.from_pretrained("{name}")
chat = [{{"role": "user", "content": "Hi"}}, {{"role": "assistant", "content": "Hello!"}}]
model(**tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True)).logits
```
"""
OTHER_RULE = "kwise reads the reward by the rule '{rule}'; all other tools read it at the last token, where it is another number."


def model_card(name: str, model: RewardModel, metrics: Mapping[str, Mapping[str, Metric]]) -> str:
    """The card of ``model``, published as ``name``; ``metrics`` per file are of the weights as published.

    Without any, the held-out metrics of the training run stand in the metadata, under a name that says so.
    """
    trained = model.settings.trained
    shown = {file: {key: metric.to_json() for key, metric in own.items()} for file, own in metrics.items()}
    if not shown and "held_out" in trained:
        shown = {TRAINING: trained["held_out"]}
    base = trained.get("base") or model.settings.imported.get("base")
    data = ModelCardData(
        base_model=base if isinstance(base, str) and HUB_ID.fullmatch(base) else None,
        library_name="transformers",
        pipeline_tag="text-classification",
        tags=["reward-model", "kwise"],
        model_name=name,
        eval_results=[each for file, own in shown.items() for each in _results(file, own)] or None,
    )
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {name}",
        "A reward model: a chat model with one linear unit in place of its LM head. Any prompt and response gets one number. "
        "Differences of rewards are log-odds in nats; their zero point means nothing.",
        _table(("", ""), _facts(model)),
        *_measured(shown, fresh=bool(metrics)),
        *_change(model.settings.exported),
        "## Use",
        USE.format(name=name),
        *([] if model.settings.reward_at == "last_token" else [OTHER_RULE.format(rule=model.settings.reward_at)]),
        "The licence of the base model and of the data decide on the licence of this one: name it before publishing.",
    ]
    return "\n\n".join(parts) + "\n"


def _results(file: str, own: Mapping[str, Any]) -> list[EvalResult]:
    """Pair accuracies as the hub's ``model-index`` holds them."""
    dataset, _, split = (file, "", "") if file.startswith("starter:") else file.partition(":")
    kinds = {
        "pair_accuracy": "pairs in the right order",
        "longer_better": "pairs whose longer response is better",
        "shorter_better": "pairs whose shorter response is better",
    }
    return [
        EvalResult(
            task_type=TASK,
            task_name="Preference evaluation",
            dataset_type=dataset,
            dataset_name=dataset.split("/")[-1],
            dataset_split=split or None,
            metric_type="accuracy",
            metric_name=f"{what}, {_interval_words(metric)}n = {metric['n']}",
            metric_value=round(metric["value"], 4),
        )
        for key, what in kinds.items()
        if (metric := own.get(key)) and metric["value"] is not None
    ]


def _facts(model: RewardModel) -> list[tuple[str, str]]:
    settings, config = model.settings, model.model.config.get_text_config()
    trained = settings.trained
    names = {"base": "base model", "method": "method", "objective": "objective", "rankings": "training rankings"}
    rows = [(label, str(trained[key])) for key, label in names.items() if key in trained]
    names = {
        "base": "base model",
        "checkpoint": "imported from",
        "layout": "its layout",
        "chat_template": "chat template",
    }
    rows += [(label, str(settings.imported[key])) for key, label in names.items() if settings.imported.get(key)]
    if trained.get("objective_options"):
        options = ", ".join(f"{key} = {value}" for key, value in trained["objective_options"].items())
        rows.append(("objective options", options))
    precision = settings.exported.get("dtype") or str(model.model.dtype).removeprefix("torch.")
    rows += [
        ("decoder", f"{type(model.model).__name__}, {config.num_hidden_layers} layers of {config.hidden_size}"),
        ("precision", precision),
        ("longest sequence", f"{settings.max_length} tokens, then truncation '{settings.truncation}'"),
        ("reward read at", settings.reward_at),
    ]
    for name, found in trained.get("covariates", {}).items():
        interval = f"{found['coefficient']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
        rows.append((f"covariate {name}", f"{interval} nats, left out of the reward"))
    if found := settings.calibration:
        fit = f"temperature {found.temperature:.4g}, centre {found.centre:.4g}, length slope {found.length_slope:.4g}"
        rows.append(("calibration", f"{fit}, fitted to {found.rankings} rankings of {', '.join(found.data)}"))
    if model.uncertainty is not None:
        kind = ", ".join(f"{key} {value}" for key, value in model.uncertainty.facts.items())
        rows.append(("error of the head", f"in `uncertainty.kwise`: {kind}"))
    if "kwise" in trained:
        rows.append(("trained with", f"kwise {trained['kwise']}"))
    return rows


def _measured(shown: Mapping[str, Mapping[str, Any]], fresh: bool) -> list[str]:
    if not shown:
        return []
    source = "Measured on this folder as it is" if fresh else "Measured at the end of training"
    parts = [
        "## Measured",
        f"{source}; shares in per cent, with 95 % intervals by bootstrap over prompts. An equal pair counts half. "
        "`longer_wins` and `better_model_wins` need no model: they say how far length and the author's name get alone.",
    ]
    bias = ("longer_better", "shorter_better")
    names = dict.fromkeys(
        name
        for own in shown.values()
        for name, metric in own.items()
        if name not in bias and metric["value"] is not None
    )
    parts.append(
        _table(("", *shown), [(name, *(_cell(name, own.get(name)) for own in shown.values())) for name in names])
    )
    if fresh:
        parts += [
            "## Length bias",
            "Pair accuracy where the better response is the longer one, and where it is the shorter one. A model that only "
            "likes length is right in all of the first and in none of the second.",
            _table(
                ("", "all", "longer is better", "shorter is better", "longer wins (no model)"),
                [
                    (file, *(_cell(name, own.get(name)) for name in ("pair_accuracy", *bias, "longer_wins")))
                    for file, own in shown.items()
                ],
            ),
        ]
    return parts


def _change(exported: Mapping[str, Any]) -> list[str]:
    if not exported:
        return []
    rounded = (
        "transformers returns a reward rounded to the precision of the weights; kwise computes the head in float32."
    )
    return ["## Precision", f"{change_in_words(exported)} {rounded}"]


def change_in_words(change: Mapping[str, Any]) -> str:
    """``kwise.use.export.Change``, as ``kwise.json`` holds it, in one sentence."""
    share = f" ({100 * change['flipped'] / change['pairs']:.2f} %)" if change["pairs"] else ""
    return (
        f"{change['dtype']} against the original in float32, over {change['responses']} responses of "
        f"{', '.join(change['data'])}: rewards differ by {change['mean']:.4f} nats on average and {change['largest']:.4f} at "
        f"most; {change['flipped']} of {change['pairs']} pairs of responses to one prompt{share} change their order."
    )


def _cell(name: str, metric: Mapping[str, Any] | None) -> str:
    if metric is None or metric["value"] is None:
        return "-"
    factor, digits = (1, 3) if name in NATS else (100, 1)
    value, *ends = (
        None if metric[key] is None else f"{factor * metric[key]:.{digits}f}" for key in ("value", "low", "high")
    )
    return f"{value}" if None in ends else f"{value} [{ends[0]}, {ends[1]}]"


def _interval_words(metric: Mapping[str, Any]) -> str:
    return "" if metric["low"] is None else f"95 % interval {metric['low']:.3f} to {metric['high']:.3f}, "


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)
