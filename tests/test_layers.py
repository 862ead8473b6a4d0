"""The folders are the flow: what may import what, read from the syntax tree, so that lazy imports count too."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import kwise

PACKAGE = Path(__file__).resolve().parents[1] / "kwise"
MAY_IMPORT = {
    "records": set(),
    "data": {"records", "data"},
    "model": {"records", "data", "model"},
    "objective": {"records", "data", "model", "objective"},
    "losses": {"objective"},
    "train": {"records", "data", "model", "objective", "train"},
    "use": {"records", "data", "model", "objective", "use"},
}
KNOW_ALL = {"cli", "demo", "__init__"}


def imported(source, package):
    """The parts of kwise that ``source``, in ``package``, imports anywhere: ``records``, ``data``, ...; ``""`` is kwise."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            home = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*home, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names] if base == "kwise" else [base]
        elif (
            isinstance(node, ast.Call)
            and getattr(node.func, "attr", getattr(node.func, "id", None)) in ("import_module", "__import__")
            and isinstance(node.args[0], ast.Constant)
        ):
            names = [node.args[0].value]
        found |= {f"{name}.".split(".")[1] for name in names if f"{name}.".startswith("kwise.")}
    return found


def modules():
    return sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("module", modules(), ids=str)
def test_module_imports_only_what_its_place_in_the_flow_allows(module):
    part = module.parts[0].removesuffix(".py")
    if part in KNOW_ALL:
        return
    package = ".".join(["kwise", *module.parts[:-1]])
    assert part in MAY_IMPORT, f"{module} has no place in the flow"
    forbidden = imported((PACKAGE / module).read_text(encoding="utf-8"), package) - MAY_IMPORT[part]
    assert not forbidden, f"{module} imports {sorted(forbidden)}"


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("import kwise.train.recipe", "train"),
        ("import kwise", ""),
        ("from kwise import losses", "losses"),
        ("from kwise.use.score_file import score_file", "use"),
        ("def f():\n    if True:\n        from kwise.model import backbone", "model"),
        ("from ..train import run", "train"),
        ("from .sources import read_rankings", "data"),
        ("from .. import cli", "cli"),
        ("importlib.import_module('kwise.objective.head')", "objective"),
    ],
)
def test_the_reader_of_imports_sees_every_way_to_import(line, part):
    assert imported(line, "kwise.data") == {part}


def test_importing_kwise_loads_no_heavy_package():
    heavy = ("torch", "transformers", "numpy", "scipy", "datasets", "peft", "pyarrow", "typer")
    code = f"import sys, kwise; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert done.stdout.strip() == "[]"


def test_a_star_import_gives_the_public_names_and_no_others():
    names: dict[str, object] = {}
    exec("from kwise import *", names)
    del names["__builtins__"]
    assert sorted([*names, "__version__"]) == dir(kwise)


def test_no_module_is_a_drawer_for_leftovers():
    assert [
        path for path in modules() if path.name in ("utils.py", "util.py", "helpers.py", "common.py", "misc.py")
    ] == []


@pytest.mark.parametrize(
    "package", sorted(path.parent.relative_to(PACKAGE) for path in PACKAGE.glob("**/__init__.py")), ids=str
)
def test_every_package_says_what_each_of_its_modules_is_for(package):
    if package.name in ("", "cli", "bindings"):  # a module a stage, a module a trainer: their names say it
        return
    said = ast.get_docstring(ast.parse((PACKAGE / package / "__init__.py").read_text(encoding="utf-8"))) or ""
    here = {path.stem for path in (PACKAGE / package).glob("*.py")} - {"__init__"}
    if package.name == "objective":
        from kwise.objective import OBJECTIVES

        here -= OBJECTIVES.keys()
    words = set(re.findall(r"``(\w+)(?:\.py)?``", said))
    assert here <= words
