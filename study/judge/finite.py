"""A number that is not finite is an error and never a result."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class MetricError(ArithmeticError):
    """A metric that cannot be trusted: not finite, or two formulas disagree."""


def check_finite(values: Tensor, what: str) -> None:
    """MetricError unless all values (N, D) are finite, which says of how many images they are not."""
    bad = len(values) - int(torch.isfinite(values).all(dim=1).sum())
    if bad:
        raise MetricError(f"{what} of {bad} of {len(values)} images are not finite")


def checked(values: dict[str, float]) -> dict[str, float]:
    """The same numbers by name; MetricError names the first that is not finite."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise MetricError(f"{name} is not finite: {value}")
    return values
