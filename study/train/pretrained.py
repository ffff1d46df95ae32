"""Pretrained weights and published latent statistics, written in the form in which a trained stage leaves its own.

models/released_checkpoints.py reads the published files, strictly and without running code from them. They must hold
the network that was planned; later stages read the result like that of a training. Nothing is trained, so no training
cost is recorded.
"""

from __future__ import annotations

from typing import Any

from models import load_generator, load_latent_statistics, load_tokenizer
from study.core.files import save_tensors
from study.core.workspace import Record, Workspace
from study.plan.specs import Encode, FitGenerator, FitTokenizer, ForeignFile
from study.plan.stage import TOKENIZER_WEIGHTS, Stage, snapshot_file
from study.plan.weight_files import require_weights, weight_file


def write_tokenizer(spec: FitTokenizer, out: Workspace) -> Record:
    """Write the weights of a pretrained tokenizer, as fit_tokenizer does.

    Raises:
        ValueError: the file is missing, is not the planned one, or holds another network; in one line.
    """
    assert spec.pretrained is not None
    network = load_tokenizer(spec.tokenizer, require_weights(spec.pretrained.name, spec.pretrained.sha256)).network
    _compare(spec.pretrained, network.config.layout(), spec.architecture.layout(), "autoencoder")
    save_tensors(out.folder / TOKENIZER_WEIGHTS, dict(network.state_dict()))
    return _record(spec.pretrained, sum(p.numel() for p in network.parameters()))


def write_generator(spec: FitGenerator, metadata: dict[str, str], out: Workspace) -> None:
    """Write the weights of a pretrained generator as the EMA snapshot at the images it has seen, and its record, as
    fit_generator does.

    Args:
        metadata: of a snapshot; describes the latents that the generator was trained on.

    Raises:
        ValueError: see `write_tokenizer`.
    """
    assert spec.pretrained is not None
    network = load_generator(
        spec.architecture.name, require_weights(spec.pretrained.name, spec.pretrained.sha256)
    ).network
    _compare(spec.pretrained, network.config.layout(), spec.architecture.layout(), "generator")
    for mark in spec.recipe.marks:  # one, unless two runs state other numbers of images for one file
        save_tensors(snapshot_file(out.folder, "ema", mark), dict(network.state_dict()), metadata)
        out.write_record(_record(spec.pretrained, sum(p.numel() for p in network.parameters())), mark)


def statistics_record(spec: Encode, inputs: dict[str, Stage]) -> Record:
    """Record of an encode stage with published statistics: no image is encoded, so there are no shards.

    Raises:
        ValueError: the file is missing, is not the planned one, or has another number of channels.
    """
    fit = inputs["tokenizer"].spec
    assert spec.pretrained is not None and isinstance(fit, FitTokenizer)
    stats = load_latent_statistics(require_weights(spec.pretrained.name, spec.pretrained.sha256))
    _compare(spec.pretrained, {"channels": stats.mean.numel()}, {"channels": fit.architecture.z_channels}, "latents")
    latent = {"mean": stats.mean.flatten().tolist(), "std": stats.std.flatten().tolist(), "stored": "statistics alone"}
    return {"latent": latent, "images": 0, "views": 0, **_record(spec.pretrained)}


def _record(file: ForeignFile, parameters: int | None = None) -> Record:
    cost = {} if parameters is None else {"parameters": parameters}
    return {"pretrained": {"file": weight_file(file.name).file, "sha256": file.sha256}, "cost": cost}


def _compare(file: ForeignFile, loaded: dict[str, Any], planned: dict[str, Any], what: str) -> None:
    different = [f"{name} {loaded[name]}, planned {planned[name]}" for name in planned if loaded[name] != planned[name]]
    if different:
        raise ValueError(f"{weight_file(file.name).file} holds another {what} than planned: {'; '.join(different)}")
