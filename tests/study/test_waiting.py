"""No step of a training waits for the GPU: the host runs ahead of it, or each of its launches is paid for in full.

On a GPU torch itself says where one waits. On a processor the tensors of the GPU are stand-ins on "meta", which have no
values: what would read one (`item`, `nonzero`, an index of booleans) fails, and copies from the host are seen.
"""

import contextlib
import dataclasses
import sys

import pytest
import torch
from interrupting import aligned_with_everything
from made_up import COMPUTE, Asking
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from models.foundation import FoundationModel
from models.lpips import LPIPS
from models.regularisation import REGULARISERS
from study.core.cards import no_card_because
from study.core.compute import apply
from study.core.settings import change
from study.data.datasets import resolve_data
from study.data.latents import read_latents
from study.plan.resolve import make_plan
from study.plan.runs import Run
from study.plan.specs import REPA, FitGenerator
from study.stages import fit_generator, fit_tokenizer

aten = torch.ops.aten
GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason=f"needs a GPU; {no_card_because() or 'torch finds none'}"),
]
DEVICES = pytest.mark.parametrize("device", ["meta", pytest.param("cuda", marks=GPU)])


class Copies(TorchDispatchMode):
    """Fails where a tensor is copied from the host to the device while the host waits."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func in (aten._to_copy.default, aten.copy_.default):
            source = args[0] if func is aten._to_copy.default else args[1]
            asynchronous = kwargs.get("non_blocking") or args[2:3] == (True,)
            assert source.device == out.device or asynchronous, f"a copy of {tuple(source.shape)} to {out.device}"
        return out


class Constants(TorchFunctionMode):
    """Fails where numbers of the host become a tensor of the device, for which it waits too."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor):
            assert out.device.type == "cpu", f"{func.__name__} of {args[-1]}"
        return out


@contextlib.contextmanager
def waiting_fails(device):
    if device == "meta":
        with Copies(), Constants():
            yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@contextlib.contextmanager
def gpu_or_stand_ins(device):
    """What torch does for a GPU it does for "meta" too."""
    with pytest.MonkeyPatch.context() as patch:
        if device == "meta":
            patch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
            patch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
            for module in ("torch.utils._foreach_utils", "torch.optim.optimizer"):
                for name in ("_get_foreach_kernels_supported_devices", "_get_fused_kernels_supported_devices"):
                    patch.setattr(sys.modules[module], name, lambda: ["meta"])
            for stage in (fit_generator, fit_tokenizer):
                patch.setattr(stage, "prefetched_batches", arriving)
        yield


def arriving(prepare, *_):
    return lambda images_seen: tuple(each.to("meta", non_blocking=True) for each in prepare(images_seen))


def with_device(spec, device):
    return dataclasses.replace(spec, compute=dataclasses.replace(spec.compute, device=device))


def make_steps(stage, device):
    """Three steps of a training; the first one may wait."""
    with gpu_or_stand_ins(device):
        _make_steps(stage, device)


def _make_steps(stage, device):
    spec, scalars = stage.spec, {}
    begun = with_device(spec, "cpu" if device == "meta" else device)
    apply(begun.compute)
    if isinstance(spec, FitGenerator):
        state = fit_generator.build(begun)
        features = fit_generator.generator_features(begun, stage.inputs["latents"].spec)
        parts = state
    else:
        networks = fit_tokenizer.build(begun)
        features, parts = networks.foundation, vars(networks)
    for part in parts.values():
        if isinstance(part, nn.Module):
            part.to(device)
    if features is not None:
        features._mean, features._std = features._mean.to(device), features._std.to(device)
    if isinstance(spec, FitGenerator):
        latents = read_latents(stage.inputs["latents"])
        step = fit_generator.step_function(with_device(spec, device), state, latents, scalars, features)
    else:
        state = fit_tokenizer.training_state(spec, networks)
        step = fit_tokenizer.step_function(with_device(spec, device), networks, state, scalars)
    batch = spec.recipe.batch_images
    step(0)
    with waiting_fails(device):
        losses = [step(batch), step(2 * batch)]
    assert [loss.device.type for loss in losses] == [device, device]


@pytest.fixture
def planned(tiny_scale, pictures):
    """`planned(kind, tokenizer, generator's recipe)`: the stage of this kind, with a tokenizer of every loss."""

    def stage(kind, tokenizer, **recipe):
        scale = change(aligned_with_everything(tiny_scale), "regularisation.eq.smallest", 0.75)
        scale = dataclasses.replace(
            scale,
            tokenizer=dataclasses.replace(scale.tokenizer, gan_start_images=0),
            generator=dataclasses.replace(scale.generator, **recipe),
        )
        run = Run(tokenizer=tokenizer, generator="LightningDiT-XXS/2")
        plan = make_plan("asked", Asking(run), scale, resolve_data(str(pictures), 32), COMPUTE, "test")
        return next(stage for stage in plan.stages if stage.kind == kind)

    return stage


@DEVICES
@pytest.mark.parametrize("recipe", [{}, {"objective": "gaussian-diffusion"}, *({"repa": one} for one in REPA.values())])
def test_a_step_of_a_generator_never_waits(recipe, device, planned, run_or_copy):
    stage = planned("fit_generator", "f4d4", **recipe)
    encode = stage.inputs["latents"]
    run_or_copy([encode.inputs["tokenizer"], encode])
    make_steps(stage, device)


@DEVICES
@pytest.mark.parametrize("tokenizer", ["f4d4-lite0", f"f4d4+{'+'.join(REGULARISERS)}"])
def test_a_step_of_a_tokenizer_never_waits(tokenizer, device, planned):
    make_steps(planned("fit_tokenizer", tokenizer), device)


@DEVICES
def test_frozen_networks_of_a_step_never_wait(device):
    pixels = torch.rand(2, 3, 32, 32).to(device)
    statistics = ((0.5, 0.4, 0.3), (0.2, 0.2, 0.3))
    model = FoundationModel("made", nn.AvgPool2d(8), 3, patch=8, resize=None, statistics=statistics).to(device)
    distance = LPIPS(None, input_size=32).to(device)
    with gpu_or_stand_ins(device), waiting_fails(device):
        model(pixels)
        distance(pixels, pixels)
