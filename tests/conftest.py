"""Every test has a study root of its own: nothing leaks into the user's cache.

Nor does anything leak from a user's studies into a test: what stands in results/ and figures/ of the working tree is
what was run there last. A test that opens it fails; what is committed is read from `committed`.
"""

from __future__ import annotations

import gc
import os
import sys

# a thread a process, as jobs have it: tests run on every core at once. Read when torch is loaded, which is later
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from committed import CHECKOUT, NONE, PLACES, listed, take_out

OPENED: list[str] = []  # files of studies in the working tree
SOURCE = ("results/paper/", "results/__pycache__/", "figures/__pycache__/")


def note_opened(event, arguments):
    """Whoever opens a file in this process, Python tells its audit hooks."""
    if event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
        place = os.path.relpath(os.fsdecode(arguments[0]), CHECKOUT)
        if place.startswith(PLACES) and place.count("/") > 1 and not place.startswith(SOURCE):
            OPENED.append(place)


sys.addaudithook(note_opened)


@pytest.fixture(autouse=True)
def studies_opened():
    """Files of studies that were opened in the working tree, from the import of tests on; none may be left."""
    yield OPENED
    found = sorted(set(OPENED))
    OPENED.clear()
    assert not found, f"a user's study may have changed {', '.join(found)}: read a made table, or `committed`"


@pytest.fixture(scope="session")
def committed(tmp_path_factory):
    """A folder with results/ and figures/ as they are committed."""
    if not listed():
        pytest.skip(NONE)
    return take_out(tmp_path_factory.mktemp("committed"))


@pytest.fixture(autouse=True)
def no_power_cuts(monkeypatch):
    """Files do not wait for the disk."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture(autouse=True)
def study_root(tmp_path_factory, monkeypatch):
    root = tmp_path_factory.mktemp("study-root")
    monkeypatch.setenv("STUDY_ROOT", str(root))
    return root


def pytest_addoption(parser):
    parser.addoption("--write-golden", action="store_true", help="write tests/study/stages/golden.json anew")


def pytest_collection_finish(session):
    """What modules have made stays to the end: looking for garbage among it would take a tenth of the time."""
    gc.collect()
    gc.freeze()
