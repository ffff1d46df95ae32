"""The next batch is made while this one is trained on: a function of images seen, so no number and no resume moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def prefetched_batches(
    prepare: Callable[[int], tuple[Tensor, ...]], batch_images: int, device: str
) -> Callable[[int], tuple[Tensor, ...]]:
    """Function from images seen to the batch that starts there, on the device.

    On a GPU the next batch is made meanwhile, in memory that the GPU reads by itself; on a CPU it would take its time
    from the step.

    Args:
        prepare: makes a batch on the CPU: tensors that depend on images seen alone.
        batch_images: from one batch to the next.
        device: "cpu" or "cuda".
    """
    if device == "cpu":
        return prepare
    next_batch = computed_ahead(
        lambda images_seen: tuple(tensor.pin_memory() for tensor in prepare(images_seen)),
        batch_images,
        # each process of several has a GPU of its own, which a new thread does not know
        ThreadPoolExecutor(1, "batches", torch.cuda.set_device, (torch.cuda.current_device(),)),
    )
    return lambda images_seen: tuple(tensor.to(device, non_blocking=True) for tensor in next_batch(images_seen))


def computed_ahead(function: Callable[[int], T], stride: int, thread: ThreadPoolExecutor) -> Callable[[int], T]:
    """The same function, which begins to work out its value at n + stride, in the thread, when it was asked for n."""
    begun: dict[int, Iterator[T]] = {}

    def value(position: int) -> T:
        found = begun.pop(position, None) or thread.map(function, [position])
        begun.clear()
        here = next(found)
        begun[position + stride] = thread.map(function, [position + stride])
        return here

    return value
