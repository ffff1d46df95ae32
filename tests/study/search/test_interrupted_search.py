"""A search that is changed, loses files or is interrupted: nothing that was done is lost or done twice."""

import dataclasses
import shutil

import pytest
from made_problems import make_problem, search

from results import searches
from study import stages
from study.core.lease import LeaseLost
from study.core.stopping import Interrupted, stop_requested
from study.core.workspace import Diverged
from study.manage import states_of_finished_trainings
from study.plan.scales import smoke
from study.plan.specs import FitGenerator
from study.search import worker
from study.search.outcome import write_outcome
from study.search.spaces import Number, space
from study.search.trial_notes import note_trial, noted_stages
from study.search.trials import Claimed, Trials, outcome_of
from study.search.worker import open_trials, run_worker
from study.submit.jobs import run_stage


def test_other_settings_under_the_same_name_have_trials_of_their_own(tmp_path, stages_run):
    search(tmp_path, "sampling", 4)
    samples = smoke().sampling.samples * 2
    other = make_problem("sampling", 4, out=tmp_path, sampling=dataclasses.replace(smoke().sampling, samples=samples))
    assert not open_trials(other).all()
    with open_trials(other).claim() as one, open_trials(make_problem("sampling", 5, out=tmp_path)).claim() as two:
        assert (one.number, two.number) == (0, 4)
    assert open_trials(other).folder != open_trials(make_problem(out=tmp_path)).folder


def test_a_trial_whose_values_are_only_being_drawn_is_not_told_of_yet(tmp_path, stages_run, monkeypatch):
    problem = make_problem("sampling", 3, out=tmp_path)
    drawn = Number.suggest

    def killed(self, trial, name):
        if name == "steps":
            raise KeyboardInterrupt
        drawn(self, trial, name)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), open_trials(problem).claim():
        patch.setattr(Number, "suggest", killed)
        with open_trials(problem).claim():
            pass
    assert len(open_trials(problem).all()) == 2
    assert len(write_outcome(problem, open_trials(problem)).trials) == 1


def test_files_that_are_deleted_are_written_again(tmp_path, stages_run_and_drawn):
    search(tmp_path, "sampling", 2)
    folder = tmp_path / "results" / "made" / "search"
    gone = [folder.parent / "table.csv", tmp_path / "figures" / "made" / "search-sampling.png"]
    before = [path.read_bytes() for path in gone]
    for path in gone:
        path.unlink()
    (folder / "sampling.csv").rename(folder / "generator.csv")
    (folder / "sampling.json").unlink()
    search(tmp_path, "sampling", 2)
    assert [path.read_bytes() for path in gone] == before


def test_a_search_that_has_just_begun_does_not_replace_one_that_got_further(tmp_path, stages_run, monkeypatch):
    finished = search(tmp_path, "sampling", 4)
    monkeypatch.setenv("STUDY_ROOT", str(tmp_path / "other"))
    problem = make_problem("sampling", 6, out=tmp_path)
    trials = open_trials(problem)
    with trials.claim() as claimed:
        trials.tell(claimed.number, worker.evaluate_trial(problem, claimed))
    write_outcome(problem, trials)
    assert searches.load(tmp_path / "results" / "made", "sampling") == finished
    assert len(search(tmp_path, "sampling", 6).trials) == 6


def test_the_storage_of_another_root_is_refused(tmp_path, stages_run, monkeypatch):
    problem = dataclasses.replace(make_problem("sampling", 4, out=tmp_path), storage=f"sqlite:///{tmp_path}/it.db")
    open_trials(problem)
    open_trials(problem)
    monkeypatch.setenv("STUDY_ROOT", str(tmp_path / "other"))
    with pytest.raises(ValueError, match=r"holds the search of another \$STUDY_ROOT"):
        open_trials(problem)


def test_a_worker_that_is_killed_before_it_says_that_a_trial_is_pruned(tmp_path, stages_run, study_root, monkeypatch):
    problem = make_problem("generator", 12, out=tmp_path)
    told = Trials.tell

    def tell(self, number, outcome):
        if outcome.state == "pruned":
            raise KeyboardInterrupt
        told(self, number, outcome)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trials, "tell", tell)
        run_worker(problem, 0)
    stages_run.clear()
    with open_trials(problem).claim() as claimed:
        assert worker.evaluate_trial(problem, claimed).state == "pruned"
    assert not stages_run


def test_clean_keeps_the_state_from_which_an_interrupted_trial_goes_on(tmp_path, stages_run, monkeypatch):
    problem = make_problem("generator", 1, out=tmp_path)

    def stopped(*_):
        raise Interrupted("the search was asked to stop")

    with monkeypatch.context() as patch:
        patch.setattr(Claimed, "prune", stopped)
        assert not run_worker(problem, 0)
    (state,) = states_of_finished_trainings([])
    first, *later = problem.marks()
    assert state.name.startswith("checkpoint-") and int(state.stem.rpartition("-")[2]) == first and later
    assert states_of_finished_trainings(noted_stages()) == []
    assert run_worker(problem, 0)
    assert states_of_finished_trainings(noted_stages()) == states_of_finished_trainings([])


def test_of_several_processes_one_that_loses_its_lease_ends(stages_run, monkeypatch):
    def lost(*_, **__):
        raise LeaseLost("another process took over")

    problem = make_problem("sampling")
    monkeypatch.setattr(worker, "run_stage", lost)
    monkeypatch.setattr(worker, "world_size", lambda: 2)
    with pytest.raises(LeaseLost):
        worker.evaluate_trial(problem, Claimed(number=0, values=problem.default(), trial=None))
    with pytest.raises(LeaseLost):
        worker.do_stages(problem.plan([problem.run(problem.default())]).stages)


def test_a_changed_space_takes_over_the_trials_that_fit(tmp_path, stages_run, monkeypatch):
    first = search(tmp_path, "sampling", 8)
    module = space("sampling")
    declared = module.dimensions

    def narrower(scale):
        return declared(scale) | {"timestep_shift": Number(label="shift", low=0.3, high=1.0, default=1.0)}

    monkeypatch.setattr(module, "dimensions", narrower)
    fit = [t.params for t in first.trials if 0.3 <= t.params["timestep_shift"] <= 1.0]
    assert 0 < len(fit) < 8
    stages_run.clear()
    trials = open_trials(make_problem("sampling", 8, out=tmp_path))
    assert [trials.values(trial) for trial in trials.all()] == fit
    assert [trial.value for trial in trials.all()] == [
        t.values["gfid"] for t in first.trials if 0.3 <= t.params["timestep_shift"] <= 1.0
    ]
    again = search(tmp_path, "sampling", 8)
    assert len(again.trials) == 8 and not {kind for kind, _ in stages_run} - {"sample"}


@pytest.mark.parametrize("name", ["sampling", "generator"])
def test_a_search_whose_journal_is_lost_is_rebuilt_from_the_run_folders(
    tmp_path, stages_run, study_root, monkeypatch, name
):
    whole = stages.execute

    def execute(stage, out):
        if isinstance(stage.spec, FitGenerator) and stage.spec.recipe.learning_rate > 0.0015:
            raise Diverged("diverged at step 3")
        return whole(stage, out)

    monkeypatch.setattr(stages, "execute", execute)
    problem = make_problem(name, 8, out=tmp_path)
    before = search(tmp_path, name, 8)
    assert {trial.state for trial in before.trials} >= {"complete", *({"diverged"} if name == "generator" else ())}

    def known(trials):
        rungs = [{k: v for k, v in t.system_attrs.items() if k.startswith("completed_rung")} for t in trials.all()]
        assert any(rungs) == (name == "generator")
        return [(t.values, t.state, t.intermediate_values, r) for t, r in zip(trials.all(), rungs, strict=True)]

    told = known(open_trials(problem))
    shutil.rmtree(study_root / "searches")
    stages_run.clear()
    trials = open_trials(problem)
    assert known(trials) == told
    after = write_outcome(problem, trials)
    assert not stages_run and trials.finished()
    without_seconds = [dataclasses.replace(trial, seconds=None) for trial in before.trials]
    assert after == dataclasses.replace(before, trials=tuple(without_seconds))


def test_a_worker_that_is_stopped_goes_on_where_it_was(tmp_path, stages_run, monkeypatch):
    problem = make_problem("sampling", 4, out=tmp_path)
    whole = stages.execute

    def execute(stage, out):
        if stage.kind == "sample" and len(stages_run) == 7:
            stop_requested.set()
            raise Interrupted("asked to stop")
        return whole(stage, out)

    monkeypatch.setattr(stages, "execute", execute)
    try:
        assert not run_worker(problem, 0)
    finally:
        stop_requested.clear()
    monkeypatch.setattr(stages, "execute", whole)
    left = [trial.state.name for trial in open_trials(problem).all()]
    assert left[-1] == "RUNNING" and left[:-1] == ["COMPLETE"] * (len(left) - 1)
    assert "1 interrupted" in open_trials(problem).summary()
    write_outcome(problem, open_trials(problem))  # what a command that is stopped writes
    assert searches.load(tmp_path / "results" / "made", "sampling").trials[-1].state == "running"
    assert run_worker(problem, 0)
    assert [trial.state.name for trial in open_trials(problem).all()] == ["COMPLETE"] * 4


def test_a_trial_whose_run_fails_says_why_and_is_replaced(tmp_path, stages_run, monkeypatch):
    whole = stages.execute

    def execute(stage, out):
        if stage.kind == "sample" and stage.spec.sampling.timestep_shift > 1.5:
            raise OSError("no room on the disk")
        return whole(stage, out)

    monkeypatch.setattr(stages, "execute", execute)
    problem = make_problem("sampling", 8, out=tmp_path)
    found = search(tmp_path, "sampling", 8)
    failed = [trial for trial in found.trials if trial.state == "failed"]
    assert failed and all(trial.params["timestep_shift"] > 1.5 for trial in failed)
    assert len(found.trials) - len(failed) == 8
    trial = open_trials(problem).all()[failed[0].trial]
    assert outcome_of(trial)["reason"] == "OSError: no room on the disk"


def test_nothing_of_a_search_is_cleaned_away(tmp_path, stages_run):
    from study.manage import unreferenced

    problem = make_problem("generator", 3, out=tmp_path)
    with open_trials(problem).claim() as claimed:
        fit = problem.plan([problem.run(claimed.values)]).runs[1].fit
        note_trial(problem, claimed.values, problem.plan([problem.run(claimed.values)]))
        for stage in problem.plan([problem.run(claimed.values)]).jobs[0].stages:
            run_stage(stage)
        run_stage(fit.at([256]))
    assert unreferenced(tmp_path, []) == []


def test_a_command_that_names_no_number_of_trials_asks_for_as_many_as_before(tmp_path, stages_run_and_drawn, capsys):
    from study.search.options import TRIALS, Search
    from study.search.run import run

    options = Search(space="sampling", executor="inline", out=tmp_path, trials=4)
    assert run(options, make_problem("sampling", 4, out=tmp_path), []) == 0
    assert run(dataclasses.replace(options, trials=None), make_problem("sampling", TRIALS, out=tmp_path), []) == 0
    said = capsys.readouterr().out
    assert said.count("4 of 4 trials") == 1 and f"of {TRIALS} trials" not in said
    assert "written " in said.splitlines()[-2]
