"""Compare our speed with that of the released code (a checkout of hustvl/LightningDiT), on one machine, in turn.

Weights, sizes, dtype and threads are the same. The released code runs in a separate process, see study/bench/theirs.py.
It is timed unchanged, with torch.compile where this machine can compile, and without it (TORCHDYNAMO_DISABLE).
"""

from __future__ import annotations

import contextlib
import copy
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.lightningdit import LightningDiT
from models.sampler import Guidance, integrate, velocity_function
from study.bench import cases
from study.bench.timing import medians
from study.core.compute import Compute, autocast, no_compiler_because
from study.core.files import load_tensors, save_tensors, write_json
from study.data.latents import Latents
from study.stages.fit_generator import build
from study.stages.sample import for_sampling

NEEDED = ("models/lightningdit.py", "transport/transport.py", "datasets/img_latent_dataset.py")
PACKAGES = ("einops", "fairscale")  # imported by the released generator and not by ours
LOADER_IMAGES = 4096  # stored latents: one shard
WORKERS = (0, 2)  # of the released DataLoader
GOALS = {"generator step": 1.5, "sampling": 1.15, "loader": 10.0}

# Why ours is faster, and what ours does in addition. Results are the same, or differ by rounding where noted
CAUSES = {
    "generator step": (
        "fused AdamW, and EMA in one foreach call; the released code updates parameter by parameter",
        "one SiLU of the condition for all adaLN layers",
        "RMSNorm's scale is merged with adaLN's, gate and residual are one pass (rounding differs)",
        "queries and keys are rotated in one complex product (rounding differs)",
        "in bfloat16 on a CPU, attention is matrix products (rounding differs)",
        "the loss is not read in every step, which would wait for the GPU",
        "extra work of ours: the step draws its batch and clips gradients; the released step is given its batch and "
        "clips nothing",
    ),
    "sampling": (
        "the unconditional half is skipped while guidance is off (the same result)",
        "only one state is kept, not all of them (the same result)",
        "the network, as above",
    ),
    "loader": (
        "shards are memory-mapped once; the released code opens a file for every image",
        "a batch is gathered and normalised at once",
        "extra work of ours: it samples the posterior from a stored mean and std; the released code stores one sample",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The comparison of one task.

    images_per_second: by implementation. ratios: our rate (not compiled) over that of each other implementation. best:
    our higher rate in two dtypes over that of the released code, eager or compiled; empty where one dtype was timed.
    """

    name: str
    images_per_second: dict[str, float]
    ratios: dict[str, float]
    goal: float
    causes: tuple[str, ...]
    best: dict[str, float] = field(default_factory=dict)


class ReleasedCode:
    """The released code in its process: `call(name)` runs one of its functions and waits for it."""

    def __init__(self, checkout: Path, settings: Path, log: Path, *, compiled: bool) -> None:
        path = os.pathsep.join([str(checkout), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path, "TORCHDYNAMO_DISABLE": "0" if compiled else "1"}
        script = Path(__file__).with_name("theirs.py")
        self._log = log
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-P", str(script), str(settings)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=errors, text=True, env=environment,
            )  # fmt: skip
        self._answer("ready")

    def _answer(self, expected: str) -> None:
        assert self.process.stdout is not None
        if self.process.stdout.readline().strip() != expected:
            last = self._log.read_text().strip().splitlines()[-1:]
            raise RuntimeError(f"the released code stopped: {last[0] if last else 'it gave no reason'}")

    def call(self, name: str) -> None:
        """Run a function; RuntimeError with the last line that the process printed if it has stopped."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            print(name, file=self.process.stdin, flush=True)
        self._answer("done")

    def close(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()


def check(checkout: Path) -> None:
    """Raises ValueError in one line if the folder is not such a checkout, or if packages that it needs are missing."""
    import importlib.util

    for name in NEEDED:
        if not (checkout / name).is_file():
            raise ValueError(f"{checkout} is not a checkout of hustvl/LightningDiT: it has no {name}")
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"the released code imports {' and '.join(missing)}: pip install {' '.join(missing)}")


def other_precision(compute: Compute) -> str | None:
    """The dtype in which a CPU's generator step is timed too; on a GPU bfloat16 is always faster."""
    return None if compute.device == "cuda" else "float32" if compute.precision == "bfloat16" else "bfloat16"


@contextlib.contextmanager
def released_processes(checkout: Path, folder: Path, compute: Compute) -> Iterator[dict[str, ReleasedCode]]:
    """Processes of the released code, by their names in the printed table."""
    kinds = {"released, eager": False}
    if not no_compiler_because(compute.device):
        kinds["released, compiled"] = True
    processes: dict[str, ReleasedCode] = {}
    try:
        for precision in filter(None, (compute.precision, other_precision(compute))):
            for kind, compiled in kinds.items():
                name = kind if precision == compute.precision else f"{kind}, {precision}"
                settings = folder / f"settings-{precision}.json"
                processes[name] = ReleasedCode(checkout, settings, folder / f"{name}.log", compiled=compiled)
        yield processes
    finally:
        for process in processes.values():
            process.close()


def compare(workload: cases.Workload, checkout: Path, *, compiled: bool = False) -> tuple[list[Compared], float]:
    """Compare generator step, sampling and loader; also returns the largest difference of samples, in latent units.

    Raises:
        ValueError: see `check`.
        RuntimeError: the released code stopped.
    """
    check(checkout)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        state = build(cases.generator_spec(workload))
        ours = perturb(state["generator"])
        state["ema"].load_state_dict(ours.state_dict())
        latents = cases.random_latents(workload, folder, min(workload.scale.train_images, LOADER_IMAGES))
        noise, labels = write_inputs(workload, folder, ours, latents)
        with released_processes(checkout, folder, workload.compute) as released:
            return time_both(workload, state, latents, (noise, labels), released, folder, compiled)


def perturb(network: LightningDiT) -> LightningDiT:
    """Add noise to the weights, in place, because the velocity of a freshly initialised network is 0."""
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=rng).to(parameter.device))
    return network


def write_inputs(
    workload: cases.Workload, folder: Path, network: LightningDiT, latents: Latents
) -> tuple[Tensor, Tensor]:
    """Write the inputs of the released code; returns noise (B, C, h, w) and labels (B,) of the samples."""
    config, recipe, rng = workload.architecture, workload.scale.generator, workload.rng
    images = workload.generator_images
    samples = workload.images("sampling", workload.scale.sampling.chunk)
    noise = torch.randn(samples, *latents.shape, generator=rng)
    labels = torch.arange(samples) % config.num_classes
    save_tensors(folder / "weights.safetensors", dict(network.state_dict()))
    data = torch.randn(images, *latents.shape, generator=rng)
    inputs = {"data": data, "labels": latents.labels[:images], "noise": noise, "sample_labels": labels}
    save_tensors(folder / "inputs.safetensors", inputs)
    (shard,) = latents.shards  # stored in the form of the released extract_features.py
    mean = shard["mean"].float()
    stored = {"latents": mean[:, 0], "latents_flip": mean[:, -1].clone(), "labels": latents.labels}
    save_tensors(folder / "latents" / "latents_rank00_shard000.safetensors", stored)
    settings: dict[str, Any] = {
        "folder": str(folder),
        "device": workload.compute.device,
        "threads": workload.compute.threads,
        "network": {
            "input_size": config.grid,
            "patch_size": config.patch,
            "in_channels": config.in_channels,
            "hidden_size": config.width,
            "depth": config.depth,
            "num_heads": config.heads,
            "mlp_ratio": config.mlp_ratio,
            "class_dropout_prob": config.label_dropout,
            "num_classes": config.num_classes,
            "use_qknorm": config.qk_norm,
            "use_swiglu": config.swiglu,
            "use_rope": config.rope,
            "use_rmsnorm": config.rms_norm,
            "wo_shift": not config.adaln_shift,
        },
        "images": images,
        "learning_rate": recipe.learning_rate,
        "betas": recipe.betas,
        "ema_decay": recipe.ema_decay,
        "steps": cases.STEPS,
        "shift": cases.SHIFT,
        "guidance_scale": cases.GUIDANCE.scale,
        "guidance_start": cases.GUIDANCE.interval[0],
        "loader_batches": cases.LOADER_BATCHES,
        "workers": WORKERS,
    }
    for precision in filter(None, (workload.compute.precision, other_precision(workload.compute))):
        write_json(folder / f"settings-{precision}.json", {**settings, "precision": precision})
    return noise, labels


def time_both(
    workload: cases.Workload,
    state: dict[str, Any],
    latents: Latents,
    noise_and_labels: tuple[Tensor, Tensor],
    released: dict[str, ReleasedCode],
    folder: Path,
    compiled: bool,
) -> tuple[list[Compared], float]:
    """The comparison, once the released code runs and its inputs are written; returns the same as `compare`."""
    device = workload.compute.device
    network = for_sampling(copy.deepcopy(state["ema"]).eval(), workload.compute)
    noise, labels = (tensor.to(device) for tensor in noise_and_labels)

    def sampler(guidance: Guidance) -> Callable[[], Tensor]:
        velocity = velocity_function(network, labels, workload.architecture.num_classes, guidance)

        def run() -> Tensor:
            with torch.inference_mode(), autocast(workload.compute):
                return integrate(velocity, noise, solver="euler", steps=cases.STEPS, shift=cases.SHIFT)

        return run

    sample = sampler(cases.GUIDANCE)
    released["released, eager"].call("save samples")
    released_samples = load_tensors(folder / "theirs.safetensors")["samples"]
    largest_difference = float((sample().float().cpu() - released_samples).abs().max())

    unskipped = sampler(replace(cases.GUIDANCE, interval=(0.0, 1.0)))
    steps = {"ours": cases.generator_step(workload, state, latents)}
    if compiled:
        with_compile = replace(workload, compute=replace(workload.compute, compile=True))
        fresh = build(cases.generator_spec(with_compile))
        steps["ours, compiled"] = cases.generator_step(with_compile, fresh, latents)

    other = other_precision(workload.compute)
    if other is not None:
        in_other = replace(workload, compute=replace(workload.compute, precision=other))
        steps[f"ours, {other}"] = cases.generator_step(in_other, build(cases.generator_spec(in_other)), latents)

    def calls(name: str, *, both: bool = False) -> dict[str, Callable[[], None]]:
        kinds = [kind for kind in released if both or other is None or not kind.endswith(other)]
        return {kind: lambda process=released[kind]: process.call(name) for kind in kinds}  # type: ignore[misc]

    loaders = {
        f"released, {workers} workers": lambda workers=workers: released["released, eager"].call(f"loader {workers}")  # type: ignore[misc]
        for workers in WORKERS
    }
    tasks: dict[str, tuple[int, dict[str, Callable[[], Any]]]] = {
        "generator step": (workload.generator_images, {**steps, **calls("step", both=True)}),
        "sampling": (len(noise), {"ours": sample, "ours, no half skipped": unskipped, **calls("sample")}),
        "loader": (
            cases.LOADER_BATCHES * workload.generator_images,
            {"ours": cases.latent_batches(workload, latents), **loaders},
        ),
    }
    results = []
    for name, (images, functions) in tasks.items():
        seconds = medians(functions, workload.repeats, device, at_most=60.0)
        rates = {kind: images / time for kind, time in seconds.items()}
        ratios = {kind: rates["ours"] / rate for kind, rate in rates.items() if kind != "ours"}
        results.append(
            Compared(
                name=name,
                images_per_second=rates,
                ratios=ratios,
                goal=GOALS[name],
                causes=CAUSES[name],
                best=_best(rates, other) if name == "generator step" and other is not None else {},
            )
        )
    return results, largest_difference


def _best(rates: dict[str, float], other: str) -> dict[str, float]:
    """Our higher rate in two dtypes, not compiled, over the higher one of each kind of the released code."""
    ours = max(rates["ours"], rates[f"ours, {other}"])
    kinds = [kind for kind in rates if kind.startswith("released") and not kind.endswith(other)]
    return {kind: ours / max(rates[kind], rates[f"{kind}, {other}"]) for kind in kinds}
