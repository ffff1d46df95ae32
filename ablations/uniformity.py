"""Does a generator do better where the latents are spread more evenly?

Mirrors Table 6 of the paper (arXiv 2501.01423): the two widest latents, plain and with each foundation model, with the
smallest generator. All runs are also runs of `frontier`, so after it nothing is left to train. Each tokenizer's row
holds how evenly its latents are spread; the figure of this name plots gFID against it.

We would change our mind if, at one width, gFID did not rank the tokenizers in the same order as their unevenness.
"""

from ablations.frontier import runs as frontier_runs
from study.plan.runs import Run
from study.plan.scales import Scale

QUESTION = "Does a generator do better where the latents are spread more evenly?"
SOURCE = "Table 6"


def runs(scale: Scale) -> list[Run]:
    """Runs of the frontier; ValueError if the scale aligns no tokenizer."""
    if not scale.foundation_models:
        raise ValueError(f"scale {scale.name} aligns no tokenizer, so uniformity has nothing to compare")
    tokenizers = tuple(f"f{scale.downsampling}d{width}" for width in scale.latent_channels[-2:])
    smallest = [run for run in frontier_runs(scale) if run.generator == scale.generators[0]]
    return [run for run in smallest if run.tokenizer.partition("+")[0].split("-")[0] in tokenizers]
