"""Weight files and references of others: what they are called, where they come from, what needs them.

Torch-free, so that a plan can say what is missing before anything starts. Files lie in one folder, `$STUDY_WEIGHTS`
(default: `weights` under `$STUDY_ROOT`), where `python -m study.prefetch` brings them; nothing else downloads one.
A file whose hash somebody stated is checked against that; of the others the hash is recorded when they are fetched
and checked from then on.
"""

from __future__ import annotations

import functools
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from models.specs import TRANSFORMERS
from study.core.files import read_json, write_json
from study.core.lease import locked
from study.core.paths import study_root

HASHES = "hashes.json"  # in that folder: SHA-256 by file name
FIDELITY = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0"
ADM = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet"
HUB = "https://huggingface.co/hustvl"  # files as the README of hustvl/LightningDiT names them
VAVAE = "vavae-imagenet256-f16d32-dinov2"
# tokenizers of the paper's Table 2; that README names the folder alone, its files are as users of them list them
VARIANTS = f"{HUB}/va-vae-imagenet256-experimental-variants/resolve/main"
SD_VAE = "https://huggingface.co/stabilityai/sd-vae-ft-ema/resolve/main/diffusion_pytorch_model.safetensors"
# as LTH14/mar fetches it (util/download.py), but for dl=1, which gives the file and not a page
MAR_VAE = "https://www.dropbox.com/scl/fi/hhmuvaiacrarfg28qxhwz/kl16.ckpt?rlkey=l44xipsezc8atcffdp4q7mwmh&dl=1"


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """A file of others. sha256: its first digits where its publisher states them, else empty."""

    file: str
    url: str  # empty: nobody publishes it, it is put into the folder by hand
    purpose: str
    megabytes: int = 0  # about; 0: not known
    sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class ReferenceFile:
    """What a file of ADM's statistics is of, and how many images it holds for precision and recall."""

    resolution: int  # pixels
    classes: int
    images: int


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
    """Where weight files of others lie."""
    if folder := os.environ.get("STUDY_WEIGHTS"):
        return Path(folder).expanduser().absolute()
    return study_root() / "weights"


def weight_file(name: str) -> WeightFile:
    """What is known of a file: that of FILES, else a file of this name that somebody puts into the folder."""
    return FILES.get(name) or WeightFile(file=name, url="", purpose="a run whose weights are given")


def find_weights(name: str) -> Path | None:
    """The file called `name`, if it is there; not checked."""
    path = weights_folder() / weight_file(name).file
    return path if path.is_file() else None


def require_weights(name: str, sha256: str | None = None) -> Path:
    """The file called `name`, checked.

    Args:
        name: in FILES, or of a file in the folder.
        sha256: of its content, all digits, where a plan was made for this very file; empty if it was not there then.

    Raises:
        ValueError: it is not there, or its hash is not the stated, the recorded or the planned one.
    """
    weight, folder = weight_file(name), weights_folder()
    path = find_weights(name)
    if path is None:
        where = folder if os.environ.get("STUDY_WEIGHTS") else f"{folder}; STUDY_WEIGHTS is not set"
        raise ValueError(
            f"{weight.purpose} needs {weight.file} in the folder named by STUDY_WEIGHTS ({where}): "
            f"{'python -m study.prefetch brings it' if weight.url else 'put it there'}"
        )
    digest = _check(path, weight)
    if sha256 is not None and sha256 != digest:
        raise ValueError(
            f"{path} is not the file that was planned for: its SHA-256 starts with {digest[:8]}, planned "
            f"{sha256[:8] or 'when there was none'}; plan again with study.sweep, or put that one back"
        )
    return path


def content_hash(name: str) -> str:
    """SHA-256 of the file called `name`, for a plan; empty when it is not there. One of FILES is hashed once.

    Raises:
        ValueError: its hash is not the stated one.
    """
    path, weight = find_weights(name), weight_file(name)
    if path is None:
        return ""
    if recorded := (read_json(weights_folder() / HASHES) or {}).get(weight.file):
        return str(recorded)
    digest = _check(path, weight)
    if name in FILES:
        _record(weight, digest)
    return digest


def _record(weight: WeightFile, digest: str) -> None:
    folder = weights_folder()
    with locked(folder):
        write_json(folder / HASHES, {**(read_json(folder / HASHES) or {}), weight.file: digest})


def _check(path: Path, weight: WeightFile) -> str:
    digest = _digest(path, path.stat().st_mtime_ns, path.stat().st_size)
    expected = weight.sha256 or (read_json(weights_folder() / HASHES) or {}).get(weight.file, "")
    if not digest.startswith(expected):
        raise ValueError(
            f"{path} is damaged: its SHA-256 starts with {digest[:8]}, expected {expected[:8]}; delete it and fetch it "
            "again with python -m study.prefetch"
        )
    return digest


@functools.cache
def _digest(path: Path, _changed: int, _size: int) -> str:
    """SHA-256 of a file, which the runs of a plan ask for again and again."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
