"""The list of ablations: a block for each, with what it asks, varies and costs at a scale."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from study.core import compute
from study.core.compute import cores, processor
from study.plan.ablation_files import ablation, ablation_names
from study.plan.estimate import estimated_seconds
from study.plan.factors import varied_factors
from study.plan.resolve import make_plan
from study.plan.runs import Plan
from study.report.amounts import counted, duration
from study.report.console import console
from study.submit.options import DEFAULT_ABLATION, Sweep
from study.submit.prepare import find_data, resolve_scale

WIDEST = 120  # columns, however wide the terminal is
SHARED = "Trainings that ablations share are counted in each and done once; cost is of all stages."


def print_list(options: Sweep) -> None:
    """Print every ablation as it would be planned with these options."""
    scale = resolve_scale(options)
    data, _ = find_data(options, scale)
    resolved = compute.resolve(scale.device)
    found: list[tuple[str, ModuleType, Plan | str]] = []
    for name in ablation_names():
        module = ablation(name)
        try:
            found.append((name, module, make_plan(name, module, scale, data, resolved, "")))
        except ValueError as error:
            found.append((name, module, str(error)))
    print_ablations(scale.name, found)


def print_ablations(scale: str, found: Sequence[tuple[str, ModuleType, Plan | str]]) -> None:
    """Print what each ablation asks, varies and costs at a scale; a text in place of a plan says why there is none."""
    width = min(console.width, WIDEST)
    console.print(f"ablations at scale [bold]{scale}[/bold]\n")
    for name, module, plan in found:
        console.print(f"[bold]{name}[/bold]" + (" (default)" if name == DEFAULT_ABLATION else ""))
        console.print("\n".join(_block(module, plan, width)), "", sep="\n", markup=False)
    console.print(textwrap.fill(SHARED, width))


def _block(module: ModuleType, plan: Plan | str, width: int) -> list[str]:
    """The lines below an ablation's name."""
    asks = _wrapped(module.QUESTION, "  ", "  ", width)
    if isinstance(plan, str):
        return asks + _wrapped(plan, "  cannot be asked: ", "    ", width)
    varies = "; ".join(_factor(name, values) for name, values in varied_factors(plan).items())
    about = {
        "varies": varies or "nothing",
        "in paper": module.SOURCE,
        "costs": f"{counted(len(plan.jobs), 'training')}, {_whole_cost(plan)}",
    }
    return asks + [line for name, text in about.items() for line in _wrapped(text, f"  {name:<10}", " " * 12, width)]


def _wrapped(text: str, first: str, others: str, width: int) -> list[str]:
    """Lines of whole words, an option and its value one of them, that begin with `first`, and with `others`."""
    kept = re.sub(r"(--\w+) ", "\\1\u00a0", text)  # a space at which nothing is broken
    lines = textwrap.wrap(
        kept, width, initial_indent=first, subsequent_indent=others, break_long_words=False, break_on_hyphens=False
    )
    return [line.replace("\u00a0", " ") for line in lines]


def _factor(name: str, values: list[Any]) -> str:
    """A factor in words, with its values where those are names or sizes."""
    telling = [str(value) for value in values if isinstance(value, (str, int)) and not isinstance(value, bool)]
    return name.split(".")[-1].replace("_", " ") + (f" ({', '.join(telling)})" if telling else "")


def _whole_cost(plan: Plan) -> str:
    """GPU hours, or time on one processor with half its cores for each of two jobs at once."""
    seconds = [sum(estimated_seconds(stage, processor()) for stage in job.stages) for job in plan.jobs]
    if plan.compute.device == "cuda":
        return f"~{sum(seconds) / 3600:,.0f} GPU h"
    return f"~{duration(sum(seconds) / max(1, cores() // plan.compute.threads))}"
