"""What the printed plan says about the user's own data, and what a detached sweep does once all is done."""

from pathlib import Path

import pytest

from study.core.files import write_json
from study.plan.stage import RECORD, mark_record
from study.report import carry_out
from study.report.carry_out import run
from study.submit.options import Sweep


def test_the_plan_says_what_the_folder_left_out_also_when_it_was_packed_before(tiny_plan, pictures, capsys):
    plan = tiny_plan()  # which packs
    (pictures / "class0" / "moves.gif").write_bytes(b"GIF89a")
    assert run(Sweep(data=str(pictures), dry_run=True), plan) == 0
    printed = capsys.readouterr().out
    assert "\n  left out 1 .gif: pictures are .png, .jpg, .jpeg, .bmp, .webp\n" in printed
    (Path(pictures) / "class0" / "moves.gif").unlink()
    assert run(Sweep(data=str(pictures), dry_run=True), plan) == 0
    assert "left out" not in capsys.readouterr().out


def test_detached_from_slurm_with_nothing_left_to_do_it_submits_nothing(tiny_plan, tmp_path, monkeypatch):
    plan, carried = tiny_plan(), []
    measured = {"metrics": {"psnr": 20.0, "colour_shift": 0.0}}
    for stage in plan.stages:
        for name in map(mark_record, stage.marks) if stage.marks else [RECORD]:
            write_json(stage.folder / name, {"fingerprint": stage.fingerprint, **measured})
    monkeypatch.setattr(carry_out, "submit", lambda *_: pytest.fail("submitted"))
    monkeypatch.setattr(carry_out, "carry_out", lambda options, plan, todo: carried.append(todo) or 0)
    assert run(Sweep(executor="slurm", detach=True, out=tmp_path), plan) == 0
    assert carried == [[]]  # which writes the table and says what there is
