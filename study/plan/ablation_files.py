"""The modules in ablations/, by name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from types import ModuleType

from models.names import nearest


def ablation_names() -> list[str]:
    """Names of all ablations, sorted."""
    folder = importlib.import_module("ablations").__path__  # not an import statement: ablations import this package
    return sorted(module.name for module in pkgutil.iter_modules(folder) if not module.ispkg)


def ablation(name: str, also_valid: Iterable[str] = ()) -> ModuleType:
    """The module of an ablation; ValueError if there is none, suggesting similar names, also from `also_valid`."""
    if name not in (names := ablation_names()):
        raise ValueError(f"unknown ablation {name!r}; {nearest(name, (*names, *also_valid))}")
    return importlib.import_module(f"ablations.{name}")
