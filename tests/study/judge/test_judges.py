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

from study.core.files import fingerprint
from study.data.datasets import resolve_data
from study.judge import judges, references
from study.judge.judges import all_features, build_judge, features
from study.judge.references import balanced_choice, dataset_reference, pictures_reference, with_radii
from study.plan import weight_files
from study.plan.judge_spec import (
    CLASSIFIER_EPOCHS,
    CLASSIFIER_IMAGES,
    CLASSIFIER_IMAGES_IN_COLOUR,
    SPATIAL_WIDTH,
    VERSIONS,
    classifier_images,
    judge_spec,
)


@pytest.fixture
def data(tmp_path, study_root):
    """Two classes that differ in brightness, 40 grey pictures each, at 16 px."""
    rng = np.random.default_rng(0)
    for name, level in (("dark", 40), ("light", 180)):
        (tmp_path / "grey" / name).mkdir(parents=True)
        for i in range(40):
            array = (level + rng.integers(0, 40, (16, 16))).astype(np.uint8)
            Image.fromarray(array).save(tmp_path / "grey" / name / f"{i}.png")
    return resolve_data(str(tmp_path / "grey"), 16)


def pictures(n, channels=3, size=32):
    return np.random.default_rng(1).integers(0, 256, (n, channels, size, size), dtype=np.uint8)


def test_specs(data):
    lite = judge_spec("efficientnet_lite2", 64, data)
    assert (lite.size, lite.width) == (64, 1280)
    other = dataclasses.replace(data, content="0" * 16)
    assert judge_spec("efficientnet_lite2", 64, other) == lite  # does not depend on the data
    assert judge_spec("efficientnet_lite2", 96, data).fingerprint != lite.fingerprint
    small = judge_spec("classifier", 0, data)
    assert (small.size, small.width) == (16, 128)
    assert judge_spec("classifier", 0, other).fingerprint != small.fingerprint  # is trained on the data
    assert judge_spec("classifier", 0, dataclasses.replace(data, resolution=256)).size == 64
    with pytest.raises(ValueError, match="nearest: efficientnet_lite2"):
        judge_spec("efficientnet-lite2", 64, data)
    with pytest.raises(ValueError, match="at least 32 px"):
        judge_spec("efficientnet_lite2", 16, data)
    with pytest.raises(ValueError, match="needs images of 299 px here, not 64"):
        judge_spec("inception", 64, data)


def test_lite2_does_not_depend_on_batch_size(data):
    spec = judge_spec("efficientnet_lite2", 64, data)
    extractor, images = build_judge(spec, data), pictures(7)
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
    extractor = build_judge(spec, data)
    assert features(extractor, pictures(5, 1, 16)).shape == (5, 128)
    (folder,) = (study_root / "assets" / "classifier").iterdir()
    assert json.loads((folder / "judge.json").read_text())["accuracy"] == 1.0  # easy, and learnt
    weights = (folder / "classifier.safetensors").read_bytes()
    monkeypatch.setenv("STUDY_ROOT", str(study_root / "elsewhere"))
    (study_root / "elsewhere").mkdir()
    os.symlink(study_root / "data", study_root / "elsewhere" / "data")
    torch.manual_seed(5)
    torch.rand(3)  # the global generator must have no influence
    build_judge(spec, data)
    (again,) = (study_root / "elsewhere" / "assets" / "classifier").iterdir()
    assert (again / "classifier.safetensors").read_bytes() == weights


def test_choice_is_balanced_and_nested():
    labels = np.repeat([0, 1, 2], [50, 50, 5])
    rows = balanced_choice(labels, 30)
    assert len(set(rows.tolist())) == 30
    assert np.bincount(labels[rows]).tolist() == [13, 12, 5]  # the small class is used up
    np.testing.assert_array_equal(balanced_choice(labels, 12), rows[:12])
    assert np.bincount(labels[rows[:12]]).tolist() == [4, 4, 4]
    with pytest.raises(ValueError, match="asked for 106 of 105"):
        balanced_choice(labels, 106)


def test_reference_is_computed_once(data, monkeypatch):
    spec = judge_spec("classifier", 0, data)
    first = dataset_reference(spec, data, "train", 40)
    assert first.count == 40
    assert first.features.shape == (40, 128)
    assert first.sigma.dtype == torch.float64
    np.testing.assert_allclose(first.sigma, np.cov(first.features.double().numpy(), rowvar=False), atol=1e-12)
    torch.testing.assert_close(first.root @ first.root, first.sigma, atol=1e-9, rtol=1e-6)
    assert first.head is None
    monkeypatch.setattr(judges, "all_features", lambda *_: pytest.fail("computed again"))
    again = dataset_reference(spec, data, "train", 40)
    assert again.hash == first.hash
    torch.testing.assert_close(again.features, first.features, rtol=0, atol=0)
    distances = torch.cdist(first.features.double(), first.features.double()).sort(dim=1).values
    torch.testing.assert_close(with_radii(first).radii.sqrt().double(), distances[:, 3], rtol=1e-3, atol=1e-3)
    monkeypatch.setattr(references, "radii", lambda _: pytest.fail("computed again"))
    with_radii(again)


def test_inception_is_read_safely(data, tmp_path, monkeypatch):
    spec = judge_spec("inception", 0, data)
    monkeypatch.delenv("STUDY_WEIGHTS", raising=False)
    with pytest.raises(ValueError, match="STUDY_WEIGHTS"):
        build_judge(spec, data)
    monkeypatch.setenv("STUDY_WEIGHTS", str(tmp_path))
    path = tmp_path / weight_files.FILES["inception"].file

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match="damaged"):
        build_judge(spec, data)
    anything = dataclasses.replace(weight_files.FILES["inception"], sha256="")
    monkeypatch.setitem(weight_files.FILES, "inception", anything)  # even a file of the right hash is not unpickled
    spec = judge_spec("inception", 0, data)
    with pytest.raises(ValueError, match="refused"):
        build_judge(spec, data)
    assert not (tmp_path / "sprung").exists()


@pytest.fixture
def blank_inception(tmp_path, monkeypatch):
    """Random weights in the layout of the real file, in the weights folder; no number from them is kept."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", lambda *_, **__: {})
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        blank = FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path="x")
    torch.save(blank.state_dict(), tmp_path / weight_files.FILES["inception"].file)
    monkeypatch.setenv("STUDY_WEIGHTS", str(tmp_path))
    monkeypatch.setitem(
        weight_files.FILES, "inception", dataclasses.replace(weight_files.FILES["inception"], sha256="")
    )
    return blank


def test_inception_gives_pooled_and_spatial_features_and_class_scores(data, blank_inception):
    from study.judge.extractors import class_scores

    extractor = build_judge(judge_spec("inception", 0, data), data)
    seen = {}
    block = extractor.Mixed_6d  # mixed_6 of TensorFlow's graph, the third of four with 17 x 17 cells
    block.register_forward_hook(lambda _module, _inputs, maps: seen.update(maps=maps))
    entrance = extractor.Conv2d_1a_3x3
    entrance.register_forward_hook(lambda _module, inputs, _maps: seen.update(pixels=inputs[0]))
    images = pictures(2)
    images[0, 0, :8, :8], images[0, 0, 8:16, :8] = 0, 255
    pooled, spatial = all_features(extractor, [images])
    assert seen["pixels"].shape == (2, 3, 299, 299)
    assert (seen["pixels"].min(), seen["pixels"].max()) == (-1, 127 / 128)  # the range of uint8: (value - 128) / 128
    with pytest.raises(ValueError, match="images must be uint8"):
        all_features(extractor, [images / 255])
    assert pooled.shape == (2, 2048)
    assert spatial.shape == (2, SPATIAL_WIDTH) == (2, 17 * 17 * 7)
    assert spatial.dtype == torch.float32
    # its 1 x 1 branch is first in the block's concatenation; channels last, as in TensorFlow
    first = seen["maps"][:, :7]
    assert seen["maps"].shape == (2, 768, 17, 17)
    torch.testing.assert_close(spatial.reshape(2, 17, 17, 7), first.permute(0, 2, 3, 1), rtol=0, atol=0)
    assert spatial.min() == 0  # after the ReLU
    torch.testing.assert_close(features(extractor, images), pooled, rtol=0, atol=0)
    torch.testing.assert_close(class_scores(extractor), blank_inception.fc.weight)
    assert all_features(build_judge(judge_spec("classifier", 0, data), data), [images])[1] is None


def test_a_reference_of_inception_has_its_spatial_features(data, blank_inception, monkeypatch):
    monkeypatch.setattr("study.judge.references.square_root", lambda sigma: sigma.copy())  # 10 s, and not used
    target = dataset_reference(judge_spec("inception", 0, data), data, "train", 3)
    assert {name: tuple(value.shape) for name, value in target.spatial.items()} == {
        "mu": (SPATIAL_WIDTH,), "sigma": (SPATIAL_WIDTH,) * 2, "root": (SPATIAL_WIDTH,) * 2,
    }  # fmt: skip
    assert target.head.shape == (1008, 2048)


def test_published_statistics_replace_those_of_the_pictures(data, blank_inception, monkeypatch):
    monkeypatch.setattr("study.judge.references.square_root", lambda sigma: sigma.copy())
    published = {"mu": np.arange(2048.0), "sigma": np.eye(2048), "mu_s": np.ones(2023), "sigma_s": 2 * np.eye(2023)}
    spec = judge_spec("inception", 0, None)
    target = pictures_reference(spec, pictures(3), "a", published=published)
    np.testing.assert_array_equal(target.mu, published["mu"])
    np.testing.assert_array_equal(target.spatial["sigma"], published["sigma_s"])
    assert target.features.shape == (3, 2048)  # of the pictures, for KID, precision and recall
    assert pictures_reference(spec, pictures(3), "a").hash != target.hash
    with pytest.raises(AssertionError, match="belong to the network"):
        pictures_reference(judge_spec("efficientnet_lite2", 64, None), pictures(3), "a", published=published)
    with pytest.raises(ValueError, match="at least 2 images"):
        pictures_reference(spec, pictures(1), "a")


def test_a_classifier_needs_a_data_set():
    with pytest.raises(ValueError, match="trained on the classes of a data set"):
        judge_spec("classifier", 0, None)


def test_the_classifier_sees_more_of_photographs_and_few_of_small_folders(data):
    many = dataclasses.replace(data, train_images=50_000, resolution=32)
    assert [classifier_images(dataclasses.replace(many, channels=channels)) for channels in (1, 3)] == [60_000, 240_000]
    assert classifier_images(dataclasses.replace(many, channels=3, resolution=256)) == 60_000  # at 64 px
    assert classifier_images(dataclasses.replace(many, channels=3, train_images=100)) == 4_000


def test_a_changed_classifier_has_a_new_version():
    """Cache keys contain the version: raise it in study/plan/judge_spec.py, then add an entry here."""
    from study.judge import extractors

    trunk, head = extractors.classifier(10)
    recipe = [CLASSIFIER_IMAGES, CLASSIFIER_IMAGES_IN_COLOUR, CLASSIFIER_EPOCHS, extractors.CLASSIFIER_BATCH]
    shapes = [list(tensor.shape) for part in (trunk, head) for tensor in part.state_dict().values()]
    known = {2: "e906edad249c23d1"}
    assert fingerprint([shapes, *recipe, extractors.CLASSIFIER_RATE]) == known[VERSIONS["classifier"]]
