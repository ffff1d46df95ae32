"""Sweeps on the real Slurm: whatever ends a job, nothing is lost, nothing runs twice, and the bits stay the same."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import cluster
import pandas as pd
import pytest

from study.core.files import read_json

pytestmark = pytest.mark.slurm

TINY = {
    "train_images": 48, "foundation_models": "()", "autoencoder.ch": 8, "autoencoder.norm_groups": 4,
    "tokenizer.budget_images": 64, "tokenizer.batch_images": 8, "generator.batch_images": 8, "sampling.samples": 12,
    "sampling.chunk": 6, "sampling.steps": 2, "evaluation.reference_images": 24,
    "evaluation.reconstruct_images": 8, "judges": "('classifier', 0),",
}  # fmt: skip
LONG = {"generator.budget_images": 4800, "generator.snapshot_images": "800,4800"}  # longer than a command takes
SHORT = {"generator.budget_images": 64, "generator.snapshot_images": "32,64"}
FIGURES = ("frontier", "convergence", "scaling", "reconstructions", "samples")


class Sweep:
    """One study in a root of its own, and the commands that a user would give."""

    def __init__(self, folder: Path, pictures: Path, settings: dict[str, object], profile: str = "") -> None:
        self.root, self.out = folder / "root", folder / "out"
        folder.mkdir(exist_ok=True)
        (folder / "profile.toml").write_text(profile)
        sets = [part for name, value in {**TINY, **settings}.items() for part in ("--set", f"{name}={value}")]
        self.on_slurm = ["--executor", "slurm", "--cluster", str(folder / "profile.toml")]
        self.arguments = ["--scale", "smoke", "--study", "it", "--data", pictures, "--out", self.out, *sets]

    def command(self, *arguments: object) -> list[str]:
        return [sys.executable, "-m", "study.sweep", *map(str, arguments)]

    def run(self, *arguments: object, code: int = 0, **variables: str) -> str:
        """Output of a command that must end with this code."""
        done = subprocess.run(
            self.command(*arguments), capture_output=True, text=True, timeout=240, env=self.environment(**variables)
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def environment(self, **variables: str) -> dict[str, str]:
        return {**os.environ, "STUDY_ROOT": str(self.root), **variables}

    def submit(self, code: int = 0, **variables: str) -> str:
        return self.run(*self.arguments, *self.on_slurm, "--detach", code=code, **variables)

    def job(self, kind: str = "generator") -> str:
        """Slurm's number of the one job of a kind."""
        (note,) = self.root.glob(f"jobs/{kind}-*/submission.json")
        return read_json(note)["job_id"]

    def training(self) -> int | None:
        """Process of a generator that has begun to train, or None."""
        for path in self.root.glob("stages/fit_generator/*/lease.json"):
            if (lease := read_json(path)) and lease["progress"].get("done"):
                return lease["pid"]
        return None

    def judged(self) -> bool:
        """Whether the generator's last stage has its record; the collector may still draw."""
        return len(list(self.root.glob("stages/judge/*/record.json"))) == 3

    def table(self) -> pd.DataFrame:
        return pd.read_csv(self.out / "results" / "it" / "table.csv")

    def done(self) -> bool:
        """Whether table and figures are there, with all that was planned."""
        drawn = self.out / "figures" / "it"
        written = (self.out / "results").exists() and all((drawn / f"{name}.png").exists() for name in FIGURES)
        return written and set(self.table()["state"]) == {"done"}

    def reported(self) -> bool:
        """Whether the report shows the present table, with style and script of the code that was submitted."""
        results = self.out / "results" / "it"
        if not (results / "report.html").exists():
            return False
        (templates,) = self.root.glob("code/*/study/report/html/templates")
        digest = hashlib.sha256((results / "table.csv").read_bytes()).hexdigest()
        parts = (digest, (templates / "style.css").read_text(), (templates / "script.js").read_text())
        return all(part in (results / "report.html").read_text() for part in parts)

    def weights(self) -> dict[str, bytes]:
        """Every snapshot of every generator."""
        found = {
            path.parent.name + path.name: path.read_bytes()
            for weights in ("ema", "raw")
            for path in self.root.glob(f"stages/fit_generator/*/{weights}-*.safetensors")
        }
        assert found
        return found


@pytest.fixture(scope="module")
def undisturbed(pictures, tmp_path_factory):
    """The sweep of LONG in one process that nobody disturbed."""
    sweep = Sweep(tmp_path_factory.mktemp("undisturbed"), pictures, LONG)
    sweep.run(*sweep.arguments, "--executor", "inline")
    assert sweep.done()
    return sweep


@pytest.fixture
def sweep(pictures, undisturbed, tmp_path):
    """`sweep(...)`: a study whose tokenizer is trained, and with `generators` those of `undisturbed` too."""

    def made(settings=LONG, profile="", generators=False):
        new = Sweep(tmp_path, pictures, settings, profile)

        def left_out(folder, names):
            if Path(folder).name == "judge" and not generators:
                records = {name: read_json(Path(folder) / name / "record.json") for name in names}
                return [name for name, record in records.items() if "samples" in record["inputs"]]
            kinds = () if generators else ("fit_generator", "sample")
            return {*names} & {*kinds, "jobs", "sweeps", "tables"}

        shutil.copytree(undisturbed.root, new.root, ignore=left_out)
        return new

    return made


def ask(*command):
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout


def shown(job, field):
    """What Slurm says of a job."""
    return dict(word.split("=", 1) for word in ask("scontrol", "-o", "show", "job", job).split() if "=" in word)[field]


def numbers(table):
    columns = ["run", "images_seen", "psnr", "ssim", "rfid", "gfid", "precision", "recall", "samples", "fingerprint"]
    return table[columns].sort_values(["run", "images_seen"]).reset_index(drop=True)


def test_detached_from_inside_a_job_it_ends_as_it_does_inline(slurm, pictures, undisturbed, tmp_path, wait_for):
    """Both waves and the collector, submitted by a task of an array where SBATCH_EXPORT is set."""
    it = Sweep(tmp_path, pictures, LONG)
    script = tmp_path / "submit.sh"
    command = shlex.join(it.command(*it.arguments, *it.on_slurm, "--detach"))
    script.write_text(f"#!/bin/bash\nexport SBATCH_EXPORT=NONE SBATCH_PARTITION=nowhere\n{command}\n")
    subprocess.run(
        ["sbatch", "--array=3", "--cpus-per-task=2", "--job-name=outer", "-o", tmp_path / "log", script],
        env=it.environment(), check=True, capture_output=True,
    )  # fmt: skip
    wait_for(it.done)
    wait_for(it.reported)
    said = (tmp_path / "log").read_text()
    assert "each job asks Slurm for 1 CPU, 24.0 h" in said and "submitted" in said
    pd.testing.assert_frame_equal(numbers(it.table()), numbers(undisturbed.table()))
    assert it.weights() == undisturbed.weights()
    assert "nothing to do" in it.run(*it.arguments, *it.on_slurm)


def test_a_preempted_generator_comes_back_and_ends_with_the_same_bits(slurm, sweep, undisturbed, tmp_path, wait_for):
    it = sweep()
    it.submit()
    wait_for(it.training)
    ask("sbatch", "--partition=high", f"--cpus-per-task={cluster.CPUS}", "-o", tmp_path / "high", "--wrap", "true")
    wait_for(lambda: shown(it.job(), "Restarts") == "1")
    assert list(it.root.glob("stages/fit_generator/*/interrupted.json"))
    wait_for(it.judged)
    assert it.weights() == undisturbed.weights()


def test_a_cancelled_job_stays_so_until_it_is_retried(slurm_accounting, sweep, undisturbed, wait_for):
    it = sweep()
    it.submit()
    wait_for(it.training)
    assert "running" in it.run("status")
    cancelled = it.job()
    it.run("cancel", "--yes")
    assert "1 done, 1 failed" in it.run("watch")
    assert "cancelled; retry goes on from what was saved" in it.run("status")
    rows = it.table().set_index(["kind", "images_seen"])["state"]
    assert rows["generator"].to_dict() == {800: "pending", 4800: "failed"}  # trained up to the first, and not judged
    assert ask("squeue", "--noheader") == ""
    it.run("retry")
    assert it.job() != cancelled
    assert "2 done" in it.run("watch")
    assert it.done() and it.weights() == undisturbed.weights()
    loose = it.root / "stages" / "encode" / "0123456789abcdef" / "latents-00000.safetensors"
    loose.parent.mkdir()
    loose.touch()
    assert "1 stage folder, " in it.run("clean", "--yes")
    assert not loose.exists() and it.weights() == undisturbed.weights()


def test_a_job_out_of_time_goes_on_and_ends_with_the_same_bits(slurm, sweep, undisturbed, wait_for):
    """Slurm looks at limits every 30 s: the training is halted until then, so that the test needs no long one."""
    it = sweep(profile="minutes = 1\nsave_seconds = 5")
    it.submit()
    os.kill(wait_for(it.training), signal.SIGSTOP)  # Slurm sends SIGCONT before it asks the job to stop
    wait_for(lambda: shown(it.job(), "Restarts") == "1")
    wait_for(it.judged)
    assert it.weights() == undisturbed.weights()


def test_a_larger_budget_waits_for_the_training_in_the_queue_and_goes_on(slurm, sweep, undisturbed, wait_for):
    it = sweep()
    it.submit()
    wait_for(it.training)
    first = it.job()
    it.run(*it.arguments, "--set", "generator.budget_images=5600", *it.on_slurm, "--detach")
    notes = [read_json(note)["job_id"] for note in it.root.glob("jobs/generator-*/submission.json")]
    (second,) = {*notes} - {first}
    assert shown(second, "Dependency").startswith(f"afterany:{first.partition('_')[0]}")
    wait_for(lambda: len(list(it.root.glob("stages/judge/*/record.json"))) == 4)
    weights = it.weights()
    assert {name: weights[name] for name in undisturbed.weights()} == undisturbed.weights() and len(weights) == 6
    (log,) = it.root.glob(f"jobs/slurm/{second}_0_log.out")
    assert "of 5600 images" in log.read_text()
    (history,) = it.root.glob("stages/fit_generator/*/history.jsonl")
    assert len(history.read_text().splitlines()) == 700  # each step once
    wait_for(it.done)


def test_when_the_submitter_is_killed_a_second_sweep_adopts_its_jobs(slurm, sweep, undisturbed, wait_for):
    it = sweep()
    first = subprocess.Popen(it.command(*it.arguments, *it.on_slurm), env=it.environment(), stdout=subprocess.DEVNULL)
    wait_for(lambda: it.training() and len(list(it.root.glob("jobs/slurm/*_submitted.pkl"))) == 2)
    first.kill()
    first.wait()
    job = it.job()
    assert "finished" in (said := it.run(*it.arguments, *it.on_slurm)) and ": 3 done" in said
    assert it.job() == job
    assert len(list(it.root.glob("jobs/slurm/*_submitted.pkl"))) == 3  # the generator, once, and two collectors
    assert it.done() and it.weights() == undisturbed.weights()


def test_runs_that_fail_in_three_ways_leave_a_whole_table_and_figures(slurm, sweep, wait_for):
    it = sweep({**LONG, "seeds": "0,1,2,3"}, "[generator.extra]\nhold = true", generators=True)
    it.submit()
    notes = {read_json(note)["job_id"]: note.parent.name for note in it.root.glob("jobs/generator-*/submission.json")}
    raises, _killed, waiting = sorted(notes)  # seeds 1, 2 and 3; seed 0 is done
    fingerprint = notes[raises].split("-")[1]
    (it.root / "stages" / "fit_generator" / fingerprint / "checkpoint-000000000008.safetensors").mkdir(parents=True)
    ask("scancel", waiting)
    ask("scontrol", "release", raises.partition("_")[0])
    os.kill(wait_for(it.training), signal.SIGKILL)
    wait_for(lambda: set(it.table()["state"]) == {"done", "failed"})
    rows = it.table().query("kind == 'generator'").drop_duplicates("seed").set_index("seed")
    assert rows["state"].to_dict() == {0: "done", 1: "failed", 2: "failed", 3: "failed"}
    assert rows["reason"][1].startswith("OSError") and "Traceback" in Path(rows["log"][1]).read_text()
    assert rows["reason"][2] == "the process ended without a record (killed, or out of memory?)"
    assert rows["reason"][3] == "cancelled before it started; retry submits it again"
    assert Path(rows["log"][2]).exists() and pd.isna(rows["log"][3])
    wait_for(lambda: all((it.out / "figures" / "it" / f"{name}.png").exists() for name in FIGURES))
    assert "2 done, 3 failed" in it.run("status")


@pytest.mark.parametrize("nodes", [1, 2])
def test_two_processes_are_two_tasks_of_one_job(slurm, sweep, wait_for, nodes):
    settings = {**SHORT, "execution.processes": 2, "tokenizer_seeds": 1}  # the tokenizer of seed 0 is trained already
    it = sweep(settings, f"partition = 'wide'\nnodes = {nodes}")
    it.submit()
    for job in (it.job(), it.job("tokenizer")):
        assert shown(job, "NumTasks") == "2"
        assert shown(job, "NumNodes").partition("-")[0] == str(nodes)  # of a job that waits: least and most
    wait_for(it.judged)


def test_when_a_process_dies_those_on_other_nodes_end_within_a_minute(slurm, sweep, wait_for):
    it = sweep({"execution.processes": 2, "generator.budget_images": 10**6}, "partition = 'wide'\nnodes = 2")
    it.submit()
    os.kill(wait_for(it.training), signal.SIGKILL)
    wait_for(lambda: "COMPLETED" != shown(it.job(), "JobState") not in ("RUNNING", "COMPLETING"), seconds=60)
    wait_for(lambda: ask("squeue", "--noheader") == "")
    assert "process" in it.table().query("state == 'failed'")["reason"].iloc[0]


def test_a_signal_while_python_starts_does_not_end_the_job(slurm, sweep, wait_for, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import time; time.sleep(5)")  # Python starts slowly, as on a busy node
    it = sweep(SHORT, f"setup = ['export PYTHONPATH={tmp_path}:$PYTHONPATH']")
    it.submit()

    def starting():
        """Processes of the job, found before its own code can have installed a handler."""
        command = f"{sys.executable}\0-u\0-m\0submitit.core._submit\0{it.root}"
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (place / "cmdline").read_text().startswith(command):
                    found.append(place)
        return found

    for place in wait_for(starting):
        os.kill(int(place.name), signal.SIGTERM)
    wait_for(it.judged)
    assert shown(it.job(), "Restarts") == "0"


def test_what_slurm_refuses_is_one_line_and_nothing_stays_in_the_queue(slurm, sweep):
    it = sweep({**SHORT, "tokenizer.budget_images": 72}, "[generator]\npartition = 'nowhere'")
    for detach in ([], ["--detach"]):
        said = it.run(*it.arguments, *it.on_slurm, *detach, code=2)
        assert said.count("study.sweep: Slurm rejected the jobs") == 1 and "nowhere" in said.splitlines()[-1]
        assert "stopping" not in said
    assert ask("squeue", "--noheader", "--states=PENDING,RUNNING") == ""  # a cancelled one may still be completing
