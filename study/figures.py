"""Redraw a study's figures and report from its results table alone: `python -m study.figures [STUDY]`."""

import sys
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import arg

from models.names import nearest
from study.core.paths import CHECKOUT
from study.core.study_name import StudyArgument, StudyOption, one_study

PAPER = "paper"  # the published tables, which have figures but no report


def main(
    study: StudyArgument = "",
    out: Annotated[Path, arg(metavar="FOLDER", help_behavior_hint="")] = CHECKOUT,
    named: StudyOption = "",
) -> int:
    """Redraw every figure of a study and write its report, from its results table alone.

    Reads results/STUDY/table.csv, its picture sheets (sheets/) and the results of searches (search/). Writes
    figures/STUDY/NAME.png (for the screen), NAME.pdf (for print) and NAME.csv (the plotted numbers), and the page
    results/STUDY/report.html. Nothing is trained or measured, and the same table gives the same files.

    Args:
        study: A folder of results/ that holds a table.csv, or 'paper': the published tables. Default: all folders.
        out: Folder that holds results/ and figures/. Default: the checkout.
        named: The same as STUDY.
    """
    try:
        study = one_study(study, named)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    found = sorted(path.parent.name for path in (out / "results").glob("*/table.csv"))
    if study and study not in (PAPER, *found):
        near = nearest(study, found) if found else "there is none, run python -m study.sweep first"
        print(f"no study {study!r} in {out / 'results'}; {near}", file=sys.stderr)
        return 2
    if not study and not found:
        print(f"no study in {out / 'results'}: run python -m study.sweep first", file=sys.stderr)
        return 2

    # imported here: they load pandas and matplotlib, which takes a second that --help does not need
    from figures.render import render
    from study.report.html.page import write_page

    failed = False
    for name in [study] if study else found:
        try:
            result = render(out / "results" / name, out / "figures" / name)
            written = result.written
            if name != PAPER:
                failures = {**result.skipped, **result.refused}
                written.append(write_page(out / "results" / name, out / "figures" / name, failures))
        except ValueError as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed = True
            continue
        for path in written:
            print(path)
        for figure, reason in result.skipped.items():
            print(f"{name}: no {figure}: {reason}")
        for figure, reason in result.refused.items():
            print(f"{name}: {figure} refused: {reason}", file=sys.stderr)
        failed = failed or bool(result.refused)
    return int(failed)


if __name__ == "__main__":
    sys.exit(tyro.cli(main, prog="python -m study.figures"))
