"""Specs: the fully resolved settings of each of the six stages. Does not import torch, so that planning is fast.

All fields are part of a stage's fingerprint but those declared with `outside_identity`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from models.configs import AutoencoderConfig, GeneratorConfig
from models.regularisation import Regularisation
from study.core.compute import Compute
from study.core.settings import added_later, outside_identity
from study.plan.data_spec import DataSpec
from study.plan.judge_spec import JudgeSpec


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A later phase of a tokenizer's training, which continues from the current weights (also the discriminator's).

    This is how the authors chain trainings by hand (LightningDiT, vavae/configs/f16d32_vfdinov2_long.yaml, and
    `init_weight` in vavae/main.py): the optimizers are reset, and the discriminator is used from the first batch of the
    phase. Deviations: the order of the images continues instead of restarting, and the discriminator's loss reaches the
    tokenizer one batch earlier.
    """

    from_images: int  # total images seen when the phase starts
    vf_weight: float = 0.1
    vf_cosine_margin: float = 0.5
    vf_distance_margin: float = 0.25


@dataclass(frozen=True, kw_only=True)
class ForeignFile:
    """A published or user-supplied file that a stage reads, see study/plan/weight_files.py. Only its content, not its
    name, is part of a fingerprint."""

    name: str = outside_identity()  # a key of `FILES`, or the name of a file in the weights folder
    sha256: str  # 64 hex digits; empty in a plan made while the file is missing, which cannot run
    missing: str = ""  # its name in such a plan, to tell files apart until their content does


@dataclass(frozen=True, kw_only=True)
class TokenizerRecipe:
    """How a tokenizer is trained. Losses are summed over an image's values and averaged over the batch."""

    budget_images: int  # images seen in the whole training
    batch_images: int
    learning_rate: float
    betas: tuple[float, float] = (0.5, 0.9)
    warmup_images: int = 0  # linear; as the decay, of the discriminator's rate too
    final_learning_rate: float = 1.0  # cosine decay to this fraction of the rate; 1 is no decay
    l1_weight: float = 1.0
    l2_weight: float = 0.0
    perceptual_weight: float = 0.0
    perceptual_net: str = "lite0"
    perceptual_size: int = 64  # pixels; smaller images are enlarged to this size
    kl_weight: float = 1e-6
    gan_weight: float = 0.0  # of the PatchGAN hinge loss, times the adaptive weight; 0 is no GAN
    gan_start_images: int = 0
    gan_width: int = 64
    vf_weight: float = 0.1  # of the VF loss, times the adaptive weight; unused without a foundation model
    vf_cosine_weight: float = 1.0
    vf_distance_weight: float = 1.0
    vf_cosine_margin: float = 0.5
    vf_distance_margin: float = 0.25
    # later phases; this recipe is the first. The learning rate schedule spans all
    phases: tuple[Phase, ...] = ()

    def at(self, images_seen: int) -> TokenizerRecipe:
        """The recipe for the batch that starts at this number of images seen."""
        started = [phase for phase in self.phases if phase.from_images <= images_seen]
        if not started:
            return self
        return replace(
            self,
            gan_start_images=min(self.gan_start_images, started[0].from_images),
            vf_weight=started[-1].vf_weight,
            vf_cosine_margin=started[-1].vf_cosine_margin,
            vf_distance_margin=started[-1].vf_distance_margin,
        )


@dataclass(frozen=True, kw_only=True)
class FoundationRecipe:
    """Input and feature grid of the foundation model, with whose features latents are aligned."""

    input_size: int  # pixels; 0 is the model's own size
    stride: int  # input pixels per feature
    standardise: bool  # features to mean 0 and standard deviation 1 per channel over the training images
    # normalise pixels with the mean and standard deviation of the model's own training, not to [-1, 1] as the released
    # code does; False for lite0, which was trained with [-1, 1]
    own_statistics: bool = False
    bfloat16: bool | None = added_later()  # matrix products in bfloat16; None, and False in a scale: in float32


@dataclass(frozen=True, kw_only=True)
class Repa:
    """Alignment of a generator's hidden tokens with a foundation model while it is trained, see models/repa.py."""

    weight: float = 0.5  # of the mean cosine; 0 is no alignment
    model: str = ""  # the foundation model; empty: the scale's last one
    depth: int = 0  # blocks in front of the tokens; 0: see blocks_of
    projector: str = "mlp"  # or "conv"
    # features are normalised over the cells of an image, with this share of their mean subtracted; 0: not at all
    spatial_norm: float = 0.0

    def blocks_of(self, depth: int) -> int:
        """Blocks in front of the tokens, of a generator with this many: by default a third of them and at most 8, which
        are the published 4 of B's 12, and 8 of L's 24 and of XL's 28."""
        return self.depth or max(1, min(8, depth // 3))


REPA = {"repa": Repa(), "irepa": Repa(weight=1.0, projector="conv", spatial_norm=0.6)}  # as published


@dataclass(frozen=True, kw_only=True)
class GeneratorRecipe:
    """How a generator is trained on normalised latents.

    Budget and marks are requests along one training, whose course does not depend on them: a training that was asked
    for 80 epochs goes on to 160.
    """

    budget_images: int = outside_identity()
    snapshot_images: tuple[int, ...] = outside_identity()  # see `marks`
    batch_images: int
    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    warmup_images: int = 0
    gradient_clip: float = 1.0  # largest gradient norm
    ema_decay: float = 0.9999  # per step
    logit_normal: bool = True
    direction_weight: float = 1.0
    repa: Repa | None = added_later(named=REPA)
    objective: str = "rectified-flow"  # or "gaussian-diffusion", without logit_normal and direction_weight
    logit_normal_end_images: int | None = None  # images seen from which t is uniform instead
    logit_normal_mean: float = 0.0  # of the logit of t; larger is closer to data
    logit_normal_std: float = 1.0
    # values of a latent at which times are not shifted, see FitGenerator.timestep_shift; None: never shifted
    shift_base: int | None = added_later()

    @property
    def marks(self) -> tuple[int, ...]:
        """Images seen at which EMA and raw weights are saved, with a record: `snapshot_images` and the budget."""
        return tuple(sorted({*self.snapshot_images, self.budget_images}))


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How samples are drawn. Scores are comparable only with the same sampling, judge and reference (the protocol)."""

    samples: int
    chunk: int  # samples are drawn in groups of this size, whose borders are fixed
    solver: str  # euler, heun, dopri5; ddpm for generators with objective gaussian-diffusion
    steps: int  # of the solver (euler, ddpm: one network evaluation each; heun: two); ignored by dopri5
    timestep_shift: float = 1.0  # 1 is no shift
    guidance_scale: float = 1.0  # 1 is no guidance
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_channels: int = 0  # guidance applies to this many latent channels, from the first on; 0 is all
    label_scheme: str = "equal"  # or "random"
    weights: str = "ema"  # or "raw"
    seed: int = 0  # of noise and labels; samples with seeds from results.schema.SELECTION_SEED on only select settings


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What images are judged with and compared with, and whether they stay."""

    reference_images: int  # training images in the statistics that samples are compared with
    reconstruct_images: int  # number of test images that are reconstructed
    perceptual_net: str = "lite2"
    perceptual_size: int = 64  # pixels; smaller images are enlarged to this size
    reference: str = ""  # key of REFERENCES in study/plan/weight_files.py, replaces training images
    keep_samples: bool = False  # also where the samples of a run, or its reconstructions, take more than KEPT_BYTES


@dataclass(frozen=True, kw_only=True)
class FitTokenizer:
    data: DataSpec
    train_images: int  # this many images from the start of the training split
    tokenizer: str
    architecture: AutoencoderConfig
    foundation: FoundationRecipe | None
    foundation_weights: str = ""  # SHA-256 of the foundation model's weights; empty: without one, or not here yet
    perceptual_weights: str = ""  # of the perceptual net's
    recipe: TokenizerRecipe
    seed: int
    compute: Compute
    pretrained: ForeignFile | None = None  # pretrained weights, used instead of a training
    regularisation: Regularisation | None = added_later()  # of the regularisers in the tokenizer's name


@dataclass(frozen=True, kw_only=True)
class Reconstruct:
    data: DataSpec
    images: int  # number of images of the test split
    perceptual_net: str
    perceptual_size: int
    perceptual_weights: str  # SHA-256; empty: not here yet
    compute: Compute
    keep: bool = outside_identity(True)  # the pictures stay once they are judged; else they are made again for others


@dataclass(frozen=True, kw_only=True)
class Encode:
    data: DataSpec
    train_images: int
    compute: Compute
    stored: str = "posterior"  # mean and standard deviation; or "sample": one sample per view, as released
    pretrained: ForeignFile | None = None  # published latent statistics; nothing is encoded then


@dataclass(frozen=True, kw_only=True)
class FitGenerator:
    tokenizer: str
    architecture: GeneratorConfig
    recipe: GeneratorRecipe
    seed: int
    compute: Compute
    pretrained: ForeignFile | None = None  # pretrained weights, used instead of a training
    foundation: FoundationRecipe | None = added_later()  # of the recipe's repa
    foundation_weights: str | None = added_later()  # SHA-256; empty: not here yet

    @property
    def timestep_shift(self) -> float:
        """The factor s of the map t -> s t / (1 + (s - 1) t) of times in training, and of the time grid in sampling.

        s = sqrt(shift_base / values of a latent): the more values, the closer to noise, since independent noise on
        many alike values hides less. RAE (arXiv 2510.11690; bytetriper/RAE, src/train.py and
        src/stage2/transport/transport.py) maps t -> a t / (1 + (a - 1) t) with a = sqrt(values / 4096) and t = 0 data;
        with t = 1 data, as here, that is s = 1 / a. It refuses a below 1, which is a latent of fewer values; here their
        times shift towards data.
        """
        if self.recipe.shift_base is None:
            return 1.0
        values = self.architecture.in_channels * self.architecture.grid**2
        return math.sqrt(self.recipe.shift_base / values)


@dataclass(frozen=True, kw_only=True)
class Sample:
    images_seen: int
    sampling: Sampling
    compute: Compute
    keep: bool = outside_identity(True)  # as of Reconstruct

    @property
    def images(self) -> int:
        """Number of pictures, as of Reconstruct."""
        return self.sampling.samples


@dataclass(frozen=True, kw_only=True)
class Judge:
    data: DataSpec
    judge: JudgeSpec
    reference_images: int  # of the training split for samples; for reconstructions, their own inputs
    compute: Compute
    reference: ForeignFile | None = None  # one of ADM's reference files, used instead of training images


Spec = FitTokenizer | Reconstruct | Encode | FitGenerator | Sample | Judge
