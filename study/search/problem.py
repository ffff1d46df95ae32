"""The problem of a search: its space, its setting and its budget, and the run of each set of values."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

from results.runs import SEARCH
from study.core.compute import Compute
from study.core.files import fingerprint
from study.core.paths import study_root
from study.plan.resolve import make_plan
from study.plan.runs import Plan, Planned, Run, Setting
from study.search.spaces import Choice, Dimension, Values, declaration, space


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What a worker needs to know of a search.

    storage: an Optuna URL or a path. budget: total number of trials. noted_name: name of the Optuna study as it was
    noted when the search was started; empty computes it.
    """

    space: str
    setting: Setting
    budget: int
    seed: int
    storage: str
    workers: int
    out: Path
    noted_name: str = ""

    @property
    def compute(self) -> Compute:
        """Compute of one worker."""
        return dataclasses.replace(self.setting.compute, processes=self.setting.scale.execution.processes)

    @property
    def name(self) -> str:
        return f"{self.setting.study}-{self.space}"

    @property
    def folder(self) -> Path:
        return study_root() / "searches" / self.name

    @property
    def module(self) -> ModuleType:
        return space(self.space)

    @property
    def objectives(self) -> tuple[str, ...]:
        return self.module.OBJECTIVES

    @property
    def judge(self) -> str:
        """The judge that ranks trials; the other judges take part when the winner is compared with the default."""
        return self.setting.scale.judges[0][0]

    def dimensions(self) -> dict[str, Dimension]:
        try:
            return self.module.dimensions(self.setting.scale)
        except ValueError as error:
            raise ValueError(f"{error}; ranges are in ablations/spaces/{self.space}.py") from None

    def default(self) -> dict[str, Any]:
        return {name: dimension.default for name, dimension in self.dimensions().items()}

    def first(self) -> list[dict[str, Any]]:
        """Values to try after the default, before any are proposed: none, unless the space names some."""
        first = getattr(self.module, "first", None)
        return [{**self.default(), **values} for values in first(self.setting.scale)] if first else []

    def extremes(self) -> list[Run]:
        """The runs of its default values, and with each choice and each end of a range in place of one of them.

        Raises:
            ValueError: the message names the value that makes no run.
        """
        default, runs = self.default(), []
        for name, dimension in self.dimensions().items():
            for value in dimension.choices if isinstance(dimension, Choice) else (dimension.low, dimension.high):
                runs.append(self.run({**default, name: value}))
                try:
                    self.plan(runs[-1:])
                except ValueError as error:
                    raise ValueError(
                        f"{dimension.label} {value} cannot be tried: {error}; ranges are in "
                        f"ablations/spaces/{self.space}.py"
                    ) from None
        return [self.run(default), *runs]

    def optuna_name(self) -> str:
        """Name of the Optuna study; it changes with the space and with the settings that the trials do not vary."""
        if self.noted_name:
            return self.noted_name
        fingerprints = [stage.fingerprint for stage in self.plan([self.run(self.default())]).stages]
        return f"{self.name}-{fingerprint([declaration(self.dimensions(), self.objectives), fingerprints], 6)}"

    def run(self, values: Values, repeat: int = 0, scored: bool = False) -> Run:
        return self.module.run(self.setting.scale, values, repeat, scored)

    def plan(self, runs: Sequence[Run]) -> Plan:
        """The plan of some of its runs, as if an ablation module had declared them."""
        s = self.setting
        module = SimpleNamespace(QUESTION=self.module.QUESTION, runs=lambda scale: runs)
        return make_plan(f"{SEARCH}{self.space}", cast(ModuleType, module), s.scale, s.data, s.compute, s.study)

    def marks(self) -> tuple[int, ...]:
        """Images seen at which a trial's generator is judged."""
        generator = planned_pair(self.plan([self.run(self.default())]))[1]
        return tuple(result.images_seen for result in generator.results)

    def rungs(self) -> tuple[int, int]:
        """Rungs of successive halving: images seen at the first one, and the factor from one rung to the next."""
        first, second, *_ = self.marks()
        return first, max(2, round(second / first))

    def prunes(self) -> bool:
        """Whether trials can be pruned: Optuna cannot prune with two objectives, and a single mark is the last one."""
        return len(self.objectives) == 1 and len(self.marks()) > 1


def planned_pair(plan: Plan) -> tuple[Planned, Planned]:
    """Tokenizer and generator of the plan of one run."""
    tokenizer, generator = plan.runs
    return tokenizer, generator


def run_scores(problem: Problem, run: Run) -> dict[str, dict[str, float]]:
    """The objectives of a run by every judge: judge, objective, value; empty while the run has no result."""
    plan = problem.plan([run])
    if not plan.runs:  # a launched search (study/search/trial_notes.py) whose workers have not planned it yet
        return {}
    tokenizer, generator = planned_pair(plan)
    scores: dict[str, dict[str, float]] = {}
    for judge, _ in problem.setting.scale.judges:
        measured = {name: one.results[-1].measured(judge) for name, one in (("gfid", generator), ("rfid", tokenizer))}
        if any(measured[objective] is None for objective in problem.objectives):
            return {}
        scores[judge] = {objective: cast(Any, measured[objective])[objective] for objective in problem.objectives}
    return scores
