"""Sheets of pictures in native pixels, without gaps; figures cut and label them."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from results.files import atomic


def save_sheet(path: Path, images: Tensor, columns: int) -> None:
    """Write images uint8 (N, C, H, W), C 1 or 3, as one PNG with `columns` pictures per row; unused cells are black."""
    from PIL import Image

    count, channels, height, width = images.shape
    rows = -(-count // columns)
    sheet = images.new_zeros(rows * columns, channels, height, width)
    sheet[:count] = images
    sheet = sheet.view(rows, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    pixels = sheet.reshape(rows * height, columns * width, channels).numpy()
    with atomic(path) as temporary:
        Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(temporary, format="PNG")
