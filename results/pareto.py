"""The Pareto front of items whose objectives are all minimised."""

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def front(items: Sequence[T], values: Callable[[T], Sequence[float]]) -> list[T]:
    """Items that no other item dominates, sorted by their values. To dominate: nowhere worse, somewhere better.

    Args:
        items: of which several may have the same values; these do not dominate each other.
        values: the objectives of an item, always the same number of them.
    """
    points = [tuple(values(item)) for item in items]

    def dominated(point: tuple[float, ...]) -> bool:
        return any(other != point and all(a <= b for a, b in zip(other, point, strict=True)) for other in points)

    kept = [(point, item) for point, item in zip(points, items, strict=True) if not dominated(point)]
    return [item for _, item in sorted(kept, key=lambda pair: pair[0])]
