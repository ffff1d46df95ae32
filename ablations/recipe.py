"""What does each step from DiT to LightningDiT bring?

Mirrors Table 1 of the paper (arXiv 2501.01423): ten rungs, each of which adds one change to the previous one. Images
seen and all other settings are equal. The paper's gFID-50K on ImageNet 256, XL, 80 epochs, no guidance: 19.50, 17.20,
16.59, 16.61, 13.99, 12.52, 10.10, 9.25, 7.13, 4.29.

The last rung has the scale's own recipe and its last generator's size; samples and judges are also the scale's (for
the paper's number of samples, `--set sampling.samples=50000`). Differences from the paper:

- Rungs 0 to 8 use the scale's narrowest plain tokenizer instead of SD-VAE f8d4; rung 9 uses the same one aligned with
  the scale's last foundation model instead of VA-VAE f16d32.
- Rung 9 is confounded, and marked as such: it changes tokenizer and patch at once, as in the paper. There the number of
  tokens stays equal, because f16 has half of f8's grid; here, with one downsampling, tokens and cost grow four times.
- Rungs 0 and 1 necessarily also differ in the sampler: rung 0 uses DiT's ancestral sampler with 250 steps (at a small
  scale ten times the scale's steps), rung 1 the scale's solver.

We would change our mind about a rung if gFID did not fall with it for every judge and over the seeds.
"""

from dataclasses import replace
from typing import Any

from models.configs import parse_generator
from study.plan.runs import Run
from study.plan.scales import Scale

QUESTION = "What does each step from DiT to LightningDiT bring?"
SOURCE = "Table 1"
FACTORS = {  # as the paper counts its steps
    "objective": ("generator.objective", "sampling.solver", "sampling.steps"),
    "batch and learning rate": ("generator.batch_images", "generator.learning_rate"),
}

STEPS = (  # what each rung adds to the one before, and what the paper claims of it
    ("+ rectified flow", "Rectified flow in place of Gaussian diffusion lowers gFID"),
    ("+ batch size x4 and learning rate x2", "Four times the batch and twice the learning rate lowers gFID"),
    ("+ AdamW beta2={beta2:g}", "AdamW beta2 0.95 lowers gFID"),
    ("+ logit-normal timesteps", "Logit-normal sampling of t lowers gFID"),
    ("+ velocity direction loss", "The velocity direction loss lowers gFID"),
    ("+ SwiGLU", "SwiGLU lowers gFID"),
    ("+ RMSNorm", "RMSNorm lowers gFID"),
    ("+ rotary positions", "Rotary positions lower gFID"),  # and that is LightningDiT
    ("+ patch 1 and aligned tokenizer", "Patch 1 on an aligned tokenizer lowers gFID"),
)
PAPER_IMAGES = 102_400_000  # seen by each rung: 400,000 steps of 256 or 100,000 of 1024, 80 epochs
DIT_STEPS = 250


def runs(scale: Scale) -> list[Run]:
    """Rungs 0 to 9 in order, once per pair of seeds; without rung 9 if the scale aligns no tokenizer."""
    recipe = scale.generator
    plain = f"f{scale.downsampling}d{min(scale.latent_channels)}"
    _, size, _ = parse_generator(scale.generators[-1])
    dit, lightning = f"DiT-{size}/2", f"LightningDiT-{size}/2"
    before: list[dict[str, Any]] = [  # what each of rungs 1 to 5 ends
        {
            "generator.objective": "gaussian-diffusion",
            "sampling.solver": "ddpm",
            "sampling.steps": min(DIT_STEPS, 10 * scale.sampling.steps),
        },
        {"generator.batch_images": recipe.batch_images // 4, "generator.learning_rate": recipe.learning_rate / 2},
        {"generator.betas": (recipe.betas[0], 0.999)},
        {"generator.logit_normal": False},
        {"generator.direction_weight": 0.0},
    ]
    training = [{key: value for part in before[rung:] for key, value in part.items()} for rung in range(6)]
    ladder = [
        *(Run(tokenizer=plain, generator=dit, changes=changes) for changes in training),
        Run(tokenizer=plain, generator=dit, options={"swiglu": True}),
        Run(tokenizer=plain, generator=dit, options={"swiglu": True, "rms_norm": True}),
        Run(tokenizer=plain, generator=lightning),
        *(
            Run(tokenizer=f"{plain}-{model}", generator=f"LightningDiT-{size}/1")
            for model in scale.foundation_models[-1:]
        ),
    ]
    labels = [dit, *(label.format(beta2=recipe.betas[1]) for label, _ in STEPS)]
    ladder = [replace(run, label=label) for run, label in zip(ladder, labels, strict=False)]
    budget: dict[str, Any] = {}
    if recipe.budget_images > PAPER_IMAGES:
        earlier = (mark for mark in recipe.snapshot_images if mark < PAPER_IMAGES)
        budget = {
            "generator.budget_images": PAPER_IMAGES,
            "generator.snapshot_images": (*earlier, PAPER_IMAGES),
        }
    return [
        replace(run, tokenizer_seed=tokenizer_seed, seed=seed, changes={**run.changes, **budget})
        for tokenizer_seed, seed in scale.repeats
        for run in ladder
    ]
