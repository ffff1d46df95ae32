"""How large a generator does each kind of tokenizer need?

Mirrors Figure 4 (c) of the paper (arXiv 2501.01423): one width, plain and aligned, with every generator. All runs are
also runs of `frontier`, so after it nothing is left to train.

We would change our mind if the gap between plain and aligned did not narrow with the size of the generator.
"""

from ablations.frontier import runs as frontier_runs
from study.plan.runs import Run
from study.plan.scales import Scale

QUESTION = "How large a generator does each kind of tokenizer need?"
SOURCE = "Figure 4 (c)"


def runs(scale: Scale) -> list[Run]:
    """Runs of the frontier at the middle width; ValueError with fewer than two generators."""
    if len(scale.generators) < 2:
        raise ValueError(
            f"scale {scale.name} has one generator, so scaling has no slope to measure: give two "
            "(--set generators=LightningDiT-XXS/2,LightningDiT-XS/2, or larger)"
        )
    tokenizers = {scale.middle, *(f"{scale.middle}-{model}" for model in scale.foundation_models)}
    return [run for run in frontier_runs(scale) if run.tokenizer in tokenizers]
