"""How commands are told which study: its name in its place on the command line, or after --study."""

from __future__ import annotations

from typing import Annotated

import tyro
from tyro.conf import arg

StudyInPlace = Annotated[tyro.conf.Positional[str], arg(metavar="[STUDY]", help_behavior_hint="")]
StudyOption = Annotated[str, arg(name="study", metavar="NAME", help_behavior_hint="")]


def one_study(in_place: str, option: str) -> str:
    """The study that was named; '' where none was.

    Raises:
        ValueError: two were, and they differ.
    """
    if in_place and option and in_place != option:
        raise ValueError(f"two studies were named, {in_place!r} and --study {option!r}: give one of them")
    return in_place or option
