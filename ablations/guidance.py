"""How much does classifier-free guidance give, when its scale is chosen on other samples than it is scored on?

For every guidance scale a generator's last snapshot is sampled twice: with a seed that only chooses the scale (at most
10,000 samples) and with the scoring seed. 'none' and 'best' of results/guidance.py use only the scoring seed, so 'best'
is not merely the luckiest draw.

We would change our mind about a scale if the choosing and the scoring seed did not give it the same rank.
"""

from dataclasses import replace
from typing import Any

from ablations.frontier import runs as frontier_runs
from results.schema import SELECTION_SEED
from study.plan.runs import Run
from study.plan.scales import Scale

QUESTION = "How much does guidance give, when its scale is chosen on other samples than it is scored on?"
SOURCE = "ours"
FACTORS = {"seed of the samples": ("sampling.seed", "sampling.samples")}

SELECTION_SAMPLES = 10_000  # at most


def runs(scale: Scale) -> list[Run]:
    """Every generator of the frontier with every guidance scale and both seeds."""
    sampling = scale.sampling
    choosing: dict[str, Any] = {"sampling.seed": SELECTION_SEED + sampling.seed}
    if sampling.samples > SELECTION_SAMPLES:
        choosing["sampling.samples"] = SELECTION_SAMPLES
    return [
        replace(run, judged_at=scale.generator.marks[-1:], changes={**guided, **drawn})
        for run in frontier_runs(scale)
        for value in scale.guidance_scales
        for guided in ({} if value == sampling.guidance_scale else {"sampling.guidance_scale": value},)
        for drawn in ({}, choosing)
    ]
