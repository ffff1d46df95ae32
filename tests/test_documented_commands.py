"""Every command of ours that README, CONTRIBUTING and docs/ show is parsed by its own parser, and what is planned is
planned: ablations, scales, fields, data, spaces and profiles exist and go together. Nothing is trained or fetched.

Not covered: commands of others (pip, sbatch, rsync, tensorboard), names of studies, runs and files, which only exist
once they are made, and ablations that CONTRIBUTING makes up.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import runpy
import sys
import warnings

import pytest
import tyro
from documents import COMMANDS, DOCUMENTS, EXAMPLES, PAGES, blocks, commands

from study.core import cards
from study.plan.data_spec import GIVEN_AS_FOLDER, DataSpec
from study.plan.estimate import GUESSED_GIB, estimated_seconds
from study.plan.memory import largest_gib
from study.plan.runs import Plan
from study.plan.warnings import plan_warnings
from study.search.options import Search
from study.search.prepare import prepare as prepare_search
from study.submit import prepare
from study.submit.cluster import read_profile
from study.submit.options import Sweep

RESOLVE_DATA = prepare.resolve_data
PLANNED = ("study.sweep", "study.prefetch", "study.doctor")
IMAGENET_100 = (126_700, 5_000)  # training and test pictures of the recipe, as its page has them
PROFILE = "profile.toml"


class Parsed(BaseException):
    """Raised with the options, in place of what the command would do."""


def arguments_of(command):
    """What takes the arguments of a command and does nothing; a class of options as it is."""
    return command if isinstance(command, type) else functools.wraps(command)(lambda *given, **named: (given, named))


@pytest.fixture
def parse(monkeypatch):
    """A function that calls a module with these words, up to its options, which it returns."""
    cli, subcommands = tyro.cli, tyro.extras.subcommand_cli_from_dict

    def only_parse(command, **settings):
        raise Parsed(cli(arguments_of(command), **settings))

    def only_parse_one(named, **settings):
        raise Parsed(subcommands({name: arguments_of(command) for name, command in named.items()}, **settings))

    monkeypatch.setattr(tyro, "cli", only_parse)
    monkeypatch.setattr(tyro.extras, "subcommand_cli_from_dict", only_parse_one)

    def parsed(module, words):
        monkeypatch.setattr(sys, "argv", [module, *words])
        with pytest.raises(Parsed) as found, warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of a module that was imported before it is run
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        return found.value.args[0]

    return parsed


@functools.cache
def made_data(source, resolution, **_):
    """Pictures that nobody has: a named data set, or a folder."""
    name = source.rpartition("/")[2]
    given = GIVEN_AS_FOLDER.get(name)
    training, test = (given.train_images, given.test_images) if given else (60_000, 10_000)
    training, test = IMAGENET_100 if name == "imagenet100" else (training, test)
    return DataSpec(
        name=name, resolution=resolution, channels=1 if name == "fashion-mnist" else 3,
        classes={"imagenet": 1000, "imagenet100": 100}.get(name, 10), train_images=training, test_images=test,
        content="", flip=True, class_names=(),
    )  # fmt: skip


PLANS: dict[tuple[object, ...], Plan] = {}  # of what several pages ask


@pytest.fixture
def planned(monkeypatch, tmp_path):
    """A function that plans what the options of a command ask for, on a login node without a GPU; None for one that
    plans nothing."""
    monkeypatch.setattr(cards, "_found", lambda: ((), "none"))
    monkeypatch.setattr(prepare, "resolve_data", made_data)

    def plan_of(module, options):
        if isinstance(options, Search):
            problem, _ = prepare_search(dataclasses.replace(options, dry_run=True, out=tmp_path))
            return problem.plan([problem.run(problem.default())])
        if module not in PLANNED or not hasattr(options, "scale"):
            return None
        asked = {name: getattr(options, name) for name in ("scale", "data", "resolution", "set")}
        ablation = getattr(options, "ablation", "frontier")
        key = (ablation, *asked.values())
        if key not in PLANS:
            PLANS[key] = prepare.prepare(Sweep(ablation=ablation, **asked, dry_run=True, out=tmp_path))
        return PLANS[key]

    return plan_of


def made_up(words):
    """Whether a command is about something that a page makes up, or names by a word in capitals."""
    return any(word in EXAMPLES or word.isupper() for word in words if not word.startswith("-"))


@pytest.mark.parametrize("page", [page for page in PAGES if commands(DOCUMENTS[page])])
def test_commands_are_parsed_and_planned(page, parse, planned):
    for module, words in dict.fromkeys(commands(DOCUMENTS[page])):
        options = parse(module, words)
        if not made_up(words):
            planned(module, options)


def test_commands_are_found_wherever_they_are_shown():
    text = """Say `python -m study.sweep status`, or `python -m study.board`.

```
PLAN="--scale smoke \\
    --set seeds=0,1"
python -m study.sweep $PLAN --dry-run       # a comment
sbatch --gpus=1 --wrap "python -m study.prefetch $PLAN"
torchrun --nproc-per-node 2 -m study.sweep --executor \\
    inline
```
"""
    assert commands(text) == [
        ("study.sweep", ("--scale", "smoke", "--set", "seeds=0,1", "--dry-run")),
        ("study.prefetch", ("--scale", "smoke", "--set", "seeds=0,1")),
        ("study.sweep", ("--executor", "inline")),
        ("study.sweep", ("status",)),
    ]
    assert {module for page in PAGES for module, _ in commands(DOCUMENTS[page])} == set(COMMANDS)


@pytest.mark.parametrize(
    "words",
    [
        ["recipes"],
        ["--scale", "imagenet100"],
        ["--set", "sampling.step=3"],
        ["--scale", "gpu", "--data", "nothing-here"],
    ],
)
def test_what_does_not_exist_is_noticed(words, parse, planned, monkeypatch):
    options = parse("study.sweep", words)
    monkeypatch.setattr(prepare, "resolve_data", RESOLVE_DATA)
    with pytest.raises(ValueError, match=r"nearest|no data set"):
        planned("study.sweep", options)


def test_profiles_are_read(tmp_path):
    shown = [block for page in PAGES for block in blocks(DOCUMENTS[page], "toml")]
    assert shown
    for block in shown:
        (tmp_path / PROFILE).write_text(block)
        read_profile(tmp_path / PROFILE)


# The recipes


def recipes(parse, planned):
    """The plans of the page of recipes by study: of the scale, or of its data."""
    asked = dict.fromkeys(commands(DOCUMENTS["docs/recipes.md"]))
    plans = [planned(module, parse(module, words)) for module, words in asked if module == "study.sweep"]
    return [plan for plan in plans if plan is not None]


def test_recipes_fit_into_the_cards_that_they_are_for_and_have_no_likely_mistake(parse, planned):
    plans = recipes(parse, planned)
    assert {plan.scale.name for plan in plans} == {"gpu", "imagenet256", "imagenet256-system"}
    for plan in plans:
        assert largest_gib(plan.stages) <= GUESSED_GIB, plan.study
        assert plan_warnings(plan) == [], plan.study


def test_the_day_on_eight_cards_is_one_and_is_planned_as_its_page_says(parse, planned):
    (plan,) = {id(plan): plan for plan in recipes(parse, planned) if plan.data.name == "imagenet100"}.values()
    page = DOCUMENTS["docs/recipes.md"]
    hours = estimated_seconds(plan.stages, "") / 3600
    assert hours <= 8 * 24
    (said,) = re.findall(r"about ([\d.,]+) GPU hours \(", page)
    assert float(said) == pytest.approx(hours, rel=0.1)
    assert f"{len(plan.runs)} runs, {len(plan.stages)} stages" in page
    assert all(f"{images:,}" in page for images in IMAGENET_100)
