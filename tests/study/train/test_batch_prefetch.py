"""Batches made ahead are those that would have been made in time."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from study.train.batch_prefetch import computed_ahead, prefetched_batches


def test_the_next_value_is_begun_in_the_thread_and_any_other_can_be_asked_for():
    asked, begun = [], threading.Event()

    def square(n):
        asked.append((n, threading.current_thread().name[:4]))
        if n == 8:
            begun.set()
        return n * n

    with ThreadPoolExecutor(1, "made") as thread:
        value = computed_ahead(square, 8, thread)
        assert value(0) == 0
        assert begun.wait(10)  # nobody has asked for it
        assert [value(n) for n in (8, 16, 64, 72)] == [64, 256, 4096, 5184]  # 64: as after a resume
    assert [n for n, _ in asked] == [0, 8, 16, 24, 64, 72, 80]
    assert {name for _, name in asked} == {"made"}


def test_an_error_comes_with_the_batch_that_has_it():
    def prepare(n):
        if n == 2:
            raise ValueError("no such image")
        return n

    with ThreadPoolExecutor(1) as thread:
        value = computed_ahead(prepare, 1, thread)
        assert (value(0), value(1)) == (0, 1)
        with pytest.raises(ValueError, match="no such image"):
            value(2)


def test_on_a_processor_nothing_runs_ahead():
    asked = []

    def prepare(n):
        asked.append(n)
        return (torch.full((2,), n),)

    batch = prefetched_batches(prepare, 2, "cpu")
    assert batch(4)[0].tolist() == [4, 4]
    assert asked == [4]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_batches_arrive_as_they_were_made():
    images = torch.arange(240.0).view(10, 3, 2, 4).to(memory_format=torch.channels_last)
    batch = prefetched_batches(lambda n: (images[n : n + 2], torch.tensor([n])), 2, "cuda")
    for n in (0, 2, 8):
        pixels, start = batch(n)
        assert pixels.is_cuda
        assert pixels.stride() == images[:2].stride()
        assert torch.equal(pixels.cpu(), images[n : n + 2])
        assert start.item() == n
