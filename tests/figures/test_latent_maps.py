"""The figure of latent distributions: drawn from the maps in sheets/; a tokenizer without a map is named."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_tables import study, write_latents
from reading import visible

from figures import latent_maps, rows
from figures.drawing import NothingToDraw
from results.schema import latents_file


@pytest.fixture
def folder(tmp_path: Path, table: pd.DataFrame) -> Path:
    write_latents(table, tmp_path)
    return tmp_path


def test_every_tokenizer_has_its_map_and_pictures(folder: Path, table: pd.DataFrame) -> None:
    drawing = latent_maps.draw(table, folder)
    assert list(drawing.data["tokenizer"].unique()) == rows.tokenizers(table)
    assert drawing.data.groupby("tokenizer").size().eq(120).all()
    assert len(drawing.figure.axes) == 4 * 2 + 1  # with the scale of colours
    found = " ".join(text.get_text() for text in drawing.figure.texts)
    assert "spread 0.232" in found and "No map" not in found and "Not comparable" not in found


def test_dense_points_are_darker_and_drawn_last(folder: Path, table: pd.DataFrame) -> None:
    drawing = latent_maps.draw(table, folder)
    (points,) = drawing.figure.axes[0].collections
    shades = np.asarray(points.get_facecolor())[:, :3].sum(axis=1)
    assert shades[0] > shades[-1] and (np.diff(shades) <= 1e-9).mean() > 0.95


def test_a_tokenizer_without_a_map_is_a_named_gap(folder: Path, table: pd.DataFrame) -> None:
    lost = table[(table["tokenizer"] == "f4d16") & (table["kind"] == "tokenizer")]["fingerprint"].iloc[0]
    (folder / "sheets" / latents_file(lost, ".csv")).unlink()
    drawing = latent_maps.draw(table, folder)
    assert "f4d16" not in set(drawing.data["tokenizer"])
    found = " ".join(text.get_text() for text in drawing.figure.texts)
    assert "No map: f4d16 (python -m study.diagnose brings it)." in found
    with pytest.raises(NothingToDraw, match="no tokenizer has a map of its latents"):
        latent_maps.draw(table, folder / "elsewhere")


def test_one_tokenizer_of_one_seed_and_no_text_is_cut_off(tmp_path: Path) -> None:
    table = study(widths=(64,), models=("dinov2",), stride=16)
    write_latents(table, tmp_path)
    figure = latent_maps.draw(table, tmp_path).figure
    figure.draw_without_rendering()
    for text in visible(figure):
        box = text.get_window_extent()
        assert text.get_fontsize() >= 6.5
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 + 1 and box.y0 >= 0 and box.y1 <= figure.bbox.y1, text
    name = next(text for text in figure.texts if text.get_text() == "f16d64-dinov2")
    assert name.get_window_extent().x1 < figure.axes[0].get_window_extent().x0
