"""A copy of the code is whole: it has the files that modules read, and nothing of a user's studies."""

from __future__ import annotations

import subprocess
import tomllib
from fnmatch import fnmatch
from pathlib import PurePath

import pytest

from study.core.code_snapshot import snapshot
from study.core.paths import CHECKOUT


@pytest.fixture
def copied(study_root):
    """Files of a copy of the code, by place."""
    folder = snapshot()
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {"source.json"}


def test_a_copy_has_all_that_git_has_but_studies(copied):
    command = ["git", "-C", CHECKOUT, "--git-dir=.git", "ls-files", "--cached", "--others", "--exclude-standard"]
    command += ["study", "models", "ablations", "results", "figures"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("no git checkout here")
    ours = {name for name in listed.stdout.splitlines() if (CHECKOUT / name).exists()}
    outputs = {
        name
        for name in ours
        if name == "results/board.csv"
        or fnmatch(name, "figures/*/*")
        or (fnmatch(name, "results/*/*") and not fnmatch(name, "results/paper/*.csv"))
    }
    assert copied == ours - outputs


def test_a_package_that_is_built_has_the_same_files(copied):
    declared = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["tool"]["setuptools"]
    modules = {name for name in copied if name.endswith(".py")}
    assert {PurePath(name).parent.as_posix().replace("/", ".") for name in modules} == set(declared["packages"])
    data = {
        path.relative_to(CHECKOUT).as_posix()
        for package, patterns in declared["package-data"].items()
        for pattern in patterns
        for path in (CHECKOUT / package.replace(".", "/")).glob(pattern)
    }
    assert copied - modules == data != set()
