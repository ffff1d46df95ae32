"""Draw every figure of a study from its table."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import figures
from figures import style
from figures.drawing import NotAsked, NothingToDraw
from results.files import replacing
from results.table import load

SUFFIXES = ("png", "pdf", "csv")


class Rendered(NamedTuple):
    """Files written; why a figure had nothing to draw; why a figure's rows were refused (by figure name)."""

    written: list[Path]
    skipped: dict[str, str]
    refused: dict[str, str]


def render(study: Path, out: Path, names: Iterable[str] | None = None) -> Rendered:
    """Draw the named figures (default: all) of results/<study> as <name>.png, .pdf and .csv in `out`.

    A figure that is skipped or refused loses its files of an earlier table: the folder never shows numbers
    that the table does not hold. Raises ValueError for an unknown figure or a table that cannot be read.
    """
    modules = {name: figures.module(name) for name in (figures.FIGURES if names is None else names)}
    table = load(study / "table.csv")
    result = Rendered([], {}, {})
    for name, module in modules.items():
        try:
            drawing = module.draw(table, study)
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
                drawing.data.to_csv(temporary, index=False, lineterminator="\n")
            result.written.append(path)
            continue
        for suffix in SUFFIXES:
            (out / f"{name}.{suffix}").unlink(missing_ok=True)
    return result
