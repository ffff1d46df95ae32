"""Pictures that a stage made, in chunks on the disk: lossless, one safetensors file of uint8 (n, C, H, W) each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from study.core.files import load_tensors, read_tensors, save_tensors
from study.plan.specs import Reconstruct, Sample
from study.plan.stage import Stage

if TYPE_CHECKING:
    from torch import Tensor

RECONSTRUCTED = 256  # pictures in a chunk of reconstructions; samples have the chunks of their protocol


def chunk_rows(spec: Reconstruct | Sample) -> list[range]:
    """The numbers of the pictures in each chunk."""
    size = RECONSTRUCTED if isinstance(spec, Reconstruct) else spec.sampling.chunk
    return [range(spec.images)[start : start + size] for start in range(0, spec.images, size)]


def chunk_file(folder: Path, chunk: int) -> Path:
    return folder / f"chunk-{chunk:06d}.safetensors"


def read_chunk(folder: Path, chunk: int) -> Tensor | None:
    """The pictures of a chunk; None where it is missing or damaged."""
    tensors = read_tensors(chunk_file(folder, chunk))
    return None if tensors is None else tensors["images"]


def write_chunk(folder: Path, chunk: int, images: Tensor) -> None:
    save_tensors(chunk_file(folder, chunk), {"images": images})


def pictures_of(spec: Reconstruct | Sample, folder: Path) -> Iterator[Tensor]:
    """The pictures in a stage's folder, chunk by chunk in order.

    Raises:
        FileNotFoundError: a chunk is missing.
        ValueError: a chunk is damaged; it is deleted, so that the next attempt makes it again.
    """
    from safetensors import SafetensorError

    for chunk in range(len(chunk_rows(spec))):
        path = chunk_file(folder, chunk)
        try:
            yield load_tensors(path)["images"]
        except SafetensorError as error:
            path.unlink(missing_ok=True)
            raise ValueError(f"{path} was damaged ({error}) and is deleted: run the same command again") from None


def first_pictures(spec: Reconstruct | Sample, folder: Path, count: int) -> Tensor:
    """The first pictures in a stage's folder, or all if there are fewer: uint8 (count, C, H, W)."""
    import torch

    found: list[Tensor] = []
    for images in pictures_of(spec, folder):
        found.append(images[: count - sum(map(len, found))])
        if sum(map(len, found)) == count:
            break
    return torch.cat(found)


def pictures_gone(stage: Stage) -> bool:
    """Whether a stage makes pictures and some of them are not on the disk."""
    spec = stage.spec
    if not isinstance(spec, (Reconstruct, Sample)):
        return False
    return not all(chunk_file(stage.folder, chunk).exists() for chunk in range(len(chunk_rows(spec))))


def picture_files(folder: Path) -> list[Path]:
    """The chunks in a stage's folder."""
    return sorted(folder.glob("chunk-*.safetensors"))
