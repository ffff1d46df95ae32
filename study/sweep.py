"""python -m study.sweep: plan a study, run what is missing, collect the table, draw the figures."""

from __future__ import annotations

import dataclasses
import importlib
import os
import pkgutil
import signal
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import arg

from study import compute
from study.cluster import Refused, read_profile, require_slurm
from study.collector import Collector
from study.distributed import started
from study.files import fingerprint
from study.paths import CHECKOUT, study_root
from study.stopping import stop_requested

if TYPE_CHECKING:
    from study.compute import Compute
    from study.data import DataSpec
    from study.plan import Job, Plan
    from study.scales import Scale

DEFAULT_ABLATION = "frontier"
MANAGEMENT = ("status", "watch", "retry", "cancel", "clean")  # study/manage.py: of what was started


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """Run a whole study: train tokenizers and generators, judge them, fill the results table, draw the figures.

    Without arguments: the frontier ablation at desk scale, on Fashion-MNIST, within a quarter of an hour on two
    cores. Run the same command again at any time: what is done is kept, what was cut off goes on.

    Results are written to results/STUDY/table.csv and figures/STUDY/, and while running to $STUDY_ROOT
    (default: the user's cache folder).

    In place of an ablation: status, watch, retry, cancel or clean, for what was started (each with --help).
    """

    ablation: Annotated[tyro.conf.Positional[str], arg(metavar="[ABLATION]")] = DEFAULT_ABLATION
    """Which question to ask: a file of ablations/."""
    scale: Annotated[str, arg(metavar="NAME")] = "desk"
    """How big: smoke (seconds, for tests), desk (minutes on a laptop), desk-full (80 minutes there),
    imagenet256 (the paper's, on GPUs), imagenet256-system (its best system, for the ablation system)."""
    data: Annotated[str | None, arg(metavar="NAME|FOLDER", help_behavior_hint="")] = None
    """Data set (fashion-mnist, cifar10) or a folder of pictures with one subfolder per class, or with the hub's parquet
    files. Default: the scale's."""
    resolution: Annotated[int | None, arg(metavar="PIXELS", help_behavior_hint="")] = None
    """Side of the pictures in pixels. Default: the scale's; for a folder at a desk scale, the size of its pictures."""
    executor: Literal["local", "inline", "slurm"] = "local"
    """Where jobs run: processes of this machine, this process (for debugging), or a Slurm cluster."""
    cluster: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """What jobs ask Slurm for, a TOML file: partition, account, minutes, memory_gb and others (study/cluster.py)."""
    detach: Annotated[bool, arg(help_behavior_hint="")] = False
    """Submit to Slurm and return; a last job writes the table and draws the figures."""
    jobs: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """How many jobs run at once on this machine. Default: as many as its cores or GPUs feed."""
    study: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """Name of the results. Default: the scale, with the data and a hash of the settings where they are not its own."""
    out: Annotated[Path, arg(metavar="FOLDER", help_behavior_hint="")] = CHECKOUT
    """Folder that holds results/ and figures/. Default: the checkout."""
    dry_run: Annotated[bool, arg(help_behavior_hint="")] = False
    """Print the plan, with cost and what is missing here, and stop (exit code 3 when something is)."""
    list: Annotated[bool, arg(help_behavior_hint="")] = False
    """Print every ablation with its runs, what they vary, and their cost at the scale, and stop."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, arg(metavar="FIELD=VALUE", help_behavior_hint="")] = ()
    """Change a field of the scale, such as generator.budget_images=20000; may be given several times."""


def _ablations() -> list[str]:
    import ablations

    return sorted(module.name for module in pkgutil.iter_modules(ablations.__path__) if not module.ispkg)


def ablation(name: str) -> ModuleType:
    """The module of an ablation; ValueError with the nearest names when there is none."""
    from study.settings import nearest

    if name not in _ablations():
        raise ValueError(f"unknown ablation {name!r}; {nearest(name, (*_ablations(), *MANAGEMENT))}")
    return importlib.import_module(f"ablations.{name}")


def _scale(options: Sweep) -> Scale:
    from study.scales import SCALES
    from study.settings import change, nearest

    if options.scale not in SCALES:
        raise ValueError(f"unknown scale {options.scale!r}; {nearest(options.scale, SCALES)}")
    scale = SCALES[options.scale]()
    for text in options.set:
        key, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set takes FIELD=VALUE, got {text!r}")
        scale = change(scale, key.strip(), value.strip())
    return scale


def _study_name(options: Sweep, scale: Scale, data: DataSpec) -> str:
    from study.checks import check_study

    if options.study is not None:
        return check_study(options.study)
    parts = [options.scale]
    if (data.name, data.resolution) != (scale.data, scale.resolution):
        parts.append(f"{data.name}-{data.resolution}")
    if options.set:  # other settings must not mix with the scale's own results
        parts.append(fingerprint(sorted(options.set), 6))
    return "-".join(parts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What the options say but for the question: at what size, on what data, on what device, under what name."""

    scale: Scale
    data: DataSpec
    compute: Compute
    study: str
    missing: tuple[str, ...] = ()  # what is not here, one line each


def prepare(options: Sweep) -> Plan:
    """Resolve everything that can be wrong before a job starts; brings the data where it is missing.

    Raises:
        ValueError: one clear line.
    """
    from study.needs import missing
    from study.plan import make_plan

    module, setting = ablation(options.ablation), setting_of(options)
    plan = make_plan(options.ablation, module, setting.scale, setting.data, setting.compute, setting.study)
    return dataclasses.replace(plan, missing=(*setting.missing, *missing(plan.stages)))


def setting_of(options: Sweep) -> Setting:
    """Everything that `prepare` resolves, but for the ablation."""
    scale = _scale(options)
    if (together := started()[1]) > 1 and (options.executor, scale.execution.processes) != ("inline", together):
        raise ValueError(
            f"{together} processes were started together: give them --executor inline --set "
            f"execution.processes={together}"
        )
    if options.executor == "slurm":
        require_slurm()
        read_profile(options.cluster)
    elif options.detach or options.cluster is not None:
        raise ValueError("--detach and --cluster are for --executor slurm")
    if options.jobs is not None and options.jobs < 1:
        raise ValueError(f"--jobs must be at least 1, got {options.jobs}")
    if options.jobs is not None and options.executor == "slurm":
        raise ValueError("--jobs is for this machine; on Slurm `parallel` in the profile says how many run at once")
    for folder in (study_root(), options.out / "results", options.out / "figures"):
        require_writable(folder)
    data, lacking = _data(options, scale)
    resolved = compute.resolve(scale.device)
    if resolved.device == "cuda" and options.executor != "slurm" and not compute.has_gpu():
        lacking.append("a GPU: this machine has none (--executor slurm for a cluster that does; --set device=cpu)")
    study = _study_name(options, scale, data)
    return Setting(scale=scale, data=data, compute=resolved, study=study, missing=tuple(lacking))


def _data(options: Sweep, scale: Scale) -> tuple[DataSpec, list[str]]:
    """The data, brought where it is missing, and a line where only the user can give it; the scale is checked first."""
    from study.checks import check_data, check_scale
    from study.data import GIVEN_AS_FOLDER, KNOWN, native_resolution, resolve
    from study.plan import check_grid

    check_scale(scale)
    source = options.data or scale.data
    if source not in KNOWN and source not in GIVEN_AS_FOLDER:
        source = str(Path(source).expanduser())
    resolution = options.resolution
    if resolution is None:
        own_size = source not in KNOWN and scale.data not in GIVEN_AS_FOLDER and Path(source).is_dir()
        resolution = native_resolution(Path(source)) if own_size else scale.resolution
    check_grid(scale, resolution)
    lacking = []
    if source in GIVEN_AS_FOLDER:
        data = dataclasses.replace(GIVEN_AS_FOLDER[source], resolution=resolution)
        lacking.append(
            f"the data: give {source} as a folder (--data): train/ and val/, one subfolder per class in each, or the "
            "hub's parquet files",
        )
    else:
        data = resolve(source, resolution)
    check_data(scale, data)
    return data, lacking


def print_list(options: Sweep) -> None:
    """Print every ablation as it would be planned with these options."""
    from study.plan import make_plan
    from study.report import print_ablations

    scale = _scale(options)
    data, _ = _data(options, scale)
    resolved = compute.resolve(scale.device)
    found: list[tuple[str, ModuleType, Plan | str]] = []
    for name in _ablations():
        module = ablation(name)
        try:
            found.append((name, module, make_plan(name, module, scale, data, resolved, "")))
        except ValueError as error:
            found.append((name, module, str(error)))
    print_ablations(scale.name, found)


def require_writable(folder: Path) -> None:
    """Make a folder; ValueError, saying how to choose another, when nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{time.monotonic_ns()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        hint = "set STUDY_ROOT" if folder == study_root() else "choose another with --out"
        raise ValueError(f"cannot write to {folder} ({error.strerror}): {hint}") from None


def _slots(options: Sweep, plan: Plan) -> int:
    if options.executor == "inline":
        return 1
    if options.executor == "slurm":
        return min(profile.parallel for profile in read_profile(options.cluster).values())
    if options.jobs is not None:
        return options.jobs
    resources = len(gpus(plan.compute)) or compute.cores() // plan.compute.threads
    return max(1, resources // plan.compute.processes)


def run(options: Sweep, plan: Plan) -> int:
    """Carry out a plan; returns the exit code: 0 done, 1 some runs have no result, 3 something that it needs is not
    here, 130 stopped."""
    from study import report
    from study.slurm import submit
    from study.started import note_plan

    profiles = read_profile(options.cluster) if options.executor == "slurm" else None
    report.print_plan(plan, _slots(options, plan), profiles)
    todo = [job for job in plan.jobs if job.missing()]
    if started()[1] > 1:  # all of them must go through the same jobs
        todo = list(plan.jobs)
    if plan.missing and (todo or options.dry_run):
        return 3
    if options.dry_run:
        return 0
    note_plan(options, plan, starts=bool(todo))
    if not options.detach:
        return execute(options, plan, todo)
    Collector(plan, options.out).update()
    submit(plan, todo, read_profile(options.cluster), options.out)
    print(f"submitted; python -m study.sweep status {plan.study} shows how far it is")
    return 0


def execute(options: Sweep, plan: Plan, todo: list[Job]) -> int:
    """Do these jobs of a plan, keep table and figures up to date, say what came out; returns the exit code."""
    from study import report

    collector = Collector(plan, options.out)
    collector.update()
    began = time.monotonic()
    stopped = False
    if todo:
        stopped = not carry_out(options, plan, todo, _slots(options, plan), collector)
        collector.update()
    unfinished = report.print_summary(plan, collector, time.monotonic() - began, stopped)
    return 130 if stopped else (1 if unfinished else 0)


def follow(plan: Plan) -> int:
    """What the other processes of a torchrun do while the first carries out the plan."""
    from study import schedule

    if plan.missing:
        return 3
    schedule.run_inline(list(plan.jobs), lambda: None)
    return 0


def carry_out(options: Sweep, plan: Plan, todo: list[Any], slots: int, collector: Collector) -> bool:
    """Run the jobs; False when stopped by a signal, with every job of ours asked to save and end."""
    from study import report, schedule
    from study.slurm import SlurmJobs, submit

    if options.executor == "inline":
        schedule.run_inline(todo, collector.progress)
        return not stop_requested.is_set()
    if options.executor == "slurm":
        submit(plan, todo, read_profile(options.cluster), options.out)
        scheduler: Any = SlurmJobs(todo)
    else:
        scheduler = schedule.LocalJobs(todo, slots, gpus=gpus(plan.compute))
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, raise_stop)
    try:
        with report.Progress(todo) as show:
            scheduler.watch(show, collector.progress)
    except BaseException as error:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # once is enough
        print("stopping: jobs save what they have ...", flush=True)
        scheduler.stop()
        if isinstance(error, KeyboardInterrupt):
            return False
        raise
    return True


def gpus(resolved: Compute) -> list[int]:
    """Numbers of the GPUs this process may use; none where jobs run on the CPU."""
    if resolved.device != "cuda" or not compute.has_gpu():
        return []
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible and not all(name.strip().isdigit() for name in visible.split(",")):
        raise ValueError(f"CUDA_VISIBLE_DEVICES must list numbers of GPUs here, got {visible!r}")
    return [int(n) for n in visible.split(",")] if visible else list(range(torch.cuda.device_count()))


def raise_stop(number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Entry point: errors of the caller are one line on standard error and exit code 2."""
    if sys.argv[1:2] and sys.argv[1] in MANAGEMENT:
        from study.manage import main as manage

        sys.exit(manage(sys.argv[1:]))
    options = tyro.cli(Sweep, prog="python -m study.sweep", config=(tyro.conf.FlagCreatePairsOff,))
    code = 2  # until the plan stands, what goes wrong is the caller's to mend
    try:
        if options.list:
            print_list(options)
            sys.exit(0)
        plan = prepare(options)
        code = 1
        code = run(options, plan) if started()[0] == 0 else follow(plan)
    except (ValueError, OSError) as error:
        print(f"study.sweep: {error}", file=sys.stderr)
        code = 2 if isinstance(error, Refused) else code
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
