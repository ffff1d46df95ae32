"""The trials of one search, shared by its workers: which worker has which trial, its outcome, and when all are done.

A trial belongs to the worker that holds the lease of its folder (study/core/lease.py). A trial whose worker is gone is
taken over by another worker with its number and its values. A new trial is created under a lock, so the number of
trials, running ones included, never exceeds the budget. The proposed values depend only on the seed, the trial's number
and the earlier trials: no two trials have the same number, so no restart and no other worker proposes the same again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from study.core.distributed import all_gather, broadcast, rank
from study.core.files import read_json, write_json
from study.core.lease import Watcher, beating, lease, locked
from study.core.randomness import derive_seed
from study.core.stopping import Interrupted, stop_requested
from study.search.spaces import Dimension, Values

ATTEMPTS = 3  # at one trial without progress, after which the trial is assumed to kill its workers, and fails
FAILURES = 3  # failed trials in a row, after which a worker assumes that the fault is its own, and ends
POLL_SECONDS = 1.0
BUDGET = "budget"  # attribute of the Optuna study: total number of trials
OUTCOME = "outcome"  # attribute of an Optuna trial: the fields of Outcome except `values`
STATES = {  # outcome state: Optuna's state. Optuna's sampler learns nothing from failed trials, so diverged is pruned
    "complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "diverged": TrialState.PRUNED,
}  # fmt: skip

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of one trial.

    The outcome of a whole search is in study/search/outcome.py.

    state: "complete", "pruned" and "diverged" are results; "failed" is not, and another trial replaces it.
    values: of a complete trial, in the order of the objectives. seconds: duration of the attempt that ended the trial,
    including the time spent waiting for stages that other workers run. images_seen: at its last value.
    """

    state: Literal["complete", "pruned", "diverged", "failed"]
    values: tuple[float, ...] = ()
    run: str = ""  # fingerprint, as in the results table
    seconds: float | None = None
    images_seen: int | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Claimed:
    """A trial that this worker holds and has to run. `trial` is None in all processes of a worker but the first."""

    number: int
    values: Values
    trial: Trial | None

    def prune(self, value: float, step: int) -> bool:
        """Report the value at `step` images seen; returns in every process whether the trial should be pruned."""
        should_prune = False
        if self.trial is not None:
            self.trial.report(value, step)
            should_prune = self.trial.should_prune()
        return bool(broadcast(should_prune))


@dataclass
class Trials:
    """The trials of a search, as one worker sees them.

    Args:
        folder: shared by all workers; holds the lock, and a lease for each trial. Not the journal's folder, which has a
            lock of its own.
        storage: of the Optuna study.
        study: see `open_study`.
        dimensions: of the space.
        budget: total number of trials, unless `set_total` stored another one.
        seed: of the proposed values.
        worker: permanent name of this worker, by which it finds its interrupted trial again.
        first: values to try once before any are proposed, after the default.
        progress_key: names how far the run of a trial with these values is; the name changes whenever it progresses.
    """

    folder: Path
    storage: optuna.storages.BaseStorage
    study: optuna.Study
    dimensions: Mapping[str, Dimension]
    budget: int
    seed: int = 0
    worker: str = "0"
    first: Sequence[Values] = ()
    progress_key: Callable[[Values], str] = lambda values: ""
    _watcher: Watcher = field(default_factory=Watcher)

    def all(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    @property
    def total(self) -> int:
        """The total number of trials that was set last; it may have changed since this worker started."""
        return self.study.user_attrs.get(BUDGET, self.budget)

    def set_total(self, budget: int) -> None:
        """Set the total number of trials, for every worker."""
        if self.study.user_attrs.get(BUDGET) != budget:
            self.study.set_user_attr(BUDGET, budget)

    def with_values(self) -> list[FrozenTrial]:
        """Trials that have all their values; a worker is just creating the others, or was killed while it did."""
        return [trial for trial in self.all() if self.dimensions.keys() <= trial.params.keys()]

    def values(self, trial: FrozenTrial | Trial) -> dict[str, Any]:
        """The values that the trial tries, in the order of the space."""
        params = trial.params
        return {name: d.value(params[name]) for name, d in self.dimensions.items() if name in params}

    def finished(self) -> bool:
        """Whether `total` trials have a result and no trial is under way."""
        trials = self.all()
        return sum(map(has_result, trials)) >= self.total and not any(map(under_way, trials))

    def summary(self) -> str:
        """The progress of the trials as one line of text."""
        trials = self.all()
        counts = Counter(self._state(trial) for trial in trials)
        counted = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
        complete = [trial.values for trial in trials if trial.state == TrialState.COMPLETE]
        names = self.study.metric_names or []
        lowest = [f"lowest {name} {min(v[i] for v in complete):.4g}" for i, name in enumerate(names) if complete]
        return f"{sum(map(has_result, trials))} of {self.total} trials: " + "; ".join([counted or "none yet", *lowest])

    def _state(self, trial: FrozenTrial) -> str:
        if trial.state == TrialState.RUNNING:
            return "running" if beating(self._folder(trial.number)) else "interrupted"
        return outcome_of(trial).get("state", trial.state.name.lower())

    def same_values(self, claimed: Claimed) -> FrozenTrial | None:
        """A trial with the same values that has a result."""
        same = (trial for trial in self.all() if has_result(trial) and self.values(trial) == claimed.values)
        return next(same, None)

    def _folder(self, number: int) -> Path:
        return self.folder / f"{number:05d}"

    def _note(self, number: int) -> Path:
        return self._folder(number) / "worker.json"

    @contextlib.contextmanager
    def claim(self) -> Iterator[Claimed | None]:
        """Hold a trial during the block: this worker's interrupted one, another one whose worker is gone, or a new one.

        None if the budget is used up. If the block raises Interrupted, the trial stays open and is claimed again later.
        """
        with contextlib.ExitStack() as stack:
            with locked(self.folder):
                trial = self._orphaned() or self._new()
                if trial is not None:
                    stack.enter_context(lease(self._folder(trial.number)))
                    for name, dimension in self.dimensions.items():  # draws only the values that the trial lacks
                        dimension.suggest(trial, name)
                    path, values = self._note(trial.number), self.values(trial)
                    attempts = self._attempts(trial)
                    note = {"worker": self.worker, "reached": self.progress_key(values), "attempts": attempts + 1}
                    write_json(path, note)
            if trial is None:
                yield None
                return
            try:
                yield Claimed(number=trial.number, values=values, trial=trial)
            except Interrupted:
                write_json(path, {**note, "attempts": attempts})
                raise

    def _attempts(self, trial: FrozenTrial | Trial) -> int:
        """How often a trial was started since its last progress."""
        note = read_json(self._note(trial.number))  # exists once all values are drawn
        return note["attempts"] if note and note.get("reached") == self.progress_key(self.values(trial)) else 0

    def _orphaned(self) -> Trial | None:
        """A running trial whose worker is gone, of this worker first; None if there is none."""
        running = [trial for trial in self.all() if trial.state == TrialState.RUNNING]
        workers = {trial.number: (read_json(self._note(trial.number)) or {}).get("worker") for trial in running}
        running.sort(key=lambda trial: workers[trial.number] != self.worker)
        for trial in running:
            if self._watcher.live(self._folder(trial.number)) is not None:
                continue
            (self._folder(trial.number) / "lease.json").unlink(missing_ok=True)
            if self._attempts(trial) >= ATTEMPTS:
                self.tell(trial.number, Outcome(state="failed", reason=f"killed {ATTEMPTS} times at the same place"))
                continue
            if workers[trial.number] is not None:
                log.info("trial %d continues here: its worker is gone", trial.number)
            self._prepare_sampler(trial.number)
            return self._trial(trial.number)
        return None

    def _trial(self, number: int) -> Trial:
        """An existing trial as an object to which values and attributes can be added."""
        study_id = self.storage.get_study_id_from_name(self.study.study_name)
        return Trial(self.study, self.storage.get_trial_id_from_study_id_trial_number(study_id, number))

    def _new(self) -> Trial | None:
        """A new trial, the default first, then those that the space names; None if the budget is used up."""
        trials = self.all()
        if not any(trial.state == TrialState.WAITING for trial in trials):
            tried = [self.values(trial) for trial in trials if has_result(trial) or under_way(trial)]
            if len(tried) >= self.total:
                return None
            default = {name: dimension.default for name, dimension in self.dimensions.items()}
            ever = [self.values(trial) for trial in trials]  # failed ones too
            if default not in tried:  # the other trials are compared with it
                self.study.enqueue_trial(default)
            elif (wanted := next((values for values in self.first if values not in ever), None)) is not None:
                self.study.enqueue_trial(dict(wanted))
        self._prepare_sampler(len(trials))
        return self.study.ask()

    def _prepare_sampler(self, number: int) -> None:
        # TPE handles one and two objectives (Ozaki et al. 2020); constant_liar keeps away from running trials' values
        self.study.sampler = optuna.samplers.TPESampler(
            multivariate=True,
            constant_liar=True,
            n_startup_trials=max(5, min(10, self.total // 4)),
            seed=derive_seed(self.seed, "trial", number) % 2**32,
        )

    def tell(self, number: int, outcome: Outcome) -> None:
        """Store the outcome of a trial; does nothing if the trial has a result already."""
        trial = next(trial for trial in self.all() if trial.number == number)
        if trial.state.is_finished():
            return
        fields = {name: value for name, value in dataclasses.asdict(outcome).items() if name != "values"}
        state = STATES.get(outcome.state, TrialState.FAIL)
        values = list(outcome.values) if state == TrialState.COMPLETE else None
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):  # a worker that took it over was faster
            self._trial(number).set_user_attr(OUTCOME, fields)
            self.study.tell(number, values, state, skip_if_finished=True)
        result = ", ".join(f"{value:.4g}" for value in outcome.values) or outcome.reason
        log.info("trial %d: %s", number, " ".join([outcome.state, result]).strip())


def outcome_of(trial: FrozenTrial) -> dict[str, Any]:
    """The stored outcome of a trial: the fields of Outcome except `values`; empty while the trial is under way."""
    return trial.user_attrs.get(OUTCOME, {})


def has_result(trial: FrozenTrial) -> bool:
    """Whether a trial counts towards the budget: it is complete, was pruned, or diverged."""
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED)


def under_way(trial: FrozenTrial) -> bool:
    return trial.state in (TrialState.RUNNING, TrialState.WAITING)


def open_study(
    storage: optuna.storages.BaseStorage,
    name: str,
    objectives: Sequence[str],
    pruner: optuna.pruners.BasePruner | None = None,
) -> optuna.Study:
    """Open the Optuna study of this name, or create it; all objectives are minimised."""
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        directions=["minimize"] * len(objectives),
        pruner=pruner or optuna.pruners.NopPruner(),
        load_if_exists=True,
    )
    if study.metric_names is None:
        study.set_metric_names(list(objectives))
    return study


class TrialsFailed(Exception):
    """So many trials failed one after the other that the fault is not theirs."""


def do_trials(trials: Trials | None, evaluate: Callable[[Claimed], Outcome]) -> None:
    """Run trials until the whole budget has results, trials of other workers included.

    Args:
        trials: None in all processes of a worker but the first, which tells the others what to run.

    Raises:
        Interrupted: asked to stop; the trial stays open and is claimed again later.
        TrialsFailed: FAILURES of them in a row.
    """
    failures = 0
    while True:
        with contextlib.ExitStack() as stack:
            claimed = stack.enter_context(trials.claim()) if trials is not None else None
            number_and_values = broadcast(None if claimed is None else [claimed.number, claimed.values])
            if number_and_values is None:
                finished = broadcast(trials is not None and trials.finished())
                if finished:
                    return
                _raise_if_stop_requested()
                time.sleep(POLL_SECONDS)
                continue
            if rank() > 0:
                claimed = Claimed(number=number_and_values[0], values=number_and_values[1], trial=None)
            assert claimed is not None
            outcome = _reused_outcome(trials, claimed) or evaluate(claimed)
            if trials is not None:
                trials.tell(claimed.number, outcome)
            failures = failures + 1 if outcome.state == "failed" else 0
        if failures >= FAILURES:
            raise TrialsFailed(f"{failures} trials in a row failed, the last one by: {outcome.reason}")
        _raise_if_stop_requested()


def _raise_if_stop_requested() -> None:
    """Raise Interrupted in every process if any process of the worker was asked to stop."""
    if any(all_gather(stop_requested.is_set())):
        raise Interrupted("the search was asked to stop")


def _reused_outcome(trials: Trials | None, claimed: Claimed) -> Outcome | None:
    """The outcome of an earlier trial with the same values, in every process; None if the values are new."""
    fields: dict[str, Any] | None = None
    if trials is not None and (same := trials.same_values(claimed)) is not None:
        assert claimed.trial is not None
        for step, value in same.intermediate_values.items():
            claimed.trial.report(value, step)
        fields = {**outcome_of(same), "seconds": 0.0}
        fields["values"] = same.values if same.state == TrialState.COMPLETE else []
    fields = broadcast(fields)
    return None if fields is None else Outcome(**{**fields, "values": tuple(fields["values"])})
