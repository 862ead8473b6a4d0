"""Rankings as a regression on features: the rows of a design matrix, standardised and streamed in chunks of whole rankings."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch

CHUNK = 2**25  # numbers in a chunk: 256 MB in float64
IN_MEMORY = 2**31  # bytes of float64 up to which the standardised chunks are kept between sweeps


@dataclass(frozen=True)
class Design:
    """L rankings over D distinct responses.

    ``features`` [D, d] (any float dtype, may be memory-mapped) hold a response's features, ``places[i][k]`` says which row
    is response k of ranking i, ``ranks[i][k]`` its rank, ``groups[i]`` the prompt. ``covariates`` [D, c] enter the utility
    beside the features (``kwise.data.covariates``); none by default.
    """

    features: np.ndarray
    places: Sequence[Sequence[int]]
    ranks: Sequence[Sequence[float]]
    groups: Sequence[str]
    covariates: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))

    @property
    def num_features(self) -> int:
        """d."""
        return int(self.features.shape[1])

    @property
    def width(self) -> int:
        """d + c."""
        return self.num_features + int(self.covariates.shape[1])

    def take(self, rankings: Sequence[int]) -> "Design":
        """Those rankings, over the same features."""
        return replace(
            self,
            places=[self.places[i] for i in rankings],
            ranks=[self.ranks[i] for i in rankings],
            groups=[self.groups[i] for i in rankings],
        )

    def chunks(self) -> Iterator[tuple[torch.Tensor, list[int]]]:
        """([r, d + c] rows of whole rankings, copied, which rankings), as many at a time as ``CHUNK`` allows, the shortest of
        them first. The rows have the features' dtype, with covariates float64."""
        own: list[int] = []
        rows = 0
        for i, places in enumerate(self.places):
            if own and (rows + len(places)) * self.width > CHUNK:
                yield self._read(own)
                own, rows = [], 0
            own.append(i)
            rows += len(places)
        if own:
            yield self._read(own)

    def _read(self, rankings: Sequence[int]) -> tuple[torch.Tensor, list[int]]:
        own = sorted(rankings, key=lambda i: len(self.places[i]))
        at = [place for i in own for place in self.places[i]]
        x = torch.from_numpy(self.features[at])
        return torch.cat([x.double(), torch.from_numpy(self.covariates[at])], 1) if self.covariates.shape[1] else x, own


class Scaling(NamedTuple):
    """What makes a design's columns comparable: ``mean`` and ``scale`` [d + c] over the rankings' responses (scale 1 for a
    constant column) and ``level`` [d + c], the direction in which a head moves the mean reward of these responses.

    A bias-free head cannot be centred afterwards, the likelihood does not care, and an offset of hundreds would cost
    float32 scores their last digits. So heads are kept orthogonal to ``level`` (one of d dimensions), which makes the mean
    reward 0. Where that direction is at most one standard deviation long, as with features that are centred already, the
    offset is small, the direction is noise and ``level`` is 0.
    """

    mean: np.ndarray
    scale: np.ndarray
    level: np.ndarray


def scaling(design: Design) -> Scaling:
    """The scaling of ``design``, in one pass (means and deviations merged over chunks as Chan, Golub and LeVeque do).

    Raises ``ValueError`` where a feature is NaN or infinite.
    """
    count = 0
    mean, square = np.zeros(design.width), np.zeros(design.width)
    low, high = np.full(design.width, np.inf), np.full(design.width, -np.inf)
    for chunk, _ in design.chunks():
        x = chunk.double().numpy()
        if not np.isfinite(x).all():
            row, column = np.argwhere(~np.isfinite(x))[0]
            raise ValueError(
                f"feature {column} is {x[row, column]} for one of the responses: the backbone's weights are broken, or its "
                "precision is too low"
            )
        own = x.mean(0)
        gap = own - mean
        total = count + len(x)
        square += np.square(x - own).sum(0) + gap**2 * (count * len(x) / total)
        mean += gap * (len(x) / total)
        count = total
        low, high = np.minimum(low, x.min(0)), np.maximum(high, x.max(0))
    scale = np.sqrt(square / count)
    scale[high == low] = 1.0  # by range: rounding gives a constant column a tiny deviation, not zero
    level = mean / scale  # the mean reward of a head w over standardised features is w @ level, and a constant
    level[design.num_features :] = 0.0  # covariates are left out of rewards
    size = float(np.linalg.norm(level))
    return Scaling(mean, scale, level / size if size > 1 else np.zeros_like(level))


class Chunk(NamedTuple):
    """Whole rankings, those of one length side by side: ``z`` [r, d + c] standardised rows, the covariates less their mean in the
    ranking, ``ranks`` [r], ``lists`` [r] (the number of the ranking in its design), ``sizes`` [L], all on one device; float64
    where they are no integers."""

    z: torch.Tensor
    ranks: torch.Tensor
    lists: torch.Tensor
    sizes: torch.Tensor


class Standardised:
    """A design under a scaling, ready to be swept again and again. Small ones are kept in memory, large ones read anew."""

    def __init__(self, design: Design, by: Scaling, device: str = "cpu", keep: bool = True) -> None:
        self.design, self.by, self.device = design, by, device
        self.num_responses = sum(map(len, design.places))
        fits = 8 * design.width * self.num_responses <= IN_MEMORY
        self._kept = list(self._read()) if keep and fits else None

    def __iter__(self) -> Iterator[Chunk]:
        return iter(self._kept) if self._kept is not None else self._read()

    def _read(self) -> Iterator[Chunk]:
        mean, scale = (torch.from_numpy(each).to(self.device) for each in (self.by.mean, self.by.scale))
        for x, own in self.design.chunks():
            # in place, on all threads: what large features cost is memory traffic
            z = x.to(self.device).double().sub_(mean).div_(scale)
            sizes = torch.tensor([len(self.design.places[i]) for i in own], device=self.device)
            ranks = [rank for i in own for rank in self.design.ranks[i]]
            lists = torch.repeat_interleave(torch.tensor(own, device=self.device), sizes)
            _sum_to_zero(z[:, self.design.num_features :], sizes)
            yield Chunk(z, torch.tensor(ranks, dtype=torch.float64, device=self.device), lists, sizes)


def _sum_to_zero(covariates: torch.Tensor, sizes: torch.Tensor) -> None:
    """Take each ranking's mean off its rows of ``covariates`` [r, c], in place: no likelihood of rankings cares about their
    level, and ``centring_penalty`` is then of what the features explain, which is what will be scored."""
    owner = torch.repeat_interleave(torch.arange(len(sizes), device=sizes.device), sizes)
    sums = covariates.new_zeros(len(sizes), covariates.shape[1]).index_add_(0, owner, covariates)
    covariates -= (sums / sizes[:, None])[owner]
