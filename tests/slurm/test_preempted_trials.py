"""A search on the real Slurm: its workers are preempted, and exactly as many trials as asked for have a result."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import cluster
import pytest
from optuna.trial import TrialState
from test_sweeps import TINY, ask, shown

from results import searches
from study.files import read_json
from study.journal import JOURNAL, open_storage

pytestmark = pytest.mark.slurm

BUDGET, WORKERS, PREEMPTED = 10, 4, 3
LONG = {"generator.budget_images": 3200, "generator.snapshot_images": "1600,3200"}


def test_three_of_ten_trials_are_preempted_and_exactly_ten_finish(slurm, pictures, tmp_path, wait_for):
    root, out = tmp_path / "root", tmp_path / "out"
    environment = {**os.environ, "STUDY_ROOT": str(root)}
    sets = [part for name, value in {**TINY, **LONG}.items() for part in ("--set", f"{name}={value}")]
    command = [
        sys.executable, "-m", "study.search", "generator", "--scale", "smoke", "--study", "it", "--data", pictures,
        "--out", out, "--trials", BUDGET, "--workers", WORKERS, "--executor", "slurm", *sets,
    ]  # fmt: skip
    command = list(map(str, command))
    done = subprocess.run([*command, "--detach"], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "submitted" in done.stdout
    folder = root / "searches" / "it-generator"
    jobs = [read_json(folder / "workers" / str(n) / "submission.json")["job_id"] for n in range(WORKERS)]

    def held():
        """Workers that have a trial, by their job."""
        leases = [read_json(path) for path in folder.glob("trials/*/*/lease.json")]
        return {lease["job"] for lease in leases if lease}

    def training():
        return any((read_json(path) or {}).get("progress") for path in root.glob("stages/fit_generator/*/lease.json"))

    wait_for(lambda: len(held()) == WORKERS and training())
    left = cluster.CPUS - WORKERS  # so that as many workers as are to be preempted have to go
    ask("sbatch", "--partition=high", f"--cpus-per-task={left + PREEMPTED}", "-o", tmp_path / "high", "--wrap", "true")
    wait_for(lambda: sum(int(shown(job, "Restarts")) for job in jobs) >= PREEMPTED)
    wait_for(lambda: not set(ask("squeue", "--noheader", "--array", "--format=%i").split()) & set(jobs), seconds=400)
    watched = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert watched.returncode == 0, watched.stdout + watched.stderr
    (study,) = open_storage(str(folder / JOURNAL)).get_all_studies()
    trials = open_storage(str(folder / JOURNAL)).get_all_trials(study._study_id)
    assert [trial.number for trial in trials] == list(range(BUDGET))
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    found = searches.load(out / "results" / "it", "generator")
    assert len(found.trials) == BUDGET and json.loads((out / "results/it/search/generator.json").read_text())["winner"]
