"""Recipes: strict keys, every mistake at once, overrides, and what is written is what is read."""

import dataclasses
import tomllib
from pathlib import Path

import pytest

from kwise.train.recipe import Recipe, load_recipe

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted([*(ROOT / "recipes").glob("**/*.toml"), *(ROOT / "kwise" / "starter").glob("*.toml")])
SMALL = """
method = "head"
output = "runs/x"
[data]
train = ["a.jsonl"]
[model]
base = "smollm2"
"""


@pytest.fixture
def load(tmp_path):
    """``load(text, *overrides)``: the recipe in ``text``."""

    def load(text=SMALL, *overrides):
        file = tmp_path / "recipe.toml"
        file.write_text(text, encoding="utf-8")
        return load_recipe(file, overrides)

    return load


def mistakes(load, text=SMALL, *overrides):
    """The lines that the error has after the one that names the file."""
    with pytest.raises(ValueError, match=r"recipe\.toml:\n") as error:
        load(text, *overrides)
    return [line.strip() for line in str(error.value).splitlines()[1:]]


def test_a_small_recipe_is_filled_with_the_documented_defaults(load):
    recipe = load()
    assert (recipe.method, recipe.output, recipe.data.train, recipe.model.base) == (
        "head", "runs/x", ["a.jsonl"], "smollm2",
    )  # fmt: skip
    assert (recipe.objective, recipe.seed, recipe.fit_head_first, recipe.trainer) == ("plackett_luce", 42, False, {})
    assert (recipe.data.eval, recipe.data.source, recipe.data.max_length) == ([], "auto", 2048)
    assert (recipe.lora.r, recipe.lora.dropout, recipe.lora.target_modules) == (16, 0.0, [])


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("objectve=plackett_luce", "objective"),
        ("data.max_lenght=5", "data.max_length"),
        ("model.bas=x", "model.base"),
        ("lora.alfa=3", "lora.alpha"),
        ("trainer.lerning_rate=0.1", "trainer.learning_rate"),
        ("trainer.rankings_per_stp=4", "trainer.rankings_per_step"),
        ("modle.base=x", "model"),
    ],
)
def test_unknown_key_at_every_level_names_itself_and_the_nearest_known_one(load, override, nearest):
    key = "modle" if nearest == "model" else override.split("=")[0]
    assert mistakes(load, SMALL, override) == [f"{key}: no such key; did you mean '{nearest}'?"]


def test_unknown_key_like_no_other_lists_the_known_ones(load):
    (mistake,) = mistakes(load, SMALL, "model.zzzz=1")
    assert mistake == "model.zzzz: no such key; known: base, layers, chat_template, dtype, attention, quantize"


def test_all_mistakes_of_all_kinds_are_reported_at_once(load):
    text = """
metod = "head"
method = "heda"
seed = "one"
[data]
train = []
truncation = "middle"
max_lenght = 1
[model]
layers = 2.5
dtype = "float8"
[trainer]
lerning_rate = 0.1
max_length = 7
"""
    found = mistakes(load, text, "lora=5", "objective=listwise")
    for start in (
        "metod: no such key; did you mean 'method'?",
        "method: 'heda' is not one of head, lora, full",
        "seed: must be a whole number, this is 'one'",
        "data.train: name at least one file",
        "data.truncation: 'middle' is not one of left",
        "data.max_lenght: no such key; did you mean 'data.max_length'?",
        "model.layers: must be a whole number, this is 2.5",
        "model.base: is missing",
        "model.dtype: 'float8' is not one of float32, bfloat16, float16",
        "trainer.lerning_rate: no such key; did you mean 'trainer.learning_rate'?",
        "trainer.max_length: set 'data.max_length' instead",
        "lora: must be a table",
        "objective: 'listwise' is not one of plackett_luce, top1, all_pairs",
        "output: is missing",
    ):
        assert sum(line.startswith(start) for line in found) == 1, start
    assert len(found) == 14


def test_missing_keys_and_tables_are_named(load):
    assert sorted(mistakes(load, 'method = "head"\n[data]\neval = []')) == [
        "data.train: is missing",
        "model: is missing",
        "output: is missing",
    ]


@pytest.mark.parametrize(
    ("override", "mistake"),
    [
        ("method=3", "method: must be text, this is 3"),
        ("data.train=a.jsonl", "data.train: must be a list of text, this is 'a.jsonl'"),
        ('data.eval=["a", 1]', "data.eval: must be a list of text, this is ['a', 1]"),
        ("data.max_length=true", "data.max_length: must be a whole number, this is True"),
        ("data.max_length=5.0", "data.max_length: must be a whole number, this is 5.0"),
        ("fit_head_first=1", "fit_head_first: must be true or false, this is 1"),
        ("lora.dropout=none", "lora.dropout: must be a number, this is 'none'"),
        ("lora.dropout=false", "lora.dropout: must be a number, this is False"),
        ("trainer=fast", "trainer: must be a table, this is 'fast'"),
        ("data=3", "data: must be a table"),
    ],
)
def test_value_of_the_wrong_type_is_told_with_what_is_wanted(load, override, mistake):
    assert mistakes(load, SMALL, override) == [mistake]


def test_a_whole_number_is_a_fine_number(load):
    dropout = load(SMALL, "lora.dropout=0").lora.dropout
    assert (dropout, type(dropout)) == (0.0, float)


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("seed=7", "seed", 7),
        ("data.max_length = 512", "data.max_length", 512),
        ("output=runs/bare text", "output", "runs/bare text"),
        ('output="5"', "output", "5"),
        ("model.base=owner/name-1.5B", "model.base", "owner/name-1.5B"),
        ("model.chat_template=a=b", "model.chat_template", "a=b"),
        ("model.chat_template=", "model.chat_template", ""),
        ('data.train=["b.jsonl", "owner/name:train"]', "data.train", ["b.jsonl", "owner/name:train"]),
        ("fit_head_first=true", "fit_head_first", True),
        ("lora.dropout=1e-1", "lora.dropout", 0.1),
    ],
)
def test_override_sets_one_dotted_key_with_a_toml_value_or_bare_text(load, override, path, value):
    expected = dataclasses.asdict(load())
    *tables, key = path.split(".")
    table = expected
    for part in tables:
        table = table[part]
    table[key] = value
    assert dataclasses.asdict(load(SMALL, override)) == expected


def test_overrides_fill_tables_that_the_file_lacks_and_the_last_one_wins(load):
    recipe = load(SMALL, "trainer.learning_rate=1e-5", "trainer.max_steps=3", "trainer.max_steps=4")
    assert recipe.trainer == {"learning_rate": 1e-5, "max_steps": 4}


@pytest.mark.parametrize(
    ("override", "message"),
    [("seed", "'seed': an override is key=value"), ("method.x=1", "'method.x=1': 'method' is not a table")],
)
def test_override_that_cannot_be_one_is_refused(load, override, message):
    with pytest.raises(ValueError) as error:
        load(SMALL, override)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("key", "instead"),
    [
        ("objective", "objective"),
        ("objective_options", "objective_options"),
        ("max_length", "data.max_length"),
        ("truncation", "data.truncation"),
        ("seed", "seed"),
        ("attention", "model.attention"),
        ("output_dir", "output"),
    ],
)
def test_trainer_key_that_has_its_place_elsewhere_is_sent_there(load, key, instead):
    assert mistakes(load, SMALL, f"trainer.{key}=x") == [f"trainer.{key}: set '{instead}' instead"]


def test_a_trainer_key_that_would_be_refused_is_never_suggested(load):
    (mistake,) = mistakes(load, SMALL, "trainer.truncaton=left")
    assert "trainer.truncation'" not in mistake


def test_fields_of_training_arguments_and_of_kwise_are_legal_trainer_keys(load):
    keys = {"learning_rate": 1e-5, "warmup_steps": 3, "lr_scheduler_type": "constant", "rankings_per_step": 4}
    assert load(SMALL, *(f"trainer.{key}={value}" for key, value in keys.items())).trainer == keys


ODD = 'quote " backslash \\ tab \t newline \n return \r bell \x07 delete \x7f umlaut ü emoji \U0001f600'


def test_to_toml_reads_back_as_the_same_recipe(load, tmp_path):
    recipe = load(
        SMALL,
        "seed=7",
        'data.eval=["b.jsonl", "c d.jsonl"]',
        "lora.dropout=0.05",
        "fit_head_first=true",
        "trainer.learning_rate=1e-05",
        "trainer.bf16=false",
        "trainer.max_grad_norm=inf",
        'trainer.report_to=["tensorboard"]',
        "objective=all_pairs",
        "objective_options.smoothing=[0.3, 0.125]",
        "objective_options.centring=1e-3",
        'trainer.lr_scheduler_kwargs={num_cycles = 2, "odd. key" = {deep = "x"}}',
    )
    written = tmp_path / "again.toml"
    written.write_text(recipe.to_toml(), encoding="utf-8")
    again = load_recipe(written)
    assert again == recipe
    assert again.trainer["lr_scheduler_kwargs"] == {"num_cycles": 2, "odd. key": {"deep": "x"}}
    assert again.objective_options == {"smoothing": [0.3, 0.125], "centring": 0.001}
    assert isinstance(again, Recipe)


@pytest.mark.parametrize("text", [ODD, "", "{{ messages }}\n", "C:\\models\\new"])
def test_to_toml_keeps_every_character_of_a_text(load, text):
    recipe = load()
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, chat_template=text))
    assert load(recipe.to_toml()).model.chat_template == text


def test_to_toml_spells_out_every_default(load):
    table = tomllib.loads(load().to_toml())
    assert table["data"]["max_length"] == 2048
    assert table["lora"] == {"r": 16, "alpha": 32, "dropout": 0.0, "target_modules": []}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_recipe_loads(path):
    assert load_recipe(path).data.train


def test_the_demo_recipe_is_among_the_shipped_ones():
    assert ROOT / "kwise" / "starter" / "demo.toml" in SHIPPED


def test_a_file_that_is_not_there_is_told_in_words(tmp_path):
    with pytest.raises(ValueError, match=r"none\.toml: no such file"):
        load_recipe(tmp_path / "none.toml")


def test_a_file_that_is_not_toml_is_told_with_the_place(load):
    with pytest.raises(ValueError, match=r"recipe\.toml: not valid TOML: .*line 1"):
        load("method = head")


def test_options_that_the_objective_does_not_take_are_all_told_with_the_other_mistakes(load):
    overrides = ["objective=all_pairs", "objective_options={smoothing = 0.5, gap_weigths = [1]}", "seed=-1"]
    assert sorted(mistakes(load, SMALL, *overrides)) == [
        "objective_options.gap_weigths: 'all_pairs' takes only gap_weights, smoothing, centring; did you mean 'gap_weights'?",
        "objective_options.smoothing: must be a number of at least 0 and below 0.5, this is 0.5",
        "seed: must be between 0 and 4294967295, this is -1",
    ]
    # the default objective has options too, and those of another are not its own
    assert mistakes(load, SMALL, "objective_options.top=0") == [
        "objective_options.top: must be a whole number of at least 1, this is 0"
    ]
    assert mistakes(load, SMALL, "objective_options.tie_rate=0.2") == [
        "objective_options.tie_rate: 'plackett_luce' takes only top, stage_weights, centring"
    ]
    assert mistakes(load, SMALL, "objective_options=3") == ["objective_options: must be a table, this is 3"]


@pytest.mark.parametrize(
    ("override", "mistake"),
    [
        ("seed=-1", "seed: must be between 0 and 4294967295, this is -1"),
        ("data.max_length=1", "data.max_length: must be at least 2, this is 1"),
        ("model.layers=-1", "model.layers: must be at least 0, this is -1"),
        ("lora.r=0", "lora.r: must be at least 1, this is 0"),
        ("output=", "output: is empty"),
        ("model.base=", "model.base: is empty"),
        ("trainer.bf16=no", "trainer.bf16: must be true or false, this is 'no'"),
        ("trainer.learning_rate=fast", "trainer.learning_rate: must be a number, this is 'fast'"),
        ("trainer.rankings_per_step=1.5", "trainer.rankings_per_step: must be a whole number, this is 1.5"),
        ("trainer.save_total_limit=all", "trainer.save_total_limit: must be a whole number, this is 'all'"),
        ("trainer.num_train_epochs=0", "trainer.num_train_epochs: must be more than 0, this is 0"),
        (
            "trainer.resume_from_checkpoint=x",
            "trainer.resume_from_checkpoint: leave it out; a run goes on from its newest checkpoint by itself",
        ),
    ],
)
def test_a_value_out_of_range_is_told_before_there_is_a_run_folder(load, override, mistake):
    assert mistakes(load, SMALL, override) == [mistake]


def test_epochs_do_not_matter_where_steps_are_given(load):
    assert load(SMALL, "trainer.num_train_epochs=0", "trainer.max_steps=3").trainer["max_steps"] == 3


@pytest.mark.parametrize(
    ("overrides", "mistake"),
    [
        (["fit.layers=[0]"], "fit.layers: must be at least 1, this has 0"),
        (["fit.layers=[2, 9]", "model.layers=8"], "fit.layers: must be between 1 and model.layers = 8, this has 9"),
        (["fit.layers=[2, 3, 2]"], "fit.layers: [2, 3, 2] names a layer twice"),
        (['fit.layers=["2"]'], "fit.layers: must be a list of whole numbers, this is ['2']"),
        (['fit.covariates=["x=a", "x=b"]'], "fit.covariates: ['x=a', 'x=b'] names one twice"),
        (['fit.covariates=["=a"]'], "fit.covariates: covariate '=a': give a name and a pattern"),
        (['fit.covariates=["x=("]'], "fit.covariates: covariate 'x': '(' is no regular expression: "),
        (
            ['fit.covariates=["length"]', "method=lora"],
            "fit.covariates: are of the head fit; set fit_head_first = true, or method = 'head'",
        ),
    ],
)
def test_what_the_head_fit_cannot_do_is_told_when_the_recipe_is_read(load, overrides, mistake):
    (found,) = mistakes(load, SMALL, *overrides)
    assert found.startswith(mistake)


def test_an_unknown_covariate_is_told_with_the_known_ones(load):
    (found,) = mistakes(load, SMALL, 'fit.covariates=["lenght"]')
    assert found.startswith("fit.covariates: unknown covariate 'lenght'; known: length, lists")
