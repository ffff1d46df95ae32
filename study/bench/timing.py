"""Time functions and compare them with the machine's peak rate: medians, matrix products, FLOPs, profiles."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry

FEWEST_REPEATS = 3
SIDE = {"cpu": 1024, "cuda": 8192}  # rows and columns of the matrices whose product gives the peak rate
DTYPES = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16}

aten = torch.ops.aten
PRODUCTS = {
    aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default, aten.convolution.default,
    aten.convolution_backward.default,
}  # fmt: skip

# groups of operations by prefix; an operation belongs to the first group that matches
GROUPS = (
    ("matrix products", ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "mkldnn", "aten::mkldnn")),
    ("optimizer", ("aten::_fused_adam", "Optimizer")),
    ("EMA", ("aten::_foreach_lerp", "aten::lerp")),
    ("gradient clipping", ("aten::_foreach_norm", "aten::_foreach_mul", "aten::linalg_vector_norm")),
    ("norms and softmax", ("rms_norm", "layer_norm", "softmax", "aten::rsqrt", "aten::mean")),
    ("copies", ("aten::copy_", "aten::clone", "aten::cat", "aten::index", "aten::_to_copy", "aten::contiguous")),
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A function to time.

    flops: of one run, None if the case has no useful count. dtype: precision of its matrix products, as in Compute.
    """

    name: str
    run: Callable[[], Any]
    images: int  # of one run
    flops: float | None = None
    dtype: str = "float32"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The timing of a case.

    share: its rate over that of one large matrix product in the same dtype, timed in turn with it; None without FLOPs.
    """

    name: str
    images: int
    seconds: float
    images_per_second: float
    gflops: float | None  # GFLOP/s
    share: float | None


def measure(cases: list[Case], repeats: int, device: str, **options: Any) -> list[Measured]:
    """Time these cases in turn with large matrix products of their dtypes; options as in `medians`."""
    dtypes = sorted({case.dtype for case in cases if case.flops is not None})
    functions: dict[str, Callable[[], Any]] = {f"product in {dtype}": product(device, dtype) for dtype in dtypes}
    functions |= {case.name: case.run for case in cases}
    medians_ = medians(functions, repeats, device, **options)
    measured = []
    for case in cases:
        seconds = medians_[case.name]
        gflops = share = None
        if case.flops is not None:
            gflops = case.flops / seconds / 1e9
            share = gflops / (product_gflop(device) / medians_[f"product in {case.dtype}"])
        measured.append(
            Measured(
                name=case.name,
                images=case.images,
                seconds=seconds,
                images_per_second=case.images / seconds,
                gflops=gflops,
                share=share,
            )
        )
    return measured


def medians(
    functions: dict[str, Callable[[], Any]], repeats: int, device: str, *, warmups: int = 2, at_most: float = 15.0
) -> dict[str, float]:
    """Median seconds of each function, measured in turn so that a slow moment of the machine affects all of them.

    Args:
        repeats: timed rounds, after `warmups` untimed ones.
        at_most: seconds after which no further round starts, warm-up excluded; FEWEST_REPEATS rounds (or `repeats`, if
            fewer) are always timed.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(repeats + warmups):
        if repeat <= warmups:
            began = time.perf_counter()
        if repeat - warmups >= FEWEST_REPEATS and time.perf_counter() - began > at_most:
            break
        for name, function in functions.items():
            synchronize(device)
            started = time.perf_counter()
            function()
            synchronize(device)
            if repeat >= warmups:
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def product(device: str, dtype: str) -> Callable[[], Tensor]:
    """One large square matrix product, whose rate is taken as the machine's peak."""
    a, b = (torch.randn(SIDE[device], SIDE[device], device=device).to(DTYPES[dtype]) for _ in range(2))

    def multiply() -> Tensor:
        torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"
        try:
            return a @ b
        finally:
            torch.backends.cuda.matmul.allow_tf32 = False

    return multiply


def product_gflop(device: str) -> float:
    """GFLOP of one such product."""
    return 2 * SIDE[device] ** 3 / 1e9


def product_rate(device: str, dtype: str) -> float:
    """GFLOP/s of one such product."""
    return product_gflop(device) / medians({"product": product(device, dtype)}, 5, device)["product"]


def flops_of(function: Callable[[], Any]) -> int:
    """FLOPs of one run in matrix products, convolutions and attention, by torch's count."""
    # torch's table lacks the fused CPU attention, but it has the products of the plain one
    with sdpa_kernel(SDPBackend.MATH), FlopCounter() as counter:
        function()
    return counter.flops


class FlopCounter(TorchDispatchMode):
    """Adds up torch's counts per operation. Torch's FlopCounterMode also tracks modules and fails at autograd.grad."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket not in flop_registry:
            with self:  # in inference mode a convolution is conv2d, which decomposes into operations of the table
                decomposed = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if decomposed is NotImplemented else decomposed
        out = func(*args, **kwargs)
        self.flops += flop_registry[func.overloadpacket](*args, **kwargs, out_val=out)
        return out


class ProductRecorder(TorchDispatchMode):
    """Records the matrix products of a code block, forward and backward, so that they can be run again alone."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []
        self._shared: dict[Any, Tensor] = {}  # on a GPU, by what decides their speed

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in PRODUCTS:
            self.products.append((func, tree_map(self._stand_in, args), tree_map(self._stand_in, kwargs or {})))
        return func(*args, **(kwargs or {}))

    def _stand_in(self, value: Any) -> Any:
        """A tensor of the same shape, strides and dtype, because the layout affects the speed; on a GPU one for all
        alike, which would not fit beside the step otherwise."""
        if not isinstance(value, Tensor):
            return value
        if value.device.type == "cpu":
            return _random_like(value)
        alike = (value.shape, value.stride(), value.dtype)
        if alike not in self._shared:
            self._shared[alike] = _random_like(value)
        return self._shared[alike]

    def replay(self) -> None:
        """Run the recorded products."""
        for func, args, kwargs in self.products:
            func(*args, **kwargs)


def _random_like(value: Tensor) -> Tensor:
    like = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
    return like.normal_() if value.is_floating_point() else like.zero_()


def breakdown(function: Callable[[], Any], device: str, runs: int = 3) -> dict[str, float]:
    """Share of the time of `function` spent in each group of operations, by torch's profiler."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(runs):
            function()
    shares = _spent(profiler.key_averages(), device)
    total = sum(shares.values()) or 1.0
    return {name: shares[name] / total for name, _ in shares.most_common()}


def _spent(events: Iterable[Any], device: str) -> Counter[str]:
    """Time on the device by group of operations. A GPU's kernels are events beside the operations that started them:
    these alone are counted, for they have the names, and the time of their kernels."""
    shares: Counter[str] = Counter()
    for event in events:
        if event.device_type == DeviceType.CPU:
            shares[_group(event.key)] += event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
    return shares


def _group(key: str) -> str:
    for name, prefixes in GROUPS:
        if any(part in key for part in prefixes):
            return name
    return "element-wise" if key.startswith("aten::") else "autograd and Python"
