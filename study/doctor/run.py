"""Examine this machine, or a node of a cluster by a job, and print what it has, what it lacks and how fast it is."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from results.numbers import counted, disk_size, duration
from study.core.files import read_json, write_json
from study.core.paths import study_root
from study.core.settings import rebuild
from study.doctor.machine import Answers, ask, described, differences, lacks_of, leave_token
from study.doctor.options import Doctor
from study.doctor.steps import Tried, distinct, try_steps
from study.plan.estimate import (
    checkpoint_bytes,
    data_bytes,
    device_of,
    disk_bytes,
    estimated_seconds,
    has_rates,
    note_cluster,
    note_measured_rates,
    title_of,
)
from study.plan.memory import largest_gib
from study.plan.needs import needed_files
from study.plan.runs import Plan
from study.report.console import console, in_hours
from study.submit.cluster import Profile, SlurmRefused, read_profile
from study.submit.executors import slots
from study.submit.jobs import log_to_stdout
from study.submit.options import DEFAULT_ABLATION, Sweep, prefetch_command
from study.submit.prepare import prepare
from study.submit.slurm import active_workers, submit_workers

NODE_MINUTES = 10  # of the job that examines a node
WAIT_MINUTES = 20  # for it to start and to end
POLL_SECONDS = 2.0


def examine(options: Doctor) -> int:
    """Examine and print; returns the exit code: 0, or 3 if something is lacking.

    Raises:
        ValueError: a wrong option, in one line.
    """
    lacking: list[str] = []
    cluster = options.cluster
    if cluster is not None and shutil.which("sbatch") is None:
        read_profile(cluster)
        lacking.append("Slurm: --cluster needs the command sbatch, which is not on this machine's PATH")
        cluster = None
    sweep = Sweep(
        ablation=DEFAULT_ABLATION, scale=options.scale, data=options.data, resolution=options.resolution,
        set=options.set, dry_run=True, executor="local" if cluster is None else "slurm", cluster=cluster,
    )  # fmt: skip
    plan = prepare(sweep)
    needed = sum(map(disk_bytes, plan.stages)) + data_bytes(plan.data)
    needed += checkpoint_bytes(plan.stages, slots(sweep, plan))
    console.print(f"scale [bold]{plan.scale.name}[/bold] with {escape(plan.data.name)} at {plan.data.resolution} px")
    here = ask(leave_token(), plan.compute.device)
    lacking += [*plan.missing, *lacks_of(here, plan, needed / 1e9)]
    _print_rows([*described(here, plan), ("plan", _plan_text(plan, needed, here.no_compiler))])
    answers = here
    tried: list[Tried] = []
    if cluster is not None:
        found = _examine_node(plan, read_profile(cluster)["generator"], options.steps, lacking)
        if found is not None:
            answers, tried = found
            console.print(f"[bold]node {escape(answers.host)}[/bold]")
            _print_rows(described(answers, plan))
            lacking += differences(answers, here, plan)
    elif options.steps and (plan.compute.device == "cpu" or here.cards):
        tried = _steps_here(plan)
    if answers.cards:  # by which plans on a login node without one are made
        note_cluster(answers.cards[0].name, answers.cards[0].memory_gib)
    if tried:
        _print_steps(tried)
        lacking += [each.lacking for each in tried if each.lacking]
    _print_time(sweep, plan, answers)
    if not lacking:
        console.print("nothing is lacking")
        return 0
    console.print("[bold]lacking:[/bold]")
    for line in lacking:
        console.print(f"  {line}", markup=False)
    if any("study.prefetch" in line for line in lacking):
        console.print(f"to download: {prefetch_command(sweep)}", markup=False)
    return 3


def _plan_text(plan: Plan, needed: float, no_compiler: str) -> str:
    files = needed_files(plan.stages)
    weights = f"{counted(len(files), 'weight file')}" if files else "no weight files"
    text = f"{len(plan.runs)} runs, {len(plan.stages)} stages, {disk_size(needed)} of disk, {weights}"
    if plan.compute.device == "cuda":
        text += f", {largest_gib(plan.stages):.1f} GiB of GPU memory by the estimate"
    if compiled := dict.fromkeys(stage.kind for stage in plan.stages if stage.spec.compute.compile):
        text += f", blocks compiled in {' and '.join(compiled)}"
    elif plan.compute.device == "cuda" and no_compiler:
        text += f", no blocks compiled without {no_compiler}"
    return text


def _steps_here(plan: Plan) -> list[Tried]:
    """Make the steps on this machine, keep their rates, and return what became of them."""
    tried, rates = [], {}
    total = len(distinct(plan.stages))
    with console.status("steps of every stage"):
        for number, (stage, one) in enumerate(try_steps(plan), start=1):
            tried.append(one)
            if one.gflops:
                rates[stage] = one.gflops
            if not console.is_terminal:
                print(f"[{number} of {total}] {title_of(stage)}", flush=True)
    if rates:
        note_measured_rates(rates, device_of(plan.compute))
    return tried


# On a node


def _examine_node(plan: Plan, profile: Profile, steps: bool, lacking: list[str]) -> tuple[Answers, list[Tried]] | None:
    """Submit a job that examines a node, wait for it, and return what it found; None, with a line in `lacking`, if it
    did not run."""
    folder = study_root() / "doctor" / "node"
    shutil.rmtree(folder, ignore_errors=True)
    token, deadline = leave_token(), time.monotonic() + 60 * WAIT_MINUTES
    short = dataclasses.replace(
        profile, minutes=min(profile.minutes, NODE_MINUTES), save_seconds=min(profile.save_seconds, 60)
    )
    one_process = dataclasses.replace(plan.compute, processes=1)
    try:
        submit_workers({folder: (on_node, plan, folder, token, steps)}, "study-doctor", one_process, short)
    except SlurmRefused as refused:
        lacking.append(str(refused))
        return None
    with console.status(f"a job examines a node, at most {WAIT_MINUTES} minutes"):
        while (content := read_json(folder / "answers.json")) is None:
            if time.monotonic() > deadline:
                lacking.append(f"the job that examines a node did not end in {WAIT_MINUTES} minutes; it stays queued")
                return None
            if not active_workers([folder]) and read_json(folder / "answers.json") is None:
                log = (read_json(folder / "submission.json") or {}).get("log", "")
                lacking.append(f"the job that examines a node ended without an answer: see {log}")
                return None
            time.sleep(POLL_SECONDS)
    answers: Answers = rebuild(Answers, content["answers"])
    tried = [rebuild(Tried, one) for one in content["tried"]]
    return answers, tried


def on_node(plan: Plan, folder: Path, token: str, steps: bool) -> None:
    """What the job does: answer, make the steps, and write both."""
    log_to_stdout()
    answers = ask(token, plan.compute.device)
    tried = _steps_here(plan) if steps and (plan.compute.device == "cpu" or answers.cards) else []
    content: dict[str, Any] = {
        "answers": dataclasses.asdict(answers),
        "tried": [dataclasses.asdict(one) for one in tried],
    }
    write_json(folder / "answers.json", content)


# Printed


def _print_rows(rows: Sequence[tuple[str, str]]) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(name, escape(text))
    console.print(table, soft_wrap=False)


def _print_steps(tried: Sequence[Tried]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("a step of")
    for column in ("images", "ms", "images/s", "GFLOP/s", "peak GiB", "estimated"):
        table.add_column(column, justify="right")
    for one in tried:
        if not one.seconds:
            table.add_row(escape(one.title), *[""] * 5, f"{one.estimated_gib:.2f}")
            continue
        peak = "" if one.peak_gib is None else f"{one.peak_gib:.2f}"
        numbers = (
            f"{one.images:,}",
            f"{one.seconds * 1e3:,.1f}",
            f"{one.images / one.seconds:,.0f}",
            f"{one.gflops:,.0f}",
        )
        table.add_row(escape(one.title), *numbers, peak, f"{one.estimated_gib:.2f}")
    console.print(table)
    for one in tried:
        if one.skipped:
            console.print(f"{one.title}: not tried, {one.skipped}", markup=False)


def _print_time(sweep: Sweep, plan: Plan, answers: Answers) -> None:
    """How long the whole plan takes, by rates that were measured or assumed."""
    device = answers.cards[0].name if answers.cards and plan.compute.device == "cuda" else device_of(plan.compute)
    seconds, rates = estimated_seconds(plan.stages, device), "at measured rates"
    if not has_rates(plan.stages, device):
        rates = "where rates were not measured, at assumed ones"
    if plan.compute.device == "cuda":
        shared = "" if sweep.executor == "slurm" else f", {counted(slots(sweep, plan), 'job')} at once here"
        console.print(f"the whole plan takes about {in_hours(seconds / 3600)} GPU hours{shared} ({rates})")
    else:
        at_once, where = (1, "in one job") if sweep.executor == "slurm" else (slots(sweep, plan), "here")
        console.print(f"the whole plan takes about {duration(seconds / at_once)} {where} ({rates})")
