import json

import pytest
import torch

from study.core.assets import asset
from study.core.files import fingerprint, load_tensors, read_json, save_tensors, write_json


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
