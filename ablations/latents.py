"""Which latents are easy to learn, and which number of a latent foretells it before a generator is trained?

Every regulariser at several strengths and all widths of the scale, alone and on tokenizers that are aligned with the
last foundation model, these also with one part of the VF loss and with four times its weight; and the representation
autoencoder with that model. All are under the smallest generator, once; six of them, three times for the noise. At the
desk these are 34 plain and 40 aligned tokenizers and one that is neither.

A study of 86 tokenizers on ImageNet (arXiv 2606.03578) asked the same, without repeats and without intervals. Where a
comment says 2606.03578, it has that strength too.

We would change our mind about a number that foretells gFID if its correlation had the wrong sign in one family of
tokenizers, the plain or the aligned ones.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from models.configs import TRANSFORMERS, VF_PARTS
from study.plan.runs import Run
from study.plan.scales import Scale

QUESTION = "Which latents are easy to learn, and which number of a latent foretells it?"
SOURCE = "ours"
STRENGTHS: dict[str, dict[str, dict[str, Any]]] = {  # by regulariser and label: changes of `regularisation`
    "cosine": {"": {}},
    "distance": {"": {}},
    "spectrum": {"": {}, ", weight 0.1": {"weight": 0.1}},
    "local": {"": {}, ", threshold 0.9": {"weight": 0.005, "threshold": 0.9}},  # both 2606.03578
    "prefix": {"": {}, ", from half": {"fewest": 0.5}},
    "mask": {  # all three 2606.03578
        "": {},
        ", less": {"probabilities": (0.8, 0.1, 0.05, 0.05)},
        ", more": {"probabilities": (0.6, 0.1, 0.15, 0.15)},
    },
    "noise": {
        "": {},
        ", up to 0.2": {"strength": 0.2},
        ", interpolated": {"strength": 3.0, "interpolate": True},  # DeTok, arXiv 2507.15856
    },
    "scale": {"": {}, ", weight 1": {"weight": 1.0}},
    "eq": {"": {}, ", in 9 of 10 steps": {"probability": 0.9}},
}


def runs(scale: Scale) -> list[Run]:
    """Every tokenizer once; then the repeats of those without regularisers at the narrowest and the widest width, and
    of those with the last regulariser at the widest."""
    widths = [f"f{scale.downsampling}d{width}" for width in scale.latent_channels]
    models = scale.foundation_models[-1:]
    plain_and_aligned = ("", *(f"-{model}" for model in models))
    tokenizers = [run for width in widths for alignment in plain_and_aligned for run in _of(scale, width + alignment)]
    tokenizers += [_run(scale, f"rae-{encoder}", "") for encoder in _encoders(scale)]
    last = "".join(f"+{name}" for name in scale.latent_regularisers[-1:])
    repeated = {end + alignment for end in (widths[0], widths[-1]) for alignment in plain_and_aligned}
    repeated |= {widths[-1] + alignment + last for alignment in plain_and_aligned}
    return [
        replace(run, tokenizer_seed=tokenizer_seed, seed=seed)
        for repeat, (tokenizer_seed, seed) in enumerate(scale.enough_repeats)
        for run in tokenizers
        if repeat == 0 or run.label in repeated
    ]


def _encoders(scale: Scale) -> tuple[str, ...]:
    """Of representation autoencoders: the scale's own, else the last foundation model, or lite0 where that one has
    another grid than the latent."""
    models = scale.foundation_models[-1:]
    if scale.representation_autoencoders or not models:
        return scale.representation_autoencoders
    network = TRANSFORMERS.get(models[0])
    fits = network is None or network.cells(scale.resolution) == scale.resolution // scale.downsampling
    return models if fits else ("lite0",)


def _of(scale: Scale, base: str) -> list[Run]:
    """A plain or an aligned tokenizer, and those with each regulariser at each strength."""
    aligned, weight = "-" in base, 4 * scale.tokenizer.vf_weight
    found = [_run(scale, base, "")]
    if aligned and not scale.tokenizer.phases:  # which have weights of their own
        found.append(_run(scale, base, f", VF weight {weight:g}", {"tokenizer.vf_weight": weight}))
    for name in scale.latent_regularisers:
        for text, strengths in STRENGTHS[name].items() if aligned or name not in VF_PARTS else ():
            changes = {f"regularisation.{name}.{field}": value for field, value in strengths.items()}
            found.append(_run(scale, f"{base}+{name}", text, changes))
    return found


def _run(scale: Scale, tokenizer: str, text: str, changes: Mapping[str, Any] | None = None) -> Run:
    return Run(tokenizer=tokenizer, generator=scale.generators[0], changes=dict(changes or {}), label=tokenizer + text)
