"""Their side of study/bench/against.py: runs the released code in a process of its own, because its packages have the
names of ours. Imports nothing of ours; reads what to do from a JSON file, and calls from its standard input, a name a
line.

What train.py and inference.py do in a step is repeated here, because they import what is not needed for it (diffusers,
accelerate, tensorboard) and want a GPU: optimizer, loss, EMA parameter by parameter, the loss read in every step. Left
out are DistributedDataParallel and accelerate's wrappers.
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


def functions(asked: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """What can be called, by name."""
    folder, device, images = Path(asked["folder"]), asked["device"], asked["images"]
    released = importlib.import_module("models.lightningdit").LightningDiT
    transports = importlib.import_module("transport")
    dataset = importlib.import_module("datasets.img_latent_dataset").ImgLatentDataset

    def autocast() -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(device, torch.bfloat16, enabled=asked["precision"] == "bfloat16")

    network = released(**asked["network"])
    network.load_state_dict(load_file(folder / "weights.safetensors"), strict=True)
    network.to(device)
    ema = copy.deepcopy(network).requires_grad_(False).eval()
    sampled = copy.deepcopy(ema)
    network.train()
    transport = transports.create_transport(
        "Linear", "velocity", None, None, None, use_cosine_loss=True, use_lognorm=True
    )
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=asked["learning_rate"], weight_decay=0, betas=tuple(asked["betas"])
    )
    given = {name: tensor.to(device) for name, tensor in load_file(folder / "inputs.safetensors").items()}
    total = 0.0

    def predict(x: Any, t: Any, **labels: Any) -> Any:
        with autocast():
            prediction = network(x, t, **labels)
        return prediction.float()

    def step() -> None:
        nonlocal total
        terms = transport.training_losses(predict, given["data"], {"y": given["labels"]})
        mse = terms["loss"].mean()
        loss = terms["cos_loss"].mean() + mse
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        moving = dict(ema.named_parameters())
        with torch.no_grad():
            for name, parameter in dict(network.named_parameters()).items():
                moving[name].mul_(asked["ema_decay"]).add_(parameter.data, alpha=1 - asked["ema_decay"])
        total += mse.item()

    draw = transports.Sampler(transport).sample_ode(
        sampling_method="euler", num_steps=asked["steps"] + 1, atol=1e-6, rtol=1e-3, timestep_shift=asked["shift"]
    )

    @torch.no_grad()
    def sample() -> Any:
        noise, labels = given["noise"], given["sample_labels"]
        null = torch.full_like(labels, asked["network"]["num_classes"])
        with autocast():
            states = draw(
                torch.cat([noise, noise]), sampled.forward_with_cfg, y=torch.cat([labels, null]),
                cfg_scale=asked["guidance_scale"], cfg_interval=True, cfg_interval_start=asked["guidance_start"],
            )  # fmt: skip
        return states[-1].chunk(2)[0]

    def keep() -> None:
        save_file({"samples": sample().float().cpu().contiguous()}, folder / "theirs.safetensors")

    latents = dataset(str(folder / "latents"), latent_norm=True)

    def loader(workers: int) -> Callable[[], None]:
        data = torch.utils.data.DataLoader(
            latents, batch_size=images, shuffle=True, num_workers=workers, pin_memory=device == "cuda", drop_last=True
        )

        def endless() -> Iterator[Any]:
            while True:
                yield from data

        pulled = endless()

        def batches() -> None:
            for _ in range(asked["loader_batches"]):
                next(pulled)

        return batches

    return {"step": step, "sample": sample, "keep": keep} | {
        f"loader {workers}": loader(workers) for workers in asked["workers"]
    }


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the released code prints is no answer
    asked = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(asked["threads"])
    torch.manual_seed(0)
    known = functions(asked)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        known[line.strip()]()
        if asked["device"] == "cuda":
            torch.cuda.synchronize()
        print("done", file=answers, flush=True)


if __name__ == "__main__":
    main()
