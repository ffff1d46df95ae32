"""Computations behind the figures: speed-up, placement of labels, picture sheets, looks."""

import math
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from made_tables import study

from figures import convergence, pictures, rows, scaling, style, wording
from figures.label_places import spread
from models.configs import VF_PARTS
from models.regularisation import REGULARISERS
from results.convergence import SpeedUp, speed_up


def curve(*points: tuple[int, float]) -> pd.Series:
    return pd.Series(dict(points), dtype=float)


PLAIN = curve((100, 50.0), (1000, 30.0), (10_000, 20.0))


def test_speed_up_by_hand() -> None:
    """The goal is 20. The aligned run has 30 at 100 and 10 at 10,000: halfway in gFID is halfway in
    log(images), so 1,000 images, ten times fewer than 10,000."""
    found = speed_up(PLAIN, curve((100, 30.0), (10_000, 10.0)))
    assert found.factor == pytest.approx(10)
    assert found.images == pytest.approx(1000)
    assert str(found) == "10×"


def test_speed_up_takes_the_first_crossing_and_any_order() -> None:
    """40 to 10 between 10 and 1,000: two thirds of the way, 10 * 100 ** (2 / 3) images."""
    found = speed_up(PLAIN[::-1], curve((10_000, 15.0), (2000, 25.0), (1000, 10.0), (10, 40.0)))
    assert found.images == pytest.approx(10 * 100 ** (2 / 3))


def test_speed_up_limits() -> None:
    assert speed_up(PLAIN, PLAIN).factor == pytest.approx(1)
    assert speed_up(PLAIN, curve((100, 30.0), (10_000, 20.001))) == SpeedUp(None, None)
    assert str(SpeedUp(None, None)) == "not reached"
    assert speed_up(PLAIN, curve((100, 19.0), (10_000, 5.0))) == SpeedUp(100.0, 100.0, at_least=True)
    slower = speed_up(curve((1000, 20.0)), curve((100, 30.0), (100_000, 10.0)))
    assert slower.factor == pytest.approx(1000 / math.exp((math.log(100) + math.log(100_000)) / 2))


def test_the_figure_reports_the_speed_up_per_judge() -> None:
    table = study(widths=(4,), marks=(1000, 10_000))
    values = {("none", 1000): 50, ("none", 10_000): 20, ("lite0", 1000): 30, ("lite0", 10_000): 10}
    for (model, mark), gfid in values.items():
        table.loc[(table["foundation_model"] == model) & (table["images_seen"] == mark), "gfid"] = gfid
    data = convergence.draw(table, Path()).data
    aligned = data[data["tokenizer"] == "f4d4-lite0"]
    assert set(aligned["speed_up"]) == {"3.2×"}  # 10,000 / (1,000 * 10 ** 0.5)
    assert set(data[data["tokenizer"] == "f4d4"]["speed_up"]) == {""}


def test_scaling_puts_one_generator_at_one_place() -> None:
    data = scaling.draw(study(sizes={"A/2": 10**6, "B/2": 10**7}), Path()).data
    assert data["parameters"].nunique() == 2  # though the width of the latent moves the count a little


def test_pairs_differ_in_alignment_alone() -> None:
    assert rows.pairs(study(models=("none", "lite0", "mae"))) == [
        ("f4d4", "f4d4-lite0"),
        ("f4d4", "f4d4-mae"),
        ("f4d16", "f4d16-lite0"),
        ("f4d16", "f4d16-mae"),
    ]
    assert rows.pairs(study(models=("lite0",))) == []
    names = {"f4d4-lite0": "f4d4+eq", "f4d4-mae": "f4d4-lite0+eq"}
    regularised = study(widths=(4,), models=("none", "lite0", "mae"))
    regularised["tokenizer"] = regularised["tokenizer"].replace(names)
    regularised["foundation_model"] = ["lite0" if "lite0" in name else "none" for name in regularised["tokenizer"]]
    assert rows.pairs(regularised) == [("f4d4+eq", "f4d4-lite0+eq")]
    representation = study(widths=(4,), models=("none", "lite0", "rae-lite0"))
    representation["tokenizer"] = representation["tokenizer"].replace({"f4d4-rae-lite0": "rae-lite0"})
    assert rows.pairs(representation) == [("f4d4", "f4d4-lite0")]


def test_spread_keeps_order_and_touches_at_most() -> None:
    assert spread([10, 50], [8, 8], 0, 100) == [10, 50]
    assert spread([10, 10], [8, 8], 0, 100) == [6, 14]
    assert spread([1, 1, 99], [8, 8, 8], 0, 100) == [4, 12, 96]
    assert spread([50, 51, 58], [8, 8, 8], 0, 100) == pytest.approx([45, 53, 61])


def test_sheets_are_cut_up_and_refused_when_they_are_none(tmp_path: Path) -> None:
    (tmp_path / "sheets").mkdir()
    sheet = np.zeros((2 * 4, 8 * 4, 3), np.uint8)
    sheet[4:8, 4:8] = (10, 20, 30)  # second row, second column
    matplotlib.image.imsave(tmp_path / "sheets" / "a.png", sheet)
    cut = pictures.load(tmp_path, "a.png")
    assert cut.shape == (2, 8, 4, 4, 3)
    assert (cut[1, 1] == (10, 20, 30)).all()
    assert cut.sum() == cut[1, 1].sum()
    assert pictures.tiled(cut, gap=1).shape == (2 * 5 - 1, 8 * 5 - 1, 3)
    matplotlib.image.imsave(tmp_path / "sheets" / "b.png", sheet[:7])
    with pytest.raises(ValueError, match="32 x 7 pixels"):
        pictures.load(tmp_path, "b.png")
    with pytest.raises(ValueError, match="file name alone"):
        pictures.load(tmp_path, "../sheets/a.png")


def test_a_tokenizer_looks_the_same_everywhere() -> None:
    plain, aligned, other = style.look(16, "none"), style.look(16, "lite0"), style.look(16, "mae")
    assert plain.color == aligned.color == other.color != style.look(4, "none").color
    assert (plain.hollow, aligned.hollow) == (True, False)
    assert aligned.marker != other.marker
    assert style.look(5, "unheard-of") == style.look(5, "unheard-of")
    assert set(style.REGULARISED) == {*VF_PARTS, *REGULARISERS}
    markers = [style.look(16, "none", f"f4d16+{name}").marker for name in style.REGULARISED]
    assert len({plain.marker, *markers}) == 1 + len(markers)
    noisy = style.look(16, "lite0", "f4d16-lite0+noise")
    assert (noisy.color, noisy.hollow) == (aligned.color, False) and noisy.dash != aligned.dash
    assert style.grey(16, "lite0", "f4d16-lite0+noise").marker == noisy.marker
    representation = style.look(112, "rae-lite0", "rae-lite0")
    assert representation.marker == style.look(1024, "rae-dinov2").marker and not representation.hollow
    others = [style.look(16, model) for model in (*style.SHAPES, "unheard-of")]
    assert representation.marker not in {*markers, *(look.marker for look in others)}
    assert representation.dash not in [noisy.dash, *(look.dash for look in others)]


def test_a_metric_is_named_with_its_number_of_samples() -> None:
    assert wording.counted("gFID", [5000]) == "gFID-5K"
    assert wording.counted("gFID", [2048]) == "gFID-2048"
