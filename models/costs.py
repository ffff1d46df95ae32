"""Costs of tokenizers and generators: parameters, FLOPs and memory, counted from their configurations without torch.

In FLOPs a multiply-add counts 2; only matrix products, convolutions and attention are counted. Memory is that of the
tensors which a forward pass saves for the backward pass: in a training they take nearly all that weights and optimizer
do not.
"""

from __future__ import annotations

import functools

from models.configs import LITE0_WIDTHS, TIME_FREQUENCIES, TRANSFORMERS, AutoencoderConfig, GeneratorConfig

# bytes that are saved per pixel of a picture, in float32: by a perceptual net, and by the discriminator of width 64
PERCEPTUAL_SAVED_BYTES = {"lite0": 770, "lite2": 990, "vgg": 2_440}
DISCRIMINATOR_SAVED_BYTES, DISCRIMINATOR_WIDTH = 350, 64
LITE0_FLOPS = {2: 3_328, 4: 48_352, 8: 290_176, 16: 2_482_336, 32: 14_850_496}  # per cell, by pixels per cell


@functools.cache
def flops_per_image(config: GeneratorConfig) -> int:
    """FLOPs of one forward pass for one image. A training step costs about three times as much."""
    n, d = config.tokens, config.width
    patch_values, out_values = config.patch**2 * config.in_channels, config.patch**2 * config.out_channels
    mlp_matrices = 3 if config.swiglu else 2
    per_token = 4 * d * d + mlp_matrices * d * config.mlp_width  # qkv and proj; the MLP
    attention = 2 * n * n * d  # scores and weighted values
    adaln = (6 if config.adaln_shift else 4) * d * d
    embed = n * patch_values * d + TIME_FREQUENCIES * d + d * d
    head = 2 * d * d + n * d * out_values
    return 2 * (embed + config.depth * (n * per_token + attention + adaln) + head)


def generator_parameters(config: GeneratorConfig) -> int:
    """Parameters of a generator, including its fixed position embedding."""
    n, d, hidden = config.tokens, config.width, config.mlp_width
    patch_values, out_values = config.patch**2 * config.in_channels, config.patch**2 * config.out_channels

    def linear(width_in: int, width_out: int) -> int:
        return width_in * width_out + width_out

    norm = d if config.rms_norm else 0
    qk_norm = 2 * (d // config.heads) * (1 if config.rms_norm else 2) if config.qk_norm else 0
    mlp = linear(d, (2 if config.swiglu else 1) * hidden) + linear(hidden, d)
    adaln = linear(d, (6 if config.adaln_shift else 4) * d)
    block = 2 * norm + linear(d, 3 * d) + qk_norm + linear(d, d) + mlp + adaln
    conditions = linear(TIME_FREQUENCIES, d) + linear(d, d) + (config.num_classes + (config.label_dropout > 0)) * d
    head = norm + linear(d, out_values) + linear(d, 2 * d)
    return linear(patch_values, d) + n * d + conditions + config.depth * block + head


def generator_saved_bytes(config: GeneratorConfig, *, half: bool) -> int:
    """Bytes that a training step saves per image, with fused attention.

    Args:
        half: matrix products are bfloat16, under autocast; norms, modulation and the residual stream stay float32.
    """
    n, d = config.tokens, config.width
    mlp = (4 if config.swiglu else 2) * config.mlp_width  # of the first layer both halves, and what they become
    narrow = 3 * d + mlp  # queries, keys and values
    wide = 11 * d + (2 * d if config.qk_norm else 0) - (0 if config.rope else 2 * d)
    if half:
        wide -= 2 * d
    block = n * (wide * 4 + narrow * (2 if half else 4)) + 16 * d * 4  # and values per image, of the modulation
    ends = 4 * (n * (8 * d + 4 * config.patch**2 * config.in_channels) + 8 * d)  # embedding, last layer, loss
    return config.depth * block + ends


PROJECTOR_WIDTH, OF_WIDTH = 2048, 768  # of REPA, at the generator's width from which on it is as published


def projector_width(generator_width: int) -> int:
    """Hidden width of REPA's MLP: the published 2048 from the width of B on, in proportion below, where it would cost
    more than the generator."""
    return min(PROJECTOR_WIDTH, PROJECTOR_WIDTH * generator_width // OF_WIDTH)


def projector_weights(projector: str, width: int, features: int) -> list[tuple[int, int]]:
    """Values in and out of each matrix of a projector (models/repa.py) from a generator of this width to features."""
    if projector == "conv":
        return [(9 * width, features)]
    hidden = projector_width(width)
    return [(width, hidden), (hidden, hidden), (hidden, features)]


def projector_parameters(projector: str, width: int, features: int) -> int:
    """Parameters of a projector, with its biases."""
    return sum(into * out + out for into, out in projector_weights(projector, width, features))


def projector_flops(projector: str, config: GeneratorConfig, features: int) -> int:
    """FLOPs of a projector's forward pass for one image."""
    return 2 * config.tokens * sum(into * out for into, out in projector_weights(projector, config.width, features))


LITE_FLOPS_PER_PIXEL = 16_000  # of EfficientNet-Lite0, from its published 0.4 billion multiply-adds at 224 px


def foundation_flops(name: str, side: int) -> int:
    """About the FLOPs of a foundation model for one image that it gets with this side in pixels: of a transformer two
    per weight and token."""
    if name not in TRANSFORMERS:
        return LITE_FLOPS_PER_PIXEL * side**2
    return _transformer_flops(name, (side // TRANSFORMERS[name].patch) ** 2)


def _transformer_flops(name: str, tokens: int) -> int:
    return 2 * TRANSFORMERS[name].megabytes * 10**6 // 4 * tokens


def autoencoder_parameters(config: AutoencoderConfig) -> int:
    """Parameters of a tokenizer: encoder, decoder and the two 1x1 convolutions between them; a frozen encoder and its
    convolution are not counted."""

    def conv(c_in: int, c_out: int, kernel: int = 3) -> int:
        return c_in * c_out * kernel**2 + c_out

    def block(c_in: int, c_out: int) -> int:
        shortcut = conv(c_in, c_out, 1) if c_in != c_out else 0
        return 2 * c_in + conv(c_in, c_out) + 2 * c_out + conv(c_out, c_out) + shortcut

    def attention(c: int) -> int:
        return 2 * c + 4 * conv(c, c, 1)

    def level(c_in: int, c_out: int, blocks: int, attended: bool) -> int:
        widths = [c_in] + [c_out] * blocks
        total = sum(block(widths[i], c_out) for i in range(blocks))
        return total + (blocks * attention(c_out) if attended else 0)

    sides = config.level_sides()
    channels = [config.ch * mult for mult in config.ch_mult]
    pixel_values, z, top = config.in_channels * config.unshuffle**2, config.z_channels, channels[-1]
    middle = 2 * block(top, top) + attention(top)

    encoder = conv(pixel_values, config.ch) + middle + 2 * top + conv(top, 2 * z)
    decoder = conv(z, top) + middle + 2 * channels[0] + conv(channels[0], pixel_values)
    for i, (side, c) in enumerate(zip(sides, channels, strict=True)):
        attended = side in config.attn_resolutions
        encoder += level(channels[i - 1] if i else config.ch, c, config.num_res_blocks, attended)
        above = channels[i + 1] if i + 1 < len(channels) else top
        decoder += level(above, c, config.num_res_blocks + 1, attended and config.decoder_attention)
        encoder += conv(c, c) if i + 1 < len(channels) else 0  # downsampling
        decoder += conv(c, c) if i else 0  # upsampling
    if config.frozen_encoder is None:
        decoder += encoder + conv(2 * z, 2 * z, 1)
    return decoder + conv(z, z, 1)


@functools.cache
def autoencoder_flops(config: AutoencoderConfig) -> tuple[int, int]:
    """FLOPs of encoding and of decoding one training image."""

    def conv(cells: int, c_in: int, c_out: int, kernel: int = 3) -> int:
        return 2 * cells * c_in * c_out * kernel**2

    def block(cells: int, c_in: int, c_out: int) -> int:
        shortcut = conv(cells, c_in, c_out, 1) if c_in != c_out else 0
        return conv(cells, c_in, c_out) + conv(cells, c_out, c_out) + shortcut

    def attention(cells: int, c: int) -> int:
        return 4 * conv(cells, c, c, 1) + 4 * cells * cells * c

    def middle(cells: int, c: int) -> int:
        return 2 * block(cells, c, c) + attention(cells, c)

    sides = config.level_sides()
    channels = [config.ch * mult for mult in config.ch_mult]
    pixel_values = config.in_channels * config.unshuffle**2
    z, top = config.z_channels, channels[-1]
    last = len(sides) - 1

    current = config.ch
    encode = conv(sides[0] ** 2, pixel_values, current)
    for level, (side, c) in enumerate(zip(sides, channels, strict=True)):
        for _ in range(config.num_res_blocks):
            encode += block(side**2, current, c)
            encode += attention(side**2, c) if side in config.attn_resolutions else 0
            current = c
        encode += conv(sides[level + 1] ** 2, c, c) if level < last else 0
    cells = sides[-1] ** 2
    encode += middle(cells, top) + conv(cells, top, 2 * z) + conv(cells, 2 * z, 2 * z, 1)

    decode = conv(cells, z, z, 1) + conv(cells, z, top) + middle(cells, top)
    current = top
    for level in range(last, -1, -1):
        side, c = sides[level], channels[level]
        for _ in range(config.num_res_blocks + 1):
            decode += block(side**2, current, c)
            decode += attention(side**2, c) if side in config.attn_resolutions and config.decoder_attention else 0
            current = c
        decode += conv(sides[level - 1] ** 2, c, c) if level else 0
    decode += conv(sides[0] ** 2, current, pixel_values)
    return encode if config.frozen_encoder is None else _frozen_encoder_flops(config), decode


@functools.cache
def autoencoder_saved_bytes(config: AutoencoderConfig) -> tuple[int, int]:
    """Bytes that encoding and decoding one training image saves, in float32; a frozen encoder saves nothing."""

    def block(cells: int, c_in: int, c_out: int) -> int:
        return cells * 3 * (c_in + c_out)  # of each half what norm, SiLU and convolution take

    def attention(cells: int, c: int) -> int:
        return 8 * cells * c

    sides, channels, last = config.level_sides(), [config.ch * mult for mult in config.ch_mult], len(config.ch_mult) - 1
    pixel_values, top = config.in_channels * config.unshuffle**2, channels[-1]
    middle = 2 * block(sides[-1] ** 2, top, top) + attention(sides[-1] ** 2, top)

    encode, current = sides[0] ** 2 * pixel_values, config.ch
    for level, (side, c) in enumerate(zip(sides, channels, strict=True)):
        for _ in range(config.num_res_blocks):
            encode += block(side**2, current, c)
            encode += attention(side**2, c) if side in config.attn_resolutions else 0
            current = c
        encode += side**2 * c if level < last else 0  # downsampling
    encode += middle + 3 * sides[-1] ** 2 * top

    decode, current = middle + 2 * sides[-1] ** 2 * config.z_channels, top
    for level in range(last, -1, -1):
        side, c = sides[level], channels[level]
        for _ in range(config.num_res_blocks + 1):
            decode += block(side**2, current, c)
            decode += attention(side**2, c) if side in config.attn_resolutions and config.decoder_attention else 0
            current = c
        decode += sides[level - 1] ** 2 * c if level else 0  # upsampling
    decode += 3 * sides[0] ** 2 * current
    return 0 if config.frozen_encoder else 4 * encode, 4 * decode


def _frozen_encoder_flops(config: AutoencoderConfig) -> int:
    """FLOPs of encoding one training image by a foundation model whose features have the latent's shape."""
    cells = config.grid**2
    assert config.frozen_encoder is not None
    if config.frozen_encoder != "lite0":
        return _transformer_flops(config.frozen_encoder, cells)
    (stride,) = (stride for stride, width in LITE0_WIDTHS.items() if width == config.z_channels)
    return LITE0_FLOPS[stride] * cells
