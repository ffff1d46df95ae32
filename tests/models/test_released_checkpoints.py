import hashlib
import json
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from waves import fill, wave

import models
from models import released_checkpoints
from models.autoencoder import Autoencoder
from models.configs import AutoencoderConfig, generator_config
from models.costs import autoencoder_parameters
from models.diffusion import noise_function
from models.lightningdit import LightningDiT
from models.released_checkpoints import load_generator, load_latent_statistics, load_tokenizer, mlp_ratio, stated_header
from models.sampler import Guidance, integrate, velocity_function

SMALL = AutoencoderConfig(resolution=32, ch=32, ch_mult=(1, 2, 2), num_res_blocks=1, z_channels=4)
LIGHTNING = {"swiglu": True, "rope": True, "rms_norm": True}
DIT = {"swiglu": False, "rope": False, "rms_norm": False}
# other prefixes of a training checkpoint
BESIDE = {
    "loss.logvar": torch.zeros(()),
    "loss.discriminator.main.0.weight": torch.zeros(8, 3, 4, 4),
    "foundation_model.model.patch_embed.proj.weight": torch.zeros(8, 3, 14, 14),
    "linear_proj.weight": torch.zeros(8, 4, 1, 1),
}


def tokenizer() -> Autoencoder:
    autoencoder = Autoencoder(SMALL)
    fill(autoencoder)
    return autoencoder


@pytest.fixture(scope="module")
def state():
    return tokenizer().state_dict()


def tiny(patch: int = 1, in_channels: int = 4, **options) -> LightningDiT:
    spec = f"LightningDiT-XXS/{patch}"
    generator = LightningDiT(generator_config(spec, grid=4, in_channels=in_channels, num_classes=10, **options))
    fill(generator)
    return generator


@pytest.fixture(scope="module")
def generator_state():
    return tiny().state_dict()


def kept(content, path):
    torch.save(content, path)
    return path


# Tokenizers

FORMS = {
    "bare": (lambda s: s, "", ()),
    "Lightning": (lambda s: {"state_dict": {**BESIDE, **s}, "epoch": 3, "callbacks": {}}, "state_dict", ()),
    "DDP": (lambda s: {"model": {f"module.{n}": v for n, v in {**s, **BESIDE}.items()}}, "model", ("module.",)),
    "compiled": (lambda s: {n.replace("coder.", "coder._orig_mod."): v for n, v in s.items()}, "", ("_orig_mod.",)),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_tokenizer_in_every_form(form, state, tmp_path):
    pack, part, stripped = FORMS[form]
    loaded = load_tokenizer("f4d4-dinov2", kept(pack(state), tmp_path / "t.pt"))
    assert (loaded.part, loaded.stripped) == (part, stripped)
    assert set(loaded.dropped) == (set(BESIDE) if form in ("Lightning", "DDP") else set())
    config = loaded.network.config
    assert (config.in_channels, config.ch, config.ch_mult, config.num_res_blocks) == (3, 32, (1, 2, 2), 1)
    assert not loaded.network.training
    pixels = wave(1, 3, 32, 32, k=0.013)
    expected = tokenizer().encode(pixels)
    assert torch.equal(loaded.network.encode(pixels).mean, expected.mean)
    assert torch.equal(loaded.network.decode(expected.mean), tokenizer().decode(expected.mean))


def test_a_tokenizer_whose_decoder_has_attention_only_in_the_middle(tmp_path):
    """MAR's: in the form of kl16.ckpt, under `model`, with random weights; the file itself has not been loaded yet."""
    made = Autoencoder(replace(SMALL, resolution=64, decoder_attention=False))
    fill(made)
    assert not any(name.startswith("decoder.up") and ".attn." in name for name in made.state_dict())
    assert sum(p.numel() for p in made.parameters()) == autoencoder_parameters(made.config)
    loaded = load_tokenizer("f4d4", kept({"model": made.state_dict()}, tmp_path / "kl.ckpt"))
    assert (loaded.part, loaded.network.config.decoder_attention) == ("model", False)
    pixels = wave(1, 3, 32, 32, k=0.013)
    mean = made.encode(pixels).mean
    assert torch.equal(loaded.network.encode(pixels).mean, mean)
    assert torch.equal(loaded.network.decode(mean), made.decode(mean))


def test_names_of_tokenizers_of_others_are_read_as_their_networks(state, tmp_path):
    path = kept(state, tmp_path / "t.pt")
    for name, found in (("mar-vae-f16d16", "asked for mar-vae-f16d16, but"), ("va-vae", "asked for va-vae, but")):
        with pytest.raises(ValueError, match=rf"{found} .*t\.pt holds a tokenizer of 3 levels"):
            load_tokenizer(name, path)


def test_safetensors_and_half_precision_become_float32(state, tmp_path):
    save_file({name: value.half() for name, value in state.items()}, tmp_path / "t.safetensors")
    network = load_tokenizer("f4d4", tmp_path / "t.safetensors").network
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    torch.testing.assert_close(network.quant_conv.weight, state["quant_conv.weight"], rtol=0, atol=1e-4)


def test_the_header_states_what_weights_do_not(tmp_path):
    config = replace(SMALL, unshuffle=2, norm_groups=8, resolution=32, attn_resolutions=(8,))
    made = Autoencoder(config)
    fill(made)
    path = tmp_path / "t.safetensors"
    save_file(made.state_dict(), path, stated_header(config))
    found = load_tokenizer("f8d4", path).network
    assert found.config == config
    pixels = wave(1, 3, 32, 32, k=0.013)
    assert torch.equal(found.encode(pixels).mean, made.encode(pixels).mean)
    for name, text in (("unshuffle", "0"), ("norm_groups", "8.5"), ("resolution", "-32"), ("unshuffle", "os.system")):
        save_file(made.state_dict(), path, {**stated_header(config), name: text})
        with pytest.raises(ValueError, match=rf"the header of .*t\.safetensors states {name} '{text}', which is no"):
            load_tokenizer("f8d4", path)


REFUSED_TOKENIZERS = {
    "the narrower latent": ("f4d16", {}, r"asked for f4d16, but .*t\.pt holds .*: f4d4"),
    "more levels": ("f8d4", {}, r"asked for f8d4, but .*t\.pt holds a tokenizer of 3 levels"),
    "another foundation model": ("f4d4-mae", BESIDE, r"patches of 16 pixels, but .* \(8, 3, 14, 14\)"),
    "no such tokenizer": ("f4d4-dinov3", {}, "nearest: dinov2"),
    "a parameter is missing": ("f4d4", {"decoder.mid.attn_1.k.bias": None}, r"missing: decoder\.mid\.attn_1\.k\.bias$"),
    "a level is missing": ("f4d4", {"encoder.down.1.block.0.conv1.weight": None}, r"has no encoder\.down\.1\.block\.0"),
    "an extra parameter": ("f4d4", {"quantize.embedding": torch.zeros(2)}, r"not expected: quantize\.embedding$"),
    "another shape": (
        "f4d4", {"decoder.conv_out.bias": torch.zeros(4)}, r"shape: decoder\.conv_out\.bias \(4,\) instead of \(3,\)$",
    ),
    "another rank": ("f4d4", {"encoder.conv_in.weight": torch.zeros(2)}, r"conv_in\.weight is \(2,\), expected 4"),
    "twice": ("f4d4", {"module.quant_conv.bias": torch.zeros(8)}, r"quant_conv\.bias twice, once as module\."),
    "a generator": ("f4d4", None, r"has no encoder\.conv_in\.weight; it holds blocks"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED_TOKENIZERS)
def test_a_tokenizer_that_does_not_fit_is_refused_by_name(case, state, generator_state, tmp_path):
    spec, changes, message = REFUSED_TOKENIZERS[case]
    content = generator_state if changes is None else {**state, **changes}
    path = kept({name: value for name, value in content.items() if value is not None}, tmp_path / "t.pt")
    with pytest.raises(ValueError, match=message) as error:
        load_tokenizer(spec, path)
    assert "\n" not in str(error.value)


# Generators

OPTIONS = [
    LIGHTNING,
    DIT,
    {**LIGHTNING, "qk_norm": True},
    {"swiglu": True, "rope": True, "rms_norm": False, "qk_norm": True, "adaln_shift": False},
    {"swiglu": False, "rope": True, "rms_norm": True, "mlp_ratio": 3.0},
    {**LIGHTNING, "mlp_ratio": 2.5},
]


@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("options", OPTIONS)
def test_a_generators_options_are_read_from_its_weights(options, patch, tmp_path):
    generator = tiny(patch, **options)
    loaded = load_generator(f"LightningDiT-XXS/{patch}", kept({"ema": generator.state_dict()}, tmp_path / "g.pt"))
    read, config = loaded.network.config, generator.config
    for field in ("grid", "in_channels", "num_classes", "mlp_width", "heads", *options.keys() - {"mlp_ratio"}):
        assert getattr(read, field) == getattr(config, field), field
    inputs = wave(2, 4, 4, 4, k=0.61), torch.tensor([0.2, 0.7]), torch.tensor([3, 10])
    assert torch.equal(loaded.network(*inputs), generator(*inputs))
    assert not loaded.network.pos_embed.requires_grad


def test_a_released_dit_gives_the_values_of_its_class(tmp_path):
    """Recorded from facebookresearch/DiT's models.py with these weights and forward_with_cfg; both agreed to 3e-6."""
    config = generator_config("DiT-XXS/2", grid=8, in_channels=4, num_classes=10)
    made = LightningDiT(replace(config, learned_variance=True))
    fill(made)
    network = load_generator("DiT-XXS/2", kept(made.state_dict(), tmp_path / "DiT.pt")).network
    assert network.config == made.config
    latent, labels = wave(2, 4, 8, 8, k=0.61), torch.tensor([3, 7])
    with torch.no_grad():
        values = network(latent, torch.tensor([3, 977]), labels).flatten()[[0, 100, 300, 511]].tolist()
        guided = noise_function(network, labels, 10, Guidance(scale=4.0, channels=3))(latent, 500)
    assert values == pytest.approx([0.263964, 0.198559, 0.304163, -0.670865], abs=1e-5)
    assert guided.flatten()[[0, 100, 300, 511]].tolist() == pytest.approx(
        [0.294915, 0.17679, 0.304171, -0.670865], abs=1e-5
    )


def test_the_average_is_taken_and_named(generator_state, tmp_path):
    raw = {name: value + 1 for name, value in generator_state.items()}
    both = {"model": raw, "ema": generator_state, "opt": {"state": {}}, "config": {"cfg_scale": 10.0}}
    loaded = load_generator("LightningDiT-XXS/1", kept(both, tmp_path / "both.pt"))
    assert loaded.part == "ema"
    assert torch.equal(loaded.network.final_layer.linear.weight, generator_state["final_layer.linear.weight"])
    assert load_generator("LightningDiT-XXS/1", kept({"model": raw}, tmp_path / "raw.pt")).part == "model"


@pytest.mark.parametrize("swiglu", [True, False])
def test_every_width_of_an_mlp_is_met(swiglu):
    for width in (128, 192, 1152):
        for hidden in (1, 2, 100, 101, 341, 342, width, 2 * width + 1):
            ratio = mlp_ratio(hidden, width, swiglu)
            config = generator_config("DiT-S/1", grid=2, in_channels=4, num_classes=1, swiglu=swiglu)
            changed = {"width": width, "heads": 1, "mlp_ratio": ratio}
            assert type(config)(**{**vars(config), **changed}).mlp_width == hidden
    assert mlp_ratio(3072, 1152, True) == mlp_ratio(4608, 1152, False) == 4.0  # XL, as released


REFUSED_GENERATORS = {
    "another size": ("LightningDiT-B/1", {}, r"depth 12, width 768, patch 1\), but .*g\.pt holds depth 4 .* width 128"),
    "another patch": ("LightningDiT-XXS/2", {}, r"and patch 1 .*: LightningDiT-XXS/1$"),
    "no such generator": ("LightningDiT-XXXS/1", {}, "nearest: XXS"),
    "a block is missing": (
        "LightningDiT-XXS/1", {"blocks.2.norm2.weight": None}, r"XXS/1: missing: blocks\.2\.norm2\.weight$",
    ),
    "a discriminator": ("LightningDiT-XXS/1", {"loss.logvar": torch.zeros(())}, r"not expected: loss\.logvar$"),
    "noise and variance": (
        "LightningDiT-XXS/1", {"final_layer.linear.bias": torch.zeros(8)},
        r"of another shape: final_layer\.linear\.bias \(8,\) instead of \(4,\)$",
    ),
    "no square": ("LightningDiT-XXS/1", {"pos_embed": torch.zeros(1, 15, 128)}, "pos_embed has 15 positions"),
    "another grid": (
        "LightningDiT-XXS/1", {"pos_embed": torch.zeros(1, 64, 128)}, r"freqs_cos \(16, 32\) instead of \(64, 32\)",
    ),
    "a tokenizer": ("LightningDiT-XXS/1", None, r"has no x_embedder\.proj\.weight; it holds decoder\."),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED_GENERATORS)
def test_a_generator_that_does_not_fit_is_refused_by_name(case, state, generator_state, tmp_path):
    spec, changes, message = REFUSED_GENERATORS[case]
    content = state if changes is None else {**generator_state, **changes}
    path = kept({name: value for name, value in content.items() if value is not None}, tmp_path / "g.pt")
    with pytest.raises(ValueError, match=message):
        load_generator(spec, path)


# Statistics


def test_latent_statistics(tmp_path):
    mean, std = wave(1, 4, 1, 1, k=0.9), 1 + 0.5 * wave(1, 4, 1, 1, k=0.4)
    found = load_latent_statistics(kept({"mean": mean, "std": std.double()}, tmp_path / "latents_stats.pt"))
    assert torch.equal(found.mean, mean)
    assert torch.equal(found.std, std)


GOOD = torch.ones(1, 3, 1, 1)
REFUSED_STATISTICS = {
    "flat": ({"mean": torch.ones(3), "std": torch.ones(3)}, r"\(1, C, 1, 1\).*mean \(3,\)"),
    "per cell": ({"mean": torch.ones(1, 3, 2, 2), "std": torch.ones(1, 3, 2, 2)}, r"found mean \(1, 3, 2, 2\)"),
    "of two tokenizers": ({"mean": GOOD, "std": torch.ones(1, 4, 1, 1)}, r"std \(1, 4, 1, 1\)"),
    "empty": ({"mean": torch.ones(1, 0, 1, 1), "std": torch.ones(1, 0, 1, 1)}, r"found mean \(1, 0, 1, 1\)"),
    "no number": ({"mean": GOOD * torch.nan, "std": GOOD}, "mean of channel 0 is nan"),
    "no spread": ({"mean": GOOD, "std": torch.tensor([1, 0, 1.0]).view(1, 3, 1, 1)}, "std of channel 1 is 0"),
    "a negative spread": ({"mean": GOOD, "std": -GOOD}, "std of channel 0 is -1"),
    "an infinite spread": ({"mean": GOOD, "std": GOOD * torch.inf}, "std of channel 0 is inf"),
    "no spread given": ({"mean": GOOD}, "holds mean; latent statistics are mean and std"),
}


@pytest.mark.parametrize("case", REFUSED_STATISTICS)
def test_statistics_that_mean_nothing_are_refused(case, tmp_path):
    content, message = REFUSED_STATISTICS[case]
    with pytest.raises(ValueError, match=message):
        load_latent_statistics(kept(content, tmp_path / "latents_stats.pt"))


# Files

LOADERS = [lambda path: load_tokenizer("f4d4", path), lambda path: load_generator("LightningDiT-XXS/1", path),
           load_latent_statistics]  # fmt: skip


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_is_cut_off_is_named(load, zipped, state, tmp_path):
    path = tmp_path / "cut.pt"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for size in (len(whole) // 2, len(whole) - 30, 100, 0):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"cut\.pt.*(is cut off or damaged|not all of one)") as error:
            load(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("load", LOADERS)
def test_a_wrong_path_is_named(load, tmp_path):
    for path in (tmp_path / "absent.pt", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"no weights at {path}"):
            load(path)


def test_a_file_on_the_hub(state, tmp_path, monkeypatch):
    import huggingface_hub

    path, asked = kept(state, tmp_path / "t.pt"), []

    def download(repository, name, revision):
        asked.append((repository, name, revision))
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert load_tokenizer("f4d4", "hf:some-one/va.vae/f4d4.pt").path == path
    load_tokenizer("f4d4", "hf:some-one/va.vae@0123abc/sub/f4d4.pt")
    assert asked == [("some-one/va.vae", "f4d4.pt", None), ("some-one/va.vae", "sub/f4d4.pt", "0123abc")]
    for wrong in ("hf:f4d4.pt", "hf:some-one/va.vae", "hf:some-one/va.vae/", "hf://some-one/va.vae/f4d4.pt"):
        with pytest.raises(ValueError, match="the form is hf:owner/name"):
            load_tokenizer("f4d4", wrong)


def test_a_hub_out_of_reach(monkeypatch):
    import huggingface_hub

    def away(*_, **__):
        raise OSError("no route to host\nand much more")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", away)
    message = r"hf:a/b/c\.pt could not be obtained from the hub \(OSError: no route to host\)"
    with pytest.raises(RuntimeError, match=message):
        load_latent_statistics("hf:a/b/c.pt")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"hf:a/b/c\.pt needs huggingface_hub \(pip install"):
        load_latent_statistics("hf:a/b/c.pt")


def test_the_loaders_are_offered_by_the_package():
    assert models.load_tokenizer is released_checkpoints.load_tokenizer
    assert models.load_latent_statistics is released_checkpoints.load_latent_statistics
    with pytest.raises(AttributeError, match="load_tokeniser"):
        models.load_tokeniser  # noqa: B018


# The reference


def layout(spec: str, **options) -> str:
    with torch.device("meta"):
        state = LightningDiT(generator_config(spec, num_classes=1000, **options)).state_dict()
    names = json.dumps(sorted((name, list(value.shape)) for name, value in state.items()))
    return hashlib.sha256(names.encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("spec", "options", "expected"),
    [
        ("LightningDiT-XL/1", {"grid": 16, "in_channels": 32}, "984c534630b83bc5"),
        ("DiT-B/2", {"grid": 32, "in_channels": 4}, "ddfff40a896405b9"),
        ("LightningDiT-B/1", {"grid": 16, "in_channels": 32, "qk_norm": True}, "3ea5b436e412d8c2"),
        (
            "LightningDiT-B/1",
            {"grid": 16, "in_channels": 16, "qk_norm": True, "rms_norm": False, "adaln_shift": False},
            "b7c361250ce0e448",
        ),
    ],
)
def test_names_and_shapes_of_the_reference(spec, options, expected):
    """Hashed from the released class with the same options."""
    assert layout(spec, **options) == expected


def test_values_of_the_released_system(state, tmp_path):
    """From files to pixels: generator, guidance on three of four channels from t = 0.1 on, 10 grid points shifted
    by 0.3, statistics, decoder. Recorded from the released classes and integrator with these weights."""
    generator = tiny(**LIGHTNING)
    with torch.no_grad():  # so that labels and guidance show
        generator.y_embedder.embedding_table.weight.mul_(20)
        generator.final_layer.linear.weight.mul_(4)
    mean, std = wave(1, 4, 1, 1, k=0.9), 1 + 0.5 * wave(1, 4, 1, 1, k=0.4)
    network = load_generator("LightningDiT-XXS/1", kept({"ema": generator.state_dict()}, tmp_path / "g.pt")).network
    decoder = load_tokenizer("f4d4", kept({"state_dict": {**state, **BESIDE}}, tmp_path / "t.ckpt")).network
    statistics = load_latent_statistics(kept({"mean": mean, "std": std}, tmp_path / "latents_stats.pt"))

    guidance = Guidance(scale=4.0, interval=(0.1, 1.0), channels=3)
    field = velocity_function(network, torch.tensor([3, 7]), network.config.num_classes, guidance)
    latent = integrate(field, wave(2, 4, 4, 4, k=0.61), solver="euler", steps=9, shift=0.3)
    values = latent.flatten()[[0, 17, 50, 70, 127]].tolist()
    assert values == pytest.approx([-1.239384, 0.59622, -0.322189, -2.298984, 1.486205], abs=1e-5)
    pixels = decoder.decode(latent * statistics.std + statistics.mean)
    values = pixels.flatten()[[0, 333, 800, 1535]].tolist()
    assert values == pytest.approx([0.04591, 0.037081, 0.046941, 0.017581], abs=2e-6)
