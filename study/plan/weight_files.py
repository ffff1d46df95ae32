"""Published weight files and reference statistics: names, sources, hashes, and what needs them.

Does not import torch, so that a plan can report missing files before anything starts. All files are in one folder,
`$STUDY_WEIGHTS` (default: `weights` under `$STUDY_ROOT`), to which `python -m study.prefetch` downloads them; nothing
else downloads any. A file whose publisher states its hash is checked against it; the hash of any other file is recorded
when it is downloaded and checked from then on.
"""

from __future__ import annotations

import functools
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from models.configs import TRANSFORMERS
from study.core.files import read_json, write_json
from study.core.lease import locked
from study.core.paths import study_root

HASHES = "hashes.json"  # in the weights folder: SHA-256 by file name
FIDELITY = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0"
ADM = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet"
HUB = "https://huggingface.co/hustvl"  # file names as in the README of hustvl/LightningDiT
VAVAE = "vavae-imagenet256-f16d32-dinov2"
# tokenizers of the paper's Table 2; that README names only the folder, the file names are those that users report
VARIANTS = f"{HUB}/va-vae-imagenet256-experimental-variants/resolve/main"
SD_VAE = "https://huggingface.co/stabilityai/sd-vae-ft-ema/resolve/main/diffusion_pytorch_model.safetensors"
# as in LTH14/mar (util/download.py), except dl=1, which returns the file instead of a web page
MAR_VAE = "https://www.dropbox.com/scl/fi/hhmuvaiacrarfg28qxhwz/kl16.ckpt?rlkey=l44xipsezc8atcffdp4q7mwmh&dl=1"


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """A published or user-supplied file. sha256: its first digits if its publisher states them, else empty."""

    file: str
    url: str  # empty: the user puts the file into the folder
    purpose: str
    megabytes: int = 0  # approximate; 0: unknown
    sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class ReferenceFile:
    """Data behind a file of ADM's reference statistics, and the number of its images for precision and recall."""

    resolution: int  # pixels
    classes: int
    images: int


FILES = {
    "inception": WeightFile(
        file="weights-inception-2015-12-05-6726825d.pth",
        url=f"{FIDELITY}/weights-inception-2015-12-05-6726825d.pth",
        purpose="the judge 'inception'",
        megabytes=96,
        sha256="6726825d",  # part of the file name, by torch.hub's convention
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
    "adm-imagenet256": WeightFile(
        file="VIRTUAL_imagenet256_labeled.npz",
        url=f"{ADM}/256/VIRTUAL_imagenet256_labeled.npz",
        purpose="the reference 'adm-imagenet256'",
        megabytes=2000,
    ),
    VAVAE: WeightFile(
        file=f"{VAVAE}.pt",
        url=f"{HUB}/{VAVAE}/resolve/main/{VAVAE}.pt",
        purpose="the released tokenizer f16d32-dinov2",
    ),
    f"{VAVAE}-statistics": WeightFile(
        file=f"{VAVAE}-latents_stats.pt",
        url=f"{HUB}/{VAVAE}/resolve/main/latents_stats.pt",
        purpose="the statistics of its latents",
    ),
    **{
        name: WeightFile(
            file=f"{name}.pt",
            url=f"{HUB}/{name}/resolve/main/{name}.pt",
            purpose=f"the released generator LightningDiT-XL/1 ({name.rpartition('-')[2]})",
        )
        for name in ("lightningdit-xl-imagenet256-64ep", "lightningdit-xl-imagenet256-800ep")
    },
    "sd-vae-ft-ema": WeightFile(
        file="sd-vae-ft-ema.safetensors", url=SD_VAE, purpose="the tokenizer sd-vae-f8d4", megabytes=335
    ),
    "mar-vae-kl16": WeightFile(
        file="mar-vae-kl16.ckpt", url=MAR_VAE, purpose="the tokenizer mar-vae-f16d16", megabytes=266
    ),
    **{
        name: WeightFile(
            file=f"{name}.ckpt",
            url=f"{VARIANTS}/{name}.ckpt",
            purpose=f"the released tokenizer {name.split('-', 2)[2].removesuffix('-50ep')} of Table 2",
            megabytes=350 if name.startswith("ldm") else 1570,
        )
        for name in (
            *(f"ldm-imagenet256-f16d{width}-50ep" for width in (16, 32, 64)),
            *(f"vavae-imagenet256-f16d{width}-{model}-50ep" for width in (32, 64) for model in ("mae", "dinov2")),
        )
    },
}

# by name in FILES (`openai/guided-diffusion`, evaluations/README.md)
REFERENCES = {"adm-imagenet256": ReferenceFile(resolution=256, classes=1000, images=10_000)}


def weights_folder() -> Path:
    """Folder of the weight files."""
    if folder := os.environ.get("STUDY_WEIGHTS"):
        return Path(folder).expanduser().absolute()
    return study_root() / "weights"


def weight_file(name: str) -> WeightFile:
    """The entry of FILES, or else a file of this name that the user puts into the folder."""
    return FILES.get(name) or WeightFile(file=name, url="", purpose="a run with pretrained weights")


def find_weights(name: str) -> Path | None:
    """Path of the file called `name`, not checked; None if it is missing."""
    path = weights_folder() / weight_file(name).file
    return path if path.is_file() else None


def require_weights(name: str, sha256: str | None = None) -> Path:
    """Path of the file called `name`, after its hash was checked.

    Args:
        name: a key of FILES, or the name of a file in the folder.
        sha256: all digits of the planned file's hash; empty if it was missing when planned; None: any content.

    Raises:
        ValueError: the file is missing, or its hash is not the published, the recorded or the planned one.
    """
    weight, folder = weight_file(name), weights_folder()
    path = find_weights(name)
    if path is None:
        where = folder if os.environ.get("STUDY_WEIGHTS") else f"{folder}; STUDY_WEIGHTS is not set"
        raise ValueError(
            f"{weight.purpose} needs {weight.file} in the folder named by STUDY_WEIGHTS ({where}): "
            f"{'python -m study.prefetch downloads it' if weight.url else 'put it there'}"
        )
    digest = checked_hash(path, weight)
    if sha256 is not None and sha256 != digest:
        raise ValueError(
            f"{path} is not the planned file: its SHA-256 starts with {digest[:8]}, planned "
            f"{sha256[:8] or 'when the file was missing'}; plan again with study.sweep, or put the planned file back"
        )
    return path


def content_hash(name: str) -> str:
    """SHA-256 of the file called `name`, for a plan; empty if it is missing. Files of FILES are hashed only once.

    Raises:
        ValueError: its hash is not the published one.
    """
    path, weight = find_weights(name), weight_file(name)
    if path is None:
        return ""
    if recorded := (read_json(weights_folder() / HASHES) or {}).get(weight.file):
        return str(recorded)
    digest = checked_hash(path, weight)
    if name in FILES:
        record_hash(weight, digest)
    return digest


def record_hash(weight: WeightFile, digest: str) -> None:
    """Store the SHA-256 of a file, with which later reads are compared."""
    folder = weights_folder()
    with locked(folder):
        write_json(folder / HASHES, {**(read_json(folder / HASHES) or {}), weight.file: digest})


def checked_hash(path: Path, weight: WeightFile) -> str:
    """SHA-256 of a file; ValueError when it is not the published or the recorded one."""
    digest = _file_sha256(path, path.stat().st_mtime_ns, path.stat().st_size)
    expected = weight.sha256 or (read_json(weights_folder() / HASHES) or {}).get(weight.file, "")
    if not digest.startswith(expected):
        raise ValueError(
            f"{path} is damaged: its SHA-256 starts with {digest[:8]}, expected {expected[:8]}; delete it and fetch it "
            "again with python -m study.prefetch"
        )
    return digest


@functools.cache
def _file_sha256(path: Path, _modified: int, _size: int) -> str:
    """SHA-256 of a file, cached because many runs of a plan need it; the other arguments detect changes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
