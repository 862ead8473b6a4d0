"""What an objective's options may hold, and how a list of values is read by number."""

import math
from collections.abc import Callable, Sequence
from numbers import Real

import torch

Legal = Callable[[float], bool]


def check_number(name: str, value: object, words: str, legal: Legal) -> None:
    """Raise ``ValueError`` unless ``value`` is a finite number and ``legal``, which ``words`` puts in words."""
    if not _is_number(value, legal):
        raise ValueError(f"{name}: must be a number {words}, this is {value!r}")


def check_numbers(name: str, values: object, words: str, legal: Legal) -> None:
    """Raise ``ValueError`` unless ``values`` are one or more such numbers in a list or tuple."""
    if not (isinstance(values, list | tuple) and values and all(_is_number(value, legal) for value in values)):
        raise ValueError(f"{name}: must be numbers {words} in a list, this is {values!r}")


def check_weights(name: str, values: object) -> None:
    """Raise ``ValueError`` unless ``values`` are weights: none negative, at least one above 0."""
    check_numbers(name, values, "of at least 0", lambda value: value >= 0)
    assert isinstance(values, list | tuple)
    if not any(values):
        raise ValueError(f"{name}: at least one weight must be above 0, these are {values!r}")


def by_number(values: Sequence[float], number: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The value for each ``number`` (whole, from 1): the first is that of 1, the last one goes on."""
    return torch.tensor(values, dtype=dtype, device=number.device)[number.clamp(max=len(values)) - 1]


def _is_number(value: object, legal: Legal) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value) and legal(float(value))
