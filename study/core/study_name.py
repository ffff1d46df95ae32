"""The name of a study on a command line: a positional argument, or the option --study."""

from __future__ import annotations

from typing import Annotated

import tyro
from tyro.conf import arg

StudyArgument = Annotated[tyro.conf.Positional[str], arg(metavar="[STUDY]", help_behavior_hint="")]
StudyOption = Annotated[str, arg(name="study", metavar="NAME", help_behavior_hint="")]


def one_study(argument: str, option: str) -> str:
    """The study that the command line names; '' if it names none.

    Raises:
        ValueError: argument and option name different studies.
    """
    if argument and option and argument != option:
        raise ValueError(f"two studies were named, {argument!r} and --study {option!r}: give one of them")
    return argument or option
