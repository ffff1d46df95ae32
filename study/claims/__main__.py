"""python -m study.claims: which of the paper's claims hold in a study, judged from its results table alone."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import arg

from results.published import load_study
from study.claims.paper_claims import HEADER, RULE, judge_claims, markdown, rows_of
from study.core.paths import CHECKOUT
from study.core.study_name import StudyArgument, StudyOption, one_study

DEFAULT = "desk"  # the study that is judged if none is named


def main(
    study: StudyArgument = "",
    named: StudyOption = "",
    markdown_: Annotated[bool, arg(name="markdown")] = False,
    out: Annotated[Path, arg(metavar="FOLDER", help_behavior_hint="")] = CHECKOUT,
) -> int:
    """Judge the paper's claims with the data of a study.

    Args:
        study: A folder of results/ that holds a table.csv, or paper: its own published numbers. Default: desk.
        named: The same as STUDY.
        markdown_: Print a Markdown table of the claims that the study has measured.
        out: Folder that holds results/. Default: the checkout.
    """
    try:
        judged = judge_claims(load_study(one_study(study, named) or DEFAULT, out / "results"))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if markdown_:
        unmeasured = [claim.claim.where.split(",")[0] for claim in judged if not claim.places]
        print(markdown(HEADER, rows_of([claim for claim in judged if claim.places])))
        missing = f" Not measured: {', '.join(dict.fromkeys(unmeasured))}." if unmeasured else ""
        print(f"\n{textwrap.fill(RULE + missing, 120)}")
        return 0

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    styles = {"holds": "green", "fails": "red", "not measured": "dim"}
    shown = Table(box=None, pad_edge=False, show_header=False)
    for text, where, verdict, numbers, repeats, enough in rows_of(judged):
        needed = f"would decide: {enough}" if enough else ""
        place = escape(", ".join(filter(None, (where, repeats, needed))))
        evidence_lines = f"\n{escape(numbers)}" if numbers else ""
        shown.add_row(
            f"[{styles.get(verdict, 'yellow')}]{verdict}[/]", f"{escape(text)} [dim]({place}){evidence_lines}[/]"
        )
    console = Console(highlight=False)
    console.print(shown)
    console.print(RULE, style="dim")
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main, prog="python -m study.claims", config=(tyro.conf.FlagCreatePairsOff,)))
