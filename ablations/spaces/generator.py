"""Which recipe trains a generator best, at a given number of images?

The first generator on the middle tokenizer, aligned if the scale aligns any. Every repeat has its own training seed.
The scale's own recipe is the first trial, and also a run of `frontier`.

We would change our mind about a recipe if it did not beat the scale's own on seeds that were not used to choose it.
"""

from study.plan.runs import Run
from study.plan.scales import Scale
from study.search.spaces import Dimension, Number, Values, changed

QUESTION = "Which recipe trains a generator best, at a given number of images?"
OBJECTIVES = ("gfid",)
LABEL_DROPOUT = 0.1  # of a generator, unless its scale has another, see models/configs.py


def dimensions(scale: Scale) -> dict[str, Dimension]:
    """The recipe's learning rate, 1 - beta2, distribution of t, weight of the direction loss, and label dropout."""
    recipe = scale.generator
    rate = recipe.learning_rate
    return {
        "learning_rate": Number(label="learning rate", low=rate / 4, high=rate * 16, default=rate, log=True),
        "one_minus_beta2": Number(
            label="1 - beta2", low=0.001, high=0.1, default=round(1 - recipe.betas[1], 6), log=True
        ),
        "logit_normal_mean": Number(
            label="mean of the logit of t", low=-1.0, high=1.0, default=recipe.logit_normal_mean
        ),
        "logit_normal_std": Number(
            label="spread of the logit of t", low=0.4, high=2.0, default=recipe.logit_normal_std, log=True
        ),
        "direction_weight": Number(
            label="weight of the direction loss", low=0.0, high=2.0, default=recipe.direction_weight
        ),
        "label_dropout": Number(label="label dropout", low=0.02, high=0.3, default=_label_dropout(scale)),
    }  # fmt: skip


def run(scale: Scale, values: Values, repeat: int = 0, scored: bool = False) -> Run:
    """One training; a trial is judged at every mark and may be pruned there."""
    wanted = {
        "generator.learning_rate": values["learning_rate"],
        "generator.betas": (scale.generator.betas[0], round(1 - values["one_minus_beta2"], 6)),
        **{f"generator.{name}": values[name] for name in ("logit_normal_mean", "logit_normal_std", "direction_weight")},
    }
    dropout = values["label_dropout"]
    alignment = "".join(f"-{model}" for model in scale.foundation_models[-1:])
    return Run(
        tokenizer=f"{scale.middle}{alignment}",
        generator=scale.generators[0],
        tokenizer_seed=scale.tokenizer_seeds[0],
        seed=scale.seeds[0] + repeat,
        judged_at=scale.generator.marks[-1:] if repeat else (),
        changes=changed(scale, wanted),
        options={} if dropout == _label_dropout(scale) else {"label_dropout": dropout},
    )


def _label_dropout(scale: Scale) -> float:
    return float(scale.network_options.get("label_dropout", LABEL_DROPOUT))
