"""The doctor names each thing that a study lacks, tries its steps, and keeps the rates for plans."""

import dataclasses
import re
from functools import partialmethod
from types import SimpleNamespace

import pytest
import torch
from made_up import COMPUTE, TINY, draw_pictures, made_cards
from torch import nn
from torch._dynamo.utils import counters

from study.core import cards
from study.core.files import read_json, write_json
from study.core.paths import study_root
from study.doctor import machine, run, steps
from study.doctor.__main__ import main
from study.doctor.options import Doctor
from study.plan.estimate import device_of, estimated_seconds, has_rates, note_cluster
from study.submit.options import Sweep
from study.submit.prepare import prepare
from study.submit.slurm import SlurmRefused

SETTINGS = TINY[3::2]  # of a sweep that takes seconds, with the classifier as its judge


@pytest.fixture
def options(tmp_path):
    """Of the tiny study on made-up pictures, without steps."""
    return Doctor(scale="smoke", data=str(draw_pictures(tmp_path / "pictures")), set=tuple(SETTINGS), steps=False)


@pytest.fixture
def plan(options):
    return prepare(Sweep(scale="smoke", data=options.data, set=options.set, dry_run=True))


@pytest.fixture
def examined(capsys):
    """`examined(options)`: exit code, the lines of what is lacking, and all that is printed."""

    def examine(options):
        capsys.readouterr()
        code = run.examine(options)
        out = capsys.readouterr().out
        _, _, lacking = out.partition("lacking:\n")
        return code, [line.strip() for line in lacking.splitlines()], out

    return examine


def test_a_machine_that_lacks_nothing_is_0(examined, options):
    code, lacking, out = examined(options)
    assert (code, lacking) == (0, [])
    assert "nothing is lacking" in out
    assert f"torch {torch.__version__.partition('+')[0]}" in out


def test_the_command_ends_with_the_code_and_a_wrong_option_is_one_line(called, options, monkeypatch):
    monkeypatch.setattr(machine, "_free_gb", lambda folder: 0.0)
    arguments = ["--scale", "smoke", "--data", options.data, "--no-steps"]
    done = called(main, *arguments, *(word for text in SETTINGS for word in ("--set", text)))
    assert done.returncode == 3 and "disk: " in done.stdout
    wrong = called(main, "--scale", "smok")
    assert wrong.returncode == 2 and wrong.stderr == "study.doctor: unknown scale 'smok'; nearest: smoke, desk\n"


def test_each_lack_is_named(examined, options, monkeypatch, tmp_path):
    monkeypatch.setenv("STUDY_WEIGHTS", str(tmp_path / "none"))
    monkeypatch.setattr(cards, "_found", lambda: ((), "there is no device file of one"))
    monkeypatch.setattr(machine, "_free_gb", lambda folder: 1e-3)
    version = machine._version
    monkeypatch.setattr(machine, "_version", lambda name: "" if name == "torchdiffeq" else version(name))
    settings = ("device=cuda", "judges=('inception', 0),", "evaluation.perceptual_net=vgg", "execution.compile=True")
    monkeypatch.setattr("study.core.compute.no_compiler_because", lambda device: "the package triton")
    code, lacking, _ = examined(dataclasses.replace(options, data=None, scale="imagenet256", set=settings))
    assert code == 3
    for start in (
        "the data: give imagenet as a folder",
        "a GPU: this machine has none, for there is no device file of one",
        "the package triton: execution.compile needs it",
        "the judge 'inception': weights-inception",
        "the foundation model 'dinov2'",
        "the package torchdiffeq (pip install torchdiffeq)",
        "disk: ",
    ):
        assert sum(line.startswith(start) for line in lacking) == 1, start


def test_a_card_that_emulates_bfloat16_is_named_where_the_scale_has_no_other(examined, options, monkeypatch):
    monkeypatch.setattr(cards, "_found", lambda: (made_cards(1, name="Tesla T4", bfloat16=False), ""))
    slow = dataclasses.replace(options, set=(*SETTINGS, "device=cuda", "precision=bfloat16"))
    code, lacking, out = examined(slow)
    assert code == 3
    assert [line.partition(":")[0] for line in lacking] == ["bfloat16"] and "Tesla T4" in lacking[0]
    assert "Tesla T4, 80 GiB" in out
    scale = prepare(Sweep(scale="gpu", dry_run=True, data=options.data, resolution=32)).scale
    assert scale.precision == "float32"  # which has another
    monkeypatch.setattr(cards, "_found", lambda: ((), "none"))  # a login node that sees the same study root
    assert device_of(dataclasses.replace(COMPUTE, device="cuda")) == "Tesla T4"


# Steps


@pytest.fixture
def seconds(monkeypatch):
    """Steps are not timed for long."""
    monkeypatch.setattr(steps, "STEPS", 1)


def test_a_processor_makes_a_step_of_every_stage_and_plans_use_its_rates(examined, options, plan, seconds):
    before = estimated_seconds(plan.stages, device_of(plan.compute))
    code, _, out = examined(dataclasses.replace(options, steps=True))
    assert code == 0
    for title in ("fit_tokenizer f4d4", "fit_tokenizer f4d4-lite0", "encode f4d4", "reconstruct f4d4", "sample Light"):
        assert re.search(rf"^{title}\S* +\d+ +[\d.,]+ ", out, re.M), title
    assert "judge classifier: not tried, it is trained on the data first" in out
    device = device_of(plan.compute)
    assert has_rates([stage for stage in plan.stages if stage.kind != "judge"], device)
    assert not has_rates(plan.stages, device)
    assert estimated_seconds(plan.stages, device) != before


def test_blocks_that_a_plan_compiles_are_compiled_in_its_steps(options, seconds, monkeypatch):
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    settings = (*options.set, "execution.compile=True")
    plan = prepare(Sweep(scale="smoke", data=options.data, set=settings, dry_run=True))
    compiled = [stage for stage in plan.stages if stage.spec.compute.compile]
    torch.compiler.reset()
    for stage in steps.distinct(compiled):
        counters.clear()
        assert steps._tried(stage, plan).seconds
        assert counters["stats"]["unique_graphs"] == 1


def test_a_step_that_is_too_much_for_a_processor_is_not_tried(plan, monkeypatch):
    monkeypatch.setattr(steps, "LONGEST_SECONDS", 0.0)
    monkeypatch.setattr(steps, "_timed", lambda make, device: pytest.fail("a step is made"))
    assert {bool(tried.skipped) and not tried.lacking for _, tried in steps.try_steps(plan)} == {True}


def generator_of(plan):
    return next(stage for stage in plan.stages if stage.kind == "fit_generator")


def out_of_memory_above(images, monkeypatch, of):
    """A step runs out of memory unless so few images go through at a time."""

    def timed(make, device):
        make()
        if of[-1] > images:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return 0.5, 1.25

    monkeypatch.setattr(steps, "_timed", timed)


def test_a_generator_that_does_not_fit_is_told_with_which_micro_batch_it_does(plan, monkeypatch):
    pieces = []

    def made(workload, *_):
        pieces.append(workload.compute.microbatch_images or workload.batch)
        return lambda: None

    monkeypatch.setattr(steps, "generator_step", made)
    out_of_memory_above(2, monkeypatch, pieces)
    tried = steps._tried(generator_of(plan), plan)
    assert pieces == [8, 4, 2]
    assert (tried.images, tried.seconds, tried.peak_gib) == (8, 0.5, 1.25)  # a whole batch, in pieces
    assert tried.lacking.endswith("it fits with --set execution.microbatch_images=2")
    out_of_memory_above(0, monkeypatch, pieces)
    assert "OutOfMemoryError: CUDA out of memory" in steps._tried(generator_of(plan), plan).lacking


def test_a_tokenizer_that_does_not_fit_is_told_how_many_cards_it_takes(plan, monkeypatch):
    batches = []

    def made(workload, recipe, **_):
        batches.append(recipe.batch_images)
        return lambda: None

    monkeypatch.setattr(steps, "tokenizer_step", made)
    out_of_memory_above(2, monkeypatch, batches)
    stage = next(stage for stage in plan.stages if stage.kind == "fit_tokenizer")
    assert "it fits with --set execution.processes=4, a GPU each" in steps._tried(stage, plan).lacking
    assert batches == [8, 4, 2]


def test_what_a_step_raises_is_lacking(plan, monkeypatch):
    def no_kernel(make, device):
        raise RuntimeError("grid_sampler_2d_backward_cuda does not have a deterministic implementation\nhint")

    monkeypatch.setattr(steps, "_timed", no_kernel)
    (tried,) = {tried.lacking for stage, tried in steps.try_steps(plan) if stage.kind == "encode"}
    assert tried.endswith("RuntimeError: grid_sampler_2d_backward_cuda does not have a deterministic implementation")


# Slurm


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A profile, and commands of a Slurm whose jobs run at once, on a node with these changes to its answers."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    profile = tmp_path / "profile.toml"
    profile.write_text('partition = "gpu"\nminutes = 1440\n')
    node, asked = {}, []

    def submit(calls, name, compute, profile):
        ((folder, (function, *arguments)),) = calls.items()
        asked.append((compute.processes, profile.minutes, profile.partition))
        write_json(folder / "submission.json", {"log": "node.log"})
        if node.get("dies"):
            return
        if node.get("refused"):
            raise SlurmRefused("Slurm rejected the jobs: invalid partition")
        function(*arguments)
        content = read_json(folder / "answers.json")
        write_json(folder / "answers.json", {**content, "answers": {**content["answers"], **node}})

    monkeypatch.setattr(run, "submit_workers", submit)
    monkeypatch.setattr(run, "active_workers", lambda folders: {})
    return SimpleNamespace(profile=profile, node=node, asked=asked)


def test_a_node_like_the_login_node_lacks_nothing(examined, options, cluster):
    code, lacking, out = examined(dataclasses.replace(options, cluster=cluster.profile))
    assert (code, lacking) == (0, [])
    assert re.search(r"^node \S+", out, re.M)
    assert cluster.asked == [(1, run.NODE_MINUTES, "gpu")]


@pytest.mark.parametrize(
    ("answers", "line"),
    [
        ({"root_is_shared": False}, "the node n1 does not see"),
        ({"python": "3.9.2"}, "the node n1 runs Python 3.9.2, this machine 3."),
        ({"cards": (), "no_card": "torch finds none"}, "the node n1 gives its job no GPU: torch finds none"),
        ({"weights": False}, "the node n1 does not see the weights in "),
    ],
)
def test_what_a_node_answers_otherwise_is_named(examined, options, cluster, monkeypatch, answers, line, tmp_path):
    monkeypatch.setattr(cards, "_found", lambda: (made_cards(1), ""))
    monkeypatch.setenv("STUDY_WEIGHTS", str(tmp_path))
    cluster.node.update({"host": "n1", **answers})
    code, lacking, _ = examined(dataclasses.replace(options, cluster=cluster.profile, set=(*SETTINGS, "device=cuda")))
    assert code == 3
    assert [one.startswith(line) for one in lacking] == [True], lacking


def test_another_version_of_a_package_on_the_node_is_named(examined, options, cluster):
    cluster.node["packages"] = {**machine.ask("", "cpu").packages, "torch": "1.13.0"}
    code, (line,), _ = examined(dataclasses.replace(options, cluster=cluster.profile))
    assert code == 3 and "has torch 1.13.0, this machine 2." in line


def test_whether_blocks_are_compiled_is_said_and_a_node_that_cannot_is_named(
    examined, options, cluster, monkeypatch, tmp_path
):
    monkeypatch.setattr(cards, "_found", lambda: (made_cards(1), ""))
    monkeypatch.setenv("STUDY_WEIGHTS", str(tmp_path))
    cluster.node.update({"host": "n1", "no_compiler": "the package triton"})
    asking = dataclasses.replace(options, cluster=cluster.profile, set=(*SETTINGS, "device=cuda"))
    code, _, out = examined(asking)
    assert code == 0 and "compiled" not in out
    code, (line,), out = examined(dataclasses.replace(asking, set=(*asking.set, "execution.compile=True")))
    assert code == 3 and "blocks compiled in fit_generator and sample" in " ".join(out.split())
    assert line.startswith("the node n1 cannot compile blocks without the package triton")
    monkeypatch.setattr(machine, "no_compiler_because", lambda device: "a C compiler")
    assert "no blocks compiled without a C compiler" in " ".join(examined(asking)[2].split())


def test_a_cluster_that_gives_no_answer_is_a_lack(examined, options, cluster, monkeypatch):
    asking = dataclasses.replace(options, cluster=cluster.profile)
    cluster.node["dies"] = True
    assert examined(asking)[:2] == (3, ["the job that examines a node ended without an answer: see node.log"])
    cluster.node.clear()
    cluster.node["refused"] = True
    assert examined(asking)[:2] == (3, ["Slurm rejected the jobs: invalid partition"])
    monkeypatch.setenv("PATH", "")
    assert examined(asking)[:2] == (
        3, ["Slurm: --cluster needs the command sbatch, which is not on this machine's PATH"]
    )  # fmt: skip


def test_without_a_gpu_here_plans_use_the_rates_of_the_clusters(plan, monkeypatch):
    monkeypatch.setattr(cards, "_found", lambda: ((), "none"))
    on_gpu = dataclasses.replace(COMPUTE, device="cuda")
    assert device_of(on_gpu) == ""
    note_cluster("Made GPU", 40.0)
    assert device_of(on_gpu) == "Made GPU"
    assert device_of(COMPUTE) != "Made GPU"
    monkeypatch.setattr(cards, "_found", lambda: (made_cards(1, name="Another"), ""))
    assert device_of(on_gpu) == "Another"
    assert (study_root() / "rates").is_dir()
