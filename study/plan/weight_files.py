"""Published weight files and reference statistics: names, sources, hashes, and what needs them.

Does not import torch, so that a plan can report missing files before anything starts. All files are in one folder,
`$STUDY_WEIGHTS` (default: `weights` under `$STUDY_ROOT`), to which `python -m study.prefetch` downloads them; nothing
else downloads any. A file whose publisher states its hash is checked against it. Stages are identified by the bytes of
the weights that they load, so another file under the same name trains anew.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.configs import TRANSFORMERS, generator_config
from models.packages import lite_file, lpips_heads_file
from study.core.files import fingerprint, read_json, write_json
from study.core.lease import locked
from study.core.paths import study_root

HASHES = "hashes.json"  # in the weights folder, by file name: SHA-256, and the size and time of the file that has it
COMPUTED: dict[Path, dict[str, Any]] = {}  # the entries that this process computed, by path of the file
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


# network of the released generators
RELEASED_GENERATOR = generator_config("LightningDiT-XL/1", grid=16, in_channels=32, num_classes=1000)


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
        ValueError: the file is missing, or its hash is not the published or the planned one.
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
    keep_hashes()
    require_planned(str(path), digest, sha256)
    return path


def require_planned(what: str, digest: str, planned: str | None) -> None:
    """ValueError unless weights have the hash that was planned: all its digits, empty if they were missing then; None:
    any."""
    if planned is not None and planned != digest:
        raise ValueError(
            f"{what} is not the planned file: its SHA-256 starts with {digest[:8]}, planned "
            f"{planned[:8] or 'when the file was missing'}; plan again with study.sweep, or put the planned file back"
        )


def content_hash(name: str) -> str:
    """SHA-256 of the file called `name`, for a plan; empty if it is missing.

    Raises:
        ValueError: its hash is not the published one.
    """
    path = find_weights(name)
    return checked_hash(path, weight_file(name)) if path else ""


_lite_file = functools.cache(lite_file)  # a plan asks for it thousands of times


def network_hash(name: str) -> str:
    """SHA-256 of the pretrained weights of a foundation model, a perceptual net or a judge, for a plan; empty if they
    are missing.

    Raises:
        ValueError: the hash of a file is not the published one.
    """
    if name in ("lite0", "lite2", "efficientnet_lite2"):
        with contextlib.suppress(ValueError):
            return _hash_of_package(_lite_file(name.removeprefix("efficientnet_")))
        return ""
    digest = content_hash(name)
    if name == "vgg" and digest:  # the heads of LPIPS are in a package
        with contextlib.suppress(ValueError):
            return fingerprint([digest, _hash_of_package(lpips_heads_file())], 64)
        return ""
    return digest


def checked_hash(path: Path, weight: WeightFile) -> str:
    """SHA-256 of a file in the weights folder; ValueError when it is not the published one. Writes nothing: see
    `keep_hashes`."""
    about = path.stat()
    now = {"size": about.st_size, "modified": about.st_mtime_ns}
    kept = (read_json(weights_folder() / HASHES) or {}).get(path.name), COMPUTED.get(path)
    entry = next((each for each in kept if each and now.items() <= each.items()), None)
    if entry is None:
        entry = COMPUTED[path] = {"sha256": _sha256(path), **now}
    digest = entry["sha256"]
    if not digest.startswith(weight.sha256):
        raise ValueError(
            f"{path} is damaged: its SHA-256 starts with {digest[:8]}, expected {weight.sha256[:8]}; delete it and "
            "fetch it again with python -m study.prefetch"
        )
    return digest


def keep_hashes() -> None:
    """Write the hashes that this process computed beside the files: those of the paper's scale take a minute to
    read."""
    folder = weights_folder()
    computed = {path.name: entry for path, entry in COMPUTED.items() if path.is_relative_to(folder)}
    if computed.items() <= (read_json(folder / HASHES) or {}).items():
        return
    with contextlib.suppress(OSError), locked(folder):  # a folder that others own is read all the same
        write_json(folder / HASHES, {**(read_json(folder / HASHES) or {}), **computed})


@functools.cache
def _hash_of_package(path: Path) -> str:
    return _sha256(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
