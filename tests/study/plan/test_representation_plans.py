"""Representation autoencoders in plans: their network, what identifies them, what is refused, warned of and counted."""

import dataclasses

import pytest
import torch
from made_up import COMPUTE, Asking, data_spec
from torch.utils.flop_counter import FlopCounterMode

import ablations.frontier
from models.autoencoder import Decoder
from models.configs import LITE0_WIDTHS, RAES, TRANSFORMERS
from models.costs import autoencoder_flops, autoencoder_parameters
from models.foundation import foundation_model
from models.representation_autoencoder import RepresentationAutoencoder
from study.core.settings import change, identity, rebuild
from study.plan import weight_files
from study.plan.checks import check_scale
from study.plan.data_spec import GIVEN_AS_FOLDER
from study.plan.estimate import stage_flops, training_flops
from study.plan.factors import run_labels
from study.plan.needs import needed_files
from study.plan.resolve import make_plan
from study.plan.runs import Pretrained, Run
from study.plan.scales import SCALES
from study.plan.warnings import plan_warnings

IMAGENET = {"scale": "imagenet256", "data": GIVEN_AS_FOLDER["imagenet"]}
OF_TRANSFORMERS = [name for name in RAES if name != "rae-lite0"]


def plan(*runs, scale="smoke", data=None, module=None, **changes):
    """The plan of runs, or of tokenizers, at a scale with these changes, `__` for the dots of their names."""
    settings = SCALES[scale]()
    for field, value in changes.items():
        settings = change(settings, field.replace("__", "."), value)
    check_scale(settings)
    runs = [run if isinstance(run, Run) else Run(tokenizer=run) for run in runs]
    return make_plan("asked", module or Asking(*runs), settings, data or data_spec(settings.resolution), COMPUTE, "t")


def fit(*arguments, **options):
    return plan(*arguments, **options).jobs[0].stages[0]


@pytest.mark.parametrize("name", RAES)
def test_every_name_plans_at_imagenet256(name):
    found = plan(Run(tokenizer=name, generator="LightningDiT-XL/1"), **IMAGENET)
    spec = found.jobs[0].stages[0].spec
    assert (spec.architecture.grid, spec.architecture.frozen_encoder) == (16, name.removeprefix("rae-"))
    assert spec.recipe.kl_weight == 0 and spec.regularisation.used().keys() == {"noise"}
    assert spec.foundation.own_statistics == (name != "rae-lite0")  # lite0's own pixels are those in [-1, 1]
    width = {"rae-lite0": 112, "rae-sam": 256}.get(name, 1024)
    of_generator = next(job for job in found.jobs if job.kind == "generator").stages[0].spec
    assert of_generator.architecture.in_channels == spec.architecture.z_channels == width
    assert needed_files([found.jobs[0].stages[0]])[1:] == [name.removeprefix("rae-")] * (name != "rae-lite0")


def test_lite0_sees_pictures_in_the_size_that_gives_the_grid():
    """At a stride of the scale's choice; the input size of the VF loss plays no part."""
    for stride, width in LITE0_WIDTHS.items():
        spec = fit("rae-lite0", foundation__stride=stride).spec
        assert (spec.foundation.input_size, spec.architecture.z_channels) == (8 * stride, width)
    assert fit("rae-lite0", foundation__input_size=96) == fit("rae-lite0")
    assert fit("rae-lite0", foundation__stride=8) != fit("rae-lite0")


def test_only_what_the_training_uses_identifies_it(monkeypatch):
    before = fit("rae-lite0")
    for field, value in {
        "tokenizer__kl_weight": 1.0, "tokenizer__vf_weight": 9.0, "foundation__standardise": False,
        "regularisation__eq__probability": 0.1, "foundation__own_statistics": True,
        "foundation__bfloat16": True,
    }.items():  # fmt: skip
        assert fit("rae-lite0", **{field: value}) == before
    assert fit("rae-lite0", regularisation__noise__strength=0.4) != before
    assert rebuild(type(before.spec), dataclasses.asdict(before.spec)) == before.spec
    monkeypatch.setattr("study.plan.resolve.network_hash", lambda name: "f" * 64)
    assert fit("rae-lite0") != before


def test_other_tokenizers_and_generators_are_known_as_before():
    found = plan(Run(tokenizer="f4d4-lite0", generator="LightningDiT-XXS/2"))
    tokenizer, generator = (next(s for s in found.stages if s.kind == kind) for kind in ("fit_tokenizer",
                                                                                         "fit_generator"))  # fmt: skip
    assert "frozen_encoder" not in identity(tokenizer.spec)["architecture"]
    assert "shift_base" not in identity(generator.spec)["recipe"]
    assert generator.spec.timestep_shift == 1


@pytest.mark.parametrize(
    ("run", "changes", "message"),
    [
        (
            "rae-dinov2",
            {},
            "dinov2 cuts pictures of 224 px into patches of 14, and scale smoke builds latents of 8 x 8",
        ),
        ("rae-mae", {}, "mae cuts pictures of 32 px into patches of 16, and .* ask for rae-lite0, which fits every"),
        ("rae-lite0-mae", {}, "is not aligned"),
        ("rae-lite0+mask", {}, "takes no regulariser"),
        (
            Run(tokenizer="rae-lite0", pretrained_tokenizer=Pretrained(name=weight_files.VAVAE, images_seen=1)),
            {},
            "rae-lite0 is trained here alone",
        ),
        ("rae-lite0", {"generator__shift_base": 0}, "generator.shift_base must be None, or above 0, got 0"),
        ("rae-lite0", {"representation_autoencoders": "lite0,lite0"}, "representation_autoencoders must be none twice"),
        ("rae-lite0", {"foundation__stride": 12}, "foundation.stride must be one of 2, 4, 8, 16, 32"),
    ],
)
def test_what_cannot_work_together_is_one_line(run, changes, message):
    with pytest.raises(ValueError, match=message) as refused:
        plan(run, **changes)
    assert len(str(refused.value).splitlines()) == 1


def test_a_generator_narrower_than_the_features_is_warned_of():
    def lines(generator, **options):
        found = plan(Run(tokenizer="rae-dinov2", generator=generator), **IMAGENET, **options)
        return [line for line in plan_warnings(found) if "wide" in line]

    (line,) = lines("LightningDiT-B/1")
    assert line.startswith("LightningDiT-B/1 is 768 wide, less than the 1024 values of a token (latent channels 1024,")
    assert lines("LightningDiT-L/1") == []


def test_the_frontier_has_each_once_and_it_is_a_family_of_its_own():
    found = plan(module=ablations.frontier, representation_autoencoders="lite0")
    assert [one.run.tokenizer for one in found.runs if one.kind == "generator"] == ["f4d4", "f4d4-lite0", "rae-lite0"]
    labelled = [Run(tokenizer=name, generator="LightningDiT-XXS/2", label=name) for name in ("f4d4-lite0", "rae-lite0")]
    changed = run_labels(plan(*labelled))["rae-lite0"].changed
    assert set(changed) == {"latent_channels", "foundation_model"}


def test_times_shift_by_the_root_of_the_latents_size():
    """f4d4 has 256 values: base 64 halves the odds of t, 1,024 doubles them; the released RAE's has 196,608."""

    def shift(tokenizer, generator="LightningDiT-XXS/2", **options):
        found = plan(Run(tokenizer=tokenizer, generator=generator), **options)
        return next(stage for stage in found.stages if stage.kind == "fit_generator").spec

    assert shift("f4d4", generator__shift_base=64).timestep_shift == 0.5
    assert shift("f4d4", generator__shift_base=1024).timestep_shift == 2
    assert shift("rae-dinov2", "LightningDiT-XL/1", generator__shift_base=4096, **IMAGENET).timestep_shift == 1 / 8
    diffusion = {"generator__objective": "gaussian-diffusion", "sampling__solver": "ddpm"}
    assert shift("f4d4", generator__shift_base=64, **diffusion).recipe.shift_base is None
    sampled = [plan(Run(tokenizer="f4d4", generator="LightningDiT-XXS/2"), generator__shift_base=base).stages[-2].spec
               for base in (64, 1024)]  # fmt: skip
    assert sampled[0] == sampled[1]  # one protocol


@pytest.mark.parametrize("stride", [4, 16])
def test_costs_are_those_of_the_networks(stride):
    stage = fit("rae-lite0", foundation__stride=stride)
    config, foundation = stage.spec.architecture, stage.spec.foundation
    encoder = foundation_model("lite0", pretrained=False, input_size=foundation.input_size, stride=stride)
    network = RepresentationAutoencoder(config, encoder.forward)
    counted = []
    for work in (lambda: network.encode(torch.zeros(1, 1, 32, 32)),
                 lambda: network.decode(torch.zeros(1, config.z_channels, 8, 8))):  # fmt: skip
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            work()
        counted.append(counter.get_total_flops())
    assert autoencoder_flops(config) == tuple(counted)
    assert autoencoder_parameters(config) == sum(p.numel() for p in network.parameters())
    assert training_flops(stage) == counted[0] + 3 * counted[1]


@pytest.mark.parametrize("name", OF_TRANSFORMERS)
def test_widths_and_costs_of_transformers_are_timms(name):
    import timm

    what = TRANSFORMERS[name.removeprefix("rae-")]
    with torch.device("meta"):
        network = timm.create_model(what.timm_name, num_classes=0, **dict(what.options))
        features = network.forward_features(torch.zeros(1, 3, what.resize or 256, what.resize or 256))
    assert what.width == (features.shape[1] if features.ndim == 4 else features.shape[2])
    blocks = network.blocks
    assert (len(blocks), blocks[0].mlp.fc1.in_features, blocks[0].mlp.fc1.out_features) == (24, 1024, 4096)


def test_an_estimate_of_the_whole_way_counts_the_encoder():
    found = plan(Run(tokenizer="rae-dinov2", generator="LightningDiT-XL/1"), **IMAGENET)
    encode, reconstruct = (next(s for s in found.stages if s.kind == kind) for kind in ("encode", "reconstruct"))
    per_image = stage_flops(encode) / encode.spec.train_images / 2  # views
    assert 155e9 < per_image < 175e9  # ViT-L on 256 tokens
    assert stage_flops(reconstruct) > per_image * reconstruct.spec.images
    assert encode.spec.stored == "sample" == fit_of_encode("rae-lite0") and fit_of_encode("f4d4") == "posterior"
    assert sum(p.numel() for p in Decoder(found.stages[0].spec.architecture).parameters()) < 50e6


def fit_of_encode(tokenizer):
    return next(stage for stage in plan(tokenizer).stages if stage.kind == "encode").spec.stored
