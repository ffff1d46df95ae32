"""Features of foundation models before they are computed: their shape, how large they are, whether they are cached."""

from __future__ import annotations

import dataclasses

from models.configs import LITE0_WIDTHS, TRANSFORMERS
from models.costs import foundation_flops
from study.plan.data_spec import DataSpec
from study.plan.specs import Encode, FitGenerator, FoundationRecipe

CACHE_GIB = 8.0  # up to which features of all images and views are kept on the disk


def used_recipe(name: str, recipe: FoundationRecipe) -> FoundationRecipe:
    """The recipe with fixed values in the fields that this model does not use: input size and stride are configurable
    for lite0 only."""
    recipe = dataclasses.replace(recipe, bfloat16=recipe.bfloat16 or None)
    if name == "lite0":
        return dataclasses.replace(recipe, own_statistics=False)
    return dataclasses.replace(recipe, input_size=0, stride=0)


def feature_width(name: str, recipe: FoundationRecipe) -> int:
    """Channels of a foundation model's features."""
    return TRANSFORMERS[name].width if name in TRANSFORMERS else LITE0_WIDTHS[recipe.stride]


def input_side(name: str, recipe: FoundationRecipe, data: DataSpec) -> int:
    """Side in pixels of the image that a foundation model gets."""
    if name in TRANSFORMERS:
        return TRANSFORMERS[name].resize or data.resolution
    return recipe.input_size


def features_gib(shape: tuple[int, int, int], images: int, views: int) -> float:
    """GiB of bfloat16 features of this shape (D, h, w)."""
    return images * views * shape[0] * shape[1] * shape[2] * 2 / 2**30


def repa_flops(fit: FitGenerator, latents: Encode) -> int:
    """About the FLOPs per training image for features of its alignment; 0 without one, and where they are cached: then
    they are computed once for all trainings."""
    repa, recipe, data = fit.recipe.repa, fit.foundation, latents.data
    if repa is None or recipe is None:
        return 0
    side = input_side(repa.model, recipe, data)
    grid = side // (TRANSFORMERS[repa.model].patch if repa.model in TRANSFORMERS else recipe.stride)
    shape = (feature_width(repa.model, recipe), grid, grid)
    if features_gib(shape, latents.train_images, 2 if data.flip else 1) <= CACHE_GIB:
        return 0
    return foundation_flops(repa.model, side)
