"""REPA and iREPA: the loss and the normalisation by hand, what gradients reach, and the projectors."""

import math

import pytest
import torch
from waves import fill, wave

from models.configs import GENERATOR_SIZES, PROJECTORS, generator_config
from models.costs import foundation_flops, projector_flops, projector_parameters, projector_width
from models.lightningdit import LightningDiT
from models.repa import ProjectedGenerator, Projector, mean_cosine, spatially_normalised

CONFIG = generator_config("LightningDiT-XXS/2", grid=8, in_channels=4, num_classes=3)


def rng():
    return torch.Generator().manual_seed(0)


def test_the_cosine_of_two_cells_by_hand():
    """Cells (1, 0) and (0, 2) against (3, 0) and (1, 1): cosines 1 and 1 / sqrt(2)."""
    projected = torch.tensor([[1.0, 0.0], [0.0, 2.0]]).view(1, 2, 1, 2)
    features = torch.tensor([[3.0, 1.0], [0.0, 1.0]]).view(1, 2, 1, 2)
    assert mean_cosine(projected, features).item() == pytest.approx((1 + math.sqrt(0.5)) / 2)
    with pytest.raises(ValueError, match=r"got projected \(1, 2, 1, 2\) and features \(1, 2, 2, 1\)"):
        mean_cosine(projected, features.transpose(2, 3))


def test_the_cosine_is_float32_under_autocast():
    projected, features = wave(2, 6, 3, 3, k=0.9), wave(2, 6, 3, 3, k=0.31)
    expected = mean_cosine(projected, features)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mean_cosine(projected, features), expected)


def test_spatial_normalisation_by_hand():
    """Cells 1, 2, 3, 6: mean 3, standard deviation sqrt(14 / 3); 0.6 of the mean is 1.8."""
    cells = torch.tensor([1.0, 2.0, 3.0, 6.0]).view(1, 1, 2, 2)
    found = spatially_normalised(torch.cat([cells, 10 * cells], dim=1), 0.6)
    expected = [(cell - 1.8) / math.sqrt(14 / 3) for cell in (1, 2, 3, 6)]
    for channel in range(2):  # whatever its scale
        assert found[0, channel].flatten().tolist() == pytest.approx(expected, abs=1e-5)


@pytest.fixture
def generator():
    """A generator whose blocks are not the identity that they are at first."""
    network = LightningDiT(CONFIG, rng())
    fill(network)
    return network


def inputs():
    return wave(2, 4, 8, 8, k=0.7), torch.tensor([0.2, 0.7]), torch.tensor([0, 3])


def test_tokens_come_from_behind_so_many_blocks_and_change_no_velocity(generator):
    seen = []
    for block in generator.blocks:
        block.register_forward_hook(lambda module, given, output: seen.append(output))
    expected = generator(*inputs())
    by_depth = list(seen)
    for depth in range(1, CONFIG.depth + 1):
        velocity, tokens = generator.velocity_and_tokens(*inputs(), depth)
        assert torch.equal(velocity, expected)
        assert torch.equal(tokens, by_depth[depth - 1])


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", PROJECTORS)
def test_the_gradient_reaches_the_blocks_in_front_and_none_behind(kind, checkpointing, generator):
    generator.checkpointing = checkpointing
    aligned = ProjectedGenerator(generator, Projector(kind, CONFIG.width, 5, rng()), depth=2)
    velocity, projected = aligned(*inputs())
    assert projected.shape == (2, 5, 4, 4) and velocity.shape == (2, 4, 8, 8)
    mean_cosine(projected, wave(2, 5, 4, 4, k=0.31)).backward()
    for part in (generator.x_embedder, *generator.blocks[:2], aligned.projector):
        assert all(p.grad is not None and p.grad.any() for p in part.parameters()), type(part)
    for part in (*generator.blocks[2:], generator.final_layer):
        assert all(p.grad is None for p in part.parameters())


@pytest.mark.parametrize("kind", PROJECTORS)
def test_a_projector_is_as_large_as_it_is_counted_and_keeps_rows_and_columns(kind):
    projector = Projector(kind, 12, 7, rng())
    assert sum(p.numel() for p in projector.parameters()) == projector_parameters(kind, 12, 7)
    tokens = torch.randn(1, 6 * 6, 12, generator=rng())
    moved = tokens.clone()
    moved[0, 2 * 6 + 3] += 1  # row 2, column 3
    changed = (projector(moved) - projector(tokens)).abs().sum(1)[0] > 1e-6
    expected = torch.zeros(6, 6, dtype=torch.bool)
    if kind == "mlp":
        expected[2, 3] = True
    else:
        expected[1:4, 2:5] = True
    assert torch.equal(changed, expected)


def test_the_mlp_is_as_published_from_the_width_of_b_on_and_cheaper_than_small_generators():
    widths = {size: projector_width(width) for size, (_, width, _) in GENERATOR_SIZES.items()}
    assert {widths[size] for size in ("B", "L", "XL", "1p6B")} == {2048}
    assert widths["XXS"] == 341
    assert projector_flops("mlp", CONFIG, 112) == 2 * 16 * (128 * 341 + 341 * 341 + 341 * 112)
    assert projector_flops("conv", CONFIG, 112) == 2 * 16 * 9 * 128 * 112


def test_a_foundation_model_costs_two_flops_per_weight_and_token():
    assert foundation_flops("dinov2", 224) == pytest.approx(2 * 304e6 * 256, rel=0.01)  # 304M parameters
    assert foundation_flops("lite0", 224) == pytest.approx(2 * 0.4e9, rel=0.01)
