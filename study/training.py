"""The training loop of tokenizers and generators alike: images seen is its only clock.

A step is a function of the state and of the images seen before it, so a training that was killed and resumed
from its last checkpoint ends with the same bits as one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from study import checkpoint
from study.distributed import average, gathered, processes, rank
from study.stopping import Interrupted
from study.workspace import Diverged, Record, Workspace, peak_memory_gib

SAVE_SECONDS = 20.0  # between checkpoints; moves no number
CHECK_STEPS_CUDA = 50  # reading the loss waits for the GPU, so there it is looked at now and then


def train(
    out: Workspace,
    parts: checkpoint.Parts,
    step: Callable[[int], Tensor],
    *,
    budget_images: int,
    batch_images: int,
    device: str,
    snapshots: dict[int, Callable[[], None]] | None = None,
) -> Record:
    """Run `step` from the last checkpoint, or from 0, to `budget_images`.

    Args:
        out: where checkpoints go and progress is published.
        parts: modules and optimizers that must survive; restored here.
        step: does one update for the batch that starts after so many images seen; returns its loss, a scalar: of this
            process's share where several train together.
        budget_images, batch_images: multiples of each other, as are the marks.
        device: "cpu" or "cuda".
        snapshots: what to do when so many images have been seen; of several processes the first does it.

    Returns:
        Cost: seconds of training over all attempts, images per second, peak memory in GiB, and the last loss.

    Raises:
        Diverged: the loss was not finite.
        Interrupted: asked to stop; the checkpoint is written.
    """
    state = checkpoint.restore(out.folder, parts)
    images_seen, seconds_before = state.images_seen, state.seconds
    started = saved = time.monotonic()
    loss = torch.tensor(math.nan)
    snapshots = snapshots or {}

    def save() -> None:
        nonlocal saved
        saved = time.monotonic()
        checkpoint.save(out.folder, parts, checkpoint.Position(images_seen, seconds_before + saved - started))

    while images_seen < budget_images:
        loss = step(images_seen)
        images_seen += batch_images
        steps = images_seen // batch_images
        stopping = False
        looks = device == "cpu" or steps % CHECK_STEPS_CUDA == 0 or images_seen >= budget_images
        if looks or (out.stopping and processes() == 1):
            stopping = any(gathered(out.stopping))  # all end after the same step, whichever was asked first
            (loss,) = average(loss)
            value = loss.item()
            if not math.isfinite(value):
                raise Diverged(f"diverged at step {steps}: the loss is {value}")
            out.progress(images_seen, budget_images, note=f"loss {value:.4g}")
        if images_seen in snapshots and rank() == 0:
            snapshots[images_seen]()
        if stopping and images_seen < budget_images:
            save()
            raise Interrupted(f"{out.title} was asked to stop")
        if time.monotonic() - saved > SAVE_SECONDS:
            save()
    seconds = seconds_before + time.monotonic() - started
    return {
        "train_seconds": round(seconds, 3),
        "train_images_per_second": round(images_seen / seconds, 3) if seconds > 0 else None,
        "peak_memory_gib": round(peak_memory_gib(device), 3),
        "final_loss": loss.item() if math.isfinite(loss.item()) else None,
    }


def learning_rate(images_seen: int, *, peak: float, budget: int, warmup: int, final: float = 1.0) -> float:
    """Linear warm-up over `warmup` images, then a cosine from `peak` to `final * peak` at `budget`."""
    if images_seen < warmup:
        return peak * (images_seen + 1) / warmup
    share = (images_seen - warmup) / max(1, budget - warmup)
    return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))
