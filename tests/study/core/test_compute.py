"""What a precision sets up in a process."""

import dataclasses

import pytest
import torch
from made_up import COMPUTE

from study.core.compute import apply, autocast, exact_convolutions


@pytest.fixture(autouse=True)
def restored():
    yield
    apply(COMPUTE)


@pytest.mark.parametrize(
    ("precision", "convolutions", "products"),
    [("float32", False, torch.float32), ("tf32", True, torch.float32), ("bfloat16", False, torch.bfloat16)],
)
def test_tf32_is_for_the_convolutions_of_its_precision_alone(precision, convolutions, products):
    compute = dataclasses.replace(COMPUTE, precision=precision)
    apply(dataclasses.replace(COMPUTE, precision="tf32"))  # of a stage before in the same process
    apply(compute)
    assert torch.backends.cudnn.allow_tf32 is convolutions
    assert torch.backends.cuda.matmul.allow_tf32 is False
    with autocast(compute):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == products


def test_what_trainings_share_is_exact_and_the_training_goes_on_as_before():
    apply(dataclasses.replace(COMPUTE, precision="tf32"))
    with pytest.raises(ZeroDivisionError), exact_convolutions():
        assert torch.backends.cudnn.allow_tf32 is False
        raise ZeroDivisionError
    assert torch.backends.cudnn.allow_tf32 is True
