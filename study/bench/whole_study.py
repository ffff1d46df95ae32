"""Core seconds of a small study by stage, beside those that were kept for the same kind of machine.

The study is the frontier ablation at desk scale with an eighth of its training images and fewer samples, run from an
empty study root by the same command as any other.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from study.core.compute import cores, processor
from study.core.files import read_json, write_json
from study.core.paths import CHECKOUT, study_root
from study.core.provenance import commit
from study.data.datasets import resolve_data
from study.plan.scales import desk
from study.plan.weight_files import weights_folder

SETTINGS = (
    "tokenizer.budget_images=1200", "generator.budget_images=2560", "generator.snapshot_images=2560",
    "sampling.samples=1250", "evaluation.reference_images=1250", "evaluation.reconstruct_images=1250",
)  # fmt: skip
KEPT = Path(__file__).with_name("core_seconds.json")  # by `machine()`
TOTAL, OTHERS = "the whole command", "plan, start of jobs, table, figures, page"


@dataclass(frozen=True, kw_only=True)
class StudyCost:
    """core_seconds: processor time by stage, as in its records; of TOTAL that of all processes; of OTHERS what is no
    stage's."""

    seconds: float
    core_seconds: dict[str, float]
    commit: str


def machine() -> str:
    return f"{cores()} cores of {processor()}"


def kept() -> StudyCost | None:
    """What was kept for this kind of machine, if anything."""
    found = (read_json(KEPT) or {}).get(machine())
    return StudyCost(**found) if found else None


def keep(cost: StudyCost) -> None:
    """Keep it for this kind of machine, in a file of the checkout."""
    write_json(KEPT, dict(sorted({**(read_json(KEPT) or {}), machine(): asdict(cost)}.items())))


def study_cost(ablation: str = "frontier", settings: Iterable[str] = SETTINGS) -> StudyCost:
    """Run the study in a temporary folder.

    Raises:
        RuntimeError: it ended with an error; the message is its last line.
    """
    scale = desk()
    resolve_data(scale.data, scale.resolution, pack=True)  # as in most studies, the data is there already
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "data").symlink_to(study_root() / "data")
        command = [sys.executable, "-m", "study.sweep", ablation, "--scale", "desk", "--out", name]
        for setting in settings:
            command += ["--set", setting]
        environment = {**os.environ, "STUDY_ROOT": name, "STUDY_WEIGHTS": str(weights_folder())}
        before, started = _processor_seconds(), time.monotonic()
        ended = subprocess.run(
            command, cwd=CHECKOUT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            check=False,
        )  # fmt: skip
        seconds, used = time.monotonic() - started, _processor_seconds() - before
        if ended.returncode:
            raise RuntimeError(f"the study failed: {(ended.stdout.strip().splitlines() or ['it gave no reason'])[-1]}")
        by_stage = core_seconds(json.loads(path.read_text()) for path in root.glob("stages/*/*/record*.json"))
    others = used - sum(by_stage.values())
    return StudyCost(seconds=seconds, core_seconds={**by_stage, OTHERS: others, TOTAL: used}, commit=commit())


def _processor_seconds() -> float:
    """Of all processes that this one started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def core_seconds(records: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Core seconds by stage, those of judges by judge and by what they judge, the most expensive first."""
    found: dict[str, float] = {}
    for record in records:
        name = record["stage"]
        if name == "judge":
            (pictures,) = record["inputs"]
            name = f"judge, {pictures} by {record['spec']['judge']['name']}"
        found[name] = found.get(name, 0.0) + record["core_seconds"]
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def table(cost: StudyCost, before: StudyCost | None) -> Table:
    """A line per stage, and beside it what was kept."""
    lines = Table(box=None, pad_edge=False)
    lines.add_column("core seconds")
    for column in ("here", *(["kept", "here / kept"] if before else [])):
        lines.add_column(column, justify="right")
    for name, seconds in cost.core_seconds.items():
        cells = [f"{seconds:,.1f}"]
        if before and (earlier := before.core_seconds.get(name)):
            cells += [f"{earlier:,.1f}", f"{seconds / earlier:.2f}"]
        lines.add_row(name, *cells)
    return lines
