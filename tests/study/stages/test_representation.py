"""Representation autoencoders and shifted times: the objective, the statistics, and the whole way of one."""

import dataclasses

import numpy as np
import pytest
import torch
from interrupting import same_in_pieces, weights
from made_up import COMPUTE, Asking

from models.autoencoder import Autoencoder, initialize
from models.configs import AutoencoderConfig
from models.discriminator import Discriminator
from models.regularisation import Regularisation
from models.regularisers import Draws, Regularisers
from study.core.files import load_tensors
from study.core.randomness import batch_indices, make_rng
from study.core.settings import change
from study.data.datasets import load_images, resolve_data
from study.data.latents import read_latents
from study.plan.resolve import make_plan
from study.plan.runs import Run
from study.plan.scales import smoke
from study.plan.stage import TOKENIZER_WEIGHTS
from study.report.table_rows import rows_of
from study.stages import fit_generator, sample
from study.stages.fit_tokenizer import Networks, decoder_gradients, gradients, trained_tokenizer
from study.submit.jobs import run_stage

RAE = "rae-lite0"


@pytest.fixture
def planned(tiny_scale, pictures):
    """`planned(tokenizer, scale, ...)`: the plan of a generator on it, judged by a classifier."""

    def plan(tokenizer=RAE, scale=tiny_scale, resolution=32, **changes):
        scale = dataclasses.replace(scale, judges=(("classifier", 0),))
        for field, value in changes.items():
            scale = change(scale, field.replace("__", "."), value)
        data = resolve_data(str(pictures), resolution)
        run = Run(tokenizer=tokenizer, generator="LightningDiT-XXS/2")
        return make_plan("asked", Asking(run), scale, data, COMPUTE, "test")

    return plan


# Trainings


CONFIG = AutoencoderConfig(
    in_channels=1, resolution=32, ch=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(), z_channels=4,
    norm_groups=4,
)  # fmt: skip


@pytest.mark.parametrize("gan", [False, True])
def test_a_decoder_alone_gets_the_gradients_that_it_gets_behind_a_trained_encoder(gan):
    """Of the same latent without posterior noise, with the same noise of the regulariser."""
    recipe, rng = dataclasses.replace(smoke().tokenizer, gan_weight=0.5), torch.Generator().manual_seed(0)
    pixels, discriminator = torch.randn(3, 1, 32, 32, generator=rng), Discriminator(1, width=8)
    for parameter in discriminator.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=rng)

    def of_decoder(function, *arguments_of):
        tokenizer = Autoencoder(CONFIG)
        initialize(tokenizer, torch.Generator().manual_seed(1))
        draws = Draws(torch.Generator().manual_seed(2), 3, lambda drawn: drawn, lambda *tensors: tensors)
        noise = Regularisers(Regularisation().only(("noise",)), lambda name: draws)
        networks = Networks(tokenizer, discriminator=discriminator)
        function(networks, recipe, COMPUTE, pixels, *(make(tokenizer) for make in arguments_of), gan, noise)
        return {name: p.grad for name, p in tokenizer.named_parameters() if name.startswith(("decoder", "post"))}

    expected = of_decoder(gradients, lambda _: torch.zeros(3, 4, 16, 16), lambda _: None)
    found = of_decoder(decoder_gradients, lambda tokenizer: tokenizer.encode(pixels).mean.detach())
    assert all(gradient.any() for gradient in found.values())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_the_whole_way_with_shifted_times_and_all_losses(planned, tiny_scale, tmp_path):
    """Trains, reconstructs, encodes, generates and is judged; its latents are standardised per channel and place."""
    tokenizer = dataclasses.replace(
        tiny_scale.tokenizer, gan_weight=0.5, gan_start_images=32, perceptual_weight=1.0, perceptual_net="lite0"
    )
    plan = planned(scale=dataclasses.replace(tiny_scale, tokenizer=tokenizer), generator__shift_base=4096)
    for stage in plan.stages:
        run_stage(stage)
    rows = rows_of(plan, tmp_path)
    of_tokenizer = next(row for row in rows if row.kind == "tokenizer")
    assert {(row.tokenizer, row.foundation_model, row.latent_channels, row.state) for row in rows} == {
        (RAE, RAE, 112, "done")
    }
    assert of_tokenizer.rfid and of_tokenizer.psnr and of_tokenizer.viv
    assert of_tokenizer.eq_error is None  # it encodes pictures of one size
    assert all(row.gfid for row in rows if row.kind == "generator")

    fit, encode = plan.stages[0], next(stage for stage in plan.stages if stage.kind == "encode")
    names = set(load_tensors(fit.folder / TOKENIZER_WEIGHTS))
    assert {name.partition(".")[0] for name in names} == {"decoder", "latent_mean", "latent_std", "post_quant_conv"}
    trained = trained_tokenizer(fit)
    assert fit.record()["cost"]["parameters"] == sum(p.numel() for p in trained.parameters())
    encoded = trained.encode(load_images(fit.spec.data, "train").pixels(np.arange(48))).mean
    assert encoded.mean(0).abs().max() < 1e-3 and (encoded.std(0, correction=0) - 1).abs().max() < 0.01
    latents = read_latents(encode)
    ours = latents.sample(np.arange(48), torch.zeros(48, dtype=torch.int64), torch.randn(48, *latents.shape))
    mean, std = (torch.tensor(encode.record()["latent"][name]).view(-1, 1, 1) for name in ("mean", "std"))
    assert mean.abs().max() < 0.1 and (std - 1).abs().max() < 0.1  # over mirrored images too
    assert ((encoded - mean) / std - ours).abs().max() < 0.01  # stored in float16


def test_an_interrupted_training_ends_with_the_same_bits(planned, tiny_scale, monkeypatch):
    stage = planned().stages[0]
    same_in_pieces(stage, monkeypatch, 16, 4)


def test_noise_is_part_of_the_training_and_its_strength_of_the_identity(planned):
    noisy, clean = (planned(regularisation__noise__strength=strength).stages[0] for strength in (0.8, 0.0))
    assert noisy != clean
    run_stage(noisy), run_stage(clean)
    assert weights(noisy.folder) != weights(clean.folder)


def test_samples_need_no_encoder(planned, monkeypatch):
    plan = planned()
    for stage in plan.stages:
        if stage.kind in ("fit_tokenizer", "encode", "fit_generator"):
            run_stage(stage)
    monkeypatch.setattr("study.train.representation.frozen_foundation", lambda spec: pytest.fail("encoder loaded"))
    drawn = next(stage for stage in plan.stages if stage.kind == "sample")
    assert run_stage(drawn)["sheet"]


# Shifted times


def test_times_are_shifted_by_the_size_of_the_latent_in_training_and_in_sampling(planned, monkeypatch):
    """7,168 values and base 1,792: half the odds of t, so 1/2 becomes 1/3 and the two even steps end there."""
    plan = planned(generator__shift_base=1792, generator__logit_normal=False)
    fit = next(stage for stage in plan.stages if stage.kind == "fit_generator")
    assert fit.spec.timestep_shift == 0.5
    for stage in plan.stages:
        if stage.kind in ("fit_tokenizer", "encode"):
            run_stage(stage)
    seen = []
    original = fit_generator.loss_function

    def noting(recipe):
        loss = original(recipe)
        return lambda predict, data, noise, times, labels: (
            seen.append(times.clone()) or loss(predict, data, noise, times, labels)
        )

    monkeypatch.setattr(fit_generator, "loss_function", noting)
    run_stage(fit)
    recipe = fit.spec.recipe
    indices = batch_indices(0, 48, 0, recipe.batch_images)
    rng = make_rng(0, "generator step", 0)
    torch.randint(1, (len(indices),), generator=rng)
    for _ in range(2):
        torch.randn(recipe.batch_images, 112, 8, 8, generator=rng)
    t = torch.rand(len(indices), generator=rng)
    torch.testing.assert_close(seen[0], t / (2 - t))

    shifts = []
    integrate = sample.integrate
    monkeypatch.setattr(
        sample, "integrate", lambda *args, **options: shifts.append(options["shift"]) or integrate(*args, **options)
    )
    run_stage(next(stage for stage in plan.stages if stage.kind == "sample"))
    assert set(shifts) == {0.5}
