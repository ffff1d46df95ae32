"""Budget and marks are requests along one training of a generator."""

import dataclasses
import io
import multiprocessing
import os
import shutil

import pytest
from interrupting import interrupted_after, weights
from made_up import COMPUTE, Asking, data_spec
from rich.console import Console

from study.core.files import load_tensors
from study.core.stopping import Interrupted, stop_requested
from study.manage import manage
from study.plan.resolve import make_plan
from study.plan.runs import Run
from study.plan.stage import mark_record, state_files
from study.plan.trajectory import goes_on_from, images_left, stretches
from study.report import console
from study.report.table_rows import rows_of
from study.stages import fit_generator
from study.submit.jobs import run_stage
from study.submit.options import Clean
from study.train.history import read_history


@pytest.fixture
def asked(tiny_plan, tiny_scale, run_or_copy):
    """`asked(marks)`: the plan of the tiny study with these marks; what the generator is trained on is done."""

    def plan(*marks, keep_states=False, judges=()):
        generator = dataclasses.replace(tiny_scale.generator, budget_images=max(marks), snapshot_images=marks)
        execution = dataclasses.replace(tiny_scale.execution, keep_states=keep_states)
        return tiny_plan(dataclasses.replace(tiny_scale, generator=generator, execution=execution, judges=judges))

    run_or_copy(plan(32).jobs[0].stages)
    return plan


def training(plan):
    return plan.jobs[1].stages[0]


@pytest.fixture
def steps(monkeypatch):
    """The images seen before each step that a generator makes."""
    made, original = [], fit_generator.step_function

    def step_function(*arguments):
        step = original(*arguments)
        return lambda images_seen: made.append(images_seen) or step(images_seen)

    monkeypatch.setattr(fit_generator, "step_function", step_function)
    return made


def last_state(stage):
    """Tensors of the state furthest along; its metadata also hold seconds."""
    return load_tensors(max(state_files(stage.folder).items())[1])


def elsewhere(monkeypatch, tmp_path):
    """Go on in a copy of $STUDY_ROOT, made before."""
    monkeypatch.setenv("STUDY_ROOT", str(tmp_path / "copy"))


@pytest.fixture
def copied(asked, tmp_path):
    shutil.copytree(os.environ["STUDY_ROOT"], tmp_path / "copy")


def test_a_larger_budget_goes_on_and_ends_with_the_bits_of_one_go(asked, copied, steps, monkeypatch, tmp_path):
    whole = training(asked(160))
    run_stage(whole)
    bits, state, record = weights(whole.folder), last_state(whole), whole.record()
    elsewhere(monkeypatch, tmp_path)
    first, second = training(asked(80)), training(asked(160))
    assert first.fingerprint == second.fingerprint == whole.fingerprint
    run_stage(first)
    assert (first.record()["fingerprint"], second.record()) == (whole.fingerprint, None)
    assert goes_on_from(second) == images_left(second) == 80
    steps.clear()
    with monkeypatch.context() as stopping:
        interrupted_after(stopping, 24)
        with pytest.raises(Interrupted):
            run_stage(second)
    stop_requested.clear()
    assert steps == [80, 88] and goes_on_from(second) == 96
    run_stage(second)
    assert steps == list(range(80, 160, 8))
    both = weights(second.folder)
    assert {name: both[name] for name in bits} == bits and len(both) == 4
    assert list(state_files(second.folder)) == [160]
    again = last_state(second)
    assert all(again[name].equal(tensor) for name, tensor in state.items()) and again.keys() == state.keys()
    assert second.record()["cost"]["final_loss"] == record["cost"]["final_loss"]
    assert [point["images_seen"] for point in read_history(second.folder)] == list(range(8, 161, 8))


def test_one_more_mark_trains_from_the_last_state_before_it(asked, steps):
    run_stage(training(asked(32, 96, keep_states=True)))
    between = training(asked(32, 64, 96))
    before = weights(between.folder)
    assert stretches(between) == [(32, 64)] and list(state_files(between.folder)) == [32, 96]
    steps.clear()
    run_stage(between)
    assert steps == [32, 40, 48, 56]
    after = weights(between.folder)
    assert {name: after[name] for name in before} == before and len(after) == 6
    assert list(state_files(between.folder)) == [32, 96]  # that of the last mark stays
    assert [point["images_seen"] for point in read_history(between.folder)] == list(range(8, 97, 8))


def test_marks_on_both_sides_of_a_state_each_train_from_the_last_before_them(asked, steps):
    run_stage(training(asked(48)))
    both = training(asked(16, 48, 64))
    assert stretches(both) == [(0, 16), (48, 64)] and images_left(both) == 32
    steps.clear()
    run_stage(both)
    assert steps == [0, 8, 48, 56]
    assert list(state_files(both.folder)) == [64]


def test_without_an_earlier_state_a_mark_trains_from_the_start_and_is_the_same(asked, copied, monkeypatch, tmp_path):
    run_stage(training(asked(32, 64)))
    bits = weights(training(asked(32)).folder)
    elsewhere(monkeypatch, tmp_path)
    run_stage(training(asked(64)))
    late = training(asked(32, 64))
    assert stretches(late) == [(0, 32)]
    run_stage(late)
    assert weights(late.folder) == bits
    assert list(state_files(late.folder)) == [64]


def test_a_training_killed_before_the_record_of_its_last_mark_trains_no_step_again(asked, steps):
    stage = training(asked(32))
    run_stage(stage)
    record, bits = stage.record(), weights(stage.folder)
    for path in (stage.folder / mark_record(32), *stage.folder.glob("ema-*")):
        path.unlink()
    steps.clear()
    run_stage(stage)
    assert steps == [] and weights(stage.folder) == bits
    assert stage.record()["cost"]["final_loss"] == record["cost"]["final_loss"]


def test_each_mark_is_judged_from_its_own_record_and_has_its_own_cost(asked, tmp_path):
    plan = asked(32, 64, judges=(("classifier", 0),))
    run_stage(training(plan).at([32]))
    first, by_judge, second, _ = plan.jobs[1].stages[1:]
    run_stage(first)
    run_stage(by_judge)
    with pytest.raises(RuntimeError, match="blocked by generator"):
        run_stage(second)
    run_stage(training(plan))
    run_stage(second)
    seconds = [training(plan).at([mark]).record()["cost"]["train_seconds"] for mark in (32, 64)]
    assert 0 < seconds[0] < seconds[1]
    rows = {row.images_seen: row for row in rows_of(plan, tmp_path) if row.kind == "generator"}
    assert [rows[mark].train_seconds for mark in (32, 64)] == seconds


def test_runs_with_other_marks_are_one_training(tiny_scale):
    base = Run(tokenizer="f4d4", generator="LightningDiT-XXS/2")
    shorter = dataclasses.replace(base, changes={"generator.budget_images": 48, "generator.snapshot_images": (16, 48)})
    with_judge = dataclasses.replace(tiny_scale, judges=(("classifier", 0),))
    plan = make_plan("two", Asking(base, shorter), with_judge, data_spec(), COMPUTE, "test")
    assert [job.kind for job in plan.jobs] == ["tokenizer", "generator"]
    assert training(plan).marks == (16, 32, 48, 64)
    assert [result.images_seen for planned in plan.runs[1:] for result in planned.results] == [32, 64, 16, 48]


def test_a_budget_is_a_mark_even_where_it_is_not_named(tiny_scale, tiny_plan):
    generator = dataclasses.replace(tiny_scale.generator, budget_images=128)
    plan = tiny_plan(dataclasses.replace(tiny_scale, generator=generator))
    assert [stage.spec.images_seen for stage in plan.jobs[1].stages[1:]] == [32, 64, 128]


def printed(monkeypatch, plan):
    shown = io.StringIO()
    monkeypatch.setattr(console, "console", Console(file=shown, width=120))
    console.print_plan(plan, 1)
    return shown.getvalue()


def test_the_plan_says_where_trainings_go_on_and_why_tokenizers_do_not(asked, tiny_plan, tiny_scale, monkeypatch):
    run_stage(training(asked(32)))
    text = printed(monkeypatch, asked(64))
    assert "goes on from 32 images" in text
    assert "Generators keep states of" in text and "a larger budget goes on from there" in text
    assert "cannot go on" not in text
    longer = dataclasses.replace(tiny_scale.tokenizer, budget_images=128)  # at a constant learning rate
    text = printed(monkeypatch, tiny_plan(dataclasses.replace(tiny_scale, tokenizer=longer)))
    assert "Tokenizers trained on 64 images cannot go on: a finished tokenizer keeps no state." in text
    other = dataclasses.replace(longer, kl_weight=1e-3)
    assert "cannot go on" not in printed(monkeypatch, tiny_plan(dataclasses.replace(tiny_scale, tokenizer=other)))


def train(root, stage, log):
    os.environ["STUDY_ROOT"] = root
    original = fit_generator.step_function

    def step_function(*arguments):
        step = original(*arguments)

        def logged(images_seen):
            with open(log, "a") as file:
                file.write(f"{images_seen}\n")
            return step(images_seen)

        return logged

    fit_generator.step_function = step_function
    run_stage(stage)


def test_two_sweeps_share_one_training(asked, tmp_path):
    log = tmp_path / "log"
    requests = [training(asked(80)), training(asked(160))]
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=train, args=(os.environ["STUDY_ROOT"], it, log)) for it in requests]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert all(stage.record() for stage in requests)
    made = [int(line) for line in log.read_text().split()]
    assert made == list(range(0, 160, 8)) or made == [*range(0, 160, 8), *range(0, 80, 8)]  # the longer one went first


def test_clean_deletes_the_states_of_finished_trainings_and_a_larger_budget_starts_anew(asked, capsys, tmp_path):
    finished = training(asked(32))
    run_stage(finished)
    assert manage("clean", Clean(out=tmp_path, yes=True)) == 0
    assert not state_files(finished.folder) and finished.record()
    assert goes_on_from(training(asked(64))) == 0
