"""What a plan lacks on this machine."""

import pytest
from made_up import TINY, draw_pictures, made_cards

from study.core import cards
from study.submit.options import Sweep
from study.submit.prepare import prepare_setting


@pytest.mark.parametrize(("gpus", "processes", "missing"), [(1, 2, True), (2, 2, False), (4, 2, False), (1, 1, False)])
def test_more_processes_than_gpus_are_missing_gpus(gpus, processes, missing, tmp_path, monkeypatch):
    monkeypatch.setattr(cards, "_found", lambda: (made_cards(gpus), ""))
    tiny = [text for text in TINY[3::2]]
    options = Sweep(
        scale="smoke",
        data=str(draw_pictures(tmp_path / "pictures")),
        set=(*tiny, "device=cuda", f"execution.processes={processes}"),
        out=tmp_path / "out",
    )
    lines = [line for line in prepare_setting(options).missing if "GPU" in line]
    assert bool(lines) == missing
    if missing:
        assert lines[0].startswith("a GPU for each of execution.processes 2: this machine has 1 ")
