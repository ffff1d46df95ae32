"""One worker of a search: it runs trials, then its share of the repeats that choose and score the winner."""

from __future__ import annotations

import functools
import logging
import time
import traceback
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from study.core.distributed import all_gather, broadcast, process_group, rank, rank_and_world_size, world_size
from study.core.files import fingerprint, read_json, write_json
from study.core.lease import LeaseLost, Watcher, lease, locked
from study.core.paths import study_root
from study.core.stopping import Interrupted, stop_on_signals, stop_requested
from study.core.workspace import Diverged
from study.plan.runs import Planned, Result
from study.plan.stage import Stage, state_files
from study.search import outcome
from study.search.journal import JOURNAL, open_storage, read_storage
from study.search.outcome import write_outcome
from study.search.problem import Problem, planned_pair, run_scores
from study.search.spaces import Values
from study.search.trial_notes import earlier_trials, note_trial
from study.search.trials import Claimed, Outcome, Trials, do_trials, open_study
from study.submit.cluster import cancel_jobs, requeue
from study.submit.jobs import discard_judged, log_to_stdout, note_failure, run_stage, stage_title
from study.submit.slurm import active_workers

if TYPE_CHECKING:
    import optuna


POLL_SECONDS = 1.0
WORKERS = "workers"  # folder of the workers' own, see study/search/worker_pool.py
ROOT_ID = "study.json"  # in the folder of the trials: names this $STUDY_ROOT

log = logging.getLogger(__name__)


def open_trials(problem: Problem, worker: str = "0") -> Trials:
    """Open the trials of a search.

    A new Optuna study takes over the results that the run folders hold of earlier trials under this name: trials of
    another space or other settings, or trials of this search whose storage was lost.
    """
    import optuna

    storage = open_storage(_location(problem), problem.workers)
    pruner: optuna.pruners.BasePruner | None = None
    if problem.prunes():
        first, factor = problem.rungs()
        pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=factor)
    folder = _trials_folder(problem)
    with locked(folder):
        study = open_study(storage, problem.optuna_name(), problem.objectives, pruner)
        _join_root(study, folder)
        if not study.user_attrs.get("earlier"):
            for trial in earlier_trials(problem, [t.params for t in study.get_trials(deepcopy=False)]):
                study.add_trial(trial)
            study.set_user_attr("earlier", "taken over")
            description = f"study.search {problem.space}, study {problem.setting.study}: {problem.module.QUESTION}"
            study.set_user_attr("about", description)
    progress_key = functools.partial(_progress_key, problem)
    return Trials(
        folder,
        storage,
        study,
        problem.dimensions(),
        problem.budget,
        problem.seed,
        worker,
        problem.first(),
        progress_key,
    )


def read_trials(problem: Problem) -> Trials | None:
    """The trials of a search as they are: changes nothing; None if there are none yet.

    Raises:
        ValueError: as `open_trials`.
    """
    import optuna

    storage, folder = read_storage(_location(problem), problem.workers), _trials_folder(problem)
    if storage is None:
        return None
    try:
        study = optuna.load_study(study_name=problem.optuna_name(), storage=storage)
    except KeyError:
        return None
    _check_root(study, read_json(folder / ROOT_ID))
    return Trials(folder, storage, study, problem.dimensions(), problem.budget, problem.seed)


def _location(problem: Problem) -> str:
    return problem.storage or str(problem.folder / JOURNAL)


def _trials_folder(problem: Problem) -> Path:
    """One per Optuna study and storage: trial numbers start at 0 in each."""
    name = problem.optuna_name()
    return problem.folder / "trials" / (f"{name}-{fingerprint(problem.storage, 6)}" if problem.storage else name)


def _join_root(study: optuna.Study, folder: Path) -> None:
    """Note which $STUDY_ROOT a study belongs to: only the leases there show which trials are being run.

    Raises:
        ValueError: the study belongs to another root.
    """
    root_id = read_json(folder / ROOT_ID)
    if root_id is None:
        root_id = uuid.uuid4().hex
        write_json(folder / ROOT_ID, root_id)
    _check_root(study, root_id)
    if "root" not in study.user_attrs:
        study.set_user_attr("root", root_id)


def _check_root(study: optuna.Study, root_id: str | None) -> None:
    if study.user_attrs.get("root", root_id) != root_id:
        raise ValueError(
            "this storage holds the search of another $STUDY_ROOT: all workers of a search need the same one; for a "
            "separate search give another --study or --storage"
        )


def _progress_key(problem: Problem, values: Values) -> str:
    """Names how far a trial's run is: a hash of its values and of the files that its stages have written."""
    folders = [stage.folder for stage in problem.plan([problem.run(values)]).stages]
    files = [path for folder in folders for name in ("record*.json", "*.safetensors") for path in folder.glob(name)]
    return fingerprint([dict(values), sorted(str(path.relative_to(study_root())) for path in files)], 12)


# A trial is a run


def evaluate_trial(problem: Problem, claimed: Claimed) -> Outcome:
    """Run the missing stages of a trial's run; called in every process of the worker.

    Raises:
        Interrupted: asked to stop; finished work is saved.
    """
    started = time.monotonic()
    fields: dict[str, Any] = {}
    try:
        plan = problem.plan([problem.run(claimed.values)])
        generator = planned_pair(plan)[1]
        fields = {"run": generator.fit.fingerprint}
        log.info("trial %d: %s", claimed.number, generator.run.name)
        if rank() == 0:
            note_trial(problem, claimed.values, plan)
        for stage in plan.jobs[0].stages:
            run_stage(stage, stage_title(stage))
        fields["images_seen"], pruned = _train_and_judge(problem, claimed, generator)
        fields["seconds"] = round(time.monotonic() - started, 3)
        if pruned:
            return Outcome(state="pruned", reason=_pruned_at(fields["images_seen"]), **fields)
        scores = run_scores(problem, generator.run)[problem.judge]
        return Outcome(state="complete", values=tuple(scores[objective] for objective in problem.objectives), **fields)
    except Interrupted:
        raise
    except LeaseLost:
        if world_size() > 1:  # the worker's other processes continue the stage; they notice when this one ends
            raise
        return evaluate_trial(problem, claimed)  # another worker runs that stage: wait for it
    except Exception as error:
        if world_size() > 1 and not isinstance(error, Diverged):  # other processes may wait; they notice when this ends
            raise
        log.error("trial %d failed\n%s", claimed.number, traceback.format_exc())
        state = "diverged" if isinstance(error, Diverged) else "failed"
        fields["seconds"] = round(time.monotonic() - started, 3)
        return Outcome(state=state, reason=f"{type(error).__name__}: {error}".splitlines()[0], **fields)  # type: ignore[arg-type]


def _train_and_judge(problem: Problem, claimed: Claimed, generator: Planned) -> tuple[int, bool]:
    """Train and judge the generator; returns the images seen at its last judgement, and whether it was pruned there.

    If trials can be pruned, the training is asked for one mark after the other, each of which is judged before the
    next. So judging cannot change the training's bits, and pruning never has to stop a running process. The default is
    never pruned, because all trials are compared with it.
    """
    *before, last = generator.results
    fit = generator.fit
    for result in before if problem.prunes() else ():
        mark = result.images_seen
        run_stage(fit.at([mark]), stage_title(fit))
        gfid = _judged(problem, result)["gfid"]
        prune = claimed.prune(gfid, mark)
        noted = broadcast((fit.failure() or {}).get("reason") == _pruned_at(mark))  # by a worker that was then killed
        if (prune or noted) and claimed.values != problem.default():
            if rank() == 0:
                _note_pruned(fit, mark)
            return mark, True
    run_stage(fit, stage_title(fit))
    for result in generator.results:
        gfid = _judged(problem, result)["gfid"]
    if claimed.trial is not None and len(problem.objectives) == 1:
        claimed.trial.report(gfid, last.images_seen)
    return last.images_seen, False


def _judged(problem: Problem, result: Result) -> dict[str, Any]:
    """Draw samples and judge them; returns the numbers by the judge that ranks trials."""
    for stage in result.stages:
        run_stage(stage, stage_title(stage))
    if rank() == 0:
        discard_judged(result.stages)
    return cast(dict[str, Any], result.measured(problem.judge))


def _note_pruned(fit: Stage, mark: int) -> None:
    """Record that a training was pruned, and delete its states, the largest files, which are not needed again."""
    with lease(fit.folder):
        if fit.record() is not None:
            return  # it was trained to the end earlier or meanwhile, for another plan
        for path in state_files(fit.folder).values():
            path.unlink(missing_ok=True)
        note_failure(fit, "pruned", _pruned_at(mark))


def _pruned_at(mark: int) -> str:
    return f"pruned at {mark:,} images"


# The worker


def do_stages(stages: Sequence[Stage], begin: int = 0) -> None:
    """Run the missing stages, together with the other workers, until each has its record or has failed here.

    Args:
        stages: in an order in which each comes after its inputs. A diverged training is not repeated.
        begin: index of the first stage to try; workers that begin elsewhere do not all wait for the same lease.

    Raises:
        Interrupted: asked to stop.
    """
    given_up: set[str] = set()
    watcher = Watcher()

    def next_stage() -> int | None:
        """Index of the first stage that is ready and that no worker runs; -1 to wait, None when nothing is left."""
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

    while (number := broadcast(next_stage() if rank() == 0 else None)) is not None:
        if any(all_gather(stop_requested.is_set())):
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
            if world_size() > 1:
                raise
        except Exception as error:
            if world_size() > 1 and not isinstance(error, Diverged):
                raise
            given_up.add(stage.fingerprint)
            log.error("%s failed\n%s", stage_title(stage), traceback.format_exc())


def repeat_best(problem: Problem, trials: Trials | None, number: int) -> None:
    """Repeat the best trials with other seeds: first the repeats that choose the winner, then those that score it.

    Args:
        number: of the worker.
    """
    for repeats_of in (outcome.choosing_runs, outcome.scoring_runs):
        repeats = broadcast([[v, r, s] for v, r, s in repeats_of(problem, trials)] if trials is not None else None)
        runs = [problem.run(values, repeat, scored) for values, repeat, scored in repeats]
        if not runs:
            continue
        if rank() == 0:
            for (values, repeat, _), run in zip(repeats, runs, strict=True):
                note_trial(problem, values, problem.plan([run]), repeat)
        stages = problem.plan(runs).stages
        do_stages(stages, begin=number * len(stages) // problem.workers % len(stages))


def run_worker(problem: Problem, number: int) -> bool:
    """Run trials until the budget is used up, then the repeats, and write the outcome; False if it was stopped.

    Workers that still wait in Slurm's queue when nothing is left to run are cancelled.
    """
    log_to_stdout()
    done = False
    with stop_on_signals(), process_group(problem.compute.device):
        trials = open_trials(problem, str(number)) if rank() == 0 else None
        try:
            do_trials(trials, functools.partial(evaluate_trial, problem))
            repeat_best(problem, trials, number)
            done = True
        except Interrupted as stopped:
            log.info("%s; the same command continues from here", stopped)
        if trials is not None and done:
            write_outcome(problem, trials)
            if trials.finished() and outcome.repeats_finished(problem, trials):
                folders = sorted((problem.folder / WORKERS).glob("*"))
                cancel_jobs(active_workers(folders, running=False).values())
    if not done and stop_requested.is_set() and rank_and_world_size()[0] == 0 and (message := requeue()):
        log.info("%s", message)
    return done
