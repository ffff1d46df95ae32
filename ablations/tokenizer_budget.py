"""How far does it depend on the tokenizers' training, what alignment gains?

A plain tokenizer that saw few images uses few of its channels and loses colours, so alignment might gain no more than
longer training would. Plain and aligned tokenizers of middle width are trained on a quarter, half, all and twice the
scale's images, each under the smallest generator.

We would change our mind about alignment if its lead in gFID shrank with every doubling and were gone at the last.
"""

from study.plan.runs import Run
from study.plan.scales import Scale

QUESTION = "Does alignment gain less, the longer the tokenizers are trained?"
SOURCE = "ours"
SHARES = (0.25, 0.5, 1, 2)  # of the scale's budget


def runs(scale: Scale) -> list[Run]:
    """The middle width, plain and with the last foundation model; ValueError without alignment, or with phases."""
    recipe = scale.tokenizer
    if not scale.foundation_models:
        raise ValueError(f"scale {scale.name} aligns no tokenizer, so tokenizer_budget has nothing to compare")
    if recipe.phases:
        raise ValueError(f"scale {scale.name} has phases that begin at a number of images: --set tokenizer.phases=()")
    found = []
    for share in SHARES:
        images = max(1, round(share * recipe.budget_images / recipe.batch_images)) * recipe.batch_images
        for name in (scale.middle, f"{scale.middle}-{scale.foundation_models[-1]}"):
            found += [
                Run(
                    tokenizer=name,
                    generator=scale.generators[0],
                    tokenizer_seed=tokenizer_seed,
                    seed=seed,
                    label=f"{name} of {images:,} images",
                    changes={} if share == 1 else {"tokenizer.budget_images": images},
                )
                for tokenizer_seed, seed in scale.repeats
            ]
    return found
