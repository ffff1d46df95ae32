"""Our speed beside that of the released code (a checkout of hustvl/LightningDiT), on one machine, in turn.

Same weights, sizes, dtype and threads; their code runs in a process of its own, see study/bench/theirs.py. It is timed
as it comes, with torch.compile where there is a C++ compiler, and without it (TORCHDYNAMO_DISABLE).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.lightningdit import LightningDiT
from models.sampler import Guidance, integrate, velocity_function
from study.bench import cases
from study.bench.timing import medians
from study.core.compute import autocast
from study.core.files import load_tensors, save_tensors, write_json
from study.data.latents import Latents
from study.stages.fit_generator import build

NEEDED = ("models/lightningdit.py", "transport/transport.py", "datasets/img_latent_dataset.py")
PACKAGES = ("einops", "fairscale")  # that its generator imports and ours does not
LOADER_IMAGES = 4096  # stored: one shard
WORKERS = (0, 2)  # of its DataLoader
GOALS = {"generator step": 1.3, "sampling": 1.15, "loader": 10.0}

# Why ours is faster, and what speaks against it. No result differs by more than rounding, where that is said
CAUSES = {
    "generator step": (
        "fused AdamW, and EMA by one foreach call; theirs go from parameter to parameter",
        "one SiLU of the condition for all adaLN",
        "RMSNorm's scale joins adaLN's, gate and residual are one pass (rounding differs)",
        "queries and keys turn in one complex product (rounding differs)",
        "the loss is not read in every step, which waits for a GPU",
        "against ours: it draws its batch and clips gradients in the step, theirs has its batch and clips nothing",
    ),
    "sampling": (
        "the unconditional half is skipped where guidance is off (the same result)",
        "one state is kept, not all of them (the same result)",
        "the network, as above",
    ),
    "loader": (
        "shards are mapped once, theirs opens a file for every image",
        "a batch is gathered and normalised at once",
        "against ours: it draws the posterior anew from a stored mean and spread, theirs has one sample stored",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One thing that both do: images per second by whose, and our rate (without compiling) over each of the others."""

    name: str
    images_per_second: dict[str, float]
    ratios: dict[str, float]
    goal: float
    causes: tuple[str, ...]


class Theirs:
    """The released code in its process: `call(name)` runs something there and waits for it."""

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
        """Raises RuntimeError with the last line that it printed, when it stopped."""
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
    """Raises ValueError in one line for a folder that is no such checkout, or packages that it needs and lack."""
    import importlib.util

    for name in NEEDED:
        if not (checkout / name).is_file():
            raise ValueError(f"{checkout} is no checkout of hustvl/LightningDiT: it has no {name}")
    lacking = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if lacking:
        raise ValueError(f"the released code imports {' and '.join(lacking)}: pip install {' '.join(lacking)}")


def compiler() -> bool:
    """Whether torch.compile has a C++ compiler here."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))


@contextlib.contextmanager
def started(checkout: Path, settings: Path, folder: Path) -> Iterator[dict[str, Theirs]]:
    """Their processes, by what the table calls them."""
    kinds = {"released, eager": False, **({"released, compiled": True} if compiler() else {})}
    processes: dict[str, Theirs] = {}
    try:
        for name, compiled in kinds.items():
            processes[name] = Theirs(checkout, settings, folder / f"{name}.log", compiled=compiled)
        yield processes
    finally:
        for process in processes.values():
            process.close()


def compare(setting: cases.Workload, checkout: Path, *, compiled: bool = False) -> tuple[list[Compared], float]:
    """Generator step, sampling and loader of both; and how far their samples lie apart at most, in latent units.

    Raises:
        ValueError: see `check`.
        RuntimeError: the released code stopped.
    """
    check(checkout)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        state = build(cases.generator_spec(setting))
        ours = moved(state["generator"])
        state["ema"].load_state_dict(ours.state_dict())
        latents = cases.made_latents(setting, folder, min(setting.scale.train_images, LOADER_IMAGES))
        noise, labels = write_inputs(setting, folder, ours, latents)
        with started(checkout, folder / "settings.json", folder) as theirs:
            return compared(setting, state, latents, (noise, labels), theirs, folder, compiled)


def moved(network: LightningDiT) -> LightningDiT:
    """The same network with weights that do something: at the start its velocity is 0."""
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=rng).to(parameter.device))
    return network


def write_inputs(
    setting: cases.Workload, folder: Path, network: LightningDiT, latents: Latents
) -> tuple[Tensor, Tensor]:
    """Everything their process reads; returns noise (B, C, h, w) and labels (B,) of the samples."""
    config, recipe, rng = setting.architecture, setting.scale.generator, setting.rng
    images = setting.generator_images
    drawn = setting.images("sampling", setting.scale.sampling.chunk)
    noise = torch.randn(drawn, *latents.shape, generator=rng)
    labels = torch.arange(drawn) % config.num_classes
    save_tensors(folder / "weights.safetensors", dict(network.state_dict()))
    data = torch.randn(images, *latents.shape, generator=rng)
    inputs = {"data": data, "labels": latents.labels[:images], "noise": noise, "sample_labels": labels}
    save_tensors(folder / "inputs.safetensors", inputs)
    (shard,) = latents.shards  # stored as its extract_features.py does
    mean = shard["mean"].float()
    stored = {"latents": mean[:, 0], "latents_flip": mean[:, -1].clone(), "labels": latents.labels}
    save_tensors(folder / "latents" / "latents_rank00_shard000.safetensors", stored)
    settings: dict[str, Any] = {
        "folder": str(folder),
        "device": setting.compute.device,
        "precision": setting.compute.precision,
        "threads": setting.compute.threads,
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
    write_json(folder / "settings.json", settings)
    return noise, labels


def compared(
    setting: cases.Workload,
    state: dict[str, Any],
    latents: Latents,
    start: tuple[Tensor, Tensor],
    theirs: dict[str, Theirs],
    folder: Path,
    compiled: bool,
) -> tuple[list[Compared], float]:
    """The comparison, once both sides have all they need."""
    device = setting.compute.device
    network = state["ema"].eval()
    noise, labels = (tensor.to(device) for tensor in start)

    def sampler(guidance: Guidance) -> Callable[[], Tensor]:
        velocity = velocity_function(network, labels, setting.architecture.num_classes, guidance)

        def run() -> Tensor:
            with torch.inference_mode(), autocast(setting.compute):
                return integrate(velocity, noise, solver="euler", steps=cases.STEPS, shift=cases.SHIFT)

        return run

    sample = sampler(cases.GUIDANCE)
    theirs["released, eager"].call("keep")
    apart = float((sample().float().cpu() - load_tensors(folder / "theirs.safetensors")["samples"]).abs().max())

    unskipped = sampler(replace(cases.GUIDANCE, interval=(0.0, 1.0)))
    steps = {"ours": cases.generator_step(setting, state, latents)}
    if compiled:
        faster = replace(setting, compute=replace(setting.compute, compile=True))
        fresh = build(cases.generator_spec(faster))
        steps["ours, compiled"] = cases.generator_step(faster, fresh, latents)

    def calls(name: str) -> dict[str, Callable[[], None]]:
        return {whose: lambda process=process: process.call(name) for whose, process in theirs.items()}  # type: ignore[misc]

    loaders = {
        f"released, {workers} workers": lambda workers=workers: theirs["released, eager"].call(f"loader {workers}")  # type: ignore[misc]
        for workers in WORKERS
    }
    work: dict[str, tuple[int, dict[str, Callable[[], Any]]]] = {
        "generator step": (setting.generator_images, {**steps, **calls("step")}),
        "sampling": (len(noise), {"ours": sample, "ours, no half skipped": unskipped, **calls("sample")}),
        "loader": (
            cases.LOADER_BATCHES * setting.generator_images,
            {"ours": cases.latent_batches(setting, latents), **loaders},
        ),
    }
    results = []
    for name, (images, functions) in work.items():
        seconds = medians(functions, setting.repeats, device, at_most=60.0)
        rates = {whose: images / took for whose, took in seconds.items()}
        ratios = {whose: rates["ours"] / rate for whose, rate in rates.items() if whose != "ours"}
        results.append(
            Compared(name=name, images_per_second=rates, ratios=ratios, goal=GOALS[name], causes=CAUSES[name])
        )
    return results, apart
