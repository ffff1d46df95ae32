"""The generator: LightningDiT, a diffusion transformer conditioned on time and class; DiT if its options are off.

Source: Yao et al. 2025 (arXiv 2501.01423), section 4 and Table 1, after DiT (arXiv 2212.09748);
`hustvl/LightningDiT`, models/lightningdit.py. Parameter and buffer names are the released ones. Deviations,
none of which changes a value beyond rounding: patches are embedded as a matrix product, the norm's scale
and adaLN's are one factor, all queries and keys rotate in one complex product. Label dropout is the
caller's (drop_labels).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.attention import attend
from models.configs import TIME_FREQUENCIES, GeneratorConfig


class LightningDiT(nn.Module):
    """Velocity of a noisy latent; with learned variance, noise and variance (models/diffusion.py).

    With `rng`, weights are drawn from it (see initialize); without, they are PyTorch's defaults, to be replaced by
    loaded ones. checkpointing=True recomputes each block in the backward pass: less memory, about a third
    more work.
    """

    def __init__(
        self, config: GeneratorConfig, rng: torch.Generator | None = None, *, checkpointing: bool = False
    ) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = checkpointing
        side, d = config.grid // config.patch, config.width
        self.x_embedder = PatchEmbedder(config.in_channels, d, config.patch)
        self.t_embedder = TimeEmbedder(d)
        self.y_embedder = LabelEmbedder(config.num_classes + (config.label_dropout > 0), d)
        self.pos_embed = nn.Parameter(sincos_positions(d, side), requires_grad=False)
        self.feat_rope = Rope(d // config.heads, side) if config.rope else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.final_layer = FinalLayer(config)
        if rng is not None:
            initialize(self, rng)

    def forward(self, latent: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """Velocity, (B, C, h, w), in the dtype of the last matrix product (bfloat16 under autocast); (B, 2C, h, w)
        with learned variance.

        latent: (B, C, h, w) float, normalised per channel; t: (B,) float, 0 is noise and 1 is data, or (B,)
        timesteps of diffusion; labels: (B,) long in [0, num_classes], where num_classes is the null label of
        guidance (if label_dropout > 0). Raises ValueError for a latent of another shape.
        """
        return self.velocity_and_tokens(latent, t, labels, self.config.depth)[0]

    def velocity_and_tokens(self, latent: Tensor, t: Tensor, labels: Tensor, depth: int) -> tuple[Tensor, Tensor]:
        """The same, and the hidden tokens (B, N, D) behind this many blocks, from 1 to all of them."""
        c = self.config
        if latent.shape[1:] != (c.in_channels, c.grid, c.grid):
            raise ValueError(
                f"{c.name} takes latents (B, {c.in_channels}, {c.grid}, {c.grid}), got {tuple(latent.shape)}"
            )
        x = self.x_embedder(latent) + self.pos_embed  # (B, N, D)
        # Every adaLN takes the same SiLU of the condition, so it is computed once.
        condition = F.silu(self.t_embedder(t) + self.y_embedder(labels))  # (B, D)
        rotation = self.feat_rope.rotation() if self.feat_rope is not None else None
        for number, block in enumerate(self.blocks, start=1):
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, condition, rotation, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, condition, rotation)
            if number == depth:
                tokens = x
        return unpatchify(self.final_layer(x, condition), c.out_channels, c.patch), tokens


def drop_labels(labels: Tensor, drop: Tensor, num_classes: int) -> Tensor:
    """Labels (B,) with the null label, num_classes, where the boolean mask `drop` (B,) is set."""
    if drop.dtype != torch.bool or drop.shape != labels.shape:
        raise ValueError(
            f"drop must be a boolean mask of shape {tuple(labels.shape)}, got {drop.dtype} {tuple(drop.shape)}"
        )
    return torch.where(drop, num_classes, labels)


def initialize(generator: LightningDiT, rng: torch.Generator) -> None:
    """Draw all weights from `rng`, as released.

    Xavier-uniform matrices with zero biases, N(0, 0.02) for the label table and the time MLP, and zeros for every adaLN
    and the output, so that each block starts as the identity and the velocity as 0.
    """
    for module in generator.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=rng)
            nn.init.zeros_(module.bias)
        elif isinstance(module, RMSNorm):
            nn.init.ones_(module.weight)
    patch = generator.x_embedder.proj
    nn.init.xavier_uniform_(patch.weight.flatten(1), generator=rng)  # as the linear map it is
    assert patch.bias is not None
    nn.init.zeros_(patch.bias)
    nn.init.normal_(generator.y_embedder.embedding_table.weight, std=0.02, generator=rng)
    for linear in (m for m in generator.t_embedder.mlp if isinstance(m, nn.Linear)):
        nn.init.normal_(linear.weight, std=0.02, generator=rng)
    for layer in (*generator.blocks, generator.final_layer):
        nn.init.zeros_(layer.adaLN_modulation[1].weight)
        nn.init.zeros_(layer.adaLN_modulation[1].bias)
    nn.init.zeros_(generator.final_layer.linear.weight)
    nn.init.zeros_(generator.final_layer.linear.bias)


# Patches to tokens and back


def patchify(latent: Tensor, patch: int) -> Tensor:
    """(B, C, h, w) to tokens (B, N, C * patch * patch), row by row; within a token channels come first."""
    b, c, h, w = latent.shape
    x = latent.reshape(b, c, h // patch, patch, w // patch, patch)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(b, -1, c * patch * patch)


def unpatchify(tokens: Tensor, channels: int, patch: int) -> Tensor:
    """Tokens (B, N, patch * patch * channels) to (B, channels, h, w); channels come last in a token, as in DiT."""
    b, n, _ = tokens.shape
    side = math.isqrt(n)
    x = tokens.reshape(b, side, side, patch, patch, channels)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(b, channels, side * patch, side * patch)


class PatchEmbedder(nn.Module):
    """Patches to tokens. The weight has a convolution's shape, as released, but is used as a matrix.

    So tokens are contiguous; a convolution would leave them transposed for all following layers.
    """

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, latent: Tensor) -> Tensor:
        return F.linear(patchify(latent, self.patch), self.proj.weight.flatten(1), self.proj.bias)


def sincos_positions(width: int, side: int) -> Tensor:
    """Fixed embedding (1, side * side, width): the first half of the width encodes the column, the second
    the row; in each, sines then cosines at frequencies 10000^(-i / (width / 4))."""
    omega = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * omega
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)  # (side, D / 2)
    columns, rows = axis[None].expand(side, -1, -1), axis[:, None].expand(-1, side, -1)
    return torch.cat([columns, rows], dim=2).reshape(1, side * side, width).float()


class Rope(nn.Module):
    """Rotary positions in two dimensions: the first half of a head's pairs turns with the row, the second
    with the column, at 10000^(-i / (E / 4)) radians a cell. Buffers are the released ones, each angle
    stored twice."""

    freqs_cos: Tensor
    freqs_sin: Tensor

    def __init__(self, head_width: int, side: int) -> None:
        super().__init__()
        half = head_width // 2
        omega = 1.0 / 10000.0 ** (torch.arange(0, half, 2).float() / half)
        angles = (torch.arange(side).float()[:, None] * omega).repeat_interleave(2, dim=1)  # (side, E / 2)
        rows, columns = angles[:, None].expand(-1, side, -1), angles[None].expand(side, -1, -1)
        both = torch.cat([rows, columns], dim=2).reshape(side * side, head_width)
        self.register_buffer("freqs_cos", both.cos())
        self.register_buffer("freqs_sin", both.sin())

    def rotation(self) -> Tensor:
        """Cosine and sine (N, 1, 1, E / 2, 2) float32, one angle per pair of neighbouring entries of a query or key."""
        cos, sin = self.freqs_cos[:, None, None, ::2], self.freqs_sin[:, None, None, ::2]
        return torch.stack([cos, sin], dim=-1).float()


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate each pair of neighbouring entries of x (B, N, K, M, E) by its position's angle; float32.

    As one complex product this took half the time of x cos + swap(x) sin, forward and backward on a CPU. When compiled,
    it is written in real numbers, because inductor fuses them with neighbouring operations but not complex numbers; the
    two differ by rounding.
    """
    if torch.compiler.is_compiling():
        a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
        cos, sin = rotation.unbind(-1)
        return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * torch.view_as_complex(rotation)).flatten(-2)


# Conditions


class TimeEmbedder(nn.Module):
    """t (B,) to (B, D): cosines and sines at frequencies from 1 to 1e-4, then an MLP. t is not multiplied by 1000."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(TIME_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        half = TIME_FREQUENCIES // 2
        omega = torch.exp(-math.log(10000) / half * torch.arange(half, dtype=torch.float32, device=t.device))
        angles = t.float()[:, None] * omega
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=1))


class LabelEmbedder(nn.Module):
    """Labels (B,) to (B, D); the last row of the table belongs to the null label."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(rows, width)

    def forward(self, labels: Tensor) -> Tensor:
        return self.embedding_table(labels)


# Blocks


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + 1e-6) * weight over the last dimension, in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], self.weight, eps=1e-6)


def plain_norm(width: int, rms: bool) -> nn.Module:
    """The norm before an adaLN: RMSNorm with a learned scale, or LayerNorm without parameters (DiT)."""
    return RMSNorm(width) if rms else nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)


class Modulation(NamedTuple):
    """adaLN's values for one branch, each (B, D): x + gate * branch(norm(x) * (1 + scale) + shift); shift None is 0."""

    shift: Tensor | None
    scale: Tensor
    gate: Tensor


def modulated(norm: nn.Module, x: Tensor, shift: Tensor | None, scale: Tensor) -> Tensor:
    """norm(x) * (1 + scale) + shift. RMSNorm's weight is multiplied into the scale (B, D), not into x (B, N, D)."""
    factor = 1 + scale
    if isinstance(norm, RMSNorm):
        factor = factor * norm.weight
        x = F.rms_norm(x, x.shape[-1:], eps=1e-6)
    else:
        x = norm(x)
    factor = factor.unsqueeze(1)
    return x * factor if shift is None else torch.addcmul(shift.unsqueeze(1).to(x.dtype), x, factor.to(x.dtype))


def gated(x: Tensor, gate: Tensor, branch: Tensor) -> Tensor:
    """x + gate * branch in one pass; the residual stream keeps its dtype."""
    return torch.addcmul(x, gate.unsqueeze(1).to(x.dtype), branch.to(x.dtype))


class Attention(nn.Module):
    """Self-attention over all tokens, with rotary positions and, as an option, norms on queries and keys."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        d = config.width
        self.heads = config.heads
        self.qkv = nn.Linear(d, 3 * d)
        self.proj = nn.Linear(d, d)
        norm = RMSNorm if config.rms_norm else nn.LayerNorm
        self.q_norm = norm(d // config.heads) if config.qk_norm else nn.Identity()
        self.k_norm = norm(d // config.heads) if config.qk_norm else nn.Identity()
        self.qk_norm = config.qk_norm

    def forward(self, x: Tensor, rotation: Tensor | None) -> Tensor:
        b, n, d = x.shape
        qkv = self.qkv(x).view(b, n, 3, self.heads, d // self.heads)  # (B, N, 3, M, E)
        qk, v = qkv.split((2, 1), dim=2)  # one split, so that its backward is one concatenation
        if self.qk_norm:
            qk = torch.stack([self.q_norm(qk[:, :, 0]), self.k_norm(qk[:, :, 1])], dim=2)
        if rotation is not None:
            qk = rotate(qk, rotation)
        q, k = qk.to(v.dtype).unbind(2)
        y = attend(q.transpose(1, 2), k.transpose(1, 2), v.squeeze(2).transpose(1, 2))
        return self.proj(y.transpose(1, 2).reshape(b, n, d))


class Mlp(nn.Module):
    """fc2(gelu(fc1(x))), with the tanh approximation: DiT's."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class SwiGLU(nn.Module):
    """w3(silu(x w1) * x w2), with w1 and w2 in one matrix."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class Block(nn.Module):
    """x + gate * attention(adaLN(x)), then the same with the MLP."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        d = config.width
        self.shift = config.adaln_shift
        self.norm1 = plain_norm(d, config.rms_norm)
        self.attn = Attention(config)
        self.norm2 = plain_norm(d, config.rms_norm)
        self.mlp = (SwiGLU if config.swiglu else Mlp)(d, config.mlp_width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(d, (6 if self.shift else 4) * d))

    def modulations(self, condition: Tensor) -> tuple[Modulation, Modulation]:
        """For attention and for the MLP, from the SiLU of the condition, (B, D)."""
        values = self.adaLN_modulation[1](condition)
        if self.shift:
            a, b, c, d, e, f = values.chunk(6, dim=1)
            return Modulation(a, b, c), Modulation(d, e, f)
        a, b, c, d = values.chunk(4, dim=1)
        return Modulation(None, a, b), Modulation(None, c, d)

    def forward(self, x: Tensor, condition: Tensor, rotation: Tensor | None) -> Tensor:
        m, n = self.modulations(condition)
        x = gated(x, m.gate, self.attn(modulated(self.norm1, x, m.shift, m.scale), rotation))
        return gated(x, n.gate, self.mlp(modulated(self.norm2, x, n.shift, n.scale)))


class FinalLayer(nn.Module):
    """Tokens (B, N, D) to patches (B, N, patch * patch * C); its adaLN always has a shift."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        d = config.width
        self.norm_final = plain_norm(d, config.rms_norm)
        self.linear = nn.Linear(d, config.patch**2 * config.out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(d, 2 * d))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation[1](condition).chunk(2, dim=1)
        return self.linear(modulated(self.norm_final, x, shift, scale))
