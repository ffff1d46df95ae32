"""The printed list of ablations: wrapped at words within the terminal's width, and a reason if one cannot be asked."""

from __future__ import annotations

import dataclasses
import importlib
import io
import re
from functools import cache

import pytest
from made_up import COMPUTE, data_spec
from rich.console import Console

from study.plan.ablation_files import ablation_names
from study.plan.resolve import make_plan
from study.plan.scales import SCALES
from study.report import ablation_list
from study.report.ablation_list import print_ablations


def printed(monkeypatch, width: int, *names: str, scale: str = "smoke", terminal: bool = False) -> str:
    file = io.StringIO()
    shown = Console(file=file, width=width, force_terminal=terminal, highlight=False, soft_wrap=True)
    monkeypatch.setattr(ablation_list, "console", shown)
    print_ablations(scale, list(planned(scale, *names)))
    return file.getvalue()


@cache
def planned(scale: str, *names: str) -> tuple:
    found = []
    compute = dataclasses.replace(COMPUTE, device="cuda" if SCALES[scale]().device == "cuda" else "cpu")
    for name in names or ablation_names():
        module = importlib.import_module(f"ablations.{name}")
        try:
            data = data_spec(SCALES[scale]().resolution)
            found.append((name, module, make_plan(name, module, SCALES[scale](), data, compute, "")))
        except ValueError as error:
            found.append((name, module, str(error)))
    return tuple(found)


def block(text: str, name: str) -> list[str]:
    """The lines below an ablation's name."""
    (found,) = re.findall(rf"^{name}(?: \(default\))?\n((?:  .*\n)+)", text, re.M)
    return found.splitlines()


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("scale", ["smoke", "imagenet256"])
def test_lines_fit_and_words_are_whole(width, scale, monkeypatch):
    text = printed(monkeypatch, width, scale=scale)
    lines = text.splitlines()
    assert max(map(len, lines)) <= min(width, 120)
    assert not [line for line in lines if line != line.rstrip() or "\033" in line or "\u00a0" in line]
    assert " ".join(text.split()) == " ".join(printed(monkeypatch, 10_000, scale=scale).split())  # words, in order
    assert "reconstruct" in text.split()
    for name in ablation_names():
        below = block(text, name)
        question = importlib.import_module(f"ablations.{name}").QUESTION
        assert " ".join(" ".join(below).split()).startswith(question)


def test_a_block_says_what_is_asked_varied_where_and_at_what_cost(monkeypatch):
    text = printed(monkeypatch, 80)
    assert text.startswith("ablations at scale smoke\n")
    assert block(text, "convergence")[:3] == [
        "  How many times fewer images does a generator need on an aligned tokenizer?",
        "  varies    foundation model (none, lite0)",
        "  in paper  Figure 4 (a, b)",
    ]
    assert re.fullmatch(r"  costs     4 trainings, ~\d+ (s|min)", block(text, "convergence")[3])
    assert "\nfrontier (default)\n" in text
    assert "  varies    nothing" in block(text, "system")
    assert "vf cosine weight; vf distance weight; margins" in " ".join(" ".join(block(text, "vf_loss")).split())
    assert " ".join(text.split()).endswith("are counted in each and done once; cost is of all stages.")
    gpu = block(printed(monkeypatch, 80, scale="imagenet256"), "frontier")
    assert re.search(r"costs +36 trainings, ~[\d,]+ GPU h", gpu[-1])


def test_what_the_scale_cannot_ask_has_the_reason_in_place_of_the_rest(monkeypatch):
    below = block(printed(monkeypatch, 60), "scaling")
    assert below[1].startswith("  cannot be asked: scale smoke has one generator")
    assert "    (--set generators=LightningDiT-XXS/2,LightningDiT-XS/2," in below  # an option stays with its value
    assert not [line for line in below if re.match("  (varies|in paper|costs) ", line)]


def test_only_a_terminal_gets_escape_codes(monkeypatch):
    assert "\033[1mfrontier\033[0m (default)" in printed(monkeypatch, 80, "frontier", terminal=True)
