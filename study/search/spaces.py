"""The parameters that a search varies, with their ranges; a space is a module that turns their values into a run."""

from __future__ import annotations

import dataclasses
import importlib
import math
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from models.names import nearest
from results.searches import Parameter
from study.plan.scales import Scale

if TYPE_CHECKING:
    from optuna import Trial
    from optuna.distributions import BaseDistribution


DIGITS = 2  # significant digits of a tried number, so that equal configurations can recur

Values = Mapping[str, Any]  # parameter name: value


@dataclass(frozen=True, kw_only=True)
class Number:
    """A range of numbers, ends included; of integers if both ends are. `default` is the scale's own value."""

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
        """The value to try for a proposed number: rounded to DIGITS; the default is not rounded."""
        if self.whole:
            return int(drawn)
        if math.isclose(drawn, self.default, rel_tol=1e-9):
            return self.default
        return min(max(float(f"{drawn:.{DIGITS}g}"), self.low), self.high)

    def contains(self, value: Any) -> bool:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and self.low <= value <= self.high and (not self.whole or isinstance(value, int))

    def as_parameter(self) -> Parameter:
        return Parameter(label=self.label, low=self.low, high=self.high, log=self.log)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A categorical parameter with two or more choices."""

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

    def contains(self, value: Any) -> bool:
        return value in self.choices

    def as_parameter(self) -> Parameter:
        return Parameter(label=self.label, choices=self.choices)


Dimension = Number | Choice


def spaces() -> list[str]:
    """Names of all spaces."""
    folder = importlib.import_module("ablations.spaces").__path__  # by name, because spaces import this package
    return sorted(module.name for module in pkgutil.iter_modules(folder))


def space(name: str) -> ModuleType:
    """The module of a space; ValueError with the nearest names when there is none."""
    if name not in spaces():
        raise ValueError(f"unknown space {name!r}; {nearest(name, spaces())}")
    return importlib.import_module(f"ablations.spaces.{name}")


def changed(scale: Scale, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, keyed by dotted field, that differ from the scale's own."""

    def current(key: str) -> Any:
        value: Any = scale
        for field in key.split("."):
            value = None if value is None else getattr(value, field)  # a group of fields that is off
        return value

    return {key: value for key, value in values.items() if value != current(key)}


def declaration(dimensions: Mapping[str, Dimension], objectives: tuple[str, ...]) -> dict[str, Any]:
    """Everything that identifies a space, as JSON values."""
    parameters = {name: {"type": type(d).__name__, **dataclasses.asdict(d)} for name, d in dimensions.items()}
    return {"dimensions": parameters, "objectives": list(objectives)}
