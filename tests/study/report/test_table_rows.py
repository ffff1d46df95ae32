"""The table: every planned row, with its numbers or the reason why it has none; measured rows never vanish."""

import dataclasses

import pytest
from made_up import COMPUTE, Asking, data_spec, finish

import ablations.frontier
import ablations.recipe
from results import table as results
from results.runs import asked_by
from results.schema import Label
from study.core.lease import lease
from study.plan.resolve import make_plan
from study.plan.runs import Run
from study.plan.scales import smoke
from study.plan.stage import LATENT_MAP
from study.report.table_rows import update_table
from study.submit.jobs import note_failure


def plan(ablation="frontier", module=ablations.frontier, scale=None):
    return make_plan(ablation, module, scale or smoke(), data_spec(), COMPUTE, "made")


def load(path):
    table = results.load(path)
    return table.set_index(["run", "images_seen"])


def test_every_planned_row_is_listed_before_anything_ran(tmp_path):
    table = load(update_table(plan(), tmp_path))
    assert len(table) == 2 + 2 * 2
    assert set(table["state"]) == {"pending"}
    assert table["gfid"].isna().all()
    assert table["rfid"].isna().all()


def test_the_ladder_is_told_apart_and_shares_its_top_with_the_frontier(tmp_path):
    update_table(plan(), tmp_path)
    table = results.load(update_table(plan("recipe", ablations.recipe), tmp_path))
    ladder = table[(table["images_seen"] == 512) & asked_by(table, "recipe")]
    assert len(ladder) == len(set(ladder["run"])) == 10
    of_both = ladder[asked_by(ladder, "frontier")]
    assert of_both["run"].tolist() == ["f4d4 + LightningDiT-XXS/2"]
    top = Label(ablation="recipe", place=8, text="+ rotary positions", changed=("rope",))
    assert of_both["labels"].tolist() == [(top,)]
    assert [label.changed for (label,) in ladder["labels"]].count(("foundation_model", "patch")) == 1  # confounded
    again = results.load(update_table(plan(), tmp_path))  # the frontier's rows come anew and keep the other's label
    shared = again[asked_by(again, "frontier") & asked_by(again, "recipe") & (again["kind"] == "generator")]
    assert shared["labels"].tolist() == [(top,), (top,)]
    (first,) = ladder[ladder["solver"] == "ddpm"].to_dict("records")
    assert (first["generator"], first["steps"], first["timestep_shift"]) == ("DiT-XXS/2", 40, 1.0)


def test_the_same_data_under_another_name_has_the_same_rows(tmp_path):
    before = results.load(update_table(plan(), tmp_path))
    renamed = make_plan(
        "frontier", ablations.frontier, smoke(), dataclasses.replace(data_spec(), name="unpacked"), COMPUTE, "made"
    )
    after = results.load(update_table(renamed, tmp_path))
    assert len(after) == len(before) and after["protocol"].tolist() == before["protocol"].tolist()
    assert set(after["reference"]) == {"own inputs", "unpacked train, 256 images"}


def test_rows_say_why_they_have_no_numbers(tmp_path):
    found = plan()
    plain, aligned = (job for job in found.jobs if job.kind == "tokenizer")
    note_failure(aligned.stages[0], "diverged", "diverged at step 3: the loss is nan")
    finish(plain.stages[0])
    with lease(plain.stages[1].folder):
        table = load(update_table(found, tmp_path))
    assert table.loc[("f4d4", 256), "state"] == "running"
    assert table.loc[("f4d4-lite0", 256), ["state", "reason"]].tolist() == [
        "diverged",
        "diverged at step 3: the loss is nan",
    ]
    below = table.loc[("f4d4-lite0 + LightningDiT-XXS/2", 512)]
    assert below["state"] == "blocked"
    assert below["reason"] == "blocked by f4d4-lite0: diverged at step 3: the loss is nan"


def test_a_result_replaces_its_pending_row_and_brings_its_sheet(tmp_path):
    found = plan()
    path = update_table(found, tmp_path)
    for stage in found.jobs[0].stages:
        finish(stage)
    table = load(update_table(found, tmp_path))
    row = table.loc[("f4d4", 256)]
    assert (row["state"], row["rfid"], row["train_seconds"]) == ("done", 1.0, 1.0)
    assert (path.parent / "sheets" / row["sheet"]).read_bytes() == b"picture"
    assert len(table) == 6


def test_two_ablations_share_rows_and_neither_loses_its_own(tmp_path):
    first = Run(tokenizer="f4d4", generator="LightningDiT-XXS/2")
    second = dataclasses.replace(first, options={"rope": False}, changes={"sampling.seed": 5})
    update_table(plan("one", Asking(first)), tmp_path)
    table = load(update_table(plan("two", Asking(first, second)), tmp_path))
    assert table.loc[("f4d4", 256), "ablations"] == ("one", "two")
    assert table.loc[(first.name, 512), "ablations"] == ("one", "two")
    assert table.loc[(second.name, 512), "ablations"] == ("two",)
    assert table.loc[(second.name, 512), "changes"] == {"rope": False}  # the seed is in the protocol


def test_a_run_no_longer_asked_for_stays_when_it_was_measured_and_goes_when_it_was_not(tmp_path):
    run = Run(tokenizer="f4d4")
    old = plan("one", Asking(run, Run(tokenizer="f4d4", tokenizer_seed=1)))
    for stage in old.jobs[0].stages:
        finish(stage)
    update_table(old, tmp_path)
    table = load(update_table(plan("one", Asking(Run(tokenizer="f4d4", tokenizer_seed=2))), tmp_path))
    assert table.loc[("f4d4", 256), ["state", "ablations"]].tolist() == ["done", ()]
    assert ("f4d4 (seed 1)", 256) not in table.index
    assert table.loc[("f4d4 (seed 2)", 256), "state"] == "pending"


def test_a_result_measured_elsewhere_stays_until_there_is_a_new_one(tmp_path, study_root, monkeypatch):
    found = plan()
    for stage in found.jobs[0].stages:
        finish(stage)
    update_table(found, tmp_path)
    monkeypatch.setenv("STUDY_ROOT", str(study_root / "of another machine"))
    table = load(update_table(found, tmp_path))
    assert table.loc[("f4d4", 256), ["state", "rfid", "ablations"]].tolist() == ["done", 1.0, ("frontier",)]
    assert len(table) == 6
    for stage in found.jobs[0].stages:
        finish(stage, rfid=2.0)
    assert load(update_table(found, tmp_path)).loc[("f4d4", 256), "rfid"] == 2.0


@pytest.mark.parametrize(
    "changes",
    [
        {"sampling.seed": 1},
        {"sampling.guidance_scale": 2.0},
        {"evaluation.reference_images": 128},
        {"evaluation.reconstruct_images": 64},
        {"evaluation.perceptual_net": "lite0"},
    ],
)
def test_the_same_training_judged_in_two_ways_has_rows_of_its_own(changes, tmp_path):
    base = Run(tokenizer="f4d4", generator="LightningDiT-XXS/2")
    found = plan("both", Asking(base, dataclasses.replace(base, changes=changes)))
    table = results.load(update_table(found, tmp_path))
    assert len([job for job in found.jobs if job.kind == "tokenizer"]) == 1
    assert len(table) == (2 + 2 if "reconstruct" in str(changes) or "perceptual" in str(changes) else 1 + 4)


def test_a_field_that_a_run_does_not_use_does_not_move_its_fingerprint():
    def fits(**changes):
        scale = dataclasses.replace(smoke(), tokenizer=dataclasses.replace(smoke().tokenizer, **changes))
        return [stage.fingerprint for stage in plan(scale=scale).stages if stage.kind == "fit_tokenizer"]

    (plain, aligned), (plain_2, aligned_2) = fits(), fits(vf_weight=0.7)
    assert plain == plain_2
    assert aligned != aligned_2
    assert fits(gan_width=8, perceptual_size=32) == [plain, aligned]


def test_a_study_of_which_nothing_is_done_has_a_report_that_says_so(tmp_path):
    from study.report.refresh import StudyFiles

    found = plan()
    note_failure(found.jobs[0].stages[0], "failed", "no room on the disk")
    collector = StudyFiles(found, tmp_path)
    collector.update()
    assert "failed: no room on the disk" in collector.report.read_text()
    assert not collector.skipped


def test_a_fault_in_the_report_stops_no_study_and_leaves_no_old_one(tmp_path, monkeypatch):
    from study.report.html import page
    from study.report.refresh import StudyFiles

    def fail(*_):
        raise TypeError("a fault")

    collector = StudyFiles(plan(), tmp_path)
    collector.update()
    monkeypatch.setattr(page, "page", fail)
    collector.update()
    assert collector.skipped == {"report": "TypeError: a fault"}
    assert not collector.report.exists()


def test_figures_that_were_cut_off_are_drawn_again_and_no_others(tmp_path, monkeypatch):
    import figures.render
    from study.report.refresh import StudyFiles

    found = plan()
    for job in found.jobs:
        for stage in job.stages:
            finish(stage)
    drawn = []

    def render(study, out):
        drawn.append(study)
        out.mkdir(parents=True, exist_ok=True)
        (out / "frontier.png").touch()
        if len(drawn) == 1:
            raise KeyboardInterrupt
        return figures.render.Rendered([out / "frontier.png"], {"samples": "no sheet"}, {})

    monkeypatch.setattr("study.report.refresh.render", render)
    collector = StudyFiles(found, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        collector.update()
    for _ in range(3):
        collector.update()
    assert len(drawn) == 2
    assert StudyFiles(found, tmp_path).update() is None
    assert len(drawn) == 2
    assert collector.skipped == {"samples": "no sheet"}

    latents = next(stage for stage in found.stages if stage.kind == "encode")
    (latents.folder / LATENT_MAP).write_text("x,y,density\n")  # as study.diagnose brings it: the table stays
    for _ in range(2):
        collector.update()
    assert len(drawn) == 3
