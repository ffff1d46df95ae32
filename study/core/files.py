"""JSON and tensor files, written atomically (results/files.py); hashes of JSON content."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from results.files import atomic

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON, atomically; ValueError for a number that is not finite."""
    text = json.dumps(content, indent=1, allow_nan=False)
    with atomic(path) as temporary:
        temporary.write_text(text + "\n")


def read_json(path: Path) -> Any | None:
    """The content of a JSON file, or None when it is missing or incomplete."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
        return None


def fingerprint(content: Any, length: int = 16) -> str:
    """Hash of JSON-serialisable `content`, independent of the order of keys: `length` hex digits of its SHA-256."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:length]


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors (any dtype and device, made contiguous) and text metadata as safetensors, atomically."""
    from safetensors.torch import save_file

    with atomic(path) as temporary:
        save_file({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, temporary, metadata)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a safetensors file onto the CPU; a damaged file raises `safetensors.SafetensorError`."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise SafetensorError(f"{path} is damaged, delete its folder to make it again: {error}") from error


def read_tensors(path: Path) -> dict[str, Tensor] | None:
    """The tensors of a safetensors file, or None when it is missing or damaged, so that the caller makes it again."""
    from safetensors import SafetensorError

    try:
        return load_tensors(path)
    except (FileNotFoundError, SafetensorError):
        return None


def load_metadata(path: Path) -> dict[str, str]:
    """Read the text metadata of a safetensors file."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def create_array(path: Path, dtype: Any, shape: tuple[int, ...]) -> np.memmap:
    """A new .npy file, memory-mapped for writing, with all of its disk space allocated now.

    Raises:
        OSError: the disk is full. Without allocation, writing to the map would end the process with SIGBUS instead.
    """
    import numpy as np

    array = np.lib.format.open_memmap(path, "w+", dtype=dtype, shape=shape)
    with open(path, "r+b") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def remove_tree(folder: Path) -> None:
    """Delete a folder if it exists."""
    shutil.rmtree(folder, ignore_errors=True)
