import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models.weights import load_foreign

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2)}


class Hostile:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def same(loaded):
    return loaded.keys() == STATE.keys() and all(torch.equal(loaded[k], STATE[k]) for k in STATE)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin"])
@pytest.mark.parametrize("legacy", [False, True])
def test_torch_files(tmp_path, suffix, legacy):
    path = tmp_path / f"w{suffix}"
    torch.save(STATE, path, _use_new_zipfile_serialization=not legacy)
    assert same(load_foreign(path))


def test_safetensors(tmp_path):
    save_file(STATE, tmp_path / "w.safetensors")
    assert same(load_foreign(tmp_path / "w.safetensors"))
    (tmp_path / "bad.safetensors").write_bytes(b"not at all")
    with pytest.raises(ValueError, match="not a valid safetensors"):
        load_foreign(tmp_path / "bad.safetensors")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "legacy.pth"])
def test_a_file_that_is_cut_in_half_is_named(tmp_path, name):
    path = tmp_path / name
    if name == "w.safetensors":
        save_file(STATE, path)
    else:
        torch.save(STATE, path, _use_new_zipfile_serialization=name == "w.pth")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"{name}.*(not a valid safetensors|not all of one|cut off)") as error:
        load_foreign(path)
    assert "\n" not in str(error.value)


def test_nested_checkpoints_are_unwrapped_and_the_average_comes_first(tmp_path):
    torch.save({"state_dict": STATE, "epoch": 3}, tmp_path / "a.ckpt")
    assert same(load_foreign(tmp_path / "a.ckpt"))
    torch.save({"model": {"x": torch.zeros(1)}, "ema": {"state_dict": STATE}, "config": {"lr": 1}}, tmp_path / "b.pt")
    assert same(load_foreign(tmp_path / "b.pt"))


@pytest.mark.parametrize("how", ["torch", "pickle", "legacy"])
def test_a_hostile_pickle_is_refused_and_not_run(tmp_path, how):
    path, target = tmp_path / "w.pt", tmp_path / "created"
    content = {"state_dict": {**STATE, "evil": Hostile(target)}}
    if how == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(ValueError, match=r"refused .*w\.pt"):
        load_foreign(path)
    assert not target.exists()
    pickle.loads(pickle.dumps(Hostile(target)))  # the trap does spring where pickles are trusted
    assert target.exists()


def test_other_files_are_refused(tmp_path):
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(1))
    with pytest.raises(ValueError, match=r"refused .*\.safetensors"):
        load_foreign(tmp_path / "w.pkl")
    torch.save({"epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="no table of named tensors"):
        load_foreign(tmp_path / "w.pt")
    for path in (tmp_path / "absent.pt", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"no weights at {path}"):
            load_foreign(path)
