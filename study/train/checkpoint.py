"""States of a training in safetensors files with a checksum: checkpoints, of which the last two stay, and kept ones."""

from __future__ import annotations

import dataclasses
import logging
import time
import zlib
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from study.core.distributed import broadcast, rank, world_size
from study.core.files import load_metadata, load_tensors, save_tensors
from study.plan.stage import CHECKPOINT, KEPT_STATE, state_files

KEPT = 2  # checkpoints of a training
# Between the end of one write and the next checkpoint pass at least SAVE_SECONDS, and so much time that the training
# waits for checkpoints for at most this share of it. Neither has influence on results.
SAVE_SECONDS, SAVE_SHARE = 20.0, 0.02
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
    """Progress of a training: images seen; seconds of training and skipped steps, both over all attempts; the last
    loss, None if it is not finite."""

    images_seen: int = 0
    seconds: float = 0.0
    skipped: int = 0
    loss: float | None = None


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


def host_copy(state: State) -> dict[str, Tensor]:
    """The tensors of `pack`, contiguous, copied to host memory: as large as the state, also where it is on the CPU."""
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in pack(state).items()
    }


def write(folder: Path, tensors: dict[str, Tensor], position: Position, *, keep: bool = False) -> None:
    """Write a state at this position, then delete all checkpoints up to it but the last two.

    Args:
        tensors: as of `host_copy`.
        keep: write it as a kept state, which no later one replaces.

    Raises:
        OSError: the disk is full or read-only; the checkpoints before stay.
    """
    path = folder / f"{KEPT_STATE if keep else CHECKPOINT}-{position.images_seen:012d}.safetensors"
    metadata = {
        "images_seen": str(position.images_seen),
        "seconds": f"{position.seconds:.3f}",
        "skipped": str(position.skipped),
        "loss": "" if position.loss is None else repr(position.loss),
    }
    save_tensors(path, tensors, {**metadata, CHECKSUM: _checksum(tensors, metadata)})
    _delete_checkpoints(folder, position.images_seen, spare=KEPT)


class Writer:
    """Writes the states of a running training in a thread, one at a time; the training waits for their copies only.

    A context manager: when the block ends, so has the write under way, and the lease of the folder can be given up.
    With several processes only rank 0 writes; elsewhere nothing is ever due, under way or waited for.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._write: Future[None] | None = None
        self._ended = time.monotonic()  # the last write; at first the start of the training
        self._cost = 0.0  # seconds that the last copy took

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown()
        if kind is None:
            self.wait()

    def save(self, state: State, position: Position, *, keep: bool = False) -> None:
        """Copy the state at this position and start to write it, after the write under way; `keep` as in `write`."""
        if rank() != 0:
            return
        self.wait()
        started = time.monotonic()
        tensors = host_copy(state)
        self._cost = time.monotonic() - started
        self._write = self._thread.submit(self._write_copy, tensors, position, keep)

    def _write_copy(self, tensors: dict[str, Tensor], position: Position, keep: bool) -> None:
        write(self._folder, tensors, position, keep=keep)
        self._ended = time.monotonic()

    @property
    def busy(self) -> bool:
        """Whether a write is under way."""
        return self._write is not None and not self._write.done()

    @property
    def due(self) -> bool:
        """Whether it is time for the next checkpoint."""
        pause = max(SAVE_SECONDS, self._cost / SAVE_SHARE)
        return rank() == 0 and not self.busy and time.monotonic() - self._ended > pause

    def check(self) -> None:
        """Raise what the last write raised (OSError: the disk is full or read-only), if it has ended."""
        if not self.busy:
            self.wait()

    def wait(self) -> None:
        """Wait until the last state is on the disk; raises what its write raised."""
        if self._write is not None and (error := self._write.exception()) is not None:
            raise error


def keep_last_alone(folder: Path) -> None:
    """Delete all checkpoints but that furthest along, unless a kept state is as far. Only rank 0 deletes."""
    if rank() == 0:
        last = max(state_files(folder), default=0)
        _delete_checkpoints(folder, last, spare=0 if any(folder.glob(f"{KEPT_STATE}-{last:012d}.*")) else 1)


def _delete_checkpoints(folder: Path, images_seen: int, spare: int) -> None:
    """Delete the checkpoints up to this number of images but the last `spare`."""
    paths = sorted(folder.glob(f"{CHECKPOINT}-*.safetensors"))
    until = [path for path in paths if path.stem <= f"{CHECKPOINT}-{images_seen:012d}"]
    for path in until[: len(until) - spare]:
        path.unlink(missing_ok=True)


def restore(folder: Path, state: State, *, until: int | None = None, beyond: int = 0) -> Position | None:
    """Load the newest intact state of a training and return its position; None where there is none.

    A truncated or altered file is deleted with a warning and the previous one is used. With several processes, rank 0
    chooses the file and deletes the damaged ones; the others load the same file.

    Args:
        state: receives it; unchanged where there is none.
        until, beyond: states at more than `beyond` and at most `until` images are considered; None: however far.
    """
    position = _restore(folder, state, until, beyond) if rank() == 0 else None
    if world_size() > 1:
        found = broadcast(None if position is None else dataclasses.asdict(position))
        position = None if found is None else Position(**found)
        if rank() != 0 and position is not None:
            unpack(state, load_tensors(state_files(folder)[position.images_seen]))
    return position


def _restore(folder: Path, state: State, until: int | None, beyond: int) -> Position | None:
    for images_seen, path in reversed(state_files(folder).items()):
        if images_seen <= beyond or (until is not None and images_seen > until):
            continue
        try:
            tensors, metadata = load_tensors(path), load_metadata(path)
            if metadata.pop(CHECKSUM, None) != _checksum(tensors, metadata):
                raise SafetensorError("its content is not what was written: the checksum differs")
        except SafetensorError as error:
            log.warning("checkpoint %s cannot be read (%s): falling back to the one before", path, error)
            path.unlink(missing_ok=True)
            continue
        unpack(state, tensors)
        seconds, skipped, loss = (metadata[name] for name in ("seconds", "skipped", "loss"))
        return Position(int(metadata["images_seen"]), float(seconds), int(skipped), float(loss) if loss else None)
    return None
