"""Problems of a search for tests, and a search of one that runs in this process."""

import dataclasses

from made_up import COMPUTE, data_spec

from results import searches
from study.plan.runs import Setting
from study.plan.scales import smoke
from study.search.problem import Problem
from study.search.worker import run_worker

JUDGES = (("efficientnet_lite2", 64), ("classifier", 0))


def make_problem(name="sampling", budget=6, *, out=None, **changes):
    scale = dataclasses.replace(smoke(), judges=JUDGES, **changes)
    setting = Setting(scale=scale, data=data_spec(), compute=COMPUTE, study="made")
    return Problem(space=name, setting=setting, budget=budget, seed=0, storage="", workers=1, out=out)


def search(tmp_path, *arguments, **changes):
    """Run a search in this process and load its files."""
    problem = make_problem(*arguments, out=tmp_path, **changes)
    assert run_worker(problem, 0)
    return searches.load(tmp_path / "results" / "made", problem.space)
