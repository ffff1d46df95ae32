"""Judges: their contract, the classifier trained here, and the cached reference."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from study import judges, weights
from study.data import resolve
from study.files import fingerprint
from study.judges import build, chosen, features, judge_spec, reference


@pytest.fixture
def data(tmp_path, study_root):
    """Two classes that differ in brightness, 40 grey pictures each, at 16 px."""
    rng = np.random.default_rng(0)
    for name, level in (("dark", 40), ("light", 180)):
        (tmp_path / "grey" / name).mkdir(parents=True)
        for i in range(40):
            array = (level + rng.integers(0, 40, (16, 16))).astype(np.uint8)
            Image.fromarray(array).save(tmp_path / "grey" / name / f"{i}.png")
    return resolve(str(tmp_path / "grey"), 16)


def pictures(n, channels=3, size=32):
    return np.random.default_rng(1).integers(0, 256, (n, channels, size, size), dtype=np.uint8)


def test_specs(data):
    lite = judge_spec("efficientnet_lite2", 64, data)
    assert (lite.size, lite.width) == (64, 1280)
    other = dataclasses.replace(data, content="0" * 16)
    assert judge_spec("efficientnet_lite2", 64, other) == lite  # knows nothing of the data
    assert judge_spec("efficientnet_lite2", 96, data).fingerprint != lite.fingerprint
    small = judge_spec("classifier", 0, data)
    assert (small.size, small.width) == (16, 128)
    assert judge_spec("classifier", 0, other).fingerprint != small.fingerprint  # is trained on it
    assert judge_spec("classifier", 0, dataclasses.replace(data, resolution=256)).size == 64
    with pytest.raises(ValueError, match="nearest: efficientnet_lite2"):
        judge_spec("efficientnet-lite2", 64, data)
    with pytest.raises(ValueError, match="at least 32 px"):
        judge_spec("efficientnet_lite2", 16, data)
    with pytest.raises(ValueError, match="sees 299 px"):
        judge_spec("inception", 64, data)


def test_lite2_does_not_depend_on_batch_size(data):
    spec = judge_spec("efficientnet_lite2", 64, data)
    extractor, images = build(spec, data), pictures(7)
    found = features(extractor, images)
    assert found.shape == (7, 1280)
    assert found.dtype == torch.float32
    assert not found.is_inference()
    assert torch.isfinite(found).all()
    for batch_size in (1, 3):
        assert (features(extractor, torch.from_numpy(images), batch_size) - found).abs().max() < 1e-3
    grey = pictures(2, channels=1)
    torch.testing.assert_close(features(extractor, grey), features(extractor, grey.repeat(3, axis=1)))
    for wrong in (images.astype(np.float32), images[0], images[:, :2], images[:0]):
        with pytest.raises(ValueError, match=r"images"):
            features(extractor, wrong)


def test_folded_batch_norms_change_nothing():
    from models.foundation import efficientnet_lite, folded

    plain, fast = efficientnet_lite("lite2"), folded(efficientnet_lite("lite2"))
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fast.modules())
    pixels = torch.from_numpy(pictures(2, size=64)).float() / 127.5 - 1
    with torch.inference_mode():
        expected, found = plain.forward_features(pixels), fast.forward_features(pixels)
    assert (expected - found).abs().max() < 1e-4 * expected.abs().max()


def test_classifier_is_the_same_twice(data, study_root, monkeypatch):
    spec = judge_spec("classifier", 0, data)
    extractor = build(spec, data)
    assert features(extractor, pictures(5, 1, 16)).shape == (5, 128)
    (folder,) = (study_root / "assets" / "classifier").iterdir()
    assert json.loads((folder / "judge.json").read_text())["accuracy"] == 1.0  # easy, and learnt
    weights = (folder / "classifier.safetensors").read_bytes()
    monkeypatch.setenv("STUDY_ROOT", str(study_root / "elsewhere"))
    (study_root / "elsewhere").mkdir()
    os.symlink(study_root / "data", study_root / "elsewhere" / "data")
    torch.manual_seed(5)
    torch.rand(3)  # the global generator has no say
    build(spec, data)
    (again,) = (study_root / "elsewhere" / "assets" / "classifier").iterdir()
    assert (again / "classifier.safetensors").read_bytes() == weights


def test_choice_is_balanced_and_nested():
    labels = np.repeat([0, 1, 2], [50, 50, 5])
    rows = chosen(labels, 30)
    assert len(set(rows.tolist())) == 30
    assert np.bincount(labels[rows]).tolist() == [13, 12, 5]  # the small class is used up
    np.testing.assert_array_equal(chosen(labels, 12), rows[:12])
    assert np.bincount(labels[rows[:12]]).tolist() == [4, 4, 4]
    with pytest.raises(ValueError, match="asked for 106 of 105"):
        chosen(labels, 106)


def test_reference_is_computed_once(data, monkeypatch):
    spec = judge_spec("classifier", 0, data)
    first = reference(spec, data, "train", 40)
    assert first.count == 40
    assert first.features.shape == (40, 128)
    assert first.sigma.dtype == torch.float64
    np.testing.assert_allclose(first.sigma, np.cov(first.features.double().numpy(), rowvar=False), atol=1e-12)
    torch.testing.assert_close(first.root @ first.root, first.sigma, atol=1e-9, rtol=1e-6)
    assert first.head is None
    monkeypatch.setattr(judges, "features", lambda *_: pytest.fail("computed again"))
    again = reference(spec, data, "train", 40)
    assert again.hash == first.hash
    torch.testing.assert_close(again.features, first.features, rtol=0, atol=0)


def test_inception_is_read_safely(data, tmp_path, monkeypatch):
    spec = judge_spec("inception", 0, data)
    monkeypatch.delenv("STUDY_WEIGHTS", raising=False)
    with pytest.raises(ValueError, match="STUDY_WEIGHTS"):
        build(spec, data)
    monkeypatch.setenv("STUDY_WEIGHTS", str(tmp_path))
    path = tmp_path / weights.FILES["inception"].file

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match="damaged"):
        build(spec, data)
    anything = dataclasses.replace(weights.FILES["inception"], sha256="")
    monkeypatch.setitem(weights.FILES, "inception", anything)  # even a file of the right hash is not unpickled
    with pytest.raises(ValueError, match="refused"):
        build(spec, data)
    assert not (tmp_path / "sprung").exists()


def test_inception_with_weights(data, tmp_path, monkeypatch):
    """Random weights in the layout of the real file give features, and class scores from them."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    from study.extractors import class_scores

    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", lambda *_, **__: {})
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        blank = FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path="x")
    torch.save(blank.state_dict(), tmp_path / weights.FILES["inception"].file)
    monkeypatch.setenv("STUDY_WEIGHTS", str(tmp_path))
    monkeypatch.setitem(weights.FILES, "inception", dataclasses.replace(weights.FILES["inception"], sha256=""))
    extractor = build(judge_spec("inception", 0, data), data)
    assert features(extractor, pictures(1)).shape == (1, 2048)
    torch.testing.assert_close(class_scores(extractor), blank.fc.weight)


def test_a_changed_classifier_has_a_new_version():
    """Caches are named by the version: raise it in study/judges.py, then add a line here."""
    from study import extractors

    trunk, head = extractors.classifier(10)
    recipe = [extractors.CLASSIFIER_IMAGES, extractors.CLASSIFIER_EPOCHS, extractors.CLASSIFIER_BATCH]
    shapes = [list(tensor.shape) for part in (trunk, head) for tensor in part.state_dict().values()]
    known = {1: "bbcadd9630fdf587"}
    assert fingerprint([shapes, *recipe, extractors.CLASSIFIER_RATE]) == known[judges.VERSIONS["classifier"]]
