"""What is drawn: one module per figure, each a pure function from the results table to a figure.

To add one, write a module with `draw(table, folder) -> Drawing`, add its name to FIGURES, and test that it renders. The
figures of searches, search.py and pareto.py, are drawn once per space by render.py; effects.py needs several studies
and is drawn by study.compare, board.py the board and by study.board.
"""

from importlib import import_module
from types import ModuleType

from models.names import nearest

FIGURES = (
    "dilemma", "frontier", "convergence", "scaling", "ladder", "foundation_models", "vf_loss", "repa", "where_to_align",
    "latents", "foretell", "uniformity", "guidance", "tokenizer_budget", "tokenizer_settings", "alignment",
    "latent_maps", "reconstructions", "samples",
)  # fmt: skip


def module(name: str) -> ModuleType:
    """The module of a figure; ValueError with the nearest names if there is no such figure."""
    if name not in FIGURES:
        raise ValueError(f"no figure {name!r}; {nearest(name, FIGURES)}")
    return import_module(f"figures.{name}")
