"""The trials of one search, shared by its workers: who takes which, what came out, when all of them are there.

A trial belongs to whoever holds the lease of its folder (study/core/lease.py), so one whose worker is gone is found and
taken over under its own number, with its own values. Asking is one step under a lock: the trials there are, running
ones included, never pass the budget. What is drawn depends on the seed, the trial's number and the trials before it
alone, so neither a restart nor another worker draws the same again.
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

from study.core.distributed import from_main, gathered, rank
from study.core.files import read_json, write_json
from study.core.lease import Watcher, holder, lease, locked
from study.core.randomness import derive_seed
from study.core.stopping import Interrupted, stop_requested
from study.search.spaces import Dimension, Values

ATTEMPTS = 3  # of one trial that got no further, before it is taken to be what kills its workers
FAILURES = 3  # in a row, before a worker takes the fault to be its own
POLL_SECONDS = 1.0
BUDGET = "budget"  # attribute of the study: trials in all
OUTCOME = "outcome"  # attribute of a trial: what is known of it beside Optuna's own
STATES = {  # Optuna's: it learns nothing from trials that it calls failed
    "complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "diverged": TrialState.PRUNED,
}  # fmt: skip

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came out of a trial.

    state: "diverged" is a result like "complete" and "pruned"; "failed" is none, and another trial takes its place.
    values: by objective, of a trial that is complete. seconds: of the attempt that ended it, waiting for stages that
    others do included. images_seen: at its last value.
    """

    state: Literal["complete", "pruned", "diverged", "failed"]
    values: tuple[float, ...] = ()
    run: str = ""  # fingerprint, as in the results table
    seconds: float | None = None
    images_seen: int | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Claimed:
    """A trial that this worker has to do. `trial` is None in all processes of a worker but the first."""

    number: int
    values: Values
    trial: Trial | None

    def prune(self, value: float, step: int) -> bool:
        """Report a value at so many images seen; whether the trial had better end, the same in every process."""
        found = False
        if self.trial is not None:
            self.trial.report(value, step)
            found = self.trial.should_prune()
        return bool(from_main(found))


@dataclass
class Trials:
    """The trials of a search, as one worker sees them.

    Args:
        folder: shared by all workers: the lock, and a lease for each trial. Not the journal's, which has a lock too.
        study: Optuna's, see `open_study`.
        dimensions: of the space.
        budget: trials in all, unless another was noted by `ask_for`.
        seed: of what is drawn.
        worker: names this worker for good, so that it finds a trial again that it was torn from.
        reached: names how far a trial of such values is; another name each time that it got further.
    """

    folder: Path
    study: optuna.Study
    dimensions: Mapping[str, Dimension]
    budget: int
    seed: int = 0
    worker: str = "0"
    reached: Callable[[Values], str] = lambda values: ""
    _watcher: Watcher = field(default_factory=Watcher)

    def all(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    @property
    def total(self) -> int:
        """Trials in all, as they were asked for last: it may have changed since this worker began."""
        return self.study.user_attrs.get(BUDGET, self.budget)

    def ask_for(self, budget: int) -> None:
        """Note how many trials there are to be in all, for every worker."""
        if self.study.user_attrs.get(BUDGET) != budget:
            self.study.set_user_attr(BUDGET, budget)

    def asked(self) -> list[FrozenTrial]:
        """Those whose values are all drawn; of others a worker is just asking, or was when it was killed."""
        return [trial for trial in self.all() if self.dimensions.keys() <= trial.params.keys()]

    def values(self, trial: FrozenTrial | Trial) -> dict[str, Any]:
        """What the trial tries, in the order of the space."""
        drawn = trial.params
        return {name: d.value(drawn[name]) for name, d in self.dimensions.items() if name in drawn}

    def finished(self) -> bool:
        """Whether as many trials as the budget says have a result, and none is under way."""
        trials = self.all()
        return sum(map(has_result, trials)) >= self.total and not any(map(under_way, trials))

    def standing(self) -> str:
        """How far the search is, in words."""
        trials = self.all()
        counts = Counter(self._state(trial) for trial in trials)
        counted = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
        complete = [trial.values for trial in trials if trial.state == TrialState.COMPLETE]
        names = self.study.metric_names or []
        lowest = [f"lowest {name} {min(v[i] for v in complete):.4g}" for i, name in enumerate(names) if complete]
        return f"{sum(map(has_result, trials))} of {self.total} trials: " + "; ".join([counted or "none yet", *lowest])

    def _state(self, trial: FrozenTrial) -> str:
        if trial.state == TrialState.RUNNING:
            return "running" if holder(self._folder(trial.number)) else "interrupted"
        return outcome_of(trial).get("state", trial.state.name.lower())

    def earlier(self, claimed: Claimed) -> FrozenTrial | None:
        """A trial of the same values that has its result."""
        same = (trial for trial in self.all() if has_result(trial) and self.values(trial) == claimed.values)
        return next(same, None)

    def _folder(self, number: int) -> Path:
        return self.folder / f"{number:05d}"

    def _note(self, number: int) -> Path:
        return self._folder(number) / "worker.json"

    @contextlib.contextmanager
    def claim(self) -> Iterator[Claimed | None]:
        """Hold a trial for the block: one whose worker is gone, the own one first, else a new one.

        None where all of the budget is taken. A block that is left by Interrupted leaves the trial to be taken again.
        """
        with contextlib.ExitStack() as held:
            with locked(self.folder):
                trial = self._left_behind() or self._new()
                if trial is not None:
                    held.enter_context(lease(self._folder(trial.number)))
                    for name, dimension in self.dimensions.items():  # of a trial that is taken over, what is not there
                        dimension.suggest(trial, name)
                    note, values = self._note(trial.number), self.values(trial)
                    attempts = self._attempts(trial)
                    about = {"worker": self.worker, "reached": self.reached(values), "attempts": attempts + 1}
                    write_json(note, about)
            if trial is None:
                yield None
                return
            try:
                yield Claimed(number=trial.number, values=values, trial=trial)
            except Interrupted:
                write_json(note, {**about, "attempts": attempts})
                raise

    def _attempts(self, trial: FrozenTrial | Trial) -> int:
        """How often a trial was begun since it last got further."""
        note = read_json(self._note(trial.number))  # is there once all values are drawn
        return note["attempts"] if note and note.get("reached") == self.reached(self.values(trial)) else 0

    def _left_behind(self) -> Trial | None:
        """A trial that is under way and whose worker is gone."""
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
                log.info("trial %d goes on: its worker is gone", trial.number)
            self._prepare_sampler(trial.number)
            return Trial(self.study, trial._trial_id)
        return None

    def _new(self) -> Trial | None:
        trials = self.all()
        if not any(trial.state == TrialState.WAITING for trial in trials):
            there = [self.values(trial) for trial in trials if has_result(trial) or under_way(trial)]
            if len(there) >= self.total:
                return None
            default = {name: dimension.default for name, dimension in self.dimensions.items()}
            if default not in there:  # what the others are compared with
                self.study.enqueue_trial(default)
        self._prepare_sampler(len(trials))
        return self.study.ask()

    def _prepare_sampler(self, number: int) -> None:
        # one sampler for one objective and for two (Ozaki et al. 2020); running trials count as taken (constant_liar)
        self.study.sampler = optuna.samplers.TPESampler(
            multivariate=True,
            constant_liar=True,
            n_startup_trials=max(5, min(10, self.total // 4)),
            seed=derive_seed(self.seed, "trial", number) % 2**32,
        )

    def tell(self, number: int, outcome: Outcome) -> None:
        """Write down what came out; of a trial that has a result already, nothing."""
        trial = next(trial for trial in self.all() if trial.number == number)
        if trial.state.is_finished():
            return
        about = {name: value for name, value in dataclasses.asdict(outcome).items() if name != "values"}
        state = STATES.get(outcome.state, TrialState.FAIL)
        values = list(outcome.values) if state == TrialState.COMPLETE else None
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):  # whoever took it over was first
            self.study._storage.set_trial_user_attr(trial._trial_id, OUTCOME, about)
            self.study.tell(number, values, state, skip_if_finished=True)
        told = ", ".join(f"{value:.4g}" for value in outcome.values) or outcome.reason
        log.info("trial %d: %s", number, " ".join([outcome.state, told]).strip())


def outcome_of(trial: FrozenTrial) -> dict[str, Any]:
    """What is known of a trial beside Optuna's own: the fields of Outcome but `values`; empty while it is under way."""
    return trial.user_attrs.get(OUTCOME, {})


def has_result(trial: FrozenTrial) -> bool:
    """Whether a trial counts: it is complete, was pruned, or has diverged."""
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED)


def under_way(trial: FrozenTrial) -> bool:
    return trial.state in (TrialState.RUNNING, TrialState.WAITING)


def open_study(
    storage: optuna.storages.BaseStorage,
    name: str,
    objectives: Sequence[str],
    pruner: optuna.pruners.BasePruner | None = None,
) -> optuna.Study:
    """Optuna's study of this name, made when missing; all objectives are minimised."""
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


def do_trials(trials: Trials | None, evaluate: Callable[[Claimed], Outcome]) -> None:
    """Do trials until all of the budget have their results, those of other workers included.

    Args:
        trials: None in all processes of a worker but the first, which learn from it what to do.

    Raises:
        Interrupted: asked to stop; the trial is left to be taken again.
        RuntimeError: trials failed in a row.
    """
    failures = 0
    while True:
        with contextlib.ExitStack() as held:
            claimed = held.enter_context(trials.claim()) if trials is not None else None
            told = from_main(None if claimed is None else [claimed.number, claimed.values])
            if told is None:
                over = from_main(trials is not None and trials.finished())
                if over:
                    return
                _stop_if_any_is_asked()
                time.sleep(POLL_SECONDS)
                continue
            if rank() > 0:
                claimed = Claimed(number=told[0], values=told[1], trial=None)
            assert claimed is not None
            outcome = _repeated(trials, claimed) or evaluate(claimed)
            if trials is not None:
                trials.tell(claimed.number, outcome)
            failures = failures + 1 if outcome.state == "failed" else 0
        if failures >= FAILURES:
            raise RuntimeError(f"{failures} trials in a row failed, the last one by: {outcome.reason}")
        _stop_if_any_is_asked()


def _stop_if_any_is_asked() -> None:
    if any(gathered(stop_requested.is_set())):
        raise Interrupted("the search was asked to stop")


def _repeated(trials: Trials | None, claimed: Claimed) -> Outcome | None:
    """What came out of the same values before, in every process; None where they are new."""
    found: dict[str, Any] | None = None
    if trials is not None and (same := trials.earlier(claimed)) is not None:
        assert claimed.trial is not None
        for step, value in same.intermediate_values.items():
            claimed.trial.report(value, step)
        found = {**outcome_of(same), "seconds": 0.0}
        found["values"] = same.values if same.state == TrialState.COMPLETE else []
    found = from_main(found)
    return None if found is None else Outcome(**{**found, "values": tuple(found["values"])})
