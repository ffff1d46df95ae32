"""Profiles, valid and invalid, and the code snapshot that jobs run. Tests on a real Slurm are in tests/slurm."""

import os
import subprocess
import sys

import pytest
from made_tables import study

from results.table import write
from study.core import code_snapshot
from study.core.files import read_json
from study.submit.cluster import Profile, job_states, queue_answers, read_profile, requeue, without_job_variables


def profile(tmp_path, text):
    path = tmp_path / "profile.toml"
    path.write_text(text)
    return read_profile(path)


def test_a_profile_has_defaults_and_a_wave_can_override_them(tmp_path):
    text = """
    partition = "gpu"
    memory_gb = 64
    setup = ["module load cuda"]
    [extra]
    exclude = "node[01-04]"
    [generator]
    minutes = 60
    """
    assert read_profile(None) == {"tokenizer": Profile(), "generator": Profile()}
    read = profile(tmp_path, text)
    assert (read["tokenizer"].partition, read["tokenizer"].memory_gb) == ("gpu", 64.0)
    assert read["generator"].setup == ("module load cuda",)
    assert read["generator"].extra == {"exclude": "node[01-04]"}
    assert (read["tokenizer"].minutes, read["generator"].minutes) == (24 * 60, 60)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('partitoin = "gpu"', "no field 'partitoin' in Profile; nearest: partition"),
        ("[genertor]\nminutes = 5", "no table 'genertor'; nearest: generator"),
        ('minutes = "long"', "minutes must be a whole number, got 'long'"),
        ("minutes = 1\nsave_seconds = 60", "save_seconds 60 must lie within the 1 minutes"),
        ("minutes = ", "is not valid TOML"),
        ('extra = "--x"', "extra must be a table"),
    ],
)
def test_a_wrong_profile_is_one_clear_line(text, message, tmp_path):
    with pytest.raises(ValueError, match=message) as raised:
        profile(tmp_path, text)
    assert "profile.toml" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_profile_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read the profile .*none.toml: No such file"):
        read_profile(tmp_path / "none.toml")


def test_variables_of_an_enclosing_job_are_dropped_and_restored(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SBATCH_PARTITION", "x")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    with without_job_variables():
        assert {name for name in os.environ if name.startswith(("SLURM_", "SBATCH_"))} == {"SLURM_CONF"}
    assert os.environ["SLURM_JOB_ID"] == "7"


def test_without_slurm_no_state_is_known_and_no_job_is_requeued(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert job_states(["1", "2_3"]) == {}
    assert not queue_answers()
    assert requeue() == ""  # not inside a Slurm job
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    assert "the next sweep submits this job again" in requeue()


def test_jobs_run_the_code_as_it_was_submitted(study_root, tmp_path, monkeypatch):
    first = code_snapshot.snapshot()
    assert code_snapshot.snapshot() == first  # not made again
    assert set(read_json(first / "source.json")) == {"commit", "difference"}
    with monkeypatch.context() as amended:
        amended.setattr(code_snapshot, "commit", lambda: "another")
        assert read_json(code_snapshot.snapshot() / "source.json")["commit"] == "another"
    assert code_snapshot.snapshot() == first
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "__init__.py").write_text("raise RuntimeError('the working directory was imported')")
    help_run = subprocess.run(
        [sys.executable, "-m", "study.sweep", "--help"],
        cwd=tmp_path, env={**os.environ, **code_snapshot.environment(first)}, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert help_run.returncode == 0, help_run.stderr
    environment = {**os.environ, **code_snapshot.environment(first)}
    draw = """
import pathlib, sys
import study.core.paths, ablations.frontier
from figures.render import render
from study.report.html.page import write_page
drawn = render(pathlib.Path(sys.argv[1]), pathlib.Path.cwd(), ["dilemma"])
print(study.core.paths.CHECKOUT, drawn.skipped, drawn.refused)
write_page(pathlib.Path(sys.argv[1]), pathlib.Path.cwd())
"""
    write(study(), tmp_path / "made" / "table.csv")
    done = subprocess.run(
        [sys.executable, "-c", draw, tmp_path / "made"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.strip() == f"{first} {{}} {{}}"  # nothing missing: the snapshot contains the published tables
    assert "</html>" in (tmp_path / "made" / "report.html").read_text()  # and the templates
    sources = code_snapshot._sources()
    monkeypatch.setattr(code_snapshot, "_sources", lambda: {**sources, "study/__init__.py": b"# changed"})
    assert code_snapshot.snapshot() != first
