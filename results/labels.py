"""What ablations call their runs, as the table's column `labels` keeps it.

A cell such as `recipe 3: + AdamW beta2=0.95 [generator.betas]; vf_loss 1: full`: ablation, place in its order, label,
and in brackets the factors in which the run differs from the one it is compared with (in a ladder, the one before).
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

BREAKS = ";[]\n"  # what a label cannot hold
_ENTRY = re.compile(r"(\w+) (\d+): ([^;\[\]]+?)(?: \[([^;\[\]]*)\])?")


class Label(NamedTuple):
    """A run's place and name in one ablation, and the factors in which it differs from the run it is compared with."""

    place: int
    text: str
    changed: tuple[str, ...] = ()


def parse(cell: str) -> dict[str, Label]:
    """The labels of a cell by ablation; ValueError when it is not of the form above."""
    found = {}
    for entry in cell.split("; ") if cell else ():
        match = _ENTRY.fullmatch(entry)
        if match is None:
            raise ValueError(f"labels must read 'ablation place: label [factors]; ...', found {entry!r}")
        ablation, place, text, changed = match.groups()
        found[ablation] = Label(int(place), text, tuple(changed.split(", ")) if changed else ())
    return found


def cell(labels: Mapping[str, Label]) -> str:
    """The cell that `parse` reads."""
    return "; ".join(
        f"{ablation} {label.place}: {label.text}" + (f" [{', '.join(label.changed)}]" if label.changed else "")
        for ablation, label in sorted(labels.items())
    )
