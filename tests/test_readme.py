"""The documents' commands, files and recipes exist."""

import re
import shlex
import tomllib
from dataclasses import asdict
from pathlib import Path

import pytest
from typer.main import get_command

from kwise.cli import app

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = "\n".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)


def commands() -> list[str]:
    blocks = re.findall(r"```\n(.*?)```", TEXT, re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return sorted({line for line in lines if re.match(r"(\.venv/bin/)?kwise ", line)})


def test_there_are_commands_to_check():
    assert len(commands()) >= 4


@pytest.mark.parametrize("line", commands())
def test_every_command_shown_is_one_that_the_program_takes(line):
    _, *words = shlex.split(line)
    command = get_command(app)
    while words and hasattr(command, "commands") and words[0] in command.commands:
        command = command.commands[words.pop(0)]
    assert not hasattr(command, "commands"), f"no such command: {line}"
    command.make_context("kwise", words)  # raises for an unknown option or a missing argument


@pytest.mark.parametrize("path", sorted(set(re.findall(r"(?:kwise|docs|recipes|benchmarks|tests)/[\w./-]*\w", TEXT))))
def test_every_file_named_is_there(path):
    assert (ROOT / path).exists()


def test_every_make_target_named_is_there():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)`", TEXT)) <= targets


def test_the_recipe_shown_has_every_key_and_its_default():
    from kwise import KwiseConfig
    from kwise.train.recipe import Data, Model, Recipe

    (shown,) = re.findall(r"```toml\n(method.*?)```", (ROOT / "docs/4-train.md").read_text(encoding="utf-8"), re.DOTALL)
    table = tomllib.loads(shown)
    for name, value in table.pop("trainer").items():
        assert value == KwiseConfig.__dataclass_fields__[name].default, name
    least = Recipe(table["method"], table["output"], Data(table["data"]["train"]), Model(table["model"]["base"]))
    assert table == {name: value for name, value in asdict(least).items() if name != "trainer"}


def test_every_constraint_is_within_the_supported_range():
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(each for extra in project["optional-dependencies"].values() for each in extra),
    ]
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(pins[requirement.name]), requirement
