"""A study that is killed at random moments, in every stage, ends with the bits of one that was not."""

import dataclasses
import hashlib
import os
import random
import shutil
import signal
import sys
import time

import pytest
from forked import CONTEXT, KINDS

from study.submit.jobs import LEFTOVERS, run_job
from study.train import checkpoint

SIGNALS = (signal.SIGKILL, signal.SIGTERM)


def attempt(root, job):
    """What a job's process does."""
    os.environ["STUDY_ROOT"] = root
    sys.stdout = open(os.path.join(root, "log"), "a")  # noqa: SIM115
    checkpoint.SAVE_SECONDS, checkpoint.SAVE_SHARE = 0.0, float("inf")  # a write is always under way
    run_job(job)


def start(root, plan, stage):
    """A process that runs this one stage as its job would."""
    (job,) = (job for job in plan.jobs if stage in job.stages)
    process = CONTEXT.Process(target=attempt, args=(str(root), dataclasses.replace(job, stages=(stage,))))
    process.start()
    return process


def run(root, plan, stage):
    """Run a stage to its end; returns the seconds."""
    began = time.monotonic()
    process = start(root, plan, stage)
    process.join()
    assert process.exitcode == 0 and stage.record() is not None, (root / "log").read_text()
    return time.monotonic() - began


def run_killed(root, plan, stage, kills, seconds, rng):
    """Run a stage to its end with so many kills, each a random part of `seconds` after a start."""
    while kills:
        process, number, delay = start(root, plan, stage), rng.choice(SIGNALS), rng.uniform(0, seconds)
        began = time.monotonic()
        process.join(delay)
        if process.exitcode is None:
            os.kill(process.pid, number)
            process.join(60)
            assert process.exitcode is not None
            kills -= 1
            print(f"  {number.name} in {stage.kind} after {delay:.2f} s")
        else:  # it was done before: once more from its beginning, sooner
            seconds = min(seconds, time.monotonic() - began)
            shutil.rmtree(stage.folder)
    run(root, plan, stage)


def outcome(root, plan):
    """Hashes of everything that the stages and what they share have left, and what the records say was measured."""
    files = [path for path in root.rglob("*.safetensors") if not any(path.match(pattern) for pattern in LEFTOVERS)]
    found = {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    for stage in plan.stages:
        record = stage.record()
        assert "skipped_steps" not in record["cost"]
        found[stage.fingerprint] = {key: record.get(key) for key in ("metrics", "latent")}
    return found


@pytest.mark.parametrize("kills", [pytest.param(4, marks=pytest.mark.slow), pytest.param(20, marks=pytest.mark.chaos)])
def test_a_study_that_is_killed_again_and_again_ends_with_the_same_bits(
    kills, tiny_plan, tiny_scale, study_root, tmp_path, monkeypatch
):
    seed = int(os.environ.get("CHAOS_SEED") or time.time())
    print(f"\n{kills} kills, CHAOS_SEED={seed}")
    rng = random.Random(seed)
    plan = tiny_plan(dataclasses.replace(tiny_scale, judges=(("classifier", 0),)))
    assert {stage.kind for stage in plan.stages} == set(KINDS)
    killed_root = tmp_path / "killed"
    shutil.copytree(study_root / "data", killed_root / "data")
    seconds = [run(study_root, plan, stage) for stage in plan.stages]
    whole = outcome(study_root, plan)

    monkeypatch.setenv("STUDY_ROOT", str(killed_root))
    rounds, rest = divmod(kills, len(plan.stages))
    once_more = rng.sample(range(len(plan.stages)), rest)
    for number, stage in enumerate(plan.stages):
        run_killed(killed_root, plan, stage, rounds + (number in once_more), seconds[number], rng)
    assert outcome(killed_root, plan) == whole
    assert len([name for name in whole if name.endswith(".safetensors")]) >= 6  # tokenizer, latents, four snapshots
    # a lease may stay where the kill came after the record: its holder is known to be gone
    assert not list(killed_root.rglob("stages/*/*/.*.safetensors.*"))
