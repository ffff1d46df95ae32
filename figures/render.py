"""Draw every figure of a study from its table, and those of its searches."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pandas as pd

import figures
from figures import pareto, search, style
from figures.drawing import Drawing, NotAsked, NothingToDraw
from results import searches
from results.files import replacing
from results.published import load_study

SUFFIXES = ("png", "pdf", "csv")
MODULES = {"search": search, "pareto": pareto}  # of searches; each is drawn for every space


class Rendered(NamedTuple):
    """Files written; why a figure had nothing to draw; why a figure's rows were refused (by figure name)."""

    written: list[Path]
    skipped: dict[str, str]
    refused: dict[str, str]


def render(study: Path, out: Path, names: Iterable[str] | None = None) -> Rendered:
    """Draw the named figures (default: all) of results/<study>, or of what is published where that is its name, as
    <name>.png, .pdf and .csv in `out`.

    Those of a search are named after its space, such as search-sampling.

    A figure that is skipped or refused loses its files of an earlier table: the folder never shows numbers
    that the table does not hold. Raises ValueError for an unknown figure or a table that cannot be read.
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
            drawing = draw()
        except NothingToDraw as reason:
            if not isinstance(reason, NotAsked):
                result.skipped[name] = str(reason)
        except Exception as error:  # a fault in one drawing must not stop the others, nor the study
            plain = isinstance(error, (ValueError, FileNotFoundError))
            result.refused[name] = str(error) if plain else f"{type(error).__name__}: {error}"
        else:
            result.written.extend(style.save(drawing.figure, out / name))
            path = out / f"{name}.csv"
            with replacing(path) as temporary:
                drawing.plotted.to_csv(temporary, index=False, lineterminator="\n")
            result.written.append(path)
            continue
        for suffix in SUFFIXES:
            (out / f"{name}.{suffix}").unlink(missing_ok=True)
    return result


def _of_table(name: str, study: Path, table: pd.DataFrame) -> Callable[[], Drawing]:
    module = figures.module(name)
    return lambda: module.draw(table, study)


def _of_searches(study: Path, out: Path, table: pd.DataFrame) -> dict[str, Callable[[], Drawing]]:
    """By name, the figures of every space that has been searched, and of those drawn in `out` whose files are gone."""
    there = searches.found(study)
    drawn = {path.stem.partition("-")[2] for module in MODULES for path in out.glob(f"{module}-*.png")}

    def of(module: str, space: str) -> Drawing:
        if space not in there:
            raise NotAsked(f"the space {space} has not been searched")
        return MODULES[module].draw(searches.load(study, space), table)

    return {f"{module}-{space}": partial(of, module, space) for space in sorted({*there, *drawn}) for module in MODULES}
