"""Checkpoints of a training: everything that must survive, in safetensors with a checksum, the last two kept."""

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

from study.core.distributed import from_main, processes, rank
from study.core.files import load_metadata, load_tensors, save_tensors

KEPT = 2
CHECKSUM = "crc32"  # name of its entry in the metadata; the first checkpoints had none
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
    """Load what `pack` made back into the state, strictly."""
    for part, value in state.items():
        own = {name[len(part) + 1 :]: t for name, t in tensors.items() if name.startswith(f"{part}/")}
        if isinstance(value, nn.Module):
            value.load_state_dict(own, strict=True)
        else:
            parameters = [p for group in value.param_groups for p in group["params"]]
            moments: dict[int, dict[str, Tensor]] = {}  # of each parameter, by name
            for name, tensor in own.items():
                index, item = name.split("/")
                like = parameters[int(index)]
                if tensor.shape == like.shape:  # a fused optimizer walks both in the order of memory
                    tensor = torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)
                moments.setdefault(int(index), {})[item] = tensor
            value.load_state_dict({"state": moments, "param_groups": value.state_dict()["param_groups"]})


@dataclass(frozen=True)
class Position:
    """How far a training is: images seen; over all attempts, seconds of training and steps that were skipped."""

    images_seen: int = 0
    seconds: float = 0.0
    skipped: int = 0


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*.safetensors"))


def _file(folder: Path, images_seen: int) -> Path:
    return folder / f"checkpoint-{images_seen:012d}.safetensors"


def _checksum(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    """CRC-32 of everything a checkpoint says; safetensors itself only notices a file that is too short.

    Args:
        tensors: contiguous, on the CPU.
        metadata: the other entries.
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
    """Write a checkpoint at this position, then drop all but the last two. Of several processes the first writes."""
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
    """Load the newest whole checkpoint into the state and say where it stands; the start when there is none.

    A torn or altered file is dropped with a warning and the one before it is used. Of several processes the first
    drops, and the others load what it has loaded.
    """
    position = _restore(folder, state) if rank() == 0 else Position()
    if processes() > 1:
        position = Position(**from_main(dataclasses.asdict(position)))
        if rank() != 0 and position.images_seen:
            unpack(state, load_tensors(_file(folder, position.images_seen)))
    return position


def _restore(folder: Path, state: State) -> Position:
    for path in reversed(_files(folder)):
        try:
            tensors, metadata = load_tensors(path), load_metadata(path)
            written = metadata.pop(CHECKSUM, None)
            if written is not None and written != _checksum(tensors, metadata):
                raise SafetensorError("its content is not what was written: the checksum differs")
        except SafetensorError as error:
            log.warning("checkpoint %s cannot be read (%s): falling back to the one before", path, error)
            path.unlink(missing_ok=True)
            continue
        unpack(state, tensors)
        return Position(int(metadata["images_seen"]), float(metadata["seconds"]), int(metadata.get("skipped", 0)))
    return Position()
