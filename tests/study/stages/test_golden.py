"""A stage whose numbers change must have a new version.

`golden.json` holds the numbers of each stage of one tiny study, with the stage's version. When a change alters the
numbers on purpose, raise the version in `study.plan.stage.VERSIONS` and rewrite the file:
`python -m pytest tests/study/stages/test_golden.py --write-golden`.
"""

import dataclasses
from pathlib import Path

import pytest
import torch

from study.core.files import read_json, write_json
from study.data.picture_chunks import pictures_of
from study.plan.specs import Reconstruct, Sample
from study.plan.stage import VERSIONS
from study.submit.jobs import run_stage, stage_title

GOLDEN = Path(__file__).with_name("golden.json")


def numbers(stage, record):
    """The measured numbers of a record, by dotted name, without costs and paths; and a measure of pictures made."""
    flat = {}
    if isinstance(stage.spec, (Reconstruct, Sample)):
        pixels = torch.cat(list(pictures_of(stage.spec, stage.folder))).float()
        flat = {"pixels.mean": pixels.mean().item() / 255, "pixels.std": pixels.std().item() / 255}

    def walk(value, name):
        if isinstance(value, dict):
            for key, item in value.items():
                walk(item, f"{name}.{key}" if name else key)
        elif isinstance(value, list):
            for index, item in enumerate(value):
                walk(item, f"{name}.{index}")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            flat[name] = value

    walk(record.get("metrics", {}), "metrics")
    walk(record.get("latent", {}), "latent")
    if record["cost"].get("final_loss") is not None:
        flat["final_loss"] = record["cost"]["final_loss"]
    return flat


def test_no_stage_changed_its_numbers_without_a_new_version(tiny_plan, tiny_scale, request):
    plan = tiny_plan(dataclasses.replace(tiny_scale, judges=(("classifier", 0),)))
    found = {}
    for stage in plan.stages:
        record = run_stage(stage)
        found[stage_title(stage)] = {
            "version": VERSIONS[stage.kind],
            "numbers": numbers(stage, record),
        }
    if request.config.getoption("--write-golden"):
        write_json(GOLDEN, found)
    golden = read_json(GOLDEN)
    assert found.keys() == golden.keys()
    for name, expected in golden.items():
        assert expected["numbers"], name
        assert found[name]["version"] == expected["version"], f"{name}: rewrite golden.json for its new version"
        # other processors round differently; a changed computation moves far more than this
        assert found[name]["numbers"] == pytest.approx(expected["numbers"], rel=2e-2, abs=2e-2), (
            f"{name} changed: if that is intended, raise its version"
        )
