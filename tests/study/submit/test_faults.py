"""Machine faults during a training: it fails with one line or stops, and resumed it ends bit-identical."""

import dataclasses
import os
import shutil
import signal
import subprocess

import pytest
import torch
from interrupting import checkpoint_after_every_step, weights

from results import table as results
from study.core.files import load_tensors, read_json
from study.core.stopping import STOP_SIGNALS, Interrupted, stop_on_signals, stop_requested
from study.core.workspace import Workspace
from study.data import latents as stored_latents
from study.data.datasets import _folder
from study.report.table_rows import update_table
from study.stages import fit_generator
from study.submit.jobs import run_stage
from study.train import checkpoint


@pytest.fixture(autouse=True)
def checkpoints(monkeypatch):
    checkpoint_after_every_step(monkeypatch)


@pytest.fixture
def small_disk(tmp_path, study_root, monkeypatch):
    """A disk of 8 MB, which contains the study root but not the results table."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here, which needs root: {mounted.stderr.strip()}")
    monkeypatch.setenv("STUDY_ROOT", str(disk / "root"))
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def undisturbed(stage):
    """The final weights of a stage that runs without faults; its folder is then deleted."""
    run_stage(stage)
    found = weights(stage.folder)
    shutil.rmtree(stage.folder)
    return found


def at_32_images(monkeypatch, fault):
    """Call `fault()` once, before the checkpoint at 32 images is written."""
    original, pending = Workspace.progress, [fault]

    def progress(self, done, total, unit="images", note=""):
        original(self, done, total, unit, note)
        if done == 32 and pending:
            pending.pop()()

    monkeypatch.setattr(Workspace, "progress", progress)


def row(plan, out):
    """State and reason of the tokenizer in the results table; its generators must be blocked or pending."""
    table = results.load(update_table(plan, out))
    assert set(table.loc[table["kind"] == "generator", "state"]) <= {"blocked", "pending"}
    (found,) = table[table["kind"] == "tokenizer"].to_dict("records")
    return found["state"], found["reason"]


def fill(disk, room):
    """Take all but `room` bytes of a disk."""
    with open(disk / "filler", "wb") as file:
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        os.posix_fallocate(file.fileno(), 0, free - room)


def judged(scale):
    return dataclasses.replace(scale, judges=(("classifier", 0),))  # without a judge a study has no rows


@pytest.mark.parametrize("room", [0, 8192])  # 0: not even the failure can be written down
def test_a_disk_that_fills_fails_the_row_and_keeps_the_checkpoint(
    room, small_disk, tiny_plan, tiny_scale, tmp_path, monkeypatch
):
    plan = tiny_plan(judged(tiny_scale))
    stage = plan.stages[0]
    whole = undisturbed(stage)
    at_32_images(monkeypatch, lambda: fill(small_disk, room))
    with pytest.raises(Exception, match="No space left on device"):
        run_stage(stage)
    state, reason = row(plan, tmp_path / "out")
    assert state == "failed"
    assert "No space left on device" in reason
    kept = {f"checkpoint-{images:012d}.safetensors" for images in (16, 24)}
    assert {path.name for path in stage.folder.iterdir()} == {
        ".lock", "attempts.json", "history.jsonl", *kept, *(["failure.json"] if room else ()),
    }  # fmt: skip
    (small_disk / "filler").unlink()
    run_stage(stage)
    assert weights(stage.folder) == whole
    assert row(plan, tmp_path / "out") == ("pending", "")


def test_a_disk_that_becomes_read_only_fails_the_row(small_disk, tiny_plan, tiny_scale, tmp_path, monkeypatch):
    def remount(how):
        subprocess.run(["mount", "-o", f"remount,{how}", str(small_disk)], check=True)

    plan = tiny_plan(judged(tiny_scale))
    stage = plan.stages[0]
    whole = undisturbed(stage)
    at_32_images(monkeypatch, lambda: remount("ro"))
    for _ in range(2):  # while it trains, and before it starts
        with pytest.raises(Exception, match="Read-only file system"):
            run_stage(stage)
        state, reason = row(plan, tmp_path / "out")
        assert state == "failed"
        assert "Read-only file system" in reason
        remount("rw")
        (stage.folder / "lease.json").unlink(missing_ok=True)  # the holder could not; its process would have ended
        remount("ro")
    remount("rw")
    assert checkpoint.restore(stage.folder, {}).images_seen == 24
    run_stage(stage)
    assert weights(stage.folder) == whole


def test_arrays_that_vanish_stop_no_training_and_the_next_says_what_to_do(tiny_plan, tiny_scale, tmp_path, monkeypatch):
    def vanish():
        for path in _folder(stage.spec.data).glob("*.npy"):
            path.unlink()

    plan = tiny_plan(judged(tiny_scale))
    stage, reconstruct, _, judge = plan.jobs[0].stages
    whole = undisturbed(stage)
    at_32_images(monkeypatch, vanish)
    run_stage(stage)
    assert weights(stage.folder) == whole
    with pytest.raises(ValueError, match="is missing in"):
        run_stage(reconstruct)
    state, reason = row(plan, tmp_path / "out")
    assert state == "failed"
    assert reason.endswith("delete the folder: the same command packs it again")
    shutil.rmtree(_folder(stage.spec.data))
    (again, *_) = tiny_plan(judged(tiny_scale)).stages
    assert again == stage
    run_stage(reconstruct)
    run_stage(judge)
    assert row(plan, tmp_path / "out") == ("done", "")


def run_out_of_gpu_memory():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda: torch.empty(2**60), "memory: you tried to allocate"),
        (lambda: bytearray(2**60), "MemoryError"),
        (run_out_of_gpu_memory, "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."),
    ],
)
def test_out_of_memory_is_one_line_and_the_checkpoint_is_whole(
    fault, message, tiny_plan, tiny_scale, tmp_path, monkeypatch
):
    plan = tiny_plan(judged(tiny_scale))
    stage = plan.stages[0]
    whole = undisturbed(stage)
    at_32_images(monkeypatch, fault)
    with pytest.raises((MemoryError, RuntimeError)):
        run_stage(stage)
    state, reason = row(plan, tmp_path / "out")
    assert state == "failed"
    assert message in reason and len(reason.splitlines()) == 1
    assert sorted(path.name for path in stage.folder.glob("checkpoint-*"))[-1] == "checkpoint-000000000024.safetensors"
    run_stage(stage)
    assert weights(stage.folder) == whole


def in_backward(monkeypatch, call, number):
    """Send this process a signal from within this call of backward, counted from 1."""
    backward, calls = torch.autograd.backward, []

    def signalled(tensors, *arguments, **options):
        calls.append(1)
        if len(calls) == call:
            tensors.register_hook(lambda gradient: os.kill(os.getpid(), number))
        backward(tensors, *arguments, **options)

    monkeypatch.setattr(torch.autograd, "backward", signalled)


def stopped_in_backward(stage, monkeypatch, number):
    """Run a stage that gets a signal in the third of its 8 steps, then again; returns the weights it ends with."""
    calls_a_step = 3 if stage.kind == "fit_tokenizer" else 1  # decoder, KL term, encoder
    in_backward(monkeypatch, 3 * calls_a_step, number)
    with stop_on_signals():
        with pytest.raises(Interrupted):
            run_stage(stage)
        assert stop_requested.is_set()
        assert sorted(path.name for path in stage.folder.glob("checkpoint-*"))[-1].endswith("000024.safetensors")
        assert read_json(stage.folder / "interrupted.json")
        assert stage.failure() is None
        stop_requested.clear()
        run_stage(stage)
    return weights(stage.folder)


@pytest.fixture
def default_signals():
    """No signal is ignored, as some are where tests run in the background."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in map(signal.Signals.__getitem__, STOP_SIGNALS)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("default_signals")
@pytest.mark.parametrize("name", STOP_SIGNALS)
def test_a_signal_in_backward_ends_the_step_and_saves(name, tiny_plan, monkeypatch):
    stage = tiny_plan().stages[0]
    whole = undisturbed(stage)
    assert stopped_in_backward(stage, monkeypatch, signal.Signals[name]) == whole


def generator_of(plan):
    """The stage that trains a generator, with its tokenizer and latents done."""
    fit, _, latents = plan.jobs[0].stages
    run_stage(fit)
    run_stage(latents)
    return plan.jobs[1].stages[0]


def test_a_signal_in_a_generators_backward_ends_the_step_and_saves(tiny_plan, monkeypatch):
    stage = generator_of(tiny_plan())
    whole = undisturbed(stage)
    assert stopped_in_backward(stage, monkeypatch, signal.SIGTERM) == whole


def test_a_signal_that_was_ignored_stays_so(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        with stop_on_signals():
            os.kill(os.getpid(), signal.SIGHUP)
        assert not stop_requested.is_set()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGUSR2"])
def test_a_job_that_starts_with_ignored_signals_handles_them_when_it_can_save(name):
    number = signal.Signals[name]
    before = signal.signal(number, signal.SIG_IGN)  # as study/submit/slurm.py starts Python
    try:
        with stop_on_signals():
            os.kill(os.getpid(), number)
            assert stop_requested.is_set()
    finally:
        stop_requested.clear()
        signal.signal(number, before)


def test_a_poisoned_batch_is_skipped_and_spoils_neither_weights_nor_ema_nor_moments(tiny_plan, monkeypatch):
    stage = generator_of(tiny_plan())
    built, drawn = [], []
    build, normalised = fit_generator.build, stored_latents.Latents.normalised

    def poisoned(self, stored, noise):
        drawn.append(normalised(self, stored, noise))
        if len(drawn) == 4:
            drawn[-1][1, 2, 3, 3] = float("nan")  # one value of one image
        return drawn[-1]

    monkeypatch.setattr(fit_generator, "build", lambda spec: built.append(build(spec)) or built[-1])
    monkeypatch.setattr(stored_latents.Latents, "normalised", poisoned)
    cost = run_stage(stage)["cost"]
    assert len(drawn) == 8
    assert cost["skipped_steps"] == 1
    assert cost["final_loss"] is not None
    (parts,) = built
    state = checkpoint.pack(parts)
    assert {name.split("/")[0] for name in state} == {"generator", "ema", "optimizer"}
    assert all(tensor.isfinite().all() for tensor in state.values())
    assert {float(state[name]) for name in state if name.endswith("/step")} == {7.0}
    for path in stage.folder.glob("*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_tensors(path).values()), path.name
