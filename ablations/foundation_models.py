"""Which foundation model should a tokenizer be aligned with?

Mirrors Table 4 of the paper (arXiv 2501.01423): one width, plain and aligned with each model, with the smallest
generator. A scale with one foundation model (the desk scale's `lite0`) compares it only with the plain tokenizer.

We would change our mind about a model if its gFID did not fall below the plain tokenizer's.
"""

from study.plan.runs import Run
from study.plan.scales import Scale

QUESTION = "Which foundation model should a tokenizer be aligned with?"
SOURCE = "Table 4"
BASE = "none"  # that each is compared with


def runs(scale: Scale) -> list[Run]:
    """The middle width, plain and with each of the scale's `compared_models`; ValueError if there is no model."""
    models = scale.compared_models or scale.foundation_models
    if not models:
        raise ValueError(f"scale {scale.name} has no foundation model to compare: give some with foundation_models")
    return [
        Run(
            tokenizer=scale.middle if model == "none" else f"{scale.middle}-{model}",
            generator=scale.generators[0],
            tokenizer_seed=tokenizer_seed,
            seed=seed,
            label=model,
        )
        for tokenizer_seed, seed in scale.repeats
        for model in ("none", *models)
    ]
