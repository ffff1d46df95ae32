"""Weight files and packages that the stages of a plan need: checked before a study starts; study.prefetch downloads."""

from __future__ import annotations

import importlib.util
import urllib.parse
from collections.abc import Iterable

from models.configs import parse_tokenizer
from study.plan.specs import Encode, FitGenerator, FitTokenizer, Judge, Reconstruct
from study.plan.stage import Stage
from study.plan.weight_files import FILES, find_weights, weight_file


def needed_files(stages: Iterable[Stage]) -> list[str]:
    """Names of the weight files (study/plan/weight_files.py) that these stages load: those of FILES in its order, then
    the user's own."""
    names: dict[str, None] = {}  # of networks and files, including networks whose weights come with a package
    own_files: dict[str, None] = {}
    for stage in stages:
        spec = stage.spec
        file = spec.reference if isinstance(spec, Judge) else getattr(spec, "pretrained", None)
        if file is not None:
            (names if file.name in FILES else own_files)[file.name] = None
        elif isinstance(spec, FitTokenizer):
            names[parse_tokenizer(spec.tokenizer).foundation_network or ""] = None
            if spec.recipe.perceptual_weight:
                names[spec.recipe.perceptual_net] = None
        if isinstance(spec, FitGenerator) and spec.recipe.repa is not None:
            names[spec.recipe.repa.model] = None
        if isinstance(spec, Reconstruct):
            names[spec.perceptual_net] = None
        if isinstance(spec, Judge):
            names[spec.judge.name] = None
    return [name for name in FILES if name in names] + list(own_files)


def identity_unknown(stages: Iterable[Stage]) -> str:
    """Why the fingerprints of these stages will change, in a sentence: data or weights that identify them are not
    known yet; '' if they are."""
    stages = list(stages)
    data = [stage.spec.data for stage in stages if isinstance(stage.spec, (FitTokenizer, Reconstruct, Encode, Judge))]
    missing = any(find_weights(name) is None for name in needed_files(stages))
    unknown = ["weights that are missing"] if missing else []
    if not all(one.content for one in data):
        unknown.append("the data, which is read when it is packed")
    if not unknown:
        return ""
    return f"What is done already is not known: runs are identified by the content of {' and of '.join(unknown)}."


def missing_here(stages: Iterable[Stage]) -> list[str]:
    """One line for each file or package that these stages need and this machine lacks, with how to get it."""
    stages = list(stages)
    names, lines = needed_files(stages), []
    for name in names:
        weight = weight_file(name)
        if find_weights(name) is None:
            size = f"{weight.megabytes} MB; " if weight.megabytes else ""
            how = "put it into the folder named by STUDY_WEIGHTS"
            if weight.url:
                how = f"python -m study.prefetch downloads it from {urllib.parse.urlsplit(weight.url).hostname}"
            lines.append(f"{weight.purpose}: {weight.file} ({size}{how})")
    if "vgg" in names and importlib.util.find_spec("lpips") is None:
        lines.append("the perceptual net 'vgg' (LPIPS): the package lpips, which has its heads (pip install lpips)")
    libraries = {stage.spec.architecture.library for stage in stages if isinstance(stage.spec, FitTokenizer)}
    if "diffusers" in libraries and importlib.util.find_spec("diffusers") is None:
        lines.append("SD-VAE: the package diffusers, which has its network (pip install diffusers)")
    return lines
