"""Recipes: a TOML file with strict keys, overridable as ``key=value``. All mistakes are reported at once."""

import dataclasses
import difflib
import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

METHODS = ("head", "lora", "full")
RANGES = {  # legal numbers, both ends included
    "seed": (0, 2**32 - 1),
    "data.max_length": (2, None),
    "model.layers": (0, None),
    "lora.r": (1, None),
    "lora.alpha": (1, None),
    "lora.dropout": (0, 1),
    "trainer.learning_rate": (0, None),
}


@dataclass(frozen=True)
class Data:
    """``[data]``: files, hub ids (``owner/name[:split]``) or ``starter:train`` / ``starter:heldout``."""

    train: list[str]
    eval: list[str] = field(default_factory=list)
    source: str = "auto"
    max_length: int = 2048
    truncation: str = "left"


@dataclass(frozen=True)
class Model:
    """``[model]``: ``base`` is a folder, a hub id or ``smollm2``. ``layers`` keeps only the first so many (0 = all).
    ``chat_template`` is a Jinja file or a name of ``kwise.model.backbone.TEMPLATES`` (empty: the base's own). ``quantize``
    = ``nf4`` holds the frozen weights in 4 bits while adapters are trained (QLoRA); they are merged into weights of ``dtype``."""

    base: str
    layers: int = 0
    chat_template: str = ""
    dtype: str = "float32"
    attention: str = "auto"
    quantize: str = ""


@dataclass(frozen=True)
class Fit:
    """``[fit]``, of the head fit. The layer of ``layers`` that reads best on held-out prompts is where the backbone is cut (none
    given: the last one of ``model.layers``). ``covariates`` (``kwise.data.covariates``) enter the utility while fitting and are
    left out of scores, so that the head need not explain what they explain; a backbone trained from that head keeps their
    coefficients as they are."""

    layers: list[int] = field(default_factory=list)
    covariates: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Lora:
    """``[lora]``: adapters of peft on all linear layers, or on those named in ``target_modules``."""

    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Recipe:
    """One training run.

    ``method``: ``head`` fits the head alone, to its optimum, on cached features of the frozen backbone; ``lora`` and ``full``
    train with ``KwiseTrainer``, from that fitted head if ``fit_head_first``. ``trainer`` is passed to ``KwiseConfig``, which
    says what it refuses, ``objective_options`` to ``kwise.losses.objective``.
    """

    method: str
    output: str
    data: Data
    model: Model
    objective: str = "plackett_luce"
    seed: int = 42
    fit_head_first: bool = False
    fit: Fit = field(default_factory=Fit)
    lora: Lora = field(default_factory=Lora)
    objective_options: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)

    def to_toml(self) -> str:
        """The recipe with every default of kwise filled in, as TOML that ``load_recipe`` reads back. ``[trainer]`` has what was
        given: its defaults are those of the installed transformers."""
        lines, tables = [], []
        for name, value in dataclasses.asdict(self).items():
            if isinstance(value, dict):
                tables += ["", f"[{name}]", *(f"{key} = {_toml(each)}" for key, each in value.items())]
            else:
                lines.append(f"{name} = {_toml(value)}")
        return "\n".join(lines + tables) + "\n"


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe. ``overrides`` are ``key=value`` with dotted keys and TOML values (``data.max_length=512``); bare text is a
    string.

    Raises ``ValueError`` with every mistake in it: an unknown key (with the nearest known one), a missing key, a value of
    the wrong type.
    """
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file") from error
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: not valid TOML: {error}") from error
    return build_recipe(table, str(path), overrides)


def build_recipe(table: dict[str, Any], name: str, overrides: Sequence[str] = ()) -> Recipe:
    """As ``load_recipe``, of a table that is in memory; mistakes are reported under ``name``."""
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ValueError(f"'{override}': an override is key=value")
        _set(table, key.strip().split("."), _value(text.strip()), override)
    mistakes: list[str] = []
    recipe = _build(Recipe, table, "", mistakes)
    mistakes += _check(table)
    if mistakes:
        raise ValueError(f"{name}:\n" + "\n".join(f"  {mistake}" for mistake in mistakes))
    return recipe  # type: ignore[no-any-return]


def _check(table: dict[str, Any]) -> list[str]:
    """What is wrong with values of the right type. It reads the table, so that it also speaks where no ``Recipe`` came about."""
    from kwise.data.encode import TRUNCATIONS
    from kwise.data.sources import SOURCES
    from kwise.model.attention import ATTENTION
    from kwise.model.backbone import DTYPES
    from kwise.objective import OBJECTIVES, objective
    from kwise.train.config import KwiseConfig

    choices = {
        "method": METHODS,
        "objective": tuple(OBJECTIVES),
        "data.source": ("auto", *SOURCES),
        "data.truncation": TRUNCATIONS,
        "model.attention": ATTENTION,
        "model.dtype": DTYPES,
        "model.quantize": ("", "nf4"),
    }
    mistakes = []
    for key, legal in choices.items():
        value = _get(table, key.split("."))
        if isinstance(value, str) and value not in legal:
            mistakes.append(f"{key}: '{value}' is not one of {', '.join(legal)}")
    name, options = table.get("objective", Recipe.objective), table.get("objective_options", {})
    if isinstance(name, str) and name in OBJECTIVES and isinstance(options, dict):
        try:
            objective(name, **options)
        except ValueError as error:
            mistakes += [f"objective_options.{mistake}" for mistake in str(error).splitlines()]
    for key, (least, most) in RANGES.items():
        value = _get(table, key.split("."))
        if _fits(value, float) and (value < least or (most is not None and value > most)):
            legal_range = f"at least {least}" if most is None else f"between {least} and {most}"
            mistakes.append(f"{key}: must be {legal_range}, this is {value}")
    mistakes += _check_fit(table)
    if _get(table, ["model", "quantize"]) and table.get("method") != "lora":
        mistakes.append("model.quantize: weights of 4 bits cannot be trained themselves; set method = 'lora'")
    epochs, steps = _get(table, ["trainer", "num_train_epochs"]), _get(table, ["trainer", "max_steps"])
    if _fits(epochs, float) and epochs <= 0 and not (_fits(steps, int) and steps > 0):
        mistakes.append(f"trainer.num_train_epochs: must be more than 0, this is {epochs}")
    mistakes += [f"{key}: is empty" for key in ("output", "model.base") if _get(table, key.split(".")) == ""]
    if _get(table, ["data", "train"]) == []:
        mistakes.append("data.train: name at least one file")
    for key in ("data.train", "data.eval"):
        files = _get(table, key.split("."))
        if _fits(files, list[str]):
            places = [str(Path(file).resolve()) if Path(file).exists() else file for file in files]
            mistakes += [f"{key}: {file} is named twice" for i, file in enumerate(files) if places[i] in places[:i]]
    elsewhere = {
        "objective": "objective",
        "objective_options": "objective_options",
        "max_length": "data.max_length",
        "truncation": "data.truncation",
        "seed": "seed",
        "attention": "model.attention",
        "output_dir": "output",
    }
    hints = get_type_hints(KwiseConfig)
    known = [
        each.name
        for each in dataclasses.fields(KwiseConfig)
        if each.init and each.name not in {*elsewhere, "resume_from_checkpoint"}
    ]
    trainer = table.get("trainer")
    for key, value in trainer.items() if isinstance(trainer, dict) else ():
        if key == "resume_from_checkpoint":
            mistakes.append(f"trainer.{key}: leave it out; a run goes on from its newest checkpoint by itself")
        elif key in elsewhere:
            mistakes.append(f"trainer.{key}: set '{elsewhere[key]}' instead")
        elif key not in known:
            mistakes.append(_unknown(f"trainer.{key}", key, known, "trainer."))
        else:
            # transformers checks few types itself: "no" would be true, and a learning rate in quotes fails at the first step
            kinds = [kind for kind in get_args(hints[key]) or (hints[key],) if kind is not type(None)]
            if all(kind in (bool, int, float, str) for kind in kinds) and not any(_fits(value, kind) for kind in kinds):
                mistakes.append(f"trainer.{key}: must be {' or '.join(map(_type_name, kinds))}, this is {value!r}")
    return mistakes


def _check_fit(table: dict[str, Any]) -> list[str]:
    from kwise.data.covariates import covariates, label

    mistakes = []
    layers, names = _get(table, ["fit", "layers"]), _get(table, ["fit", "covariates"])
    depth, method, first = _get(table, ["model", "layers"]), table.get("method"), table.get("fit_head_first")
    if _fits(layers, list[int]):
        legal = f"between 1 and model.layers = {depth}" if type(depth) is int and depth > 0 else "at least 1"
        most = depth if type(depth) is int and depth > 0 else None
        wrong = [each for each in layers if each < 1 or (most is not None and each > most)]
        mistakes += [f"fit.layers: must be {legal}, this has {each}" for each in wrong]
        if len(set(layers)) < len(layers):
            mistakes.append(f"fit.layers: {layers} names a layer twice")
    if names and method != "head" and not first:
        mistakes.append("fit.covariates: are of the head fit; set fit_head_first = true, or method = 'head'")
    if _fits(names, list[str]) and len({label(each) for each in names}) < len(names):
        mistakes.append(f"fit.covariates: {names} names one twice")
    for name in names if _fits(names, list[str]) else ():
        try:
            covariates([name], [])
        except ValueError as error:
            mistakes.append(f"fit.covariates: {error}")
    return mistakes


def _build(kind: Any, table: dict[str, Any], prefix: str, mistakes: list[str]) -> Any:
    hints = get_type_hints(kind)
    fields = {each.name: each for each in dataclasses.fields(kind)}
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in fields:
            mistakes.append(_unknown(prefix + key, key, list(fields), prefix))
        elif dataclasses.is_dataclass(hints[key]):
            if isinstance(value, dict):
                values[key] = _build(hints[key], value, f"{prefix}{key}.", mistakes)
            else:
                mistakes.append(f"{prefix}{key}: must be a table")
        elif not _fits(value, hints[key]):
            mistakes.append(f"{prefix}{key}: must be {_type_name(hints[key])}, this is {value!r}")
        else:
            values[key] = float(value) if hints[key] is float else value
    missing = object()
    for name, each in fields.items():
        if name not in table and each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING:
            mistakes.append(f"{prefix}{name}: is missing")
            values[name] = missing
    return kind(**values) if not mistakes else None


def _unknown(path: str, key: str, known: list[str], prefix: str) -> str:
    near = difflib.get_close_matches(key, known, 1, 0.5)
    return f"{path}: no such key" + (f"; did you mean '{prefix}{near[0]}'?" if near else f"; known: {', '.join(known)}")


def _fits(value: object, hint: Any) -> bool:
    if get_origin(hint) is list:
        return isinstance(value, list) and all(_fits(each, get_args(hint)[0]) for each in value)
    if get_origin(hint) is dict:
        return isinstance(value, dict)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _type_name(hint: Any) -> str:
    if get_origin(hint) is list:
        return f"a list of {'whole numbers' if get_args(hint)[0] is int else 'text'}"
    return {str: "text", int: "a whole number", float: "a number", bool: "true or false"}.get(hint, "a table")


def _get(table: Any, keys: list[str]) -> Any:
    for key in keys:
        table = table.get(key) if isinstance(table, dict) else None
    return table


def _set(table: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    for key in keys[:-1]:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise ValueError(f"'{override}': '{key}' is not a table")
    table[keys[-1]] = value


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace(
            "\x7f", "\\u007f"
        )  # JSON's escapes are TOML's, but for DEL
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_toml(key)} = {_toml(each)}" for key, each in value.items()) + " }"
    return repr(value)
