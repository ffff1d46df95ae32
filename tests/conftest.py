"""Every test has a study root of its own: nothing leaks into the user's cache."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def study_root(tmp_path_factory, monkeypatch):
    root = tmp_path_factory.mktemp("study-root")
    monkeypatch.setenv("STUDY_ROOT", str(root))
    return root


def pytest_addoption(parser):
    parser.addoption("--write-golden", action="store_true", help="write tests/study/golden.json anew")
