"""How every figure looks: type, colours per tokenizer, and saving that repeats byte for byte.

The latent width determines the hue (colour-blind safe), and alignment the filling: plain tokenizers are hollow and
dashed, aligned ones filled and solid; each further foundation model has its own marker and dash. Tokenizers with
regularisers have the marker of the first and a dash of their own, and so have representation autoencoders. Published
numbers are grey.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib.style
from matplotlib.figure import Figure

from results.files import atomic

DPI = 200
TITLE, TEXT, SMALL = 9.5, 7.5, 6.5  # points; nothing is smaller than SMALL
INK, GREY, FAINT = "#1a1a1a", "#5a5a5a", "#d9d9d9"
PUBLISHED_GROUND = "#f4f4f2"  # background of published numbers

SETTINGS: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same on every machine
    "font.size": TEXT,
    "text.color": INK,
    "text.hinting": "none",
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.labelsize": TEXT,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "axes.axisbelow": True,
    "grid.color": "#ececec",
    "grid.linewidth": 0.6,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "xtick.minor.size": 1.5,
    "ytick.minor.size": 1.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 5.5,
    "figure.dpi": DPI,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "pdf.fonttype": 42,
    "pdf.compression": 6,
    "svg.fonttype": "none",
    "svg.hashsalt": "figures",
}

HUES = {4: "#0072b2", 8: "#8c2d8c", 16: "#d55e00", 32: "#00795c", 64: "#5b4bb3", 128: "#8a6d00"}
SPARE_HUES = ("#a3195b", "#4d4d4d", "#006d77", "#7a4419")  # for widths that HUES lacks
GREYS = {4: "#767676", 16: "#767676", 32: "#4d4d4d", 64: "#111111"}  # of published numbers, by width
SHAPES: dict[str, tuple[str, Any]] = {  # foundation model: marker, dash
    "none": ("o", (0, (3.2, 1.8))),
    "lite0": ("o", "-"),
    "dinov2": ("o", "-"),
    "mae": ("s", (0, (7, 1.4))),
    "sam": ("^", (0, (7, 1.4, 1.4, 1.4))),
    "clip": ("D", (0, (1.4, 1))),
}
REGULARISED = {  # regulariser, or the part of the VF loss that is kept: marker
    "cosine": "<", "distance": ">", "spectrum": "p", "local": "d", "prefix": "8", "mask": "X", "noise": "*",
    "scale": "P", "eq": "h",
}  # fmt: skip
REGULARISED_DASH = (0, (4, 1, 1, 1))
REPRESENTATION: tuple[Any, Any] = ((4, 1, 0), (0, (1.4, 1, 4, 1)))  # a star of four points; of any encoder
OTHER_SHAPE: tuple[str, Any] = ("v", (0, (5, 1, 1, 1, 1, 1)))


@dataclass(frozen=True)
class Look:
    """Colour, marker, dash and filling of one tokenizer."""

    color: str
    marker: Any
    dash: Any
    hollow: bool

    def markers(self) -> dict[str, Any]:
        """Keyword arguments for the markers of a line."""
        face = "white" if self.hollow else self.color
        return {
            "marker": self.marker,
            "color": self.color,
            "markerfacecolor": face,
            "markeredgecolor": self.color,
            "markeredgewidth": 1.3,
        }


def look(latent_channels: int, foundation_model: str, tokenizer: str = "") -> Look:
    """The look of a tokenizer: the same in every figure of every study.

    Args:
        tokenizer: its spec, in which regularisers follow after `+`; needed for its marker and dash alone.
    """
    color = HUES.get(latent_channels, SPARE_HUES[latent_channels % len(SPARE_HUES)])
    marker, dash = shape(foundation_model)
    if "+" in tokenizer:
        marker, dash = REGULARISED.get(tokenizer.split("+")[1], OTHER_SHAPE[0]), REGULARISED_DASH
    return Look(color, marker, dash, hollow=foundation_model == "none")


def grey(latent_channels: int, foundation_model: str, tokenizer: str = "") -> Look:
    """The look of a tokenizer with published numbers: shades of grey, darker for wider latents, else the same."""
    shade = GREYS.get(latent_channels, GREY)
    return replace(look(latent_channels, foundation_model, tokenizer), color=shade)


def shape(foundation_model: str) -> tuple[Any, Any]:
    """Marker and dash of the tokenizers with this cell of the table."""
    return REPRESENTATION if foundation_model.startswith("rae-") else SHAPES.get(foundation_model, OTHER_SHAPE)


LookOf = Callable[[int, str, str], Look]


def glyph(foundation_model: str) -> str:
    """The marker of a foundation model as a character, for texts."""
    marker, _ = shape(foundation_model)
    return {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼"}.get(marker, "✦")


@contextmanager
def applied() -> Iterator[None]:
    """A context in which matplotlib has these settings and none of the user's."""
    with matplotlib.style.context(["default", SETTINGS]):
        yield


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write `stem`.png and `stem`.pdf, each atomically; the same figure gives the same bytes."""
    paths = []
    metadata: dict[str, dict[str, Any]] = {
        "png": {"Software": None},
        "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    }
    for suffix, fields in metadata.items():
        path = stem.with_name(f"{stem.name}.{suffix}")
        with applied(), atomic(path) as temporary:
            figure.savefig(temporary, format=suffix, dpi=DPI, metadata=fields)
        paths.append(path)
    return paths
