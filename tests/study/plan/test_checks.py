"""An invalid value is reported with its field before a study starts."""

import pytest

from study.core.settings import change
from study.plan.checks import CHECKS, check_scale
from study.plan.scales import SCALES


@pytest.mark.parametrize("name", SCALES)
def test_every_scale_passes_its_own_checks(name):
    check_scale(SCALES[name]())


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("downsampling", "0", "downsampling must be above 0, got 0"),
        ("latent_channels", "()", "latent_channels must be at least one, none twice"),
        ("seeds", "0,0", "seeds must be at least one, none twice"),
        ("tokenizer_seeds", "0,1", "2 tokenizer_seeds for 1 seeds; set both"),
        ("autoencoder.ch_mult", "0,1", "autoencoder.ch_mult must be"),
        ("foundation.stride", "7", "foundation.stride must be one of 2, 4, 8, 16, 32, got 7"),
        ("tokenizer.learning_rate", "1e400", "tokenizer.learning_rate must be above 0"),
        ("tokenizer.betas", "2,3", "tokenizer.betas must be two numbers at least 0 and below 1"),
        ("tokenizer.perceptual_net", "lite3", "must be one of lite0, lite2, vgg, got 'lite3'; nearest: lite"),
        ("tokenizer.phases", "{'from_images': 64}, {'from_images': 32}", "phases in the order of their from_images"),
        ("tokenizer.phases", "{'from_images': 64}, {'from_images': 64}", "phases in the order of their from_images"),
        ("tokenizer.phases", "{'from_images': 64, 'vf_weight': -1}", "with weights and margins as above"),
        ("tokenizer.phases", "{'from_images': 64, 'vf_cosine_margin': 2}", "with weights and margins as above"),
        ("generator.snapshot_images", "256,256", "generator.snapshot_images must be at least one, none twice"),
        ("generator.ema_decay", "2", "generator.ema_decay must be at least 0 and below 1"),
        ("sampling.solver", "eulr", "must be one of euler, heun, dopri5, ddpm, got 'eulr'; nearest: euler"),
        ("sampling.solver", "ddpm", "ddpm cannot draw from .* rectified-flow: set sampling.solver to euler or heun or"),
        ("generator.objective", "gaussian-diffusion", "euler cannot draw from .* gaussian-diffusion: .* to ddpm"),
        ("generator.objective", "rectified", "must be one of rectified-flow, .*; nearest: rectified-flow"),
        ("generator.logit_normal_end_images", "-1", "must be None, or 0 or more"),
        ("generator.repa.weight", "-1", "generator.repa.weight must be 0 or more, got -1"),
        ("generator.repa.model", "dinov3", "must be one of dinov2, .*, or empty, got 'dinov3'; nearest: dinov2"),
        ("generator.repa.projector", "con", "must be one of mlp, conv, got 'con'; nearest: conv"),
        ("generator.repa.spatial_norm", "1.5", "generator.repa.spatial_norm must be between 0 and 1"),
        ("sampling.label_scheme", "foo", "must be one of equal, random"),
        ("sampling.guidance_interval", "0.9,0.1", "sampling.guidance_interval must be two times"),
        ("sampling.samples", "3", "sampling.samples must be at least 4"),
        ("judges", "()", "judges must name at least one judge and none twice"),
        ("judges", "(('classifier', 0), ('classifier', 32))", "none twice"),
        ("device", "tpu", "device must be one of any, cpu, cuda, got 'tpu'"),
    ],
)
def test_an_invalid_value_is_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        check_scale(change(SCALES["smoke"](), field, value))


def test_every_checked_field_exists():
    for field in CHECKS:
        value = change(SCALES["smoke"](), "generator.repa", "repa")  # a group that can be off
        for name in field.split("."):
            value = getattr(value, name)
