"""Picture sheets: native pixels without gaps, eight columns; cut up and set with gaps on the pixel grid."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread

from figures import style

COLUMNS = 8


def load(folder: Path, name: str) -> np.ndarray:
    """The pictures of `folder`/sheets/`name`: (rows, 8, H, W, 3) uint8, H = W = sheet width / 8.

    Raises ValueError if the name is not a plain file name or the size is not that of a sheet.
    """
    if Path(name).name != name:
        raise ValueError(f"a sheet is named by its file name alone, found {name!r}")
    path = folder / "sheets" / name
    sheet = imread(path, format="png")  # floats in [0, 1]
    if sheet.ndim == 2:
        sheet = np.repeat(sheet[:, :, None], 3, axis=2)
    sheet = np.round(sheet[:, :, :3] * 255).astype(np.uint8)
    height, width, _ = sheet.shape
    side = width // COLUMNS
    if not side or width % COLUMNS or height % side:
        raise ValueError(
            f"{path} is {width} x {height} pixels; a sheet is {COLUMNS} square pictures wide and whole rows high"
        )
    return sheet.reshape(height // side, side, COLUMNS, side, 3).swapaxes(1, 2)


def tiled(pictures: np.ndarray, gap: int) -> np.ndarray:
    """Pictures (rows, columns, H, W, 3) as one image with white gaps of `gap` native pixels."""
    rows, columns, height, width, _ = pictures.shape
    canvas = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for row in range(rows):
        for column in range(columns):
            y, x = row * (height + gap), column * (width + gap)
            canvas[y : y + height, x : x + width] = pictures[row, column]
    return canvas


def scale(native_width: int, inches: float) -> float:
    """Output pixels per native pixel that fill about `inches`: an integer to enlarge, else the exact ratio."""
    ratio = inches * style.DPI / native_width
    return float(int(ratio * 1.04)) if ratio >= 1 else ratio


def place(figure: Figure, image: np.ndarray, left: float, bottom: float, zoom: float) -> Axes:
    """Show an image with its lower left corner at (left, bottom) inches, on whole output pixels."""
    full = figure.get_size_inches() * style.DPI
    x, y = round(left * style.DPI), round(bottom * style.DPI)
    w, h = round(image.shape[1] * zoom), round(image.shape[0] * zoom)
    ax = figure.add_axes((x / full[0], y / full[1], w / full[0], h / full[1]))
    ax.imshow(image, interpolation="nearest" if zoom >= 1 else "antialiased", aspect="auto")
    ax.set_axis_off()
    return ax
