"""Atomic writes: a failed one leaves the old file, a finished one is on disk before it has the file's name."""

import os

import pytest

from results.files import atomic, remove_partial


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_content_is_on_disk_before_it_replaces_the_file(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (calls.append(("fsync", os.fstat(file).st_ino)), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append(("replace", os.stat(a).st_ino)), replace(a, b)))
    path = tmp_path / "new folder" / "table.csv"
    with atomic(path) as temporary:
        temporary.write_text("whole")
    assert calls == [("fsync", path.stat().st_ino), ("replace", path.stat().st_ino)]
    assert path.read_text() == "whole"


def test_only_temporary_files_of_killed_writers_are_removed(tmp_path):
    kept = (".lock", ".lease.json.0123abcd", "checkpoint-000000000008.safetensors", "record.json")
    for name in kept:
        (tmp_path / name).touch()
    killed = [atomic(tmp_path / name) for name in ("checkpoint-000000000016.safetensors", "record.json", "samples.png")]
    for writer in killed:
        writer.__enter__().touch()
    assert len(list(tmp_path.iterdir())) == 7
    remove_partial(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(kept)
