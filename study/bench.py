"""python -m study.bench: how fast the parts of a study run here, against what the machine can do at all.

Times are medians of interleaved repeats in one process; what to trust on a noisy machine are the ratios.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from tyro.conf import arg

from models.lightningdit import LightningDiT
from models.specs import flops_per_image, generator_config
from study import compute
from study.compute import Compute, processor
from study.estimate import FORWARD_AND_BACKWARD
from study.specs import FitGenerator, GeneratorRecipe
from study.stages.encode import Latents
from study.stages.fit_generator import build, step_function

GENERATOR, GRID, CHANNELS, BATCH = "LightningDiT-XS/2", 8, 16, 64  # 5.5M parameters, 16 tokens
SAMPLING_STEPS = 6

aten = torch.ops.aten
PRODUCTS = {
    aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default, aten.convolution.default,
    aten.convolution_backward.default,
}  # fmt: skip

# operations of a step by what they are for; the first that fits counts
GROUPS = (
    ("matrix products", ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "mkldnn", "aten::mkldnn")),
    ("optimizer", ("aten::_fused_adam", "Optimizer")),
    ("EMA", ("aten::_foreach_lerp", "aten::lerp")),
    ("gradient clipping", ("aten::_foreach_norm", "aten::_foreach_mul", "aten::linalg_vector_norm")),
    ("norms and softmax", ("rms_norm", "layer_norm", "softmax", "aten::rsqrt", "aten::mean")),
    ("copies", ("aten::copy_", "aten::clone", "aten::cat", "aten::index", "aten::_to_copy", "aten::contiguous")),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench:
    """Time the parts of a study on this machine."""

    quick: bool = False
    """Only the generator's training step, against its matrix products alone."""
    repeats: int = 15
    """Timed repeats of each; the median counts."""
    threads: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Threads of the process. Default: what the planner gives a job here."""
    out: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Also write the numbers to this JSON file."""


class ProductRecorder(TorchDispatchMode):
    """Notes every matrix product of a block, forward and backward, so that it can be run again alone."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in PRODUCTS:
            # a stand-in with the same shape, strides and dtype: layout decides how fast a product is
            self.products.append((func, tree_map(_stand_in, args), tree_map(_stand_in, kwargs or {})))
        return func(*args, **(kwargs or {}))


def _stand_in(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    like = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
    return like.normal_() if value.is_floating_point() else like.zero_()


def medians(functions: dict[str, Callable[[], Any]], repeats: int, device: str) -> dict[str, float]:
    """Median seconds of each function, measured in turn so that a slow moment of the machine hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(repeats + 2):
        for name, function in functions.items():
            if device == "cuda":
                torch.cuda.synchronize()
            started = time.perf_counter()
            function()
            if device == "cuda":
                torch.cuda.synchronize()
            if repeat >= 2:  # the first two warm up
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def generator_step(resolved: Compute, repeats: int) -> dict[str, Any]:
    """A whole training step (data, forward, backward, clipping, AdamW, EMA) against its matrix products alone."""
    architecture = generator_config(GENERATOR, grid=GRID, in_channels=CHANNELS, num_classes=10)
    recipe = GeneratorRecipe(budget_images=10**6, snapshot_images=(10**6,), batch_images=BATCH, learning_rate=1e-4)
    spec = FitGenerator(tokenizer="f4d16", architecture=architecture, recipe=recipe, seed=0, compute=resolved)
    count, shape = 1024, (CHANNELS, GRID, GRID)
    latents = Latents(
        shards=({"mean": torch.randn(count, 1, *shape).half(), "std": torch.full((count, 1, *shape), 0.1).half()},),
        labels=torch.arange(count) % 10,
        channel_mean=torch.zeros(CHANNELS, 1, 1),
        channel_std=torch.ones(CHANNELS, 1, 1),
    )
    parts = build(spec)
    step = step_function(spec, parts, latents)
    images_seen = 0

    def one_step() -> None:
        nonlocal images_seen
        step(images_seen)
        images_seen += BATCH

    one_step()
    with ProductRecorder() as recorder:
        one_step()

    def products_alone() -> None:
        for func, args, kwargs in recorder.products:
            func(*args, **kwargs)

    seconds = medians({"step": one_step, "products": products_alone}, repeats, resolved.device)
    network: LightningDiT = parts["generator"]
    flops = FORWARD_AND_BACKWARD * flops_per_image(architecture) * BATCH
    return {
        "what": f"{GENERATOR}, {sum(p.numel() for p in network.parameters()) / 1e6:.1f}M parameters, "
        f"{architecture.tokens} tokens, batch {BATCH}, {resolved.precision}, {resolved.threads} thread(s)",
        "step_seconds": seconds["step"],
        "products_seconds": seconds["products"],
        "ratio": seconds["step"] / seconds["products"],
        "images_per_second": BATCH / seconds["step"],
        "step_gflops": flops / seconds["step"] / 1e9,
        "products_gflops": flops / seconds["products"] / 1e9,
        "breakdown": breakdown(one_step, resolved.device),
    }


def breakdown(function: Callable[[], Any], device: str, runs: int = 3) -> dict[str, float]:
    """Share of the time of `function` that each group of operations takes itself, by torch's profiler."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(runs):
            function()
    shares: Counter[str] = Counter()
    for event in profiler.key_averages():
        spent = event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
        shares[_group(event.key)] += spent
    total = sum(shares.values()) or 1.0
    return {name: shares[name] / total for name, _ in shares.most_common()}


def _group(key: str) -> str:
    for name, prefixes in GROUPS:
        if any(part in key for part in prefixes):
            return name
    return "element-wise" if key.startswith("aten::") else "autograd and Python"


def other_parts(resolved: Compute, repeats: int) -> dict[str, float]:
    """Images per second of a tokenizer's training step, encoding, decoding and sampling, at the desk's sizes."""
    from models.autoencoder import Autoencoder, initialize
    from models.sampler import Guidance, integrate, velocity_function
    from study.compute import autocast
    from study.plan import network_config
    from study.scales import desk
    from study.stages.fit_tokenizer import Networks, gradients

    scale = desk()
    config = network_config(scale.autoencoder, channels=1, resolution=scale.resolution, latent_channels=CHANNELS)
    recipe = dataclasses.replace(scale.tokenizer, perceptual_weight=0.0)
    rng = torch.Generator().manual_seed(0)
    networks = Networks(Autoencoder(config))
    initialize(networks.tokenizer, rng)
    networks.tokenizer.to(memory_format=torch.channels_last).to(resolved.device)
    optimizer = torch.optim.Adam(networks.tokenizer.parameters(), fused=True)
    pixels = torch.rand(BATCH, 1, config.resolution, config.resolution, generator=rng).to(resolved.device)
    latent = torch.randn(BATCH, CHANNELS, config.grid, config.grid, generator=rng).to(resolved.device)
    architecture = generator_config(GENERATOR, grid=GRID, in_channels=CHANNELS, num_classes=10)
    network = LightningDiT(architecture, rng).to(resolved.device).eval()
    labels = torch.zeros(BATCH, dtype=torch.long, device=resolved.device)

    def tokenizer_step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(resolved):
            gradients(networks, recipe, pixels, latent, None, False)
        optimizer.step()

    def without_gradients(function: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            with torch.inference_mode(), autocast(resolved):
                function()

        return run

    velocity = velocity_function(network, labels, 10, Guidance())
    functions = {
        "tokenizer step": tokenizer_step,
        "encoding": without_gradients(lambda: networks.tokenizer.encode(pixels)),
        "decoding": without_gradients(lambda: networks.tokenizer.decode(latent)),
        f"sampling, {SAMPLING_STEPS} Euler steps": without_gradients(
            lambda: integrate(velocity, latent, solver="euler", steps=SAMPLING_STEPS)
        ),
    }
    return {name: BATCH / seconds for name, seconds in medians(functions, repeats, resolved.device).items()}


def matrix_rate(resolved: Compute) -> float:
    """GFLOP/s of one large square matrix product: what the machine can do."""
    dtype = torch.bfloat16 if resolved.precision == "bfloat16" else torch.float32
    side = 8192 if resolved.device == "cuda" else 1024
    a, b = (torch.randn(side, side, device=resolved.device).to(dtype) for _ in range(2))
    seconds = medians({"product": lambda: a @ b}, 5, resolved.device)["product"]
    return 2 * side**3 / seconds / 1e9


def main() -> None:
    options = tyro.cli(Bench, prog="python -m study.bench", config=(tyro.conf.FlagCreatePairsOff,))
    resolved = compute.resolve()
    if options.threads is not None:
        resolved = dataclasses.replace(resolved, threads=options.threads)
    compute.apply(resolved)
    console = Console(highlight=False)
    device = torch.cuda.get_device_name() if resolved.device == "cuda" else processor()
    rate = matrix_rate(resolved)
    console.print(
        f"{device}, {resolved.precision}, {resolved.threads} thread(s): {rate:,.0f} GFLOP/s in one large product"
    )
    result = generator_step(resolved, options.repeats)
    console.print(f"[bold]generator step[/bold]: {result['what']}")
    table = Table(box=None, pad_edge=False)
    for column in ("", "ms", "GFLOP/s"):
        table.add_column(column, justify="left" if not column else "right")
    table.add_row("whole step", f"{result['step_seconds'] * 1e3:.1f}", f"{result['step_gflops']:.0f}")
    table.add_row(
        "its matrix products alone", f"{result['products_seconds'] * 1e3:.1f}", f"{result['products_gflops']:.0f}"
    )
    console.print(table)
    console.print(f"ratio {result['ratio']:.2f} (goal: at most 2); {result['images_per_second']:,.0f} images/s")
    shares = ", ".join(f"{name} {share:.0%}" for name, share in result["breakdown"].items() if share >= 0.005)
    console.print(f"where the step's time goes: {shares}")
    others = {} if options.quick else other_parts(resolved, options.repeats)
    for name, rate in others.items():
        console.print(f"{name}: {rate:,.0f} images/s")
    if options.out is not None:
        content = {
            "device": device,
            "compute": dataclasses.asdict(resolved),
            "matrix_gflops": rate,
            "generator_step": result,
            "images_per_second": others,
        }
        options.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
