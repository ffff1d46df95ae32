"""Checks that numbers are finite: one that is not is an error, never a result."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class MetricError(ArithmeticError):
    """A metric that cannot be trusted: not finite, or two formulas disagree."""


def check_finite(values: Tensor, what: str) -> None:
    """MetricError, with the number of affected images, unless all values (N, D) are finite."""
    bad = len(values) - int(torch.isfinite(values).all(dim=1).sum())
    if bad:
        raise MetricError(f"{what} of {bad} of {len(values)} images are not finite")


def checked(values: dict[str, float]) -> dict[str, float]:
    """Return `values`; MetricError with the name of the first value that is not finite."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise MetricError(f"{name} is not finite: {value}")
    return values
