"""Device, precision and threads of this machine, resolved once by the planner and stated in every stage's spec."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from study.core.settings import outside_identity

if TYPE_CHECKING:
    import torch

CUDA_THREADS = 4  # CPU threads of a process that trains on a GPU: they prepare batches and affect no result


@dataclass(frozen=True, kw_only=True)
class Compute:
    """How a stage is computed. Only the precision is asked for; the rest changes the last bits, and is provenance."""

    precision: str  # "float32"; "tf32", float32 with TF32 convolutions where a GPU has them; or "bfloat16" (autocast)
    device: str = outside_identity()  # "cpu" or "cuda"
    threads: int = outside_identity()  # CPU threads of each process
    processes: int = outside_identity(1)  # that train together, each on its share of every batch
    microbatch_images: int = outside_identity(0)  # a generator's share goes through in pieces of this size; 0: whole
    checkpointing: bool = outside_identity(False)  # gradient checkpointing of a generator's blocks: less memory
    compile: bool = outside_identity(False)  # a generator's blocks are compiled by torch.compile
    keep_states: bool = outside_identity(False)  # a generator's full state is kept at every mark, not only the last


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a training is spread over devices and memory. Changes only the last bits of a result, and so no fingerprint;
    see Compute."""

    processes: int = 1
    microbatch_images: int = 0
    checkpointing: bool = False
    compile: bool = False
    keep_states: bool = False


def cores() -> int:
    """Number of cores this process may use: its affinity mask, limited by the cgroup's CPU quota if there is one."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            count = min(count, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):
        pass
    return count


@functools.cache
def processor() -> str:
    """Name of the processor, for provenance."""
    for line in _cpuinfo().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    import platform

    return platform.processor() or platform.machine()


@functools.cache
def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def has_compiler() -> bool:
    """Whether torch.compile has a C++ compiler here."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))


def has_gpu() -> bool:
    """Whether this process can use a GPU."""
    # importing torch takes seconds, so it is imported only where a driver is loaded
    if not Path("/proc/driver/nvidia/version").exists() or os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return False
    import torch

    return torch.cuda.is_available()


@functools.cache
def resolve(device: str = "any", precision: str = "float32") -> Compute:
    """Choose device and threads for this machine, or for a device kind ("cpu", "cuda"). The precision is the scale's.

    Each job on CPUs gets half of the cores, because two such jobs are faster than one after another on all cores: small
    layers do not keep all cores busy.
    """
    if device == "cuda" or (device == "any" and has_gpu()):
        return Compute(device="cuda", precision=precision, threads=CUDA_THREADS)
    return Compute(device="cpu", precision=precision, threads=max(1, cores() // 2))


def apply(compute: Compute) -> None:
    """Configure this process as `compute` says, with deterministic kernels.

    NumPy's own thread pool is limited too: with as many threads as cores in each of two jobs, the eigenvalues of a
    1280 x 1280 matrix took 28 s instead of 2.
    """
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(compute.threads)
    threadpool_limits(compute.threads)
    torch.use_deterministic_algorithms(True, warn_only=compute.device == "cuda")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a debugging aid that took 6% of a step
    torch.backends.cudnn.benchmark = False
    # these two rather than the newer `fp32_precision`, which PyTorch 2.6 does not have: to mix both raises an error
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = compute.precision == "tf32"


def autocast(compute: Compute) -> torch.autocast:
    """Context in which matrix products run in bfloat16 if that is the spec's precision.

    For forward passes alone: backward passes belong outside.
    """
    import torch

    return torch.autocast(compute.device, torch.bfloat16, enabled=compute.precision == "bfloat16")


@contextlib.contextmanager
def exact_convolutions() -> Iterator[None]:
    """Context without TF32 convolutions, for what trainings in several precisions share."""
    import torch

    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def gpus(compute: Compute) -> list[int]:
    """Indices of the GPUs this process may use; empty where jobs run on the CPU."""
    if compute.device != "cuda" or not has_gpu():
        return []
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible and not all(name.strip().isdigit() for name in visible.split(",")):
        raise ValueError(f"CUDA_VISIBLE_DEVICES must be a list of GPU indices, got {visible!r}")
    return [int(n) for n in visible.split(",")] if visible else list(range(torch.cuda.device_count()))


def parallel_jobs(compute: Compute, processes: int) -> int:
    """How many jobs of this many processes this machine runs at once: one process per GPU, or per `threads` cores."""
    resources = len(gpus(compute)) or cores() // compute.threads
    return max(1, resources // processes)
