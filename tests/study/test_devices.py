"""What a GPU computes is what a processor computes, and survives the same: each test runs on a processor, or names its
twin that does, and on a GPU where there is one (`-m gpu`)."""

import dataclasses
import os
import signal
import socket

import pytest
import torch
from interrupting import aligned_with_everything, same_in_pieces, weights

from study import stages as all_stages
from study.core import distributed
from study.core.cards import no_card_because
from study.core.compute import CUBLAS, apply
from study.core.files import load_tensors
from study.core.stopping import Interrupted, stop_on_signals, stop_requested
from study.core.workspace import Workspace
from study.data.latents import read_latents
from study.data.picture_chunks import chunk_rows, read_chunk
from study.manage import _in_microbatches
from study.plan.specs import FitGenerator
from study.plan.stage import Stage
from study.report.table_rows import state_of
from study.stages import fit_generator, fit_tokenizer
from study.submit.jobs import run_job, run_stage
from study.train import checkpoint, loop
from study.train.batch_prefetch import prefetched_batches

HERE = torch.cuda.is_available()
GPU = [pytest.mark.gpu, pytest.mark.skipif(not HERE, reason=f"needs a GPU; {no_card_because() or 'torch finds none'}")]
DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])
OF_A_GPU = pytest.mark.parametrize("device", [pytest.param("cuda", marks=GPU)])  # whose twin is elsewhere
TOLERANCE = {"cpu": 1e-5, "cuda": 1e-3}  # of gradients, against one thread of a processor


@pytest.fixture(autouse=True)
def often_looked_at(monkeypatch):
    """A GPU's training is looked at after every step, as a processor's."""
    monkeypatch.setattr(loop, "CHECK_STEPS", {"cpu": 1, "cuda": 1})


def on(stage, device, inputs=True, **execution):
    """A stage, with its inputs or without, as it is carried out on a device."""
    execution = {"device": device, "threads": 1 if device == "cpu" else 4, **execution}
    spec = dataclasses.replace(stage.spec, compute=dataclasses.replace(stage.spec.compute, **execution))
    sources = {name: on(source, device) for name, source in stage.inputs.items()} if inputs else stage.inputs
    moved = Stage(stage.kind, spec, sources)
    assert moved.fingerprint == stage.fingerprint
    return moved


@pytest.fixture
def plan(tiny_plan, tiny_scale):
    """A tokenizer with every term, and a plain one with a generator, its samples and a judge."""
    scale = aligned_with_everything(tiny_scale)
    tokenizer = dataclasses.replace(scale.tokenizer, gan_start_images=0)
    return tiny_plan(dataclasses.replace(scale, tokenizer=tokenizer, judges=(("efficientnet_lite2", 32),)), 32)


def of_kind(plan, kind):
    """The last stage of a kind, or of an aligned tokenizer."""
    return [stage for stage in plan.stages if stage.kind == kind][-1]


def trained(plan, kind, run_or_copy):
    """A stage that trains, whose inputs are done."""
    stage = of_kind(plan, kind)
    if kind == "fit_generator":
        encode = stage.inputs["latents"]
        run_or_copy([encode.inputs["tokenizer"], encode])
    return stage


def first_step(stage):
    """Moments and loss of the first step of a training, on the processor."""
    apply(stage.spec.compute)
    if isinstance(stage.spec, FitGenerator):
        state = fit_generator.build(stage.spec)
        state["generator"].final_layer.linear.weight.data.fill_(0.01)  # 0 at first, which hides the blocks
        step = fit_generator.step_function(stage.spec, state, read_latents(stage.inputs["latents"]))
    else:
        networks = fit_tokenizer.build(stage.spec)
        state = fit_tokenizer.training_state(stage.spec, networks)
        step = fit_tokenizer.step_function(stage.spec, networks, state)
    loss = step(0)
    moments = {name: tensor.cpu() for name, tensor in checkpoint.pack(state).items() if name.endswith("exp_avg")}
    return {**moments, "loss": loss.cpu()}


def assert_close(found, expected, tolerance):
    """Compare first steps by the largest gradient of each network: what is 0 except for rounding differs in all its
    digits."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        network = name.partition("/")[0]
        largest = max(float(each.abs().max()) for key, each in expected.items() if key.partition("/")[0] == network)
        assert (found[name] - tensor).abs().max() <= tolerance * largest, name


# The same numbers


@DEVICES
@pytest.mark.parametrize("kind", ["fit_tokenizer", "fit_generator"])
def test_a_step_is_that_of_one_thread_of_a_processor(kind, device, plan, run_or_copy):
    """The twin of a GPU is two threads."""
    stage = trained(plan, kind, run_or_copy)
    otherwise = {"threads": 2} if device == "cpu" else {}
    assert_close(first_step(on(stage, device, **otherwise)), first_step(on(stage, "cpu")), TOLERANCE[device])


@DEVICES
def test_a_step_is_the_same_twice_to_the_last_bit(device, plan, run_or_copy):
    for kind in ("fit_tokenizer", "fit_generator"):
        stage = on(trained(plan, kind, run_or_copy), device)
        once, again = first_step(stage), first_step(stage)
        assert all(torch.equal(once[name], again[name]) for name in once)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert os.environ[CUBLAS] in (":4096:8", ":16:8")


@DEVICES
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("execution", [{"microbatch_images": 2}, {"checkpointing": True}], ids=str)
def test_micro_batches_and_checkpointing_change_no_gradient(execution, precision, device, plan, run_or_copy):
    stage = trained(plan, "fit_generator", run_or_copy)
    spec = dataclasses.replace(stage.spec, compute=dataclasses.replace(stage.spec.compute, precision=precision))
    stage = Stage(stage.kind, spec, stage.inputs, noted=stage.fingerprint)

    def step(**changes):
        compute = dataclasses.replace(spec.compute, device=device, **changes)
        return first_step(
            Stage(stage.kind, dataclasses.replace(spec, compute=compute), stage.inputs, stage.fingerprint)
        )

    assert_close(step(**execution), step(), 1e-5 if precision == "float32" else 0.05)


@pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=[*GPU, pytest.mark.slow])]
)
def test_compiled_blocks_change_no_gradient(device, plan, run_or_copy):
    stage = trained(plan, "fit_generator", run_or_copy)
    assert_close(first_step(on(stage, device, compile=True)), first_step(on(stage, device)), 1e-3)


@DEVICES
def test_pictures_latents_and_scores_are_those_of_a_processor(device, plan, run_or_copy, tmp_path):
    """Every stage but the trainings, from what the processor left before it."""
    run_or_copy(plan.stages)
    for kind in ("encode", "reconstruct", "sample", "judge"):
        stage = of_kind(plan, kind)
        folder = tmp_path / kind
        folder.mkdir()
        moved = on(stage, device)
        record = all_stages.execute(moved, Workspace(folder, None, kind, lambda *_: None))
        if kind == "encode":
            (ours,), (theirs,) = (list(path.glob("latents-*.safetensors")) for path in (folder, stage.folder))
            found, expected = load_tensors(ours), load_tensors(theirs)
            for name in ("mean", "std"):
                torch.testing.assert_close(found[name], expected[name], rtol=1e-2, atol=1e-2)
        elif kind == "judge":
            for name, value in stage.record()["metrics"].items():
                if isinstance(value, float):
                    assert record["metrics"][name] == pytest.approx(value, rel=2e-2, abs=1e-3), name
        else:
            for chunk in range(len(chunk_rows(stage.spec))):
                found, expected = (read_chunk(path, chunk).int() for path in (folder, stage.folder))
                assert (found - expected).abs().max() <= 2  # of 255


# The same whatever happens


@OF_A_GPU
@pytest.mark.parametrize(
    ("kind", "execution"), [("fit_tokenizer", {}), ("fit_generator", {}), ("fit_generator", {"compile": True})]
)
def test_a_training_that_is_stopped_goes_on_with_the_same_bits(kind, execution, device, plan, run_or_copy, monkeypatch):
    """Its twins are in tests/study/stages/."""
    stage = on(trained(plan, kind, run_or_copy), device, inputs=False, **execution)
    assert same_in_pieces(stage, monkeypatch, images=24, attempts=3)


@OF_A_GPU
def test_a_stop_during_a_backward_pass_waits_for_the_end_of_the_step(device, plan, run_or_copy, monkeypatch):
    """Its twin is in tests/study/submit/test_faults.py."""
    stage = on(trained(plan, "fit_generator", run_or_copy), device, inputs=False)
    backward, calls = torch.Tensor.backward, []

    def signalled(tensor, *arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return backward(tensor, *arguments, **options)

    run_stage(stage)
    whole = weights(stage.folder)
    for path in (*stage.folder.glob("record*.json"), *stage.folder.glob("*.safetensors")):
        path.unlink()
    monkeypatch.setattr(torch.Tensor, "backward", signalled)
    with stop_on_signals(), pytest.raises(Interrupted):
        run_stage(stage)
    assert [path.name for path in stage.folder.glob("checkpoint-*")] == ["checkpoint-000000000024.safetensors"]
    monkeypatch.setattr(torch.Tensor, "backward", backward)
    stop_requested.clear()
    run_stage(stage)
    assert weights(stage.folder) == whole


@DEVICES
def test_a_generator_that_runs_out_of_memory_says_so_and_goes_on_in_smaller_pieces(
    device, plan, run_or_copy, monkeypatch
):
    job = next(job for job in plan.jobs if job.kind == "generator" and job.stages[0] == of_kind(plan, "fit_generator"))
    moved = [on(stage, device, inputs=False) for stage in job.stages]
    job = dataclasses.replace(job, stages=tuple(moved))
    trained(plan, "fit_generator", run_or_copy)
    loss_function = fit_generator.loss_function

    def hungry(recipe):
        loss = loss_function(recipe)

        def of(predict, data, *others):
            if len(data) > 2:
                torch.empty(2**50, device=data.device)
            return loss(predict, data, *others)

        return of

    monkeypatch.setattr(fit_generator, "loss_function", hungry)
    assert run_job(job) == []
    planned = next(one for one in plan.runs if one.fit == job.stages[0])
    state, reason, _ = state_of(planned, planned.results[0].judges[0])
    assert state == "failed"
    assert ("OutOfMemoryError: CUDA out of memory" if device == "cuda" else "you tried to allocate") in reason
    assert len(run_job(_in_microbatches(job, 2))) == len(job.stages)
    record = job.stages[0].record()
    assert record["provenance"]["microbatch_images"] == 2
    assert state_of(planned, planned.results[0].judges[0])[0] == "done"


# Processes and memory


@DEVICES
def test_batches_arrive_as_they_were_made_while_the_next_ones_are_made(device):
    images = torch.arange(480.0).view(20, 3, 2, 4).to(memory_format=torch.channels_last)
    batch = prefetched_batches(lambda n: (images[n : n + 2], torch.tensor([n])), 2, device)
    for start in (0, 2, 4, 2, 4, 10):  # falls back once
        pixels, number = batch(start)
        assert pixels.device.type == device and pixels.stride() == images[:2].stride()
        assert torch.equal(pixels.cpu(), images[start : start + 2]) and number.item() == start


@DEVICES
def test_a_group_of_one_process_trains_as_none_does(device, plan, run_or_copy, monkeypatch):
    """NCCL's collectives, and gradients in DDP's buckets, as several processes have them; gloo's on a processor."""
    stages = [on(trained(plan, kind, run_or_copy), device) for kind in ("fit_tokenizer", "fit_generator")]
    alone = [first_step(stage) for stage in stages]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    variables = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(distributed, "rank_and_world_size", lambda: (0, 2))  # of two the other one is left out
    monkeypatch.setattr(fit_generator, "world_size", lambda: 2)
    with distributed.process_group(device):
        assert torch.distributed.get_backend() == ("nccl" if device == "cuda" else "gloo")
        grouped = [first_step(stage) for stage in stages]
    for found, expected in zip(grouped, alone, strict=True):
        assert_close(found, expected, TOLERANCE[device])


@pytest.mark.gpu
@pytest.mark.skipif(not HERE, reason=f"needs a GPU; {no_card_because() or 'torch finds none'}")
def test_what_jobs_would_find_is_what_torch_finds():
    """Its twin with made-up files and variables is tests/study/core/test_cards.py."""
    from study.core.cards import cards

    assert len(cards()) == torch.cuda.device_count()
    assert cards()[0].name == torch.cuda.get_device_name(0)
