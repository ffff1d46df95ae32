"""The labels that ablations give their runs, in the form of the table's column `labels`.

A cell is such as `recipe 3: + AdamW beta2=0.95 [generator.betas]; vf_loss 1: full`: the ablation, the run's place in
its order, the label, and in brackets the factors in which the run differs from the run that it is compared with (in a
ladder, the previous one).
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

BREAKS = ";[]\n"  # characters that a label must not contain
_ENTRY = re.compile(r"(\w+) (\d+): ([^;\[\]]+?)(?: \[([^;\[\]]*)\])?")


class Label(NamedTuple):
    """A run's place and name in one ablation, and the factors in which it differs from the run it is compared with."""

    place: int
    text: str
    changed: tuple[str, ...] = ()


def parse(cell: str) -> dict[str, Label]:
    """The labels of a cell by ablation; ValueError if the cell does not have the form above."""
    labels = {}
    for entry in cell.split("; ") if cell else ():
        match = _ENTRY.fullmatch(entry)
        if match is None:
            raise ValueError(f"labels must read 'ablation place: label [factors]; ...', found {entry!r}")
        ablation, place, text, changed = match.groups()
        labels[ablation] = Label(int(place), text, tuple(changed.split(", ")) if changed else ())
    return labels


def cell(labels: Mapping[str, Label]) -> str:
    """The cell from which `parse` reads these labels."""
    return "; ".join(
        f"{ablation} {label.place}: {label.text}" + (f" [{', '.join(label.changed)}]" if label.changed else "")
        for ablation, label in sorted(labels.items())
    )
