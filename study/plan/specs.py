"""What each of the five stages is asked to do, fully resolved. Torch-free, so that planning starts at once.

A field that comes later is declared with `later`, so that no earlier result loses its name."""

from __future__ import annotations

from dataclasses import dataclass, replace

from models.specs import AutoencoderConfig, GeneratorConfig
from study.core.compute import Compute
from study.core.settings import later
from study.plan.data_spec import DataSpec
from study.plan.judge_spec import JudgeSpec


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A later part of a tokenizer's training, which goes on from the weights so far, the discriminator's too.

    As its authors chain trainings by hand (LightningDiT, vavae/configs/f16d32_vfdinov2_long.yaml, and `init_weight` in
    vavae/main.py): the optimizers start anew and the discriminator plays from the phase's first batch. Deviations: the
    order of the images goes on instead of starting again, and the tokenizer feels the discriminator one batch earlier.
    """

    from_images: int  # images seen in all when it starts
    vf_weight: float = 0.1
    vf_cosine_margin: float = 0.5
    vf_distance_margin: float = 0.25


@dataclass(frozen=True, kw_only=True)
class ForeignFile:
    """A file of others that a stage reads, see study/plan/weight_files.py. It is known by its content: its name moves
    no fingerprint."""

    name: str  # in `FILES`, or of a file in the weights folder
    sha256: str  # 64 hex digits; empty in a plan that is made while the file is not there, and cannot run


@dataclass(frozen=True, kw_only=True)
class TokenizerRecipe:
    """How a tokenizer is trained. Losses are summed over an image's values and averaged over the batch."""

    budget_images: int  # images seen in all
    batch_images: int
    learning_rate: float
    betas: tuple[float, float] = (0.5, 0.9)
    warmup_images: int = 0  # linear
    final_learning_rate: float = 1.0  # cosine decay to this share of the rate; 1 is none
    l1_weight: float = 1.0
    l2_weight: float = 0.0
    perceptual_weight: float = 0.0
    perceptual_net: str = "lite0"
    perceptual_size: int = 64  # pixels that smaller pictures are enlarged to
    kl_weight: float = 1e-6
    gan_weight: float = 0.0  # hinge PatchGAN times its adaptive weight; 0 is none
    gan_start_images: int = 0
    gan_width: int = 64
    vf_weight: float = 0.1  # times the adaptive weight; unused without a foundation model
    vf_cosine_weight: float = 1.0
    vf_distance_weight: float = 1.0
    vf_cosine_margin: float = 0.5
    vf_distance_margin: float = 0.25
    phases: tuple[Phase, ...] = later(())  # after the first, which is this recipe; learning_rate's course spans them

    def at(self, images_seen: int) -> TokenizerRecipe:
        """The recipe of the batch that starts after so many images seen."""
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
    """How the foundation model sees an image, and what is aligned with."""

    input_size: int  # pixels; 0 is the model's own
    stride: int  # pixels of its input per feature
    standardise: bool  # features to mean 0 and spread 1 per channel over the training images
    # pixels enter by the mean and spread that the model was trained with, not in [-1, 1] as released; lite0's are those
    own_statistics: bool = later(False)


@dataclass(frozen=True, kw_only=True)
class GeneratorRecipe:
    """How a generator is trained on normalised latents."""

    budget_images: int
    snapshot_images: tuple[int, ...]  # images seen at which the EMA weights are kept
    batch_images: int
    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    warmup_images: int = 0
    gradient_clip: float = 1.0  # norm
    ema_decay: float = 0.9999  # per step
    logit_normal: bool = True
    direction_weight: float = 1.0
    objective: str = later("rectified-flow")  # or "gaussian-diffusion", without logit_normal and direction_weight
    logit_normal_end_images: int | None = later(None)  # images seen from which t is uniform after all
    logit_normal_mean: float = later(0.0)  # of the logit of t: more is nearer data
    logit_normal_std: float = later(1.0)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How samples are drawn: with the judge and the reference, the protocol that must match to share an axis."""

    samples: int
    chunk: int  # samples are drawn in aligned groups of this many
    solver: str  # euler, heun, dopri5; ddpm for generators trained by gaussian-diffusion
    steps: int  # evaluations of the network (euler, ddpm) or steps (heun); ignored by dopri5
    timestep_shift: float = 1.0  # 1 is none
    guidance_scale: float = 1.0  # 1 is none
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_channels: int = 0  # the first so many latent channels; 0 is all
    label_scheme: str = "equal"  # or "random"
    weights: str = "ema"  # or "raw"
    seed: int = 0  # of noise and labels; from results.schema.SELECTION_SEED on, the samples only choose a setting


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Against what images are judged."""

    reference_images: int  # training images behind the statistics that samples are compared with
    reconstruct_images: int  # test images that are reconstructed
    perceptual_net: str = "lite2"
    perceptual_size: int = 64  # pixels that smaller pictures are enlarged to
    reference: str = later("")  # name in REFERENCES of study/plan/weight_files.py that takes the training images' place


@dataclass(frozen=True, kw_only=True)
class FitTokenizer:
    data: DataSpec
    train_images: int  # the first so many of the training split
    tokenizer: str
    architecture: AutoencoderConfig
    foundation: FoundationRecipe | None
    recipe: TokenizerRecipe
    seed: int
    compute: Compute
    given: ForeignFile | None = later(None)  # its weights, which are then not trained


@dataclass(frozen=True, kw_only=True)
class Reconstruct:
    data: DataSpec
    images: int  # of the test split
    perceptual_net: str
    perceptual_size: int
    judges: tuple[JudgeSpec, ...]
    compute: Compute


@dataclass(frozen=True, kw_only=True)
class Encode:
    data: DataSpec
    train_images: int
    compute: Compute
    stored: str = later("posterior")  # mean and spread of each; or "sample", one of each view, as released
    given: ForeignFile | None = later(None)  # the latents' statistics; then nothing is encoded


@dataclass(frozen=True, kw_only=True)
class FitGenerator:
    tokenizer: str
    architecture: GeneratorConfig
    recipe: GeneratorRecipe
    seed: int
    compute: Compute
    given: ForeignFile | None = later(None)  # its weights, which are then not trained


@dataclass(frozen=True, kw_only=True)
class Generate:
    data: DataSpec
    images_seen: int
    sampling: Sampling
    reference_images: int  # of the training split
    judges: tuple[JudgeSpec, ...]
    compute: Compute
    reference: ForeignFile | None = later(None)  # one of ADM's files, in place of training images


Spec = FitTokenizer | Reconstruct | Encode | FitGenerator | Generate
