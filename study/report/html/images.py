"""Images embedded in the page: figures with fewer colours, the first samples of a sheet at native size."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

COLUMNS = 8  # pictures in a row of a sheet
SIDE = 64  # pixels: larger samples are reduced to this size
COLOURS = 256  # of a figure: a third of the bytes without a visible difference


class Unreadable(ValueError):
    """A picture is missing or cannot be read; the message says which."""


@dataclass(frozen=True)
class Picture:
    """A picture as a data URI, with its size in pixels."""

    source: str
    width: int
    height: int


def figure(path: Path) -> Picture:
    """A figure's PNG with 256 colours.

    Raises:
        Unreadable: the file is damaged.
    """
    with _opened(path) as image:
        drawn = image.convert("RGB").quantize(COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    return _embedded(drawn, "PNG")


def strip(sheets: Path, name: str) -> Picture:
    """The first row of a picture sheet: lossless, or a reduced JPEG if the pictures are large.

    Args:
        sheets: folder of the sheets.
        name: a file in that folder, eight square pictures wide.

    Raises:
        Unreadable: the name is not a plain file name, or the sheet is missing or damaged.
    """
    if Path(name).name != name:
        raise Unreadable("a sheet is named by its file name alone")
    with _opened(sheets / name) as sheet:
        side = sheet.width // COLUMNS
        if not side:
            raise Unreadable(f"{name} is no sheet")
        row = sheet.convert("L" if sheet.mode == "L" else "RGB").crop((0, 0, side * COLUMNS, side))
    if side <= SIDE:
        return _embedded(row, "PNG")
    return _embedded(row.resize((SIDE * COLUMNS, SIDE), Image.Resampling.BOX), "JPEG")


def _opened(path: Path) -> Image.Image:
    try:
        image = Image.open(path)
        image.load()
    except FileNotFoundError:
        raise Unreadable(f"{path.name} is not there") from None
    except (OSError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError):
        raise Unreadable(f"{path.name} cannot be read") from None
    return image


def _embedded(image: Image.Image, form: str) -> Picture:
    memory = io.BytesIO()
    image.save(memory, form, optimize=True, **({"quality": 85} if form == "JPEG" else {}))
    data = base64.b64encode(memory.getvalue()).decode()
    return Picture(f"data:image/{form.lower()};base64,{data}", image.width, image.height)
