"""Records state the code that made them: its commit and its difference from the commit."""

from __future__ import annotations

import subprocess

import pytest

from study.core import provenance
from study.core.files import write_json


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with one committed module."""
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "one.py").write_text("first = 1\n")
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=b", "commit", "-qm", "c"]):
        subprocess.run(["git", "-C", tmp_path, *command], check=True)
    monkeypatch.setattr(provenance, "CHECKOUT", tmp_path)
    return tmp_path


def test_code_as_committed_has_no_difference(checkout):
    (checkout / "notes.txt").touch()
    assert len(provenance.commit()) == 12
    assert provenance.difference() == ""


def test_changed_and_new_files_of_the_code_are_in_the_difference(checkout):
    (checkout / "study" / "one.py").write_text("first = 2\n")
    (checkout / "study" / "two.py").write_text("second = 3\n")
    for name in ("study/report/html/templates/page.html", "results/desk/report.html"):
        (checkout / name).parent.mkdir(parents=True)
        (checkout / name).write_text(f"{name}\n")
    assert provenance.commit().endswith("+changes")
    lines = set(provenance.difference().splitlines())
    assert {"-first = 1", "+first = 2", "+second = 3", "+study/report/html/templates/page.html"} <= lines
    assert "+results/desk/report.html" not in lines


def test_code_edited_while_a_process_submits_jobs_is_described_as_it_is_then(checkout):
    assert provenance.difference() == ""
    (checkout / "study" / "one.py").write_bytes("# caf\u00e9\n".encode("latin-1"))  # not UTF-8
    assert provenance.commit().endswith("+changes")
    assert "-first = 1" in provenance.difference()


def test_a_copy_of_the_code_names_what_it_was_copied_from(checkout):
    write_json(checkout / provenance.SOURCE, {"commit": "0123456789ab+changes", "difference": "+more"})
    assert (provenance.commit(), provenance.difference()) == ("0123456789ab+changes", "+more")


def test_without_a_repository_both_are_empty(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "CHECKOUT", tmp_path)
    assert (provenance.commit(), provenance.difference()) == ("", "")
