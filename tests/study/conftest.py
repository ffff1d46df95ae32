"""A study small enough to run inside a test: made pictures, tiny networks, the real stages."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import subprocess
import sys
import uuid

import pytest
from made_up import COMPUTE, draw_pictures

from study.core.stopping import stop_requested
from study.data.datasets import resolve_data
from study.plan.resolve import make_plan
from study.plan.scales import smoke
from study.submit.jobs import run_stage


@pytest.fixture(autouse=True)
def asked_to_stop_by_no_earlier_test():
    yield
    stop_requested.clear()


@pytest.fixture(autouse=True)
def logs_as_before():
    """What runs as a job logs to the standard output that it finds, which is closed after the test."""
    logger = logging.getLogger("study")
    handlers, level, propagate = list(logger.handlers), logger.level, logger.propagate
    yield
    logger.handlers[:], logger.propagate = handlers, propagate
    logger.setLevel(level)


@pytest.fixture
def pictures(tmp_path):
    return draw_pictures(tmp_path / "pictures")


@pytest.fixture
def tiny_scale():
    """Smoke, smaller still and without any pretrained network or judge."""
    scale = smoke()
    return dataclasses.replace(
        scale,
        train_images=48,
        foundation_models=(),
        judges=(),
        autoencoder=dataclasses.replace(scale.autoencoder, ch=8, ch_mult=(1, 1), norm_groups=4),
        tokenizer=dataclasses.replace(scale.tokenizer, budget_images=64, batch_images=8),
        generator=dataclasses.replace(scale.generator, budget_images=64, snapshot_images=(32, 64), batch_images=8),
        sampling=dataclasses.replace(scale.sampling, samples=10, chunk=4, steps=2),
    )


@pytest.fixture
def tiny_plan(tiny_scale, pictures):
    """Plan of one tokenizer and one generator on made pictures; `plan(changed scale)` for another."""
    import ablations.frontier

    def plan(scale=tiny_scale, resolution=16):
        data = resolve_data(str(pictures), resolution)
        return make_plan("frontier", ablations.frontier, scale, data, COMPUTE, "test")

    return plan


@pytest.fixture(scope="session")
def run_or_copy(tmp_path_factory):
    """`run_or_copy(stages)`: each as the first test that needed it left it, in whatever process of this session."""
    base = tmp_path_factory.getbasetemp()
    store = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "finished-stages"
    store.mkdir(exist_ok=True)

    def run(stages):
        for stage in stages:
            kept = store / "-".join([stage.kind, stage.fingerprint, *map(str, stage.marks)])
            if kept.exists():
                shutil.copytree(kept, stage.folder)
                continue
            run_stage(stage)
            copied = shutil.copytree(stage.folder, store / uuid.uuid4().hex)
            try:
                copied.rename(kept)
            except OSError:
                shutil.rmtree(copied)  # another process was first

    return run


@pytest.fixture
def figures_unsaved(monkeypatch):
    """Figures are drawn and laid out, and no file is written: that takes longest."""
    monkeypatch.setattr("figures.style.save", lambda figure, stem: figure.draw_without_rendering() or [])


@pytest.fixture
def never_planned(monkeypatch):
    """Nothing plans a run or hashes weights."""
    for place in (
        "study.submit.prepare.make_plan",
        "study.search.problem.make_plan",
        "study.plan.weight_files._sha256",
    ):
        monkeypatch.setattr(place, lambda *arguments: pytest.fail("planned again"))


@pytest.fixture
def called(monkeypatch, capsys):
    """`called(main, *arguments)`: what a command writes and ends with, without a process of its own."""

    def call(main, *arguments):
        capsys.readouterr()
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
            patch.setattr(sys, "argv", ["command", *map(str, arguments)])
            sys.exit(main())
        output = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, ended.value.code, output.out, output.err)

    return call
