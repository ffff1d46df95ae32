"""Does a wider latent reconstruct better but generate worse, and does aligning it (VF loss) mend that?

Mirrors Table 2 and Figures 1, 2 and 4 of the paper (arXiv 2501.01423): latent widths x {plain, aligned with a
foundation model} x generator sizes, each generator judged at several budgets.

We would change our mind if gFID did not rise with the width of a plain latent, or did not fall when the widest
one is aligned.
"""

from study.plan.runs import Run
from study.plan.scales import Scale

QUESTION = "Do wider latents reconstruct better but generate worse, and does VF alignment mend it?"
SOURCE = "Table 2, Figures 1, 2 and 4"


def runs(scale: Scale) -> list[Run]:
    """Every width, plain and with each foundation model, with every generator size, once per pair of seeds; each
    tokenizer also with each of the scale's `regularisers`; and the scale's `representation_autoencoders`."""
    tokenizers = [
        f"f{scale.downsampling}d{width}{alignment}{regulariser}"
        for width in scale.latent_channels
        for alignment in ("", *(f"-{model}" for model in scale.foundation_models))
        for regulariser in ("", *(f"+{name}" for name in scale.regularisers))
    ]
    tokenizers += [f"rae-{model}" for model in scale.representation_autoencoders]
    return [
        Run(tokenizer=tokenizer, generator=generator, tokenizer_seed=tokenizer_seed, seed=seed)
        for tokenizer_seed, seed in scale.repeats
        for generator in reversed(scale.generators)  # usually the largest first: so no slot waits long at the end
        for tokenizer in tokenizers
    ]
