"""Running a job: its stages in order, each under its lease, each ending in a record or a failure."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import logging
import sys
import time
import traceback
from collections.abc import Container
from pathlib import Path

from study import stages
from study.core.compute import processor
from study.core.distributed import (
    FailedElsewhere,
    barrier,
    from_main,
    lost_another_process,
    process_group,
    processes,
    rank,
    rank_and_count,
)
from study.core.files import read_json, remove_partial, write_json
from study.core.lease import Lease, LeaseLost, lease
from study.core.paths import job_folder
from study.core.provenance import provenance
from study.core.stopping import Interrupted, stop_on_signals, stop_requested
from study.core.workspace import Blocked, Diverged, Record, Workspace
from study.plan.estimate import note_rate
from study.plan.runs import Job
from study.plan.stage import INTERRUPTED, UNWRITTEN_FAILURES, VERSIONS, Stage
from study.submit.cluster import requeue


def log_of(job: Job) -> str:
    """Path of the newest log of a job, or ''; of several processes the first one's."""
    note = read_json(job_folder(job.name) / "submission.json") or {}
    if "log" in note:
        return note["log"] if Path(note["log"]).exists() else ""
    logs = sorted(job_folder(job.name).glob("*_0_log.out"), key=lambda path: path.stat().st_mtime)
    return str(logs[-1]) if logs else ""


log = logging.getLogger(__name__)

LEFTOVERS = ("checkpoint-*.safetensors", "chunk-*.safetensors")  # what a stage that is done no longer needs


def run_stage(stage: Stage, title: str = "", *, pause_at: int | None = None, at_hand: Container[str] = ()) -> Record:
    """The record of a stage: read when it is done, made by running the stage when it is not.

    Of several processes (study/core/distributed.py) the first holds the lease and writes the record; all run the stage.

    Args:
        title: names the stage in progress lines.
        pause_at: images seen at which a training stops as if asked to.
        at_hand: inputs that need no record, because what the stage reads of them is there: a training's snapshot.

    Raises:
        Blocked: an input has no record.
        Interrupted: asked to stop; what was done is saved and nothing is recorded.
        Exception: whatever the stage raised, after it was written to `failure.json`.
    """
    if record := from_main(stage.record()):
        return record
    missing = [
        f"{name} {source.fingerprint}"
        for name, source in stage.inputs.items()
        if name not in at_hand and source.record() is None
    ]
    if missing := from_main(missing):
        raise Blocked(f"blocked by {', '.join(missing)}")
    with contextlib.ExitStack() as stack:
        held, asked_to_stop = None, ""
        try:
            held = stack.enter_context(lease(stage.folder)) if rank() == 0 else None
        except OSError as error:  # a full or read-only disk
            note_failure(stage, "failed", _reason(error))
            raise
        except Interrupted as asked:
            asked_to_stop = str(asked)
        record, asked_to_stop = from_main([stage.record(), asked_to_stop])  # the others wait for this
        if asked_to_stop:
            raise Interrupted(asked_to_stop)
        if record:  # whoever held the lease before finished it
            return record
        if held:
            for earlier in ("failure.json", INTERRUPTED):
                (stage.folder / earlier).unlink(missing_ok=True)
            UNWRITTEN_FAILURES.pop(stage.folder, None)
            remove_partial(stage.folder)
        started = time.time()
        try:
            outcome = stages.execute(stage, Workspace(stage.folder, held, title or stage.kind, pause_at))
            if held is not None:
                _record(stage, outcome, held, started)
            barrier()
        except Interrupted as asked:
            _note_interrupted(stage, asked)
            raise
        except LeaseLost:
            raise
        except BaseException as error:
            if lost_another_process(error):
                raise _without_another(stage) from error
            if not isinstance(error, FailedElsewhere):
                note_failure(stage, "diverged" if isinstance(error, Diverged) else "failed", _reason(error))
            raise
        record = stage.record()
        assert record is not None
        return record


def _record(stage: Stage, outcome: Record, held: Lease, started: float) -> None:
    record = {
        "stage": stage.kind,
        "version": VERSIONS[stage.kind],
        "fingerprint": stage.fingerprint,
        "inputs": {name: source.fingerprint for name, source in stage.inputs.items()},
        "spec": dataclasses.asdict(stage.spec),  # what study/plan/specs.py reads a stage back from
        **outcome,
        "provenance": provenance(stage.spec.compute),
        "seconds": round(time.time() - started, 3),
        "ended": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    held.check()
    write_json(stage.folder / "record.json", record)
    for pattern in LEFTOVERS:  # only now: whoever is killed before the record needs them
        for path in stage.folder.glob(pattern):
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # an estimate for the next plan, no result
        note_rate(stage, record["cost"].get("train_seconds", record["seconds"]), processor())


def _note_interrupted(stage: Stage, asked: Interrupted) -> None:
    if rank() == 0:
        write_json(stage.folder / INTERRUPTED, {"reason": str(asked)})


def _without_another(stage: Stage) -> Exception:
    """What to raise when another process of the job has ended: it was asked to stop like this one, or it died."""
    if stop_requested.is_set():
        asked = Interrupted(f"{stage.kind} was asked to stop")
        _note_interrupted(stage, asked)
        return asked
    if rank() == 0 and stage.failure() is None:  # unless it said itself why
        note_failure(stage, "failed", "another process of the job ended (killed, or out of memory?): see its log")
    return RuntimeError("another process of the job ended")


def _reason(error: BaseException) -> str:
    first = str(error).strip().splitlines()
    text = first[0] if first else ""
    return text if isinstance(error, (Diverged, Blocked)) else f"{type(error).__name__}: {text}".rstrip(": ")


def note_failure(stage: Stage, state: str, reason: str) -> None:
    """Write why a stage has no record: state ("failed", "diverged") and reason.

    Where nothing can be written, as on a full disk, this process remembers it: the table may lie elsewhere.
    """
    try:
        write_json(stage.folder / "failure.json", {"state": state, "reason": reason})
        UNWRITTEN_FAILURES.pop(stage.folder, None)
    except OSError as error:
        reason = f"{reason}; cannot write to {stage.folder}: {error.strerror}"
        UNWRITTEN_FAILURES[stage.folder] = {"state": state, "reason": reason}


def note_end_without_record(
    job: Job, state: str = "failed", reason: str = "the process ended without a record (killed, or out of memory?)"
) -> None:
    """A job is gone and records are missing: say so where the job did not say it itself."""
    for stage in job.stages:
        could_run = stage.record() is None and all(source.record() for source in stage.inputs.values())
        if could_run and stage.failure() is None:
            note_failure(stage, state, reason)
            break


def run_job(job: Job) -> list[str]:
    """Do the stages of a job; returns the fingerprints of those that are done.

    A stage that fails stops those that read from it; the others still run. Of several processes, one that fails ends,
    and so do the others. Results are in the records: the return value is for logs alone.
    """
    log_to_stdout()
    done, failures = [], 0
    with stop_on_signals(), process_group(job.stages[0].spec.compute.device):
        for stage in job.stages:
            try:
                run_stage(stage, title=stage_title(stage))
                done.append(stage.fingerprint)
            except Interrupted as stopped:
                log.info("%s; the same command goes on from here", stopped)
                break
            except LeaseLost as lost:
                log.warning("%s: leaving it to that one", lost)
                break
            except Blocked as blocked:
                failures += 1
                log.error("%s: %s", stage_title(stage), blocked)
            except Exception:
                failures += 1
                log.error("%s failed\n%s", stage_title(stage), traceback.format_exc())
                if processes() > 1:  # the others may wait for this one: its end is what tells them
                    sys.exit(1)
            if stop_requested.is_set():
                break
    if stop_requested.is_set() and len(done) < len(job.stages) and rank_and_count()[0] == 0 and (told := requeue()):
        log.info("%s", told)
    if failures:
        log.error("%d of %d stages have no result", failures, len(job.stages))
    return done


def log_to_stdout() -> None:
    """Our own lines, at every level; libraries keep theirs to warnings."""
    ours = logging.getLogger("study")
    if not ours.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        ours.addHandler(handler)
        ours.setLevel(logging.INFO)
        ours.propagate = False


def stage_title(stage: Stage) -> str:
    """How a stage is called in progress lines."""
    mark = getattr(stage.spec, "images_seen", None)
    return stage.kind if mark is None else f"{stage.kind} at {mark:,} images"
