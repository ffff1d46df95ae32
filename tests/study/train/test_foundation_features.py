"""Features of a foundation model: the key of the cached ones, and the same features without a cache."""

import dataclasses

import numpy as np
import torch

from models import foundation
from study.core import assets, compute
from study.data.datasets import load_images
from study.train import foundation_features
from study.train.foundation_features import tokenizer_features


def test_features_are_known_by_their_weights_and_statistics_and_not_by_the_machine(tiny_plan, tiny_scale, monkeypatch):
    keys, asked, original, asset = [], [], foundation.foundation_model, assets.asset

    def model(name, *, own_statistics, bfloat16, **_):
        asked.append((own_statistics, bfloat16))
        return original("lite0")

    monkeypatch.setattr(foundation_features, "foundation_model", model)
    monkeypatch.setattr(foundation_features, "require_weights", lambda name: None)
    monkeypatch.setattr(
        foundation_features, "asset", lambda kind, key, fill: keys.append(dict(key)) or asset(kind, key, fill)
    )
    for changes in ({}, {"own_statistics": True}, {"bfloat16": True}):
        recipe = dataclasses.replace(tiny_scale.foundation, **changes)
        plan = tiny_plan(dataclasses.replace(tiny_scale, foundation_models=("clip",), foundation=recipe))
        tokenizer_features(next(s.spec for s in plan.stages if s.kind == "fit_tokenizer" and s.spec.foundation))
    assert asked == [(False, False), (True, False), (False, True)]
    assert set(keys[0]) == {
        "foundation_model", "input_size", "stride", "data", "resolution", "images", "views",
        "own_statistics", "weights",
    }  # fmt: skip
    assert keys[1] == keys[0]
    assert keys[2] == keys[3] == {**keys[0], "own_statistics": True}
    assert keys[4] == keys[5] == {**keys[0], "bfloat16": True}


def test_features_computed_per_batch_equal_the_cached_ones(tiny_plan, tiny_scale, monkeypatch):
    scale = dataclasses.replace(tiny_scale, foundation_models=("lite0",))
    plan = tiny_plan(scale, 32)
    spec = next(s.spec for s in plan.stages if s.kind == "fit_tokenizer" and s.spec.foundation)
    indices, flipped = np.array([5, 0, 17]), torch.tensor([True, False, True])
    pixels = load_images(spec.data, "train").pixels(indices)
    pixels = torch.where(flipped[:, None, None, None], pixels.flip(3), pixels)
    with_cache = tokenizer_features(spec)
    cached = with_cache.batch(pixels, 8, *with_cache.cached(indices, flipped))
    monkeypatch.setattr(foundation_features, "CACHE_GIB", 0.0)
    without_cache = tokenizer_features(spec)
    assert without_cache.cached(indices, flipped) == ()
    computed = without_cache.batch(pixels, 8)
    assert computed.shape == cached.shape
    assert (computed - cached).abs().max() < 0.05 * cached.std()  # rounded to bfloat16 in batches of another size
    assert cached.std() > 0.1


def test_features_are_computed_without_tf32_whatever_the_training(tiny_plan, tiny_scale, monkeypatch):
    """Trainings in several precisions share them."""
    scale = dataclasses.replace(tiny_scale, foundation_models=("lite0",), tokenizer_precision="tf32")
    plan = tiny_plan(scale, 32)
    spec = next(s.spec for s in plan.stages if s.kind == "fit_tokenizer" and s.spec.foundation)
    original, flags = foundation.foundation_model, set()

    def model(*arguments, **options):
        network = original(*arguments, **options)
        network.register_forward_hook(lambda *_: flags.add(torch.backends.cudnn.allow_tf32))
        return network

    monkeypatch.setattr(foundation_features, "foundation_model", model)
    compute.apply(spec.compute)
    try:
        tokenizer_features(spec)
        assert torch.backends.cudnn.allow_tf32 is True
    finally:
        compute.apply(dataclasses.replace(spec.compute, precision="float32"))
    assert flags == {False}
