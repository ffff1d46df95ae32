"""The six stages. Each module has `run(spec, inputs, out) -> record`: its measurements, as values for JSON.

The training of a generator has a record at every mark, which it writes itself.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

from study.core.workspace import Record, Workspace
from study.plan.stage import Stage


def function(kind: str) -> Callable[..., Record]:
    """The `run` of a stage, imported on demand: planning needs none of them, and importing torch takes seconds."""
    return importlib.import_module(f"study.stages.{kind}").run


def execute(stage: Stage, out: Workspace) -> Record:
    """Run one stage whose inputs are done."""
    return function(stage.kind)(stage.spec, stage.inputs, out)
