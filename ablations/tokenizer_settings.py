"""Does another learning rate or perceptual weight make a better tokenizer?

The scale's plain tokenizer of middle width, then with one setting changed at a time, each under the smallest generator:
half and twice the learning rate, and the perceptual weight of the other scales. Whoever trains on other data asks this
first; what is chosen should be chosen on seeds that no result is reported on.

We would change our mind about a setting if another one had lower rFID and lower gFID by both judges.
"""

from dataclasses import replace

from study.plan.runs import Run
from study.plan.scales import Scale

QUESTION = "Does another learning rate or perceptual weight make a better tokenizer?"
SOURCE = "ours"
BASE = "as the scale"  # that each is compared with


def runs(scale: Scale) -> list[Run]:
    """The middle width, plain."""
    rate, weight = scale.tokenizer.learning_rate, scale.tokenizer.perceptual_weight
    other = 1.0 if weight != 1.0 else 0.3
    base = Run(tokenizer=scale.middle, generator=scale.generators[0], label=BASE)
    settings = [
        base,
        *(
            replace(base, label=f"learning rate {changed:g}", changes={"tokenizer.learning_rate": changed})
            for changed in (rate / 2, 2 * rate)
        ),
        replace(base, label=f"perceptual weight {other:g}", changes={"tokenizer.perceptual_weight": other}),
    ]
    return [replace(run, tokenizer_seed=first, seed=seed) for first, seed in scale.repeats for run in settings]
