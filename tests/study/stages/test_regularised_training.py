"""Tokenizers with regularisers: their objective, that a name without strength is plain, and the whole way of each."""

import dataclasses

import pytest
import torch
from interrupting import aligned_with_everything, same_in_pieces
from made_up import COMPUTE, Asking

from models.autoencoder import Autoencoder, initialize
from models.configs import AutoencoderConfig
from models.discriminator import Discriminator
from models.regularisation import REGULARISERS, Regularisation
from models.regularisers import Draws, Regularisers
from models.vf_loss import projection
from study.bench.cases import plain_gradients
from study.core.settings import change
from study.data.datasets import resolve_data
from study.plan.resolve import make_plan
from study.plan.runs import Run
from study.plan.scales import smoke
from study.report.table_rows import rows_of
from study.stages.fit_tokenizer import Networks, gradients
from study.submit.jobs import run_stage

CONFIG = AutoencoderConfig(
    in_channels=1, resolution=32, ch=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(), z_channels=4,
    norm_groups=4,
)  # fmt: skip
WITHOUT_STRENGTH = {
    "spectrum.weight": 0.0, "local.weight": 0.0, "prefix.fewest": 1.0, "mask.ratios": (0.0, 0.0, 0.0, 0.0),
    "noise.strength": 0.0, "scale.weight": 0.0, "eq.probability": 0.0, "eq.shrink_probability": 0.0,
}  # fmt: skip
WHOLE_EQ = {"eq.probability": 1.0, "eq.smallest": 0.75}  # images of at least 24 px, for the discriminator


def gradients_of(function, names=(), strengths=(), *, vf=False, gan=False):
    """The gradient of every trained parameter after one step with these regularisers, and what the step returns."""
    recipe = dataclasses.replace(smoke().tokenizer, kl_weight=1e-2, gan_weight=0.5, vf_weight=0.3)
    networks, rng = Networks(Autoencoder(CONFIG)), torch.Generator().manual_seed(0)
    initialize(networks.tokenizer, rng)
    networks.linear_proj = projection(4, 6)
    networks.discriminator = Discriminator(1, width=8)
    networks.mask_token = torch.nn.Embedding(1, 4)
    for network in (networks.linear_proj, networks.discriminator, networks.mask_token):
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.1, generator=rng)
    pixels, noise = torch.randn(3, 1, 32, 32, generator=rng), torch.randn(3, 4, 16, 16, generator=rng)
    features = torch.randn(3, 6, 16, 16, generator=rng) if vf else None
    used = Regularisation()
    for field, value in dict(strengths).items():
        used = change(used, field, value)

    def draws(name):
        return Draws(torch.Generator().manual_seed(len(name)), 3, lambda drawn: drawn, lambda *tensors: tensors)

    regularisers = Regularisers(used.only(names), draws) if names else None
    found = function(networks, recipe, COMPUTE, pixels, noise, features, gan, regularisers)
    trained = [*networks.tokenizer.parameters(), *networks.linear_proj.parameters(), networks.mask_token.weight]
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in trained], found


@pytest.mark.parametrize(
    ("names", "vf", "gan"),
    [
        (("spectrum",), False, False),
        (("local",), False, True),
        (("local",), True, True),
        (("prefix", "mask"), False, True),
        (("scale",), True, False),
        (REGULARISERS, False, False),
        (REGULARISERS, True, True),
    ],
)
def test_gradients_of_the_cut_graph_equal_those_of_the_whole_objective(names, vf, gan):
    expected, _ = gradients_of(plain_gradients, names, WHOLE_EQ, vf=vf, gan=gan)
    found, _ = gradients_of(gradients, names, WHOLE_EQ, vf=vf, gan=gan)
    largest = max(float(gradient.abs().max()) for gradient in expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * largest)


@pytest.mark.parametrize("gan", [False, True])
@pytest.mark.parametrize("vf", [False, True])
@pytest.mark.parametrize("name", REGULARISERS)
def test_a_regulariser_without_strength_leaves_every_gradient_as_it_is(name, vf, gan):
    plain, (terms, *_) = gradients_of(gradients, vf=vf, gan=gan)
    found, (terms_found, *_) = gradients_of(gradients, (name,), WITHOUT_STRENGTH, vf=vf, gan=gan)
    assert all(map(torch.equal, found, plain))
    assert {key: terms_found[key] for key in terms} == terms


def test_the_discriminator_sees_the_transformed_pair():
    _, (_, reconstruction, target) = gradients_of(gradients, ("eq",), WHOLE_EQ, gan=True)
    assert reconstruction.shape == target.shape and target.shape[2] < 32


@pytest.fixture
def planned(tiny_scale, pictures):
    """`planned(tokenizer, scale)`: the plan of a generator on it, judged by a classifier."""

    def plan(tokenizer, scale=tiny_scale, resolution=32):
        scale = dataclasses.replace(scale, judges=(("classifier", 0),))
        data = resolve_data(str(pictures), resolution)
        run = Run(tokenizer=tokenizer, generator="LightningDiT-XXS/2")
        return make_plan("asked", Asking(run), scale, data, COMPUTE, "test")

    return plan


@pytest.mark.parametrize(
    "name", [*(pytest.param(name, marks=pytest.mark.slow) for name in REGULARISERS), "+".join(REGULARISERS)]
)
def test_every_name_trains_encodes_generates_and_is_judged(name, planned, tmp_path):
    plan = planned(f"f4d4+{name}")
    for stage in plan.stages:
        run_stage(stage)
    rows = rows_of(plan, tmp_path)
    assert {(row.tokenizer, row.state) for row in rows} == {(f"f4d4+{name}", "done")}
    assert all(row.rfid or row.gfid for row in rows)


@pytest.mark.parametrize("tokenizer", ["f4d4-lite0+cosine", "f4d4-lite0+distance+noise"])
def test_a_part_of_the_vf_loss_is_trained_alone_and_with_a_regulariser(tokenizer, planned, tiny_scale):
    stage = planned(tokenizer, aligned_with_everything(tiny_scale)).stages[0]
    recipe = stage.spec.recipe
    kept, dropped = ("cosine", "distance") if "cosine" in tokenizer else ("distance", "cosine")
    assert (getattr(recipe, f"vf_{kept}_weight"), getattr(recipe, f"vf_{dropped}_weight")) == (1.0, 0.0)
    assert run_stage(stage)["cost"]["final_loss"] > 0


def test_with_every_regulariser_an_interrupted_training_ends_with_the_same_bits(planned, tiny_scale, monkeypatch):
    """Alignment, discriminator, perceptual term and the mask's token, which only the states hold."""
    scale = change(aligned_with_everything(tiny_scale), "regularisation.eq.smallest", 0.75)
    stage = planned("f4d4-lite0+" + "+".join(REGULARISERS), scale).stages[0]
    same_in_pieces(stage, monkeypatch, 16, 4)
