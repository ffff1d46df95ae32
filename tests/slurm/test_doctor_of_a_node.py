"""The doctor on the real Slurm: a job examines a node and makes the steps there."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from test_sweeps import TINY

from study.core.files import read_json

pytestmark = pytest.mark.slurm


def test_a_job_examines_a_node_and_makes_the_steps_there(slurm, pictures, tmp_path):
    (tmp_path / "profile.toml").write_text('partition = "low"\n')
    sets = [part for name, value in TINY.items() for part in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "study.doctor", "--scale", "smoke", "--data", str(pictures), *sets]
    done = subprocess.run(
        [*command, "--cluster", str(tmp_path / "profile.toml")],
        capture_output=True, text=True, timeout=240, env={**os.environ, "STUDY_ROOT": str(tmp_path / "root")},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing is lacking" in done.stdout and "node " in done.stdout
    answers = read_json(tmp_path / "root" / "doctor" / "node" / "answers.json")
    assert answers["answers"]["root_is_shared"]
    made = {one["title"].split()[0] for one in answers["tried"] if one["gflops"]}
    assert made == {"fit_tokenizer", "reconstruct", "encode", "fit_generator", "sample"}
    assert list((tmp_path / "root" / "rates").glob("*.json"))
