"""One search: what its workers are given, and the runs that it is made of."""

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
from study.plan.runs import Plan, Planned, Run
from study.plan.setting import Setting
from study.search.spaces import Dimension, Values, declaration, space


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One search as its workers are given it. `storage` is a URL of Optuna or a path; `budget` trials in all."""

    space: str
    setting: Setting
    budget: int
    seed: int
    storage: str
    workers: int
    out: Path

    @property
    def compute(self) -> Compute:
        """Of a worker."""
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
        """Who decides; the others are asked when the winner is compared with the default."""
        return self.setting.scale.judges[0][0]

    def dimensions(self) -> dict[str, Dimension]:
        try:
            return self.module.dimensions(self.setting.scale)
        except ValueError as error:
            raise ValueError(f"{error}; ranges are in ablations/spaces/{self.space}.py") from None

    def default(self) -> dict[str, Any]:
        return {name: dimension.default for name, dimension in self.dimensions().items()}

    def optuna_name(self) -> str:
        """Of Optuna's study: another one where the space is another, or the settings that its trials do not vary."""
        default = [stage.fingerprint for stage in self.plan([self.run(self.default())]).stages]
        return f"{self.name}-{fingerprint([declaration(self.dimensions(), self.objectives), default], 6)}"

    def run(self, values: Values, repeat: int = 0, scored: bool = False) -> Run:
        return self.module.run(self.setting.scale, values, repeat, scored)

    def plan(self, runs: Sequence[Run]) -> Plan:
        """The plan of some of its runs."""
        s = self.setting
        asking = SimpleNamespace(QUESTION=self.module.QUESTION, runs=lambda scale: runs)
        return make_plan(f"{SEARCH}{self.space}", cast(ModuleType, asking), s.scale, s.data, s.compute, s.study)

    def marks(self) -> tuple[int, ...]:
        """Images seen at which a trial's generator is judged."""
        return tuple(stage.spec.images_seen for stage in planned_pair(self.plan([self.run(self.default())]))[1].results)  # type: ignore[union-attr]

    def rungs(self) -> tuple[int, int]:
        """Of successive halving: images seen at the first rung, and how many times more at each further one."""
        first, second, *_ = self.marks()
        return first, max(2, round(second / first))

    def prunes(self) -> bool:
        """Whether trials can end early: Optuna cannot prune by two objectives, and one mark is the end."""
        return len(self.objectives) == 1 and len(self.marks()) > 1


def planned_pair(plan: Plan) -> tuple[Planned, Planned]:
    """Tokenizer and generator of the plan of one run."""
    tokenizer, generator = plan.runs
    return tokenizer, generator


def run_scores(problem: Problem, run: Run) -> dict[str, dict[str, float]]:
    """What a run came to by every judge, by objective; empty while it has no result."""
    tokenizer, generator = planned_pair(problem.plan([run]))
    records = {True: generator.results[-1].record(), False: tokenizer.results[0].record()}
    if any(records[objective == "gfid"] is None for objective in problem.objectives):
        return {}
    return {
        judge: {
            objective: cast(dict[str, Any], records[objective == "gfid"])["metrics"][judge][objective]
            for objective in problem.objectives
        }
        for judge, _ in problem.setting.scale.judges
    }
