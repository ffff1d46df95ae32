"""A search: trials are runs, the best are repeated, and the outcome is written to files."""

import os
import shutil

import optuna
import pytest
from made_problems import JUDGES, make_problem, search

from results import searches
from results.table import load
from study import stages
from study.core.workspace import Diverged
from study.plan.specs import FitGenerator
from study.plan.stage import recorded_marks, state_files
from study.report.refresh import StudyFiles
from study.search import worker
from study.search.outcome import CHOOSING, FEWEST, SCORING, best_trials, write_outcome
from study.search.run import _finish as finish_search
from study.search.worker import open_trials, run_worker
from study.submit.jobs import run_stage

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
    assert set(table["ablations"]) == {("search-sampling",)} and set(table["state"]) == {"done"}
    assert len(generators) == 2 * (3 + 2 * len(CHOOSING) + 2 * len(SCORING))  # by both judges
    assert scored(table).empty
    with pytest.raises(NothingToDraw):
        rows_for_figure(table, "frontier")


def test_a_second_search_asks_nothing_and_writes_the_same_bytes(tmp_path, stages_run_and_drawn):
    search(tmp_path, "sampling", 4)
    files = {path: path.read_bytes() for path in tmp_path.rglob("results/made/**/*.*")}
    stages_run_and_drawn.clear()
    search(tmp_path, "sampling", 4)
    assert not stages_run_and_drawn
    assert {path: path.read_bytes() for path in tmp_path.rglob("results/made/**/*.*")} == files


# Pruning


def test_worse_trials_end_at_the_mark_where_they_are_pruned(tmp_path, stages_run, study_root):
    found = search(tmp_path, "generator", 12)
    states = [trial.state for trial in found.trials]
    assert set(states) == {"complete", "pruned"} and states[0] == "complete"
    for trial in found.trials:
        fit = study_root / "stages" / "fit_generator" / trial.run
        assert trial.images_seen == (256 if trial.state == "pruned" else 512)
        assert max(recorded_marks(trial.run)) == trial.images_seen
        assert bool(state_files(fit)) == (trial.state == "complete")
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


def test_the_front_is_drawn_over_the_studys_frontier(tmp_path, stages_run):
    import ablations.frontier
    from figures import pareto
    from study.plan.resolve import make_plan

    problem = make_problem("tokenizer", 4, out=tmp_path, latent_channels=(4, 16))
    s = problem.setting
    frontier = make_plan("frontier", ablations.frontier, s.scale, s.data, s.compute, s.study)
    for stage in frontier.stages:
        run_stage(stage)
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
            files = {*stage.folder.glob("*.safetensors"), *stage.folder.glob("*.png")}
            for path in sorted(files - {*state_files(stage.folder).values()}):
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
    run_stage(fit.at([32]))
    assert fit.record() is None
    run_stage(first)
    assert [path.name for path in fit.folder.glob("ema-*")] == ["ema-000000000032.safetensors"]
    for stage in (fit, first, last):
        run_stage(stage)
    assert bits(plan) == whole and len(whole) == 12


def test_the_default_is_never_pruned(tmp_path, stages_run, monkeypatch):
    monkeypatch.setattr(optuna.pruners.SuccessiveHalvingPruner, "prune", lambda *_: True)
    found = search(tmp_path, "generator", 3)
    assert [trial.state for trial in found.trials] == ["complete", "pruned", "pruned"]


# What decides


def test_there_is_no_winner_while_one_of_the_best_is_still_to_be_run(tmp_path, stages_run):
    problem = make_problem("sampling", 6, out=tmp_path)
    found = search(tmp_path, "sampling", 6)
    other = next(candidate for candidate in found.candidates if candidate.trial != found.winner)
    again = problem.plan([problem.run(other.params, CHOOSING[0])]).runs[1].results[-1].judges[0]
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
