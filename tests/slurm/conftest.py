"""Clusters for the tests: one without accounting, one with, each up when the first test asks for it."""

from __future__ import annotations

import subprocess
import time

import cluster
import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def bare_cluster(tmp_path_factory):
    yield from _up_and_down(tmp_path_factory.mktemp("slurm"), accounting=False)


@pytest.fixture(scope="session")
def accounting_cluster(tmp_path_factory):
    yield from _up_and_down(tmp_path_factory.mktemp("slurm"), accounting=True)


def _up_and_down(folder, accounting):
    if reason := cluster.obstacle(accounting):
        pytest.skip(reason)
    try:
        yield cluster.up(folder, accounting)
    finally:
        cluster.down(folder)


@pytest.fixture
def slurm(bare_cluster, monkeypatch):
    """Commands of Slurm talk to the cluster without accounting; no job is left at the end."""
    yield from _spoken_to(bare_cluster, monkeypatch)


@pytest.fixture
def slurm_accounting(accounting_cluster, monkeypatch):
    """The same with accounting."""
    yield from _spoken_to(accounting_cluster, monkeypatch)


def _spoken_to(conf, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", str(conf))
    yield conf
    subprocess.run(["scancel", "--me"], check=True)


@pytest.fixture
def wait_for():
    """`wait_for(condition)`: what `condition()` gives as soon as that is true; fails after `seconds`."""

    def wait(condition, seconds=120.0):
        deadline = time.monotonic() + seconds
        while not (answer := condition()):
            assert time.monotonic() < deadline, f"not within {seconds:.0f} s"
            time.sleep(0.1)
        return answer

    return wait


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Stripes, wider in one class than in the other, with noise."""
    folder = tmp_path_factory.mktemp("pictures") / "stripes"
    rng = np.random.default_rng(0)
    for label in range(2):
        (folder / f"class{label}").mkdir(parents=True)
        for number in range(36):
            stripes = np.arange(32)[:, None, None] // (label + 2) % 2 * 160
            pixels = (stripes + rng.integers(0, 90, (32, 32, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"class{label}" / f"{number:02}.png")
    return folder
