"""What the processor offers, resolved once by the planner so that every stage's spec states it."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from study.core.settings import later

if TYPE_CHECKING:
    import torch

CUDA_THREADS = 4  # of a process that trains on a GPU: they prepare batches and move no number


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Device kind, precision and threads of a stage; part of its fingerprint, because they move the last bits."""

    device: str  # "cpu" or "cuda"
    precision: str  # "float32", or "bfloat16" (autocast)
    threads: int  # of one process, on the CPU
    processes: int = later(1)  # that train together, each on its share of every batch
    microbatch_images: int = later(0)  # a generator's share goes through in pieces of so many; 0 is all at once
    checkpointing: bool = later(False)  # a generator's blocks are computed again in the backward pass: less memory
    compile: bool = later(False)  # a generator's blocks go through torch.compile


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a training is spread over devices and memory. Moves nothing but the last bits; see Compute."""

    processes: int = 1
    microbatch_images: int = 0
    checkpointing: bool = False
    compile: bool = False


def cores() -> int:
    """Cores this process may use: the affinity mask, cut by the control group's quota where there is one."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            count = min(count, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):
        pass
    return count


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


def has_gpu() -> bool:
    """Whether this process can use a GPU."""
    # importing torch costs seconds: ask it only where a driver is loaded
    if not Path("/proc/driver/nvidia/version").exists() or os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return False
    import torch

    return torch.cuda.is_available()


@functools.cache
def resolve(device: str = "any") -> Compute:
    """Choose device, precision and threads: for this machine, or for the kind of device that is named.

    A plan for "cuda" is the same wherever it is made, such as on a login node without a GPU.
    bfloat16 only where the processor multiplies matrices in it (AVX512-BF16 or AMX: 5 times float32 there;
    emulated it is 100 times slower). On the CPU two jobs of half the cores each beat one of all cores, because
    small layers do not fill them.
    """
    if device == "cuda" or (device == "any" and has_gpu()):
        return Compute(device="cuda", precision="bfloat16", threads=CUDA_THREADS)
    flags = set(_cpuinfo().split())
    fast_bfloat16 = bool({"avx512_bf16", "amx_bf16"} & flags)
    return Compute(device="cpu", precision="bfloat16" if fast_bfloat16 else "float32", threads=max(1, cores() // 2))


def apply(compute: Compute) -> None:
    """Set this process up as `compute` says, with deterministic kernels.

    NumPy's own thread pool counts too: with as many threads as cores in each of two jobs, the eigenvalues of a
    1280 x 1280 matrix took 28 s instead of 2.
    """
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(compute.threads)
    threadpool_limits(compute.threads)
    torch.use_deterministic_algorithms(True, warn_only=compute.device == "cuda")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a debugging aid that took 6% of a step
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # float32 means float32


def autocast(compute: Compute) -> torch.autocast:
    """Context in which matrix products run in the spec's precision."""
    import torch

    return torch.autocast(compute.device, torch.bfloat16, enabled=compute.precision == "bfloat16")


def gpus(compute: Compute) -> list[int]:
    """Numbers of the GPUs this process may use; none where jobs run on the CPU."""
    if compute.device != "cuda" or not has_gpu():
        return []
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible and not all(name.strip().isdigit() for name in visible.split(",")):
        raise ValueError(f"CUDA_VISIBLE_DEVICES must list numbers of GPUs here, got {visible!r}")
    return [int(n) for n in visible.split(",")] if visible else list(range(torch.cuda.device_count()))
