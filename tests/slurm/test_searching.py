"""Searches on the real Slurm: a preempted worker loses no trial, and what is cancelled goes on when it is asked to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import cluster
import optuna
import pytest
from optuna.trial import TrialState
from test_sweeps import TINY, ask, shown

from results import searches
from study.core.files import read_json
from study.search.journal import JOURNAL, open_storage

pytestmark = pytest.mark.slurm

BUDGET, WORKERS, PREEMPTED = 10, 4, 3
LONG = {"generator.budget_images": 3200, "generator.snapshot_images": "1600,3200"}


@dataclass
class Search:
    """A search over the generator that was submitted with --detach."""

    folder: Path
    pictures: Path
    trials: int
    workers: int

    def __post_init__(self) -> None:
        self.root, self.out = self.folder / "root", self.folder / "out"
        self.searched = self.root / "searches" / "it-generator"
        assert "submitted" in self.run(*self.command, "--detach")
        notes = [self.searched / "workers" / str(number) / "submission.json" for number in range(self.workers)]
        self.jobs = [read_json(note)["job_id"] for note in notes]

    @property
    def command(self) -> list[object]:
        sets = [part for name, value in {**TINY, **LONG}.items() for part in ("--set", f"{name}={value}")]
        return [
            "study.search", "generator", "--scale", "smoke", "--study", "it", "--data", self.pictures, "--out",
            self.out, "--trials", self.trials, "--workers", self.workers, "--executor", "slurm", *sets,
        ]  # fmt: skip

    def run(self, *command: object) -> str:
        """Output of a command, which must end with 0."""
        done = subprocess.run(
            [sys.executable, "-m", *map(str, command)],
            capture_output=True, text=True, env={**os.environ, "STUDY_ROOT": str(self.root)}, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def queued(self) -> set[str]:
        """Its jobs that wait or run."""
        return set(ask("squeue", "--noheader", "--array", "--format=%i").split()) & set(self.jobs)

    def held(self) -> set[str]:
        """Jobs of the workers that have a trial."""
        leases = [read_json(path) for path in self.searched.glob("trials/*/*/lease.json")]
        return {lease["job"] for lease in leases if lease}

    def training(self) -> bool:
        leases = [read_json(path) for path in self.root.glob("stages/fit_generator/*/lease.json")]
        return any(lease["progress"] for lease in leases if lease)


def test_three_of_ten_trials_are_preempted_and_exactly_ten_finish(slurm, pictures, tmp_path, wait_for):
    search = Search(tmp_path, pictures, BUDGET, WORKERS)
    wait_for(lambda: len(search.held()) == WORKERS and search.training())
    left = cluster.CPUS - WORKERS  # so that as many workers as are to be preempted have to go
    ask("sbatch", "--partition=high", f"--cpus-per-task={left + PREEMPTED}", "-o", tmp_path / "high", "--wrap", "true")
    wait_for(lambda: sum(int(shown(job, "Restarts")) for job in search.jobs) >= PREEMPTED)
    wait_for(lambda: not search.queued(), seconds=600)
    search.run(*search.command)
    trials = optuna.load_study(study_name=None, storage=open_storage(str(search.searched / JOURNAL))).trials
    assert [trial.number for trial in trials] == list(range(BUDGET))
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    found = searches.load(search.out / "results" / "it", "generator")
    written = json.loads((search.out / "results/it/search/generator.json").read_text())
    assert len(found.trials) == BUDGET and written["winner"]


def test_a_search_is_seen_and_cancelled_from_another_shell_and_goes_on(slurm, pictures, tmp_path, wait_for):
    search = Search(tmp_path, pictures, trials=2, workers=2)
    wait_for(lambda: len(search.held()) == 2 and search.training())

    def rows():
        """What `status` says of runs that are under way, once there is one: between two stages there is none."""
        said = search.run("study.sweep", "status", "it")
        assert "it, search generator: 0 of 2 trials: 2 running" in said and "2 workers run or wait" in said
        return [line.split() for line in said.splitlines() if "LightningDiT" in line]

    assert all(row[-1].isdigit() for row in wait_for(rows))  # the job's number
    search.run("study.sweep", "cancel", "it", "--yes")
    wait_for(lambda: not search.queued())
    assert "0 of 2 trials: 2 interrupted" in search.run("study.sweep", "status")
    search.run(*search.command)
    found = searches.load(search.out / "results" / "it", "generator")
    assert len(found.trials) == 2 and {trial.state for trial in found.trials} <= {"complete", "pruned"}


def test_workers_that_wait_when_a_search_ends_never_start(slurm, pictures, tmp_path, wait_for):
    ask("sbatch", f"--cpus-per-task={cluster.CPUS - 1}", "-o", tmp_path / "others", "--wrap", "sleep 900")
    search = Search(tmp_path, pictures, trials=1, workers=3)
    wait_for(lambda: len(search.queued()) == 3 and search.held())
    wait_for(lambda: not search.queued(), seconds=300)
    assert "1 of 1 trials" in search.run("study.sweep", "status", "it")
    logs = (search.root / "jobs" / "slurm").glob("*_log.out")
    assert sum(any(path.name.startswith(f"{job}_") for job in search.jobs) for path in logs) == 1
