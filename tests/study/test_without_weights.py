"""No number comes from random weights: judges, losses and alignment all require their weight files."""

from __future__ import annotations

import dataclasses

import pytest
import timm
import torch
from safetensors.torch import save_file

from models.configs import TRANSFORMERS
from models.lpips import vgg16_blocks
from study.judge.judges import build_judge
from study.judge.references import pictures_reference
from study.plan import weight_files
from study.plan.judge_spec import judge_spec
from study.stages import fit_tokenizer
from study.submit.jobs import run_stage
from study.train.perceptual_net import perceptual_net


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder for weights, empty."""
    monkeypatch.setenv("STUDY_WEIGHTS", str(tmp_path / "weights"))
    (tmp_path / "weights").mkdir()
    return tmp_path / "weights"


def first(plan, kind):
    return next(stage for stage in plan.stages if stage.kind == kind and getattr(stage.spec, "foundation", True))


def refused(stage, message):
    """The stage fails with this one line and has no record, so there is no row in a table."""
    with pytest.raises(ValueError, match=message) as error:
        run_stage(stage)
    assert "\n" not in str(error.value)
    assert stage.record() is None
    assert stage.failure()["state"] == "failed"


@pytest.fixture
def no_step(monkeypatch):
    monkeypatch.setattr(fit_tokenizer, "train", lambda *_, **__: pytest.fail("the training began"))


def vgg_in(folder):
    layers = [layer for block in vgg16_blocks() for layer in block]
    state = torch.nn.Sequential(*layers).state_dict()
    torch.save({f"features.{name}": value for name, value in state.items()}, folder / weight_files.FILES["vgg"].file)


@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter:UserWarning")
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_tokenizer_is_not_aligned_without_the_foundation_model(
    name, folder, tiny_plan, tiny_scale, no_step, monkeypatch
):
    original = timm.create_model

    def unfilled(*arguments, **options):
        with torch.device("meta"):  # initialises no weights, to save time
            return original(*arguments, **options)

    monkeypatch.setattr(timm, "create_model", unfilled)
    stage = first(tiny_plan(dataclasses.replace(tiny_scale, foundation_models=(name,))), "fit_tokenizer")
    assert stage.spec.foundation
    file = weight_files.FILES[name].file
    refused(stage, f"'{name}' needs {file} .*python -m study.prefetch downloads it")
    save_file({"blocks.0.norm1.weight": torch.ones(1024)}, folder / file)  # no hash is published; its shapes are known
    refused(stage, f"the foundation model '{name}' is not the planned file: .* planned when the file was missing; plan")
    stage = first(tiny_plan(dataclasses.replace(tiny_scale, foundation_models=(name,))), "fit_tokenizer")
    refused(stage, f"{file} does not fit timm's {TRANSFORMERS[name].timm_name}")


def test_a_tokenizer_is_not_aligned_when_features_are_not_cached_and_the_model_is_missing(
    folder, tiny_plan, tiny_scale, no_step, monkeypatch
):
    """Statistics of the features are cached, so the model is first needed by a batch."""
    from models import foundation

    original = foundation.foundation_model
    monkeypatch.setattr("study.train.foundation_features.CACHE_GIB", 0.0)
    with monkeypatch.context() as patch:  # an available model: lite0 under another name
        patch.setattr("study.train.foundation_features.foundation_model", lambda name, **_: original("lite0"))
        patch.setattr("study.train.foundation_features.require_weights", lambda name: None)
        stage = first(tiny_plan(dataclasses.replace(tiny_scale, foundation_models=("mae",))), "fit_tokenizer")
        fit_tokenizer.build(stage.spec)
    refused(stage, "'mae' needs .*study.prefetch")


def test_a_tokenizer_is_not_trained_without_its_perceptual_net(folder, tiny_plan, tiny_scale, no_step):
    recipe = dataclasses.replace(tiny_scale.tokenizer, perceptual_weight=1.0, perceptual_net="vgg")
    scale = dataclasses.replace(tiny_scale, tokenizer=recipe, foundation_models=("lite0",))
    stage = first(tiny_plan(scale, 32), "fit_tokenizer")
    refused(stage, r"'vgg' \(LPIPS\) needs vgg16-397923af\.pth .*study\.prefetch")
    vgg_in(folder)  # the right layout with random weights
    refused(stage, r"vgg16-397923af\.pth is damaged: its SHA-256 starts with .*, expected 397923af; .*study\.prefetch")
    assert not list(folder.parent.rglob("features.npy"))  # nor were features computed first, which takes hours


@pytest.mark.parametrize("missing", ["vgg", "inception"])
def test_reconstructions_and_samples_are_not_judged_without_the_judge(missing, folder, tiny_plan, tiny_scale):
    if missing == "vgg":
        evaluation = dataclasses.replace(tiny_scale.evaluation, perceptual_net="vgg")
        scale, judged = dataclasses.replace(tiny_scale, evaluation=evaluation), ["reconstruct"]
    else:
        scale, judged = dataclasses.replace(tiny_scale, judges=(("inception", 0),)), ["judge"]
    file = weight_files.FILES[missing].file
    for stage in tiny_plan(scale).stages:
        if stage.kind not in judged:
            run_stage(stage)
            continue
        refused(stage, f"needs {file} .*study.prefetch")
        (folder / file).write_bytes(b"something else")
        refused(stage, f"{file} is damaged")
        (folder / file).unlink()


def test_judges_and_references_ask_for_their_weights(folder):
    spec = judge_spec("inception", 0, None)
    pixels = torch.zeros(4, 3, 32, 32, dtype=torch.uint8).numpy()
    for build in (
        lambda: build_judge(spec, None),
        lambda: pictures_reference(spec, pixels, "a"),
        lambda: perceptual_net("vgg", 64),
    ):
        with pytest.raises(ValueError, match=r"needs .*study\.prefetch"):
            build()
    with pytest.raises(ValueError, match=r"unknown EfficientNet-Lite .lite9.; nearest: lite2, lite0"):
        perceptual_net("lite9", 64)


@pytest.mark.parametrize("kind", ["absent", "a file", "a folder in its place"])
def test_a_wrong_place_for_weights_is_named(kind, tmp_path, monkeypatch):
    place = tmp_path / "place"
    monkeypatch.setenv("STUDY_WEIGHTS", str(place))
    if kind == "a file":
        place.write_bytes(b"")
    elif kind == "a folder in its place":
        (place / weight_files.FILES["vgg"].file).mkdir(parents=True)
    with pytest.raises(ValueError, match=rf"STUDY_WEIGHTS \({place}\): python -m study\.prefetch downloads it"):
        weight_files.require_weights("vgg")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_cut_in_half_is_named(zipped, folder, monkeypatch):
    """By its hash if one is published, else when it is read."""
    path = folder / weight_files.FILES["vgg"].file
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"vgg16-397923af\.pth is damaged"):
        perceptual_net("vgg", 64)
    monkeypatch.setitem(weight_files.FILES, "vgg", dataclasses.replace(weight_files.FILES["vgg"], sha256=""))
    with pytest.raises(ValueError, match=r"vgg16-397923af\.pth(: it is not a plain file| is cut off)") as error:
        perceptual_net("vgg", 64)
    assert "\n" not in str(error.value)
