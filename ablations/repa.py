"""Should a generator be aligned with a foundation model, beside its tokenizer or in its place?

The paper (arXiv 2501.01423) aligns tokenizers; REPA (arXiv 2410.06940) and iREPA (arXiv 2512.10794) align generators on
a plain tokenizer. Here all meet at one width, with the scale's last foundation model and its first generator, which
sees as many images in each run.

We would change our mind about aligning the generator if gFID did not fall with it on either tokenizer.
"""

from collections.abc import Sequence

from study.plan.runs import Run
from study.plan.scales import Scale

QUESTION = "Should a generator be aligned with a foundation model, beside its tokenizer or in its place?"
SOURCE = "ours"
BASE = "none"  # that each is compared with
FACTORS = {  # each way of aligning comes whole
    "alignment": (
        "foundation_model", "generator.repa", "generator.repa.weight", "generator.repa.projector",
        "generator.repa.spatial_norm",
    ),
}  # fmt: skip


def runs(scale: Scale) -> list[Run]:
    """The middle width, plain and aligned, each with a generator without REPA, with it and with iREPA, whatever the
    scale's own; ValueError without a foundation model."""
    return alignments(scale, scale.middle, scale.repeats)


def alignments(scale: Scale, plain: str, repeats: Sequence[tuple[int, int]], before: str = "") -> list[Run]:
    """The same on any plain tokenizer and the aligned one of its width.

    Args:
        repeats: seeds of tokenizer and generator, of each repeat.
        before: what labels begin with.
    """
    tokenizers = {"": plain, "tokenizer": f"{plain}-{scale.aligned_with}"}
    generators: dict[str, str | None] = {"": None, "REPA": "repa", "iREPA": "irepa"}
    return [
        Run(
            tokenizer=tokenizer,
            generator=scale.generators[0],
            tokenizer_seed=tokenizer_seed,
            seed=seed,
            changes={"generator.repa": aligned} if aligned or scale.generator.repa else {},
            label=before + (" and ".join(filter(None, (where, how))) or "none"),
        )
        for tokenizer_seed, seed in repeats
        for where, tokenizer in tokenizers.items()
        for how, aligned in generators.items()
    ]
