"""GPUs are found where torch finds them, whatever names them and whatever hides some, and without torch in between."""

import os
import subprocess
import sys
import textwrap

import pytest

from study.core import cards

TORCH = """
import contextlib, os, types, warnings

class version:
    cuda, hip = {cuda!r}, {hip!r}

def _visible():
    names = os.environ.get("HIP_VISIBLE_DEVICES") if version.hip else None
    names = os.environ.get("CUDA_VISIBLE_DEVICES") if names is None else names
    if names is None:
        return list(range({count}))
    found = []
    for name in names.split(","):  # the driver stops at the first that is none
        if not name.strip() or name.strip() == "-1":
            break
        found.append(name.strip())
    return found[:{count}]

class cuda:
    def is_available():
        if {warning!r}:
            warnings.warn({warning!r})
        return bool(_visible())
    def device_count():
        return len(_visible())
    def get_device_properties(index):
        return types.SimpleNamespace(name=f"Card {{_visible()[index]}}", total_memory=16 * 2**30)
    def device(index):
        return contextlib.nullcontext()
    def is_bf16_supported(including_emulation=True):
        return including_emulation or {halves!r}
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """`machine(*device files, what its torch knows)`: makes one, and returns what is found there."""

    def made(*files, **torch):
        folder = tmp_path / "dev"
        folder.mkdir(exist_ok=True)
        for name in files:
            (folder / name).touch()
        about = {"cuda": "13.0", "hip": None, "count": 2, "halves": True, "warning": ""}
        (tmp_path / "torch.py").write_text(TORCH.format(**{**about, **torch}))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setattr(cards, "DEVICES", folder)
        cards._found.cache_clear()
        return cards.cards()

    for name in cards.VISIBLE:
        monkeypatch.delenv(name, raising=False)
    yield made
    cards._found.cache_clear()


@pytest.mark.parametrize("file", ["nvidiactl", "nvidia0", "dxg", "nvhost-gpu"])
def test_any_driver_of_nvidia_will_do(machine, file):
    first, second = machine(file)
    assert (first.visible, second.visible) == ("0", "1")
    assert (first.name, first.memory_gib, first.bfloat16) == ("Card 0", 16.0, True)
    assert cards.no_card_because() == ""


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("1", ["1"]),
        ("1,0", ["1", "0"]),
        ("GPU-8f6a, GPU-77b1", ["GPU-8f6a", "GPU-77b1"]),
        ("MIG-GPU-8f6a/1/0", ["MIG-GPU-8f6a/1/0"]),
        ("0,-1,1", ["0"]),
        ("", []),
        ("-1", []),
    ],
)
def test_a_gpu_is_called_as_the_variable_calls_it(machine, monkeypatch, value, found):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert [card.visible for card in machine("nvidiactl")] == found
    if not found:
        assert f"CUDA_VISIBLE_DEVICES is {value!r}" in cards.no_card_because()


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({}, ["0", "1"]),
        ({"HIP_VISIBLE_DEVICES": "1"}, ["1"]),
        ({"CUDA_VISIBLE_DEVICES": "1"}, ["1"]),
        ({"HIP_VISIBLE_DEVICES": "0", "CUDA_VISIBLE_DEVICES": "1"}, ["0"]),
        ({"ROCR_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "0"}, ["0"]),
        ({"HIP_VISIBLE_DEVICES": "-1"}, []),
    ],
)
def test_amds_are_found_and_limited_by_their_own_variable(machine, monkeypatch, variables, found):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    here = machine("kfd", cuda=None, hip="6.4")
    assert [card.visible for card in here] == found
    assert {card.variable for card in here} <= {"HIP_VISIBLE_DEVICES"}


@pytest.mark.parametrize(
    ("files", "torch", "reason"),
    [
        ([], {}, "there is no device file of one"),
        (["nvidiactl"], {"cuda": None}, "this torch is built for processors alone"),
        (["dxg"], {"count": 0, "warning": "the driver is too old"}, "torch finds none; the driver is too old"),
    ],
)
def test_where_there_is_none_it_says_why(machine, files, torch, reason):
    assert machine(*files, **{"count": 0, **torch}) == ()
    assert reason in cards.no_card_because()


def test_a_torch_that_fails_or_does_not_answer_is_no_gpu(machine, tmp_path, monkeypatch):
    machine("nvidiactl")
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.13: cannot open shared object file')")
    cards._found.cache_clear()
    assert cards.cards() == ()
    assert "libcudart.so.13" in cards.no_card_because()
    (tmp_path / "torch.py").write_text("import time; time.sleep(60)")
    monkeypatch.setattr(cards, "ASK_SECONDS", 0.1)
    cards._found.cache_clear()
    assert cards.cards() == ()
    assert "did not answer" in cards.no_card_because()


def test_an_older_card_does_not_multiply_in_bfloat16(machine):
    assert not machine("nvidiactl", halves=False)[0].bfloat16


@pytest.mark.parametrize("torch", [{}, {"cuda": None, "hip": "6.4"}])
def test_a_job_sees_its_own_cards_alone(machine, monkeypatch, torch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8f6a,GPU-77b1")
    _, second = machine("nvidiactl", **torch)
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "5")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # as submitit leaves it
    found = cards.on_cards([second], lambda *names: [os.environ[name] for name in names], *cards.VISIBLE[:2])
    assert found == ["GPU-77b1", "GPU-77b1" if torch else "5"]
    assert cards.on_cards([], int, "7") == 7


def test_looking_for_cards_loads_no_torch(tmp_path):
    code = """
        import sys
        from study.core import compute
        compute.resolve()
        assert "torch" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)
