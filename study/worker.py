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

from study.cluster import put_back
from study.distributed import from_main, gathered, processes, rank, started, together
from study.files import fingerprint, read_json, write_json
from study.jobs import log_to_stdout, note_failure, run_stage, stage_title
from study.lease import LeaseLost, Watcher, lease, locked
from study.noted import earlier, note
from study.paths import study_root
from study.plan import Planned
from study.spaces import Values
from study.specs import Generate, Stage
from study.stopping import Interrupted, stop_on_signals, stop_requested
from study.task import Task, parts, scores
from study.workspace import Diverged

if TYPE_CHECKING:
    import optuna

    from study.trials import Claimed, Outcome, Trials

POLL_SECONDS = 1.0

log = logging.getLogger(__name__)


def open_trials(task: Task, worker: str = "0") -> Trials:
    """The trials of a search. A study that is new takes over what the run folders know of earlier ones: of another
    space or settings under this name, or of the same whose storage was lost."""
    import optuna

    from study.journal import JOURNAL, open_storage
    from study.trials import Trials, open_study

    storage = open_storage(task.storage or str(task.folder / JOURNAL), task.workers)
    pruner: optuna.pruners.BasePruner | None = None
    if task.prunes():
        first, factor = task.rungs()
        pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=factor)
    name = task.optuna_name()
    kept = f"{name}-{fingerprint(task.storage, 6)}" if task.storage else name
    folder = task.folder / "trials" / kept  # of this study in this storage alone: each begins with trial 0
    with locked(folder):
        study = open_study(storage, name, task.objectives, pruner)
        _refuse_another_root(study, folder)
        if not study.user_attrs.get("earlier"):
            for trial in earlier(task, [t.params for t in study.get_trials(deepcopy=False)]):
                study.add_trial(trial)
            study.set_user_attr("earlier", "taken over")
            about = f"study.search {task.space}, study {task.setting.study}: {task.module.QUESTION}"
            study.set_user_attr("about", about)
    reached = functools.partial(_reached, task)
    return Trials(folder, study, task.dimensions(), task.budget, task.seed, worker, reached)


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


def _reached(task: Task, values: Values) -> str:
    """Names how far a trial's run is: by its records, checkpoints and snapshots."""
    folders = [stage.folder for stage in task.plan([task.run(values)]).stages]
    kept = [path for folder in folders for name in ("record.json", "*.safetensors") for path in folder.glob(name)]
    return fingerprint([dict(values), sorted(str(path.relative_to(study_root())) for path in kept)], 12)


# A trial is a run


def evaluate(task: Task, claimed: Claimed) -> Outcome:
    """Do what is missing of a trial's run; in every process of the worker.

    Raises:
        Interrupted: asked to stop; what was done is saved.
    """
    from study.trials import Outcome

    began = time.monotonic()
    known: dict[str, Any] = {}
    try:
        plan = task.plan([task.run(claimed.values)])
        generator = parts(plan)[1]
        known = {"run": generator.fit.fingerprint}
        log.info("trial %d: %s", claimed.number, generator.run.name)
        if rank() == 0:
            note(task, claimed.values, plan)
        for stage in plan.jobs[0].stages:
            run_stage(stage, stage_title(stage))
        known["images_seen"], pruned = _generator(task, claimed, generator)
        known["seconds"] = round(time.monotonic() - began, 3)
        if pruned:
            return Outcome(state="pruned", reason=_pruned_at(known["images_seen"]), **known)
        found = scores(task, generator.run)[task.judge]
        return Outcome(state="complete", values=tuple(found[objective] for objective in task.objectives), **known)
    except Interrupted:
        raise
    except LeaseLost:
        if processes() > 1:  # the others go on with the stage: the end of this one tells them
            raise
        return evaluate(task, claimed)  # another process does that stage: this one waits for it
    except Exception as error:
        if processes() > 1 and not isinstance(error, Diverged):  # the others may wait: the end of this one tells them
            raise
        log.error("trial %d failed\n%s", claimed.number, traceback.format_exc())
        state = "diverged" if isinstance(error, Diverged) else "failed"
        known["seconds"] = round(time.monotonic() - began, 3)
        return Outcome(state=state, reason=f"{type(error).__name__}: {error}".splitlines()[0], **known)  # type: ignore[arg-type]


def _generator(task: Task, claimed: Claimed, generator: Planned) -> tuple[int, bool]:
    """Train and judge the generator; how many images it has seen, and whether it was pruned there.

    Where trials can be pruned, the training saves and stops at each mark until its snapshot is judged: so judging can
    move none of its bits, and there is nothing to be stopped. The default is never pruned: all are compared with it.
    """
    from study.stages.fit_generator import snapshot_file

    *before, last = generator.results
    fit = generator.fit
    for result in before if task.prunes() else ():
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
        worse = claimed.prune(record["metrics"][task.judge]["gfid"], mark)
        noted = from_main((fit.failure() or {}).get("reason") == _pruned_at(mark))  # by one that was killed after that
        if (worse or noted) and claimed.values != task.default():
            if rank() == 0:
                _end(fit, mark)
            return mark, True
    run_stage(fit, stage_title(fit))
    for result in generator.results:
        record = run_stage(result, stage_title(result))
    assert isinstance(last.spec, Generate)
    if claimed.trial is not None and len(task.objectives) == 1:
        claimed.trial.report(record["metrics"][task.judge]["gfid"], last.spec.images_seen)
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


def do_all(stages: Sequence[Stage], begin: int = 0) -> None:
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


def confirm(task: Task, trials: Trials | None, number: int) -> None:
    """Run the best again with other seeds: first those that choose the winner, then those that score it.

    Args:
        number: of the worker.
    """
    from study import findings

    for runs in (findings.choosing_runs, findings.scoring_runs):
        asked = from_main([[v, r, s] for v, r, s in runs(task, trials)] if trials is not None else None)
        again = [task.run(values, repeat, scored) for values, repeat, scored in asked]
        if not again:
            continue
        if rank() == 0:
            for (values, repeat, _), run in zip(asked, again, strict=True):
                note(task, values, task.plan([run]), repeat)
        stages = task.plan(again).stages
        do_all(stages, begin=number * len(stages) // task.workers % len(stages))


def run_worker(task: Task, number: int) -> bool:
    """Do trials until the budget is done, then what decides, and write what came out; whether that was all."""
    from study.trials import work

    log_to_stdout()
    done = False
    with stop_on_signals(), together(task.compute.device):
        trials = open_trials(task, str(number)) if rank() == 0 else None
        try:
            work(trials, functools.partial(evaluate, task))
            confirm(task, trials, number)
            done = True
        except Interrupted as stopped:
            log.info("%s; the same command goes on from here", stopped)
        if trials is not None and done:
            from study.findings import conclude

            conclude(task, trials)
    if not done and stop_requested.is_set() and started()[0] == 0 and (told := put_back()):
        log.info("%s", told)
    return done
