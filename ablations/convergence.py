"""How many times fewer images does a generator need on an aligned tokenizer?

Mirrors Figure 4 (a, b) of the paper (arXiv 2501.01423): the two widest latents, plain and aligned with the last
foundation model, with the smallest generator. All runs are also runs of `frontier`, so after it nothing is left to
train.

We would change our mind if the aligned tokenizer's curve did not reach the last gFID of the plain one earlier.
"""

from ablations.frontier import runs as frontier_runs
from study.plan.runs import Run
from study.plan.scales import Scale

QUESTION = "How many times fewer images does a generator need on an aligned tokenizer?"
SOURCE = "Figure 4 (a, b)"


def runs(scale: Scale) -> list[Run]:
    """Runs of the frontier; ValueError if the scale aligns no tokenizer."""
    widths, models = scale.latent_channels[-2:], ("", f"-{scale.aligned_with}")
    tokenizers = {f"f{scale.downsampling}d{width}{model}" for width in widths for model in models}
    return [run for run in frontier_runs(scale) if run.tokenizer in tokenizers and run.generator == scale.generators[0]]
