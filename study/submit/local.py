"""Jobs of this machine, inline or as processes through submitit, started and watched (Slurm: study/submit/slurm.py).

Outcomes are read from records, never from `job.result()`. Local jobs that an earlier sweep left running are
adopted: they are watched like our own and never submitted a second time.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from study.core.code_snapshot import environment, snapshot
from study.core.distributed import process_group, rank
from study.core.files import read_json, write_json
from study.core.lease import Watcher, process_alive, this_process
from study.core.paths import job_folder
from study.core.stopping import ask_to_end, stop_requested
from study.plan.runs import Job
from study.plan.stage import INTERRUPTED, Stage
from study.submit.jobs import note_end_without_record, run_job

TIMEOUT_MINUTES = 7 * 24 * 60  # of a local job: submitit wants a limit, and a study may take days
POLL_SECONDS = 0.25  # between looks at the running jobs
WAITING_SECONDS = 5.0  # between looks at those that wait, where none of ours has ended: there may be thousands
STOP_SECONDS = 60.0

Show = Callable[[dict[str, dict[str, Any]]], None]


@dataclass
class Board:
    """What the scheduler knows: which jobs wait, run or have ended without all their records."""

    jobs: dict[str, Job]
    running: dict[str, dict[str, Any]] = field(default_factory=dict)  # name -> progress
    failed: set[str] = field(default_factory=set)
    _done: set[str] = field(default_factory=set)  # stages whose record has been seen

    def missing(self, job: Job) -> list[Stage]:
        """Stages of a job that have no record."""
        left = [stage for stage in job.stages if stage.fingerprint not in self._done]
        self._done |= {stage.fingerprint for stage in left if stage.record() is not None}
        return [stage for stage in left if stage.fingerprint not in self._done]

    def ready(self, job: Job) -> bool:
        """Whether everything that a job reads from other jobs is there."""
        own = {stage.fingerprint for stage in job.stages}
        sources = [source for stage in job.stages for source in stage.inputs.values()]
        return all(source.fingerprint in own or source.record() for source in sources)


def run_inline(jobs: list[Job], on_change: Callable[[], None]) -> None:
    """Do the jobs one after another in this process: for debugging, and under torchrun."""
    with process_group(jobs[0].stages[0].spec.compute.device):
        for job in jobs:
            run_job(job)
            if rank() == 0:
                on_change()
            if stop_requested.is_set():
                break


class LocalJobs:
    """Jobs as processes of this machine, through submitit's local executor, a limited number at a time.

    Args:
        jobs: those with something missing.
        slots: how many run at once.
        gpus: numbers of the GPUs, one for each process of a job; empty where jobs run on the CPU.
    """

    def __init__(self, jobs: list[Job], slots: int, gpus: Sequence[int] = ()) -> None:
        self.board = Board({job.name: job for job in jobs})
        self.slots, self.gpus = slots, gpus
        self._gpus_of: dict[str, list[int]] = {}
        self._watcher = Watcher()
        self._submitted: dict[str, Any] = {}

    def _alive(self, job: Job) -> dict[str, Any] | None:
        """Progress of a job that is running, whoever submitted it, or None."""
        leases = [self._watcher.live(stage.folder) for stage in self.board.missing(job)]
        live = [lease for lease in leases if lease is not None]
        if live:
            return live[0]["progress"]
        if job.name in self._submitted:
            return None if self._submitted[job.name].done() else {}
        submission = read_json(job_folder(job.name) / "submission.json")
        return {} if submission is not None and process_alive(submission) else None

    def _submit(self, job: Job) -> None:
        for stage in job.stages:  # of an earlier attempt: a job that ends before it starts must not go on for ever
            (stage.folder / INTERRUPTED).unlink(missing_ok=True)
        processes = job.stages[0].spec.compute.processes
        mine: list[int] = []
        if self.gpus:
            busy = {number for name in self.board.running for number in self._gpus_of.get(name, ())}
            free = [number for number in self.gpus if number not in busy]
            mine = self._gpus_of[job.name] = (free or list(self.gpus))[:processes]
        with undisturbed():
            handle = start_process(job_folder(job.name), job.name[:40], (run_job, job), processes, mine)
            self._submitted[job.name] = handle
            self.board.running[job.name] = {}

    def watch(self, show: Show, on_change: Callable[[], None]) -> None:
        """Submit what is ready and wait until nothing is left to do; `on_change` after jobs have ended."""
        board = self.board
        waiting = list(board.jobs.values())
        looked = -math.inf
        while waiting or board.running:
            changed = False
            for name in list(board.running):
                progress = self._alive(board.jobs[name])
                if progress is not None:
                    board.running[name] = progress
                    continue
                del board.running[name]
                changed = True
                job = board.jobs[name]
                if board.missing(job):
                    if name in self._submitted and not any(stage.interrupted() for stage in job.stages):
                        self.board.failed.add(job.name)
                        note_end_without_record(job)
                    else:  # another sweep stopped it, or the machine went down: it goes on here
                        waiting.append(job)
            look = changed or time.monotonic() - looked > WAITING_SECONDS
            if look:
                looked = time.monotonic()
            for job in list(waiting) if look else ():
                if not board.missing(job):
                    waiting.remove(job)
                    changed = True  # done by another sweep
                elif job.after in board.failed and not board.ready(job):
                    waiting.remove(job)  # its input will not come: the table says by what it is blocked
                elif (adopted := self._alive(job)) is not None:
                    waiting.remove(job)
                    board.running[job.name] = adopted
                elif len(board.running) < self.slots and board.ready(job):
                    waiting.remove(job)
                    try:
                        self._submit(job)
                    except OSError as error:  # a full disk
                        board.failed.add(job.name)
                        note_end_without_record(job, reason=f"the job could not be started: {error}")
                        changed = True
            show(board.running)
            if changed:
                on_change()  # after submitting, so that no slot waits for figures
            if not board.running and not any(board.ready(job) for job in waiting):
                break  # what these read has been deleted meanwhile: the next sweep plans it again
            if waiting or board.running:
                time.sleep(POLL_SECONDS)

    def stop(self) -> None:
        """Ask every running job, adopted ones too, to save and end; says what still runs after a while."""
        deadline = time.monotonic() + STOP_SECONDS

        def controllers() -> list[int]:
            found = [read_json(job_folder(name) / "submission.json") for name in self.board.running]
            return [process["pid"] for process in found if process is not None and process_alive(process)]

        while (pids := controllers()) and time.monotonic() < deadline:
            for pid in pids:
                ask_to_end(pid)  # again and again: a job that starts up is deaf
            time.sleep(1.0)
        for name in self.board.running:
            if self._alive(self.board.jobs[name]) is not None:
                print(f"{self.board.jobs[name].title} has not ended yet; the same command will find it")


def start_process(folder: Path, name: str, call: tuple[Any, ...], processes: int, gpus: Sequence[int]) -> Any:
    """Start a call (function, then its arguments) as processes of this machine and note it in `folder`, where its
    logs go too; submitit's handle of it. Within `undisturbed`."""
    import submitit

    folder.mkdir(parents=True, exist_ok=True)
    executor = submitit.LocalExecutor(folder=folder)
    gpu: dict[str, Any] = {"gpus_per_node": len(gpus), "visible_gpus": tuple(gpus)} if gpus else {}
    executor.update_parameters(
        timeout_min=TIMEOUT_MINUTES, stderr_to_stdout=True, name=name, tasks_per_node=processes, **gpu
    )
    with mock.patch.dict(os.environ, environment(snapshot())):
        submitted = executor.submit(*call)
        with contextlib.suppress(OSError):  # a full disk: only later processes know less of it
            write_json(folder / "submission.json", this_process(int(submitted.job_id)))
    return submitted


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Put signals off while a job is submitted and noted, so that none is forgotten.

    Ctrl-C reaches every process of the terminal, and submitit's controller answers it by killing its job: the
    controller inherits that it is ignored, and only `stop` asks jobs to end.
    """
    came: list[int] = []
    before = {signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN)}
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, lambda n, _frame: came.append(n))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt
