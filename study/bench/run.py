"""How fast the parts of a study run here, against what the machine can do at all.

Times are medians of interleaved repeats in one process; what to trust on a noisy machine are the ratios.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from rich.console import Console
from rich.table import Table

from study.bench.against import compare
from study.bench.cases import (
    LOADER_IMAGES,
    STEPS,
    Workload,
    coding_cases,
    fid,
    generator_cases,
    generator_spec,
    generator_step,
    loader_cases,
    made_latents,
    sampling_cases,
    tokenizer_cases,
)
from study.bench.options import Bench
from study.bench.timing import Case, Measured, breakdown, measure, product_rate
from study.core import compute
from study.core.files import write_json
from study.core.provenance import provenance
from study.core.settings import nearest
from study.plan.scales import SCALES
from study.stages.fit_generator import build


@dataclass(frozen=True)
class Results:
    """What was measured; sections by name, `missing` says why one has none."""

    sections: dict[str, list[Measured]]
    missing: dict[str, str]
    generator: dict[str, float]  # share of a step's time by kind of operation


def run(setting: Workload, *, quick: bool, compiled: bool) -> Results:
    """Measure every section, or the generator's step alone (`quick`)."""
    device = setting.compute.device

    def timed(cases: list[Case]) -> list[Measured]:
        return measure(cases, setting.repeats, device)

    with tempfile.TemporaryDirectory() as folder:
        latents = made_latents(setting, Path(folder), min(setting.scale.train_images, LOADER_IMAGES))
        sections = {"generator step": timed(generator_cases(setting, latents, compiled))}
        state = build(generator_spec(setting))
        shares = breakdown(generator_step(setting, state, latents), device)
        network = state["ema"].eval()
        del state  # on a GPU its optimizer would take the others' room
        others: dict[str, Callable[[], list[Measured]]] = {
            "tokenizer step": lambda: timed(tokenizer_cases(setting)),
            "sampling": lambda: timed(sampling_cases(setting, network)),
            "encoding": lambda: timed(coding_cases(setting)),
            "loader": lambda: timed(loader_cases(setting, latents)),
            "FID": lambda: fid(setting),
        }
        missing = {}
        for name, measured in () if quick else others.items():
            if device == "cuda":
                torch.cuda.empty_cache()
            try:
                sections[name] = measured()
            except ValueError as error:  # weights that are not here
                missing[name] = str(error)
    return Results(sections, missing, shares)


def tabulate(sections: dict[str, list[Measured]]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for column in ("images", "ms", "images/s", "GFLOP/s", "of the machine"):
        table.add_column(column, justify="right")
    for name, lines in sections.items():
        table.add_row(f"[bold]{name}[/bold]")
        for one in lines:
            rate = f"{one.gflops:,.0f}" if one.gflops is not None else ""
            share = f"{one.share:.0%}" if one.share is not None else ""
            time = f"{one.seconds * 1e3:,.1f}"
            table.add_row(f"  {one.name}", f"{one.images:,}", time, f"{one.images_per_second:,.0f}", rate, share)
    return table


def stop(reason: str) -> NoReturn:
    print(reason, file=sys.stderr)
    raise SystemExit(2)


def alone(setting: Workload, options: Bench, console: Console) -> dict[str, Any]:
    """Measure, print, and return what goes into the JSON file."""
    found = run(setting, quick=options.quick, compiled=options.compile)
    console.print(tabulate(found.sections))
    step, products = found.sections["generator step"][:2]
    shares = ", ".join(f"{name} {share:.0%}" for name, share in found.generator.items() if share >= 0.005)
    console.print(f"a generator's step takes {step.seconds / products.seconds:.2f} times its matrix products: {shares}")
    for name, reason in found.missing.items():
        console.print(f"{name}: not measured, {reason}")
    return {
        "sections": {name: [dataclasses.asdict(one) for one in lines] for name, lines in found.sections.items()},
        "missing": found.missing,
        "generator_step_shares": found.generator,
    }


def beside(setting: Workload, options: Bench, checkout: Path, console: Console) -> dict[str, Any]:
    """The same for the comparison with the released code."""
    try:
        found, apart = compare(setting, checkout, compiled=options.compile)
    except (ValueError, RuntimeError) as error:
        stop(str(error))
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    table.add_column("images/s", justify="right")
    table.add_column("ours is faster", justify="right")
    for one in found:
        table.add_row(f"[bold]{one.name}[/bold], goal {one.goal:g} times")
        for whose, rate in one.images_per_second.items():
            table.add_row(f"  {whose}", f"{rate:,.0f}", f"{one.ratios[whose]:.2f} times" if whose in one.ratios else "")
    console.print(table)
    for one in found:
        console.print(f"{one.name}: {'; '.join(one.causes)}")
    console.print(f"from the same weights, noise and labels the samples of both differ by at most {apart:.1e}")
    return {"against": [dataclasses.asdict(one) for one in found], "samples_differ_by": apart}


def bench(options: Bench) -> None:
    """Measure, print, and write the numbers where the options say so; exit code 2 for what cannot be measured here."""
    resolved = compute.resolve()
    if options.scale not in SCALES:
        stop(f"no scale {options.scale!r}; {nearest(options.scale, SCALES)}")
    scale = SCALES[options.scale]()
    if scale.device not in ("any", resolved.device):
        stop(f"scale {scale.name} needs {scale.device}, and this machine has {resolved.device}: choose another scale")
    if options.threads is not None:
        resolved = dataclasses.replace(resolved, threads=options.threads)
    compute.apply(resolved)
    setting = Workload(scale, resolved, options.repeats, options.batch)
    console = Console(highlight=False)
    made = provenance(resolved)
    rates = {dtype: product_rate(resolved.device, dtype) for dtype in dict.fromkeys((resolved.precision, "float32"))}
    architecture = setting.architecture
    console.print(
        f"{made['device']}, {resolved.precision}, {resolved.threads} thread(s); one large matrix product: "
        + ", ".join(f"{rate:,.0f} GFLOP/s in {dtype}" for dtype, rate in rates.items())
    )
    console.print(
        f"scale {scale.name}: {architecture.name} on {architecture.tokens} tokens, "
        f"pictures of {scale.resolution} px; guided sampling with {STEPS} Euler steps"
    )
    content = {
        "provenance": made,
        "compute": dataclasses.asdict(resolved),
        "scale": scale.name,
        "generator": architecture.name,
        "matrix_gflops": rates,
    }
    if options.against is not None:
        content |= beside(setting, options, options.against, console)
    else:
        content |= alone(setting, options, console)
    if options.out is not None:
        write_json(options.out, content)
