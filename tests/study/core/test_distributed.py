"""Several processes train the same network as one process, notice when one of them ends, and stop together."""

import dataclasses
import os
import signal
import socket
import time
from types import SimpleNamespace

import pytest
import torch
from forked import CONTEXT
from interrupting import aligned_with_everything
from made_up import COMPUTE, Asking

from models.discriminator import BatchNorm
from models.regularisation import REGULARISERS
from study.core import compute, distributed
from study.core.files import load_tensors, read_json, save_tensors, write_json
from study.core.lease import lease
from study.core.settings import change
from study.core.stopping import Interrupted, stop_requested
from study.core.workspace import Workspace
from study.data import latents as stored_latents
from study.plan.resolve import make_plan
from study.plan.runs import Job, Run
from study.plan.stage import TOKENIZER_WEIGHTS, state_files
from study.stages import fit_generator, fit_tokenizer
from study.submit import jobs
from study.submit.jobs import run_job, run_stage
from study.train import checkpoint, history, loop
from study.train.foundation_features import generator_features


def in_process(rank, count, port, root, work, arguments):
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank), "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port), "STUDY_ROOT": root,
    }  # fmt: skip
    work(*arguments)


def started(count, work, *arguments):
    """Start `work(*arguments)` in `count` processes of one group, as torchrun does."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [
        CONTEXT.Process(target=in_process, args=(rank, count, port, os.environ["STUDY_ROOT"], work, arguments))
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    return processes


def ended(processes, seconds=120):
    for process in processes:
        process.join(seconds)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


def with_processes(stage, **compute):
    spec = dataclasses.replace(stage.spec, compute=dataclasses.replace(stage.spec.compute, **compute))
    return dataclasses.replace(stage, spec=spec)


def one_step(stage, path):
    """Save everything that the first step of a training computes: weights, optimizer moments, running statistics."""
    compute.apply(stage.spec.compute)  # whatever number of threads an earlier test has left
    with distributed.process_group("cpu"):
        if stage.kind == "fit_tokenizer":
            networks = fit_tokenizer.build(stage.spec)
            state = fit_tokenizer.training_state(stage.spec, networks)
            step = fit_tokenizer.step_function(stage.spec, networks, state)
        else:
            state = fit_generator.build(stage.spec)
            state["generator"].final_layer.linear.weight.data.fill_(0.01)  # 0 at first, which hides the blocks
            latents = stage.inputs["latents"]
            features = generator_features(stage.spec, latents.spec)
            step = fit_generator.step_function(
                stage.spec, state, stored_latents.read_latents(latents), features=features
            )
        (loss,) = distributed.average(step(0))
        if distributed.rank() == 0:
            tensors = {name: tensor.clone() for name, tensor in checkpoint.pack(state).items()}
            save_tensors(path, {**tensors, "loss": loss})


def assert_same(path, other_path, tolerance=1e-5):
    """Compare the files of two first steps, without the weights: Adam makes a full step even of a tiny gradient."""
    first, second = load_tensors(path), load_tensors(other_path)
    assert first.keys() == second.keys()
    compared = [name for name in first if name.endswith(("exp_avg", "running_mean", "running_var", "loss"))]
    largest = {name: float(first[name].abs().max()) for name in compared}
    for name in compared:
        # a gradient that is 0 except for rounding, such as a key bias's, is compared with the network's largest one
        in_network = max(size for key, size in largest.items() if key.split("/")[0] == name.split("/")[0])
        assert (first[name] - second[name]).abs().max() < tolerance * max(largest[name], 1e-3 * in_network), name
    return compared


@pytest.fixture
def stages(tiny_plan, tiny_scale):
    """An aligned tokenizer with perceptual term and discriminator from the first image on, and a generator."""
    scale = aligned_with_everything(tiny_scale)
    tokenizer = dataclasses.replace(scale.tokenizer, gan_start_images=0)
    plan = tiny_plan(dataclasses.replace(scale, tokenizer=tokenizer), 32)
    run = Run(tokenizer="f4d4-lite0+" + "+".join(REGULARISERS))
    strict = change(plan.scale, "regularisation.local.threshold", 1.0)
    strict = change(strict, "regularisation.eq.smallest", 0.75)
    generator = Run(tokenizer="f4d4", generator="LightningDiT-XXS/2")
    aligned = make_plan(
        "asked", Asking(generator), change(plan.scale, "generator.repa", "irepa"), plan.data, COMPUTE, "test"
    )
    regularised = make_plan("asked", Asking(run), strict, plan.data, COMPUTE, "test")
    return {
        "plain": next(s for s in tiny_plan().stages if s.kind == "fit_tokenizer"),
        "regularised": regularised.jobs[0].stages[0],
        "tokenizer": next(s for s in plan.stages if s.kind == "fit_tokenizer" and s.spec.foundation),
        "generator": next(s for s in plan.stages if s.kind == "fit_generator"),
        "aligned generator": aligned.jobs[1].stages[0],
    }


@pytest.mark.slow  # takes seconds, but is among the slowest tests
@pytest.mark.parametrize("kind", ["tokenizer", "regularised"])
def test_a_step_of_the_tokenizer_is_the_same_on_two_processes(kind, stages, tmp_path):
    stage = stages[kind]
    one_step(stage, tmp_path / "one")
    assert ended(started(2, one_step, with_processes(stage, processes=2), tmp_path / "two")) == [0, 0]
    compared = assert_same(tmp_path / "one", tmp_path / "two")
    for prefix in ("optimizer/", "discriminator_optimizer/", "discriminator/main"):
        assert any(name.startswith(prefix) for name in compared)


@pytest.mark.parametrize("kind", ["generator", "aligned generator"])
def test_a_step_of_the_generator_is_the_same_on_two_processes_and_in_pieces(kind, stages, tmp_path):
    stage = stages[kind]
    for source in (stage.inputs["latents"].inputs["tokenizer"], stage.inputs["latents"]):
        run_stage(source)
    one_step(stage, tmp_path / "one")
    two = with_processes(stage, processes=2, microbatch_images=2)
    assert ended(started(2, one_step, two, tmp_path / "two")) == [0, 0]
    assert assert_same(tmp_path / "one", tmp_path / "two")
    one_step(with_processes(stage, microbatch_images=2), tmp_path / "pieces")
    assert assert_same(tmp_path / "one", tmp_path / "pieces")
    one_step(with_processes(stage, checkpointing=True), tmp_path / "checkpointed")
    assert assert_same(tmp_path / "one", tmp_path / "checkpointed", tolerance=1e-30)


def test_batch_norm_in_one_process_is_that_of_pytorch():
    torch.manual_seed(0)
    x = torch.randn(4, 3, 5, 5)
    ours, theirs = BatchNorm(3), torch.nn.BatchNorm2d(3)
    assert torch.equal(ours(x), theirs(x))
    assert torch.equal(ours.running_var, theirs.running_var)


def whole_job(stage):
    run_job(Job("tokenizer", "tokenizer", (stage,)))


@pytest.mark.slow
def test_two_processes_make_one_record_and_resume_together(stages, study_root, monkeypatch):
    stage = with_processes(stages["plain"], processes=2)
    assert ended(started(2, whole_job, stage)) == [0, 0]
    assert stage.record()["provenance"]["processes"] == 2
    assert [point["images_seen"] for point in history.read_history(stage.folder)] == list(range(8, 65, 8))
    assert history.read_history(stage.folder)[-1]["loss"] == pytest.approx(stage.record()["cost"]["final_loss"])
    whole = (stage.folder / TOKENIZER_WEIGHTS).read_bytes()
    for name in ("record.json", TOKENIZER_WEIGHTS):
        (stage.folder / name).unlink()
    processes = started(2, slow_job, stage)
    wait_for(lambda: (stage.folder / "lease.json").exists() and "loss" in (stage.folder / "lease.json").read_text())
    os.kill(processes[1].pid, signal.SIGTERM)  # one gets the signal: both save and end
    assert ended(processes) == [0, 0]
    assert stage.interrupted()
    assert list(stage.folder.glob("checkpoint-*"))
    assert ended(started(2, whole_job, stage)) == [0, 0]
    assert (stage.folder / TOKENIZER_WEIGHTS).read_bytes() == whole


def test_a_process_that_is_stopped_while_it_waits_for_a_lease_stops_all(stages, study_root):
    stage = with_processes(stages["plain"], processes=2)
    with lease(stage.folder):
        processes = started(2, waiting_job, stage)
        wait_for(lambda: (stage.folder / "waits").exists())
        os.kill(processes[0].pid, signal.SIGTERM)
        assert ended(processes) == [0, 0]


def waiting_job(stage):
    def noted(folder):
        (folder / "waits").touch()
        return lease(folder)

    jobs.lease = noted
    whole_job(stage)


def slow_job(stage):
    steps = fit_tokenizer.step_function

    def slowed(*arguments):
        step = steps(*arguments)

        def slow(images_seen):
            time.sleep(0.5)
            return step(images_seen)

        return slow

    fit_tokenizer.step_function = slowed
    whole_job(stage)


def wait_for(what, seconds=60):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
def test_when_one_process_is_killed_the_others_end_and_the_stage_fails(stages, study_root):
    stage = with_processes(stages["plain"], processes=2)
    processes = started(2, slow_job, stage)
    wait_for(lambda: (stage.folder / "lease.json").exists() and "loss" in (stage.folder / "lease.json").read_text())
    processes[1].kill()
    processes[0].join(60)
    assert processes[0].exitcode == 1
    assert stage.failure()["reason"] == "another process of the job ended (killed, or out of memory?): see its log"


def fails_on_rank_zero():
    with distributed.process_group("cpu"):
        kind = ZeroDivisionError if distributed.rank() == 0 else distributed.RankZeroFailed
        with pytest.raises(kind, match="division"):
            distributed.on_rank_zero(lambda: 1 / 0)
        assert distributed.on_rank_zero(lambda: {"a": [1, None]}) == {"a": [1, None]}
        assert distributed.all_gather(distributed.rank() * "x") == ["", "x", "xx"]
        assert list(distributed.own_share(range(7))) == list(range(distributed.rank(), 7, 3))


def test_results_and_failures_of_rank_0_reach_the_other_processes(study_root):
    assert ended(started(3, fails_on_rank_zero)) == [0, 0, 0]


def asked_to_stop_at_step_40(folder):
    """A training as on GPUs, where no step reads the loss; the second process is asked, and its clock runs fast."""
    loop.CHECK_STEPS, loop.LOOK_SECONDS = {"cpu": 10**6}, 1.0
    steps, looks, all_gather = [], [], loop.all_gather
    loop.all_gather = lambda value: looks.append(value) or all_gather(value)
    with distributed.process_group("cpu"):
        asked = distributed.rank() == 1
        if asked:
            loop.time = SimpleNamespace(monotonic=lambda: 100 * time.monotonic())

        def step(images_seen):
            steps.append(images_seen)
            time.sleep(0.02)
            if asked and len(steps) == 40:
                stop_requested.set()
            return torch.tensor(1.0)

        out, state = Workspace(folder, None, "training", print), {"layer": torch.nn.Linear(1, 1)}
        with pytest.raises(Interrupted):
            loop.train(out, state, step, budget_images=5000, batch_images=1, device="cpu")
        write_json(folder / f"{distributed.rank()}.json", [len(steps), len(looks)])


def test_processes_look_for_a_stop_by_the_seconds_of_the_first_and_stop_after_the_same_step(tmp_path):
    assert ended(started(2, asked_to_stop_at_step_40, tmp_path)) == [0, 0]
    (steps, looks), second = (read_json(tmp_path / f"{rank}.json") for rank in (0, 1))
    assert [steps, looks] == second
    assert list(state_files(tmp_path)) == [steps]
    assert 40 <= steps <= 40 + 50  # 1 s apart are 50 steps at most
    assert looks <= 20  # mostly after 1, 3, 7, 15, 31 and 63 steps


def stuck_while_another_dies(folder, how):
    """Rank 0 waits as one does in NCCL, where nothing tells it that the second has ended."""
    distributed.GRACE_SECONDS = 0.5
    with distributed.process_group("cpu"):
        distributed.barrier()
        (folder / str(distributed.rank())).touch()
        if distributed.rank() == 1 and how == "fails":
            raise SystemExit(1)
        time.sleep(600)


@pytest.mark.parametrize("how", ["fails", "is killed"])
def test_a_process_that_waits_where_it_notices_nothing_ends_when_another_does(how, tmp_path):
    processes = started(3, stuck_while_another_dies, tmp_path, how)
    wait_for(lambda: len(list(tmp_path.iterdir())) == 3)
    if how == "is killed":
        processes[1].kill()
    assert ended(processes, 30) == [1, 1 if how == "fails" else -signal.SIGKILL, 1]
