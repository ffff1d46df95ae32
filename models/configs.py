"""Names and sizes of tokenizers and generators; standard library only, so that planning starts in milliseconds.

Sizes: S from DiT (Peebles and Xie 2023, arXiv 2212.09748, Table 1); B to 1p6B as in LightningDiT (arXiv
2501.01423; `hustvl/LightningDiT`, models/lightningdit.py); XXS and XS are ours, for CPUs.
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass, field
from typing import Any

from models.names import nearest
from models.regularisation import REGULARISERS, UNLESS_NONE


@dataclass(frozen=True, kw_only=True)
class Transformer:
    """A timm vision transformer: name, options, patch, side its input is resized to (None: not resized).

    width: channels of its features. megabytes: approximate size of its weight file.
    """

    timm_name: str
    options: tuple[tuple[str, Any], ...] = ()
    patch: int
    resize: int | None
    width: int
    megabytes: int

    def cells(self, resolution: int) -> int:
        """Side of the grid of its features of pictures of this many pixels."""
        return (self.resize or resolution) // self.patch


# The paper does not specify its SAM and CLIP; those two choices are ours
TRANSFORMERS = {
    "dinov2": Transformer(
        timm_name="vit_large_patch14_dinov2.lvd142m",
        options=(("dynamic_img_size", True),),
        patch=14,
        resize=224,
        width=1024,
        megabytes=1217,
    ),
    "mae": Transformer(
        timm_name="vit_large_patch16_224.mae",
        options=(("dynamic_img_size", True),),
        patch=16,
        resize=None,
        width=1024,
        megabytes=1213,
    ),
    "sam": Transformer(timm_name="samvit_large_patch16.sa1b", patch=16, resize=None, width=256, megabytes=1233),
    "clip": Transformer(
        timm_name="vit_large_patch14_clip_224.openai",
        options=(("act_layer", "quick_gelu"),),  # as its weights were trained; timm's default differs
        patch=14,
        resize=224,
        width=1024,
        megabytes=1213,
    ),
}
FOUNDATIONS = (*TRANSFORMERS, "lite0")
LITE0_WIDTHS = {2: 16, 4: 24, 8: 40, 16: 112, 32: 320}  # channels of lite0's features, by pixels per cell along a side
PROJECTORS = ("mlp", "conv")  # of REPA and of iREPA, see models/repa.py
RAES = tuple(f"rae-{name}" for name in FOUNDATIONS)  # representation autoencoders
VF_PARTS = ("cosine", "distance")  # of the VF loss, which a tokenizer's name may keep alone

# size: depth, width, heads
GENERATOR_SIZES: dict[str, tuple[int, int, int]] = {
    "XXS": (4, 128, 4),
    "XS": (8, 192, 6),
    "S": (12, 384, 6),
    "B": (12, 768, 12),
    "L": (24, 1024, 16),
    "XL": (28, 1152, 16),
    "1p0B": (24, 1536, 24),
    "1p6B": (28, 1792, 28),
}

# The options in which the families differ; sizes are above. The released LightningDiT keeps adaLN's shift and
# leaves QK-norm off, as DiT does.
GENERATOR_FAMILIES: dict[str, dict[str, bool]] = {
    "DiT": {"swiglu": False, "rope": False, "rms_norm": False, "qk_norm": False, "adaln_shift": True},
    "LightningDiT": {"swiglu": True, "rope": True, "rms_norm": True, "qk_norm": False, "adaln_shift": True},
}

GENERATOR_OPTIONS = ("mlp_ratio", "label_dropout", "qk_norm", "swiglu", "rope", "rms_norm", "adaln_shift")
NUMERIC_OPTIONS = GENERATOR_OPTIONS[:2]  # the others are switches

SOLVERS = ("euler", "heun", "dopri5")  # of models/sampler.py

# training objectives of generators (models/flow.py, models/diffusion.py), and the solvers that sample from them
OBJECTIVES = {"rectified-flow": SOLVERS, "gaussian-diffusion": ("ddpm",)}
DIFFUSION_TIMESTEPS = 1000  # of gaussian-diffusion in training, and the maximum of steps of ddpm

TIME_FREQUENCIES = 256  # width of the sinusoidal embedding of t, before its MLP


# Tokenizers


@dataclass(frozen=True, kw_only=True)
class TokenizerName:
    """A parsed tokenizer name: pixels per latent cell along a side, latent channels, foundation model of the VF loss.

    foundation: None without VF loss. regularisers: of REGULARISERS in their order, before them at most one of VF_PARTS.
    external: the name in EXTERNAL_TOKENIZERS, else empty. encoder: the frozen foundation model that encodes for a
    representation autoencoder, else None; downsampling and channels are 0 then, since the scale decides them.
    """

    downsampling: int
    channels: int
    foundation: str | None = None
    regularisers: tuple[str, ...] = ()
    external: str = ""
    encoder: str | None = None

    def __str__(self) -> str:
        if self.external:
            return self.external
        if self.encoder:
            return f"rae-{self.encoder}"
        alignment = f"-{self.foundation}" if self.foundation else ""
        return "+".join([f"f{self.downsampling}d{self.channels}{alignment}", *self.regularisers])

    @property
    def family(self) -> str:
        """Whom it is compared with: "none" of a plain tokenizer, or the model that it is aligned with; the own name of
        a representation autoencoder, which is neither."""
        return str(self) if self.encoder else self.foundation or "none"

    @property
    def foundation_network(self) -> str | None:
        """The foundation model that its training needs, for the VF loss or as encoder."""
        return self.encoder or self.foundation


def parse_tokenizer(name: str) -> TokenizerName:
    """Parse `f16d32`, `f16d32-dinov2`, `f16d32-dinov2+noise+eq`, `rae-dinov2` or a name in EXTERNAL_TOKENIZERS; `str()`
    of the result is the name.

    Raises ValueError, with the nearest names, for anything else; also for regularisers in another order, so that one
    tokenizer has one name.
    """
    if name in EXTERNAL_TOKENIZERS:
        tokenizer = EXTERNAL_TOKENIZERS[name]
        return TokenizerName(
            downsampling=tokenizer.config.downsampling,
            channels=tokenizer.config.z_channels,
            foundation=tokenizer.foundation,
            external=name,
        )
    form = (
        "The form is f<downsampling>d<channels>[-<foundation model>][+<regulariser>...], downsampling a power of two, "
        f"foundation model one of {', '.join(FOUNDATIONS)}, regularisers of {', '.join((*VF_PARTS, *REGULARISERS))}; "
        "or rae-<foundation model>, "
        f"or one of others: {', '.join(EXTERNAL_TOKENIZERS)}."
    )
    if name.startswith("rae-"):
        return _representation_autoencoder(name)
    unregularised, *regularisers = name.split("+")
    if unregularised in EXTERNAL_TOKENIZERS:
        raise ValueError(
            f"{unregularised} is published, and not trained here with regularisers as {name!r} asks. {form}"
        )
    found = re.fullmatch(r"f([1-9]\d*)d([1-9]\d*)(?:-([A-Za-z0-9_]+))?", unregularised)
    if found is None:
        usual = [f"f{f}d{d}" for f in (4, 8, 16, 32) for d in (4, 8, 16, 32, 64)]
        aligned = [u + s for u in usual for s in ("", *(f"-{x}" for x in FOUNDATIONS))]
        raise ValueError(f"{name!r} is no tokenizer; {nearest(name, [*aligned, *RAES, *EXTERNAL_TOKENIZERS])}. {form}")
    downsampling, channels, foundation = int(found[1]), int(found[2]), found[3]
    if downsampling & (downsampling - 1):
        below = 1 << (downsampling.bit_length() - 1)
        raise ValueError(
            f"tokenizer {name!r} asks for downsampling {downsampling}; "
            f"the nearest powers of two are {below} and {2 * below}. {form}"
        )
    if foundation is not None and foundation not in FOUNDATIONS:
        near = nearest(foundation, FOUNDATIONS)
        raise ValueError(f"unknown foundation model {foundation!r} in tokenizer {name!r}; {near}. {form}")
    parsed = TokenizerName(
        downsampling=downsampling, channels=channels, foundation=foundation, regularisers=tuple(regularisers)
    )
    _check_regularisers(parsed)
    return parsed


def _representation_autoencoder(name: str) -> TokenizerName:
    encoder, more = re.fullmatch(r"rae-([^-+]*)(.*)", name, re.DOTALL).groups()  # type: ignore[union-attr]
    if encoder not in FOUNDATIONS:
        raise ValueError(f"unknown foundation model {encoder!r} in tokenizer {name!r}; {nearest(encoder, FOUNDATIONS)}")
    if more.startswith("-"):
        raise ValueError(
            f"tokenizer {name!r}: a representation autoencoder is not aligned, its latents are the features of "
            f"{encoder}: ask for rae-{encoder}"
        )
    if more:
        raise ValueError(
            f"tokenizer {name!r}: a representation autoencoder takes no regulariser, since its encoder is frozen, and "
            f"noise (regularisation.noise) is part of its decoder's training anyway: ask for rae-{encoder}"
        )
    return TokenizerName(downsampling=0, channels=0, encoder=encoder)


def _check_regularisers(name: TokenizerName) -> None:
    valid = (*VF_PARTS, *REGULARISERS)
    for regulariser in name.regularisers:
        if regulariser not in valid:
            raise ValueError(
                f"unknown regulariser {regulariser!r} in tokenizer '{name}'; {nearest(regulariser, valid)}"
            )
    in_order = tuple(regulariser for regulariser in valid if regulariser in name.regularisers)
    parts = [part for part in VF_PARTS if part in in_order]
    if parts and name.foundation is None:
        aligned = dataclasses.replace(name, foundation=FOUNDATIONS[0], regularisers=in_order)
        raise ValueError(
            f"tokenizer '{name}' keeps the {parts[0]} part of the VF loss and is not aligned: name a foundation model, "
            f"as in {aligned}"
        )
    if len(parts) > 1:
        both = dataclasses.replace(name, regularisers=in_order[len(parts) :])
        raise ValueError(f"tokenizer '{name}' keeps both parts of the VF loss, which is {both}")
    if in_order != name.regularisers:
        raise ValueError(f"tokenizer '{name}' is named {dataclasses.replace(name, regularisers=in_order)}")


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Shape of the convolutional tokenizer; the defaults are the released f16d32.

    resolution is the side of the square training images in pixels; it decides which levels get attention
    (those whose side is in attn_resolutions) and nothing else. unshuffle u folds u x u pixels into channels
    before the first convolution and unfolds them after the last; this removes the levels at full resolution, which are
    most of the cost. 1 is the released network. decoder_attention: whether the decoder has attention at the same levels
    as the encoder. library: implementation of the network, empty for ours or "diffusers" (models/sd_vae.py).
    frozen_encoder: the foundation model that encodes in place of the convolutional encoder, into z_channels of its
    features (models/representation_autoencoder.py); None: that encoder.

    Raises ValueError unless the downsampling divides the resolution, and norm_groups the channels of every level.
    """

    in_channels: int = 3
    resolution: int = 256
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    attn_resolutions: tuple[int, ...] = (16,)
    z_channels: int = 32
    unshuffle: int = 1
    norm_groups: int = 32
    decoder_attention: bool = True
    library: str = ""
    frozen_encoder: str | None = field(default=None, metadata=UNLESS_NONE)

    def __post_init__(self) -> None:
        if not self.ch_mult or self.unshuffle < 1:
            raise ValueError(f"need at least one level and unshuffle >= 1, got {self.ch_mult}, {self.unshuffle}")
        if self.resolution % self.downsampling:
            raise ValueError(
                f"resolution {self.resolution} is no multiple of the downsampling {self.downsampling} "
                f"(unshuffle {self.unshuffle}, {len(self.ch_mult)} levels)"
            )
        for mult in (1, *self.ch_mult):  # 1: the first block's input
            if (self.ch * mult) % self.norm_groups:
                raise ValueError(
                    f"{self.ch * mult} channels (ch {self.ch} x {mult}) do not split into norm_groups="
                    f"{self.norm_groups}; choose a divisor of {self.ch}"
                )

    @property
    def downsampling(self) -> int:
        """Pixels per latent cell along a side."""
        return self.unshuffle * 2 ** (len(self.ch_mult) - 1)

    @property
    def grid(self) -> int:
        """Side of the latent of a training image, in cells."""
        return self.resolution // self.downsampling

    def level_sides(self) -> tuple[int, ...]:
        """Side of the feature map at each level, finest first."""
        return tuple(self.resolution // self.unshuffle // 2**i for i in range(len(self.ch_mult)))

    def layout(self) -> dict[str, Any]:
        """The settings in which two tokenizers of one network agree; the image resolution is not among them."""
        fields = dataclasses.asdict(self)
        del fields["resolution"], fields["attn_resolutions"]
        attention = [level for level, side in enumerate(self.level_sides()) if side in self.attn_resolutions]
        return {**fields, "levels with attention": attention}


@dataclass(frozen=True, kw_only=True)
class ExternalTokenizer:
    """A published tokenizer that is only used with its pretrained weights and is never trained here.

    config: for the image resolution that it was trained at.
    """

    config: AutoencoderConfig
    foundation: str | None = None


# SD-VAE's network is `AutoencoderKL` of diffusers with the config.json of stabilityai/sd-vae-ft-ema; MAR's decoder has
# attention only in the middle (LTH14/mar, models/vae.py); VA-VAE is the released f16d32-dinov2 trained longest
EXTERNAL_TOKENIZERS = {
    "sd-vae-f8d4": ExternalTokenizer(
        config=AutoencoderConfig(ch_mult=(1, 2, 4, 4), attn_resolutions=(), z_channels=4, library="diffusers")
    ),
    "mar-vae-f16d16": ExternalTokenizer(config=AutoencoderConfig(z_channels=16, decoder_attention=False)),
    "va-vae": ExternalTokenizer(config=AutoencoderConfig(), foundation="dinov2"),
}


# Generators


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """Shape of a diffusion transformer.

    grid is the side of the latent in cells and in_channels its channels; the null label of guidance is
    num_classes and exists when label_dropout > 0. With learned_variance the number of output channels doubles, for
    models/diffusion.py. Raises ValueError for sizes that do not fit together.
    """

    name: str
    grid: int
    in_channels: int
    num_classes: int
    patch: int
    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    label_dropout: float = 0.1
    qk_norm: bool = False
    swiglu: bool = True
    rope: bool = True
    rms_norm: bool = True
    adaln_shift: bool = True
    learned_variance: bool = False

    def __post_init__(self) -> None:
        if self.patch < 1 or self.grid % self.patch:
            fitting = [p for p in range(1, self.grid + 1) if self.grid % p == 0]
            raise ValueError(
                f"{self.name}: patch {self.patch} does not divide the latent grid {self.grid}; "
                f"these do: {', '.join(map(str, fitting))}"
            )
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"{self.name}: width {self.width} must be a multiple of 4 and of heads {self.heads}")
        if self.rope and (self.width // self.heads) % 4:
            raise ValueError(
                f"{self.name}: rotary embeddings need a head width in multiples of 4, got {self.width} / {self.heads}"
            )
        if not 0 <= self.label_dropout < 1:
            raise ValueError(f"{self.name}: label_dropout must lie in [0, 1), got {self.label_dropout}")
        if self.mlp_width < 1:
            raise ValueError(f"{self.name}: mlp_ratio {self.mlp_ratio} leaves the MLP without width; the default is 4")

    @property
    def tokens(self) -> int:
        """Sequence length N."""
        return (self.grid // self.patch) ** 2

    @property
    def out_channels(self) -> int:
        """Channels of the prediction."""
        return 2 * self.in_channels if self.learned_variance else self.in_channels

    @property
    def mlp_width(self) -> int:
        """Hidden width of a block's MLP; 2/3 of it for a gated MLP, which keeps the parameter count, as released."""
        hidden = int(self.width * self.mlp_ratio)
        return int(2 / 3 * hidden) if self.swiglu else hidden

    def layout(self) -> dict[str, Any]:
        """The settings in which two generators of one network agree; the label dropout rate is not among them."""
        fields = dataclasses.asdict(self)
        del fields["mlp_ratio"], fields["label_dropout"]
        return {**fields, "mlp_width": self.mlp_width, "null label": self.label_dropout > 0}


def parse_generator(spec: str) -> tuple[str, str, int]:
    """Parse `LightningDiT-B/1` into (family, size, patch). Raises ValueError, with the nearest names, if it fails."""
    form = (
        f"The form is <family>-<size>/<patch>. Families: {', '.join(GENERATOR_FAMILIES)}; "
        f"sizes: {', '.join(GENERATOR_SIZES)}."
    )
    names = [
        f"{family}-{size}/{patch}" for family in GENERATOR_FAMILIES for size in GENERATOR_SIZES for patch in (1, 2)
    ]
    found = re.fullmatch(r"([A-Za-z]+)-(\w+)/([1-9]\d*)", spec)
    if found is None:
        raise ValueError(f"{spec!r} is no generator; {nearest(spec, names)}. {form}")
    for what, name, valid in (("family", found[1], GENERATOR_FAMILIES), ("size", found[2], GENERATOR_SIZES)):
        if name not in valid:
            raise ValueError(f"unknown {what} {name!r} in generator {spec!r}; {nearest(name, valid)}. {form}")
    return found[1], found[2], int(found[3])


def generator_config(spec: str, *, grid: int, in_channels: int, num_classes: int, **options: Any) -> GeneratorConfig:
    """The configuration named by `spec` for latents of grid x grid x in_channels.

    options override the family's choices (GENERATOR_OPTIONS), for the rungs of Table 1. Raises ValueError
    for an unknown name or option, an option of another type, or a patch that does not divide the grid.
    """
    family, size, patch = parse_generator(spec)
    for option, value in options.items():
        if option not in GENERATOR_OPTIONS:
            raise ValueError(f"unknown generator option {option!r}; {nearest(option, GENERATOR_OPTIONS)}")
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not (number if option in NUMERIC_OPTIONS else isinstance(value, bool)):
            kind = "a number" if option in NUMERIC_OPTIONS else "True or False"
            raise ValueError(f"generator option {option} must be {kind}, got {value!r}")
    depth, width, heads = GENERATOR_SIZES[size]
    return GeneratorConfig(
        name=spec, grid=grid, in_channels=in_channels, num_classes=num_classes,
        patch=patch, width=width, depth=depth, heads=heads,
        **{**GENERATOR_FAMILIES[family], **options},
    )  # fmt: skip
