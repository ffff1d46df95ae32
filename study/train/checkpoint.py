"""Checkpoints of a training: its state in safetensors files with a checksum; the last two are kept."""

from __future__ import annotations

import dataclasses
import logging
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from study.core.distributed import broadcast, rank, world_size
from study.core.files import load_metadata, load_tensors, save_tensors

KEPT = 2  # checkpoints of a training
CHECKSUM = "crc32"  # key in the metadata
State = Mapping[str, nn.Module | torch.optim.Optimizer]
log = logging.getLogger(__name__)


def pack(state: State) -> dict[str, Tensor]:
    """Flatten modules and optimizers into named tensors, `part/name` or `part/parameter index/state name`."""
    tensors: dict[str, Tensor] = {}
    for part, value in state.items():
        if isinstance(value, nn.Module):
            tensors |= {f"{part}/{name}": tensor for name, tensor in value.state_dict().items()}
        else:
            for index, moments in value.state_dict()["state"].items():
                tensors |= {f"{part}/{index}/{name}": torch.as_tensor(item) for name, item in moments.items()}
    return tensors


def unpack(state: State, tensors: dict[str, Tensor]) -> None:
    """Load tensors that `pack` returned into the state, strictly."""
    for part, value in state.items():
        own = {name[len(part) + 1 :]: t for name, t in tensors.items() if name.startswith(f"{part}/")}
        if isinstance(value, nn.Module):
            value.load_state_dict(own, strict=True)
        else:
            parameters = [p for group in value.param_groups for p in group["params"]]
            moments: dict[int, dict[str, Tensor]] = {}  # by parameter index, then by name
            for name, tensor in own.items():
                index, item = name.split("/")
                like = parameters[int(index)]
                if tensor.shape == like.shape:  # a fused optimizer needs both in the same memory layout
                    tensor = torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)
                moments.setdefault(int(index), {})[item] = tensor
            value.load_state_dict({"state": moments, "param_groups": value.state_dict()["param_groups"]})


@dataclass(frozen=True)
class Position:
    """Progress of a training: images seen; seconds of training and skipped steps, both over all attempts."""

    images_seen: int = 0
    seconds: float = 0.0
    skipped: int = 0


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*.safetensors"))


def _file(folder: Path, images_seen: int) -> Path:
    return folder / f"checkpoint-{images_seen:012d}.safetensors"


def _checksum(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    """CRC-32 of the content of a checkpoint; safetensors itself only detects a file that is too short.

    Args:
        tensors: contiguous, on the CPU.
        metadata: its entries except the checksum.
    """
    described = [
        sorted(metadata.items()),
        [(name, str(t.dtype), tuple(t.shape)) for name, t in sorted(tensors.items())],
    ]
    value = zlib.crc32(repr(described).encode())
    for _, tensor in sorted(tensors.items()):
        value = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, value)
    return f"{value:08x}"


def save(folder: Path, state: State, position: Position) -> None:
    """Write a checkpoint at this position, then delete all but the last two. Only rank 0 writes."""
    if rank() != 0:
        return
    path = _file(folder, position.images_seen)
    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in pack(state).items()}
    metadata = {
        "images_seen": str(position.images_seen),
        "seconds": f"{position.seconds:.3f}",
        "skipped": str(position.skipped),
    }
    save_tensors(path, tensors, {**metadata, CHECKSUM: _checksum(tensors, metadata)})
    for old in _files(folder)[:-KEPT]:
        old.unlink(missing_ok=True)


def restore(folder: Path, state: State) -> Position:
    """Load the newest intact checkpoint into the state and return its position; without one, the start position.

    A truncated or altered file is deleted with a warning and the previous one is used. With several processes, rank 0
    chooses the file and deletes the damaged ones; the others load the same file.
    """
    position = _restore(folder, state) if rank() == 0 else Position()
    if world_size() > 1:
        position = Position(**broadcast(dataclasses.asdict(position)))
        if rank() != 0 and position.images_seen:
            unpack(state, load_tensors(_file(folder, position.images_seen)))
    return position


def _restore(folder: Path, state: State) -> Position:
    for path in reversed(_files(folder)):
        try:
            tensors, metadata = load_tensors(path), load_metadata(path)
            if metadata.pop(CHECKSUM, None) != _checksum(tensors, metadata):
                raise SafetensorError("its content is not what was written: the checksum differs")
        except SafetensorError as error:
            log.warning("checkpoint %s cannot be read (%s): falling back to the one before", path, error)
            path.unlink(missing_ok=True)
            continue
        unpack(state, tensors)
        return Position(int(metadata["images_seen"]), float(metadata["seconds"]), int(metadata["skipped"]))
    return Position()
