"""What is given instead of computed: published weights and statistics, written as a training would leave them.

The published form is read by models/released.py, strictly and without running what it holds. It must be the network
that was planned; what follows reads the outcome like any other. Nothing was trained here, so no cost is recorded.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from models import load_generator, load_latent_statistics, load_tokenizer
from models.specs import AutoencoderConfig, GeneratorConfig
from study.files import save_tensors
from study.foreign import read_pictures, read_statistics
from study.judges import JudgeSpec, Reference, reference_of
from study.specs import Encode, FitGenerator, FitTokenizer, Given, Stage
from study.weights import REFERENCES, entry, require
from study.workspace import Record, Workspace


def tokenizer(spec: FitTokenizer, out: Workspace) -> Record:
    """Write the given tokenizer's weights, as fit_tokenizer does.

    Raises:
        ValueError: the file is missing, another than planned, or holds another network; in one line.
    """
    from study.stages.fit_tokenizer import WEIGHTS

    assert spec.given is not None
    network = load_tokenizer(spec.tokenizer, require(spec.given.name, spec.given.sha256)).network
    _compare(spec.given, _layout(network.config), _layout(spec.architecture), "autoencoder")
    save_tensors(out.folder / WEIGHTS, dict(network.state_dict()))
    return _record(spec.given, sum(p.numel() for p in network.parameters()))


def generator(spec: FitGenerator, about: dict[str, str], out: Workspace) -> Record:
    """Write the given generator's weights as the EMA snapshot at the images that it has seen, as fit_generator does.

    Args:
        about: what a snapshot says of its latents.

    Raises:
        ValueError: as `tokenizer`.
    """
    from study.stages.fit_generator import snapshot_file

    assert spec.given is not None
    network = load_generator(spec.architecture.name, require(spec.given.name, spec.given.sha256)).network
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
    found = load_latent_statistics(require(spec.given.name, spec.given.sha256))
    _compare(spec.given, {"channels": found.mean.numel()}, {"channels": fit.architecture.z_channels}, "latents")
    latent = {"mean": found.mean.flatten().tolist(), "std": found.std.flatten().tolist(), "stored": "statistics alone"}
    return {"latent": latent, "images": 0, "views": 0, **_record(spec.given)}


def reference(judge: JudgeSpec, given: Given, device: str) -> Reference:
    """The statistics of a published file, and its pictures for precision and recall, as study.evaluate takes them.

    Raises:
        ValueError: the file is missing, another than planned, or does not hold what REFERENCES says.
    """
    path, of = require(given.name, given.sha256), REFERENCES[given.name]
    statistics, pictures = read_statistics(path), read_pictures(path)
    found = (len(pictures.pixels), *pictures.size)
    if statistics is None or found != (of.images, of.resolution, of.resolution):
        raise ValueError(
            f"{path} should hold statistics and {of.images} pictures of {of.resolution} px; it holds "
            f"{'no' if statistics is None else 'its'} statistics and {found[0]} pictures of {found[1]} x {found[2]} px"
        )
    return reference_of(judge, pictures.pixels, pictures.digest, device, statistics)


def _record(given: Given, parameters: int | None = None) -> Record:
    cost = {} if parameters is None else {"parameters": parameters}
    return {"given": {"file": entry(given.name).file, "sha256": given.sha256}, "cost": cost}


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


def _compare(given: Given, found: dict[str, Any], planned: dict[str, Any], what: str) -> None:
    different = [f"{name} {found[name]}, planned {planned[name]}" for name in planned if found[name] != planned[name]]
    if different:
        raise ValueError(f"{entry(given.name).file} holds another {what} than planned: {'; '.join(different)}")
