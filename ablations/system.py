"""How far does the whole system get: one aligned tokenizer, trained longest, under one large generator?

Mirrors the last two rows of Table 3 of the paper (arXiv 2501.01423), at scale `imagenet256-system`. For the guided
columns of the paper, change `sampling`.

We would change our mind if gFID stopped falling long before the budget ends.
"""

from study.plan.runs import Run
from study.plan.scales import Scale

QUESTION = "How far does one aligned tokenizer under one large generator get?"
SOURCE = "Table 3"


def runs(scale: Scale) -> list[Run]:
    """The widest latent, with each foundation model (plain at a scale without any), with the last generator."""
    return [
        Run(
            tokenizer=f"f{scale.downsampling}d{scale.latent_channels[-1]}{alignment}",
            generator=scale.generators[-1],
            tokenizer_seed=tokenizer_seed,
            seed=seed,
        )
        for tokenizer_seed, seed in scale.repeats
        for alignment in [f"-{model}" for model in scale.foundation_models] or [""]
    ]
