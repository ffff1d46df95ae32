import dataclasses
import re
import subprocess
import sys

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.autoencoder import Autoencoder
from models.configs import (
    AutoencoderConfig,
    GeneratorConfig,
    TokenizerName,
    generator_config,
    parse_generator,
    parse_tokenizer,
)
from models.costs import autoencoder_flops, autoencoder_parameters, flops_per_image, generator_parameters
from models.lightningdit import LightningDiT

LATENT = {"grid": 16, "in_channels": 32, "num_classes": 1000}


def test_specs_import_without_torch():
    code = "import sys, models, models.configs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_tokenizer_names_read_and_write_back():
    assert parse_tokenizer("f16d32-dinov2") == TokenizerName(downsampling=16, channels=32, foundation="dinov2")
    assert parse_tokenizer("f4d16").foundation is None
    noisy = parse_tokenizer("f16d32-dinov2+noise+eq")
    assert (noisy.foundation, noisy.regularisers) == ("dinov2", ("noise", "eq"))
    for name in ("f4d16", "f16d32", "f16d64-mae", "f8d16-lite0", "f4d4+eq", "f4d4-lite0+cosine+noise", "va-vae"):
        assert str(parse_tokenizer(name)) == name


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("f16d32-dinov3", "nearest: dinov2"),
        ("f16-d32", "nearest: f16d32"),
        ("f12d4", "8 and 16"),
        ("F16D32", "nearest: f16d32"),
        ("f0d4", "f<downsampling>d<channels>"),
        ("f4d4+noize", "nearest: noise"),
        ("f4d4+", "unknown regulariser ''"),
        ("f4d4+eq+noise", "is named f4d4+noise+eq"),
        ("f4d4+noise+noise", "is named f4d4+noise"),
        ("f4d4+eq+cosine", "name a foundation model, as in f4d4-dinov2+cosine+eq"),
        ("f4d4-mae+cosine+distance+eq", "both parts of the VF loss, which is f4d4-mae+eq"),
        ("va-vae+eq", "va-vae is published, and not trained here"),
    ],
)
def test_a_wrong_tokenizer_name_is_answered_with_what_was_meant(name, hint):
    with pytest.raises(ValueError, match=re.escape(hint)) as error:
        parse_tokenizer(name)
    assert name in str(error.value)


def test_generator_names():
    assert parse_generator("LightningDiT-1p0B/2") == ("LightningDiT", "1p0B", 2)
    c = generator_config("LightningDiT-XL/1", **LATENT)
    assert (c.depth, c.width, c.heads, c.tokens) == (28, 1152, 16, 256)
    assert c.swiglu
    assert c.rope
    assert c.rms_norm
    assert not c.qk_norm
    assert c.adaln_shift
    d = generator_config("DiT-XL/2", **LATENT)
    assert [d.swiglu, d.rope, d.rms_norm, d.qk_norm] == [False] * 4
    assert generator_config("DiT-XL/2", rope=True, **LATENT) == dataclasses.replace(d, rope=True)


@pytest.mark.parametrize(
    ("spec", "options", "hint"),
    [
        ("LightningDit-B/1", {}, "nearest: LightningDiT"),
        ("LightningDiT-1p0b/1", {}, "nearest: 1p0B"),
        ("LightningDiT-B", {}, "nearest: LightningDiT-B/"),
        ("LightningDiT-B/1", {"qknorm": True}, "nearest: qk_norm"),
        ("LightningDiT-B/3", {}, "these do: 1, 2, 4, 8, 16"),
        ("LightningDiT-B/1", {"label_dropout": 1.0}, "label_dropout"),
    ],
)
def test_a_wrong_generator_is_answered_with_what_was_meant(spec, options, hint):
    with pytest.raises(ValueError, match=hint):
        generator_config(spec, **LATENT, **options)


def test_configurations_that_cannot_be_built_are_refused():
    with pytest.raises(ValueError, match="multiple of 4"):
        GeneratorConfig(name="t", grid=4, in_channels=4, num_classes=2, patch=1, width=50, depth=1, heads=5)
    with pytest.raises(ValueError, match="downsampling 16"):
        AutoencoderConfig(resolution=40)
    with pytest.raises(ValueError, match="norm_groups"):
        AutoencoderConfig(ch=48)
    with pytest.raises(TypeError):
        AutoencoderConfig(chanels=3)  # type: ignore[call-arg]


def test_unshuffling_counts_as_downsampling():
    c = AutoencoderConfig(resolution=32, ch_mult=(1, 2), unshuffle=2)
    assert (c.downsampling, c.grid, c.level_sides()) == (4, 8, (16, 8))
    assert (AutoencoderConfig().downsampling, AutoencoderConfig().grid) == (16, 16)


def test_one_training_image_of_xl_costs_what_the_paper_group_measured():
    """About 712 GFLOP: three forwards of 237."""
    assert 3 * flops_per_image(generator_config("LightningDiT-XL/1", **LATENT)) == pytest.approx(712e9, rel=0.002)


def counted(run) -> int:
    # The fused kernel for processors is not in torch's table; the plain one is made of products that are.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("spec", ["LightningDiT-XXS/1", "DiT-XXS/2", "LightningDiT-XS/2"])
@pytest.mark.parametrize("shift", [True, False])
def test_generator_flops_agree_with_torchs_count(spec, shift):
    c = generator_config(spec, grid=8, in_channels=16, num_classes=10, adaln_shift=shift)
    generator = LightningDiT(c)
    args = torch.zeros(2, 16, 8, 8), torch.zeros(2), torch.zeros(2, dtype=torch.long)
    assert counted(lambda: generator(*args)) == pytest.approx(2 * flops_per_image(c), rel=0.02)


@pytest.mark.parametrize("patch", [1, 2])
def test_learned_variance_is_counted_too(patch):
    plain = generator_config(f"DiT-XXS/{patch}", grid=8, in_channels=16, num_classes=10)
    c = dataclasses.replace(plain, learned_variance=True)
    generator = LightningDiT(c)
    args = torch.zeros(2, 16, 8, 8), torch.zeros(2), torch.zeros(2, dtype=torch.long)
    assert generator(*args).shape == (2, 32, 8, 8)
    assert sum(p.numel() for p in generator.parameters()) == generator_parameters(c)
    head = flops_per_image(c) - flops_per_image(plain)
    assert counted(lambda: generator(*args)) - counted(lambda: LightningDiT(plain)(*args)) == 2 * head


def test_dit_has_the_parameters_of_the_published_one():
    c = generator_config("DiT-XL/2", grid=32, in_channels=4, num_classes=1000)
    assert generator_parameters(dataclasses.replace(c, learned_variance=True)) == 675_129_632  # counted in its class


@pytest.mark.parametrize("spec", ["LightningDiT-XXS/1", "DiT-XXS/2", "LightningDiT-XS/2"])
@pytest.mark.parametrize("options", [{}, {"qk_norm": True}, {"adaln_shift": False, "label_dropout": 0.0}])
def test_generator_parameters_are_counted_to_the_last(spec, options):
    c = generator_config(spec, grid=8, in_channels=16, num_classes=10, **options)
    assert sum(p.numel() for p in LightningDiT(c).parameters()) == generator_parameters(c)


def test_parameters_of_the_papers_networks():
    """675M as the paper and DiT say of XL; the tokenizer of latent diffusion has about 70M."""
    assert generator_parameters(generator_config("LightningDiT-XL/1", **LATENT)) == pytest.approx(675e6, rel=0.002)
    with torch.device("meta"):
        released = Autoencoder(AutoencoderConfig())
    assert sum(p.numel() for p in released.parameters()) == autoencoder_parameters(AutoencoderConfig())


@pytest.mark.parametrize("unshuffle", [1, 2])
def test_autoencoder_flops_agree_with_torchs_count(unshuffle):
    c = AutoencoderConfig(
        resolution=32,
        ch=16,
        ch_mult=(1, 2, 2),
        attn_resolutions=(8,),
        z_channels=8,
        unshuffle=unshuffle,
        norm_groups=8,
    )
    autoencoder = Autoencoder(c)
    encode = counted(lambda: autoencoder.encode(torch.zeros(1, 3, 32, 32)))
    decode = counted(lambda: autoencoder.decode(torch.zeros(1, 8, c.grid, c.grid)))
    assert (encode, decode) == pytest.approx(autoencoder_flops(c), rel=0.02)
    assert sum(p.numel() for p in autoencoder.parameters()) == autoencoder_parameters(c)
