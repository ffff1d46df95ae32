"""The table of a plan on a narrow terminal."""

import io

from rich.console import Console

from study.report import console


def test_only_names_wrap_and_their_numbers_stay_in_the_first_line(monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(console, "console", Console(file=shown, width=40, highlight=False, soft_wrap=True))
    rows = [("a run of a [name] that wraps", "5", "done"), ("b", "10", "to do")]
    console.console.print(console._plan_table(("stages", "state"), rows))
    assert shown.getvalue().splitlines() == [
        "run                        stages  state",
        "a run of a [name] that          5  done ",
        "wraps                                   ",
        "b                              10  to do",
    ]
