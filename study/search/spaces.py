"""What a search varies: parameters with their ranges, and a space that makes a run of a value for each."""

from __future__ import annotations

import dataclasses
import importlib
import math
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from results.searches import Parameter
from study.core.settings import nearest
from study.plan.scales import Scale

if TYPE_CHECKING:
    from optuna import Trial
    from optuna.distributions import BaseDistribution


DIGITS = 2  # significant ones of a number, so that configurations can come again

Values = Mapping[str, Any]  # by name of the parameter


@dataclass(frozen=True, kw_only=True)
class Number:
    """A range, ends included; of whole numbers where both ends are. `default` is what the scale has."""

    label: str
    low: float
    high: float
    default: float
    log: bool = False

    def __post_init__(self) -> None:
        if not (0 if self.log else -math.inf) < self.low < self.high:
            raise ValueError(f"{self.label}: no range from {self.low} to {self.high}{' for a logarithm' * self.log}")
        if not self.low <= self.default <= self.high:
            raise ValueError(f"{self.label}: the scale's {self.default} is not within {self.low} to {self.high}")

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)

    def suggest(self, trial: Trial, name: str) -> None:
        if self.whole:
            trial.suggest_int(name, int(self.low), int(self.high), log=self.log)
        else:
            trial.suggest_float(name, self.low, self.high, log=self.log)

    def value(self, drawn: float) -> float:
        """What is tried for a number that was drawn: with few digits, and the default as it is."""
        if self.whole:
            return int(drawn)
        if math.isclose(drawn, self.default, rel_tol=1e-9):
            return self.default
        return min(max(float(f"{drawn:.{DIGITS}g}"), self.low), self.high)

    def has(self, value: Any) -> bool:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and self.low <= value <= self.high and (not self.whole or isinstance(value, int))

    def declared(self) -> Parameter:
        return Parameter(label=self.label, low=self.low, high=self.high, log=self.log)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One of several, two or more."""

    label: str
    choices: tuple[Any, ...]
    default: Any

    def __post_init__(self) -> None:
        if self.default not in self.choices or len(self.choices) < 2:
            raise ValueError(f"{self.label}: {self.default!r} must be one of two or more choices, got {self.choices}")

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.choices)

    def suggest(self, trial: Trial, name: str) -> None:
        trial.suggest_categorical(name, self.choices)

    def value(self, drawn: Any) -> Any:
        return drawn

    def has(self, value: Any) -> bool:
        return value in self.choices

    def declared(self) -> Parameter:
        return Parameter(label=self.label, choices=self.choices)


Dimension = Number | Choice


def spaces() -> list[str]:
    """Names of all spaces."""
    folder = importlib.import_module("ablations.spaces").__path__  # by name: spaces import this package
    return sorted(module.name for module in pkgutil.iter_modules(folder))


def space(name: str) -> ModuleType:
    """The module of a space; ValueError with the nearest names when there is none."""
    if name not in spaces():
        raise ValueError(f"unknown space {name!r}; {nearest(name, spaces())}")
    return importlib.import_module(f"ablations.spaces.{name}")


def changed(scale: Scale, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the wanted values, by dotted field, that the scale has not."""

    def current(key: str) -> Any:
        value: Any = scale
        for part in key.split("."):
            value = getattr(value, part)
        return value

    return {key: value for key, value in wanted.items() if value != current(key)}


def declaration(dimensions: Mapping[str, Dimension], objectives: tuple[str, ...]) -> dict[str, Any]:
    """What makes two spaces the same one, JSON-able."""
    parts = {name: {"type": type(d).__name__, **dataclasses.asdict(d)} for name, d in dimensions.items()}
    return {"dimensions": parts, "objectives": list(objectives)}
