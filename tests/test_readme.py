"""What README and CONTRIBUTING say exists: links, files of the tree, commands, options, numbers, examples."""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import tyro

from study.core.compute import Compute
from study.plan.ablation_files import ablation_names
from study.plan.data_spec import DataSpec
from study.plan.factors import run_labels
from study.plan.resolve import make_plan
from study.plan.scales import SCALES
from study.submit.options import MANAGEMENT, Sweep
from study.submit.prepare import resolve_scale

CHECKOUT = Path(__file__).resolve().parents[1]
README = (CHECKOUT / "README.md").read_text()
CONTRIBUTING = (CHECKOUT / "CONTRIBUTING.md").read_text()
DOCUMENTS = {"README.md": README, "CONTRIBUTING.md": CONTRIBUTING}
EXAMPLES = {"parts", "width", "dinov2_small"}  # CONTRIBUTING makes them up
OF_STUDIES = ("results/desk", "figures/desk")  # in the working tree, what a user has run

COMMANDS = sorted(set(re.findall(r"python -m (study\.\w+)", README + CONTRIBUTING)))


def blocks(text: str, language: str = "") -> list[str]:
    """The fenced blocks of a document in one language."""
    return [body for tag, body in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S) if tag == language]


def command_lines(text: str, module: str) -> list[list[str]]:
    """Arguments of every call of a module, in blocks and between backquotes."""
    lines = [line for block in blocks(text) for line in block.replace("\\\n", " ").splitlines()] + re.findall(
        r"`([^`\n]+)`", text
    )
    found = [line.split("#")[0].strip() for line in lines if line.startswith(f"python -m {module}")]
    return [shlex.split(line)[3:] for line in found if "[" not in line]


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name):
    targets = re.findall(r"\]\(([^)\s]+)\)", DOCUMENTS[name])
    assert targets or name == "CONTRIBUTING.md"
    for target in targets:
        if target.startswith(("http:", "https:")):
            continue
        path, _, anchor = target.partition("#")
        assert not path or path.startswith(OF_STUDIES) or (CHECKOUT / path).exists(), target
        assert not anchor or anchor in anchors(DOCUMENTS.get(path, DOCUMENTS[name])), target


def test_results_that_are_linked_are_committed(committed):
    targets = [target for text in DOCUMENTS.values() for target in re.findall(r"\]\(([^)\s#]+)", text)]
    linked = [target for target in targets if target.startswith(OF_STUDIES)]
    assert linked
    for target in linked:
        assert (committed / target).exists(), target


def test_every_file_of_the_tree_exists():
    (tree,) = (block for block in blocks(README) if block.startswith("ablations/"))
    folder, top = CHECKOUT, []
    for line in tree.splitlines():
        place, _, about = line.strip().partition(" ")
        if line.startswith("  "):
            assert (folder / place).exists(), f"{folder.name}/{place}"
        else:
            folder = CHECKOUT / place
            assert folder.is_dir(), place
            top.append(place.rstrip("/"))
        for other in re.findall(r"\b\w+\.py\b", about):
            assert (folder / other).exists(), f"{folder.name}/{other}"
    packages = {str(path.parent.relative_to(CHECKOUT)) for path in CHECKOUT.glob("*/__init__.py")}
    packages |= {str(path.parent.relative_to(CHECKOUT)) for path in CHECKOUT.glob("study/*/__init__.py")}
    assert set(top) == packages | {"tests"}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_file_that_is_named_exists(name):
    for path in re.findall(r"`((?:study|models|results|figures|ablations|tests)/[\w/.]*)`", DOCUMENTS[name]):
        made = path.startswith(OF_STUDIES) or Path(path).stem in EXAMPLES
        assert made or (CHECKOUT / path).exists(), path


def test_targets_of_make_exist():
    makefile = (CHECKOUT / "Makefile").read_text()
    for target in set(re.findall(r"`make ([\w-]+)", README + CONTRIBUTING)) | {"study", "test"}:
        assert re.search(rf"^{target}:", makefile, re.M), target


@pytest.fixture(scope="module")
def help_of():
    """The --help of every command named, asked for at the same time."""
    called = {
        name: subprocess.Popen(
            [sys.executable, "-m", name, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            cwd=CHECKOUT, env={**os.environ, "COLUMNS": "120"},
        )
        for name in COMMANDS
    }  # fmt: skip
    return {name: (*process.communicate(timeout=60), process.returncode) for name, process in called.items()}


def test_commands_are_named():
    assert {"study.sweep", "study.figures", "study.bench", "study.evaluate", "study.sample"} <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_import_and_answer_help(name, help_of):
    output, errors, code = help_of[name]
    assert code == 0, errors
    assert f"usage: python -m {name}" in output
    for document in DOCUMENTS.values():
        for arguments in command_lines(document, name):
            for option in (word for word in arguments if word.startswith("--")):
                assert option in output, f"{name} {option}"


def test_the_options_of_the_sweep_are_all_described(help_of):
    described = re.findall(r"^\| `(--[\w-]+)", README, re.M)
    offered = re.findall(r"^[│|\s]*(--[\w-]+)", help_of["study.sweep"][0], re.M)
    assert sorted(described) == sorted(offered)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_sweeps_that_are_shown_can_be_asked_for(name):
    shown = command_lines(DOCUMENTS[name], "study.sweep")
    assert shown
    for arguments in shown:
        if arguments[:1] and arguments[0] in MANAGEMENT:
            continue
        options = tyro.cli(Sweep, args=arguments, config=(tyro.conf.FlagCreatePairsOff,))
        resolve_scale(options)  # reads every --set
        if options.ablation not in EXAMPLES:
            importlib.import_module(f"ablations.{options.ablation}")
    for setting in re.findall(r'`--set "([^"]+)"`', DOCUMENTS[name]):
        resolve_scale(Sweep(set=(setting,)))


def test_the_table_of_ablations_says_what_they_ask():
    rows = [
        line.strip("| ").split(" | ") for line in README.splitlines() if re.match(r"\| `\w+`( \(default\))? \|", line)
    ]
    described = {cells[0].split("`")[1]: cells[1:] for cells in rows}
    modules = {name: importlib.import_module(f"ablations.{name}") for name in ablation_names()}
    assert described == {name: [module.QUESTION, module.SOURCE] for name, module in modules.items()}


def test_the_table_of_scales_says_what_the_scales_are():
    rows = [line.strip("| ").split(" | ") for line in README.split("## Scales")[1].splitlines() if line[:2] == "| "]
    names = [name for name in rows[0] if name in SCALES]
    assert names == list(SCALES)
    for column, name in enumerate(names):
        scale = SCALES[name]()
        text = " ".join(row[column + 1] for row in rows[1:] if len(row) > column + 1).replace(",", "")
        evaluation = scale.evaluation
        numbers = [
            scale.train_images, scale.tokenizer.budget_images, scale.generator.budget_images,
            *scale.generator.snapshot_images, scale.sampling.samples,
            evaluation.reference_images, evaluation.reconstruct_images,
        ]  # fmt: skip
        if scale.sampling.solver != "dopri5":  # which chooses its steps
            numbers.append(scale.sampling.steps)
        for number in numbers:
            assert re.search(rf"\b{number}\b", text), f"{name}: {number} is not in the README's table"
        for width in scale.latent_channels:
            assert f"f{scale.downsampling}d{width}" in text
    assert all(generator in README for scale in SCALES.values() for generator in scale().generators)


# The examples


def test_the_example_of_released_checkpoints_names_what_exists(monkeypatch):
    from models import released_checkpoints
    from models.configs import parse_generator, parse_tokenizer

    loaded = SimpleNamespace(network="a network")
    monkeypatch.setattr(
        released_checkpoints, "load_tokenizer", lambda spec, path: loaded if parse_tokenizer(spec) else None
    )
    monkeypatch.setattr(
        released_checkpoints, "load_generator", lambda spec, path: loaded if parse_generator(spec) else None
    )
    (source,) = blocks(README, "python")
    made: dict[str, object] = {}
    exec(source, made)
    assert made["tokenizer"] == made["generator"] == "a network"
    (hub_id,) = re.findall(r"`(hf:[^`]+)`", README)
    assert released_checkpoints.HUB.fullmatch(hub_id)


def example(name: str) -> ModuleType:
    """The module that CONTRIBUTING shows after naming its file."""
    (source,) = re.findall(rf"This is `{name}`:\n\n```python\n(.*?)^```$", CONTRIBUTING, re.M | re.S)
    module = ModuleType(Path(name).stem)
    exec(compile(source, name, "exec"), module.__dict__)
    return module


def test_the_example_of_an_ablation_is_planned_and_changes_one_thing_at_a_time():
    data = DataSpec(
        name="made", resolution=32, channels=1, classes=10, train_images=60_000, test_images=10_000, content="0" * 16,
        flip=False, class_names=tuple(map(str, range(10))),
    )  # fmt: skip
    compute = Compute(device="cpu", precision="float32", threads=1)
    plan = make_plan("parts", example("ablations/parts.py"), SCALES["smoke"](), data, compute, "test")
    assert f"plans {len(plan.runs)} runs and {len(plan.stages)} stages" in CONTRIBUTING
    changed = [label.changed for label in run_labels(plan).values()]
    assert changed == [(), ("generator.direction_weight",), ("generator.logit_normal",), ("rope",), ("swiglu",)]


def test_the_example_of_a_figure_is_drawn(tmp_path):
    from figures import style
    from results.table import from_records

    row = {
        "ablations": "frontier", "kind": "tokenizer", "protocol": "p", "state": "done", "images_seen": 100,
        "rfid": 9.0, "samples": 5000, "extractor": "efficientnet_lite2", "extractor_size": 64, "comparable": True,
        "reference": "own inputs", "data": "fashion-mnist", "resolution": 32, "scale": "desk", "tokenizer_seed": 0,
        "seed": 0,
    }  # fmt: skip
    widths = {4: 27.5, 16: 29.0}
    table = from_records(
        {
            **row, "run": f"f4d{width}", "tokenizer": f"f4d{width}", "fingerprint": f"t{width}",
            "tokenizer_fingerprint": f"t{width}", "foundation_model": "none", "latent_channels": width, "psnr": psnr,
        }
        for width, psnr in widths.items()
    )  # fmt: skip
    drawing = example("figures/width.py").draw(table, tmp_path)
    assert dict(zip(drawing.data["latent_channels"], drawing.data["psnr"], strict=True)) == widths
    assert all(path.stat().st_size for path in style.save(drawing.figure, tmp_path / "width"))


def test_the_example_of_a_foundation_model_fits_its_table():
    from models.configs import Transformer

    (source,) = [block for block in blocks(CONTRIBUTING, "python") if block.lstrip().startswith('"dinov2_small"')]
    entry = eval("{" + source + "}", {"Transformer": Transformer})["dinov2_small"]
    assert {field.name for field in dataclasses.fields(entry)} >= {"timm_name", "options", "patch", "resize"}
