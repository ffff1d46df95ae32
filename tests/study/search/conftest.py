"""Fake stages, so that a search takes a moment."""

import pytest
from made_problems import JUDGES
from made_up import ORIGIN

from study import stages
from study.plan.specs import FitGenerator, Generate
from study.plan.stage import snapshot_file
from study.submit import jobs


@pytest.fixture
def stages_run(monkeypatch):
    """Fake stages: gFID is lowest at shift 0.5 and learning rate 0.002, and falls with images and fewer channels.

    Returns a list that gets the kind and mark of every stage that is run.
    """
    ran = []

    def execute(stage, out):
        spec = stage.spec
        if isinstance(spec, FitGenerator):
            for mark in spec.recipe.marks:
                snapshot_file(out.folder, "ema", mark).touch()
                ran.append(("train", mark))
                out.write_record({"cost": {}}, mark)
            (out.folder / f"checkpoint-{mark:012d}.safetensors").touch()
            return {}
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

    monkeypatch.setattr(stages, "execute", execute)
    monkeypatch.setattr(jobs, "provenance", lambda compute: ORIGIN)
    monkeypatch.setattr(jobs, "log_to_stdout", lambda: None)
    return ran
