"""What ``kwise calibrate`` found out about a model's rewards, kept in ``kwise.json``, and what it does to a reward."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Calibration:
    """A calibrated reward is ``(reward - length_slope * log(1 + characters) - centre) / temperature``: differences are log-odds
    that held on held-out rankings, and the mean is 0 there. The defaults leave a reward as it is.

    ``temperature_error`` and ``length_slope_error`` are standard errors, clustered by prompt; ``length_slope`` is nats a unit of
    log(1 + characters), 0 without length calibration. ``rankings`` and ``pairs`` (of different rank) say how many it was fitted
    to, ``data`` of which files, ``figures`` what it changed (``kwise.objective.calibration.figures``, before and after).
    Raises ``ValueError`` for numbers that cannot be applied.
    """

    temperature: float = 1.0
    centre: float = 0.0
    length_slope: float = 0.0
    temperature_error: float | None = None
    length_slope_error: float | None = None
    rankings: int = 0
    pairs: int = 0
    data: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        numbers = {"temperature": self.temperature, "centre": self.centre, "length_slope": self.length_slope}
        for name, value in numbers.items():
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"calibration: {name} must be a finite number, this is {value!r}")
        if self.temperature <= 0:
            raise ValueError(f"calibration: temperature must be above 0, this is {self.temperature}")

    def apply(self, rewards: Sequence[float], lengths: Sequence[int]) -> list[float]:
        """Calibrated rewards of responses with ``lengths`` characters."""
        return [
            (reward - self.length_slope * math.log1p(length) - self.centre) / self.temperature
            for reward, length in zip(rewards, lengths, strict=True)
        ]
