"""What README, CONTRIBUTING and docs/ say exists: links, files, options, numbers, examples, words. Their commands:
tests/test_documented_commands.py."""

from __future__ import annotations

import dataclasses
import importlib
import os
import posixpath
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from documents import ALL, CHECKOUT, COMMANDS, DOCUMENTS, EXAMPLES, PAGES, blocks

from results import schema
from study.core.compute import Compute
from study.plan.ablation_files import ablation_names
from study.plan.data_spec import DataSpec
from study.plan.factors import run_labels
from study.plan.judge_spec import WIDTHS
from study.plan.resolve import make_plan
from study.plan.scales import SCALES
from study.plan.stage import SPECS
from study.search.spaces import space
from study.submit.options import Sweep
from study.submit.prepare import resolve_scale

README, CONTRIBUTING = DOCUMENTS["README.md"], DOCUMENTS["CONTRIBUTING.md"]
OF_STUDIES = ("results/desk", "figures/desk")  # in the working tree, what a user has run


def tables(text: str) -> list[list[list[str]]]:
    """The cells of every table of a document, by table and row, the head included and the rule left out."""
    found = re.findall(r"(?:^\|.*\n)+", text, re.M)
    return [
        [[cell.strip() for cell in line[1:-1].split(" | ")] for line in table.splitlines() if line[:5] != "| ---"]
        for table in found
    ]


def table_below(page: str, *head: str) -> dict[str, list[str]]:
    """The one table of a page with these words in its head: its other cells by the first of each row."""
    (rows,) = [table[1:] for table in tables(DOCUMENTS[page]) if tuple(table[0]) == head]
    return {first: cells for first, *cells in rows}


def anchors(text: str) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    without_code = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", without_code, re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: str) -> list[tuple[str, str]]:
    """Every link of a page inside the repository: its place in the checkout ('' if it is above it), and its anchor."""
    targets = re.findall(r"\]\(([^)\s]+)\)", DOCUMENTS[page])
    found = []
    for target in targets:
        if not target.startswith(("http:", "https:")):
            path, _, anchor = target.partition("#")
            place = posixpath.normpath(posixpath.join(posixpath.dirname(page), path)) if path else page
            found.append(("" if place.startswith("..") else place, anchor))
    return found


def within_two_clicks() -> set[str]:
    """Pages that README links to, and those that they link to."""
    once = {place for place, _ in links("README.md")} & set(PAGES)
    return once | {place for page in once for place, _ in links(page)} & set(PAGES)


# What a reader finds


def test_the_readme_is_short_enough_to_be_read_to_its_end():
    assert len(README.splitlines()) <= 220
    assert len(README) <= 14_000
    assert README.count("<!-- headline -->") == README.count("<!-- /headline -->") == 1


def test_every_page_is_two_clicks_away_and_in_the_index():
    assert set(PAGES) - {"README.md"} <= within_two_clicks()
    index = {place for place, _ in links("docs/README.md")}
    assert {page for page in PAGES if page.startswith("docs/")} - {"docs/README.md"} <= index


@pytest.mark.parametrize("heading", ["Resume on another cluster", 'What "not comparable" means'])
def test_what_is_asked_most_has_a_heading_two_clicks_away(heading):
    (page,) = [page for page, text in DOCUMENTS.items() if f"\n## {heading}\n" in text]
    assert page in within_two_clicks()
    (anchor,) = anchors(f"## {heading}")
    assert (page, anchor) in links("README.md")  # which names the question


def test_pages_begin_with_what_they_answer():
    for page in PAGES[2:]:
        title, blank, answer = DOCUMENTS[page].split("\n", 3)[:3]
        assert title.startswith("# ")
        assert not blank
        assert answer
        assert answer[0].isupper()


def test_every_word_of_the_glossary_is_used():
    words = re.findall(r"^\| ((?:\*\*[\w ]+\*\*(?:, )?)+) \|", DOCUMENTS["docs/glossary.md"], re.M)
    others = "\n".join(text for page, text in DOCUMENTS.items() if page != "docs/glossary.md")
    names = [name for cell in words for name in re.findall(r"\*\*([\w ]+)\*\*", cell)]
    assert len(names) > 20
    assert [name for name in names if not re.search(rf"\b{name}(s|es)?\b", others, re.I)] == []


# Links, files, commands


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    assert links(name)
    for place, anchor in links(name):
        assert place, f"a link of {name} leads out of the repository"
        assert place.startswith(OF_STUDIES) or (CHECKOUT / place).exists(), place
        assert not anchor or anchor in anchors(DOCUMENTS[place]), f"{place}#{anchor}"


def test_results_that_are_linked_are_committed(committed):
    linked = [place for page in PAGES for place, _ in links(page) if place.startswith(OF_STUDIES)]
    assert linked
    for place in linked:
        assert (committed / place).exists(), place


def packages() -> set[str]:
    """Folders of our packages, by their place in the checkout."""
    return {str(path.parent.relative_to(CHECKOUT)) for path in CHECKOUT.glob("*/__init__.py")} | {
        str(path.parent.relative_to(CHECKOUT)) for path in CHECKOUT.glob("study/*/__init__.py")
    }


def test_every_room_is_named_in_the_readme():
    (tree,) = (block for block in blocks(README) if block.startswith("ablations/"))
    top, rooms = "", set()
    for line in tree.splitlines():
        place = line.split()[0].rstrip("/")
        top = top if line.startswith(" ") else place
        rooms.add(f"{top}/{place}" if line.startswith(" ") else place)
    assert rooms == packages() | {"tests", "docs", "ablations/spaces"}
    assert all((CHECKOUT / room).is_dir() for room in rooms)


def test_every_file_of_the_tree_exists():
    (tree,) = (block for block in blocks(DOCUMENTS["docs/how-it-works.md"]) if block.startswith("ablations/"))
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
    assert set(top) == packages() | {"tests"}


@pytest.mark.parametrize("name", PAGES)
def test_every_file_that_is_named_exists(name):
    for path in re.findall(r"`((?:study|models|results|figures|ablations|tests|docs)/[\w/.]*)`", DOCUMENTS[name]):
        made = path.startswith(OF_STUDIES) or Path(path).stem in EXAMPLES
        assert made or (CHECKOUT / path).exists(), path


def test_targets_of_make_exist():
    makefile = (CHECKOUT / "Makefile").read_text()
    for target in set(re.findall(r"`make ([\w-]+)", ALL)) | {"study", "test"}:
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_extras_that_are_named_exist():
    project = (CHECKOUT / "pyproject.toml").read_text()
    named = set(re.findall(r'pip install -e "\.\[(\w+)\]"', ALL))
    assert named
    for extra in named:
        assert re.search(rf"^{extra} = \[", project, re.M), extra


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


def test_every_command_is_named():
    commands = {f"study.{path.stem}" for path in CHECKOUT.glob("study/*.py")} - {"study.__init__", "study.manage"}
    commands |= {f"study.{path.parent.name}" for path in CHECKOUT.glob("study/*/__main__.py")}
    assert commands == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_import_and_answer_help(name, help_of):
    output, errors, code = help_of[name]
    assert code == 0, errors
    assert f"usage: python -m {name}" in output


def test_the_options_of_the_sweep_are_all_described(help_of):
    section = DOCUMENTS["docs/commands.md"].split("\n## Options of a sweep\n")[1].split("\n## ")[0]
    described = re.findall(r"^\| `(--[\w-]+)", section, re.M)
    offered = re.findall(r"^[│|\s]*(--[\w-]+)", help_of["study.sweep"][0], re.M)
    assert sorted(described) == sorted(offered)


def test_options_in_the_tables_of_other_commands_exist(help_of):
    described = re.findall(r"^\| `(--[\w-]+)", DOCUMENTS["docs/speed.md"], re.M)
    assert described
    for option in described:
        assert option in help_of["study.bench"][0], option


@pytest.mark.parametrize("name", [page for page in PAGES if "`--set " in DOCUMENTS[page]])
def test_settings_that_are_shown_can_be_asked_for(name):
    texts = re.findall(r'`--set (?:"([^"`]+)"|([^\s`]+))`', DOCUMENTS[name])
    settings = [quoted or plain for quoted, plain in texts]
    assert settings
    for setting in settings:
        if setting != "FIELD=VALUE":
            resolve_scale(Sweep(set=(setting,)))


# Tables that say what the code says


def test_the_table_of_ablations_says_what_they_ask():
    described = table_below("docs/commands.md", "ablation", "asks", "in the paper")
    modules = {name: importlib.import_module(f"ablations.{name}") for name in ablation_names()}
    assert {name.split("`")[1]: cells for name, cells in described.items()} == {
        name: [module.QUESTION, module.SOURCE] for name, module in modules.items()
    }


def test_the_table_of_latents_counts_what_is_planned():
    latents = importlib.import_module("ablations.latents")
    for name, cells in table_below(
        "docs/latents.md", "at the scale", "plain", "aligned", "neither", "trainings"
    ).items():
        scale = SCALES[name.strip("`")]()
        runs = latents.runs(scale)
        bases = [label.partition("+")[0].partition(",")[0] for label in dict.fromkeys(run.label for run in runs)]
        neither = sum(base.startswith("rae-") for base in bases)
        plain = sum("-" not in base for base in bases)
        assert cells == [str(n) for n in (plain, len(bases) - plain - neither, neither, 2 * len(runs))]


def test_the_table_of_spaces_names_all_with_their_objectives():
    described = table_below("docs/search.md", "space", "varies", "objectives")
    files = {path.stem for path in CHECKOUT.glob("ablations/spaces/*.py")} - {"__init__"}
    assert {name.strip("`") for name in described} == files
    for name, (_, objectives) in described.items():
        assert tuple(re.findall(r"[rg]fid", objectives.lower())) == space(name.strip("`")).OBJECTIVES


def test_the_table_of_scales_says_what_the_scales_are():
    (rows,) = [table for table in tables(DOCUMENTS["docs/scales.md"]) if "smoke" in table[0]]
    names = rows[0][1:]
    assert names == list(SCALES)
    for column, name in enumerate(names, start=1):
        scale = SCALES[name]()
        text = " ".join(row[column] for row in rows[1:]).replace(",", "")
        evaluation = scale.evaluation
        numbers = [
            scale.train_images, scale.tokenizer.budget_images, scale.generator.budget_images,
            *scale.generator.snapshot_images, scale.sampling.samples,
            evaluation.reference_images, evaluation.reconstruct_images,
        ]  # fmt: skip
        if scale.sampling.solver != "dopri5":  # which chooses its steps
            numbers.append(scale.sampling.steps)
        for number in numbers:
            assert re.search(rf"\b{number}\b", text), f"{name}: {number} is not in the table of scales"
        for width in scale.latent_channels:
            assert f"f{scale.downsampling}d{width}" in text
        assert all(generator in DOCUMENTS["docs/scales.md"] for generator in scale.generators)


def test_the_readme_names_every_scale():
    assert [name.split("`")[1] for name in table_below("README.md", "`--scale`", "what", "time")] == list(SCALES)


def test_the_fields_of_a_scale_that_are_named_exist():
    for names in table_below("docs/scales.md", "field", "is"):
        for name in re.findall(r"`([^`]+)`", names):
            value: object = SCALES["desk"]()
            for part in name.split("."):
                value = getattr(value, part)


def test_the_columns_of_the_table_are_all_named():
    described = {group: cells[0] for group, cells in table_below("docs/protocol.md", "group", "columns").items()}
    columns: dict[str, list[str]] = {}
    for column in schema.COLUMNS:
        columns.setdefault(column.group, []).append(column.name)
    assert {group: re.findall(r"`(\w+)`", text) for group, text in described.items()} == columns
    (as_json,) = re.findall(r"The columns (.*) hold JSON", DOCUMENTS["docs/protocol.md"])
    assert re.findall(r"`(\w+)`", as_json) == [column.name for column in schema.COLUMNS if column.type == "JSON"]


def test_samples_from_which_numbers_are_comparable_are_those_of_the_judges():
    described = table_below("docs/protocol.md", "judge", "features", "comparable from").values()
    numbers = sorted((int(features), int(re.sub(r"\D", "", least))) for features, least in described)
    assert numbers == sorted((width, 2 * width) for width in WIDTHS.values())


def test_stages_and_states_are_all_named():
    described = table_below("docs/how-it-works.md", "stage", "in", "out")
    assert [name.strip("`") for name in described] == list(SPECS)
    assert all(f"`{state}`" in DOCUMENTS["docs/how-it-works.md"] for state in schema.STATES)


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
    (source,) = blocks(DOCUMENTS["docs/checkpoints.md"], "python")
    made: dict[str, object] = {}
    exec(source, made)
    assert made["tokenizer"] == made["generator"] == "a network"
    (hub_id,) = re.findall(r"`(hf:[^`]+)`", ALL)
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
    from results.table import table_of

    row = {
        "ablations": ("frontier",), "kind": "tokenizer", "protocol": "p", "state": "done", "images_seen": 100,
        "rfid": 9.0, "samples": 5000, "extractor": "efficientnet_lite2", "extractor_size": 64, "comparable": True,
        "reference": "own inputs", "data": "fashion-mnist", "resolution": 32, "scale": "desk", "tokenizer_seed": 0,
        "seed": 0,
    }  # fmt: skip
    widths = {4: 27.5, 16: 29.0}
    table = table_of(
        schema.Row(**{
            **row, "run": f"f4d{width}", "tokenizer": f"f4d{width}", "fingerprint": f"t{width}",
            "tokenizer_fingerprint": f"t{width}", "foundation_model": "none", "latent_channels": width, "psnr": psnr,
        })
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
