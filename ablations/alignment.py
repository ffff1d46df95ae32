"""How strong should the alignment be, and with how fine a grid of features?

The aligned tokenizer of middle width, then with twice and four times the weight of the VF loss and, where the scale's
features are finer than a cell of 16 px, with such coarse ones; beside it the plain one. Each is under the smallest
generator.

We would change our mind about the scale's weight if another one had lower rFID and lower gFID by both judges.
"""

from dataclasses import replace

from study.plan.runs import Run
from study.plan.scales import Scale

QUESTION = "How strong should the alignment be, and with how fine a grid of features?"
SOURCE = "ours"
BASE = "as the scale"  # that each is compared with
COARSE = {"foundation.input_size": 96, "foundation.stride": 16}
FACTORS = {"features": tuple(COARSE)}


def runs(scale: Scale) -> list[Run]:
    """The middle width, plain and with the last foundation model; ValueError without alignment, or with phases."""
    weight = scale.tokenizer.vf_weight
    if scale.tokenizer.phases:
        raise ValueError(f"scale {scale.name} has phases with weights of their own: --set tokenizer.phases=()")
    base = Run(tokenizer=f"{scale.middle}-{scale.aligned_with}", generator=scale.generators[0], label=BASE)
    settings = [
        replace(base, tokenizer=scale.middle, label="none"),
        base,
        *(
            replace(base, label=f"weight {changed:g}", changes={"tokenizer.vf_weight": changed})
            for changed in (2 * weight, 4 * weight)
        ),
    ]
    if scale.foundation.stride < COARSE["foundation.stride"]:
        settings.append(replace(base, label="features of 16 px", changes=COARSE))
    return [replace(run, tokenizer_seed=first, seed=seed) for first, seed in scale.repeats for run in settings]
