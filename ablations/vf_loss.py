"""Which parts of the VF loss help: the cosine part, the distance part, the margins?

Mirrors Table 5 of the paper (arXiv 2501.01423): the scale's loss, then without one part at a time. If the scale has no
margins (as the desk scale), the last run adds the released margins (0.5 and 0.25) instead.

We would change our mind about a part if gFID did not rise without it.
"""

from dataclasses import replace

from study.plan.runs import Run
from study.plan.scales import Scale

QUESTION = "Which parts of the VF loss help: the cosine part, the distance part, the margins?"
SOURCE = "Table 5"
COSINE, DISTANCE = "tokenizer.vf_cosine_margin", "tokenizer.vf_distance_margin"
BASE = "full"  # that each is compared with
FACTORS = {"margins": (COSINE, DISTANCE)}


def runs(scale: Scale) -> list[Run]:
    """The middle width, plain and with the last foundation model; ValueError without alignment, or with phases."""
    recipe = scale.tokenizer
    if recipe.phases:
        raise ValueError(f"scale {scale.name} has phases with margins of their own: --set tokenizer.phases=()")
    margins = recipe.vf_cosine_margin or recipe.vf_distance_margin
    plain = Run(tokenizer=scale.middle, generator=scale.generators[0], label="none")
    full = replace(plain, tokenizer=f"{scale.middle}-{scale.aligned_with}", label="full")
    other = {COSINE: 0.0, DISTANCE: 0.0} if margins else {COSINE: 0.5, DISTANCE: 0.25}
    parts = [
        plain,
        full,
        replace(full, label="without cosine part", changes={"tokenizer.vf_cosine_weight": 0.0}),
        replace(full, label="without distance part", changes={"tokenizer.vf_distance_weight": 0.0}),
        replace(full, label="without margins" if margins else "with margins", changes=other),
    ]
    return [replace(run, tokenizer_seed=first, seed=seed) for first, seed in scale.repeats for run in parts]
