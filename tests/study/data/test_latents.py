"""Latents on disk: the same files from any number of processes; shards of another stage are refused."""

import dataclasses
import json
import os
import shutil
import socket

import numpy as np
import pytest
import torch
from forked import CONTEXT
from safetensors import SafetensorError

from study.core import distributed
from study.core.files import load_metadata, load_tensors, read_json, remove_tree, save_tensors, write_json
from study.core.lease import lease
from study.core.randomness import make_rng
from study.core.stopping import Interrupted, stop_requested
from study.core.workspace import Workspace
from study.data import latents as stored_latents
from study.data.datasets import load_images
from study.data.image_folder import CROP
from study.plan.checks import check_scale
from study.plan.scales import imagenet256
from study.plan.stage import TOKENIZER_WEIGHTS, snapshot_file, stage_from_record
from study.stages import encode, fit_generator, fit_tokenizer, sample
from study.submit.jobs import run_stage


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(stored_latents, "SHARD_IMAGES", 20)


@pytest.fixture
def stage(tiny_plan, run_or_copy):
    """A finished encode stage: 48 images in three shards."""
    fit, _, latents = tiny_plan().jobs[0].stages
    run_or_copy([fit])
    run_stage(latents)
    return latents


@pytest.fixture
def sampled(tiny_plan, tiny_scale, run_or_copy):
    """A plan that stores samples, its tokenizer and latents done."""
    plan = tiny_plan(dataclasses.replace(tiny_scale, stored_latents="sample"))
    fit, _, latents = plan.jobs[0].stages
    run_or_copy([fit])
    run_stage(latents)
    return plan


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("latents-*"))}


def test_latents_are_the_same_in_several_shards_as_in_one(stage, monkeypatch):
    monkeypatch.setattr(encode, "BATCH", 4)  # divides every shard: convolutions round by the size of the batch
    remove_tree(stage.folder)
    means = run_stage(stage)["latent"]["mean"]
    rows, views = np.random.default_rng(0).permutation(48)[:30], torch.arange(30) % 2
    several = stored_latents.read_latents(stage)
    assert [path[:13] for path in files(stage.folder)] == ["latents-00000", "latents-00001", "latents-00002"]
    parts = [several.rows(name, rows, views) for name in ("mean", "std")]
    remove_tree(stage.folder)
    monkeypatch.setattr(stored_latents, "SHARD_IMAGES", 8192)
    assert run_stage(stage)["latent"]["mean"] == pytest.approx(means, rel=1e-9)
    for part, name in zip(parts, ("mean", "std"), strict=True):
        assert torch.equal(stored_latents.read_latents(stage).rows(name, rows, views), part)


def test_shards_and_record_describe_their_content(stage):
    record = stage.record()
    assert (record["images"], record["views"], record["shards"], record["crop"]) == (48, 2, 3, CROP)
    metadata = json.loads(load_metadata(stored_latents.shard_path(stage.folder, 2))["shard"])
    assert metadata["tokenizer"] == record["inputs"]["tokenizer"] == stage.inputs["tokenizer"].fingerprint
    assert (metadata["data"], metadata["stored"]) == (stage.spec.data.content, "posterior")
    assert (metadata["shard"], metadata["rows"]) == (2, [40, 48])
    labels = load_images(stage.spec.data, "train").labels[:48]
    np.testing.assert_array_equal(stored_latents.read_latents(stage).labels, labels)


def encode_as_one_of_two(environment, spec, folder, tokenizer):
    os.environ |= environment
    stored_latents.SHARD_IMAGES = 20
    with distributed.process_group("cpu"):
        rank = distributed.rank()
        with lease(folder / f"lease-{rank}") as held:
            inputs = {"tokenizer": stage_from_record("fit_tokenizer", tokenizer)}
            record = encode.run(spec, inputs, Workspace(folder, held, "encode", write_record=print))
    record.pop("cost")
    write_json(folder / f"record-{rank}.json", record)


@pytest.mark.parametrize("stored", [pytest.param("posterior", marks=pytest.mark.slow), "sample"])
def test_two_processes_write_the_same_files_as_one(stored, tiny_plan, tiny_scale, study_root, tmp_path):
    plan = tiny_plan(dataclasses.replace(tiny_scale, stored_latents=stored))
    fit, _, latents = plan.jobs[0].stages
    run_stage(fit)
    record = run_stage(latents)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"STUDY_ROOT": str(study_root), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [
        CONTEXT.Process(
            target=encode_as_one_of_two, args=({**group, "RANK": str(n)}, latents.spec, tmp_path, fit.fingerprint)
        )
        for n in range(2)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
    assert [process.exitcode for process in started] == [0, 0]
    assert files(tmp_path) == files(latents.folder)
    for n in range(2):
        found = read_json(tmp_path / f"record-{n}.json")
        assert found == {name: record[name] for name in found}


def test_complete_shards_are_kept_and_damaged_or_foreign_ones_are_encoded_again(stage, monkeypatch):
    whole, record = files(stage.folder), stage.record()
    (stage.folder / "record.json").unlink()
    first, second, third = (stored_latents.shard_path(stage.folder, index) for index in range(3))
    second.write_bytes(second.read_bytes()[:-5])
    shutil.copy(first, third)
    kept = first.stat().st_mtime_ns
    made = []
    original = encode._encode
    monkeypatch.setattr(encode, "_encode", lambda *a: made.append(a[3].tolist()) or original(*a))
    assert run_stage(stage)["latent"] == record["latent"]
    assert files(stage.folder) == whole
    assert first.stat().st_mtime_ns == kept
    assert made == [list(range(20, 40)), list(range(40, 48))]


def test_a_stopped_encoding_resumes_with_the_next_shard(stage, monkeypatch):
    whole = files(stage.folder)
    remove_tree(stage.folder)
    original, made = encode._encode, []

    def stopping(*arguments):
        made.append(arguments[3][0])
        if len(made) == 2:
            stop_requested.set()
        return original(*arguments)

    monkeypatch.setattr(encode, "_encode", stopping)
    with pytest.raises(Interrupted):
        run_stage(stage)
    assert list(files(stage.folder)) == ["latents-00000.safetensors"]
    stop_requested.clear()
    run_stage(stage)
    assert made == [0, 20, 20, 40]
    assert files(stage.folder) == whole


def test_no_process_writes_a_record_when_another_was_stopped(stage, monkeypatch):
    (stage.folder / "record.json").unlink()
    monkeypatch.setattr(encode, "all_gather", lambda stopped: [stopped, True])
    with pytest.raises(Interrupted):
        run_stage(stage)
    assert stage.record() is None


def test_a_stored_sample_is_drawn_from_the_posterior_and_gets_no_further_noise(sampled, tiny_plan):
    posterior, stage = tiny_plan().jobs[0].stages[2], sampled.jobs[0].stages[2]
    run_stage(posterior)
    assert stage.fingerprint != posterior.fingerprint
    latents, before = stored_latents.read_latents(stage), stored_latents.read_latents(posterior)
    rows, views = np.arange(48), torch.arange(48) % 2
    noise = torch.stack([torch.randn(latents.shape, generator=make_rng(0, "latent", 2 * i + i % 2)) for i in range(48)])
    mean, std = (before.rows(name, rows, views).float() for name in ("mean", "std"))
    raw = latents.rows("sample", rows, views).float()
    torch.testing.assert_close(raw, mean + std * noise, rtol=2e-3, atol=2e-3)
    assert not torch.equal(latents.rows("sample", rows, 0 * views), latents.rows("sample", rows, 0 * views + 1))
    drawn = latents.sample(rows, views, noise)
    assert torch.equal(drawn, latents.sample(rows, views, 2 * noise))
    assert torch.equal(drawn, (raw - latents.channel_mean) / latents.channel_std)
    every = torch.cat([latents.rows("sample", rows, 0 * views + view) for view in range(2)]).double()
    std, mean = torch.std_mean(every, dim=(0, 2, 3), correction=0)
    kept = stage.record()["latent"]
    assert kept["mean"] == pytest.approx(mean.tolist())
    assert kept["std"] == pytest.approx(std.tolist())


def test_generators_train_on_stored_samples(sampled):
    fit, *_, last = sampled.jobs[1].stages
    run_stage(fit)
    assert run_stage(last)["sheet"]


# What is refused


def other_tokenizers(tiny_plan, tiny_scale):
    """A finished encode stage of another seed's tokenizer."""
    fit, _, latents = tiny_plan(dataclasses.replace(tiny_scale, tokenizer_seeds=(1,))).jobs[0].stages
    run_stage(fit)
    run_stage(latents)
    return latents


def test_a_foreign_shard_is_named(stage, tiny_plan, tiny_scale):
    foreign = other_tokenizers(tiny_plan, tiny_scale)
    path = stored_latents.shard_path(stage.folder, 1)
    shutil.copy(stored_latents.shard_path(foreign.folder, 1), path)
    fingerprint = foreign.inputs["tokenizer"].fingerprint
    message = rf"latents-00001\S* does not belong to this stage: its tokenizer is {fingerprint}, .*"
    with pytest.raises(ValueError, match=rf"{message}delete {stage.folder}"):
        stored_latents.read_latents(stage)
    save_tensors(path, {name: tensor.clone() for name, tensor in load_tensors(path).items()})  # says not whose it is
    with pytest.raises(ValueError, match="does not belong to this stage: its tokenizer is None"):
        stored_latents.read_latents(stage)


def change_tensor(path, name, change):
    tensors = {key: tensor.clone() for key, tensor in load_tensors(path).items()}
    tensors[name] = change(tensors[name])
    save_tensors(path, tensors, load_metadata(path))


BROKEN_SHARDS = {
    "of another place": (lambda path: shutil.copy(path.with_name("latents-00000.safetensors"), path), "its shard is 0"),
    "of fewer rows": (lambda path: change_tensor(path, "mean", lambda t: t[:-1]), r"mean float16 \(19, 2, 4, 4, 4\)"),
    "of another grid": (lambda path: change_tensor(path, "std", lambda t: t[..., :-1]), "expected .*std float16"),
    "of another type": (lambda path: change_tensor(path, "mean", torch.Tensor.float), "holds .*mean float32"),
    "without labels": (lambda path: change_tensor(path, "labels", lambda t: t[:0]), r"holds labels int64 \(0,\)"),
}


@pytest.mark.parametrize("what", BROKEN_SHARDS)
def test_a_shard_that_does_not_fit_is_named(what, stage):
    breaks, message = BROKEN_SHARDS[what]
    breaks(stored_latents.shard_path(stage.folder, 1))
    with pytest.raises(ValueError, match=rf"latents-00001.*{message}.*delete {stage.folder}") as caught:
        stored_latents.read_latents(stage)
    assert len(str(caught.value).splitlines()) == 1


def swap_statistics(stage):
    record = stage.record()
    record["latent"]["mean"].reverse()
    write_json(stage.folder / "record.json", record)


def test_swapped_statistics_are_refused_before_a_step(stage, tiny_plan, monkeypatch):
    swap_statistics(stage)
    monkeypatch.setattr(fit_generator, "train", lambda *_, **__: pytest.fail("trained"))
    training = tiny_plan().jobs[1].stages[0]
    message = r"record.json are not those of the latents in the same folder: delete the folder"
    with pytest.raises(ValueError, match=message):
        run_stage(training)
    assert "not those of the latents" in training.failure()["reason"]


@pytest.mark.parametrize("left", [0, 7, 40, -3])
def test_a_truncated_file_is_reported_before_a_step(left, stage, tiny_plan):
    fit, training = stage.inputs["tokenizer"], tiny_plan().jobs[1].stages[0]
    snapshot = snapshot_file(training.folder, "ema", 32)
    for path, reader in (
        (stored_latents.shard_path(stage.folder, 1), lambda: stored_latents.read_latents(stage)),
        (fit.folder / TOKENIZER_WEIGHTS, lambda: fit_tokenizer.trained_tokenizer(fit)),
        (snapshot, lambda: fit_generator.trained_generator(training, 32, "ema")),
    ):
        if path == snapshot:
            run_stage(training)
        whole = path.read_bytes()
        path.write_bytes(whole[:left])
        with pytest.raises(SafetensorError, match=rf"{path} is damaged, delete its folder") as caught:
            reader()
        assert len(str(caught.value).splitlines()) == 1
        path.write_bytes(whole)


def test_a_generator_is_not_sampled_with_other_statistics(stage, tiny_plan):
    training, *_, last = tiny_plan().jobs[1].stages
    run_stage(training)
    path = snapshot_file(training.folder, "ema", last.spec.images_seen)
    metadata = json.loads(load_metadata(path)["latents"])
    assert metadata == stored_latents.latent_statistics(stage)
    sample.sampler(last.spec, last.inputs)
    swap_statistics(stage)
    with pytest.raises(ValueError, match=rf"{path} was trained on latents .* another mean and std") as caught:
        sample.sampler(last.spec, last.inputs)
    assert len(str(caught.value).splitlines()) == 1


def test_the_papers_scale_stores_samples_and_another_value_is_refused(tiny_plan, tiny_scale):
    assert imagenet256().stored_latents == "sample"
    with pytest.raises(ValueError, match="stored_latents must be one of posterior, sample, got 'samples'; nearest"):
        check_scale(dataclasses.replace(tiny_scale, stored_latents="samples"))
    posterior, sample = (
        tiny_plan(dataclasses.replace(tiny_scale, stored_latents=stored)).jobs[0].stages
        for stored in ("posterior", "sample")
    )
    assert posterior[0] == sample[0]
    assert posterior[2] != sample[2]
