"""What the printed plan says about the user's own data."""

from pathlib import Path

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
