"""Labels beside what they name: never on each other, never cut off, the same place every time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from figures.layout import width

LINE = 1.2  # height of a line of text, in font sizes


@dataclass(frozen=True)
class Label:
    """Text (one or more lines) for a point in data coordinates."""

    text: str
    x: float
    y: float
    color: str


Box = tuple[float, float, float, float]  # left, bottom, right, top in points
Segment = tuple[float, float, float, float]  # x, y of both ends in points


def around_points(
    ax: Axes,
    labels: Sequence[Label],
    segments: Sequence[tuple[float, float, float, float]] = (),
    size: float = 7.0,
) -> None:
    """Label points of a scatter plot; lines (x0, y0, x1, y1 in data coordinates) are avoided where possible.

    Each label takes the cheapest of a fixed list of places around its point: overlaps cost most, crossing a
    line less, distance least. Two more rounds let earlier labels move away from later ones. A label without text is not
    written, but the other labels avoid its point.
    """
    to_points = 72 / ax.figure.dpi
    points = [tuple(ax.transData.transform((p.x, p.y)) * to_points) for p in labels]
    x0, y0, x1, y1 = (float(side) * to_points for side in ax.bbox.extents)
    frame = (x0 + 2, y0 + 2, x1, y1)
    lines = []
    for x0, y0, x1, y1 in segments:
        ends = ax.transData.transform([(x0, y0), (x1, y1)]) * to_points
        lines.append(_along((*ends[0], *ends[1])))
    markers = [(x - 4.5, y - 4.5, x + 4.5, y + 4.5) for x, y in points]
    candidates = [_places(point, label.text, size) for point, label in zip(points, labels, strict=True)]
    standing = [near + _standing_cost(places, markers, lines, frame) for near, places in candidates]
    chosen: dict[int, Box] = {}
    for _ in range(3):
        for i, (_near, places) in enumerate(candidates):
            costs = standing[i] + _label_cost(places, [box for j, box in chosen.items() if j != i])
            left, bottom, right, top = places[costs.argmin()]
            chosen[i] = (float(left), float(bottom), float(right), float(top))
    for i, label in enumerate(labels):
        if not label.text:
            continue
        left, bottom, right, top = chosen[i]
        _write(ax, label, points[i], (left, (bottom + top) / 2), size)
        near = (min(max(points[i][0], left), right), min(max(points[i][1], bottom), top))
        _leader(ax, label, points[i], near, shortest=9)


def at_line_ends(ax: Axes, labels: Sequence[Label], size: float = 7.0, gap: float = 7.0) -> None:
    """Label the ends of lines in a column right of the axes, spread so that no two overlap."""
    to_points = 72 / ax.figure.dpi
    _, bottom, right, top = (side * to_points for side in ax.bbox.extents)
    points = [tuple(ax.transData.transform((p.x, p.y)) * to_points) for p in labels]
    order = sorted(range(len(labels)), key=lambda i: (points[i][1], -i))
    heights = [_extent(labels[i].text, size)[1] + 1.5 for i in order]
    places = spread([points[i][1] for i in order], heights, bottom, top + 14)
    for i, y in zip(order, places, strict=True):
        _write(ax, labels[i], points[i], (right + gap, y), size)
        _leader(ax, labels[i], points[i], (right + gap - 1.5, y), shortest=3)


def spread(wanted: Sequence[float], heights: Sequence[float], low: float, high: float) -> list[float]:
    """Centres as close as possible to `wanted` (ascending) whose intervals do not overlap and lie in [low, high].

    Intervals that would overlap form a block around their mean; blocks that touch are merged. If the room is too small,
    the column starts at `low` and ends above `high`.
    """
    blocks: list[tuple[float, float, list[int]]] = []  # centre, height, members

    def clamp(centre: float, height: float) -> float:
        return max(low + height / 2, min(centre, high - height / 2))

    for i, (y, h) in enumerate(zip(wanted, heights, strict=True)):
        blocks.append((clamp(y, h), h, [i]))
        while len(blocks) > 1 and blocks[-2][0] + blocks[-2][1] / 2 > blocks[-1][0] - blocks[-1][1] / 2:
            (_, h0, a), (_, h1, b) = blocks[-2:]
            centre = sum(wanted[j] for j in a + b) / len(a + b)
            blocks[-2:] = [(clamp(centre, h0 + h1), h0 + h1, a + b)]
    places = [0.0] * len(wanted)
    for centre, height, members in blocks:
        y = centre - height / 2
        for i in members:
            places[i] = y + heights[i] / 2
            y += heights[i]
    return places


def _extent(text: str, size: float) -> tuple[float, float]:
    lines = text.split("\n")
    return max(width(line, size) for line in lines) * 72, len(lines) * size * LINE


def _places(point: tuple[float, ...], text: str, size: float) -> tuple[np.ndarray, np.ndarray]:
    """Cost of the distance (places) and boxes (places, 4) around a point; the first is the nearest, right of it."""
    x, y = point
    w, h = _extent(text, size)
    costs, boxes = [], []
    for radius in (6.0, 10.0, 16.0, 24.0, 34.0, 48.0, 66.0):
        for step in range(16):
            angle = math.pi * step / 8
            c, s = math.cos(angle), math.sin(angle)
            left = x + radius * c + (c - 1) / 2 * w
            bottom = y + radius * s + (s - 1) / 2 * h
            preference = 0.0 if step == 0 else 0.5 + (step % 4 != 0) * 0.5
            costs.append(radius + (radius / 12) ** 2 + preference)
            boxes.append((left, bottom, left + w, bottom + h))
    return np.array(costs), np.array(boxes)


def _standing_cost(places: np.ndarray, markers: Sequence[Box], lines: Sequence[np.ndarray], frame: Box) -> np.ndarray:
    """What boxes (places, 4) cost for the markers and lines under them and for leaving the frame."""
    left, bottom, right, top = places.T
    cost = np.zeros(len(places))
    for marker in markers:
        over = _overlap(places, marker, 1.0)
        cost += np.where(over > 0, 25.0 + over, 0.0)
    for x, y in lines:
        inside = (left[:, None] <= x) & (x <= right[:, None]) & (bottom[:, None] <= y) & (y <= top[:, None])
        cost += 14.0 * inside.any(1)
    outside = sum(np.maximum(by, 0) for by in (frame[0] - left, right - frame[2], frame[1] - bottom, top - frame[3]))
    return cost + np.where(outside > 0, 1000.0 + outside, 0.0)


def _label_cost(places: np.ndarray, labels: Sequence[Box]) -> np.ndarray:
    """What boxes (places, 4) cost for the labels under them."""
    cost = np.zeros(len(places))
    for label in labels:
        cost += 40.0 * (_overlap(places, label, 1.5) > 0) + 2.0 * _overlap(places, label, 1.0)
    return cost


def _overlap(places: np.ndarray, box: Box, margin: float) -> np.ndarray:
    """Area that each of the boxes (places, 4) shares with another box."""
    across = np.minimum(places[:, 2], box[2]) - np.maximum(places[:, 0], box[0]) + margin
    up = np.minimum(places[:, 3], box[3]) - np.maximum(places[:, 1], box[1]) + margin
    return np.where((across > 0) & (up > 0), across * up, 0.0)


def _along(line: Segment) -> np.ndarray:
    """Points (2, points) of a line, at most 2 points apart."""
    x0, y0, x1, y1 = line
    steps = max(int(math.hypot(x1 - x0, y1 - y0) / 2), 1)
    share = np.arange(steps + 1) / steps
    return np.array([x0 + (x1 - x0) * share, y0 + (y1 - y0) * share])


def _write(ax: Axes, label: Label, point: tuple[float, ...], place: tuple[float, float], size: float) -> None:
    ax.annotate(
        label.text,
        (label.x, label.y),
        xytext=(place[0] - point[0], place[1] - point[1]),
        textcoords="offset points",
        fontsize=size,
        color=label.color,
        ha="left",
        va="center",
        linespacing=LINE,
        annotation_clip=False,
        path_effects=[withStroke(linewidth=1.6, foreground="white")],
        zorder=6,
    )


def _leader(ax: Axes, label: Label, point: tuple[float, ...], end: tuple[float, float], shortest: float) -> None:
    across, up = end[0] - point[0], end[1] - point[1]
    length = math.hypot(across, up)
    if length < shortest:
        return
    ax.annotate(
        "",
        (label.x, label.y),
        xytext=(across, up),
        textcoords="offset points",
        annotation_clip=False,
        arrowprops={
            "arrowstyle": "-",
            "color": label.color,
            "linewidth": 0.5,
            "alpha": 0.6,
            "shrinkA": 0,
            "shrinkB": 4,
        },
        zorder=1.5,
    )
