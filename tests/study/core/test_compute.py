"""What a precision sets up in a process, and what torch.compile needs of a machine."""

import dataclasses

import pytest
import torch
from made_up import COMPUTE

from study.core import compute
from study.core.compute import apply, autocast, exact_convolutions, no_compiler_because


@pytest.fixture(autouse=True)
def restored():
    yield
    apply(COMPUTE)


@pytest.mark.parametrize(
    ("precision", "convolutions", "products"),
    [("float32", False, torch.float32), ("tf32", True, torch.float32), ("bfloat16", False, torch.bfloat16)],
)
def test_tf32_is_for_the_convolutions_of_its_precision_alone(precision, convolutions, products):
    asked = dataclasses.replace(COMPUTE, precision=precision)
    apply(dataclasses.replace(COMPUTE, precision="tf32"))  # of a stage before in the same process
    apply(asked)
    assert torch.backends.cudnn.allow_tf32 is convolutions
    assert torch.backends.cuda.matmul.allow_tf32 is False
    with autocast(asked):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == products


def test_what_trainings_share_is_exact_and_the_training_goes_on_as_before():
    apply(dataclasses.replace(COMPUTE, precision="tf32"))
    with pytest.raises(ZeroDivisionError), exact_convolutions():
        assert torch.backends.cudnn.allow_tf32 is False
        raise ZeroDivisionError
    assert torch.backends.cudnn.allow_tf32 is True


def test_what_compiling_lacks_is_named_of_each_device(monkeypatch, tmp_path):
    for name in ("gcc", "g++"):
        (tmp_path / name).touch(0o755)
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(compute.importlib.util, "find_spec", lambda name: None)
    assert no_compiler_because("cpu") == ""
    assert no_compiler_because("cuda") == "the package triton"
    monkeypatch.setattr(compute.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(compute.sysconfig, "get_path", lambda name: str(tmp_path))
    assert no_compiler_because("cuda").startswith(f"Python's header {tmp_path / 'Python.h'}")
    (tmp_path / "Python.h").touch()
    assert no_compiler_because("cuda") == ""
    (tmp_path / "gcc").unlink()
    (tmp_path / "g++").unlink()
    assert [no_compiler_because(device)[:3] for device in ("cpu", "cuda")] == ["a C", "a C"]
    (tmp_path / "mine").touch(0o755)
    monkeypatch.setenv("CC", "mine")
    assert no_compiler_because("cuda") == "" and no_compiler_because("cpu")
