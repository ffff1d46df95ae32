"""The list of ablations: a block for each, with its question, its factors and its cost at a scale."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from results.numbers import counted, duration
from study.core import compute
from study.core.compute import cores
from study.plan.ablation_files import ablation, ablation_names
from study.plan.estimate import device_of, estimated_seconds
from study.plan.factors import varied_factors
from study.plan.resolve import make_plan
from study.plan.runs import Plan
from study.report.console import console, in_hours
from study.submit.options import DEFAULT_ABLATION, Sweep
from study.submit.prepare import find_data, resolve_scale

MAX_WIDTH = 120  # columns, also on wider terminals
SHARED = "Trainings that ablations share are counted in each and done once; cost is of all stages."


def print_list(options: Sweep) -> None:
    """Print every ablation as it would be planned with these options."""
    scale = resolve_scale(options)
    data, _ = find_data(options, scale)
    resolved = compute.resolve(scale.device, scale.precision)
    ablations: list[tuple[str, ModuleType, Plan | str]] = []
    for name in ablation_names():
        module = ablation(name)
        try:
            ablations.append((name, module, make_plan(name, module, scale, data, resolved, "")))
        except ValueError as error:
            ablations.append((name, module, str(error)))
    print_ablations(scale.name, ablations)


def print_ablations(scale: str, ablations: Sequence[tuple[str, ModuleType, Plan | str]]) -> None:
    """Print question, factors and cost of each ablation at a scale; a text instead of a plan says why there is none."""
    width = min(console.width, MAX_WIDTH)
    console.print(f"ablations at scale [bold]{scale}[/bold]\n")
    for name, module, plan in ablations:
        console.print(f"[bold]{name}[/bold]" + (" (default)" if name == DEFAULT_ABLATION else ""))
        console.print("\n".join(_block(module, plan, width)), "", sep="\n", markup=False)
    console.print(textwrap.fill(SHARED, width))


def _block(module: ModuleType, plan: Plan | str, width: int) -> list[str]:
    """The lines below an ablation's name."""
    question = _wrapped(module.QUESTION, "  ", "  ", width)
    if isinstance(plan, str):
        return question + _wrapped(plan, "  cannot be asked: ", "    ", width)
    factors = "; ".join(_factor(name, values) for name, values in varied_factors(plan).items())
    entries = {
        "varies": factors or "nothing",
        "in paper": module.SOURCE,
        "costs": f"{counted(len(plan.jobs), 'training')}, {_whole_cost(plan)}",
    }
    lines = question
    for name, text in entries.items():
        lines += _wrapped(text, f"  {name:<10}", " " * 12, width)
    return lines


def _wrapped(text: str, first: str, others: str, width: int) -> list[str]:
    """Wrap a text between words, never between an option and its value; `first` and `others` are the indents."""
    text = re.sub(r"(--\w+) ", "\\1\u00a0", text)  # a no-break space after an option
    lines = textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=others, break_long_words=False, break_on_hyphens=False
    )
    return [line.replace("\u00a0", " ") for line in lines]


def _factor(name: str, values: list[Any]) -> str:
    """A factor in words, with its values if they are names or integers."""
    texts = [str(value) for value in values if isinstance(value, (str, int)) and not isinstance(value, bool)]
    return name.split(".")[-1].replace("_", " ") + (f" ({', '.join(texts)})" if texts else "")


def _whole_cost(plan: Plan) -> str:
    """GPU hours, or the time on this processor with as many jobs at once as its cores allow."""
    device = device_of(plan.compute)
    seconds = [estimated_seconds(job.stages, device) for job in plan.jobs]
    if plan.compute.device == "cuda":
        return f"~{in_hours(sum(seconds) / 3600)} GPU h"
    return f"~{duration(sum(seconds) / max(1, cores() // plan.compute.threads))}"
