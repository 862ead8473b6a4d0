"""kwise: rankings into reward models, reward models into answers.

The folders are the flow: ``data`` (rankings -> rows), ``model`` (rows -> rewards), ``objective`` (rewards -> a number),
``train`` (a number -> a checkpoint), ``use`` (a checkpoint -> answers). Read ``records.py`` first.

Public names are loaded on first use, so that ``import kwise`` stays light (no torch).
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

__version__ = version("kwise")
__all__ = ["DataError", "KwiseConfig", "KwiseTrainer", "Ranking", "RewardModel", "losses", "read_rankings"]

_HOME = {
    "Ranking": "kwise.records",
    "DataError": "kwise.records",
    "read_rankings": "kwise.data.sources",
    "RewardModel": "kwise.model.reward_model",
    "KwiseConfig": "kwise.train.config",
    "KwiseTrainer": "kwise.train.trainer",
}

if TYPE_CHECKING:
    from kwise import losses
    from kwise.data.sources import read_rankings
    from kwise.model.reward_model import RewardModel
    from kwise.records import DataError, Ranking
    from kwise.train.config import KwiseConfig
    from kwise.train.trainer import KwiseTrainer


def __getattr__(name: str) -> Any:
    if name == "losses":
        return import_module("kwise.losses")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'kwise' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
