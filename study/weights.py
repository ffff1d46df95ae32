"""Weight files and references of others: what they are called, where they come from, what needs them.

Torch-free, so that a plan can say what is missing before anything starts. Files lie in one folder, `$STUDY_WEIGHTS`
(default: `weights` under `$STUDY_ROOT`), where `python -m study.prefetch` brings them; nothing else downloads one.
A file whose hash somebody stated is checked against that; of the others the hash is recorded when they are fetched
and checked from then on.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from models.specs import TRANSFORMERS
from study.files import read_json, write_json
from study.lease import locked
from study.paths import study_root
from study.published import download

if TYPE_CHECKING:
    from study.scales import Scale


HASHES = "hashes.json"  # in that folder: SHA-256 by file name
FIDELITY = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0"


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """A file of others. sha256: its first digits where its publisher states them, else empty."""

    file: str
    url: str
    purpose: str
    megabytes: int  # about
    sha256: str = ""


FILES = {
    "inception": WeightFile(
        file="weights-inception-2015-12-05-6726825d.pth",
        url=f"{FIDELITY}/weights-inception-2015-12-05-6726825d.pth",
        purpose="the judge 'inception'",
        megabytes=96,
        sha256="6726825d",  # part of its name, by torch.hub's convention
    ),
    "vgg": WeightFile(
        file="vgg16-397923af.pth",
        url="https://download.pytorch.org/models/vgg16-397923af.pth",
        purpose="the perceptual net 'vgg' (LPIPS)",
        megabytes=528,
        sha256="397923af",
    ),
    **{
        name: WeightFile(
            file=f"{model.timm_name}.safetensors",
            url=f"https://huggingface.co/timm/{model.timm_name}/resolve/main/model.safetensors",
            purpose=f"the foundation model {name!r}",
            megabytes=model.megabytes,
        )
        for name, model in TRANSFORMERS.items()
    },
}


def weights_folder() -> Path:
    """Where weight files of others lie."""
    if folder := os.environ.get("STUDY_WEIGHTS"):
        return Path(folder).expanduser().absolute()
    return study_root() / "weights"


def find(name: str) -> Path | None:
    """The file called `name` in FILES, if it is there; not checked."""
    path = weights_folder() / FILES[name].file
    return path if path.is_file() else None


def require(name: str) -> Path:
    """The file called `name` in FILES, checked.

    Raises:
        ValueError: it is not there, or its hash is not the stated or recorded one.
    """
    weight, folder = FILES[name], weights_folder()
    path = find(name)
    if path is None:
        where = folder if os.environ.get("STUDY_WEIGHTS") else f"{folder}; STUDY_WEIGHTS is not set"
        raise ValueError(
            f"{weight.purpose} needs {weight.file} in the folder named by STUDY_WEIGHTS ({where}): "
            "python -m study.prefetch brings it"
        )
    _check(path, weight)
    return path


def _check(path: Path, weight: WeightFile) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    expected = weight.sha256 or (read_json(weights_folder() / HASHES) or {}).get(weight.file, "")
    if not digest.startswith(expected):
        raise ValueError(
            f"{path} is damaged: its SHA-256 starts with {digest[:8]}, expected {expected[:8]}; delete it and fetch it "
            "again with python -m study.prefetch"
        )
    return digest


def fetch(name: str) -> Path:
    """Bring the file called `name` in FILES to the folder; the hash of one that states none is recorded.

    Raises:
        OSError: no answer, or a broken transfer.
        ValueError: what came is not the stated file.
    """
    weight, folder = FILES[name], weights_folder()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / weight.file
    if path.is_file():
        digest = _check(path, weight)
    else:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as temporary:
            came = Path(temporary) / weight.file
            download(weight.url, came)
            digest = _check(came, weight)
            os.replace(came, path)
    if not weight.sha256:
        with locked(folder):
            write_json(folder / HASHES, {**(read_json(folder / HASHES) or {}), weight.file: digest})
    return path


def needed(scale: Scale) -> list[str]:
    """Names in FILES of what the runs of a scale load."""
    nets = [scale.evaluation.perceptual_net]
    if scale.tokenizer.perceptual_weight:
        nets.append(scale.tokenizer.perceptual_net)
    names = [name for name, _ in scale.judges] + nets + list(scale.foundation_models)
    return [name for name in FILES if name in names]


def missing(scale: Scale) -> list[str]:
    """One line for everything that the runs of a scale load and that is not here, with what brings it."""
    lines = []
    for name in needed(scale):
        weight = FILES[name]
        if find(name) is None:
            lines.append(f"{weight.purpose}: {weight.file} ({weight.megabytes} MB; python -m study.prefetch)")
    if "vgg" in needed(scale) and importlib.util.find_spec("lpips") is None:
        lines.append("the perceptual net 'vgg' (LPIPS): the package lpips, which carries its heads (pip install lpips)")
    return lines
