import pytest
import torch
from waves import fill, wave

from models.autoencoder import Autoencoder
from models.configs import AutoencoderConfig
from models.vf_loss import adaptive_weight, gradient_norm_ratio, projection, vf_loss

SMALL = AutoencoderConfig(resolution=32, ch=32, ch_mult=(1, 2, 2), num_res_blocks=1, z_channels=4)


@pytest.mark.parametrize(
    ("margins", "weights", "expected"),
    [
        ((0.5, 0.25), (1, 1), (1.0824662, 0.4692610, 0.6132052)),
        ((0, 0), (1, 1), (1.7997124, 0.9692611, 0.8304514)),
        ((0.25, 0.1), (1, 0.5), (1.0902400, 0.7192611, 0.7419578)),
    ],
)
def test_values_of_the_reference(margins, weights, expected):
    """Recorded from the released formula; both agreed, gradients included, to 1e-6."""
    loss = vf_loss(
        wave(2, 6, 3, 3, k=0.9), wave(2, 6, 3, 3, k=0.31) + 0.2,
        cosine_margin=margins[0], distance_margin=margins[1],
        cosine_weight=weights[0], distance_weight=weights[1],
    )  # fmt: skip
    assert (loss.total.item(), loss.cosine.item(), loss.distance.item()) == pytest.approx(expected, abs=1e-6)


def test_aligned_features_cost_nothing_whatever_their_scale():
    features = wave(2, 5, 2, 2, k=0.4)
    loss = vf_loss(3 * features, features, cosine_margin=0.0, distance_margin=0.0)
    assert loss.total.item() == pytest.approx(0, abs=1e-6)


def test_two_cells_by_hand():
    """Cells e1, e2 against e1, e1: cosines 1 and 0, so the cosine part is 1/2; the off-diagonal
    similarities are 0 against 1, two of the four pairs, so the distance part is 1/2. A margin takes itself
    off where it acts."""
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(1, 2, 1, 2)
    f = torch.tensor([[1.0, 1.0], [0.0, 0.0]]).view(1, 2, 1, 2)
    plain = vf_loss(z, f, cosine_margin=0.0, distance_margin=0.0)
    assert (plain.cosine.item(), plain.distance.item(), plain.total.item()) == (0.5, 0.5, 1.0)
    slack = vf_loss(z, f, cosine_margin=0.5, distance_margin=0.25)
    assert (slack.cosine.item(), slack.distance.item()) == (0.25, 0.375)


def test_a_part_of_weight_zero_is_absent():
    z, f = wave(1, 4, 2, 2, k=0.9), wave(1, 4, 2, 2, k=0.3)
    both = vf_loss(z, f, cosine_margin=0.0, distance_margin=0.0)
    only = vf_loss(z, f, cosine_margin=0.0, distance_margin=0.0, distance_weight=0.0)
    assert only.distance == 0
    assert only.total == only.cosine == both.cosine


def test_maps_of_different_shape_are_refused():
    with pytest.raises(ValueError, match="resize the features"):
        vf_loss(torch.zeros(1, 4, 2, 2), torch.zeros(1, 4, 4, 4), cosine_margin=0.0, distance_margin=0.0)


def test_adaptive_weight_by_hand():
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    factor = adaptive_weight((weight * torch.tensor([3.0, 4.0])).sum(), 2 * weight[0], weight)
    assert factor.item() == pytest.approx(5 / (2 + 1e-4))
    assert not factor.requires_grad
    assert adaptive_weight(weight.sum() * 1e6, weight[0] * 0, weight, limit=1e4) == 1e4
    assert gradient_norm_ratio(torch.zeros(2), torch.ones(2), 1e4) == 0


def test_adaptive_weight_of_the_reference():
    """Recorded from the released loss on a whole tokenizer with these weights: sum of absolute differences over
    the batch, KL weight 1e-6, VF weight 0.1, margins 0.5 and 0.25."""
    autoencoder, project = Autoencoder(SMALL), projection(4, 6)
    fill(autoencoder)
    pixels, features = wave(2, 3, 32, 32, k=0.013), wave(2, 6, 8, 8, k=0.31) + 0.2
    posterior = autoencoder.encode(pixels)
    latent_raw = posterior.sample(wave(2, 4, 8, 8, k=0.7))
    reconstruction = (pixels - autoencoder.decode(latent_raw)).abs().sum() / len(pixels)
    with torch.no_grad():
        project.weight.copy_(wave(6, 4, 1, 1, k=0.53))
    vf = vf_loss(project(latent_raw), features, cosine_margin=0.5, distance_margin=0.25).total
    weight = 0.1 * adaptive_weight(reconstruction, vf, autoencoder.encoder.conv_out.weight)
    total = reconstruction + 1e-6 * posterior.kl().mean() + weight * vf
    assert vf.item() == pytest.approx(1.0734711, abs=2e-6)
    assert weight.item() == pytest.approx(0.24573, rel=1e-4)  # of two small gradients: float32 leaves 2e-5
    assert total.item() == pytest.approx(1950.3776, rel=1e-6)


def test_the_projection_is_the_released_one():
    project = projection(4, 6)
    assert project.weight.shape == (6, 4, 1, 1)
    assert project.bias is None
