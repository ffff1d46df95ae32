"""The only reader of external weight files. It never runs code from them."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")

# In order of preference: authors publish numbers for the moving average.
NESTINGS = ("ema", "state_dict", "model")


class Foreign(NamedTuple):
    """The named tensors of a file, on the CPU, and the keys they were nested under (`ema`, or `ema.state_dict`).

    The keys are empty for a file that holds only tensors. header: the text that a safetensors file states about itself.
    """

    tensors: dict[str, Tensor]
    part: str
    header: dict[str, str]


def load_foreign(path: str | Path) -> dict[str, Tensor]:
    """The named tensors of a file; see read_foreign."""
    return read_foreign(path).tensors


def read_foreign(path: str | Path) -> Foreign:
    """Read .safetensors, or .pt .pth .ckpt .bin with weights_only=True.

    A checkpoint that nests its weights under `ema`, `state_dict` or `model` is unwrapped, in that order of
    preference. Raises ValueError for another kind of file, for a pickle that holds anything but plain data
    (it is refused, not run), for a truncated file, and for one without named tensors; FileNotFoundError if the file
    does not exist.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open
        from safetensors.torch import load_file

        try:
            with safe_open(path, "pt") as file:
                header = file.metadata() or {}
            return Foreign(load_file(path), "", header)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a valid safetensors file: {error}") from error
    if path.suffix not in TORCH_SUFFIXES:
        raise ValueError(
            f"refused {path}: weights are read from .safetensors, {', '.join(TORCH_SUFFIXES)}; not from {path.suffix!r}"
        )
    zipped = zipfile.is_zipfile(path)  # the zip directory is at the end, so a truncated download has none
    if not zipped and _begins_like_a_zip(path):
        raise ValueError(f"{path} is cut off or damaged ({path.stat().st_size:,} bytes): fetch it again")
    try:
        # Only the zip format can be mapped into memory; the older one is read whole.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # broken files fail in many ways, among them struct.error and IndexError
        raise ValueError(
            f"refused {path}: it is not a plain file of tensors, or not all of one; a pickle that names anything "
            "else could run code when loaded. Convert it to safetensors where you trust it. "
            f"({type(error).__name__}: {str(error).partition(chr(10))[0]})"
        ) from error
    return _tensors(content, path)


def _begins_like_a_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _tensors(content: Any, path: Path) -> Foreign:
    keys: list[str] = []
    for _ in range(3):  # no checkpoint nests deeper than this
        key = next((key for key in NESTINGS if isinstance(content, dict) and _holds(content, key)), None)
        if key is None:
            break
        content = content[key]
        keys.append(key)
    if not isinstance(content, dict) or not content or not _named(content):
        found = sorted(map(str, content))[:8] if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path} holds no table of named tensors, not even under {', '.join(NESTINGS)}; found {found}")
    return Foreign(dict(content), ".".join(keys), {})


def _named(content: dict[Any, Any]) -> bool:
    return all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())


def _holds(content: dict[Any, Any], key: str) -> bool:
    return isinstance(content.get(key), dict)
