"""Draw every figure of a study from its table, and those of its searches."""

from collections.abc import Callable, Iterable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pandas as pd

import figures
from figures import style
from figures.drawing import Drawing, NotAsked, NothingToDraw
from results import searches
from results.files import atomic
from results.published import load_study

SUFFIXES = ("png", "pdf", "csv")
OF_SEARCHES = ("search", "pareto")  # figures that are drawn for every space


class Rendered(NamedTuple):
    """Files written; and by figure name, why a figure had nothing to draw, and why drawing it failed."""

    written: list[Path]
    skipped: dict[str, str]
    refused: dict[str, str]


def render(study: Path, out: Path, names: Iterable[str] | None = None) -> Rendered:
    """Draw the named figures (default: all) of results/<study> as <name>.png, .pdf and .csv in `out`.

    `study` may also have the name of a published study. Figures of a search are named after its space, such as
    search-sampling. If a figure is skipped or refused, its files from an earlier table are deleted: the folder never
    shows numbers that the table does not hold. Raises ValueError for an unknown figure or an unreadable table.
    """
    table = load_study(study.name, study.parent)
    drawings = _of_searches(study, out, table)
    if names is not None:
        drawings = {name: drawings.get(name) or _of_table(name, study, table) for name in names}
    else:
        drawings = {name: _of_table(name, study, table) for name in figures.FIGURES} | drawings
    result = Rendered([], {}, {})
    for name, draw in drawings.items():
        try:
            result.written.extend(write(draw(), out / name))
            continue
        except NothingToDraw as reason:
            if not isinstance(reason, NotAsked):
                result.skipped[name] = str(reason)
        except Exception as error:  # a bug in one figure must not stop the other figures or the study
            expected = isinstance(error, (ValueError, FileNotFoundError))
            result.refused[name] = str(error) if expected else f"{type(error).__name__}: {error}"
        for suffix in SUFFIXES:
            (out / f"{name}.{suffix}").unlink(missing_ok=True)
    return result


def write(drawing: Drawing, stem: Path) -> list[Path]:
    """Write a figure as `stem`.png and `stem`.pdf, and its numbers as `stem`.csv."""
    path = stem.with_name(f"{stem.name}.csv")
    with atomic(path) as temporary:
        drawing.plotted.to_csv(temporary, index=False, lineterminator="\n")
    return [*style.save(drawing.figure, stem), path]


def _of_table(name: str, study: Path, table: pd.DataFrame) -> Callable[[], Drawing]:
    module = figures.module(name)
    return lambda: module.draw(table, study)


def _of_searches(study: Path, out: Path, table: pd.DataFrame) -> dict[str, Callable[[], Drawing]]:
    """Figures by name, for every searched space, and for spaces drawn in `out` whose search files are gone."""
    searched = searches.found(study)
    drawn = {path.stem.partition("-")[2] for module in OF_SEARCHES for path in out.glob(f"{module}-*.png")}

    def draw(module: str, space: str) -> Drawing:
        if space not in searched:
            raise NotAsked(f"the space {space} has not been searched")
        return import_module(f"figures.{module}").draw(searches.load(study, space), table)

    spaces = sorted({*searched, *drawn})
    return {f"{module}-{space}": partial(draw, module, space) for space in spaces for module in OF_SEARCHES}
