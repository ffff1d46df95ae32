"""Released checkpoints as their authors publish them: tokenizers, generators, latent statistics.

Source: what `hustvl/LightningDiT` writes and reads. A tokenizer is the `state_dict` of a Lightning checkpoint,
or bare (vavae/ldm/models/autoencoder.py, tokenizer/autoencoder.py); a generator is stored under `ema`, or bare
(train.py, inference.py), as in `facebookresearch/DiT`; statistics are `mean` and `std`
(datasets/img_latent_dataset.py). Parameter names, time and velocity are the released ones throughout models/, so
nothing is renamed or converted here, except attention in SD-VAE's file (models/sd_vae.py). MAR's tokenizer is stored
under `model` (`LTH14/mar`, models/vae.py). The formats are tested with files written by the released classes, with
random weights: outputs agree up to rounding. The published files have not been loaded yet.

What weights do not say (`UNSTATED`) is that of the released networks, unless the header of a safetensors file states
it, as study.export writes it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from models.autoencoder import Autoencoder
from models.configs import (
    EXTERNAL_TOKENIZERS,
    GENERATOR_SIZES,
    TRANSFORMERS,
    AutoencoderConfig,
    GeneratorConfig,
    generator_config,
    parse_generator,
    parse_tokenizer,
)
from models.diffusers_form import from_diffusers, modern_name
from models.lightningdit import LightningDiT
from models.sd_vae import SDVAE
from models.weights import load_foreign, read_foreign

# Prefixes of a training checkpoint that are not the tokenizer: LPIPS and the discriminator, the frozen foundation
# model, and the map from the latent to the width of its features, which only the VF loss uses.
TOKENIZER_DROPPED = ("loss.", "foundation_model.", "linear_proj.")

# words that DistributedDataParallel and torch.compile insert into parameter names
WRAPPERS = ("module", "_orig_mod")

# Fields of AutoencoderConfig and GeneratorConfig that cannot be read from weights, as the released networks have them.
# No output depends on the resolution (pixels): it only translates levels with attention into attn_resolutions, and
# enters the cost of encoding an image.
UNSTATED: dict[str, int | float] = {"unshuffle": 1, "norm_groups": 32, "resolution": 256, "label_dropout": 0.1}

HUB = re.compile(r"hf:([\w.-]+/[\w.-]+?)(?:@([\w.-]+))?/(\S+)")

FOUNDATION_PATCHES = "foundation_model.model.patch_embed.proj.weight"

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class Loaded(Generic[Network]):
    """A released network, and what was done to the tensors of its file.

    network: on the CPU, in evaluation mode, always float32; its `config` was read from the weights. path: the file.
    part: the keys its weights were nested under, `ema` for a generator's moving average; empty if they were not nested.
    dropped: names of ignored tensors, all under declared prefixes (TOKENIZER_DROPPED). stripped: wrappers removed from
    names, such as `module.`.
    """

    network: Network
    path: Path
    part: str
    dropped: tuple[str, ...]
    stripped: tuple[str, ...]


@dataclass(frozen=True)
class LatentStatistics:
    """Mean and standard deviation of latent_raw per channel, over images and cells: (1, C, 1, 1) float32.
    latent is (latent_raw - mean) / std."""

    mean: Tensor
    std: Tensor


def load_tokenizer(spec: str, path: str | Path) -> Loaded[Autoencoder]:
    """The tokenizer `spec`, such as `f16d32-dinov2` or `sd-vae-f8d4`, from a released checkpoint.

    path: a file, or `hf:owner/name[@revision]/file` on the Hugging Face hub. Pixel channels, widths, levels,
    residual blocks and the levels with attention are read from the weights, under the released names or those of
    diffusers; sd-vae-f8d4 is the library's own network, which follows from its name. A foundation model in `spec` is
    checked if the file holds one; without one in `spec` any is accepted, since the network is the same.

    Raises ValueError for an unknown spec, for weights of another downsampling or latent width, for a parameter that is
    missing, unknown or of another shape (named in the message), and if a required package is not installed; and what
    read_foreign and local_file raise.
    """
    name = parse_tokenizer(spec)
    if name.external and (external := EXTERNAL_TOKENIZERS[spec].config).library:
        weights = _read(path, rename=modern_name)
        return _filled(weights, lambda: SDVAE(external), spec)
    weights = _read(path, TOKENIZER_DROPPED)
    if weights.count("encoder.down_blocks."):
        weights = replace(weights, tensors=from_diffusers(weights.tensors))
    unshuffle, norm_groups, resolution = (weights.stated(name) for name in ("unshuffle", "norm_groups", "resolution"))
    ch, folded_channels, _, _ = weights.shape("encoder.conv_in.weight", 4)
    levels = weights.count("encoder.down.")
    widths = [weights.shape(f"encoder.down.{i}.block.0.conv1.weight", 4)[0] for i in range(levels)]
    channels = weights.shape("post_quant_conv.weight", 4)[1]
    downsampling = unshuffle * 2 ** max(levels - 1, 0)
    if (downsampling, channels) != (name.downsampling, name.channels):
        raise ValueError(
            f"asked for {spec}, but {weights.path} holds a tokenizer of {levels} levels (encoder.down) and "
            f"{channels} latent channels (post_quant_conv.weight): f{downsampling}d{channels}"
        )
    for i, width in enumerate(widths):
        if width % ch:
            raise ValueError(
                f"{weights.path}: encoder.down.{i}.block.0.conv1.weight has {width} channels, "
                f"no multiple of the {ch} of encoder.conv_in.weight"
            )
    patches = weights.dropped.get(FOUNDATION_PATCHES)
    if patches is not None and name.foundation in TRANSFORMERS:
        patch = TRANSFORMERS[name.foundation].patch
        if patches.shape[-1] != patch:
            raise ValueError(
                f"asked for {spec}, whose foundation model has patches of {patch} pixels, but "
                f"{FOUNDATION_PATCHES} in {weights.path} is {tuple(patches.shape)}"
            )
    config = AutoencoderConfig(
        in_channels=folded_channels // unshuffle**2,
        resolution=resolution,
        ch=ch,
        ch_mult=tuple(width // ch for width in widths),
        num_res_blocks=weights.count("encoder.down.0.block."),
        attn_resolutions=tuple(
            resolution // unshuffle >> i for i in range(levels) if weights.count(f"encoder.down.{i}.attn.")
        ),
        z_channels=channels,
        unshuffle=unshuffle,
        norm_groups=norm_groups,
    )
    if config.attn_resolutions and not any(weights.count(f"decoder.up.{i}.attn.") for i in range(levels)):
        config = replace(config, decoder_attention=False)
    return _filled(weights, lambda: Autoencoder(config), spec)


def load_generator(spec: str, path: str | Path) -> Loaded[LightningDiT]:
    """The generator `spec`, such as `LightningDiT-XL/1`, from a released checkpoint; the moving average if it has one.

    path: as for load_tokenizer. The size and the patch are taken from the spec and checked; latent channels and grid,
    number of classes, the MLP's width and the options (SwiGLU, rotary positions, RMSNorm, QK-norm, adaLN's
    shift, learned variance) are read from the weights, not from the family's defaults, so DiT's own files load
    too. The last row of the label table is assumed to be the null label of guidance, which every released generator
    has, unless the file states that it was trained without label dropout.

    Raises ValueError for an unknown spec, for weights of another depth, width or patch, and for a parameter that is
    missing, unknown or of another shape (named in the message); and what read_foreign and local_file raise.
    """
    family, size, patch = parse_generator(spec)
    depth, width, _ = GENERATOR_SIZES[size]
    weights = _read(path)
    held_width, channels, held_patch, _ = weights.shape("x_embedder.proj.weight", 4)
    held_depth = weights.count("blocks.")
    if (held_depth, held_width, held_patch) != (depth, width, patch):
        sizes = [name for name, (d, w, _) in GENERATOR_SIZES.items() if (d, w) == (held_depth, held_width)]
        raise ValueError(
            f"asked for {spec} (depth {depth}, width {width}, patch {patch}), but {weights.path} holds depth "
            f"{held_depth} (blocks), width {held_width} and patch {held_patch} (x_embedder.proj.weight)"
            + "".join(f": {family}-{name}/{held_patch}" for name in sizes)
        )
    tokens = weights.shape("pos_embed", 3)[1]
    side = math.isqrt(tokens)
    if side**2 != tokens:
        raise ValueError(f"{weights.path}: pos_embed has {tokens} positions, which fill no square grid")
    swiglu = "blocks.0.mlp.w12.weight" in weights.tensors
    label_dropout = weights.stated("label_dropout")
    config = generator_config(
        spec,
        grid=side * patch,
        in_channels=channels,
        num_classes=weights.shape("y_embedder.embedding_table.weight", 2)[0] - (label_dropout > 0),
        label_dropout=label_dropout,
        swiglu=swiglu,
        mlp_ratio=mlp_ratio(weights.shape(f"blocks.0.mlp.{'w3' if swiglu else 'fc2'}.weight", 2)[1], width, swiglu),
        rope="feat_rope.freqs_cos" in weights.tensors,
        rms_norm="blocks.0.norm1.weight" in weights.tensors,
        qk_norm="blocks.0.attn.q_norm.weight" in weights.tensors,
        adaln_shift=weights.shape("blocks.0.adaLN_modulation.1.weight", 2)[0] != 4 * width,
    )
    if weights.shape("final_layer.linear.weight", 2)[0] == 2 * patch**2 * channels:
        config = replace(config, learned_variance=True)
    return _filled(weights, lambda: LightningDiT(config), spec)


def load_latent_statistics(path: str | Path) -> LatentStatistics:
    """The statistics that a released generator's latents were normalised with (`latents_stats.pt`).

    path: as for load_tokenizer. Raises ValueError unless the file holds `mean` and `std`, both (1, C, 1, 1) and
    finite, std positive; and what read_foreign and local_file raise.
    """
    file = local_file(path)
    tensors = load_foreign(file)
    if set(tensors) != {"mean", "std"}:
        raise ValueError(f"{file} holds {_some(sorted(tensors))}; latent statistics are mean and std")
    mean, std = tensors["mean"].float(), tensors["std"].float()
    if mean.shape != std.shape or mean.ndim != 4 or mean.numel() != mean.shape[1] or not mean.numel():
        raise ValueError(
            f"{file}: latent statistics are (1, C, 1, 1), one value per channel; "
            f"found mean {tuple(mean.shape)} and std {tuple(std.shape)}"
        )
    for name, values, good in (("mean", mean, mean.isfinite()), ("std", std, std.isfinite() & (std > 0))):
        if not good.all():
            channel = int((~good).flatten().nonzero()[0])
            raise ValueError(f"{file}: {name} of channel {channel} is {values.flatten()[channel].item()}")
    return LatentStatistics(mean, std)


def stated_header(config: AutoencoderConfig | GeneratorConfig) -> dict[str, str]:
    """What a safetensors file must state beside the weights of this network: its fields of UNSTATED."""
    return {name: str(getattr(config, name)) for name in UNSTATED if hasattr(config, name)}


def local_file(path: str | Path) -> Path:
    """The local file: a path unchanged, or `hf:owner/name[@revision]/file` through huggingface_hub, which caches files.

    Raises ValueError for a malformed id or if huggingface_hub is not installed; RuntimeError if the file cannot be
    obtained.
    """
    if not str(path).startswith("hf:"):
        return Path(path)
    found = HUB.fullmatch(str(path))
    if found is None:
        raise ValueError(f"{str(path)!r} is no file on the hub; the form is hf:owner/name[@revision]/file")
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise ValueError(
            f"{path} needs huggingface_hub (pip install huggingface_hub); or fetch the file and give its path"
        ) from error
    repository, revision, name = found.groups()
    try:
        return Path(hf_hub_download(repository, name, revision=revision))
    except Exception as error:  # a hub client has many errors of its own
        raise RuntimeError(
            f"{path} could not be obtained from the hub ({type(error).__name__}: {str(error).partition(chr(10))[0]}); "
            "check the name, or fetch the file elsewhere and give its path"
        ) from error


def mlp_ratio(hidden: int, width: int, swiglu: bool) -> float:
    """A ratio that gives an MLP the width `hidden` (GeneratorConfig.mlp_width); 4, as released, if 4 does."""
    if hidden == (int(2 / 3 * (4 * width)) if swiglu else 4 * width):
        return 4.0
    before = math.ceil(1.5 * hidden + 0.5) if swiglu else hidden  # 2/3 of it lies above `hidden`, by less than 1
    return (before + 0.5) / width


@dataclass(frozen=True)
class _Weights:
    """A file's tensors by their names without wrappers; those under declared prefixes are in `dropped`."""

    path: Path
    part: str
    header: dict[str, str]
    tensors: dict[str, Tensor]
    dropped: dict[str, Tensor]
    stripped: set[str]

    def shape(self, name: str, rank: int) -> tuple[int, ...]:
        """Shape of a parameter that determines the configuration. ValueError if it is missing or of another rank."""
        if name not in self.tensors:
            raise ValueError(f"{self.path} has no {name}; it holds {_some(sorted(self.tensors))}")
        shape = tuple(self.tensors[name].shape)
        if len(shape) != rank or 0 in shape:
            raise ValueError(f"{self.path}: {name} is {shape}, expected {rank} dimensions, none of them empty")
        return shape

    def count(self, prefix: str) -> int:
        """Number of modules under a prefix. A gap in their numbering shows as missing parameters later."""
        return len({name.removeprefix(prefix).split(".")[0] for name in self.tensors if name.startswith(prefix)})

    def stated(self, name: str) -> Any:
        """The value of a field of UNSTATED by the file's header. ValueError unless it is a number of its kind."""
        if (text := self.header.get(name)) is None:
            return UNSTATED[name]
        kind = type(UNSTATED[name])
        try:
            value = kind(text)
            if kind is int and value < 1:
                raise ValueError
        except ValueError:
            raise ValueError(f"the header of {self.path} states {name} {text!r}, which is no {name}") from None
        return value


def _read(
    path: str | Path, dropped_prefixes: tuple[str, ...] = (), rename: Callable[[str], str] = lambda name: name
) -> _Weights:
    file = local_file(path)
    foreign = read_foreign(file)
    weights = _Weights(file, foreign.part, foreign.header, {}, {}, set())
    for full_name, tensor in foreign.tensors.items():
        words = full_name.split(".")
        name = rename(".".join(word for word in words if word not in WRAPPERS))
        weights.stripped.update(f"{word}." for word in words if word in WRAPPERS)
        if name in weights.tensors or name in weights.dropped:
            raise ValueError(f"{file} holds {name} twice, once as {full_name}")
        (weights.dropped if name.startswith(dropped_prefixes) else weights.tensors)[name] = tensor
    return weights


def _filled(weights: _Weights, build: Callable[[], Network], spec: str) -> Loaded[Network]:
    with torch.device("meta"):  # no initial weights are drawn
        network = build()
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.tensors.items()}
    problems = {
        "missing": [name for name in expected if name not in found],
        "not expected": [name for name in found if name not in expected],
        "of another shape": [
            f"{name} {found[name]} instead of {expected[name]}"
            for name in expected
            if name in found and found[name] != expected[name]
        ],
    }
    if any(problems.values()):
        text = "; ".join(f"{problem}: {_some(names)}" for problem, names in problems.items() if names)
        raise ValueError(f"{weights.path} is no {spec}: {text}")
    network.to_empty(device="cpu").load_state_dict(weights.tensors)
    return Loaded(
        network=network.eval(),
        path=weights.path,
        part=weights.part,
        dropped=tuple(weights.dropped),
        stripped=tuple(sorted(weights.stripped)),
    )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
