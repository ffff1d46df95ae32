"""Prefetching of the next batch. A batch is a function of images seen, so prefetching changes no result."""

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

    On a GPU the next batch is prepared in pinned memory during the step; on a CPU, preparing it would slow the step
    down, so nothing is prefetched.

    Args:
        prepare: makes a batch on the CPU: tensors that depend on images seen alone.
        batch_images: images per batch, the distance between the starts of two batches.
        device: "cpu" or "cuda".
    """
    if device == "cpu":
        return prepare
    next_batch = computed_ahead(
        lambda images_seen: tuple(tensor.pin_memory() for tensor in prepare(images_seen)),
        batch_images,
        # each process has its own GPU, and a new thread does not inherit the current device
        ThreadPoolExecutor(1, "batches", torch.cuda.set_device, (torch.cuda.current_device(),)),
    )
    return lambda images_seen: tuple(tensor.to(device, non_blocking=True) for tensor in next_batch(images_seen))


def computed_ahead(function: Callable[[int], T], stride: int, thread: ThreadPoolExecutor) -> Callable[[int], T]:
    """The same function; after a call with n, the thread starts to compute its value at n + stride."""
    started: dict[int, Iterator[T]] = {}

    def value_at(position: int) -> T:
        pending = started.pop(position, None) or thread.map(function, [position])
        started.clear()
        value = next(pending)
        started[position + stride] = thread.map(function, [position + stride])
        return value

    return value_at
