"""Help screens of commands, and how commands end."""

import dataclasses

import pytest
from safetensors import SafetensorError

from study.core.command_line import exit_code, options_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Base:
    """What both have."""

    birds: int = 3
    """How many birds there are, which is said in words that go on
    and end here."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Made(Base):
    """A command."""

    fast: bool = False
    plain: str = "x"
    """One of several
    letters."""


def test_the_help_of_a_field_is_a_paragraph_also_of_an_inherited_one(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        options_of(Made, "study.made", ["--help"])
    out = capsys.readouterr().out
    assert "usage: python -m study.made" in out
    assert "How many birds there are, which is said in words that go on and end here. (default: 3)" in out
    assert "One of several letters. (default: x)" in out


def test_options_are_parsed_as_they_are_given():
    assert options_of(Made, "study.made", ["--birds", "4", "--fast"]) == Made(birds=4, fast=True)
    assert options_of(Made, "study.made", []) == Made()


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
