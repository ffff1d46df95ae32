"""Generators whose blocks are compiled, and those whose weights are cast once: the same numbers, fewer operations."""

import dataclasses
from functools import partialmethod

import pytest
import torch
from made_up import COMPUTE
from torch import nn
from torch._dynamo.utils import counters

from models.autoencoder import Autoencoder, initialize
from models.configs import AutoencoderConfig, generator_config
from models.lightningdit import LightningDiT
from study.core.compute import autocast
from study.data.latents import read_latents
from study.plan.specs import Sampling
from study.stages import fit_generator
from study.stages.sample import for_sampling, make_sampler

COMPILED = dataclasses.replace(COMPUTE, compile=True)
BFLOAT16 = dataclasses.replace(COMPUTE, precision="bfloat16")


@pytest.fixture
def graphs(monkeypatch):
    """Blocks are traced, forward and backward, and run without generating code; gives the number of traces."""
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    torch.compiler.reset()
    counters.clear()
    yield lambda: counters["stats"]["unique_graphs"]
    torch.compiler.reset()


def made_generator():
    config = generator_config("LightningDiT-XXS/2", grid=4, in_channels=4, num_classes=3)
    network, rng = LightningDiT(config, torch.Generator().manual_seed(0)), torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        if parameter.requires_grad and not parameter.any():
            nn.init.normal_(parameter, std=0.1, generator=rng)
    return network.eval()


def first_gradients(stage, **execution):
    spec = dataclasses.replace(stage.spec, compute=dataclasses.replace(stage.spec.compute, **execution))
    state = fit_generator.build(spec)
    state["generator"].final_layer.linear.weight.data.fill_(0.01)  # 0 at first, which hides the blocks
    fit_generator.step_function(spec, state, read_latents(stage.inputs["latents"]))(0)
    return torch.cat([p.grad.flatten() for p in state["generator"].parameters() if p.grad is not None])


@pytest.mark.parametrize("execution", [{}, {"microbatch_images": 2, "checkpointing": True}], ids=str)
def test_all_blocks_of_a_training_share_what_is_compiled(execution, graphs, tiny_plan, run_or_copy):
    stage = next(stage for stage in tiny_plan().stages if stage.kind == "fit_generator")
    run_or_copy([stage.inputs["latents"].inputs["tokenizer"], stage.inputs["latents"]])
    expected = first_gradients(stage, **execution)
    assert graphs() == 0
    found = first_gradients(stage, **execution, compile=True)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5 * expected.abs().max().item())
    assert graphs() == 1


@pytest.mark.parametrize("solver", ["euler", "ddpm"])
def test_samples_of_compiled_blocks_are_the_same(solver, graphs):
    config = AutoencoderConfig(
        in_channels=1, resolution=16, ch=8, ch_mult=(1, 1, 1), num_res_blocks=1, attn_resolutions=(), z_channels=4,
        norm_groups=4,
    )  # fmt: skip
    tokenizer = Autoencoder(config)
    initialize(tokenizer, torch.Generator().manual_seed(0))
    protocol = Sampling(
        samples=6, chunk=3, solver=solver, steps=4, guidance_scale=2.0, guidance_interval=(0.3, 1.0), seed=0
    )

    def chunks(compute):
        network = made_generator()
        if solver == "ddpm":
            learned = dataclasses.replace(network.config, learned_variance=True)
            network = LightningDiT(learned, torch.Generator().manual_seed(0)).eval()
        draw = make_sampler(network, tokenizer, lambda latent: latent, protocol, compute)
        return torch.stack([draw(0), draw(1)]).int()

    expected = chunks(COMPUTE)
    assert expected.float().std() > 1
    assert (chunks(COMPILED) - expected).abs().max() <= 1
    assert graphs() == 1  # for both chunks, all blocks, guided and not


def test_weights_that_are_cast_once_give_the_same_bits():
    network, latents = made_generator(), torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    times, labels = torch.tensor([0.2, 0.9]), torch.tensor([0, 3])
    with torch.inference_mode(), autocast(BFLOAT16):
        expected = network(latents, times, labels)
        found = for_sampling(network, BFLOAT16)(latents, times, labels)
    assert torch.equal(found, expected) and expected.std() > 0
    assert network.blocks[0].attn.qkv.weight.dtype == torch.bfloat16
    assert for_sampling(made_generator(), COMPUTE).blocks[0].attn.qkv.weight.dtype == torch.float32


def test_blocks_that_cannot_be_compiled_here_say_what_is_missing(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ValueError, match=r"compiled here without a C\+\+ compiler.*execution.compile=False"):
        for_sampling(made_generator(), COMPILED)
