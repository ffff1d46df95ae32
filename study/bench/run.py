"""Run the benchmark: time the parts of a study and print them, compared with the machine's peak rate.

Times are medians of interleaved repeats in one process. On a noisy machine only their ratios are reliable.
"""

from __future__ import annotations

import dataclasses
import gc
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from rich.console import Console
from rich.table import Table

from models.names import nearest
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
    random_latents,
    sampling_cases,
    tokenizer_cases,
)
from study.bench.judging import JUDGE, SIZE, judging
from study.bench.options import Bench
from study.bench.timing import Case, Measured, breakdown, measure, product_rate
from study.bench.whole_study import TOTAL, keep, kept, machine, study_cost, table
from study.core import compute
from study.core.compute import cores, no_compiler_because
from study.core.files import write_json
from study.core.provenance import provenance
from study.plan.checks import PRECISIONS
from study.plan.scales import SCALES
from study.stages.fit_generator import build


@dataclass(frozen=True)
class Results:
    """Timings by section; `missing` holds the reason for each section without timings."""

    sections: dict[str, list[Measured]]
    missing: dict[str, str]
    generator: dict[str, float]  # share of a step's time by kind of operation


def run(workload: Workload, *, quick: bool, compiled: bool) -> Results:
    """Measure every section, or the generator step alone (`quick`)."""
    device = workload.compute.device
    of_tokenizers = dataclasses.replace(workload.compute, precision=workload.scale.tokenizer_precision)

    def timed(cases: list[Case]) -> list[Measured]:
        return measure(cases, workload.repeats, device)

    def timed_tokenizers() -> list[Measured]:
        compute.apply(of_tokenizers)
        try:
            return timed(tokenizer_cases(dataclasses.replace(workload, compute=of_tokenizers)))
        finally:
            compute.apply(workload.compute)

    with tempfile.TemporaryDirectory() as folder:
        latents = random_latents(workload, Path(folder), min(workload.scale.train_images, LOADER_IMAGES))
        sections: dict[str, list[Measured]] = {"generator step": []}
        for group in generator_cases(workload, latents, compiled):
            sections["generator step"] += timed(group())
            free(device)
        state = build(generator_spec(workload))
        shares = breakdown(generator_step(workload, state, latents), device)
        network = state["ema"].eval()
        del state  # on a GPU its optimizer would take memory from the other sections
        others: dict[str, Callable[[], list[Measured]]] = {
            "tokenizer step": timed_tokenizers,
            "sampling": lambda: timed(sampling_cases(workload, network, compiled)),
            "encoding": lambda: timed(coding_cases(workload)),
            "loader": lambda: timed(loader_cases(workload, latents)),
            "FID": lambda: fid(workload),
        }
        missing = {}
        for name, measured in () if quick else others.items():
            free(device)
            try:
                sections[name] = measured()
            except ValueError as error:  # missing weights
                missing[name] = str(error)
    return Results(sections, missing, shares)


def free(device: str) -> None:
    """Give back the GPU memory of what was timed."""
    if device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


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


def report_own(workload: Workload, options: Bench, console: Console) -> dict[str, Any]:
    """Measure this code and print the result; returns the content of the JSON file."""
    device = workload.compute.device
    compiled = options.compile or (device == "cuda" and not no_compiler_because(device))
    results = run(workload, quick=options.quick, compiled=compiled)
    console.print(tabulate(results.sections))
    step, products = results.sections["generator step"][:2]
    shares = ", ".join(f"{name} {share:.0%}" for name, share in results.generator.items() if share >= 0.005)
    console.print(f"a generator step takes {step.seconds / products.seconds:.2f} times its matrix products: {shares}")
    for name, reason in results.missing.items():
        console.print(f"{name}: not measured, {reason}")
    return {
        "sections": {name: [dataclasses.asdict(one) for one in lines] for name, lines in results.sections.items()},
        "missing": results.missing,
        "generator_step_shares": results.generator,
    }


def report_comparison(workload: Workload, options: Bench, checkout: Path, console: Console) -> dict[str, Any]:
    """Compare with the released code and print the result; returns the content of the JSON file."""
    try:
        comparisons, largest_difference = compare(workload, checkout, compiled=options.compile)
    except (ValueError, RuntimeError) as error:
        stop(str(error))
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    table.add_column("images/s", justify="right")
    table.add_column("ours is faster", justify="right")
    for task in comparisons:
        table.add_row(f"[bold]{task.name}[/bold], goal {task.goal:g} times")
        for kind, rate in task.images_per_second.items():
            table.add_row(f"  {kind}", f"{rate:,.0f}", f"{task.ratios[kind]:.2f} times" if kind in task.ratios else "")
        for kind, ratio in task.best.items():
            table.add_row(f"  {kind}, each in its faster dtype", "", f"{ratio:.2f} times")
    console.print(table)
    for task in comparisons:
        console.print(f"{task.name}: {'; '.join(task.causes)}")
    console.print(f"with the same weights, noise and labels, the samples differ by at most {largest_difference:.1e}")
    return {"against": [dataclasses.asdict(task) for task in comparisons], "samples_differ_by": largest_difference}


def report_judging(device: str, console: Console) -> dict[str, Any]:
    """Judge many pictures and print memory and time; returns the content of the JSON file."""
    try:
        found = judging(device=device)
    except ValueError as error:
        stop(str(error))
    console.print(
        f"{found.pictures:,} pictures of {found.pixels} px judged by {JUDGE} at {SIZE} px in {found.seconds:.0f} s: "
        f"at most {found.gib_peak:.2f} GiB of host memory, {found.gib_before:.2f} GiB of it before the first picture"
    )
    return {"judging": dataclasses.asdict(found)}


def report_study(options: Bench, console: Console) -> dict[str, Any]:
    """Run a small study and print what its stages took; returns the content of the JSON file."""
    before = kept()
    try:
        cost = study_cost()
    except RuntimeError as error:
        stop(str(error))
    console.print(table(cost, before))
    busy = cost.core_seconds[TOTAL] / (cores() * cost.seconds)
    console.print(f"{cost.seconds:.0f} s on {machine()}, which were busy {busy:.0%} of the time")
    console.print(f"kept: of commit {before.commit}, {before.seconds:.0f} s" if before else "nothing is kept for those")
    if options.keep:
        keep(cost)
    return {"study": dataclasses.asdict(cost)}


def bench(options: Bench) -> None:
    """Measure, print, and on request write a JSON file; exit code 2 if something cannot be measured here."""
    resolved = compute.resolve()
    if options.scale not in SCALES:
        stop(f"no scale {options.scale!r}; {nearest(options.scale, SCALES)}")
    scale = SCALES[options.scale]()
    if options.precision:
        if options.precision not in PRECISIONS:
            stop(f"no precision {options.precision!r}; {nearest(options.precision, PRECISIONS)}")
        scale = dataclasses.replace(scale, precision=options.precision, tokenizer_precision=options.precision)
    resolved = dataclasses.replace(resolved, precision=scale.precision)
    if scale.device not in ("any", resolved.device):
        stop(f"scale {scale.name} needs {scale.device}, and this machine has {resolved.device}: choose another scale")
    if options.threads is not None:
        resolved = dataclasses.replace(resolved, threads=options.threads)
    compute.apply(resolved)
    workload = Workload(scale, resolved, options.repeats, options.batch)
    console = Console(highlight=False)
    origin = provenance(resolved)
    precisions = dict.fromkeys((scale.precision, scale.tokenizer_precision, "float32"))
    rates = {precision: product_rate(resolved.device, precision) for precision in precisions}
    architecture = workload.architecture
    console.print(
        f"{origin['device']}, {resolved.precision}, {resolved.threads} thread(s); one large matrix product: "
        + ", ".join(f"{rate:,.0f} GFLOP/s in {dtype}" for dtype, rate in rates.items())
    )
    console.print(
        f"scale {scale.name}: {architecture.name} on {architecture.tokens} tokens, "
        f"pictures of {scale.resolution} px; guided sampling with {STEPS} Euler steps"
    )
    content = {
        "provenance": origin,
        "compute": dataclasses.asdict(resolved),
        "scale": scale.name,
        "generator": architecture.name,
        "matrix_gflops": rates,
    }
    if options.against is not None:
        content |= report_comparison(workload, options, options.against, console)
    elif options.study:
        content |= report_study(options, console)
    elif options.judging:
        content |= report_judging(resolved.device, console)
    else:
        content |= report_own(workload, options, console)
    if options.out is not None:
        write_json(options.out, content)
