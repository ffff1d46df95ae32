"""Device, precision and threads of this machine, resolved once by the planner and stated in every stage's spec."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from study.core.cards import cards
from study.core.settings import outside_identity

if TYPE_CHECKING:
    import torch

CUBLAS, DETERMINISTIC_CUBLAS = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")
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
    compile: bool = outside_identity(False)  # a generator's blocks are compiled, in training and in sampling
    keep_states: bool = outside_identity(False)  # a generator's full state is kept at every mark, not only the last


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a training is spread over devices and memory. Changes only the last bits of a result, and so no fingerprint;
    see Compute."""

    processes: int = 1
    microbatch_images: int = 0
    checkpointing: bool = False
    compile: bool | None = None  # None: on a GPU, where it can be done and the stage is long (study/plan/resolve.py)
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


def no_compiler_because(device: str) -> str:
    """What torch.compile lacks on this machine, as "a C++ compiler, such as g++"; "" where it lacks nothing.

    On a processor it compiles C++; on a GPU triton does, which builds a launcher for its kernels in C at run time.
    """
    if device == "cpu":
        found = any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))
        return "" if found else "a C++ compiler, such as g++"
    if importlib.util.find_spec("triton") is None:
        return "the package triton"
    if not any(shutil.which(name) for name in (os.environ.get("CC", "gcc"), "gcc", "clang")):
        return "a C compiler, such as gcc"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    return "" if header.exists() else f"Python's header {header} (the package python3-dev, on Debian)"


def device_name(compute: Compute) -> str:
    """Name of what stages are computed on, here: the processor, or the GPU ("" if this machine has none)."""
    if compute.device == "cpu":
        return processor()
    return cards()[0].name if cards() else ""


@functools.cache
def resolve(device: str = "any", precision: str = "float32") -> Compute:
    """Choose device and threads for this machine, or for a device kind ("cpu", "cuda"). The precision is the scale's.

    Each job on CPUs gets half of the cores, because two such jobs are faster than one after another on all cores: small
    layers do not keep all cores busy.
    """
    if device == "cuda" or (device == "any" and cards()):
        return Compute(device="cuda", precision=precision, threads=CUDA_THREADS)
    return Compute(device="cpu", precision=precision, threads=max(1, cores() // 2))


def apply(compute: Compute) -> None:
    """Configure this process as `compute` says, with deterministic kernels.

    On a GPU an operation without one is an error, not a warning: only then are the backward passes of attention
    deterministic too. They cost a few percent.

    NumPy's own thread pool is limited too: with as many threads as cores in each of two jobs, the eigenvalues of a
    1280 x 1280 matrix took 28 s instead of 2.
    """
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(compute.threads)
    threadpool_limits(compute.threads)
    if os.environ.get(CUBLAS) not in DETERMINISTIC_CUBLAS:
        os.environ[CUBLAS] = DETERMINISTIC_CUBLAS[0]  # read at the first matrix product on a GPU
    torch.use_deterministic_algorithms(True)
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


def jobs_per_card(compute: Compute, gib: float | None) -> int:
    """How many jobs share each GPU of this machine: as many as its cores feed and its memory holds, at least one.

    Args:
        gib: GPU memory that each process of a job takes; None: unknown, so that no two share one.
    """
    if not cards() or gib is None:
        return 1
    fed = cores() // (compute.threads * len(cards()))
    held = int(min(card.memory_gib for card in cards()) // max(gib, 1e-3))
    return max(1, min(fed, held))


def parallel_jobs(compute: Compute, processes: int, gib: float | None = None) -> int:
    """How many jobs of this many processes this machine runs at once: a process per `threads` cores, or per share of a
    GPU.

    Args:
        gib: as of `jobs_per_card`.
    """
    if compute.device == "cuda" and cards():
        resources = len(cards()) * jobs_per_card(compute, gib)
    else:
        resources = cores() // compute.threads
    return max(1, resources // processes)
