"""What is given instead of computed: published weights and statistics, written as a training would leave them.

The published form is read by models/released.py, strictly and without running what it holds. It must be the network
that was planned; what follows reads the outcome like any other. Nothing was trained here, so no cost is recorded.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from models import load_generator, load_latent_statistics, load_tokenizer
from models.specs import AutoencoderConfig, GeneratorConfig
from study.core.files import save_tensors
from study.core.workspace import Record, Workspace
from study.plan.specs import Encode, FitGenerator, FitTokenizer, ForeignFile
from study.plan.stage import TOKENIZER_WEIGHTS, Stage, snapshot_file
from study.plan.weight_files import require_weights, weight_file


def tokenizer(spec: FitTokenizer, out: Workspace) -> Record:
    """Write the given tokenizer's weights, as fit_tokenizer does.

    Raises:
        ValueError: the file is missing, another than planned, or holds another network; in one line.
    """
    assert spec.given is not None
    network = load_tokenizer(spec.tokenizer, require_weights(spec.given.name, spec.given.sha256)).network
    _compare(spec.given, _layout(network.config), _layout(spec.architecture), "autoencoder")
    save_tensors(out.folder / TOKENIZER_WEIGHTS, dict(network.state_dict()))
    return _record(spec.given, sum(p.numel() for p in network.parameters()))


def generator(spec: FitGenerator, about: dict[str, str], out: Workspace) -> Record:
    """Write the given generator's weights as the EMA snapshot at the images that it has seen, as fit_generator does.

    Args:
        about: what a snapshot says of its latents.

    Raises:
        ValueError: as `tokenizer`.
    """
    assert spec.given is not None
    network = load_generator(spec.architecture.name, require_weights(spec.given.name, spec.given.sha256)).network
    _compare(spec.given, _size(network.config), _size(spec.architecture), "generator")
    (mark,) = spec.recipe.snapshot_images
    save_tensors(snapshot_file(out.folder, "ema", mark), dict(network.state_dict()), about)
    return _record(spec.given, sum(p.numel() for p in network.parameters()))


def statistics(spec: Encode, inputs: dict[str, Stage]) -> Record:
    """The given statistics as those of latents that nobody encodes here: there are no shards.

    Raises:
        ValueError: the file is missing, another than planned, or of another number of channels.
    """
    fit = inputs["tokenizer"].spec
    assert spec.given is not None and isinstance(fit, FitTokenizer)
    found = load_latent_statistics(require_weights(spec.given.name, spec.given.sha256))
    _compare(spec.given, {"channels": found.mean.numel()}, {"channels": fit.architecture.z_channels}, "latents")
    latent = {"mean": found.mean.flatten().tolist(), "std": found.std.flatten().tolist(), "stored": "statistics alone"}
    return {"latent": latent, "images": 0, "views": 0, **_record(spec.given)}


def _record(given: ForeignFile, parameters: int | None = None) -> Record:
    cost = {} if parameters is None else {"parameters": parameters}
    return {"given": {"file": weight_file(given.name).file, "sha256": given.sha256}, "cost": cost}


def _layout(config: AutoencoderConfig) -> dict[str, Any]:
    """What makes two tokenizers the same network, whatever size of picture they were configured for."""
    fields = dataclasses.asdict(config)
    del fields["resolution"], fields["attn_resolutions"]
    attention = [level for level, side in enumerate(config.level_sides()) if side in config.attn_resolutions]
    return {**fields, "levels with attention": attention}


def _size(config: GeneratorConfig) -> dict[str, Any]:
    """What makes two generators the same network; the rate of label dropout shows in no weight."""
    fields = dataclasses.asdict(config)
    del fields["mlp_ratio"], fields["label_dropout"]
    return {**fields, "mlp_width": config.mlp_width, "null label": config.label_dropout > 0}


def _compare(given: ForeignFile, found: dict[str, Any], planned: dict[str, Any], what: str) -> None:
    different = [f"{name} {found[name]}, planned {planned[name]}" for name in planned if found[name] != planned[name]]
    if different:
        raise ValueError(f"{weight_file(given.name).file} holds another {what} than planned: {'; '.join(different)}")
