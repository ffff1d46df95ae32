"""A search: trials are runs, the best are repeated, and the outcome is written to files."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import optuna
import pandas as pd
import pytest
from made_up import COMPUTE, TINY, data_spec, draw_pictures

from results import searches
from results.table import load
from study import stages
from study.core.files import read_json, write_json
from study.core.lease import LeaseLost, lease, this_process
from study.core.stopping import Interrupted, stop_requested
from study.core.workspace import Diverged
from study.plan.scales import SCALES, smoke
from study.plan.setting import Setting
from study.plan.specs import FitGenerator, Generate
from study.plan.stage import snapshot_file
from study.report.refresh import StudyFiles
from study.report.rows import update_table
from study.search import worker
from study.search.outcome import CHOOSING, FEWEST, SCORING, best_trials, progress_line, write_outcome
from study.search.problem import Problem
from study.search.run import _finish as finish_search
from study.search.spaces import Choice, Number, space, spaces
from study.search.trial_notes import note_trial
from study.search.trials import Claimed, Trials, outcome_of
from study.search.worker import open_trials, run_worker
from study.submit import jobs
from study.submit.jobs import run_stage

JUDGES = (("efficientnet_lite2", 64), ("classifier", 0))


def make_problem(name="sampling", budget=6, *, out=None, **changes):
    scale = dataclasses.replace(smoke(), judges=JUDGES, **changes)
    setting = Setting(scale=scale, data=data_spec(), compute=COMPUTE, study="made")
    return Problem(space=name, setting=setting, budget=budget, seed=0, storage="", workers=1, out=out)


@pytest.fixture
def stages_run(monkeypatch):
    """Fake stages: gFID is lowest at shift 0.5 and learning rate 0.002, and falls with images and fewer channels.

    Returns a list that gets the kind and mark of every stage that is run.
    """
    ran = []

    def execute(stage, out):
        spec = stage.spec
        if isinstance(spec, FitGenerator):
            marks = spec.recipe.snapshot_images
            trained = read_json(out.folder / "trained.json") or 0
            for mark in (mark for mark in marks if mark > trained):
                snapshot_file(out.folder, "ema", mark).touch()
                (out.folder / "trained.json").write_text(str(mark))
                ran.append(("train", mark))
                if mark == out.pause_at:
                    (out.folder / "checkpoint-1.safetensors").touch()
                    raise Interrupted("asked to stop")
        else:
            ran.append((stage.kind, getattr(spec, "images_seen", None)))
        metrics = {}
        if "tokenizer" in stage.inputs:
            channels = stage.inputs["tokenizer"].spec.architecture.z_channels
            metrics = {"rfid": 1 / channels}
        if isinstance(spec, Generate):
            generator = stage.inputs["generator"]
            assert snapshot_file(generator.folder, "ema", spec.images_seen).exists()
            away = abs(spec.sampling.timestep_shift - 0.5) + 1000 * abs(generator.spec.recipe.learning_rate - 0.002)
            seeds = 1e-4 * (generator.spec.seed + spec.sampling.seed % 1000)
            metrics = {"gfid": channels + away + seeds + 100 / spec.images_seen}
        judged = {name: {**metrics, "comparable": True, "reference": "r" * 16} for name, _ in JUDGES}
        (out.folder / "sheet.png").touch()
        return {"cost": {}, "metrics": judged, "sheet": "sheet.png"}

    origin = {"commit": "c", "versions": "v", "device": "d", "precision": "float32", "threads": 1}
    monkeypatch.setattr(stages, "execute", execute)
    monkeypatch.setattr(jobs, "provenance", lambda compute: origin)
    monkeypatch.setattr(jobs, "log_to_stdout", lambda: None)
    return ran


def search(tmp_path, *arguments, **changes):
    """Run a search in this process and load its files."""
    problem = make_problem(*arguments, out=tmp_path, **changes)
    assert run_worker(problem, 0)
    return searches.load(tmp_path / "results" / "made", problem.space)


# Spaces


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", spaces())
def test_every_space_has_the_default_of_every_scale_and_all_its_corners_are_runs(name, scale):
    made = SCALES[scale]()
    setting = Setting(scale=made, data=data_spec(made.resolution), compute=COMPUTE, study="made")
    problem = Problem(space=name, setting=setting, budget=1, seed=0, storage="", workers=1, out=None)
    dimensions, default = problem.dimensions(), problem.default()
    unchanged = problem.run(default, scored=True).changes
    assert set(unchanged) <= {"sampling.solver", "sampling.seed"}  # Euler where the scale's solver is adaptive
    for dimension_name, dimension in dimensions.items():
        ends = dimension.choices if isinstance(dimension, Choice) else (dimension.low, dimension.high)
        for value in ends:
            assert problem.plan([problem.run({**default, dimension_name: value})]).jobs


def test_the_default_trial_of_the_generator_is_a_run_of_the_frontier():
    import ablations.frontier
    from study.plan.resolve import make_plan

    problem = make_problem("generator")
    s = problem.setting
    frontier = make_plan("frontier", ablations.frontier, s.scale, s.data, s.compute, s.study)
    assert set(problem.plan([problem.run(problem.default())]).stages) <= set(frontier.stages)


def test_guidance_ends_after_it_starts():
    problem = make_problem("sampling")
    for start in (0.0, 0.3, 0.6):
        for share in (0.1, 1.0):
            values = {**problem.default(), "guidance_scale": 2.0, "guidance_start": start, "guidance_share": share}
            low, high = problem.run(values).changes.get("sampling.guidance_interval", (0.0, 1.0))
            assert 0 <= low < high <= 1


def test_seeds_that_choose_score_nothing():
    problem = make_problem("sampling")
    seeds = [problem.run(problem.default(), repeat).changes["sampling.seed"] for repeat in (0, *CHOOSING)]
    assert seeds == [1_000_000, 1_000_001, 1_000_002]
    assert [problem.run(problem.default(), r, True).changes["sampling.seed"] for r in SCORING] == list(SCORING)


@pytest.mark.parametrize(("drawn", "value"), [(0.12345, 0.12), (0.1, 0.1), (0.3333333333, 1 / 3), (0.999, 0.99)])
def test_a_number_has_two_digits_and_the_default_is_as_it_is(drawn, value):
    assert Number(label="x", low=0.1, high=0.99, default=1 / 3).value(drawn) == pytest.approx(value)


def test_a_default_outside_its_range_is_refused():
    with pytest.raises(ValueError, match="x: the scale's 2 is not within 0 to 1"):
        Number(label="x", low=0, high=1, default=2)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (1.0, 1.0), (2.0, 1.0)])
def test_a_range_that_is_none_is_refused(low, high):
    with pytest.raises(ValueError, match="x: no range from"):
        Number(label="x", low=low, high=high, default=1.0, log=True)


def test_a_default_outside_of_a_space_names_its_file():
    guided = dataclasses.replace(smoke().sampling, guidance_scale=9.5)
    with pytest.raises(ValueError, match=r"not within 1.0 to .*; ranges are in ablations/spaces/sampling.py"):
        make_problem("sampling", sampling=guided).dimensions()


def test_an_unknown_space_names_the_nearest():
    with pytest.raises(ValueError, match="unknown space 'samplings'; nearest: sampling"):
        space("samplings")


# Trials are runs


def test_the_winner_is_chosen_on_some_new_seeds_and_scored_on_others(tmp_path, stages_run):
    found = search(tmp_path, "sampling", FEWEST + 4)
    assert [trial.state for trial in found.trials] == ["complete"] * 12
    assert found.trials[0].params == found.default.params
    lowest = sorted(found.trials[1:], key=lambda trial: trial.values["gfid"])
    assert [c.trial for c in found.candidates] == [trial.trial for trial in lowest[:5]]
    assert [len(c.again["gfid"]) for c in found.candidates] == [len(CHOOSING)] * 5
    scored = {c.trial: len(c.scores.get("gfid", ())) for c in found.candidates}
    assert scored == {c.trial: len(SCORING) if c.trial == found.winner else 0 for c in found.candidates}
    assert len(found.default.scores["gfid"]) == len(SCORING)
    assert found.beats_default is True and "3 held-out seeds" in found.reason and "by classifier" in found.reason
    assert max(found.importances["gfid"], key=found.importances["gfid"].get) == "timestep_shift"
    assert found.protocol["gfid"]["reference_hash"] == "r" * 12  # as it is in the table
    assert found.protocol["gfid"]["samples"] == 128 and "timestep_shift" not in found.protocol["gfid"]
    trainings = [kind for kind, _ in stages_run if kind in ("train", "fit_tokenizer")]
    assert trainings == ["fit_tokenizer", "train", "train"]  # once, to both marks


def test_rows_are_in_the_table_and_in_no_figure(tmp_path, stages_run):
    from figures.drawing import NothingToDraw
    from figures.rows import rows_for_figure
    from results.runs import scored

    search(tmp_path, "sampling", 3)
    table = load(tmp_path / "results" / "made" / "table.csv")
    generators = table[table["kind"] == "generator"]
    assert set(table["ablations"]) == {"search-sampling"} and set(table["state"]) == {"done"}
    assert len(generators) == 2 * (3 + 2 * len(CHOOSING) + 2 * len(SCORING))  # by both judges
    assert scored(table).empty
    with pytest.raises(NothingToDraw):
        rows_for_figure(table, "frontier")


def test_a_second_search_asks_nothing_and_writes_the_same_bytes(tmp_path, stages_run):
    search(tmp_path, "sampling", 4)
    files = {path: path.read_bytes() for path in tmp_path.rglob("results/made/**/*.*")}
    stages_run.clear()
    search(tmp_path, "sampling", 4)
    assert not stages_run
    assert {path: path.read_bytes() for path in tmp_path.rglob("results/made/**/*.*")} == files


# Pruning


def test_worse_trials_end_at_the_mark_where_they_are_pruned(tmp_path, stages_run, study_root):
    found = search(tmp_path, "generator", 12)
    states = [trial.state for trial in found.trials]
    assert set(states) == {"complete", "pruned"} and states[0] == "complete"
    for trial in found.trials:
        fit = study_root / "stages" / "fit_generator" / trial.run
        assert trial.images_seen == (256 if trial.state == "pruned" else 512)
        assert read_json(fit / "trained.json") == trial.images_seen
        assert not list(fit.glob("checkpoint-*"))
    table = load(tmp_path / "results" / "made" / "table.csv").set_index("fingerprint")
    pruned = next(trial for trial in found.trials if trial.state == "pruned")
    rows = table.loc[pruned.run].set_index(["images_seen", "extractor"])
    assert rows["state"].to_dict() == {
        (mark, judge): "done" if mark == 256 else "pruned" for mark in (256, 512) for judge, _ in JUDGES
    }
    assert set(rows.loc[512, "reason"]) == {"pruned at 256 images"}
    assert rows.loc[(256, "efficientnet_lite2"), "gfid"] == pruned.values["gfid"]


def test_two_objectives_are_not_pruned_and_have_a_front(tmp_path, stages_run):
    found = search(tmp_path, "tokenizer", 12, latent_channels=(4, 16))
    assert {trial.state for trial in found.trials} == {"complete"} and found.winner is None
    front = {(c.params["channels"], len(c.scores["rfid"]), len(c.scores["gfid"])) for c in found.candidates}
    assert front <= {(4, 3, 3), (8, 3, 3), (12, 3, 3), (16, 3, 3)} and len(front) > 1
    assert set(found.importances) <= {"rfid", "gfid"}


def test_the_front_is_drawn_over_the_studys_frontier(tmp_path, stages_run, monkeypatch):
    import ablations.frontier
    from figures import pareto
    from study.plan.resolve import make_plan

    problem = make_problem("tokenizer", 4, out=tmp_path, latent_channels=(4, 16))
    s = problem.setting
    frontier = make_plan("frontier", ablations.frontier, s.scale, s.data, s.compute, s.study)
    for stage in frontier.stages:
        run_stage(stage)
    monkeypatch.setattr(StudyFiles, "update", lambda self: update_table(self.plan, self.out))  # one figure is enough
    StudyFiles(frontier, tmp_path).update()
    assert run_worker(problem, 0)
    folder = tmp_path / "results" / "made"
    drawn = pareto.draw(searches.load(folder, "tokenizer"), load(folder / "table.csv"))
    assert {"study", "front"} <= set(drawn.data["part"])


def test_a_run_that_pauses_for_its_judges_has_the_bits_of_one_that_does_not(tiny_plan, monkeypatch, tmp_path):
    """The real stages: weights of both snapshots and the sheets of samples."""

    def bits(plan):
        stages = plan.stages
        kept = {}
        for stage in stages[-3:]:
            assert stage.record()
            for path in sorted([*stage.folder.glob("*.safetensors"), *stage.folder.glob("*.png")]):
                kept[stage.kind, path.name, getattr(stage.spec, "images_seen", 0)] = path.read_bytes()
        return kept

    plan = tiny_plan()
    *tokenizer, fit, first, last = plan.stages
    for stage in tokenizer:
        run_stage(stage)
    before = os.environ["STUDY_ROOT"]
    shutil.copytree(before, tmp_path / "paused")
    for stage in (fit, first, last):
        run_stage(stage)
    whole = bits(plan)
    monkeypatch.setenv("STUDY_ROOT", str(tmp_path / "paused"))
    with pytest.raises(Interrupted):
        run_stage(fit, pause_at=32)
    assert fit.record() is None
    run_stage(first, without_record=("generator",))
    assert [path.name for path in fit.folder.glob("ema-*")] == ["ema-000000000032.safetensors"]
    for stage in (fit, first, last):
        run_stage(stage)
    assert bits(plan) == whole and len(whole) == 6


def test_the_default_is_never_pruned(tmp_path, stages_run, monkeypatch):
    monkeypatch.setattr(optuna.pruners.SuccessiveHalvingPruner, "prune", lambda *_: True)
    found = search(tmp_path, "generator", 3)
    assert [trial.state for trial in found.trials] == ["complete", "pruned", "pruned"]


# What decides


def test_there_is_no_winner_while_one_of_the_best_is_still_to_be_run(tmp_path, stages_run):
    problem = make_problem("sampling", 6, out=tmp_path)
    found = search(tmp_path, "sampling", 6)
    other = next(candidate for candidate in found.candidates if candidate.trial != found.winner)
    again = problem.plan([problem.run(other.params, CHOOSING[0])]).runs[1].results[-1]
    (again.folder / "record.json").unlink()
    found = write_outcome(problem, open_trials(problem))
    assert found.winner is None and found.reason == "not all of the best have been run again"
    assert finish_search(problem, open_trials(problem), stopped=False) == 1
    search(tmp_path, "sampling", 6)
    assert finish_search(problem, open_trials(problem), stopped=False) == 0


@pytest.mark.parametrize("processes", [1, 2])
def test_a_repeat_that_diverges_is_out_and_is_not_trained_again(tmp_path, stages_run, monkeypatch, processes):
    whole, diverged = stages.execute, []

    def execute(stage, out):
        if isinstance(stage.spec, FitGenerator) and stage.spec.seed > 0 and (not diverged or stage in diverged):
            diverged.append(stage)
            raise Diverged("diverged at step 3")
        return whole(stage, out)

    monkeypatch.setattr(stages, "execute", execute)
    monkeypatch.setattr(worker, "world_size", lambda: processes)
    found = search(tmp_path, "generator", 6)
    out = [candidate.trial for candidate in found.candidates if len(candidate.again.get("gfid", ())) < len(CHOOSING)]
    assert len(diverged) == 1 and len(out) == 1 and found.winner not in (None, *out)
    assert search(tmp_path, "generator", 6) == found and len(diverged) == 1


def test_the_best_are_different_runs(tmp_path, stages_run):
    problem = make_problem("sampling", 5, out=tmp_path)
    trials = open_trials(problem)
    for start in (0.0, 0.3, 0.5):  # without guidance its interval moves nothing
        trials.study.enqueue_trial({**problem.default(), "guidance_scale": 1.0, "guidance_start": start, "steps": 2})
    assert run_worker(problem, 0)
    runs = [problem.run(trials.values(trial)) for trial in best_trials(problem, trials)]
    assert all(run not in runs[:number] for number, run in enumerate(runs)) and len(runs) == 2


def test_a_trial_that_diverges_counts(tmp_path, stages_run, monkeypatch):
    whole = stages.execute

    def execute(stage, out):
        if isinstance(stage.spec, FitGenerator) and stage.spec.recipe.learning_rate > 0.0007:
            raise Diverged("diverged at step 3")
        return whole(stage, out)

    monkeypatch.setattr(stages, "execute", execute)
    found = search(tmp_path, "generator", 6)
    assert {t.state for t in found.trials if t.params["learning_rate"] > 0.0007} == {"diverged"}
    assert len(found.trials) == 6


# Changed, lost, interrupted


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


def test_files_that_are_deleted_are_written_again(tmp_path, stages_run):
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
    assert len(again.trials) == 8 and not {kind for kind, _ in stages_run} - {"generate"}


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
        if stage.kind == "generate" and len(stages_run) == 7:
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
        if stage.kind == "generate" and stage.spec.sampling.timestep_shift > 1.5:
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
    with open_trials(problem).claim() as claimed, pytest.raises(Interrupted):
        fit = problem.plan([problem.run(claimed.values)]).runs[1].fit
        note_trial(problem, claimed.values, problem.plan([problem.run(claimed.values)]))
        for stage in problem.plan([problem.run(claimed.values)]).jobs[0].stages:
            run_stage(stage)
        run_stage(fit, pause_at=256)
    assert unreferenced(tmp_path) == []


def test_a_command_that_names_no_number_of_trials_asks_for_as_many_as_before(tmp_path, stages_run, capsys):
    from study.search.options import TRIALS, Search
    from study.search.run import run

    options = Search(space="sampling", executor="inline", out=tmp_path, trials=4)
    assert run(options, make_problem("sampling", 4, out=tmp_path), []) == 0
    assert run(dataclasses.replace(options, trials=None), make_problem("sampling", TRIALS, out=tmp_path), []) == 0
    said = capsys.readouterr().out
    assert said.count("4 of 4 trials") == 1 and f"of {TRIALS} trials" not in said
    assert "written " in said.splitlines()[-2]


# Seen from outside


@pytest.fixture
def started(tmp_path, stages_run, monkeypatch):
    """A started search with a running trial, whose training is in progress in a process of this machine."""
    from study.search.launches import note_search
    from study.search.options import Search

    problem = make_problem("generator", 4, out=tmp_path)
    note_search(Search(space="generator", study="made", out=tmp_path), problem)
    monkeypatch.setattr("study.search.launches.prepare", lambda options: (problem, []))
    with open_trials(problem).claim() as claimed:
        fit = problem.plan([problem.run(claimed.values)]).runs[1].fit
        with lease(fit.folder) as held:
            held.progress = {"done": 3, "total": 4, "rate": 0.1, "unit": "images"}
            held._write()
            yield problem


def manage(capsys, *arguments):
    from study.manage import main

    code = main(list(arguments))
    said = capsys.readouterr()
    return code, said.out + said.err


def test_status_tells_how_far_a_search_is(started, capsys, study_root):
    code, said = manage(capsys, "status", "made")
    assert code == 0 and "made, search generator: 0 of 4 trials: 1 running" in said
    row = next(line.split() for line in said.splitlines() if "fit_generator" in line)
    assert row[0] == "0" and "75%" in row and "10" in row
    assert "its own command continues it" in manage(capsys, "retry", "made")[1]
    note = next(study_root.glob("sweeps/made/search-generator.json"))
    about = read_json(note)
    write_json(note, {**about, "options": {**about["options"], "patience": 3}})
    code, said = manage(capsys, "status", "made")
    assert code == 2 and "it was started by another version of this code" in said and len(said.splitlines()) == 1
    code, said = manage(capsys, "status", "mad")
    assert (code, said) == (2, "study.sweep status: no study called 'mad' was started; nearest: made\n")


def test_cancel_ends_the_workers_of_a_search(started, capsys):
    assert manage(capsys, "cancel") == (0, "made, search generator: nothing waits or runs\n")
    with subprocess.Popen(["sleep", "600"]) as worker:
        folder = started.folder / "workers" / "1"
        folder.mkdir(parents=True)
        write_json(folder / "submission.json", this_process(worker.pid))
        assert "1 worker runs or waits" in manage(capsys, "status", "made")[1]
        assert manage(capsys, "cancel", "made")[0] == 2  # nobody to ask
        assert worker.poll() is None
        assert manage(capsys, "cancel", "made", "--yes")[0] == 0
        assert worker.wait(20) == -signal.SIGTERM


def test_what_decides_is_counted_once_all_trials_are_there(tmp_path, stages_run):
    problem = make_problem("sampling", 3, out=tmp_path)
    search(tmp_path, "sampling", 3)
    line = progress_line(problem, open_trials(problem))
    assert line.endswith("; choosing repeats: 4 of 4; scoring repeats: 6 of 6")
    assert "repeats" not in progress_line(problem, open_trials(make_problem("sampling", 4, out=tmp_path)))


# The command


def command(*arguments, **options):
    line = [sys.executable, "-m", "study.search", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=500, **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["samplin"], "unknown space 'samplin'; nearest: sampling"),
        (["sampling", "--trials", "0"], "--trials must be at least 1, got 0"),
        (["sampling", "--workers", "0"], "--workers must be at least 1, got 0"),
        (["sampling", "--executor", "inline", "--workers", "2"], "--executor inline is one worker"),
        (["sampling", "--storage", "sqlite:///x.db", "--workers", "2"], "SQLite locks its whole file"),
        (["sampling", "--detach"], "--detach and --cluster are for --executor slurm"),
    ],
)
def test_what_cannot_be_asked_is_one_line(tmp_path, arguments, message):
    pictures = draw_pictures(tmp_path / "pictures", side=32)
    done = command(*arguments, *TINY, "--data", pictures, "--out", tmp_path / "out")
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("study.search: ") and message in line


@pytest.mark.slow  # a minute
def test_a_search_of_two_workers_with_real_stages(tmp_path):
    pictures = draw_pictures(tmp_path / "pictures", side=32)
    arguments = ["generator", *TINY, "--data", pictures, "--study", "it", "--out", tmp_path]
    shown = command(*arguments, "--dry-run")
    assert shown.returncode == 0 and "0 of 20 trials" in shown.stdout and "learning rate" in shown.stdout
    done = command(*arguments, "--trials", 6, "--workers", 2)
    assert done.returncode == 0, done.stdout + done.stderr
    found = searches.load(tmp_path / "results" / "it", "generator")
    assert sorted(trial.state for trial in found.trials if trial.state != "pruned") and len(found.trials) == 6
    assert found.winner is not None or all(t.state == "pruned" for t in found.trials[1:])
    table = pd.read_csv(tmp_path / "results" / "it" / "table.csv")
    assert set(table["state"]) <= {"done", "pruned"}
    again = command(*arguments, "--trials", 6, "--workers", 2)
    assert again.returncode == 0 and "6 of 6 trials" in again.stdout
    assert json.loads((tmp_path / "results" / "it" / "search" / "generator.json").read_text())["budget"] == 6


@pytest.mark.slow  # a minute
def test_a_worker_of_two_processes_is_stopped_in_the_middle_and_goes_on(tmp_path, study_root):
    pictures = draw_pictures(tmp_path / "pictures", side=32)
    arguments = ["generator", *TINY, "--data", pictures, "--study", "it", "--out", tmp_path, "--trials", "2"]
    arguments = list(map(str, [*arguments, "--workers", "1", "--set", "execution.processes=2"]))
    first = subprocess.Popen([sys.executable, "-m", "study.search", *arguments], stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while len(list(study_root.glob("stages/fit_generator/*/ema-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    first.terminate()
    said, _ = first.communicate(timeout=100)
    assert first.returncode == 130 and "run the same command again to continue" in said
    done = command(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    found = searches.load(tmp_path / "results" / "it", "generator")
    assert [trial.trial for trial in found.trials] == [0, 1]
    assert {trial.state for trial in found.trials} <= {"complete", "pruned"}
    logs = {path.name.split("_")[-2] for path in study_root.glob("searches/it-generator/workers/0/*_log.out")}
    assert logs == {"0", "1"}
    for fit in study_root.glob("stages/fit_generator/*"):
        assert (read_json(fit / "record.json") or read_json(fit / "failure.json")) is not None


def test_it_says_what_the_folder_of_its_pictures_left_out(tmp_path, capsys):
    from study.search.options import Search
    from study.search.run import run

    pictures = draw_pictures(tmp_path / "birds", per_class=2)
    (pictures / "class0" / "moves.gif").write_bytes(b"GIF89a")
    assert run(Search(space="sampling", data=str(pictures), dry_run=True), make_problem(), []) == 0
    assert "left out 1 .gif: pictures are .png, " in capsys.readouterr().out
