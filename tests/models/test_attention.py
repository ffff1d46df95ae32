"""Attention in bfloat16 on a CPU, as matrix products: as close to that in float64 as PyTorch's fused kernel is."""

import torch
import torch.nn.functional as F
from waves import wave

from models.attention import attend, by_products


def outcome(attention, dtype):
    q, k, v = (wave(2, 3, 16, 32, k=k).to(dtype).requires_grad_() for k in (0.3, 0.7, 1.1))
    out = attention(q, k, v)
    assert out.dtype == dtype
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), wave(2, 3, 16, 32, k=0.9).to(dtype))]


def test_value_and_gradients_of_the_products_are_those_of_the_fused_kernel_but_for_rounding():
    exact = outcome(F.scaled_dot_product_attention, torch.float64)
    found, fused = (outcome(attention, torch.bfloat16) for attention in (attend, F.scaled_dot_product_attention))
    for products, kernel, true in zip(found, fused, exact, strict=True):
        assert 0 < (products - true).norm() < 1.5 * (kernel - true).norm()


def test_only_bfloat16_on_a_cpu_is_computed_as_products():
    assert by_products(torch.empty(1, dtype=torch.bfloat16))
    assert not by_products(torch.empty(1))
    assert not by_products(torch.empty(1, dtype=torch.bfloat16, device="meta"))
