"""Running a job: its stages in order, each under a lease, each ending with a record or a failure."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import logging
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from results.files import remove_partial
from study import stages
from study.core.distributed import (
    RankZeroFailed,
    another_process_ended,
    barrier,
    broadcast,
    process_group,
    rank,
    rank_and_world_size,
    world_size,
)
from study.core.files import read_json, write_json
from study.core.lease import Lease, LeaseLost, holder, lease
from study.core.paths import job_folder
from study.core.provenance import EXECUTION, provenance
from study.core.stopping import Interrupted, stop_on_signals, stop_requested
from study.core.workspace import Blocked, Diverged, Record, Workspace, restart_peak_memory
from study.data.picture_chunks import picture_files, pictures_gone
from study.plan.estimate import note_rate
from study.plan.runs import Job
from study.plan.specs import Judge, Reconstruct, Sample
from study.plan.stage import ATTEMPTS, INTERRUPTED, RECORD, UNWRITTEN_FAILURES, VERSIONS, Stage, mark_record
from study.plan.trajectory import goes_on_from
from study.submit.cluster import requeue


def log_of(job: Job) -> str:
    """Path of the newest log of a job (of several processes, that of rank 0); '' if there is none."""
    submission = read_json(job_folder(job.name) / "submission.json") or {}
    if "log" in submission:
        return submission["log"] if Path(submission["log"]).exists() else ""
    logs = sorted(job_folder(job.name).glob("*_0_log.out"), key=lambda path: path.stat().st_mtime)
    return str(logs[-1]) if logs else ""


log = logging.getLogger(__name__)

LEFTOVERS = (ATTEMPTS, "checkpoint-*.safetensors")  # files that a finished stage no longer needs


def run_stage(stage: Stage, title: str = "") -> Record:
    """The record of a stage: read if the stage is finished, else the stage is run.

    Of several processes (study/core/distributed.py) all run the stage; rank 0 holds the lease and writes the record.
    A generator is trained for the marks that have no record.

    Args:
        title: names the stage in progress lines.

    Raises:
        Blocked: an input has no record.
        Interrupted: a stop was requested; the state is saved and there is no record.
        Exception: whatever the stage raised; it is also written to `failure.json`.
    """
    if record := broadcast(stage.record()):
        return record
    missing = [f"{name} {source.fingerprint}" for name, source in stage.inputs.items() if source.record() is None]
    if missing := broadcast(missing):
        raise Blocked(f"blocked by {', '.join(missing)}")
    with contextlib.ExitStack() as stack:
        held_lease, stop_reason = None, ""
        try:
            held_lease = stack.enter_context(lease(stage.folder)) if rank() == 0 else None
        except OSError as error:  # a full or read-only disk
            note_failure(stage, "failed", _reason(error))
            raise
        except Interrupted as interrupted:
            stop_reason = str(interrupted)
        # the other processes wait here
        record, stop_reason, marks = broadcast([stage.record(), stop_reason, stage.missing_marks()])
        if stop_reason:
            raise Interrupted(stop_reason)
        if record:  # an earlier holder of the lease finished the stage
            return record
        if held_lease:
            for name in ("failure.json", INTERRUPTED):  # of earlier attempts
                (stage.folder / name).unlink(missing_ok=True)
            UNWRITTEN_FAILURES.pop(stage.folder, None)
            remove_partial(stage.folder)
            _note_attempt(stage)
        started = time.time(), time.process_time()
        restart_peak_memory()
        try:
            for source in stage.inputs.values() if stage.kind == "judge" else ():
                _bring_back(source, stack)
            write_record = functools.partial(_write_record, stage, held_lease, started)
            workspace = Workspace(stage.folder, held_lease, title or stage.kind, write_record)
            outcome = stages.execute(stage.at(marks) if marks else stage, workspace)
            if held_lease is not None and not marks:
                write_record(outcome)
            barrier()
        except Interrupted as interrupted:
            _note_interrupted(stage, interrupted)
            raise
        except LeaseLost:
            raise
        except BaseException as error:
            if another_process_ended(error):
                raise _peer_ended(stage) from error
            if not isinstance(error, RankZeroFailed):
                note_failure(stage, "diverged" if isinstance(error, Diverged) else "failed", _reason(error))
            raise
        record = stage.record()
        assert record is not None
        return record


def _bring_back(pictures: Stage, stack: contextlib.ExitStack) -> None:
    """Make the pictures of a finished stage again where they are gone, and hold its lease while they are judged, so
    that no other process deletes them."""
    held_lease = stack.enter_context(lease(pictures.folder)) if rank() == 0 else None
    if broadcast(pictures_gone(pictures)):
        log.info("%s: its pictures are gone, and are made again", stage_title(pictures))
        stages.execute(pictures, Workspace(pictures.folder, held_lease, stage_title(pictures), _no_record))
        barrier()


def _no_record(outcome: Record, images_seen: int) -> None:
    raise AssertionError("stages that make pictures have one record")


def discard_judged(job_stages: Sequence[Stage]) -> None:
    """Delete the pictures that do not stay once every judge of these stages has its record."""
    judges = [stage for stage in job_stages if stage.kind == "judge"]
    for pictures in job_stages:
        if not isinstance(pictures.spec, (Reconstruct, Sample)) or pictures.spec.keep:
            continue
        own = [judge for judge in judges if pictures in judge.inputs.values()]
        files = picture_files(pictures.folder)
        if files and all(judge.record() for judge in own) and holder(pictures.folder) is None:
            with lease(pictures.folder):
                for path in files:
                    path.unlink(missing_ok=True)


CARRIED_OUT = ("device", *EXECUTION, "versions", "commit")  # what may differ between the attempts of a stage


def _note_attempt(stage: Stage) -> None:
    """Add how this attempt is carried out to the stage's attempts; say so where it differs from the one before.

    An attempt that could not be written (a full disk) is missing from the record: the stage itself will say why.
    """
    origin = provenance(stage.spec.compute)
    attempt = {name: origin[name] for name in CARRIED_OUT}
    before = read_json(stage.folder / ATTEMPTS) or []
    if stage.marks and not goes_on_from(stage):  # nothing of the attempts before goes into it
        before = []
    if before and (changes := changes_between([*before[-1:], attempt])):
        log.info("%s goes on otherwise than it began: %s", stage_title(stage), changes)
    if not before or before[-1] != attempt:
        with contextlib.suppress(OSError):
            write_json(stage.folder / ATTEMPTS, [*before, attempt])


def changes_between(attempts: Sequence[Mapping[str, Any]]) -> str:
    """What differed between the attempts of a stage, in words: 'threads 1 then 2'; empty if nothing did."""
    values = {name: [attempt[name] for attempt in attempts] for name in CARRIED_OUT}
    changed = {name: list(dict.fromkeys(found)) for name, found in values.items()}
    return "; ".join(f"{name} {' then '.join(map(str, each))}" for name, each in changed.items() if len(each) > 1)


def _write_record(
    stage: Stage,
    held_lease: Lease | None,
    started: tuple[float, float],
    outcome: Record,
    images_seen: int | None = None,
) -> None:
    """Write the record of a finished stage, or of the mark that a generator's training has reached.

    Args:
        started: time, and processor time of this process, when the stage began.
    """
    if images_seen is not None:
        stage = stage.at([images_seen])
    record = {
        "stage": stage.kind,
        "version": VERSIONS[stage.kind],
        "fingerprint": stage.fingerprint,
        "inputs": {name: source.fingerprint for name, source in stage.inputs.items()},
        "spec": dataclasses.asdict(stage.spec),  # from which study/plan/stage.py rebuilds the stage
        **outcome,
        "provenance": provenance(stage.spec.compute),
        "attempts": read_json(stage.folder / ATTEMPTS) or [],
        "seconds": round(time.time() - started[0], 3),
        "core_seconds": round(time.process_time() - started[1], 3),  # unlike seconds, not longer on a busy machine
        "ended": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    assert held_lease is not None  # rank 0 writes
    held_lease.check()
    write_json(stage.folder / (RECORD if images_seen is None else mark_record(images_seen)), record)
    for pattern in LEFTOVERS if images_seen is None else ():  # only now: an attempt killed before this needs them
        for path in stage.folder.glob(pattern):
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # only used for estimates
        device = record["provenance"]["device"]
        note_rate(stage, record["cost"].get("train_seconds", record["seconds"]), device)


def _note_interrupted(stage: Stage, interrupted: Interrupted) -> None:
    if rank() == 0:
        write_json(stage.folder / INTERRUPTED, {"reason": str(interrupted)})


def _peer_ended(stage: Stage) -> Exception:
    """The exception to raise when another process of the job ended: it was asked to stop like this one, or it died."""
    if stop_requested.is_set():
        interrupted = Interrupted(f"{stage.kind} was asked to stop")
        _note_interrupted(stage, interrupted)
        return interrupted
    if rank() == 0 and stage.failure() is None:  # unless the other process reported the reason itself
        note_failure(stage, "failed", "another process of the job ended (killed, or out of memory?): see its log")
    return RuntimeError("another process of the job ended")


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else ""
    return text if isinstance(error, (Diverged, Blocked)) else f"{type(error).__name__}: {text}".rstrip(": ")


def note_failure(stage: Stage, state: str, reason: str) -> None:
    """Write why a stage has no record: state ("failed", "diverged") and reason.

    When the stage's folder is not writable (full disk), this process keeps it in memory: the results table may be on
    another disk.
    """
    try:
        write_json(stage.folder / "failure.json", {"state": state, "reason": reason})
        UNWRITTEN_FAILURES.pop(stage.folder, None)
    except OSError as error:
        reason = f"{reason}; cannot write to {stage.folder}: {error.strerror}"
        UNWRITTEN_FAILURES[stage.folder] = {"state": state, "reason": reason}


NO_RECORD = "the process ended without a record (killed, or out of memory?)"


def note_end_without_record(job: Job, reason: str = NO_RECORD) -> None:
    """Note a failure for a job that ended without all its records, unless the job noted one itself."""
    if (stage := stage_without_record(job)) is not None:
        note_failure(stage, "failed", reason)


def stage_without_record(job: Job) -> Stage | None:
    """The first stage of an ended job that could run and left neither a record nor a failure."""
    for stage in job.stages:
        could_run = stage.record() is None and all(source.record() for source in stage.inputs.values())
        if could_run and stage.failure() is None:
            return stage
    return None


def run_job(job: Job) -> list[str]:
    """Run the stages of a job; returns the fingerprints of the finished ones.

    When a stage fails, the stages that read from it are skipped and the others still run. With several processes, one
    that fails exits, and so do the others. Results are in the records: the return value is only for logs.
    """
    log_to_stdout()
    done, failures = [], 0
    with stop_on_signals(), process_group(job.stages[0].spec.compute.device):
        for stage in job.stages:
            try:
                run_stage(stage, title=stage_title(stage))
                done.append(stage.fingerprint)
            except Interrupted as stopped:
                log.info("%s; the same command resumes from here", stopped)
                break
            except LeaseLost as lost:
                log.warning("%s: leaving the stage to that process", lost)
                break
            except Blocked as blocked:
                failures += 1
                log.error("%s: %s", stage_title(stage), blocked)
            except Exception:
                failures += 1
                log.error("%s failed\n%s", stage_title(stage), traceback.format_exc())
                if world_size() > 1:  # the others may wait for this process: they notice when it exits
                    sys.exit(1)
            if stop_requested.is_set():
                break
        if rank() == 0:
            discard_judged(job.stages)
    unfinished = len(done) < len(job.stages)
    if stop_requested.is_set() and unfinished and rank_and_world_size()[0] == 0 and (message := requeue()):
        log.info("%s", message)
    if failures:
        log.error("%d of %d stages have no result", failures, len(job.stages))
    return done


def log_to_stdout() -> None:
    """Print the log messages of this package from level INFO on; those of libraries stay at their default level."""
    logger = logging.getLogger("study")
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False


def stage_title(stage: Stage) -> str:
    """Name of a stage in progress lines."""
    if isinstance(stage.spec, Judge):
        (pictures,) = stage.inputs.values()
        return f"{stage_title(pictures)} judged by {stage.spec.judge.name}"
    mark = getattr(stage.spec, "images_seen", None)
    return stage.kind if mark is None else f"{stage.kind} at {mark:,} images"
