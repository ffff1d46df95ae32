"""Numbers as readable text, the same in figures, pages, tables of claims and on the terminal."""

import math
from collections.abc import Sequence
from statistics import fmean


def count(number: float) -> str:
    """A count with three digits and a unit: 500, 64k, 1.28M, 675M; from 1e12 on 1.46e+20."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if size <= number < 1e12:
            return f"{number / size:.3g}{unit}"
    return f"{number:.2e}" if number >= 1e12 else f"{number:g}"


def counted(number: int, noun: str) -> str:
    """'1 run', '1,200 runs'."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def three_digits(value: float) -> str:
    """A metric as figures print it, with three digits and never in scientific notation: 12,345, 919, 12.0, 0.0500."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")


def value_or_range(low: float, high: float) -> str:
    """One value of three digits, or '11.9–12.3' if the two are printed differently."""
    low_text, high_text = three_digits(low), three_digits(high)
    return low_text if low_text == high_text else f"{low_text}–{high_text}"


def as_published(value: float) -> str:
    """A number with at most two decimals, as papers print FIDs: 992, 30.4, 25.40, 2.11; millions of images as 1.28M."""
    if value == math.inf:
        return "never"
    if value >= 1e6:
        return count(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 30 else f"{value:.2f}"


def mean_and_range(values: Sequence[float]) -> str:
    """The mean as published, and in brackets the range if the values differ."""
    low, high = as_published(min(values)), as_published(max(values))
    return as_published(fmean(values)) + (f" ({low}–{high})" if low != high else "")


def percent(change: float) -> str:
    """A relative change as '−35%' or '+0.5%'."""
    return f"{change:+.1%}".replace("-", "−").replace(".0%", "%")


def relative_change(value: float, of: float) -> str:
    """The relative change from `of` to `value` as ', −35%'; empty if it is not defined."""
    return f", {percent(value / of - 1)}" if of > 0 and value < math.inf else ""


def duration(seconds: float) -> str:
    """'45 s', '12 min', '3.5 h', '17,574 h'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 100 else f"{hours:,.0f} h"


def disk_size(bytes_: float) -> str:
    """'84 GB', '1.2 TB' (decimal, as disks are sold)."""
    for unit, name in ((1e12, "TB"), (1e9, "GB")):
        if bytes_ >= unit:
            return f"{bytes_ / unit:.3g} {name}"
    return f"{bytes_ / 1e6:.3g} MB"
