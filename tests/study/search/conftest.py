"""Fake stages, so that a search takes a moment."""

import pytest
from made_up import ORIGIN

from figures.render import Rendered
from study import stages
from study.data.picture_chunks import chunk_file, chunk_rows
from study.plan.specs import FitGenerator, Judge, Reconstruct, Sample
from study.plan.stage import snapshot_file
from study.report import refresh
from study.submit import jobs


@pytest.fixture
def stages_run(stages_run_and_drawn, monkeypatch):
    """The same without figures and report, which would take most of the time."""
    monkeypatch.setattr(refresh, "render", lambda study, out: Rendered([], {}, {}))
    monkeypatch.setattr(refresh, "write_page", lambda *arguments: None)
    return stages_run_and_drawn


@pytest.fixture
def stages_run_and_drawn(monkeypatch):
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
        if not isinstance(spec, Judge):
            ran.append((stage.kind, getattr(spec, "images_seen", None)))
        metrics = {}
        if isinstance(spec, Judge):
            ((name, pictures),) = stage.inputs.items()
            made, channels = pictures.spec, pictures.inputs["tokenizer"].spec.architecture.z_channels
            metrics = {"rfid": 1 / channels}
            if name == "samples":
                generator = pictures.inputs["generator"].spec
                away = abs(made.sampling.timestep_shift - 0.5) + 1000 * abs(generator.recipe.learning_rate - 0.002)
                seeds = 1e-4 * (generator.seed + made.sampling.seed % 1000)
                metrics = {"gfid": channels + away + seeds + 100 / made.images_seen}
            metrics |= {"comparable": True, "reference": "r" * 16}
        elif isinstance(spec, (Reconstruct, Sample)):
            for chunk in range(len(chunk_rows(spec))):
                chunk_file(out.folder, chunk).touch()
        if isinstance(spec, Sample):
            assert snapshot_file(stage.inputs["generator"].folder, "ema", spec.images_seen).exists()
        (out.folder / "sheet.png").touch()
        return {"cost": {}, "metrics": metrics, "sheet": "sheet.png"}

    monkeypatch.setattr(stages, "execute", execute)
    monkeypatch.setattr(jobs, "provenance", lambda compute: ORIGIN)
    monkeypatch.setattr(jobs, "log_to_stdout", lambda: None)
    return ran
