"""Scales: the same study sized for a test, a laptop or a cluster. A scale contains data only, no code."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field, replace
from typing import Any

from models.configs import VF_PARTS
from models.names import nearest
from models.regularisation import REGULARISERS, Regularisation
from study.core.compute import Execution
from study.core.settings import added_later
from study.plan.data_spec import GIVEN_AS_FOLDER
from study.plan.specs import Evaluation, FoundationRecipe, GeneratorRecipe, Phase, Sampling, TokenizerRecipe


@dataclass(frozen=True, kw_only=True)
class AutoencoderShape:
    """The shape of the tokenizer's network, except what data and tokenizer spec determine."""

    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    attention_grids: tuple[int, ...] = ()  # side lengths of the feature maps with attention
    unshuffle: int = 1
    norm_groups: int = 32


@dataclass(frozen=True, kw_only=True)
class Scale:
    """All settings that depend on the size of a study."""

    name: str
    device: str = "any"  # cpu, cuda, or any: a GPU if this machine has one
    precision: str = "float32"  # of matrix products in generators, trained and sampled; or bfloat16
    tokenizer_precision: str = "float32"  # of tokenizers' training; or bfloat16, or tf32: TF32 convolutions
    data: str  # name of a data set; --data replaces it
    resolution: int  # pixels
    train_images: int  # this many images from the start of the training split are used
    downsampling: int
    latent_channels: tuple[int, ...]
    foundation_models: tuple[str, ...]
    generators: tuple[str, ...]
    generator_options: tuple[str, ...] = ()  # of every generator's network, such as label_dropout=0.05
    seeds: tuple[int, ...] = (0,)  # of the generators: each is one repeat of the study
    tokenizer_seeds: tuple[int, ...] = (0,)  # used in turn by the repeats; as many as `seeds` make them independent
    judges: tuple[tuple[str, int], ...] = ()  # name and input size in pixels; the first is the main one
    autoencoder: AutoencoderShape
    foundation: FoundationRecipe
    tokenizer: TokenizerRecipe
    regularisation: Regularisation = field(default_factory=Regularisation)  # of tokenizers that name a regulariser
    generator: GeneratorRecipe
    sampling: Sampling
    evaluation: Evaluation
    stored_latents: str = "posterior"  # what generators are trained on, see Encode.stored
    execution: Execution = field(default_factory=Execution)
    guidance_scales: tuple[float, ...] = (1.0, 1.25, 1.5, 2.0, 3.0)  # of the ablation guidance; 1 is no guidance
    regularisers: tuple[str, ...] = ()  # of tokenizers in the ablation frontier, such as noise or noise+eq
    representation_autoencoders: tuple[str, ...] = ()  # their encoders, in the ablation frontier, such as lite0
    compared_models: tuple[str, ...] = ()  # in the ablation foundation_models; empty: the field foundation_models
    fallback_precision: str | None = added_later()  # where a GPU does not multiply in bfloat16; None: the same
    fallback_models: tuple[str, ...] | None = added_later()  # where those of foundation_models lack weights
    latent_regularisers: tuple[str, ...] = (*VF_PARTS, *REGULARISERS)  # in the ablation latents
    deciding_repeats: int = 3  # at least, of where_to_align and of some tokenizers of latents

    @property
    def middle(self) -> str:
        """The plain tokenizer of middle width (the wider of two), for ablations at one width (the paper's f16d32)."""
        return f"f{self.downsampling}d{self.latent_channels[len(self.latent_channels) // 2]}"

    @property
    def aligned_with(self) -> str:
        """The last foundation model, for ablations that align with one; ValueError if the scale aligns no tokenizer."""
        if not self.foundation_models:
            raise ValueError(
                f"scale {self.name} aligns no tokenizer, and this ablation asks about one that is: name a foundation "
                "model, such as --set foundation_models=lite0"
            )
        return self.foundation_models[-1]

    @property
    def network_options(self) -> dict[str, Any]:
        """`generator_options` by name; ValueError for one that is not NAME=VALUE."""
        options: dict[str, Any] = {}
        for text in self.generator_options:
            name, _, value = text.partition("=")
            try:
                options[name.strip()] = ast.literal_eval(value.strip())
            except (ValueError, SyntaxError):
                raise ValueError(
                    f"generator_options takes NAME=VALUE, a number or True or False, got {text!r}"
                ) from None
        return options

    @property
    def turns_pictures(self) -> bool:
        """Whether pictures are turned as their EXIF orientation says: ADM does not turn those of ImageNet
        (guided-diffusion, image_datasets.py)."""
        return self.data not in GIVEN_AS_FOLDER

    @property
    def repeats(self) -> list[tuple[int, int]]:
        """(tokenizer seed, generator seed) of each repeat."""
        return [(self.tokenizer_seeds[i % len(self.tokenizer_seeds)], seed) for i, seed in enumerate(self.seeds)]

    @property
    def enough_repeats(self) -> list[tuple[int, int]]:
        """`repeats`, and as many more as `deciding_repeats` asks for, independent ones."""
        own = self.repeats
        others = [(seed, seed) for seed in range(self.deciding_repeats + len(own)) if (seed, seed) not in own]
        return own + others[: max(0, self.deciding_repeats - len(own))]


def smoke() -> Scale:
    """Seconds, for tests: runs every stage and draws every figure; the results mean nothing."""
    return Scale(
        name="smoke",
        data="fashion-mnist",
        resolution=32,
        train_images=256,
        downsampling=4,
        latent_channels=(4,),
        foundation_models=("lite0",),
        generators=("LightningDiT-XXS/2",),
        judges=(("efficientnet_lite2", 64),),
        autoencoder=AutoencoderShape(ch=16, ch_mult=(1, 2), num_res_blocks=1, unshuffle=2, norm_groups=8),
        foundation=FoundationRecipe(input_size=64, stride=16, standardise=True),
        tokenizer=TokenizerRecipe(budget_images=256, batch_images=32, learning_rate=1e-3),
        generator=GeneratorRecipe(
            budget_images=512, snapshot_images=(256, 512), batch_images=32, learning_rate=1e-3, ema_decay=0.9
        ),
        sampling=Sampling(samples=128, chunk=64, solver="euler", steps=4),
        evaluation=Evaluation(reference_images=256, reconstruct_images=128),
        guidance_scales=(1.0, 1.5, 3.0),
        latent_regularisers=("noise",),
        deciding_repeats=1,
    )


def desk() -> Scale:
    """Minutes on a laptop of two cores: two latent widths, plain and aligned, one generator, three snapshots."""
    return Scale(
        name="desk",
        data="fashion-mnist",
        resolution=32,
        train_images=9_600,
        downsampling=4,
        latent_channels=(4, 16),
        foundation_models=("lite0",),
        generators=("LightningDiT-XXS/2",),
        judges=(("efficientnet_lite2", 64), ("classifier", 0)),
        autoencoder=AutoencoderShape(ch=24, ch_mult=(1, 2), num_res_blocks=1, unshuffle=2, norm_groups=8),
        foundation=FoundationRecipe(input_size=64, stride=8, standardise=True),
        tokenizer=TokenizerRecipe(
            budget_images=9_600,
            batch_images=8,  # with so few images, many small steps are better than few large ones
            learning_rate=2e-3,
            warmup_images=400,
            final_learning_rate=0.05,
            perceptual_weight=0.3,
            perceptual_size=32,
            vf_weight=0.5,
            vf_cosine_margin=0.0,
            vf_distance_margin=0.0,
        ),
        generator=GeneratorRecipe(
            budget_images=19_200,
            snapshot_images=(4_800, 9_600, 19_200),
            batch_images=16,
            learning_rate=1e-3,
            warmup_images=640,
            ema_decay=0.995,
        ),
        sampling=Sampling(samples=5_000, chunk=50, solver="euler", steps=5),
        evaluation=Evaluation(reference_images=5_000, reconstruct_images=5_000, perceptual_size=32),
    )


def desk_full() -> Scale:
    """Three hours on two cores: the recipe of `desk` on colour photographs, with four widths, two generators and three
    repeats: docs/results.md. results/desk-full/RECIPE.md says how the recipe was found."""
    base = desk()
    return replace(
        base,
        name="desk-full",
        data="cifar10",
        train_images=16_000,
        latent_channels=(4, 8, 16, 32),
        generators=("LightningDiT-XXS/2", "LightningDiT-XS/2"),
        seeds=(0, 1, 2),
        tokenizer_seeds=(0, 1, 2),
        tokenizer=replace(base.tokenizer, budget_images=38_400),
        generator=replace(base.generator, budget_images=20_480, snapshot_images=(2_560, 5_120, 10_240, 20_480)),
        sampling=replace(base.sampling, samples=3_000),
    )


def gpu() -> Scale:
    """An hour on one GPU of 16 GB or more, by the rates that docs/gpu.md states: the questions of `desk-full` with
    generators of the paper's family and smallest sizes, one patch per cell of the latent. No GPU has run it yet."""
    base = desk()
    return replace(
        base,
        name="gpu",
        device="cuda",
        precision="bfloat16",
        fallback_precision="float32",
        tokenizer_precision="tf32",
        data="cifar10",
        train_images=50_000,
        latent_channels=(8, 16, 32),
        foundation_models=("dinov2",),
        fallback_models=("lite0",),
        generators=("LightningDiT-S/1", "LightningDiT-B/1"),
        seeds=(0, 1, 2),
        tokenizer_seeds=(0, 1, 2),
        autoencoder=AutoencoderShape(ch=64, ch_mult=(1, 2), num_res_blocks=2, unshuffle=2),
        tokenizer=replace(
            base.tokenizer, budget_images=76_800, batch_images=32, learning_rate=1e-3, warmup_images=1_600
        ),
        generator=replace(
            base.generator,
            budget_images=51_200,
            snapshot_images=(12_800, 25_600, 51_200),
            batch_images=64,
            learning_rate=5e-4,
            warmup_images=2_560,
        ),
        sampling=replace(base.sampling, samples=10_000, chunk=500),
        evaluation=replace(base.evaluation, reference_images=10_000, reconstruct_images=10_000),
    )


def imagenet256() -> Scale:
    """The scale of the paper, on GPUs: Table 2 and Figures 1, 2 and 4. Needs ImageNet, with --data.

    Settings are those of the released code or the paper where they state them, as are the recipes' defaults. The paper
    does not say how long the generators of Table 2 were trained; 160 epochs (of 1,280,000 images) are from Figure 4.
    """
    epoch = 1_280_000
    return Scale(
        name="imagenet256",
        device="cuda",
        precision="bfloat16",
        # PyTorch's default, with which Lightning's `precision: 32` trained (LightningDiT, vavae/configs)
        tokenizer_precision="tf32",
        data="imagenet",
        resolution=256,
        train_images=1_281_167,
        downsampling=16,
        latent_channels=(16, 32, 64),
        foundation_models=("mae", "dinov2"),
        generators=("LightningDiT-B/1", "LightningDiT-L/1", "LightningDiT-XL/1"),
        judges=(("inception", 0),),
        autoencoder=AutoencoderShape(ch=128, ch_mult=(1, 1, 2, 2, 4), num_res_blocks=2, attention_grids=(16,)),
        foundation=FoundationRecipe(input_size=256, stride=16, standardise=False),
        tokenizer=TokenizerRecipe(
            budget_images=64_058_368,  # 50 epochs, rounded up to a whole batch
            batch_images=256,
            learning_rate=1e-4,
            perceptual_weight=1.0,
            perceptual_net="vgg",
            gan_weight=0.5,
            gan_start_images=640_256,  # step 5001 of a step counter that two optimizers increment
        ),
        generator=GeneratorRecipe(
            budget_images=160 * epoch,
            snapshot_images=(20 * epoch, 40 * epoch, 80 * epoch, 160 * epoch),
            batch_images=1024,
            learning_rate=2e-4,
        ),
        sampling=Sampling(samples=10_000, chunk=250, solver="dopri5", steps=250, label_scheme="random"),
        evaluation=Evaluation(
            reference_images=50_000, reconstruct_images=50_000, perceptual_net="vgg", reference="adm-imagenet256"
        ),
        stored_latents="sample",
        guidance_scales=(1.0, 1.5, 2.0, 3.0, 4.5, 6.7, 10.0),
        compared_models=("mae", "sam", "clip", "dinov2"),
    )


def imagenet256_system() -> Scale:
    """The system of the paper's Table 3, on GPUs, for the ablation `system`: the released tokenizer's long training in
    three phases (100, 15 and 15 epochs, each rounded up to a whole batch), and 800 epochs of the generator.

    Sampled without guidance, with 249 evaluations as in the released code (a grid of 250 points).
    """
    base = imagenet256()
    epoch = 1_280_000
    return replace(
        base,
        name="imagenet256-system",
        latent_channels=(32,),
        foundation_models=("dinov2",),
        generators=("LightningDiT-XL/1",),
        tokenizer=replace(
            base.tokenizer,
            budget_images=166_551_808,
            vf_weight=0.5,
            vf_cosine_margin=0.0,
            vf_distance_margin=0.0,
            phases=(
                Phase(from_images=128_116_736, vf_weight=0.1, vf_cosine_margin=0.0, vf_distance_margin=0.0),
                Phase(from_images=147_334_400, vf_weight=0.1, vf_cosine_margin=0.5, vf_distance_margin=0.25),
            ),
        ),
        generator=replace(
            base.generator,
            budget_images=800 * epoch,
            snapshot_images=(64 * epoch, 800 * epoch),
            logit_normal_end_images=600_000 * base.generator.batch_images,
        ),
        sampling=replace(base.sampling, samples=50_000, solver="euler", steps=249, timestep_shift=0.3),
    )


SCALES = {
    "smoke": smoke,
    "desk": desk,
    "desk-full": desk_full,
    "gpu": gpu,
    "imagenet256": imagenet256,
    "imagenet256-system": imagenet256_system,
}


def named_scale(name: str) -> Scale:
    """The scale of this name; ValueError, with the nearest ones, if there is none."""
    if name not in SCALES:
        raise ValueError(f"unknown scale {name!r}; {nearest(name, SCALES)}")
    return SCALES[name]()
