"""Jobs on this machine, in this process or in processes started by submitit (for Slurm see study/submit/slurm.py).

Outcomes are read from records, never from `job.result()`. Jobs that an earlier sweep left running are adopted: they are
watched like those of this sweep and not submitted again. On CPUs a process that has finished a job takes another one of
its sweep (study/submit/in_turn.py).
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from study.core.cards import Card, on_cards
from study.core.code_snapshot import environment, snapshot
from study.core.distributed import process_group, rank
from study.core.files import write_json
from study.core.lease import Watcher, this_process
from study.core.paths import job_folder
from study.core.stopping import ask_to_end, stop_requested
from study.plan.runs import Job
from study.plan.stage import Stage
from study.submit.in_turn import forget_turns, hand_over, has_left, run_in_turn, running_process
from study.submit.jobs import note_end_without_record, run_job

TIMEOUT_MINUTES = 7 * 24 * 60  # of a local job: submitit requires a limit, and a study may take days
POLL_SECONDS = 0.25  # between checks of the running jobs
WAITING_SECONDS = 5.0  # between checks of the waiting jobs (there may be thousands) while no running job ends
STOP_SECONDS = 60.0  # for running jobs to save and end
END_SECONDS = 5.0  # for processes without a job to end

Show = Callable[[dict[str, dict[str, Any]]], None]  # displays progress by name of the job


@dataclass
class Board:
    """State of the scheduler: all jobs, those that run, and those that ended without all their records."""

    jobs: dict[str, Job]
    running: dict[str, dict[str, Any]] = field(default_factory=dict)  # name -> progress
    failed: set[str] = field(default_factory=set)
    _done: set[str] = field(default_factory=set)  # fingerprints of stages that have a record

    def missing(self, job: Job) -> list[Stage]:
        """Stages of a job that have no record."""
        unfinished = [stage for stage in job.stages if stage.fingerprint not in self._done]
        self._done |= {stage.fingerprint for stage in unfinished if stage.record() is not None}
        return [stage for stage in unfinished if stage.fingerprint not in self._done]

    def ready(self, job: Job) -> bool:
        """Whether all inputs from other jobs have records."""
        own = {stage.fingerprint for stage in job.stages}
        sources = [source for stage in job.stages for source in stage.inputs.values()]
        return all(source.fingerprint in own or source.record() for source in sources)


def run_inline(jobs: list[Job], on_change: Callable[[], None]) -> None:
    """Run the jobs one after another in this process: for debugging, and under torchrun."""
    with process_group(jobs[0].stages[0].spec.compute.device):
        for job in jobs:
            run_job(job)
            if rank() == 0:
                on_change()
            if stop_requested.is_set():
                break


class LocalJobs:
    """Runs jobs as processes on this machine with submitit's local executor, a limited number at a time.

    Args:
        jobs: those with unfinished stages.
        slots: how many run at once.
        cards: GPUs; each process of a job gets one, and those of several jobs share one. Empty where jobs run on the
            CPU.
    """

    def __init__(self, jobs: list[Job], slots: int, cards: Sequence[Card] = ()) -> None:
        self.board = Board({job.name: job for job in jobs})
        self.slots, self.cards = slots, cards
        self._watcher = Watcher()
        self._submitted: dict[str, Any] = {}
        self._free: list[str] = []  # finished jobs whose processes wait for another one

    def _alive(self, job: Job) -> dict[str, Any] | None:
        """Progress of a job if it is running, whichever sweep submitted it, else None."""
        leases = [self._watcher.live(stage.folder) for stage in self.board.missing(job)]
        live = [lease for lease in leases if lease is not None]
        if live:
            return live[0]["progress"]
        if job.name in self._submitted:
            return None if self._submitted[job.name].done() or has_left(job.name) else {}
        return {} if running_process(job.name) else None

    def _start(self, job: Job) -> None:
        """Hand a job over to a process that waits for one, or submit it."""
        while self._free:
            ended = self._free.pop()
            with deferred_signals():
                if hand_over(ended, job):
                    self._submitted[job.name] = self._submitted[ended]
                    self.board.running[job.name] = {}
                    return
        self._submit(job)

    def _submit(self, job: Job) -> None:
        processes = job.stages[0].spec.compute.processes
        own = self._least_loaded(processes)
        forget_turns(job)
        call = (run_job, job) if processes > 1 or own else (run_in_turn, job, list(self.board.jobs.values()))
        with deferred_signals():
            handle = start_process(job_folder(job.name), job.name[:40], call, processes, own)
            self._submitted[job.name] = handle
            self.board.running[job.name] = {}

    def _loads(self) -> Counter[str]:
        """How many processes of running jobs each GPU has, adopted jobs included, by what it is called."""
        processes = filter(None, map(running_process, self.board.running))
        return Counter(card for process in processes for card in process.get("cards", ()))

    def _least_loaded(self, processes: int) -> list[Card]:
        """The GPUs with the fewest processes, one for each of a job's processes."""
        loads = self._loads() if self.cards else Counter()
        return sorted(self.cards, key=lambda card: loads[card.visible])[:processes]

    def _has_room(self, job: Job) -> bool:
        """Whether a job can start now: a slot is free, and on enough GPUs no more processes than the slots give
        each."""
        if len(self.board.running) >= self.slots:
            return False
        processes = job.stages[0].spec.compute.processes
        if not self.cards or processes == 1:
            return True
        loads, most = self._loads(), -(-self.slots * processes // len(self.cards))
        return sum(loads[card.visible] < most for card in self.cards) >= processes

    def watch(self, show: Show, on_change: Callable[[], None]) -> None:
        """Submit jobs as they become ready, until none is left; calls `on_change` after jobs have ended."""
        board = self.board
        waiting = list(board.jobs.values())
        last_check = -math.inf
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
                    else:  # stopped by another sweep, or the machine went down: resume it here
                        waiting.append(job)
                elif name in self._submitted and has_left(name):
                    self._free.append(name)
            check_waiting = changed or time.monotonic() - last_check > WAITING_SECONDS
            if check_waiting:
                last_check = time.monotonic()
            for job in list(waiting) if check_waiting else ():
                if not board.missing(job):
                    waiting.remove(job)
                    changed = True  # finished by another sweep
                elif job.after in board.failed and not board.ready(job):
                    waiting.remove(job)  # its input has failed: the results table states what it is blocked by
                elif (adopted := self._alive(job)) is not None:
                    waiting.remove(job)
                    board.running[job.name] = adopted
                elif board.ready(job) and self._has_room(job):
                    waiting.remove(job)
                    try:
                        self._start(job)
                    except OSError as error:  # a full disk
                        board.failed.add(job.name)
                        note_end_without_record(job, reason=f"the job could not be started: {error}")
                        changed = True
            while self._free:
                hand_over(self._free.pop(), None)
            show(board.running)
            if changed:
                on_change()  # after submitting, so that no slot is idle while figures are drawn
            if not board.running and not any(board.ready(job) for job in waiting):
                break  # inputs of the waiting jobs were deleted meanwhile: the next sweep computes them again
            if waiting or board.running:
                time.sleep(POLL_SECONDS)
        deadline = time.monotonic() + END_SECONDS
        while time.monotonic() < deadline and not all(process.done() for process in self._submitted.values()):
            time.sleep(POLL_SECONDS)  # those that got no other job are ending

    def stop(self) -> None:
        """Ask every running job, adopted ones too, to save and end; prints those that still run after STOP_SECONDS."""
        deadline = time.monotonic() + STOP_SECONDS

        def controllers() -> list[int]:
            return [process["pid"] for process in map(running_process, self.board.running) if process is not None]

        while (pids := controllers()) and time.monotonic() < deadline:
            for pid in pids:
                ask_to_end(pid)  # repeatedly: a job that is starting does not handle signals yet
            time.sleep(1.0)
        for name in self.board.running:
            if self._alive(self.board.jobs[name]) is not None:
                print(f"{self.board.jobs[name].title} has not ended yet; the same command will adopt it")


def start_process(folder: Path, name: str, call: tuple[Any, ...], processes: int, cards: Sequence[Card]) -> Any:
    """Start a call (a function and its arguments) in processes on this machine; returns submitit's handle.

    Writes logs and the process's identity (`submission.json`), with its GPUs, to `folder`. To be called within
    `deferred_signals`.
    """
    import submitit
    from submitit.helpers import environment_variables

    folder.mkdir(parents=True, exist_ok=True)
    executor = submitit.LocalExecutor(folder=folder)
    executor.update_parameters(timeout_min=TIMEOUT_MINUTES, stderr_to_stdout=True, name=name, tasks_per_node=processes)
    # not submitit's `visible_gpus`, which takes indices alone; without it, it hides all GPUs until `on_cards`
    call = (on_cards, cards, *call) if cards else call
    with environment_variables(**environment(snapshot())):
        submitted = executor.submit(*call)
        note = {**this_process(int(submitted.job_id)), "cards": [card.visible for card in cards]}
        with contextlib.suppress(OSError):  # a full disk: later sweeps then see the job only by its lease
            write_json(folder / "submission.json", note)
    return submitted


@contextlib.contextmanager
def deferred_signals() -> Iterator[None]:
    """Defer signals while a job is submitted and `submission.json` is written, so that no job is lost track of.

    Ctrl-C reaches every process of the terminal, and submitit's controller would react by killing its job. A controller
    that is started in this block inherits SIGINT as blocked, so that only `stop` ends jobs. Here it is handled like the
    others: were it ignored meanwhile, it would be lost.
    """
    received: list[int] = []
    previous_handlers = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            previous_handlers[number] = signal.signal(number, lambda n, _frame: received.append(n))
    previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)  # one that waits is received here
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)
    if received:
        raise KeyboardInterrupt
