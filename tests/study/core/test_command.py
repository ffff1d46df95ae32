"""How a command ends."""

import pytest
from safetensors import SafetensorError

from study.core.command import exit_code


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (3, 3)])
def test_its_own_code(returned, code):
    assert exit_code("study.made", lambda: returned) == code


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (ValueError("no scale 'dsk'"), 2, "study.made: no scale 'dsk'\n"),
        (FileNotFoundError("no such file"), 2, "study.made: no such file\n"),
        (SafetensorError("header too large"), 2, "study.made: header too large\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_what_a_user_can_mend_is_one_line(raised, code, said, capsys):
    def run():
        raise raised

    assert exit_code("study.made", run) == code
    assert capsys.readouterr().err == said


def test_a_fault_of_ours_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        exit_code("study.made", lambda: 1 // 0)
