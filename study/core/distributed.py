"""Several processes on one job: who this one is, and the few things they say to one another.

A job of one process never touches torch.distributed, and every function here is then the identity. Between
processes, gradients go over NCCL on GPUs and gloo on processors; what they agree on (stop, go on, who failed) goes
over gloo always, as JSON.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from torch.distributed import ProcessGroup


T = TypeVar("T")
Batch = TypeVar("Batch", "Tensor", "np.ndarray")

# One process may prepare data or wait for a lease for days while the others wait for its word. Those that wait
# notice at once when it dies: its connection closes.
PATIENCE = datetime.timedelta(days=30)

_talk: ProcessGroup | None = None  # over gloo, on the CPU


def rank_and_count() -> tuple[int, int]:
    """Rank of this process and how many were started with it, by torchrun or by submitit; (0, 1) alone."""
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if os.environ.get("SUBMITIT_EXECUTOR"):
        from submitit import JobEnvironment

        with contextlib.suppress(RuntimeError):  # not within a job
            environment = JobEnvironment()
            return environment.global_rank, environment.num_tasks
    return 0, 1


def processes() -> int:
    """How many processes work together; 1 outside `together`."""
    return 1 if _talk is None else _talk.size()


def rank() -> int:
    """Number of this process among them; 0 is the one that writes."""
    return 0 if _talk is None else _talk.rank()


@contextlib.contextmanager
def process_group(device: str) -> Iterator[None]:
    """Join the processes that were started with this one for the block, unless that is done already.

    Args:
        device: "cpu" or "cuda"; there each process takes the GPU of its local rank.
    """
    global _talk
    if _talk is not None or rank_and_count()[1] == 1:
        yield
        return
    import torch
    from torch import distributed

    if "RANK" not in os.environ:
        from submitit.helpers import TorchDistributedEnvironment

        environment = TorchDistributedEnvironment()
        if environment.local_world_size == environment.world_size:
            environment.master_addr = "localhost"  # whatever this machine calls itself, it may not know the name
        environment.export(set_cuda_visible_devices=False)
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    distributed.init_process_group("nccl" if device == "cuda" else "gloo")
    _talk = cast("ProcessGroup", distributed.new_group(backend="gloo", timeout=PATIENCE))
    try:
        yield
    finally:
        _talk = None
        distributed.destroy_process_group()


def own_share(items: Sequence[T]) -> Sequence[T]:
    """Every n-th of the items, beginning with this process's: no item twice, none left out."""
    return items[rank() :: processes()]


def slice_of_batch(batch: Batch) -> Batch:
    """This process's rows of what was drawn for the whole batch (a tensor or an array); they divide evenly."""
    size = len(batch) // processes()
    return batch[rank() * size : (rank() + 1) * size]


def barrier() -> None:
    """Wait until all processes are here."""
    if _talk is not None:
        from torch import distributed

        distributed.barrier(_talk)


def from_main(value: Any) -> Any:
    """What process 0 gives, a JSON-able value, in every process."""
    return value if _talk is None else gathered(value)[0]


def gathered(value: Any) -> list[Any]:
    """What every process gives, JSON-able values, in order of rank."""
    if _talk is None:
        return [value]
    import torch
    from torch import distributed

    text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(processes())]
    distributed.all_gather(lengths, torch.tensor([len(text)]), group=_talk)
    longest = int(max(lengths))
    texts = [torch.zeros(longest, dtype=torch.uint8) for _ in lengths]
    distributed.all_gather(texts, torch.nn.functional.pad(text, (0, longest - len(text))), group=_talk)
    return [json.loads(bytes(t[: int(n)].tolist())) for t, n in zip(texts, lengths, strict=True)]


def on_main(work: Callable[[], T]) -> T:
    """What `work()` gives in process 0, a JSON-able value, in every process; the others wait.

    Raises:
        Exception: in process 0 whatever `work` raised.
        Elsewhere: in the others, when it raised.
    """
    if _talk is None:
        return work()
    value: Any = None
    error: BaseException | None = None
    if rank() == 0:
        try:
            value = work()
        except BaseException as raised:
            error = raised
    value, failed = from_main([value, None if error is None else repr(error)])
    if error is not None:
        raise error
    if failed is not None:
        raise FailedElsewhere(failed)
    return value


class FailedElsewhere(RuntimeError):
    """Process 0 failed; it has said why."""


def lost_another_process(error: BaseException) -> bool:
    """Whether an error says no more than that another process of the job has ended."""
    return _talk is not None and any(word in str(error) for word in ("gloo", "NCCL", "onnection"))


def average(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors averaged over the processes, in one message; alone they come back as they are.

    Args:
        tensors: float, of the same shapes in every process.
    """
    if _talk is None:
        return tensors
    import torch
    from torch import distributed

    flat = torch.cat([tensor.detach().float().flatten() for tensor in tensors])
    distributed.all_reduce(flat)
    flat /= processes()
    parts = flat.split([tensor.numel() for tensor in tensors])
    return tuple(part.view_as(tensor).to(tensor.dtype) for part, tensor in zip(parts, tensors, strict=True))


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace the gradients of these parameters by their averages over the processes."""
    if _talk is not None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        for gradient, mean in zip(gradients, average(*gradients), strict=True):
            gradient.copy_(mean)
