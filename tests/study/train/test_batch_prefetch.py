"""Prefetched batches equal those that are made on demand."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from study.train.batch_prefetch import computed_ahead, prefetched_batches


def test_the_next_value_is_computed_in_the_thread_and_any_other_on_demand():
    calls, started = [], threading.Event()

    def square(n):
        calls.append((n, threading.current_thread().name[:4]))
        if n == 8:
            started.set()
        return n * n

    with ThreadPoolExecutor(1, "test") as thread:
        value = computed_ahead(square, 8, thread)
        assert value(0) == 0
        assert started.wait(10)  # before value(8) is called
        assert [value(n) for n in (8, 16, 64, 72)] == [64, 256, 4096, 5184]  # 64: as after a resume
    assert [n for n, _ in calls] == [0, 8, 16, 24, 64, 72, 80]
    assert {name for _, name in calls} == {"test"}


def test_an_error_is_raised_with_its_batch():
    def prepare(n):
        if n == 2:
            raise ValueError("no such image")
        return n

    with ThreadPoolExecutor(1) as thread:
        value = computed_ahead(prepare, 1, thread)
        assert (value(0), value(1)) == (0, 1)
        with pytest.raises(ValueError, match="no such image"):
            value(2)


def test_on_a_cpu_nothing_is_prefetched():
    calls = []

    def prepare(n):
        calls.append(n)
        return (torch.full((2,), n),)

    batch = prefetched_batches(prepare, 2, "cpu")
    assert batch(4)[0].tolist() == [4, 4]
    assert calls == [4]
