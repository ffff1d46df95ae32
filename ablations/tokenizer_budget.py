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
    if recipe.phases:
        raise ValueError(f"scale {scale.name} has phases that begin at a number of images: --set tokenizer.phases=()")
    batches = (max(1, round(share * recipe.budget_images / recipe.batch_images)) for share in SHARES)
    budgets = [number * recipe.batch_images for number in dict.fromkeys(batches)]
    aligned = f"{scale.middle}-{scale.aligned_with}"
    # up and down again, so that each differs from the one before in one factor
    places = [(scale.middle, images) for images in budgets] + [(aligned, images) for images in reversed(budgets)]
    return [
        Run(
            tokenizer=name,
            generator=scale.generators[0],
            tokenizer_seed=tokenizer_seed,
            seed=seed,
            label=f"{name} of {images:,} images",
            changes={} if images == recipe.budget_images else {"tokenizer.budget_images": images},
        )
        for name, images in places
        for tokenizer_seed, seed in scale.repeats
    ]
