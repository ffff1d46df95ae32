"""The representation autoencoder: its normalisation by hand, its statistics and what its file holds."""

import math

import pytest
import torch

from models.autoencoder import initialize
from models.configs import FOUNDATIONS, RAES, AutoencoderConfig, parse_tokenizer
from models.representation_autoencoder import RepresentationAutoencoder

CONFIG = AutoencoderConfig(
    in_channels=1, resolution=4, ch=4, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(), z_channels=2,
    norm_groups=2, frozen_encoder="lite0",
)  # fmt: skip


def features(pixels):
    """Twice the mean of each 2 x 2 pixels, and its square: (B, 2, 2, 2)."""
    cells = 2 * torch.nn.functional.avg_pool2d(pixels, 2)
    return torch.cat([cells, cells.square()], dim=1)


def network():
    found = RepresentationAutoencoder(CONFIG, features)
    initialize(found, torch.Generator().manual_seed(0))
    return found


def test_each_channel_and_place_is_normalised_by_its_own_mean_and_variance():
    tokenizer = network()
    mean, variance = torch.zeros(2, 2, 2), torch.full((2, 2, 2), 4 - 1e-5)
    mean[0, 0, 1], variance[0, 0, 1] = 1.0, 0.25 - 1e-5
    variance[1, 1, 1] = 0  # only the epsilon, as released, keeps a constant feature finite
    tokenizer.normalise_by(mean, variance)
    posterior = tokenizer.encode(torch.full((1, 1, 4, 4), 0.75))  # features 1.5 and 2.25
    expected = torch.tensor([[[0.75, 1.0], [0.75, 0.75]], [[1.125, 1.125], [1.125, 2.25 / math.sqrt(1e-5)]]])
    torch.testing.assert_close(posterior.mean[0], expected)
    assert posterior.std.eq(0).all()
    assert torch.equal(posterior.sample(torch.randn(1, 2, 2, 2)), posterior.mean)


def test_a_file_has_decoder_and_statistics_and_decodes_without_the_encoder():
    first = network()
    first.normalise_by(torch.rand(2, 2, 2), torch.rand(2, 2, 2))
    names = set(first.state_dict())
    assert {"latent_mean", "latent_std", "post_quant_conv.weight"} < names
    assert not any("encoder" in name or name.startswith("quant_conv") for name in names)

    second = RepresentationAutoencoder(CONFIG, lambda pixels: pytest.fail("the encoder was used"))
    second.load_state_dict(first.state_dict(), strict=True)
    latent = torch.randn(1, 2, 2, 2)
    assert torch.equal(second.decode(latent), first.decode(latent))


def test_pictures_and_statistics_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"encode takes \(B, 1, 4, 4\), the size .* got \(1, 1, 8, 8\)"):
        network().encode(torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"features are \(2, 2, 2\), got a mean \(2, 1, 1\)"):
        network().normalise_by(torch.zeros(2, 1, 1), torch.ones(2, 1, 1))


def test_names():
    for name, model in zip(RAES, FOUNDATIONS, strict=True):
        parsed = parse_tokenizer(name)
        assert str(parsed) == name == parsed.family and parsed.foundation_network == model
        assert parsed.foundation is None and parsed.regularisers == ()
    for name, family in (("f4d4", "none"), ("f4d4-lite0+eq", "lite0"), ("va-vae", "dinov2")):
        assert parse_tokenizer(name).family == family


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rae-lite0-dinov2", "a representation autoencoder is not aligned, .* features of lite0: ask for rae-lite0"),
        ("rae-lite1", "unknown foundation model 'lite1' in tokenizer 'rae-lite1'; nearest: lite0"),
        ("rae-", "unknown foundation model '' in tokenizer 'rae-'"),
        ("rae-lite0+noise", "takes no regulariser, .* noise .* is part of its decoder's training anyway: ask for rae-"),
        ("rae-lite0+spectrum", "takes no regulariser, since its encoder is frozen"),
        ("rae-lite0+local", "takes no regulariser, since its encoder is frozen"),
        ("rae-lite0+cosine", "takes no regulariser, since its encoder is frozen"),
        ("f4d4-rae", "unknown foundation model 'rae'"),
        ("rea-lite0", "is no tokenizer; nearest: rae-lite0"),
    ],
)
def test_another_name_is_refused_in_one_line(name, message):
    with pytest.raises(ValueError, match=message) as refused:
        parse_tokenizer(name)
    assert len(str(refused.value).splitlines()) == 1
