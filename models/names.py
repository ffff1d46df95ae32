"""The nearest names to one that does not exist, for error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LISTED = 20  # names that a message lists in full


def nearest(name: str, valid: Iterable[str]) -> str:
    """'nearest: a, b', up to three similar names whatever their case; 'valid: ...' with all of them if none is similar.

    Of more than LISTED valid names it is always the three nearest.
    """
    valid = list(valid)
    by_folded = {each.casefold(): each for each in valid}
    close = difflib.get_close_matches(name.casefold(), by_folded, n=3, cutoff=0.5 if len(valid) <= LISTED else 0)
    return f"nearest: {', '.join(by_folded[each] for each in close)}" if close else f"valid: {', '.join(valid)}"
