"""A page: title, subtitle, panels of one size in rows and columns, small notes; all places in inches."""

from collections.abc import Sequence
from functools import cache

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.textpath import text_to_path

from figures import style

PANEL = (3.4, 2.75)  # inches: one column of a paper
NARROWEST = 0.5  # axes, inches; longer labels widen the panels
INSET = (0.78, 0.12, 0.48, 0.1)  # left, right, bottom, top of the axes inside a panel, inches
HEADING, SECOND_LINE = 0.16, 0.12  # extra space above for a heading, below for an x label of two lines
BAND = 0.2  # space above the panels of published numbers, in addition to their note
EDGE = 0.1
PUBLISHED = "published"  # id of axes that hold published numbers only


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
    below: float = 0.0,
) -> tuple[Figure, float]:
    """A figure with its titles and notes, and room for a body (width, height in inches) between them.

    below: inches left free under the notes.

    Returns the figure and the distance from its lower edge to the body's, in inches.
    """
    room = body[0] - 2 * EDGE
    blocks = [
        ([*wrap(title, style.TITLE, room, "bold")], style.TITLE, "bold", style.INK),
        ([*wrap(subtitle, style.TEXT, room)], style.TEXT, "normal", style.GREY),
    ]
    foot = [line for note in notes for line in wrap(note, style.SMALL, room)]
    head_height = EDGE + sum(len(lines) * _line(size) for lines, size, *_ in blocks) + 0.06
    foot_height = len(foot) * _line(style.SMALL) + (0.12 if foot else 0.0)
    height = head_height + body[1] + foot_height + below
    # whole pixels, so that pictures can be aligned with the pixel grid
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
    put(foot, foot_height - 0.04 + below, style.SMALL, "normal", style.GREY)
    return figure, foot_height + below


def panels(
    title: str,
    subtitle: str,
    notes: Sequence[str],
    rows: int,
    columns: int,
    right: float = INSET[1],
    headings: bool = False,
    two_line_label: bool = False,
    published_note: str = "",
) -> tuple[Figure, list[Axes]]:
    """A figure with rows x columns axes, in reading order; `right` inches are left free for labels at each axes' right.

    published_note: if given, a row of axes for published numbers is added below this text, as the last axes returned.
    """
    left, _, bottom, top = INSET
    bottom, top = bottom + SECOND_LINE * two_line_label, top + HEADING * headings
    panel_width, panel_height = max(PANEL[0], left + NARROWEST + right), PANEL[1]
    note_lines = wrap(published_note, style.SMALL, columns * panel_width - 2 * EDGE) if published_note else []
    published_height = panel_height + band_height(note_lines) if note_lines else 0.0
    figure, foot = sheet(title, subtitle, notes, (columns * panel_width, rows * panel_height), published_height)
    full_width, full_height = figure.get_size_inches()
    axes = []
    lower = [*(foot + (rows - 1 - row) * panel_height for row in range(rows)), *([EDGE] if note_lines else [])]
    for edge in lower:
        for column in range(columns):
            x, y = column * panel_width + left, edge + bottom
            w, h = panel_width - left - right, panel_height - bottom - top
            ax = figure.add_axes((x / full_width, y / full_height, w / full_width, h / full_height))
            ax.yaxis.set_label_coords(-(left - 0.37) / w, 0.5)
            ax.xaxis.set_label_coords(0.5, -0.23 / h)
            ax.grid(True)
            axes.append(ax)
    if note_lines:
        draw_published_header(figure, note_lines, published_height, axes[-columns:])
    return figure, axes


def band_height(note_lines: Sequence[str]) -> float:
    """Height in inches of the published part without its panels: EDGE below, and the header and its note above."""
    return EDGE + BAND + len(note_lines) * _line(style.SMALL)


def draw_published_header(figure: Figure, note_lines: Sequence[str], top: float, axes: Sequence[Axes]) -> None:
    """Draw a rule at `top` inches and the note on published numbers below it; give their axes a grey background."""
    width, height = figure.get_size_inches()
    rule = Line2D([EDGE / width, 1 - EDGE / width], [(top - 0.06) / height] * 2, color=style.GREY, linewidth=0.6)
    figure.add_artist(rule)
    place = (EDGE / width, (top - 0.12) / height)
    figure.text(*place, "\n".join(note_lines), fontsize=style.SMALL, color=style.INK, va="top", linespacing=1.28)
    for ax in axes:
        ax.set_gid(PUBLISHED)
        ax.set_facecolor(style.PUBLISHED_GROUND)
        ax.grid(color="white")


def hide_empty(axes: Sequence[Axes]) -> None:
    """Hide the axes in which nothing was drawn."""
    for ax in axes:
        if not ax.has_data():
            ax.set_axis_off()


def heading(ax: Axes, text: str) -> None:
    """A line above a panel, from its left edge; smaller where it would reach into the next panel."""
    offset = (-(INSET[0] - EDGE) * 72, 4)
    size = min(style.TEXT, style.TEXT * (PANEL[0] - EDGE) / max(width(text, style.TEXT), EDGE))
    ax.annotate(text, (0, 1), xycoords="axes fraction", xytext=offset, textcoords="offset points", fontsize=size)


def label_room(texts: Sequence[str], size: float = 7.0) -> float:
    """Room in inches that these labels need right of a panel."""
    return max(width(line, size) for text in texts for line in text.split("\n")) + 0.2


def _line(size: float) -> float:
    return size * 1.28 / 72
