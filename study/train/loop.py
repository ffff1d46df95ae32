"""The training loop of tokenizers and generators; progress is counted in images seen only.

A step is a function of the state and of the images seen before it, so a training that was killed and resumed
from its last checkpoint ends bit for bit like an uninterrupted one.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from study.core.distributed import all_gather, average, rank, world_size
from study.core.stopping import Interrupted
from study.core.workspace import Diverged, Record, Workspace, peak_memory_gib
from study.train import checkpoint
from study.train.history import POINTS, History

SAVE_SECONDS = 20.0  # between checkpoints; has no influence on results
CHECK_STEPS_CUDA = 50  # reading the loss waits for the GPU, so it is read once in this many steps
TOLERATED = 3  # consecutive checks with a loss that is not finite; one more, and the last checkpoint is restored

log = logging.getLogger(__name__)


def train(
    out: Workspace,
    state: checkpoint.State,
    step: Callable[[int], Tensor],
    *,
    budget_images: int,
    batch_images: int,
    device: str,
    snapshots: dict[int, Callable[[], None]] | None = None,
    scalars: Mapping[str, Tensor | float] | None = None,
) -> Record:
    """Run `step` from the last checkpoint, or from 0, to `budget_images`.

    A step whose loss or gradient is not finite changes nothing (`update`). If such steps continue, the last checkpoint
    is restored once, in case the machine was at fault; if they continue after that, the training has diverged.

    Args:
        out: receives checkpoints and progress.
        state: modules and optimizers that a checkpoint holds; restored here.
        step: makes one update with the batch that starts at this number of images seen; returns its loss, a scalar
            (with several processes, the loss of this process's share).
        budget_images, batch_images: the budget is a multiple of the batch, as are the keys of `snapshots`.
        device: "cpu" or "cuda".
        snapshots: functions by mark, called when this many images have been seen; only rank 0 calls them.
        scalars: further measurements of the last step, for the history (study/train/history.py).

    Returns:
        Cost: seconds of training over all attempts, images per second, peak memory in GiB, the last loss, and the
        number of skipped steps if there were any.

    Raises:
        Diverged: the loss stayed not finite.
        Interrupted: a stop was requested, or `out.pause_at` is reached; the checkpoint is written.
    """
    position = checkpoint.restore(out.folder, state)
    images_seen, seconds_before, skipped_before = position.images_seen, position.seconds, position.skipped
    started = saved = time.monotonic()
    loss = torch.tensor(math.nan)
    skipped = torch.zeros((), device=device)
    first_bad_step, bad_checks, fell_back = 0, 0, False
    snapshots = snapshots or {}
    history, log_steps = History(out.folder, images_seen), _log_steps(budget_images // batch_images, device)

    def save() -> None:
        nonlocal saved
        saved = time.monotonic()
        seconds = seconds_before + saved - started
        position = checkpoint.Position(images_seen, seconds, skipped_before + int(skipped))
        checkpoint.save(out.folder, state, position)

    while images_seen < budget_images:
        loss = step(images_seen)
        skipped += ~loss.isfinite()
        images_seen += batch_images
        steps = images_seen // batch_images
        stopping = False
        pausing = images_seen == out.pause_at
        checking = device == "cpu" or steps % CHECK_STEPS_CUDA == 0 or images_seen >= budget_images or pausing
        if checking or (out.stopping and world_size() == 1):
            (loss,) = average(loss)
            value = loss.item()
            out.progress(images_seen, budget_images, note=f"loss {value:.4g}")
            if math.isfinite(value):
                bad_checks = 0
            else:
                first_bad_step = first_bad_step if bad_checks else steps
                bad_checks += 1
                log.warning("step %d was skipped: its loss or gradient is %s", steps, value)
            stopping = any(all_gather(out.stopping))  # all processes stop after the same step
        if steps % log_steps == 0 or images_seen >= budget_images:
            history.log(images_seen, {"loss": loss, **(scalars or {})}, device)
        if bad_checks > TOLERATED:
            position = checkpoint.Position() if fell_back else checkpoint.restore(out.folder, state)
            if not position.images_seen:
                raise Diverged(f"diverged at step {first_bad_step}: the loss or its gradient is not finite")
            images_seen, bad_checks, fell_back = position.images_seen, 0, True
            history.rewind_to(images_seen)
            log.warning("falling back to the checkpoint at %d images", images_seen)
            continue
        if images_seen in snapshots and rank() == 0:
            snapshots[images_seen]()
        if (stopping or pausing) and images_seen < budget_images:
            save()
            raise Interrupted(f"{out.title} was asked to stop")
        if checking and not bad_checks and time.monotonic() - saved > SAVE_SECONDS:
            save()
    seconds = seconds_before + time.monotonic() - started
    skipped_steps = skipped_before + int(skipped)
    return {
        "train_seconds": round(seconds, 3),
        "train_images_per_second": round(images_seen / seconds, 3) if seconds > 0 else None,
        "peak_memory_gib": round(peak_memory_gib(device), 3),
        "final_loss": loss.item() if math.isfinite(loss.item()) else None,
        **({"skipped_steps": skipped_steps} if skipped_steps else {}),
    }


def _log_steps(steps: int, device: str) -> int:
    """Steps between two points of a training's history: a multiple of those at which the loss is read anyway."""
    interval = -(-steps // POINTS)
    return interval if device == "cpu" else -(-interval // CHECK_STEPS_CUDA) * CHECK_STEPS_CUDA


def update(optimizer: torch.optim.Optimizer, gradient_norm: Tensor) -> None:
    """Step a fused optimizer unless the norm of its gradient is not finite, without waiting for the device."""
    optimizer.found_inf = (~gradient_norm.isfinite()).float()  # type: ignore[attr-defined]  # fused optimizers respect it
    optimizer.step()


def gradient_norm(optimizer: torch.optim.Optimizer) -> Tensor:
    """Norm over all gradients that an optimizer would apply, a scalar."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients, foreach=True)


def learning_rate(images_seen: int, *, peak: float, budget: int, warmup: int, final: float = 1.0) -> float:
    """Linear warm-up over `warmup` images, then a cosine from `peak` to `final * peak` at `budget`."""
    if images_seen < warmup:
        return peak * (images_seen + 1) / warmup
    share = (images_seen - warmup) / max(1, budget - warmup)
    return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))
