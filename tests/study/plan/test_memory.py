"""What a training will hold on a GPU is estimated from what it saves for its backward pass, as it does on a CPU."""

import dataclasses

import pytest
import torch
from made_up import COMPUTE, data_spec, made_cards
from torch.autograd.graph import saved_tensors_hooks

import ablations.frontier
from models.autoencoder import Autoencoder
from models.configs import AutoencoderConfig, generator_config
from models.costs import (
    DISCRIMINATOR_SAVED_BYTES,
    DISCRIMINATOR_WIDTH,
    PERCEPTUAL_SAVED_BYTES,
    autoencoder_saved_bytes,
    generator_saved_bytes,
)
from models.discriminator import Discriminator
from models.flow import rectified_flow_loss
from models.lightningdit import LightningDiT
from models.lpips import LPIPS
from models.perceptual import PerceptualDistance
from study.core import cards, compute
from study.plan.memory import execution_that_fits, largest_gib, stage_bytes
from study.plan.resolve import make_plan
from study.plan.scales import SCALES

WITHIN = 0.2
IMAGES = 3


def saved(call, network):
    """Bytes of the storages that a forward pass saves, without the network's own."""
    own = {tensor.untyped_storage()._cdata for tensor in (*network.parameters(), *network.buffers())}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return sum(storage.nbytes() for storage in kept.values()) / IMAGES


@pytest.mark.parametrize(
    ("name", "grid", "channels", "options"),
    [
        ("LightningDiT-XXS/2", 8, 4, {}),
        ("LightningDiT-XXS/1", 8, 32, {}),
        ("LightningDiT-XXS/1", 16, 4, {}),
        ("LightningDiT-S/1", 8, 16, {}),
        ("LightningDiT-XXS/2", 8, 4, {"qk_norm": True}),
        ("LightningDiT-XXS/2", 8, 4, {"rope": False}),
        ("LightningDiT-XXS/1", 8, 4, {"swiglu": False}),
        ("DiT-XXS/2", 8, 4, {}),
    ],
)
def test_a_generator_saves_what_is_estimated(name, grid, channels, options):
    config = generator_config(name, grid=grid, in_channels=channels, num_classes=10, **options)
    network = LightningDiT(config, torch.Generator().manual_seed(0))
    data, times = torch.randn(IMAGES, channels, grid, grid), torch.rand(IMAGES)
    labels = torch.zeros(IMAGES, dtype=torch.long)
    found = saved(
        lambda: rectified_flow_loss(network, data, data.flip(0), times, labels, direction_weight=1.0).mean(), network
    )
    assert generator_saved_bytes(config, half=False) == pytest.approx(found, rel=WITHIN)


@pytest.mark.parametrize(
    "shape",
    [
        {"in_channels": 1, "resolution": 32, "ch": 24, "ch_mult": (1, 2), "unshuffle": 2, "norm_groups": 8},
        {"resolution": 64, "ch": 32, "ch_mult": (1, 1, 2, 2, 4), "num_res_blocks": 2, "attn_resolutions": (4,)},
        {"resolution": 32, "ch": 16, "ch_mult": (1, 2, 2), "attn_resolutions": (8,), "norm_groups": 8},
    ],
)
def test_a_tokenizer_saves_what_is_estimated(shape):
    config = AutoencoderConfig(**{"num_res_blocks": 1, "attn_resolutions": (), "z_channels": 16, **shape})
    network = Autoencoder(config).to(memory_format=torch.channels_last)
    pixels = torch.randn(IMAGES, config.in_channels, config.resolution, config.resolution)
    pixels = pixels.to(memory_format=torch.channels_last)
    latents = torch.randn(IMAGES, config.z_channels, config.grid, config.grid, requires_grad=True)
    found = saved(lambda: network.encoder(pixels), network), saved(lambda: network.decode(latents), network)
    assert autoencoder_saved_bytes(config) == pytest.approx(found, rel=WITHIN)


@pytest.mark.parametrize("side", [32, 64])
def test_the_nets_of_a_tokenizers_losses_save_what_is_estimated(side):
    real, made = torch.randn(IMAGES, 3, side, side), torch.randn(IMAGES, 3, side, side, requires_grad=True)
    for name, expected in PERCEPTUAL_SAVED_BYTES.items():
        net = LPIPS(None) if name == "vgg" else PerceptualDistance(name, input_size=32, pretrained=False)
        if name == "vgg":
            net.input_size = 32
        assert expected * side**2 == pytest.approx(saved(lambda net=net: net(real, made), net), rel=WITHIN)
    for width in (16, 64):
        net = Discriminator(3, width=width)
        expected = DISCRIMINATOR_SAVED_BYTES * width / DISCRIMINATOR_WIDTH * side**2
        assert expected == pytest.approx(saved(lambda net=net: net(made), net), rel=WITHIN)


def planned(scale, **execution):
    base = SCALES[scale]()
    execution = {"compile": False, **execution}  # whatever this machine can compile
    base = dataclasses.replace(base, execution=dataclasses.replace(base.execution, **execution))
    here = dataclasses.replace(COMPUTE, device="cuda", precision=base.precision, threads=4)
    return make_plan("frontier", ablations.frontier, base, data_spec(base.resolution), here, "made")


def largest_generator(plan):
    return max(stage_bytes(stage) for stage in plan.stages if stage.kind == "fit_generator") / 2**30


def test_the_papers_largest_generator_is_as_large_as_it_was_counted_on_fake_gpus():
    """62 GiB of saved tensors and 10 of state with 128 images at once; 1024 do not fit anywhere."""
    assert largest_generator(planned("imagenet256", microbatch_images=128)) == pytest.approx(72 + 6, rel=0.1)
    assert largest_generator(planned("imagenet256", microbatch_images=64)) == pytest.approx(43, rel=0.15)
    assert largest_generator(planned("imagenet256")) > 400


def test_what_saves_memory_lowers_the_estimate():
    whole = largest_generator(planned("imagenet256", microbatch_images=128))
    for execution in ({"compile": True}, {"checkpointing": True}):
        assert largest_generator(planned("imagenet256", microbatch_images=128, **execution)) < 0.8 * whole
    assert largest_generator(planned("imagenet256", processes=8)) < largest_generator(
        planned("imagenet256", processes=4)
    )


@pytest.mark.parametrize(
    ("scale", "gib", "execution", "settings"),
    [
        ("imagenet256", 79, {}, {"processes": 8, "microbatch_images": 64}),
        ("imagenet256", 79, {"processes": 8}, {"microbatch_images": 64}),
        ("imagenet256", 2_000, {}, {}),  # it fits as it is
        ("imagenet256", 8, {}, {}),  # nothing is enough
        ("gpu", 4, {}, {"microbatch_images": 4}),  # more processes only where tokenizers need them
    ],
)
def test_what_makes_trainings_fit_is_named_and_enough(scale, gib, execution, settings):
    assert execution_that_fits(planned(scale, **execution).stages, gib) == settings
    if settings:
        assert largest_gib(planned(scale, **{**execution, **settings}).stages) <= gib


@pytest.mark.parametrize(
    ("count", "gib", "cores", "jobs"),
    [
        (1, 80.0, 16, 4),  # as many as the cores feed
        (1, 16.0, 64, 2),  # as many as the memory holds
        (8, 80.0, 64, 16),
        (1, 4.0, 16, 1),  # never fewer than one
        (8, 80.0, 2, 8),
    ],
)
def test_small_trainings_share_a_card(monkeypatch, count, gib, cores, jobs):
    monkeypatch.setattr(cards, "_found", lambda: (made_cards(count, gib), ""))
    monkeypatch.setattr(compute, "cores", lambda: cores)
    plan = planned("gpu")
    assert 5 < largest_gib(plan.stages) < 8
    assert compute.parallel_jobs(plan.compute, 1, largest_gib(plan.stages)) == jobs
    assert compute.parallel_jobs(plan.compute, 1) == count  # whose memory is unknown


def test_a_large_training_has_a_card_of_its_own_and_one_of_several_processes_several(monkeypatch):
    monkeypatch.setattr(cards, "_found", lambda: (made_cards(4), ""))
    monkeypatch.setattr(compute, "cores", lambda: 128)
    large = planned("imagenet256", microbatch_images=64)
    assert compute.parallel_jobs(large.compute, 1, largest_gib(large.stages)) == 4
    assert compute.parallel_jobs(large.compute, 2, largest_gib(large.stages)) == 2
