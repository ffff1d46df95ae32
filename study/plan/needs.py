"""What the stages of a plan load that others made: found before anything starts, brought by study.prefetch."""

from __future__ import annotations

import importlib.util
import urllib.parse
from collections.abc import Iterable

from models.specs import parse_tokenizer
from study.plan.specs import FitTokenizer, Generate, Reconstruct
from study.plan.stage import Stage
from study.plan.weight_files import FILES, find_weights, weight_file


def needed_files(stages: Iterable[Stage]) -> list[str]:
    """Names of the files in study/plan/weight_files.py that these stages load: those of FILES first, in its order."""
    named: dict[str, None] = {}  # networks and files, those of other packages among them
    by_hand: dict[str, None] = {}
    for stage in stages:
        spec = stage.spec
        given = spec.reference if isinstance(spec, Generate) else getattr(spec, "given", None)
        if given is not None:
            (named if given.name in FILES else by_hand)[given.name] = None
        elif isinstance(spec, FitTokenizer):
            named[parse_tokenizer(spec.tokenizer).foundation or ""] = None
            if spec.recipe.perceptual_weight:
                named[spec.recipe.perceptual_net] = None
        if isinstance(spec, Reconstruct):
            named[spec.perceptual_net] = None
        if isinstance(spec, Reconstruct | Generate):
            named |= dict.fromkeys(judge.name for judge in spec.judges)
    return [name for name in FILES if name in named] + list(by_hand)


def missing_here(stages: Iterable[Stage]) -> list[str]:
    """One line for everything that these stages load and that is not here, with what brings it."""
    stages = list(stages)
    names, lines = needed_files(stages), []
    for name in names:
        weight = weight_file(name)
        if find_weights(name) is None:
            size = f"{weight.megabytes} MB; " if weight.megabytes else ""
            way = "put it into the folder named by STUDY_WEIGHTS"
            if weight.url:
                way = f"python -m study.prefetch brings it from {urllib.parse.urlsplit(weight.url).hostname}"
            lines.append(f"{weight.purpose}: {weight.file} ({size}{way})")
    if "vgg" in names and importlib.util.find_spec("lpips") is None:
        lines.append("the perceptual net 'vgg' (LPIPS): the package lpips, which carries its heads (pip install lpips)")
    made_by = {stage.spec.architecture.library for stage in stages if isinstance(stage.spec, FitTokenizer)}
    if "diffusers" in made_by and importlib.util.find_spec("diffusers") is None:
        lines.append("SD-VAE: the package diffusers, which has its network (pip install diffusers)")
    return lines
