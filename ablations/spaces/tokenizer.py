"""Which tokenizers are on the frontier of reconstruction and generation?

Two objectives, rFID of the tokenizer and gFID of the first generator trained on it: the paper's dilemma (arXiv
2501.01423, Figures 1 and 2), explored by a search instead of a grid. Nothing is pruned. Every repeat has its own seeds
for both trainings.

We would change our mind about a tokenizer of the front if another one dominated it with other seeds.
"""

from study.plan.runs import Run
from study.plan.scales import Scale
from study.search.spaces import Choice, Dimension, Number, Values, changed

QUESTION = "Which tokenizers are on the frontier of reconstruction and generation?"
OBJECTIVES = ("rfid", "gfid")
PLAIN = "none"


def dimensions(scale: Scale) -> dict[str, Dimension]:
    """Width, foundation model and weights; parameters of the VF loss have no effect on plain tokenizers."""
    recipe = scale.tokenizer
    narrowest = min(scale.latent_channels)
    widths = tuple(range(narrowest, max(scale.latent_channels) + 1, narrowest))
    middle = scale.latent_channels[len(scale.latent_channels) // 2]
    models = (PLAIN, *(scale.compared_models or scale.foundation_models))
    found: dict[str, Dimension] = {}
    if len(widths) > 1:
        found["channels"] = Choice(label="latent channels", choices=widths, default=middle)
    if len(models) > 1:
        found["foundation_model"] = Choice(label="foundation model", choices=models, default=models[-1])
    return found | {
        "vf_weight": Number(
            label="weight of the VF loss", low=recipe.vf_weight / 20, high=recipe.vf_weight * 8,
            default=recipe.vf_weight, log=True,
        ),
        "vf_cosine_margin": Number(
            label="cosine margin", low=0.0, high=0.6, default=recipe.vf_cosine_margin
        ),
        "vf_distance_margin": Number(
            label="distance margin", low=0.0, high=0.4, default=recipe.vf_distance_margin
        ),
        "kl_weight": Number(
            label="weight of the KL term", low=recipe.kl_weight / 100, high=recipe.kl_weight * 10_000,
            default=recipe.kl_weight, log=True,
        ),
    }  # fmt: skip


def first(scale: Scale) -> list[Values]:
    """The scale's own tokenizers of every width, plain and aligned, whose runs the ablation `frontier` has."""
    names = dimensions(scale)
    models = (PLAIN, *scale.foundation_models)
    tokenizers = [{"channels": width, "foundation_model": model} for width in scale.latent_channels for model in models]
    return [{name: value for name, value in one.items() if name in names} for one in tokenizers]


def run(scale: Scale, values: Values, repeat: int = 0, scored: bool = False) -> Run:
    """A tokenizer and a generator trained on it, judged when both are trained."""
    model = values.get("foundation_model", PLAIN)
    names = ("kl_weight",) if model == PLAIN else ("vf_weight", "vf_cosine_margin", "vf_distance_margin", "kl_weight")
    width = values.get("channels", scale.latent_channels[0])
    return Run(
        tokenizer=f"f{scale.downsampling}d{width}{'' if model == PLAIN else f'-{model}'}",
        generator=scale.generators[0],
        tokenizer_seed=scale.tokenizer_seeds[0] + repeat,
        seed=scale.seeds[0] + repeat,
        judged_at=scale.generator.marks[-1:],
        changes=changed(scale, {f"tokenizer.{name}": values[name] for name in names}),
    )
