"""Several processes on one job: rank and world size, and collectives for gradients and for JSON-serialisable values.

A job of one process never uses torch.distributed: every function here then works on that process alone. With several,
gradients are reduced with NCCL on GPUs and gloo on CPUs; control values (stop, continue, which process failed) always
go through gloo, as JSON.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from torch.distributed import ProcessGroup


T = TypeVar("T")
Batch = TypeVar("Batch", "Tensor", "np.ndarray")

# One process may prepare data or wait for a lease for days while the others wait in a collective. They notice at once
# when it dies, because its connection closes.
CONTROL_TIMEOUT = datetime.timedelta(days=30)
# A process that waits in NCCL for one that has ended does not notice for ten minutes. So each listens to the next one,
# and ends this long after it failed or died, in which it may still say why.
GRACE_SECONDS = 10.0

_control_group: ProcessGroup | None = None  # gloo, for control values; None in a job of one process


def rank_and_world_size() -> tuple[int, int]:
    """Rank and world size that torchrun or submitit gave this process at its start; (0, 1) without them."""
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if os.environ.get("SUBMITIT_EXECUTOR"):
        from submitit import JobEnvironment

        with contextlib.suppress(RuntimeError):  # not inside a job
            environment = JobEnvironment()
            return environment.global_rank, environment.num_tasks
    return 0, 1


def world_size() -> int:
    """Number of processes in the group; 1 outside `process_group`."""
    return 1 if _control_group is None else _control_group.size()


def rank() -> int:
    """Rank of this process in the group; rank 0 writes all files. 0 outside `process_group`."""
    return 0 if _control_group is None else _control_group.rank()


@contextlib.contextmanager
def process_group(device: str) -> Iterator[None]:
    """Form a process group with the processes that were started together with this one, unless there is one already.

    Args:
        device: "cpu" or "cuda"; on "cuda" each process uses the GPU of its local rank.
    """
    global _control_group
    if _control_group is not None or rank_and_world_size()[1] == 1:
        yield
        return
    import torch
    from torch import distributed

    if "RANK" not in os.environ:
        from submitit.helpers import TorchDistributedEnvironment

        environment = TorchDistributedEnvironment()
        if environment.local_world_size == environment.world_size:
            environment.master_addr = "localhost"  # a machine cannot always resolve its own hostname
        environment.export(set_cuda_visible_devices=False)
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    distributed.init_process_group("nccl" if device == "cuda" else "gloo")
    _control_group = cast("ProcessGroup", distributed.new_group(backend="gloo", timeout=CONTROL_TIMEOUT))
    listening = _listen(distributed.new_group(backend="gloo", timeout=CONTROL_TIMEOUT))
    failed = True
    try:
        yield
        failed = False
    finally:
        _control_group = None
        listening(failed)
        distributed.destroy_process_group()


def _listen(group: Any) -> Callable[[bool], None]:
    """Listen to the next process of the group in a thread, which ends this process after GRACE_SECONDS if that one
    fails or dies.

    Returns:
        A function that tells the process before whether this one has failed. If it has, it ends within GRACE_SECONDS
        too: to leave the group may wait for the others.
    """
    import torch
    from torch import distributed

    own, count = distributed.get_rank(), distributed.get_world_size()
    if count == 1:
        return lambda failed: None

    def end() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)

    def listen() -> None:
        failed = torch.ones(1)
        with contextlib.suppress(RuntimeError):  # its connection closed
            distributed.recv(failed, (own + 1) % count, group)
        if failed.item():
            time.sleep(GRACE_SECONDS)
            end()

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()

    def tell(failed: bool) -> None:
        with contextlib.suppress(RuntimeError):
            distributed.send(torch.tensor([float(failed)]), (own - 1) % count, group)
        if failed:
            timer = threading.Timer(GRACE_SECONDS, end)
            timer.daemon = True
            timer.start()
        else:
            thread.join()

    return tell


def own_share(items: Sequence[T]) -> Sequence[T]:
    """Items rank, rank + world size, ...: over all processes each item occurs exactly once."""
    return items[rank() :: world_size()]


def slice_of_batch(batch: Batch) -> Batch:
    """This process's rows of a tensor or array for the whole batch, whose length is a multiple of the world size."""
    size = len(batch) // world_size()
    return batch[rank() * size : (rank() + 1) * size]


def barrier() -> None:
    """Wait until all processes have reached this call."""
    if _control_group is not None:
        from torch import distributed

        distributed.barrier(_control_group)


def broadcast(value: Any) -> Any:
    """The JSON-serialisable `value` of rank 0, returned in every process."""
    return value if _control_group is None else all_gather(value)[0]


def all_gather(value: Any) -> list[Any]:
    """The JSON-serialisable values of all processes, in order of rank, returned in every process."""
    if _control_group is None:
        return [value]
    import torch
    from torch import distributed

    text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(world_size())]
    distributed.all_gather(lengths, torch.tensor([len(text)]), group=_control_group)
    longest = int(max(lengths))
    texts = [torch.zeros(longest, dtype=torch.uint8) for _ in lengths]
    distributed.all_gather(texts, torch.nn.functional.pad(text, (0, longest - len(text))), group=_control_group)
    return [json.loads(bytes(t[: int(n)].tolist())) for t, n in zip(texts, lengths, strict=True)]


def on_rank_zero(work: Callable[[], T]) -> T:
    """Call `work()` in rank 0 only and return its JSON-serialisable result in every process; the others wait.

    Raises:
        Exception: in rank 0, whatever `work` raised.
        RankZeroFailed: in the other processes, when it raised.
    """
    if _control_group is None:
        return work()
    result: Any = None
    error: BaseException | None = None
    if rank() == 0:
        try:
            result = work()
        except BaseException as raised:
            error = raised
    result, message = broadcast([result, None if error is None else repr(error)])
    if error is not None:
        raise error
    if message is not None:
        raise RankZeroFailed(message)
    return result


class RankZeroFailed(RuntimeError):
    """Rank 0 failed and has reported the reason itself."""


def another_process_ended(error: BaseException) -> bool:
    """Whether an error only means that another process of the job has ended."""
    return _control_group is not None and any(word in str(error) for word in ("gloo", "NCCL", "onnection"))


def average(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors averaged over the processes in one all-reduce; unchanged where there is one process.

    Args:
        tensors: floating point, with the same shapes in every process.
    """
    if _control_group is None:
        return tensors
    import torch
    from torch import distributed

    flat = torch.cat([tensor.detach().float().flatten() for tensor in tensors])
    distributed.all_reduce(flat)
    flat /= world_size()
    means = flat.split([tensor.numel() for tensor in tensors])
    return tuple(mean.view_as(tensor).to(tensor.dtype) for mean, tensor in zip(means, tensors, strict=True))


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace the gradients of these parameters by their means over the processes."""
    if _control_group is not None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        for gradient, mean in zip(gradients, average(*gradients), strict=True):
            gradient.copy_(mean)
