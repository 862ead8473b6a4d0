"""How sure a reward is: the covariance of the head, kept beside the model, and what follows from it for rewards."""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

FILE = "uncertainty.kwise"  # in the safetensors format, but servers load every *.safetensors of a folder as weights
NODES = torch.linspace(-8.5, 8.5, 513, dtype=torch.float64)  # for means under a standard normal


@dataclass(frozen=True)
class Uncertainty:
    """``root`` [d, q] with root @ root.T the covariance of the head over raw features, ``reference`` [d] the vector v of arXiv
    2301.11270's Algorithm 1, against which a reward is measured (the mean feature of the training responses), ``head`` [d] the
    weights it is of, all float32; ``facts`` says where they come from (``kind``, ``rankings``, ``prompts``, ``ridge``)."""

    root: torch.Tensor
    reference: torch.Tensor
    head: torch.Tensor
    facts: dict[str, Any]

    def errors(self, features: torch.Tensor) -> torch.Tensor:
        """[R, d] features -> [R] ||phi - v|| in the norm of the covariance: for ``kind`` fisher and sandwich the standard error
        of the reward relative to v's, in nats."""
        return self._spread(features).square().sum(1).sqrt()

    def difference_errors(self, features: torch.Tensor) -> torch.Tensor:
        """[K, d] features -> [K, K] the same of the difference of two rewards, in which v has no part."""
        spread = self._spread(features).double()
        return torch.cdist(spread, spread)

    def _spread(self, features: torch.Tensor) -> torch.Tensor:
        root, reference = (each.to(features.device) for each in (self.root, self.reference))
        with torch.autocast(features.device.type, enabled=False):
            return (features.float() - reference) @ root

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``uncertainty.kwise`` into a model folder: 4 d^2 bytes. Other tools ignore it."""
        path = Path(folder, FILE)
        unfinished = path.with_suffix(".unfinished")
        tensors = {name: getattr(self, name).contiguous() for name in ("root", "reference", "head")}
        save_file(tensors, unfinished, metadata={"facts": json.dumps(self.facts)})
        unfinished.rename(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], head: torch.Tensor) -> "Uncertainty":
        """Read what ``save`` wrote. Raises ``ValueError`` where it is damaged and where it does not belong to ``head`` [1, d],
        compared in bfloat16 so that a model's dtype does not matter: a model trained on since then has another uncertainty."""
        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads(file.metadata()["facts"])
                found = cls(file.get_tensor("root"), file.get_tensor("reference"), file.get_tensor("head"), facts)
        except SafetensorError as error:
            raise ValueError(
                f"{path} is damaged ({error}): make it anew with 'kwise uncertainty', or remove it"
            ) from error
        own = head.detach().cpu().bfloat16()[0]
        dtypes = (torch.float32, torch.float16)  # a head that was float16 on the way is rounded twice
        if not any(torch.equal(found.head.to(dtype).bfloat16(), own) for dtype in dtypes):
            raise ValueError(
                f"{path} belongs to another head than this model's: make it anew with 'kwise uncertainty', or remove it"
            )
        return found


def check_bound(c: float) -> None:
    """Raise ``ValueError`` for a number of errors to take off that makes no lower bound."""
    if not 0 <= c < math.inf:
        raise ValueError(f"a lower bound is c >= 0 errors below the score, this c is {c}")


def win_probability(difference: torch.Tensor, error: torch.Tensor) -> torch.Tensor:
    """P(a beats b) under Bradley-Terry where the reward difference is normal with mean ``difference`` and deviation ``error``
    (any one shape, nats): the mean of sigmoid(difference), in float64 by the trapezium rule, which is good to
    1e-8 for errors up to 20.

    Doubt pulls it toward one half; with no error it is the plain sigmoid.
    """
    density = torch.exp(-NODES.square() / 2)
    drawn = difference.double()[..., None] + error.double()[..., None] * NODES
    return torch.sigmoid(drawn) @ (density / density.sum())
