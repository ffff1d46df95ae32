"""The cost of a step: how often it runs each network; and a small benchmark."""

import dataclasses
import json
import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.autograd import DeviceType
from torch.utils._python_dispatch import TorchDispatchMode

from models.autoencoder import Autoencoder, initialize
from models.configs import AutoencoderConfig
from models.costs import autoencoder_flops
from models.discriminator import Discriminator
from models.perceptual import PerceptualDistance
from models.vf_loss import projection
from study.bench import against, timing, whole_study
from study.bench import run as bench
from study.bench.__main__ import main
from study.bench.cases import Workload
from study.bench.timing import Case, ProductRecorder, flops_of, measure, medians
from study.core.compute import Compute
from study.plan.scales import SCALES, smoke
from study.stages.fit_tokenizer import Networks, gradients

aten = torch.ops.aten
COMPUTE = Compute(device="cpu", precision="float32", threads=1)


@pytest.fixture
def tiny(tiny_scale):
    return Workload(dataclasses.replace(tiny_scale, foundation_models=("lite0",)), COMPUTE, 1)


class Convolutions(TorchDispatchMode):
    """How often each weight is used: forward, and backward with or without the weight's own gradient."""

    def __init__(self):
        super().__init__()
        self.forward, self.backward, self.weight_gradients = Counter(), Counter(), Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is aten.convolution.default:
            self.forward[args[1].data_ptr()] += 1
        if func is aten.convolution_backward.default:
            self.backward[args[2].data_ptr()] += 1
            self.weight_gradients[args[2].data_ptr()] += args[-1][1]
        return func(*args, **(kwargs or {}))

    def of(self, network, *leave_out):
        """(forward, backward, weight gradients) of a network's convolutions: one triple when all agree."""
        weights = {
            m.weight.data_ptr() for m in network.modules() if isinstance(m, torch.nn.Conv2d) and m not in leave_out
        }
        return {(self.forward[w], self.backward[w], self.weight_gradients[w]) for w in weights}


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("gan", [False, True])
def test_a_tokenizer_step_walks_each_network_no_more_often_than_it_must(aligned, gan):
    config = AutoencoderConfig(
        in_channels=1, resolution=32, ch=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(), z_channels=4,
        norm_groups=4,
    )  # fmt: skip
    recipe = dataclasses.replace(smoke().tokenizer, perceptual_weight=1.0, gan_weight=0.5)
    rng = torch.Generator().manual_seed(0)
    networks = Networks(Autoencoder(config), perceptual=PerceptualDistance("lite0", input_size=32, pretrained=False))
    initialize(networks.tokenizer, rng)
    networks.discriminator = Discriminator(1, width=8)
    networks.linear_proj = projection(4, 6) if aligned else None
    calls = Counter()
    for name in ("perceptual", "discriminator"):
        network = getattr(networks, name)
        network.register_forward_hook(lambda module, *_, name=name: calls.update([name]))
    pixels, noise = torch.randn(2, 1, 32, 32, generator=rng), torch.randn(2, 4, 16, 16, generator=rng)
    features = torch.randn(2, 6, 16, 16, generator=rng) if aligned else None
    with Convolutions() as used:
        gradients(networks, recipe, COMPUTE, pixels, noise, features, gan)

    assert calls == Counter(perceptual=1, **({"discriminator": 1} if gan else {}))
    encoder, decoder = networks.tokenizer.encoder, networks.tokenizer.decoder
    assert used.of(encoder.down) | used.of(encoder.mid) == {(1, 1, 1)}
    # both adaptive weights need the reconstruction's gradient at the latent: once more, without weight gradients
    walks = {(1, 2, 1)} if gan and aligned else {(1, 1, 1)}
    assert used.of(decoder.mid) | used.of(decoder.up) == walks
    if gan:  # the tokenizer's term moves no weight of the discriminator
        assert used.of(networks.discriminator) == {(1, 1, 0)}


def test_flops_are_counted_with_and_without_gradients():
    config = AutoencoderConfig(resolution=32, ch=16, ch_mult=(1, 2), attn_resolutions=(), norm_groups=8)
    network, pixels = Autoencoder(config), torch.zeros(2, 3, 32, 32)
    encode, _ = autoencoder_flops(config)

    def inference():
        with torch.inference_mode():
            network.encode(pixels)

    def training():
        mean = network.encode(pixels).mean
        torch.autograd.grad(mean.sum(), list(network.encoder.parameters()))

    assert flops_of(inference) == pytest.approx(2 * encode, rel=0.02)
    assert flops_of(training) == pytest.approx(3 * 2 * encode, rel=0.1)


def test_a_share_is_of_a_product_timed_in_turn(monkeypatch):
    clock = iter(np.arange(1000.0))
    monkeypatch.setattr("study.bench.timing.time.perf_counter", lambda: next(clock))  # every run takes a second
    flop = 2 * 1024**3
    (half,) = measure([Case(name="half", run=lambda: None, images=4, flops=flop / 2)], 5, "cpu")
    assert (half.images_per_second, half.gflops, half.share) == (4, flop / 2 / 1e9, 0.5)


def test_slow_things_are_timed_less_often():
    runs = []
    medians({"slow": lambda: runs.append(1)}, 100, "cpu", at_most=0.0)
    assert len(runs) == 2 + 3


SECTIONS = ["generator step", "tokenizer step", "sampling", "encoding", "loader", "FID"]


@pytest.mark.slow
def test_the_whole_bench(monkeypatch, tmp_path, capsys, tiny_scale):
    scale = dataclasses.replace(
        tiny_scale,
        foundation_models=("lite0",),
        judges=(("efficientnet_lite2", 64),),
        evaluation=dataclasses.replace(tiny_scale.evaluation, reference_images=64),
        sampling=dataclasses.replace(tiny_scale.sampling, chunk=2),
    )
    monkeypatch.setitem(SCALES, "smoke", lambda: scale)
    file = tmp_path / "bench.json"
    monkeypatch.setattr(
        sys, "argv", ["bench", "--scale", "smoke", "--repeats", "1", "--threads", "1", "--out", str(file)]
    )
    main()
    printed = capsys.readouterr().out
    content = json.loads(file.read_text())
    assert content["missing"] == {}
    assert list(content["sections"]) == SECTIONS
    assert content["scale"] == "smoke" and content["compute"]["threads"] == 1
    assert {"device", "versions", "commit"} <= content["provenance"].keys()
    for name, lines in content["sections"].items():
        assert name in printed
        for line in lines:
            assert line["images_per_second"] == pytest.approx(line["images"] / line["seconds"])
            assert (
                (line["gflops"] is None) == (line["share"] is None) == (name == "loader" or "distance" in line["name"])
            )
    lines = {line["name"]: line for line in content["sections"]["sampling"]}
    work = [line["gflops"] * line["seconds"] for line in lines.values()]
    assert work[1] == pytest.approx(2 * work[0])
    assert work[2] == pytest.approx((2 * 14 + 6) / 20 * work[0])  # 6 of 20 steps lie before t = 0.11
    assert sum(content["generator_step_shares"].values()) == pytest.approx(1)


@pytest.mark.slow  # seconds, but among the longest
def test_a_judge_without_weights_is_missing_and_the_rest_is_measured(tiny, monkeypatch, tmp_path):
    monkeypatch.setenv("STUDY_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(bench, "measure", lambda *_, **__: [])
    setting = Workload(dataclasses.replace(tiny.scale, judges=(("inception", 0),)), COMPUTE, 1)
    found = bench.run(setting, quick=False, compiled=False)
    assert list(found.sections) == SECTIONS[:-1]
    assert "study.prefetch" in found.missing["FID"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scale", "imagenet256"], "scale imagenet256 needs cuda"),
        (["--scale", "dsk"], "no scale 'dsk'; nearest: desk"),
        (["--against", "."], "is not a checkout of hustvl/LightningDiT: it has no models/"),
    ],
)
def test_what_cannot_be_timed_is_one_line(arguments, message, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("study.core.compute.resolve", lambda: COMPUTE)
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    with pytest.raises(SystemExit, match="2"):
        main()
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


# Comparison with the released code

STAND_IN = {
    "models/__init__.py": "",
    "models/lightningdit.py": """
import torch

class LightningDiT(torch.nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def load_state_dict(self, weights, strict):
        assert strict and "blocks.0.attn.qkv.weight" in weights

    def forward(self, x, t, y):
        print("chatter")  # on the output that answers come by
        return x * self.weight

    def forward_with_cfg(self, x, t, y, cfg_scale, cfg_interval, cfg_interval_start):
        return x
""",
    "transport/__init__.py": """
import torch

class Transport:
    def training_losses(self, model, x, labels):
        out = model(x, torch.zeros(len(x)), **labels)
        return {"loss": out.square().mean((1, 2, 3)), "cos_loss": out.mean((1, 2, 3))}

class Sampler:
    def __init__(self, transport):
        pass

    def sample_ode(self, *, num_steps, **options):
        return lambda x, model, **given: [model(x, None, **given)]

def create_transport(*options, **more):
    return Transport()
""",
    "transport/transport.py": "",
    "datasets/__init__.py": "",
    "datasets/img_latent_dataset.py": """
import glob
from safetensors.torch import load_file

class ImgLatentDataset:
    def __init__(self, folder, latent_norm):
        (file,) = glob.glob(folder + "/*.safetensors")
        self.stored = load_file(file)
        assert self.stored["latents"].shape == self.stored["latents_flip"].shape

    def __len__(self):
        return len(self.stored["labels"])

    def __getitem__(self, index):
        return self.stored["latents"][index], self.stored["labels"][index]
""",
}


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A stand-in with the names of the released code, which computes almost nothing."""
    monkeypatch.setattr(against, "PACKAGES", ())
    for name, content in STAND_IN.items():
        (tmp_path / "checkout" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "checkout" / name).write_text(content)
    return tmp_path / "checkout"


@pytest.mark.slow
def test_both_are_timed_and_compared(tiny, checkout):
    found, largest_difference = against.compare(tiny, checkout)
    assert [one.name for one in found] == list(against.GOALS)
    for one in found:
        ours = one.images_per_second["ours"]
        assert one.ratios and any("released" in whose for whose in one.ratios)
        for whose, ratio in one.ratios.items():
            assert ratio == pytest.approx(ours / one.images_per_second[whose])
    assert 0.1 < largest_difference < 100  # the stand-in returns the noise, which differs from real samples


def test_released_code_that_stops_says_why(tiny, checkout):
    (checkout / "transport/__init__.py").write_text("raise OSError('no such transport')")
    with pytest.raises(RuntimeError, match="the released code stopped: OSError: no such transport"):
        against.compare(tiny, checkout)


def test_packages_that_only_the_released_code_needs_are_named(checkout, monkeypatch):
    monkeypatch.setattr(against, "PACKAGES", ("torch", "no_such_package"))
    with pytest.raises(ValueError, match="pip install no_such_package"):
        against.check(checkout)


# A whole study


def record(stage, seconds, **more):
    return {"stage": stage, "core_seconds": seconds, **more}


def judged(pictures, judge, seconds):
    return record("judge", seconds, inputs={pictures: "0" * 16}, spec={"judge": {"name": judge}})


def test_core_seconds_are_added_by_stage_and_judge():
    found = whole_study.core_seconds(
        [record("encode", 1.0), judged("samples", "inception", 2.0), judged("samples", "classifier", 0.25),
         record("encode", 0.5), judged("samples", "inception", 3.0), judged("reconstructions", "inception", 1.0)]
    )  # fmt: skip
    assert list(found.items()) == [
        ("judge, samples by inception", 5.0), ("encode", 1.5), ("judge, reconstructions by inception", 1.0),
        ("judge, samples by classifier", 0.25),
    ]  # fmt: skip


def test_a_study_stands_beside_what_was_kept_for_the_same_kind_of_machine(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(whole_study, "KEPT", tmp_path / "core_seconds.json")
    arguments = ["bench", "--study", "--threads", "1"]
    for total, more in ((4.0, ["--keep"]), (3.0, [])):
        cost = whole_study.StudyCost(
            seconds=2, core_seconds={"encode": total / 2, whole_study.TOTAL: total}, commit="c"
        )
        monkeypatch.setattr(bench, "study_cost", lambda cost=cost: cost)
        monkeypatch.setattr(sys, "argv", [*arguments, *more])
        main()
    first, second = capsys.readouterr().out.split("core seconds")[1:]
    assert "nothing is kept" in first and "here / kept" not in first
    assert [line.split() for line in second.splitlines() if line.startswith("encode")] == [
        ["encode", "1.5", "2.0", "0.75"]
    ]
    monkeypatch.setattr(whole_study, "machine", lambda: "another kind")
    main()
    assert "nothing is kept" in capsys.readouterr().out


def test_a_study_that_fails_says_why(monkeypatch, tmp_path):
    monkeypatch.setattr(whole_study, "resolve_data", lambda *_, **__: None)
    with pytest.raises(RuntimeError, match=r"the study failed: study\.sweep: .*nearest: frontier"):
        whole_study.study_cost("frontiers")


@pytest.mark.parametrize(("device", "tensors"), [("cpu", 6), ("meta", 2)])
def test_on_a_gpu_products_alike_share_their_stand_ins(device, tensors):
    """Those of all blocks of a large generator would not fit beside its step. A meta tensor stands for a GPU's."""
    a, b = torch.zeros(4, 8, device=device), torch.zeros(8, 4, device=device)
    with ProductRecorder() as recorder:
        for _ in range(3):
            a @ b
    assert len({id(one) for _, arguments, _ in recorder.products for one in arguments}) == tensors
    recorder.replay()


def test_the_time_of_a_gpu_is_counted_once():
    """Its profile has each kernel, and the operation that started it with the same time."""

    def event(key, device, on_gpu, on_cpu=0.0):
        return SimpleNamespace(key=key, device_type=device, self_device_time_total=on_gpu, self_cpu_time_total=on_cpu)

    events = [
        event("aten::mm", DeviceType.CPU, 30.0, 1.0),
        event("sm90_xmma_gemm_bf16", DeviceType.CUDA, 30.0),
        event("aten::add", DeviceType.CPU, 10.0, 1.0),
        event("vectorized_elementwise_kernel", DeviceType.CUDA, 10.0),
    ]
    assert timing._spent(events, "cuda") == {"matrix products": 30.0, "element-wise": 10.0}
    assert timing._spent(events, "cpu") == {"matrix products": 1.0, "element-wise": 1.0}
