"""Numbers as readable text: durations, counts, sizes, paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def duration(seconds: float) -> str:
    """'45 s', '12 min', '3.5 h'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def short_count(number: float) -> str:
    """A count with three digits and a unit, such as 675M, or 1.46e+20 from 1e12 on."""
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if unit <= number < 1e12:
            return f"{number / unit:.3g}{letter}"
    return f"{number:.2e}" if number >= 1e12 else f"{number:g}"


def disk_size(bytes_: float) -> str:
    """'84 GB', '1.2 TB' (decimal, as disks are sold)."""
    for unit, name in ((1e12, "TB"), (1e9, "GB")):
        if bytes_ >= unit:
            return f"{bytes_ / unit:.3g} {name}"
    return f"{bytes_ / 1e6:.3g} MB"


def progress_texts(progress: dict[str, Any]) -> tuple[str, str, str]:
    """Finished share, rate and remaining time of a stage, as text."""
    if not progress.get("total"):
        return "", "", ""
    share, rate = progress["done"] / progress["total"], progress["rate"]
    left = f"{duration((progress['total'] - progress['done']) / rate)} left" if rate > 0 else ""
    return f"{share:.0%}", f"{rate:,.0f} {progress['unit']}/s" if rate > 0 else "", left


def relative_path(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
