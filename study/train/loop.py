"""The training loop of tokenizers and generators; progress is counted in images seen only.

A step is a function of the state and of the images seen before it, so a training that was killed and resumed
from its last checkpoint ends bit for bit like an uninterrupted one.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import NoReturn

import torch
from torch import Tensor

from study.core.distributed import all_gather, average, rank, world_size
from study.core.stopping import Interrupted
from study.core.workspace import Diverged, Record, Workspace, peak_memory_gib
from study.plan.stage import state_files
from study.train import checkpoint
from study.train.history import POINTS, History

CHECK_STEPS = {"cpu": 1, "cuda": 50}  # reading the loss waits for the GPU, so it is read once in this many steps
LOOK_SECONDS = 5.0  # between two looks for a request to stop; has no influence on results
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
    marks: Mapping[int, Callable[[Record], None]] | None = None,
    keep_states: bool = False,
    scalars: Mapping[str, Tensor | float] | None = None,
) -> Record:
    """Run `step` up to the budget, from the last state in the folder at or before the first mark, or from 0.

    Where the folder holds a state between one mark and the next, the training goes on from there. With marks, the state
    at the last one stays in the folder, unless an earlier training left one further along.

    Checkpoints are written while the training goes on (`checkpoint.Writer`). A stop is noticed within about
    LOOK_SECONDS. Then the training waits for the write under way, or writes a checkpoint if there is none: a second one
    would take longer than training again what came after the first.

    A step whose loss or gradient is not finite changes nothing (`update`). If such steps continue, the last checkpoint
    is restored once, in case the machine was at fault; if they continue after that, the training has diverged.

    Args:
        out: receives states and progress.
        state: modules and optimizers that a checkpoint holds; restored here.
        step: makes one update with the batch that starts at this number of images seen; returns its loss, a scalar
            (with several processes, the loss of this process's share).
        budget_images, batch_images: the budget is a multiple of the batch, as are the marks.
        device: "cpu" or "cuda".
        marks: by images seen, the last one being the budget: functions that get the cost up to there; only rank 0 calls
            them.
        keep_states: keep a state at every mark, also when the training goes on.
        scalars: further measurements of the last step, for the history (study/train/history.py).

    Returns:
        Cost: seconds of training over all attempts, images per second, peak memory in GiB, the last loss, and the
        number of skipped steps if there were any.

    Raises:
        Diverged: the loss stayed not finite.
        Interrupted: a stop was requested; a checkpoint is written.
        LeaseLost: another process has taken over the folder.
        OSError: a state could not be written.
    """
    marks = marks or {}
    position, started = checkpoint.Position(), time.monotonic()
    images_seen, skipped = 0, torch.zeros((), device=device)
    loss = torch.tensor(math.nan)
    fell_back, first_bad_step, bad_checks = False, 0, 0
    looked, steps_since_look, steps_to_look = started, 0, 1
    log_steps = _log_steps(budget_images // batch_images, device)
    already_logged = max(state_files(out.folder), default=0)  # the history up to the state furthest along stays
    history = History(out.folder, already_logged)

    def go_on_from(found: checkpoint.Position) -> None:
        nonlocal position, started, images_seen, loss
        position, started, images_seen = found, time.monotonic(), found.images_seen
        loss = torch.tensor(math.nan if found.loss is None else found.loss)
        skipped.zero_()
        if images_seen >= already_logged:
            history.rewind_to(images_seen)

    def now() -> checkpoint.Position:
        seconds, last_loss = position.seconds + time.monotonic() - started, loss.item()
        finite = last_loss if math.isfinite(last_loss) else None
        return checkpoint.Position(images_seen, seconds, position.skipped + int(skipped), finite)

    def look() -> bool:
        """Whether any process was asked to stop: all learn it after the same step, as they learn when to look again.

        Rank 0 chooses that step from its own clock. The interval at most doubles, because on a GPU the first steps
        return before they are made.
        """
        nonlocal looked, steps_since_look, steps_to_look
        if out.lease is not None:
            out.lease.check()  # first: a process that took over may have deleted what was being written
        writer.check()
        before, looked = looked, time.monotonic()
        affordable = int(LOOK_SECONDS / max(looked - before, 1e-9) * steps_since_look)
        answers = all_gather([out.stopping, max(1, min(affordable, 2 * steps_since_look))])
        steps_since_look, steps_to_look = 0, answers[0][1]
        return any(stopping for stopping, _ in answers)

    def stop(saved: bool) -> NoReturn:
        if not saved:
            writer.save(state, now())
        writer.wait()
        raise Interrupted(f"{out.title} was asked to stop")

    with checkpoint.Writer(out.folder) as writer:
        for target in sorted({*marks, budget_images}):
            if found := checkpoint.restore(out.folder, state, until=target, beyond=images_seen):
                go_on_from(found)
            while images_seen < target:
                loss = step(images_seen)
                skipped += ~loss.isfinite()
                images_seen += batch_images
                steps = images_seen // batch_images
                steps_since_look += 1
                checking = steps % CHECK_STEPS[device] == 0 or images_seen >= target
                if checking:
                    (loss,) = average(loss)
                    value = loss.item()
                    out.progress(images_seen, budget_images, note=f"loss {value:.4g}")
                    if math.isfinite(value):
                        bad_checks = 0
                    else:
                        first_bad_step = first_bad_step if bad_checks else steps
                        bad_checks += 1
                        log.warning("step %d was skipped: its loss or gradient is %s", steps, value)
                stopping = (checking or world_size() == 1 or steps_since_look >= steps_to_look) and look()
                if images_seen > already_logged and (steps % log_steps == 0 or images_seen >= budget_images):
                    history.log(images_seen, {"loss": loss, **(scalars or {})}, device)
                if bad_checks > TOLERATED:
                    writer.wait()
                    found = None if fell_back else checkpoint.restore(out.folder, state, until=target)
                    if found is None:
                        raise Diverged(f"diverged at step {first_bad_step}: the loss or its gradient is not finite")
                    images_seen, bad_checks, fell_back = found.images_seen, 0, True  # the time lost counts
                    history.rewind_to(images_seen)
                    log.warning("falling back to the checkpoint at %d images", images_seen)
                    continue
                if stopping and images_seen < target:
                    stop(writer.busy)
                if checking and not bad_checks and images_seen < target and writer.due:
                    writer.save(state, now())
            if marks and (keep_states or (target == budget_images and target > already_logged)):
                writer.save(state, now(), keep=keep_states)
                writer.wait()  # before the record says that the mark is reached
            if target in marks and rank() == 0:
                marks[target](_cost(now(), device))
            if target < budget_images and look():
                stop(writer.busy or keep_states)
    if marks:
        checkpoint.keep_last_alone(out.folder)
    return _cost(now(), device)


def _cost(position: checkpoint.Position, device: str) -> Record:
    seconds = position.seconds
    return {
        "train_seconds": round(seconds, 3),
        "train_images_per_second": round(position.images_seen / seconds, 3) if seconds > 0 else None,
        "peak_memory_gib": round(peak_memory_gib(device), 3),
        "final_loss": position.loss,
        **({"skipped_steps": position.skipped} if position.skipped else {}),
    }


def _log_steps(steps: int, device: str) -> int:
    """Steps between two points of a training's history: a multiple of those at which the loss is read anyway."""
    check_steps = CHECK_STEPS[device]
    return -(-steps // POINTS // check_steps) * check_steps


def update(optimizer: torch.optim.Optimizer, gradient_norm: Tensor) -> None:
    """Step a fused optimizer unless the norm of its gradient is not finite, without waiting for the device."""
    optimizer.found_inf = (~gradient_norm.isfinite()).float()  # type: ignore[attr-defined]  # fused optimizers respect it
    optimizer.step()


def gradient_norm(optimizer: torch.optim.Optimizer) -> Tensor:
    """Norm over all gradients that an optimizer would apply, a scalar."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients, foreach=True)


def learning_rate(images_seen: int, *, peak: float, warmup: int) -> float:
    """Linear warm-up over `warmup` images, then `peak`."""
    return peak * (images_seen + 1) / warmup if images_seen < warmup else peak


def decayed_learning_rate(images_seen: int, *, peak: float, budget: int, warmup: int, final: float) -> float:
    """Linear warm-up over `warmup` images, then a cosine from `peak` to `final * peak` at `budget`."""
    if images_seen < warmup:
        return learning_rate(images_seen, peak=peak, warmup=warmup)
    share = (images_seen - warmup) / max(1, budget - warmup)
    return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))
