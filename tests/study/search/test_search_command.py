"""The command, and searches seen from a later process."""

import dataclasses
import json
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
from made_problems import make_problem, search
from made_up import TINY, draw_pictures
from touched import touched, tree

from results import searches
from study.core.files import read_json, write_json
from study.core.lease import lease, this_process
from study.search.__main__ import main
from study.search.journal import JOURNAL
from study.search.outcome import progress_line
from study.search.trial_notes import note_trial
from study.search.worker import open_trials, run_worker

# Seen from outside


@pytest.fixture
def started(tmp_path, stages_run, monkeypatch):
    """A started search with a running trial, whose training is in progress in a process of this machine."""
    from study.search.launches import note_search

    monkeypatch.setattr("study.core.lease.BEAT_SECONDS", 600.0)  # no file changes by itself
    problem = make_problem("generator", 4, out=tmp_path)
    note_search(problem)
    with open_trials(problem).claim() as claimed:
        plan = problem.plan([problem.run(claimed.values)])
        note_trial(problem, claimed.values, plan)
        fit = plan.runs[1].fit
        with lease(fit.folder) as held:
            held.progress = {"done": 3, "total": 4, "rate": 0.1, "unit": "images"}
            held._write()
            yield problem


def manage(capsys, *arguments):
    from study.sweep import manage as main

    code = main(list(arguments))
    said = capsys.readouterr()
    return code, said.out + said.err


def test_status_tells_how_far_a_search_is(started, capsys, study_root):
    code, said = manage(capsys, "status", "made")
    assert code == 0 and "made, search generator: 0 of 4 trials: 1 running" in said
    row = next(line.split() for line in said.splitlines() if "fit_generator" in line)
    assert row[0] == "0" and "75%" in row and "10" in row
    assert "its own command continues it" in manage(capsys, "retry", "made")[1]
    note = next(study_root.glob("sweeps/made/search-generator.json"))
    about = read_json(note)
    write_json(note, {**about, "problem": {**about["problem"], "patience": 3}})
    code, said = manage(capsys, "status", "made")
    assert code == 2 and "it was started by another version of this code" in said and len(said.splitlines()) == 1
    code, said = manage(capsys, "status", "mad")
    assert (code, said) == (2, "study.sweep status: no study called 'mad' was started; nearest: made\n")


def test_cancel_ends_the_workers_of_a_search(started, capsys):
    assert manage(capsys, "cancel") == (0, "made, search generator: nothing waits or runs\n")
    with subprocess.Popen(["sleep", "600"]) as worker:
        folder = started.folder / "workers" / "1"
        folder.mkdir(parents=True)
        write_json(folder / "submission.json", this_process(worker.pid))
        assert "1 worker runs or waits" in manage(capsys, "status", "made")[1]
        assert manage(capsys, "cancel", "made")[0] == 2  # nobody to ask
        assert worker.poll() is None
        assert manage(capsys, "cancel", "made", "--yes")[0] == 0
        assert worker.wait(20) == -signal.SIGTERM


def test_what_decides_is_counted_once_all_trials_are_there(tmp_path, stages_run):
    problem = make_problem("sampling", 3, out=tmp_path)
    search(tmp_path, "sampling", 3)
    line = progress_line(problem, open_trials(problem))
    assert line.endswith("; choosing repeats: 4 of 4; scoring repeats: 6 of 6")
    assert "repeats" not in progress_line(problem, open_trials(make_problem("sampling", 4, out=tmp_path)))


def test_status_of_a_search_changes_nothing(started, capsys, study_root, never_planned):
    before = tree(study_root)
    with touched() as files:
        code, said = manage(capsys, "status", "made")
    assert code == 0 and "0 of 4 trials: 1 running" in said and "fit_generator" in said
    assert not files.changed and tree(study_root) == before


@pytest.mark.parametrize("storage", ["", "sqlite"])
def test_status_reads_the_scores_of_a_finished_search(tmp_path, stages_run, capsys, study_root, monkeypatch, storage):
    from study.search.launches import note_search

    where = f"sqlite:///{tmp_path}/trials.db" if storage else ""
    problem = dataclasses.replace(make_problem("sampling", 3, out=tmp_path), storage=where)
    assert run_worker(problem, 0)
    note_search(problem)
    before = tree(study_root), tree(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("study.search.problem.make_plan", lambda *arguments: pytest.fail("planned again"))
        code, said = manage(capsys, "status", "made")
        assert code == 0 and "3 of 3 trials: 3 complete" in said
        assert "; choosing repeats: 4 of 4; scoring repeats: 6 of 6" in said
        assert (tree(study_root), tree(tmp_path)) == before
        for path in (tmp_path / "trials.db", problem.folder / JOURNAL):
            path.unlink(missing_ok=True)
        before = tree(study_root), tree(tmp_path)
        assert manage(capsys, "status", "made") == (0, "made, search sampling: no trial yet\n")
        assert (tree(study_root), tree(tmp_path)) == before
    assert open_trials(problem).finished()  # which takes them over from the run folders again


# The command


def command(*arguments, **options):
    line = [sys.executable, "-m", "study.search", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=500, **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["samplin"], "unknown space 'samplin'; nearest: sampling"),
        (["sampling", "--trials", "0"], "--trials must be at least 1, got 0"),
        (["sampling", "--workers", "0"], "--workers must be at least 1, got 0"),
        (["sampling", "--executor", "inline", "--workers", "2"], "--executor inline is one worker"),
        (["sampling", "--storage", "sqlite:///x.db", "--workers", "2"], "SQLite locks its whole file"),
        (["sampling", "--detach"], "--detach and --cluster are for --executor slurm"),
    ],
)
def test_what_cannot_be_asked_is_one_line(called, tmp_path, arguments, message):
    pictures = draw_pictures(tmp_path / "pictures", side=32)
    done = called(main, *arguments, *TINY, "--data", pictures, "--out", tmp_path / "out")
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("study.search: ") and message in line


def test_a_dry_run_of_a_search_writes_nothing(called, tmp_path, study_root):
    pictures = draw_pictures(tmp_path / "pictures", side=32)
    out = tmp_path / "out"
    for storage in ([], ["--storage", f"sqlite:///{tmp_path}/it.db"]):
        asked = ["generator", *TINY, "--data", pictures, "--out", out, "--dry-run", "--workers", 1, *storage]
        shown = called(main, *asked)
        assert shown.returncode == 0, shown.stdout + shown.stderr
        assert "0 of 20 trials: none yet" in shown.stdout
        assert "by the content of the data, which is read when it is packed" in shown.stdout
    assert not list(study_root.iterdir()) and not out.exists() and not (tmp_path / "it.db").exists()


@pytest.mark.slow  # a minute
def test_a_search_of_two_workers_with_real_stages(tmp_path):
    pictures = draw_pictures(tmp_path / "pictures", side=32)
    arguments = ["generator", *TINY, "--data", pictures, "--study", "it", "--out", tmp_path]
    shown = command(*arguments, "--dry-run")
    assert shown.returncode == 0 and "0 of 20 trials" in shown.stdout and "learning rate" in shown.stdout
    done = command(*arguments, "--trials", 6, "--workers", 2)
    assert done.returncode == 0, done.stdout + done.stderr
    found = searches.load(tmp_path / "results" / "it", "generator")
    assert sorted(trial.state for trial in found.trials if trial.state != "pruned") and len(found.trials) == 6
    assert found.winner is not None or all(t.state == "pruned" for t in found.trials[1:])
    table = pd.read_csv(tmp_path / "results" / "it" / "table.csv")
    assert set(table["state"]) <= {"done", "pruned"}
    again = command(*arguments, "--trials", 6, "--workers", 2)
    assert again.returncode == 0 and "6 of 6 trials" in again.stdout
    assert json.loads((tmp_path / "results" / "it" / "search" / "generator.json").read_text())["budget"] == 6


@pytest.mark.slow  # a minute
def test_a_worker_of_two_processes_is_stopped_in_the_middle_and_goes_on(tmp_path, study_root):
    pictures = draw_pictures(tmp_path / "pictures", side=32)
    arguments = ["generator", *TINY, "--data", pictures, "--study", "it", "--out", tmp_path, "--trials", "2"]
    arguments = list(map(str, [*arguments, "--workers", "1", "--set", "execution.processes=2"]))
    first = subprocess.Popen([sys.executable, "-m", "study.search", *arguments], stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while len(list(study_root.glob("stages/fit_generator/*/ema-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    first.terminate()
    said, _ = first.communicate(timeout=100)
    assert first.returncode == 130 and "run the same command again to continue" in said
    done = command(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    found = searches.load(tmp_path / "results" / "it", "generator")
    assert [trial.trial for trial in found.trials] == [0, 1]
    assert {trial.state for trial in found.trials} <= {"complete", "pruned"}
    logs = {path.name.split("_")[-2] for path in study_root.glob("searches/it-generator/workers/0/*_log.out")}
    assert logs == {"0", "1"}
    for fit in study_root.glob("stages/fit_generator/*"):
        assert [*fit.glob("record-*.json")] or read_json(fit / "failure.json")


def test_it_says_what_the_folder_of_its_pictures_left_out(tmp_path, capsys):
    from study.search.options import Search
    from study.search.run import run

    pictures = draw_pictures(tmp_path / "birds", per_class=2)
    (pictures / "class0" / "moves.gif").write_bytes(b"GIF89a")
    assert run(Search(space="sampling", data=str(pictures), dry_run=True), make_problem(), []) == 0
    assert "left out 1 .gif: pictures are .png, " in capsys.readouterr().out
