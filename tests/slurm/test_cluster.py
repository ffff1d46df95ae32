"""The Slurm of one node behaves like a cluster: jobs, arrays, preemption, requeue, accounting; it comes and goes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import cluster
import pytest
import submitit

pytestmark = pytest.mark.slurm

SCRIPT = Path(cluster.__file__)


def ask(*command):
    return subprocess.run(list(map(str, command)), capture_output=True, text=True)


def sbatch(script, log, *options):
    """The id of a job whose script is `script`, with its output appended to `log`."""
    written = log.with_suffix(".sh")
    written.write_text(f"#!/bin/bash\n{script}\n")
    answer = ask("sbatch", "--parsable", "--open-mode=append", "--output", log, *options, written)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip()


def state(job):
    return dict(word.split("=", 1) for word in ask("scontrol", "-o", "show", "job", job).stdout.split() if "=" in word)[
        "JobState"
    ]


def test_a_job_runs_and_ends(slurm, tmp_path, wait_for):
    job = sbatch("echo on $SLURM_CPUS_PER_TASK of $SLURM_JOB_PARTITION; exit 3", tmp_path / "log", "--cpus-per-task=2")
    wait_for(lambda: state(job) == "FAILED")
    assert (tmp_path / "log").read_text() == "on 2 of low\n"
    assert "ExitCode=3:0" in ask("scontrol", "show", "job", job).stdout


def test_an_array_of_submitit_returns(slurm, tmp_path):
    executor = submitit.SlurmExecutor(folder=tmp_path)
    executor.update_parameters(time=5, cpus_per_task=1, job_name="squares")
    jobs = executor.map_array(pow, [1, 2, 3], [2, 2, 2])
    assert [job.result() for job in jobs] == [1, 4, 9]


def test_jobs_run_at_once_until_the_cpus_are_taken(slurm, tmp_path, wait_for):
    array = sbatch("sleep 60", tmp_path / "log", "--array=0-9", "--cpus-per-task=1")
    wait_for(lambda: ask("squeue", "-h", "-j", array, "-t", "RUNNING", "-r").stdout.count("\n") == cluster.CPUS)
    waiting = ask("squeue", "-h", "-j", array, "-t", "PENDING", "-r", "-o", "%i %K %T %r").stdout.splitlines()
    assert waiting == [f"{array}_8 8 PENDING Resources", f"{array}_9 9 PENDING Resources"]


def test_formats_of_squeue(slurm, tmp_path, wait_for):
    job = sbatch("sleep 60", tmp_path / "log", "--array=0-2", "--job-name=named", "--cpus-per-task=5", "--comment=why")
    wait_for(lambda: "RUNNING" in ask("squeue", "-h", "-j", job, "-r", "-o", "%T").stdout)
    seen = ask("squeue", "-h", "--me", "-r", "-o", "%i|%F|%K|%P|%j|%T|%C|%k").stdout.splitlines()
    states = {0: "RUNNING", 1: "PENDING", 2: "PENDING"}
    assert sorted(seen) == [f"{job}_{task}|{job}|{task}|low|named|{is_}|5|why" for task, is_ in states.items()]
    ask("scancel", job)
    wait_for(lambda: ask("squeue", "-h", "-j", job).stdout == "")
    assert ask("squeue", "-h", "-j", "1").returncode == 1  # a job that slurmctld does not know


def test_a_low_job_gives_way_to_a_high_one_and_comes_back(slurm, tmp_path, wait_for):
    log = tmp_path / "low.log"
    script = "echo start ${SLURM_RESTART_COUNT:-0}; srun bash -c 'trap \"echo asked\" TERM; sleep 90 & wait; sleep 90'"
    sbatch(script, log, "--requeue", f"--cpus-per-task={cluster.CPUS}")
    wait_for(lambda: log.exists() and "start 0" in log.read_text())
    high = sbatch("true", tmp_path / "high.log", "--partition=high")
    wait_for(lambda: state(high) == "COMPLETED")
    assert "DUE TO PREEMPTION" in log.read_text() and "asked" in log.read_text()
    wait_for(lambda: "start 1" in log.read_text())


def test_a_preempted_job_that_ends_in_time_is_over(slurm, tmp_path, wait_for):
    """Slurm requeues only what is still there when the grace is over: who saves and exits must ask to come back."""
    log = tmp_path / "low.log"
    script = "srun bash -c 'trap \"exit 0\" TERM; echo start; sleep 90 & wait'"
    low = sbatch(script, log, "--requeue", f"--cpus-per-task={cluster.CPUS}")
    wait_for(lambda: log.exists() and "start" in log.read_text())
    high = sbatch("true", tmp_path / "high.log", "--partition=high")
    wait_for(lambda: state(high) == "COMPLETED")
    assert state(low) == "COMPLETED"


def test_a_job_requeues_itself(slurm, tmp_path, wait_for):
    log = tmp_path / "log"
    job = sbatch('echo ${SLURM_RESTART_COUNT:-0}; (( SLURM_RESTART_COUNT )) || scontrol requeue "$SLURM_JOB_ID"', log)
    wait_for(lambda: state(job) == "COMPLETED")
    lines = log.read_text().splitlines()
    assert lines[0] == "0" and lines[-1] == "1"


def test_sacct_answers_with_accounting(slurm_accounting, tmp_path, wait_for):
    job = sbatch("exit 3", tmp_path / "log")
    wait_for(lambda: "FAILED" in ask("sacct", "-X", "-n", "-P", "-j", job, "-o", "JobID,State,ExitCode").stdout)
    assert ask("sacct", "-X", "-n", "-P", "-j", job, "-o", "JobID,State,ExitCode").stdout == f"{job}|FAILED|3:0\n"


def test_sacct_fails_without_accounting(slurm):
    answer = ask("sacct", "-X")
    assert (answer.returncode, answer.stderr.strip()) == (1, "Slurm accounting storage is disabled")


# The script itself


def script(*arguments, **options):
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, timeout=120, **options)


@pytest.fixture
def folder(tmp_path, bare_cluster):  # which skips where there can be none, and stays up beside the other
    yield tmp_path / "cluster"
    cluster.down(tmp_path / "cluster")


def test_up_twice_then_down_leaves_no_process(folder, monkeypatch, wait_for):
    at = ("--folder", str(folder))
    first = script("up", *at)
    assert (first.returncode, first.stdout) == (0, f"export SLURM_CONF={folder}/slurm.conf\n")
    running = cluster._processes(folder)
    assert script("up", *at).stdout == first.stdout
    assert cluster._processes(folder) == running  # nothing was started anew
    assert script("status", *at).returncode == 0
    refused = script("up", "--accounting", *at)
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1 and "down first" in refused.stderr

    monkeypatch.setenv("SLURM_CONF", f"{folder}/slurm.conf")
    sbatch("env -i setsid sleep 321 & sleep 321", folder.parent / "log")
    wait_for(lambda: list(cluster._processes(folder).values()).count("sleep") == 2)
    assert script("down", *at).returncode == 0
    assert ask("pgrep", "-f", "^sleep 321").stdout == ""
    assert cluster._processes(folder) == {}
    assert script("status", *at).returncode == 1
    assert script("down", *at).returncode == 0


def test_up_after_an_unclean_death(folder, monkeypatch):
    at = ("--folder", str(folder))
    assert script("up", *at).returncode == 0
    for pid in list(cluster._processes(folder))[1:]:
        os.kill(pid, signal.SIGKILL)
    assert script("status", *at).returncode == 1
    assert script("up", *at).returncode == 0
    monkeypatch.setenv("SLURM_CONF", f"{folder}/slurm.conf")
    assert ask("squeue", "-h").stdout == ""


def test_a_folder_of_something_else_is_left_alone(folder):
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    refused = script("up", "--folder", str(folder))
    assert refused.returncode == 1 and "holds something else" in refused.stderr
    assert (folder / "thesis.tex").exists()


def test_what_is_missing_is_one_line(monkeypatch):
    monkeypatch.setattr(cluster, "_which", lambda program: None if program == "slurmdbd" else f"/usr/sbin/{program}")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(Path, "exists", lambda self: True)
    assert cluster.obstacle() == ""
    assert cluster.obstacle(accounting=True) == (
        "not installed: slurmdbd; `python tests/slurm/cluster.py install` brings them"
    )
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "needs root" in cluster.obstacle()
    monkeypatch.setattr(Path, "exists", lambda self: False)
    assert "not Debian" in cluster.obstacle()
