"""One worker of a search: it does trials as the runs that they are, then its share of the runs that decide."""

from __future__ import annotations

import functools
import logging
import time
import traceback
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study.core.distributed import from_main, gathered, process_group, processes, rank, rank_and_count
from study.core.files import fingerprint, read_json, write_json
from study.core.lease import LeaseLost, Watcher, lease, locked
from study.core.paths import study_root
from study.core.stopping import Interrupted, stop_on_signals, stop_requested
from study.core.workspace import Diverged
from study.plan.runs import Planned
from study.plan.specs import Generate
from study.plan.stage import Stage, snapshot_file
from study.search import outcome
from study.search.journal import JOURNAL, open_storage
from study.search.outcome import conclude
from study.search.problem import Problem, planned_pair, run_scores
from study.search.spaces import Values
from study.search.trial_notes import earlier_trials, note_trial
from study.search.trials import Claimed, Outcome, Trials, do_trials, open_study
from study.submit.cluster import requeue
from study.submit.jobs import log_to_stdout, note_failure, run_stage, stage_title

if TYPE_CHECKING:
    import optuna


POLL_SECONDS = 1.0

log = logging.getLogger(__name__)


def open_trials(problem: Problem, worker: str = "0") -> Trials:
    """The trials of a search. A study that is new takes over what the run folders know of earlier ones: of another
    space or settings under this name, or of the same whose storage was lost."""
    import optuna

    storage = open_storage(problem.storage or str(problem.folder / JOURNAL), problem.workers)
    pruner: optuna.pruners.BasePruner | None = None
    if problem.prunes():
        first, factor = problem.rungs()
        pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=factor)
    name = problem.optuna_name()
    kept = f"{name}-{fingerprint(problem.storage, 6)}" if problem.storage else name
    folder = problem.folder / "trials" / kept  # of this study in this storage alone: each begins with trial 0
    with locked(folder):
        study = open_study(storage, name, problem.objectives, pruner)
        _refuse_another_root(study, folder)
        if not study.user_attrs.get("earlier"):
            for trial in earlier_trials(problem, [t.params for t in study.get_trials(deepcopy=False)]):
                study.add_trial(trial)
            study.set_user_attr("earlier", "taken over")
            about = f"study.search {problem.space}, study {problem.setting.study}: {problem.module.QUESTION}"
            study.set_user_attr("about", about)
    reached = functools.partial(_reached, problem)
    return Trials(folder, study, problem.dimensions(), problem.budget, problem.seed, worker, reached)


def _refuse_another_root(study: optuna.Study, folder: Path) -> None:
    """Workers see by the leases in their common root which trials are being done: the storage alone does not tell.

    Raises:
        ValueError: the study belongs to another root.
    """
    mark = folder / "study.json"
    mine = read_json(mark)
    if mine is None:
        mine = uuid.uuid4().hex
        write_json(mark, mine)
    if study.user_attrs.get("root", mine) != mine:
        raise ValueError(
            "this storage holds the search of another $STUDY_ROOT; its workers need the same one, and another search "
            "another --study or --storage"
        )
    if "root" not in study.user_attrs:
        study.set_user_attr("root", mine)


def _reached(problem: Problem, values: Values) -> str:
    """Names how far a trial's run is: by its records, checkpoints and snapshots."""
    folders = [stage.folder for stage in problem.plan([problem.run(values)]).stages]
    kept = [path for folder in folders for name in ("record.json", "*.safetensors") for path in folder.glob(name)]
    return fingerprint([dict(values), sorted(str(path.relative_to(study_root())) for path in kept)], 12)


# A trial is a run


def evaluate_trial(problem: Problem, claimed: Claimed) -> Outcome:
    """Do what is missing of a trial's run; in every process of the worker.

    Raises:
        Interrupted: asked to stop; what was done is saved.
    """
    began = time.monotonic()
    known: dict[str, Any] = {}
    try:
        plan = problem.plan([problem.run(claimed.values)])
        generator = planned_pair(plan)[1]
        known = {"run": generator.fit.fingerprint}
        log.info("trial %d: %s", claimed.number, generator.run.name)
        if rank() == 0:
            note_trial(problem, claimed.values, plan)
        for stage in plan.jobs[0].stages:
            run_stage(stage, stage_title(stage))
        known["images_seen"], pruned = _generator(problem, claimed, generator)
        known["seconds"] = round(time.monotonic() - began, 3)
        if pruned:
            return Outcome(state="pruned", reason=_pruned_at(known["images_seen"]), **known)
        found = run_scores(problem, generator.run)[problem.judge]
        return Outcome(state="complete", values=tuple(found[objective] for objective in problem.objectives), **known)
    except Interrupted:
        raise
    except LeaseLost:
        if processes() > 1:  # the others go on with the stage: the end of this one tells them
            raise
        return evaluate_trial(problem, claimed)  # another process does that stage: this one waits for it
    except Exception as error:
        if processes() > 1 and not isinstance(error, Diverged):  # the others may wait: the end of this one tells them
            raise
        log.error("trial %d failed\n%s", claimed.number, traceback.format_exc())
        state = "diverged" if isinstance(error, Diverged) else "failed"
        known["seconds"] = round(time.monotonic() - began, 3)
        return Outcome(state=state, reason=f"{type(error).__name__}: {error}".splitlines()[0], **known)  # type: ignore[arg-type]


def _generator(problem: Problem, claimed: Claimed, generator: Planned) -> tuple[int, bool]:
    """Train and judge the generator; how many images it has seen, and whether it was pruned there.

    Where trials can be pruned, the training saves and stops at each mark until its snapshot is judged: so judging can
    move none of its bits, and there is nothing to be stopped. The default is never pruned: all are compared with it.
    """
    *before, last = generator.results
    fit = generator.fit
    for result in before if problem.prunes() else ():
        assert isinstance(result.spec, Generate)
        mark = result.spec.images_seen
        there = snapshot_file(fit.folder, result.spec.sampling.weights, mark).exists()
        if not from_main(there or fit.record() is not None):
            try:
                run_stage(fit, stage_title(fit), pause_at=mark)
            except Interrupted:
                if any(gathered(stop_requested.is_set())):
                    raise
        record = run_stage(result, stage_title(result), at_hand=("generator",))
        worse = claimed.prune(record["metrics"][problem.judge]["gfid"], mark)
        noted = from_main((fit.failure() or {}).get("reason") == _pruned_at(mark))  # by one that was killed after that
        if (worse or noted) and claimed.values != problem.default():
            if rank() == 0:
                _end(fit, mark)
            return mark, True
    run_stage(fit, stage_title(fit))
    for result in generator.results:
        record = run_stage(result, stage_title(result))
    assert isinstance(last.spec, Generate)
    if claimed.trial is not None and len(problem.objectives) == 1:
        claimed.trial.report(record["metrics"][problem.judge]["gfid"], last.spec.images_seen)
    return last.spec.images_seen, False


def _end(fit: Stage, mark: int) -> None:
    """Note that a training was pruned. Its checkpoints, the largest files of all, go: it was one of the worse ones."""
    with lease(fit.folder):
        if fit.record() is not None:
            return  # it was trained before, or meanwhile, by whoever asked
        for path in fit.folder.glob("checkpoint-*.safetensors"):
            path.unlink(missing_ok=True)
        note_failure(fit, "pruned", _pruned_at(mark))


def _pruned_at(mark: int) -> str:
    return f"pruned at {mark:,} images"


# The worker


def do_stages(stages: Sequence[Stage], begin: int = 0) -> None:
    """Do what is missing of some stages, together with the other workers, until each has its record or has failed here.

    Args:
        stages: after what they read from. What has diverged is not trained again.
        begin: number of the stage to look at first; workers with different ones do not all wait for the same lease.

    Raises:
        Interrupted: asked to stop.
    """
    given_up: set[str] = set()
    watcher = Watcher()

    def next_() -> int | None:
        """The first that is ready and that nobody does; -1 to wait, None when nothing is left."""
        for stage in stages:
            diverged = (stage.failure() or {}).get("state") == "diverged"
            if diverged or any(source.fingerprint in given_up for source in stage.inputs.values()):
                given_up.add(stage.fingerprint)
        left = False
        for number in (*range(begin, len(stages)), *range(begin)):
            stage = stages[number]
            if stage.fingerprint in given_up or stage.record() is not None:
                continue
            left = True
            if all(source.record() for source in stage.inputs.values()) and watcher.live(stage.folder) is None:
                return number
        return -1 if left else None

    while (number := from_main(next_() if rank() == 0 else None)) is not None:
        if any(gathered(stop_requested.is_set())):
            raise Interrupted("the search was asked to stop")
        if number < 0:
            time.sleep(POLL_SECONDS)
            continue
        stage = stages[number]
        try:
            run_stage(stage, stage_title(stage))
        except Interrupted:
            raise
        except LeaseLost:
            if processes() > 1:
                raise
        except Exception as error:
            if processes() > 1 and not isinstance(error, Diverged):
                raise
            given_up.add(stage.fingerprint)
            log.error("%s failed\n%s", stage_title(stage), traceback.format_exc())


def repeat_best(problem: Problem, trials: Trials | None, number: int) -> None:
    """Run the best again with other seeds: first those that choose the winner, then those that score it.

    Args:
        number: of the worker.
    """
    for runs in (outcome.choosing_runs, outcome.scoring_runs):
        asked = from_main([[v, r, s] for v, r, s in runs(problem, trials)] if trials is not None else None)
        again = [problem.run(values, repeat, scored) for values, repeat, scored in asked]
        if not again:
            continue
        if rank() == 0:
            for (values, repeat, _), run in zip(asked, again, strict=True):
                note_trial(problem, values, problem.plan([run]), repeat)
        stages = problem.plan(again).stages
        do_stages(stages, begin=number * len(stages) // problem.workers % len(stages))


def run_worker(problem: Problem, number: int) -> bool:
    """Do trials until the budget is done, then what decides, and write what came out; whether that was all."""
    log_to_stdout()
    done = False
    with stop_on_signals(), process_group(problem.compute.device):
        trials = open_trials(problem, str(number)) if rank() == 0 else None
        try:
            do_trials(trials, functools.partial(evaluate_trial, problem))
            repeat_best(problem, trials, number)
            done = True
        except Interrupted as stopped:
            log.info("%s; the same command goes on from here", stopped)
        if trials is not None and done:
            conclude(problem, trials)
    if not done and stop_requested.is_set() and rank_and_count()[0] == 0 and (told := requeue()):
        log.info("%s", told)
    return done
