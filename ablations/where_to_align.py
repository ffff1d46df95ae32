"""Where should a foundation model come in: in the tokenizer, in the generator, in both?

The paper (arXiv 2501.01423) aligns tokenizers, REPA (arXiv 2410.06940) and iREPA (arXiv 2512.10794) generators. Here
each is asked alone and with the other, at the scale's two widest latents, with at least three repeats: what the
ablation `repa` asks at one width, repeated until it can be decided.

We would change our mind about aligning one of them if aligning both had a lower gFID at each width.
"""

from ablations.repa import FACTORS as REPA_FACTORS
from ablations.repa import alignments
from study.plan.runs import Run
from study.plan.scales import Scale

QUESTION = "Where should a foundation model come in: in the tokenizer, in the generator, in both?"
SOURCE = "ours"
FACTORS = {"alignment": (*REPA_FACTORS["alignment"], "latent_channels")}  # they are compared at one width


def runs(scale: Scale) -> list[Run]:
    """Each way of aligning at each width; ValueError without a foundation model."""
    return [
        run
        for width in scale.latent_channels[-2:]
        for run in alignments(scale, f"f{scale.downsampling}d{width}", scale.enough_repeats, f"d{width}: ")
    ]
