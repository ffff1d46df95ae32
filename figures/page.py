"""A page: title, subtitle, panels of one size in rows and columns, small notes; all places in inches."""

from collections.abc import Sequence
from functools import cache

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from figures import style

PANEL = (3.4, 2.75)  # inches: one column of a paper
INSET = (0.78, 0.12, 0.48, 0.1)  # left, right, bottom, top of the axes inside a panel, inches
HEADING, SECOND_LINE = 0.16, 0.12  # more above for a heading, below for an x label of two lines
EDGE = 0.1


@cache
def width(text: str, size: float, weight: str = "normal") -> float:
    """Width of one line in inches."""
    font = FontProperties(family="DejaVu Sans", size=size, weight=weight)
    return float(text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]) / 72


def wrap(text: str, size: float, room: float, weight: str = "normal") -> list[str]:
    """Lines no wider than `room` inches, broken at spaces."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and width(longer, size, weight) > room:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def sheet(
    title: str,
    subtitle: str,
    notes: Sequence[str],
    body: tuple[float, float],
) -> tuple[Figure, float]:
    """A figure with room for a body (width, height in inches) between its titles and its notes.

    Returns the figure and the height of the body's lower edge above the figure's, in inches.
    """
    room = body[0] - 2 * EDGE
    blocks = [
        ([*wrap(title, style.TITLE, room, "bold")], style.TITLE, "bold", style.INK),
        ([*wrap(subtitle, style.TEXT, room)], style.TEXT, "normal", style.GREY),
    ]
    foot = [line for note in notes for line in wrap(note, style.SMALL, room)]
    head_height = EDGE + sum(len(lines) * _line(size) for lines, size, *_ in blocks) + 0.06
    foot_height = len(foot) * _line(style.SMALL) + (0.12 if foot else 0.0)
    height = head_height + body[1] + foot_height
    # whole pixels, so that a picture can sit on the pixel grid
    size = (round(body[0] * style.DPI) / style.DPI, round(height * style.DPI) / style.DPI)
    figure = Figure(figsize=size, dpi=style.DPI)

    def put(lines: Sequence[str], top: float, size_: float, weight: str, color: str) -> float:
        for line in lines:
            figure.text(
                EDGE / size[0],
                top / size[1],
                line,
                fontsize=size_,
                weight=weight,
                color=color,
                va="top",
                ha="left",
            )
            top -= _line(size_)
        return top

    top = size[1] - EDGE
    for lines, size_, weight, color in blocks:
        top = put(lines, top, size_, weight, color)
    put(foot, foot_height - 0.04, style.SMALL, "normal", style.GREY)
    return figure, foot_height


def panels(
    title: str,
    subtitle: str,
    notes: Sequence[str],
    rows: int,
    columns: int,
    right: float = INSET[1],
    headings: bool = False,
    two_line_label: bool = False,
) -> tuple[Figure, list[Axes]]:
    """A figure with rows x columns axes, in reading order; `right` inches beside each are kept for labels."""
    left, _, bottom, top = INSET
    bottom, top = bottom + SECOND_LINE * two_line_label, top + HEADING * headings
    panel_width, panel_height = PANEL
    figure, foot = sheet(title, subtitle, notes, (columns * panel_width, rows * panel_height))
    full_width, full_height = figure.get_size_inches()
    axes = []
    for row in range(rows):
        for column in range(columns):
            x, y = column * panel_width + left, foot + (rows - 1 - row) * panel_height + bottom
            w, h = panel_width - left - right, panel_height - bottom - top
            ax = figure.add_axes((x / full_width, y / full_height, w / full_width, h / full_height))
            ax.yaxis.set_label_coords(-(left - 0.37) / w, 0.5)
            ax.xaxis.set_label_coords(0.5, -0.23 / h)
            ax.grid(True)
            axes.append(ax)
    return figure, axes


def heading(ax: Axes, text: str) -> None:
    """A line above a panel, from its left edge."""
    offset = (-(INSET[0] - EDGE) * 72, 4)
    ax.annotate(text, (0, 1), xycoords="axes fraction", xytext=offset, textcoords="offset points")


def beside(texts: Sequence[str], size: float = 7.0) -> float:
    """Inches right of a panel that hold these labels."""
    return max(width(line, size) for text in texts for line in text.split("\n")) + 0.2


def _line(size: float) -> float:
    return size * 1.28 / 72
