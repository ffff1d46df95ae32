"""Gradients of the tokenizer's objective, latents, and samples that depend on their index alone."""

import dataclasses
import os
from collections import Counter

import numpy as np
import pytest
import torch
from forked import CONTEXT
from made_up import COMPUTE
from torch.utils._python_dispatch import TorchDispatchMode

from models.autoencoder import Autoencoder, initialize
from models.configs import AutoencoderConfig
from models.costs import generator_parameters
from models.discriminator import Discriminator
from models.perceptual import PerceptualDistance
from models.vf_loss import projection
from study.bench.cases import plain_gradients
from study.data import latents as stored_latents
from study.data.picture_chunks import chunk_rows, read_chunk, write_chunk
from study.plan.scales import smoke
from study.plan.stage import Stage
from study.stages import fit_generator, fit_tokenizer, sample
from study.stages.fit_tokenizer import Networks, gradients
from study.submit.jobs import run_stage
from study.train.loop import decayed_learning_rate

aten = torch.ops.aten


@pytest.mark.parametrize("perceptual", [False, True])
@pytest.mark.parametrize("vf", [False, True])
@pytest.mark.parametrize("gan", [False, True])
def test_gradients_of_the_cut_graph_equal_those_of_the_plain_objective(vf, gan, perceptual):
    config = AutoencoderConfig(
        in_channels=1, resolution=32, ch=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(), z_channels=4,
        norm_groups=4,
    )  # fmt: skip
    recipe = dataclasses.replace(
        smoke().tokenizer, kl_weight=1e-2, gan_weight=0.5, vf_weight=0.3, perceptual_weight=1.0 if perceptual else 0.0
    )
    networks = Networks(Autoencoder(config))
    if perceptual:
        networks.perceptual = PerceptualDistance("lite0", input_size=32, pretrained=False)
    rng = torch.Generator().manual_seed(0)
    initialize(networks.tokenizer, rng)
    networks.linear_proj = projection(4, 6) if vf else None
    networks.discriminator = Discriminator(1, width=8) if gan else None
    pixels, noise = torch.randn(3, 1, 32, 32, generator=rng), torch.randn(3, 4, 16, 16, generator=rng)
    features = torch.randn(3, 6, 16, 16, generator=rng) if vf else None
    trained = [*networks.tokenizer.parameters(), *(networks.linear_proj.parameters() if vf else ())]

    found = []
    for function in (plain_gradients, gradients):
        for parameter in trained:
            parameter.grad = None
        function(networks, recipe, COMPUTE, pixels, noise, features, gan)
        found.append([parameter.grad.clone() for parameter in trained])
    largest = max(float(gradient.abs().max()) for gradient in found[0])
    for expected, gradient in zip(*found, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6 * largest)


class FloatingTypes(TorchDispatchMode):
    """Type and shortest side of every matrix product; the type of every use of a convolution's weight, if no copy."""

    def __init__(self):
        super().__init__()
        self.products, self.weights = set(), Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (aten.mm.default, aten.bmm.default):
            self.products.add((args[0].dtype, min(*args[0].shape[-2:], args[1].shape[-1])))
        if func in (aten.convolution.default, aten.convolution_backward.default):
            weight = args[1 if func is aten.convolution.default else 2]
            self.weights[weight.data_ptr()] += weight.dtype == torch.float32
        return func(*args, **(kwargs or {}))

    def uses(self, *networks):
        """How often each convolution's own float32 weight is used in these networks."""
        convolutions = [m for network in networks for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
        return [self.weights[m.weight.data_ptr()] for m in convolutions]


def test_in_bfloat16_the_losses_of_a_tokenizer_and_their_gradients_are_float32():
    config = AutoencoderConfig(
        in_channels=1, resolution=32, ch=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(), z_channels=4,
        norm_groups=4,
    )  # fmt: skip
    recipe = dataclasses.replace(smoke().tokenizer, perceptual_weight=1.0, gan_weight=0.5)
    networks = Networks(
        Autoencoder(config), linear_proj=projection(4, 6), discriminator=Discriminator(1, width=8),
        perceptual=PerceptualDistance("lite0", input_size=32, pretrained=False),
    )  # fmt: skip
    rng = torch.Generator().manual_seed(0)
    initialize(networks.tokenizer, rng)
    pixels, noise = torch.randn(3, 1, 32, 32, generator=rng), torch.randn(3, 4, 16, 16, generator=rng)
    features = torch.randn(3, 6, 16, 16, generator=rng)
    halves = dataclasses.replace(COMPUTE, precision="bfloat16")
    with FloatingTypes() as used:
        terms, reconstruction, _ = gradients(networks, recipe, halves, pixels, noise, features, True)
    tokenizer = networks.tokenizer
    assert {dtype for dtype, side in used.products if side == 6} == {torch.float32}  # of cosines, and backward
    assert min(used.uses(networks.perceptual, networks.linear_proj, tokenizer.quant_conv)) >= 2
    assert set(used.uses(tokenizer.encoder, tokenizer.decoder, networks.discriminator)) == {0}
    assert {term.dtype for term in terms.values()} == {reconstruction.dtype} == {torch.float32}


@pytest.mark.parametrize("images_seen", [0, 8, 32])
def test_warm_up_and_decay_hold_for_the_discriminator_too(images_seen, tiny_plan, tiny_scale):
    recipe = dataclasses.replace(
        tiny_scale.tokenizer, gan_weight=0.5, gan_width=8, warmup_images=16, final_learning_rate=0.1
    )
    fit = tiny_plan(dataclasses.replace(tiny_scale, tokenizer=recipe), resolution=32).jobs[0].stages[0]
    networks = fit_tokenizer.build(fit.spec)
    state = fit_tokenizer.training_state(fit.spec, networks)
    fit_tokenizer.step_function(fit.spec, networks, state)(images_seen)
    expected = decayed_learning_rate(images_seen, peak=recipe.learning_rate, budget=64, warmup=16, final=0.1)
    assert expected < recipe.learning_rate
    optimizers = state["optimizer"], state["discriminator_optimizer"]
    assert [group["lr"] for each in optimizers for group in each.param_groups] == [expected, expected]


def test_a_step_whose_gradient_is_not_finite_moves_neither_generator_nor_ema_nor_optimizer(fitted):
    stage = fitted.jobs[1].stages[0]
    state = fit_generator.build(stage.spec)
    step = fit_generator.step_function(stage.spec, state, stored_latents.read_latents(stage.inputs["latents"]))

    def bits():
        moments = state["optimizer"].state_dict()["state"].values()
        networks = {**state["generator"].state_dict(), **{f"ema {k}": v for k, v in state["ema"].state_dict().items()}}
        tensors = [*networks.values(), *(value for one in moments for value in one.values())]
        return [tensor.numpy().tobytes() for tensor in tensors]

    assert step(0).isfinite()
    before = bits()
    trained = next(p for p in state["generator"].parameters() if p.requires_grad)
    poison = trained.register_hook(lambda gradient: gradient * torch.inf)
    assert not step(8).isfinite()
    assert bits() == before
    poison.remove()
    assert step(8).isfinite()
    assert bits() != before


@pytest.fixture
def fit(run_or_copy):
    """`fit(plan)`: run the stages of a plan up to the generator; returns the plan."""

    def until_the_generator(plan):
        stages = (*plan.jobs[0].stages, plan.jobs[1].stages[0])
        run_or_copy(stage for stage in stages if stage.kind != "reconstruct")
        return plan

    return until_the_generator


@pytest.fixture
def fitted(tiny_plan, fit):
    return fit(tiny_plan())


@pytest.fixture
def diffused(tiny_plan, tiny_scale, fit):
    """The same after one step of Gaussian diffusion."""
    recipe = dataclasses.replace(
        tiny_scale.generator, objective="gaussian-diffusion", budget_images=8, snapshot_images=(8,)
    )
    sampling = dataclasses.replace(tiny_scale.sampling, solver="ddpm", steps=3)
    return fit(tiny_plan(dataclasses.replace(tiny_scale, generator=recipe, sampling=sampling)))


def test_normalised_latents_have_mean_0_and_std_1_and_can_be_denormalised(fitted):
    stage = fitted.jobs[0].stages[2]
    latents = stored_latents.read_latents(stage)
    count = len(latents.labels)
    assert count == 48
    noise = torch.randn(count, *latents.shape, generator=torch.Generator().manual_seed(0))
    view = torch.zeros(count, dtype=torch.long)
    normal = latents.sample(np.arange(count), view, noise)
    std, mean = torch.std_mean(normal, dim=(0, 2, 3))
    torch.testing.assert_close(mean, torch.zeros(4), atol=0.15, rtol=0)
    torch.testing.assert_close(std, torch.ones(4), atol=0.15, rtol=0)
    mean, std = (latents.rows(name, np.arange(count), view).float() for name in ("mean", "std"))
    raw = mean + std * noise
    torch.testing.assert_close(stored_latents.denormalise(normal, stage), raw, rtol=1e-4, atol=1e-4)


def test_the_second_view_is_the_mirror_image(fitted):
    from study.data.datasets import load_images

    stage = fitted.jobs[0].stages[2]
    latents, images = stored_latents.read_latents(stage), load_images(stage.spec.data, "train")
    tokenizer = fit_tokenizer.trained_tokenizer(stage.inputs["tokenizer"])
    with torch.inference_mode():
        mirrored = tokenizer.encode(images.pixels([5]).flip(3)).mean
    found = latents.rows("mean", np.array([5]), torch.tensor([1]))
    torch.testing.assert_close(found.float(), mirrored, rtol=2e-3, atol=2e-3)


def sampling_stage(plan, **fields):
    stage = plan.jobs[1].stages[-1]
    spec = dataclasses.replace(stage.spec, sampling=dataclasses.replace(stage.spec.sampling, **fields))
    return Stage("sample", spec, stage.inputs)


def draw(root, stage, folder, chunks):
    os.environ["STUDY_ROOT"] = root
    torch.set_num_threads(1)
    chunk_of = sample.sampler(stage.spec, stage.inputs)
    for chunk in chunks:
        write_chunk(folder, chunk, chunk_of(chunk))


def drawn(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("chunk-*"))}


@pytest.mark.parametrize("solver", ["euler", "dopri5", "ddpm"])
def test_neither_processes_nor_their_order_change_a_single_byte(solver, request, study_root, tmp_path):
    plan = request.getfixturevalue("diffused" if solver == "ddpm" else "fitted")
    stage = sampling_stage(plan, solver=solver, guidance_scale=1.5)
    chunks = [0, 1, 2]  # 10 samples in chunks of 4: the last one is padded
    one, two = tmp_path / "one", tmp_path / "two"
    draw(str(study_root), stage, one, chunks)
    processes = [
        CONTEXT.Process(target=draw, args=(str(study_root), stage, two, part))
        for part in ([chunks[2], chunks[0]], [chunks[1]])
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert drawn(one) == drawn(two)
    images = torch.cat([read_chunk(one, chunk) for chunk in chunks])
    assert images.dtype == torch.uint8
    assert len(torch.unique(images.flatten(1), dim=0)) == 12  # no two samples are the same


def test_the_noise_of_every_step_depends_on_the_sample_not_on_its_chunk(diffused):
    found = []
    for chunk in (4, 10):
        stage = sampling_stage(diffused, chunk=chunk)
        draw_chunk = sample.sampler(stage.spec, stage.inputs)
        images = torch.cat([draw_chunk(number) for number in range(len(chunk_rows(stage.spec)))])
        found.append(images[:10].int())
    assert (found[0] - found[1]).abs().max() <= 1  # matrix products of another batch size round differently
    assert len(torch.unique(found[0].flatten(1), dim=0)) == 10


def test_a_diffusion_generator_learns_noise_and_variance(diffused):
    stage = diffused.jobs[1].stages[0]
    assert stage.spec.architecture.learned_variance
    network = fit_generator.trained_generator(stage, 8, "raw")
    noise, variance = network.final_layer.linear.weight.unflatten(0, (4, 2, -1)).unbind(1)  # patch of 4, channels
    assert (noise != 0).any() and (variance != 0).any()  # both are initialised to 0
    assert stage.record()["cost"]["parameters"] == generator_parameters(stage.spec.architecture)


def test_more_samples_begin_with_the_same_ones(fitted, tmp_path):
    few, many = (sampling_stage(fitted, samples=n) for n in (4, 10))
    for stage in (few, many):
        draw(os.environ["STUDY_ROOT"], stage, tmp_path / str(stage.spec.sampling.samples), [0])
    assert drawn(tmp_path / "4") == drawn(tmp_path / "10")


def test_labels_are_in_turn_or_drawn_by_index():
    equal, random = (dataclasses.replace(smoke().sampling, label_scheme=scheme) for scheme in ("equal", "random"))
    assert [sample.label_of(i, equal, 3) for i in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    labels = [sample.label_of(i, random, 3) for i in range(3000)]
    assert labels == [sample.label_of(i, random, 3) for i in range(3000)]
    assert all(900 < labels.count(label) < 1100 for label in range(3))


def test_a_truncated_chunk_is_drawn_again(fitted):
    stage = fitted.jobs[1].stages[-1]
    run_stage(stage)
    whole = drawn(stage.folder)
    path = stage.folder / "chunk-000000.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    (stage.folder / "record.json").unlink()
    run_stage(stage)
    assert drawn(stage.folder) == whole and len(whole) == 3
