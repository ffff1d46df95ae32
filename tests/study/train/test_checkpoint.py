"""Checkpoints on a slow disk: time is simulated, and passes in steps, copies and writes alone."""

import concurrent.futures
import dataclasses
import errno
import functools
import os
import signal
import threading
from types import SimpleNamespace

import pytest
import torch
from interrupting import Counting, weights

from study.core.lease import LeaseLost, lease
from study.core.stopping import Interrupted, stop_requested
from study.core.workspace import Workspace
from study.plan.stage import KEPT_STATE, state_files
from study.stages import fit_tokenizer
from study.submit import jobs
from study.submit.jobs import run_job, run_stage
from study.train import checkpoint, loop
from study.train.loop import train


class Simulated:
    """A clock, and a disk on which a write takes `write` seconds after a copy of `copy` seconds; `error` ends it."""

    def __init__(self, monkeypatch, *, copy, write, error=None):
        self.now, self.ends, self.copied_at, self.changed = 0.0, 0.0, [], threading.Condition()
        writer = checkpoint.Writer
        host_copy, save_tensors = checkpoint.host_copy, checkpoint.save_tensors
        busy, wait, leave = writer.busy.fget, writer.wait, writer.__exit__

        def copied(state):
            self.copied_at.append(self.now)
            self.reach(self.now + copy)
            self.ends = self.now + write
            return host_copy(state)

        def written(*arguments):
            with self.changed:
                assert self.changed.wait_for(lambda: self.now >= self.ends, 60)
            if error:
                raise error
            save_tensors(*arguments)

        def is_busy(own):
            if own._write is not None and self.now >= self.ends:
                concurrent.futures.wait([own._write], 60)
            return busy(own)

        def waited(then):
            def function(*arguments):
                self.reach(self.ends)
                return then(*arguments)

            return function

        for module in (loop, checkpoint):
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(checkpoint, "host_copy", copied)
        monkeypatch.setattr(checkpoint, "save_tensors", written)
        monkeypatch.setattr(writer, "busy", property(is_busy))
        monkeypatch.setattr(writer, "wait", waited(wait))
        monkeypatch.setattr(writer, "__exit__", waited(leave))

    def reach(self, now):
        with self.changed:
            self.now = max(self.now, now)
            self.changed.notify_all()

    def steps_of(self, seconds, step, after=lambda images_seen: None):
        """The same step, which takes so many seconds; `after` is called at its end."""

        def timed(images_seen):
            loss = step(images_seen)
            self.reach(self.now + seconds)
            after(images_seen)
            return loss

        return timed


@pytest.mark.parametrize(
    ("asked_at", "copies"), [(10, 1), (30, 1), (90, 2)]
)  # before, during and after the first write
def test_a_job_warned_two_minutes_before_its_end_saves_once_and_is_requeued(
    asked_at, copies, tiny_plan, tiny_scale, monkeypatch
):
    job = tiny_plan(longer(tiny_scale, 60)).jobs[0]
    stage = job.stages[0]
    disk, made, requeued = Simulated(monkeypatch, copy=0.0, write=60.0), fit_tokenizer.step_function, []

    def signalled(_images_seen):
        if disk.now == asked_at:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as first:
        first.setattr(fit_tokenizer, "step_function", lambda *a: disk.steps_of(2.0, made(*a), signalled))
        first.setattr(jobs, "requeue", lambda: requeued.append(disk.now) or "requeued")
        run_job(job)
    (ended,) = requeued
    assert ended - asked_at <= 62
    assert len(disk.copied_at) == copies
    assert stage.interrupted() and max(state_files(stage.folder)) == 8 * disk.copied_at[-1] / 2
    stop_requested.clear()
    run_stage(stage)
    resumed = weights(stage.folder)
    for path in (stage.folder / "record.json", *stage.folder.glob("*.safetensors")):
        path.unlink()
    run_stage(stage)
    assert weights(stage.folder) == resumed


def longer(scale, steps):
    recipe = scale.tokenizer
    return dataclasses.replace(scale, tokenizer=dataclasses.replace(recipe, budget_images=steps * recipe.batch_images))


def test_checkpoints_take_two_percent_of_the_time_and_none_begins_during_another(tmp_path, monkeypatch):
    disk, counting = Simulated(monkeypatch, copy=1.0, write=60.0), Counting()
    counting.step = disk.steps_of(0.1, counting.step)
    counting.train(tmp_path, steps=5000)
    assert [round(second) for second in disk.copied_at] == [20, 131, 242, 353, 464]
    assert len(disk.copied_at) * 1.0 <= 0.02 * 500


def test_a_stop_right_after_a_quick_save_writes_what_was_trained_since(tmp_path, monkeypatch):
    disk, counting = Simulated(monkeypatch, copy=0.0, write=1.0), Counting()
    counting.step = disk.steps_of(2.0, counting.step, lambda seen: disk.now == 26 and stop_requested.set())
    with pytest.raises(Interrupted):
        counting.train(tmp_path)
    assert list(state_files(tmp_path)) == [88, 104] and disk.now == 27


def test_a_disk_that_fails_during_a_write_fails_the_stage_at_the_next_look(tiny_plan, monkeypatch):
    monkeypatch.setitem(loop.CHECK_STEPS, "cpu", 4)
    stage, seen = tiny_plan().stages[0], []
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    disk, made = Simulated(monkeypatch, copy=0.0, write=6.0, error=full), fit_tokenizer.step_function
    monkeypatch.setattr(fit_tokenizer, "step_function", lambda *a: disk.steps_of(6.0, made(*a), seen.append))
    with pytest.raises(OSError, match="No space left on device"):
        run_stage(stage)
    assert seen == [0, 8, 16, 24, 32]  # copied after the fourth step, noticed after the fifth
    assert stage.failure()["reason"] == "OSError: [Errno 28] No space left on device"
    assert {path.name for path in stage.folder.iterdir()} == {".lock", "attempts.json", "failure.json", "history.jsonl"}


def test_a_write_under_way_has_ended_when_the_lease_is_lost(tmp_path, monkeypatch):
    monkeypatch.setitem(loop.CHECK_STEPS, "cpu", 11)
    disk, counting = Simulated(monkeypatch, copy=0.0, write=60.0), Counting()
    with lease(tmp_path) as held:

        def taken_over(_images_seen):
            held._lost = disk.now >= 30

        out = Workspace(tmp_path, held, "training", write_record=print)
        step = disk.steps_of(2.0, counting.step, taken_over)
        with pytest.raises(LeaseLost):
            train(out, counting.state, step, budget_images=160, batch_images=8, device="cpu")
        assert counting.weight.weight.item() == pytest.approx(15, rel=1e-5)  # at once, not where the loss is read
        assert disk.copied_at == [22] and list(state_files(tmp_path)) == [88]
        assert not any(thread.name.startswith("checkpoints") for thread in threading.enumerate())


def test_a_fall_back_waits_for_the_write_under_way(tmp_path, monkeypatch):
    disk, counting = (
        Simulated(monkeypatch, copy=0.0, write=60.0),
        Counting(lambda seen, attempt: 88 <= seen <= 112 and attempt == 1),
    )
    counting.step = disk.steps_of(2.0, counting.step)
    assert counting.train(tmp_path)["skipped_steps"] == 4
    assert counting.weight.weight.item() == pytest.approx(20, rel=1e-5)
    assert counting.attempts[80] == 1 and counting.attempts[88] == 2


def train_to_marks(folder, disk, counting, keep_states, marked):
    with lease(folder) as held:
        train(
            Workspace(folder, held, "training", write_record=print),
            counting.state,
            disk.steps_of(2.0, counting.step),
            budget_images=160,
            batch_images=8,
            device="cpu",
            marks={mark: functools.partial(marked, mark) for mark in (80, 160)},
            keep_states=keep_states,
        )


@pytest.mark.parametrize("keep_states", [False, True])
def test_a_state_is_on_the_disk_before_the_record_of_its_mark(keep_states, tmp_path, monkeypatch):
    disk, found = Simulated(monkeypatch, copy=0.0, write=60.0), {}

    def marked(mark, cost):
        found[mark] = {seen: path.name for seen, path in state_files(tmp_path).items()}

    train_to_marks(tmp_path, disk, Counting(), keep_states, marked)
    kept = [mark for mark, states in found.items() if states.get(mark, "").startswith(KEPT_STATE)]
    assert kept == ([80, 160] if keep_states else [])
    assert max(found[160]) == 160
    assert list(state_files(tmp_path)) == ([80, 160] if keep_states else [160])


@pytest.mark.parametrize("keep_states", [False, True])
def test_a_stop_at_a_mark_saves_only_what_the_mark_has_not(keep_states, tmp_path, monkeypatch):
    disk, counting = Simulated(monkeypatch, copy=0.0, write=60.0), Counting()
    with pytest.raises(Interrupted):
        train_to_marks(tmp_path, disk, counting, keep_states, lambda mark, cost: stop_requested.set())
    assert counting.weight.weight.item() == pytest.approx(10, rel=1e-5)
    assert disk.copied_at == [20] and disk.now == 80
    assert list(state_files(tmp_path)) == [80]


def test_the_copy_is_of_its_moment_and_contiguous():
    state = {"layer": torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)}
    before = {name: tensor.clone() for name, tensor in checkpoint.pack(state).items()}
    copy = checkpoint.host_copy(state)
    with torch.no_grad():
        for parameter in state["layer"].parameters():
            parameter.add_(1)
    assert all(torch.equal(copy[name], tensor) for name, tensor in before.items()) and len(copy) == 2
    assert all(tensor.is_contiguous() for tensor in copy.values())
