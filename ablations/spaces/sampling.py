"""Which guidance, timestep shift and number of steps suit a trained generator?

The last snapshot of the first generator on the middle tokenizer, aligned if the scale aligns any. Nothing is trained
twice, so a trial costs only its samples. Trials and choosing repeats use sampling seeds that only choose
(results/schema.py, SELECTION_SEED); scoring repeats use other seeds.

We would change our mind about a setting if it did not beat the scale's own on samples that were not used to choose it.
"""

from typing import Any

from results.schema import SELECTION_SEED
from study.plan.runs import Run
from study.plan.scales import Scale
from study.search.spaces import Dimension, Number, Values, changed

QUESTION = "Which guidance, timestep shift and number of steps suit a trained generator?"
OBJECTIVES = ("gfid",)
ADAPTIVE = "dopri5"  # has neither steps nor a shift: the search is over Euler's


def dimensions(scale: Scale) -> dict[str, Dimension]:
    """Guidance is on from t = `guidance_start` (0 is noise) for the share `guidance_share` of the rest up to 1."""
    sampling = scale.sampling
    start, end = sampling.guidance_interval
    return {
        "guidance_scale": Number(label="guidance scale", low=1.0, high=8.0, default=sampling.guidance_scale, log=True),
        "guidance_start": Number(label="guidance from t", low=0.0, high=0.6, default=start),
        "guidance_share": Number(
            label="guided share of the rest", low=0.1, high=1.0, default=(end - start) / (1 - start)
        ),
        "timestep_shift": Number(
            label="timestep shift", low=0.1, high=4.0, default=sampling.timestep_shift, log=True
        ),
        "steps": Number(
            label="steps", low=max(1, sampling.steps // 2), high=2 * sampling.steps, default=sampling.steps, log=True
        ),
    }  # fmt: skip


def run(scale: Scale, values: Values, repeat: int = 0, scored: bool = False) -> Run:
    """The generator with one sampling protocol."""
    start = values["guidance_start"]
    end = round(start + values["guidance_share"] * (1 - start), 4)
    guided = values["guidance_scale"] != 1
    wanted: dict[str, Any] = {
        "sampling.solver": "euler" if scale.sampling.solver == ADAPTIVE else scale.sampling.solver,
        "sampling.guidance_scale": values["guidance_scale"],
        "sampling.guidance_interval": (start, end) if guided else scale.sampling.guidance_interval,
        "sampling.timestep_shift": values["timestep_shift"],
        "sampling.steps": values["steps"],
        "sampling.seed": scale.sampling.seed + repeat + (0 if scored else SELECTION_SEED),
    }
    alignment = "".join(f"-{model}" for model in scale.foundation_models[-1:])
    return Run(
        tokenizer=f"{scale.middle}{alignment}",
        generator=scale.generators[0],
        tokenizer_seed=scale.tokenizer_seeds[0],
        seed=scale.seeds[0],
        judged_at=scale.generator.marks[-1:],
        changes=changed(scale, wanted),
    )
