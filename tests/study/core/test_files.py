import json

import pytest
import torch

from study.core.assets import asset
from study.core.files import atomic, fingerprint, load_tensors, read_json, remove_partial, save_tensors, write_json


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "numbers.json"
    write_json(path, [1])
    with pytest.raises(RuntimeError), atomic(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(path) == [1]
    assert list(tmp_path.iterdir()) == [path]


def test_only_temporary_files_of_killed_writers_are_removed(tmp_path):
    kept = (".lock", ".lease.json.0123abcd", "checkpoint-000000000008.safetensors", "record.json")
    left = (".checkpoint-000000000016.safetensors.0123abcd", ".record.json.89abcdef", ".samples.png.01234567")
    for name in (*kept, *left):
        (tmp_path / name).touch()
    remove_partial(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(kept)


def test_a_number_that_is_not_finite_is_never_stored(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "record.json", {"gfid": float("nan")})
    assert read_json(tmp_path / "record.json") is None


def test_a_torn_json_file_reads_as_missing(tmp_path):
    path = tmp_path / "record.json"
    path.write_text(json.dumps({"a": 1})[:-2])
    assert read_json(path) is None


def test_fingerprint_ignores_the_order_of_keys_and_nothing_else():
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": 1, "b": [1, 2]}) != fingerprint({"a": 1, "b": [2, 1]})
    assert fingerprint({"a": 1}) != fingerprint({"a": 1.0})


def test_tensors_of_any_layout_come_back_as_they_were(tmp_path):
    strided = torch.arange(24.0).view(2, 3, 2, 2).to(memory_format=torch.channels_last)
    save_tensors(tmp_path / "t.safetensors", {"a": strided, "b": torch.tensor(3)})
    back = load_tensors(tmp_path / "t.safetensors")
    assert torch.equal(back["a"], strided)
    assert back["b"].item() == 3


def test_an_asset_is_built_once_and_again_when_building_was_cut_off():
    calls = []

    def build(folder):
        calls.append(folder)
        if len(calls) == 1:
            raise KeyboardInterrupt
        (folder / "content").write_text("whole")

    with pytest.raises(KeyboardInterrupt):
        asset("thing", {"size": 1}, build)
    for _ in range(2):
        assert (asset("thing", {"size": 1}, build) / "content").read_text() == "whole"
    assert len(calls) == 2
    assert asset("thing", {"size": 2}, build) != calls[0]
