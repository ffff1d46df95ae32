"""Features of a foundation model: what names the kept ones."""

import dataclasses

import numpy as np
import torch

from models import foundation
from study.core import assets
from study.data.datasets import load_images
from study.train import foundation_features
from study.train.foundation_features import FoundationFeatures


def test_features_are_kept_apart_where_pixels_enter_otherwise_and_older_ones_keep_their_name(
    tiny_plan, tiny_scale, monkeypatch
):
    keys, asked, made, asset = [], [], foundation.foundation_model, assets.asset

    def model(name, *, own_statistics, **_):
        asked.append(own_statistics)
        return made("lite0")

    monkeypatch.setattr(foundation_features, "foundation_model", model)
    monkeypatch.setattr(foundation_features, "require_weights", lambda name: None)
    monkeypatch.setattr(
        foundation_features, "asset", lambda kind, key, fill: keys.append(dict(key)) or asset(kind, key, fill)
    )
    for own in (False, True):
        recipe = dataclasses.replace(tiny_scale.foundation, own_statistics=own)
        plan = tiny_plan(dataclasses.replace(tiny_scale, foundation_models=("clip",), foundation=recipe))
        FoundationFeatures(next(s.spec for s in plan.stages if s.kind == "fit_tokenizer" and s.spec.foundation))
    assert asked == [False, True]
    assert set(keys[0]) == {
        "foundation_model", "input_size", "stride", "data", "resolution", "images", "views", "device", "threads",
    }  # fmt: skip
    assert keys[1] == keys[0]
    assert keys[2] == keys[3] == {**keys[0], "own_statistics": True}


def test_features_that_are_not_kept_are_those_that_would_be(tiny_plan, tiny_scale, monkeypatch):
    scale = dataclasses.replace(tiny_scale, foundation_models=("lite0",))
    plan = tiny_plan(scale, 32)
    spec = next(s.spec for s in plan.stages if s.kind == "fit_tokenizer" and s.spec.foundation)
    indices, flipped = np.array([5, 0, 17]), torch.tensor([True, False, True])
    pixels = load_images(spec.data, "train").pixels(indices)
    pixels = torch.where(flipped[:, None, None, None], pixels.flip(3), pixels)
    found = FoundationFeatures(spec)
    kept = found.batch(pixels, 8, *found.kept(indices, flipped))
    monkeypatch.setattr(foundation_features, "CACHE_GIB", 0.0)
    found = FoundationFeatures(spec)
    assert found.kept(indices, flipped) == ()
    made = found.batch(pixels, 8)
    assert made.shape == kept.shape
    assert (made - kept).abs().max() < 0.05 * kept.std()  # rounded to bfloat16 in batches of another size
    assert kept.std() > 0.1
