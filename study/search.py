"""python -m study.search: which settings are best, by trials that are runs, of many workers on one storage."""

from __future__ import annotations

import dataclasses
import signal
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import arg

from study import compute, workers
from study.cluster import read_profile
from study.distributed import started
from study.paths import CHECKOUT
from study.started import note_search
from study.stopping import stop_requested
from study.sweep import Setting, Sweep, gpus, raise_stop, setting_of
from study.task import Task
from study.worker import open_trials, run_worker

WATCH_SECONDS = {"local": 1.0, "slurm": 10.0}  # between looks at the workers, of Slurm at its queue
LINE_SECONDS = 20.0  # between progress lines
SLURM_WORKERS = 4
TRIALS = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """Search the settings of a space (a file of ablations/spaces/): sampling, generator or tokenizer.

    A trial is a run like any other: what is done is never done again. Run the same command again at any time: it goes
    on. When all trials are done the best five are run again with other seeds, and the winner's score comes from seeds
    that it was not chosen on.

    Results are written to results/STUDY/search/SPACE.csv and .json, and the runs to results/STUDY/table.csv.
    """

    space: Annotated[tyro.conf.Positional[str], arg(metavar="SPACE")]
    """What is searched: sampling, generator or tokenizer."""
    trials: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """How many trials there are to be in all, earlier ones included. Default: as many as were asked for last, or 20."""
    scale: Annotated[str, arg(metavar="NAME")] = "desk"
    """How big, as for study.sweep."""
    data: Annotated[str | None, arg(metavar="NAME|FOLDER", help_behavior_hint="")] = None
    """Data set or folder of pictures, as for study.sweep. Default: the scale's."""
    resolution: Annotated[int | None, arg(metavar="PIXELS", help_behavior_hint="")] = None
    """Side of the pictures in pixels, as for study.sweep."""
    executor: Literal["local", "inline", "slurm"] = "local"
    """Where workers run: processes of this machine, this process (one worker), or a Slurm cluster."""
    workers: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """How many trials are done at once. Default: as many as the cores or GPUs feed; on Slurm 4."""
    cluster: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """What workers ask Slurm for, as for study.sweep: the fields for generators."""
    detach: Annotated[bool, arg(help_behavior_hint="")] = False
    """Submit the workers to Slurm and return."""
    storage: Annotated[str, arg(metavar="URL", help_behavior_hint="")] = ""
    """Where Optuna keeps the trials: a URL, or the path of a journal. Default: journal.log in
    $STUDY_ROOT/searches/STUDY-SPACE. Workers need the same $STUDY_ROOT in any case."""
    study: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """Name of the results, as for study.sweep."""
    seed: int = 0
    """Of the trials that are still to be drawn; those that are there stay."""
    out: Annotated[Path, arg(metavar="FOLDER", help_behavior_hint="")] = CHECKOUT
    """Folder that holds results/. Default: the checkout."""
    dry_run: Annotated[bool, arg(help_behavior_hint="")] = False
    """Print the space, how far the search is and what a trial costs, and stop (exit code 3: something is missing)."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, arg(metavar="FIELD=VALUE", help_behavior_hint="")] = ()
    """Change a field of the scale, as for study.sweep."""


def prepare(options: Search) -> tuple[Task, list[str]]:
    """The search, with everything resolved that can be wrong before a worker starts, and what is missing here.

    Raises:
        ValueError: one clear line.
    """
    from study.needs import missing
    from study.spaces import Choice, space

    space(options.space)
    if options.trials is not None and options.trials < 1:
        raise ValueError(f"--trials must be at least 1, got {options.trials}")
    if options.workers is not None and options.workers < 1:
        raise ValueError(f"--workers must be at least 1, got {options.workers}")
    if options.executor == "inline" and options.workers not in (None, 1):
        raise ValueError("--executor inline is one worker: leave --workers out")
    same = {f.name for f in dataclasses.fields(Sweep)} & {f.name for f in dataclasses.fields(Search)}
    setting = setting_of(Sweep(**{name: getattr(options, name) for name in same}))
    task = Task(
        space=options.space,
        setting=setting,
        budget=options.trials or TRIALS,
        seed=options.seed,
        storage=_from_anywhere(options.storage),
        workers=_workers(options, setting),
        out=options.out.absolute(),
    )
    dimensions, default = task.dimensions(), task.default()
    choices = [(name, choice) for name, d in dimensions.items() if isinstance(d, Choice) for choice in d.choices]
    every = task.plan([task.run({**default, name: choice}) for name, choice in [*choices, *list(default.items())[:1]]])
    return task, [*setting.missing, *missing(every.stages)]


def _from_anywhere(storage: str) -> str:
    """The storage as other processes find it too, wherever they stand."""
    scheme = "sqlite:///" if storage.startswith("sqlite:///") else ""
    if not storage or ("://" in storage and not scheme):
        return storage
    return scheme + str(Path(storage.removeprefix(scheme)).expanduser().absolute())


def _workers(options: Search, setting: Setting) -> int:
    if options.workers is not None or options.executor == "inline" or options.storage.startswith("sqlite"):
        return options.workers or 1
    if options.executor == "slurm":
        return SLURM_WORKERS
    resources = len(gpus(setting.compute)) or compute.cores() // setting.compute.threads
    return max(1, resources // setting.scale.execution.processes)


def run(options: Search, task: Task, missing: list[str]) -> int:
    """Carry out a search; returns the exit code: 0 done, 1 something failed, 3 something is missing, 130 stopped."""
    from study.report import print_space

    trials = open_trials(task)
    if options.trials is None:
        task = dataclasses.replace(task, budget=trials.total)
    print_space(task, trials)
    for line in missing:
        print(f"  missing here: {line}")
    if missing:
        return 3
    if options.dry_run:
        return 0
    trials.ask_for(task.budget)
    if options.executor == "inline":
        note_search(options, task)
        run_worker(task, 0)
        stopped = stop_requested.is_set()
    else:
        stopped = not _watch(options, task, trials)
    return _say(task, trials, stopped) if not options.detach else 0


def _follow(options: Search, task: Task, missing: list[str]) -> int:
    """What the other processes of a torchrun do."""
    if missing or options.dry_run:
        return 3 if missing else 0
    return int(not run_worker(task, 0))


def _say(task: Task, trials: Any, stopped: bool) -> int:
    """Write what there is, and print it; returns the exit code."""
    from study.findings import conclude, decided, failures, standing
    from study.report import print_findings

    search = conclude(task, trials)
    print_findings(search, task.out / "results" / task.setting.study)
    if trials.finished() and decided(task, trials):
        return 0
    print(standing(task, trials))
    for reason in failures(task, trials):
        print(f"  failed: {reason}")
    print(f"run the same command again to go on; logs of workers: {task.folder / 'workers'}")
    return 130 if stopped else 1


def _watch(options: Search, task: Task, trials: Any) -> bool:
    """Start the workers that do not run yet and watch them; False when stopped by a signal."""
    from study.findings import standing

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, raise_stop)
    try:
        if options.executor == "slurm":
            workers.submit(task, read_profile(options.cluster)["generator"])
        else:
            workers.start(task)
        note_search(options, task)
        if options.detach:
            print(f"submitted; python -m study.sweep status {task.setting.study} shows how far it is")
            return True
        said = 0.0
        while workers.alive(task, options.executor):
            if time.monotonic() - said > LINE_SECONDS:
                said = time.monotonic()
                print(standing(task, trials), flush=True)
            time.sleep(WATCH_SECONDS[options.executor])
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # once is enough
        if options.executor == "slurm":
            print("the workers go on in the queue; the same command watches them again")
        else:
            print("stopping: workers save what they have ...", flush=True)
            workers.stop_local(task)
        return False
    return True


def main() -> None:
    """Entry point: errors of the caller are one line on standard error and exit code 2."""
    options = tyro.cli(Search, prog="python -m study.search", config=(tyro.conf.FlagCreatePairsOff,))
    code = 2
    try:
        task, missing = prepare(options)
        code = run(options, task, missing) if started()[0] == 0 else _follow(options, task, missing)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"study.search: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
