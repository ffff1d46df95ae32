"""Runs the released code for study/bench/against.py, in a separate process, because its packages have the same names.

Imports nothing of this repository. Reads its settings from a JSON file, and from standard input the names of functions
to call, one per line.

The steps of train.py and inference.py are repeated here, because those files import packages that a step does not need
(diffusers, accelerate, tensorboard) and require a GPU: optimizer, loss, EMA parameter by parameter, the loss read in
every step. DistributedDataParallel and accelerate's wrappers are left out.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


def functions(settings: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """The functions that can be called, by name."""
    folder, device, images = Path(settings["folder"]), settings["device"], settings["images"]
    released = importlib.import_module("models.lightningdit").LightningDiT
    transports = importlib.import_module("transport")
    dataset = importlib.import_module("datasets.img_latent_dataset").ImgLatentDataset

    def autocast() -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(device, torch.bfloat16, enabled=settings["precision"] == "bfloat16")

    network = released(**settings["network"])
    network.load_state_dict(load_file(folder / "weights.safetensors"), strict=True)
    network.to(device)
    ema = copy.deepcopy(network).requires_grad_(False).eval()
    sampled = copy.deepcopy(ema)
    network.train()
    transport = transports.create_transport(
        "Linear", "velocity", None, None, None, use_cosine_loss=True, use_lognorm=True
    )
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=settings["learning_rate"], weight_decay=0, betas=tuple(settings["betas"])
    )
    inputs = {name: tensor.to(device) for name, tensor in load_file(folder / "inputs.safetensors").items()}
    total = 0.0

    def predict(x: Any, t: Any, **labels: Any) -> Any:
        with autocast():
            prediction = network(x, t, **labels)
        return prediction.float()

    def step() -> None:
        nonlocal total
        terms = transport.training_losses(predict, inputs["data"], {"y": inputs["labels"]})
        mse = terms["loss"].mean()
        loss = terms["cos_loss"].mean() + mse
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        averages = dict(ema.named_parameters())
        with torch.no_grad():
            for name, parameter in dict(network.named_parameters()).items():
                averages[name].mul_(settings["ema_decay"]).add_(parameter.data, alpha=1 - settings["ema_decay"])
        total += mse.item()

    draw = transports.Sampler(transport).sample_ode(
        sampling_method="euler", num_steps=settings["steps"] + 1, atol=1e-6, rtol=1e-3, timestep_shift=settings["shift"]
    )

    @torch.no_grad()
    def sample() -> Any:
        noise, labels = inputs["noise"], inputs["sample_labels"]
        null = torch.full_like(labels, settings["network"]["num_classes"])
        with autocast():
            states = draw(
                torch.cat([noise, noise]), sampled.forward_with_cfg, y=torch.cat([labels, null]),
                cfg_scale=settings["guidance_scale"], cfg_interval=True, cfg_interval_start=settings["guidance_start"],
            )  # fmt: skip
        return states[-1].chunk(2)[0]

    def save_samples() -> None:
        save_file({"samples": sample().float().cpu().contiguous()}, folder / "theirs.safetensors")

    latents = dataset(str(folder / "latents"), latent_norm=True)

    def loader(workers: int) -> Callable[[], None]:
        data = torch.utils.data.DataLoader(
            latents, batch_size=images, shuffle=True, num_workers=workers, pin_memory=device == "cuda", drop_last=True
        )

        def endless() -> Iterator[Any]:
            while True:
                yield from data

        batches = endless()

        def load_batches() -> None:
            for _ in range(settings["loader_batches"]):
                next(batches)

        return load_batches

    return {"step": step, "sample": sample, "save samples": save_samples} | {
        f"loader {workers}": loader(workers) for workers in settings["workers"]
    }


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the released code prints must not be taken for an answer
    settings = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)
    by_name = functions(settings)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        by_name[line.strip()]()
        if settings["device"] == "cuda":
            torch.cuda.synchronize()
        print("done", file=answers, flush=True)


if __name__ == "__main__":
    main()
