"""Drawing and judging are apart: pictures stay, or are made again as they were."""

import dataclasses

import pytest
import torch

from models.autoencoder import Autoencoder
from models.lightningdit import LightningDiT
from study.core.lease import lease
from study.data.picture_chunks import picture_files
from study.judge.judges import all_features
from study.manage import judged_pictures
from study.plan import resolve
from study.report.table_rows import rows_of
from study.stages import decoding
from study.stages.fit_tokenizer import trained_tokenizer
from study.submit.jobs import run_job, run_stage


@pytest.fixture
def judged_by(tiny_plan, tiny_scale):
    """`judged_by(judges)`: the plan of the tiny study with these judges; further arguments change its evaluation."""

    def plan(*judges, **evaluation):
        changed = dataclasses.replace(tiny_scale.evaluation, **evaluation)
        return tiny_plan(dataclasses.replace(tiny_scale, judges=judges, evaluation=changed))

    return plan


CLASSIFIER, LITE2 = ("classifier", 0), ("efficientnet_lite2", 32)


@pytest.fixture
def calls(monkeypatch):
    """The names of networks of the study that were called: those of judges are not among them."""
    made = []
    for network, method in ((LightningDiT, "forward"), (Autoencoder, "encode"), (Autoencoder, "decode")):
        original = getattr(network, method)

        def called(self, *arguments, original=original, name=network.__name__):
            made.append(name)
            return original(self, *arguments)

        monkeypatch.setattr(network, method, called)
    return made


@pytest.fixture
def made(run_or_copy):
    """`made(plan)`: the plan, of which every stage is done."""

    def make(plan):
        run_or_copy(plan.stages)
        return plan

    return make


def run(plan):
    for job in plan.jobs:
        run_job(job)
    assert not any(job.missing() for job in plan.jobs)
    return plan


def pictures(plan):
    stages = [stage for stage in plan.stages if stage.kind in ("sample", "reconstruct")]
    return {stage: [path.read_bytes() for path in picture_files(stage.folder)] for stage in stages}


def numbers(plan, judge, tmp_path):
    """What a judge says of each run, apart from how long it took."""
    rows = [row for row in rows_of(plan, tmp_path) if row.extractor == judge]
    return [(row.run, row.images_seen, row.rfid, row.gfid, row.kid, row.psnr, row.reference_hash) for row in rows]


def test_a_judge_added_to_a_finished_study_draws_nothing(judged_by, made, calls):
    before = made(judged_by(CLASSIFIER))
    calls.clear()
    after = run(judged_by(CLASSIFIER, LITE2))
    assert calls == []
    assert {stage.kind for stage in {*after.stages} - {*before.stages}} == {"judge"}
    assert run(judged_by(CLASSIFIER, LITE2, reference_images=20)) and calls == []


def test_pictures_that_were_deleted_are_made_again_as_they_were(judged_by, made, calls, tmp_path):
    whole = made(judged_by(CLASSIFIER, LITE2))
    first, by_lite2 = pictures(whole), numbers(whole, "efficientnet_lite2", tmp_path)
    assert len(first) == 3 and all(first.values())
    records = {stage: stage.record() for stage in first}
    for stage in whole.stages:
        if stage.kind == "judge" and stage.spec.judge.name == "efficientnet_lite2":
            (stage.folder / "record.json").unlink()
    for path in judged_pictures([]):
        path.unlink()
    assert not any(pictures(whole).values())
    calls.clear()
    run(whole)
    assert {*calls} == {"LightningDiT", "Autoencoder"}
    assert pictures(whole) == first and {stage: stage.record() for stage in first} == records
    assert numbers(whole, "efficientnet_lite2", tmp_path) == by_lite2


def test_pictures_above_the_limit_do_not_stay_unless_asked(judged_by, made, monkeypatch, tmp_path):
    kept = made(judged_by(CLASSIFIER))
    first, scores = pictures(kept), numbers(kept, "classifier", tmp_path)
    for stage in kept.stages:
        if stage.kind == "judge":
            (stage.folder / "record.json").unlink()
    monkeypatch.setattr(resolve, "KEPT_BYTES", 10_000)  # three chunks of ten samples of 16 px at two marks
    asked = judged_by(CLASSIFIER, keep_samples=True)
    assert asked.stages == kept.stages
    run(asked)
    assert pictures(asked) == first
    (kept.stages[3].folder / "record.json").unlink()
    run(judged_by(CLASSIFIER))
    left = pictures(kept)
    assert [bool(left[stage]) for stage in first] == [True, False, False]  # six reconstructions are below it
    assert numbers(kept, "classifier", tmp_path) == scores
    with_lite2 = run(judged_by(CLASSIFIER, LITE2))
    assert not any(pictures(with_lite2)[stage] for stage in [*first][1:])  # drawn again, judged, deleted
    assert len(numbers(with_lite2, "efficientnet_lite2", tmp_path)) == 3


def test_pictures_that_another_process_is_judging_are_not_deleted(judged_by, made, monkeypatch):
    monkeypatch.setattr(resolve, "KEPT_BYTES", 0)
    plan = made(judged_by(CLASSIFIER))
    _, sample, *_ = plan.jobs[1].stages
    with lease(sample.folder):
        run_job(plan.jobs[1])
        assert picture_files(sample.folder)
    run_job(plan.jobs[1])
    assert not picture_files(sample.folder)


def test_a_damaged_chunk_is_named_and_the_next_attempt_makes_it_again(judged_by, run_or_copy):
    plan = judged_by(CLASSIFIER)
    *_, sample, judge = plan.jobs[1].stages
    run_or_copy([*plan.jobs[0].stages, plan.jobs[1].stages[0], sample])
    path = picture_files(sample.folder)[1]
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(ValueError, match=rf"{path} was damaged .* and is deleted: run the same command again"):
        run_stage(judge)
    assert "was damaged" in judge.failure()["reason"]
    assert run_stage(judge)["metrics"]["gfid"] > 0
    assert path.read_bytes() == whole


class Means(torch.nn.Module):
    """A judge whose features are the means of the pictures' channels; notes the sizes of its batches."""

    def __init__(self):
        super().__init__()
        self.weight, self.sizes = torch.nn.Parameter(torch.zeros(1)), []

    def forward(self, images):
        self.sizes.append(len(images))
        return (images.float().mean(dim=(2, 3)),)


def test_how_pictures_are_parted_changes_neither_features_nor_batches():
    images = torch.randint(0, 256, (23, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found = []
    for parts in ([images], images.split(4), images.split(1), [images[:7], images[7:], images[:0]], [images.numpy()]):
        judge = Means()
        found.append(all_features(judge, parts, batch_size=5)[0])
        assert judge.sizes == [5, 5, 5, 5, 3]
    assert all(torch.equal(each, found[0]) for each in found)
    with pytest.raises(ValueError, match="no images to judge"):
        all_features(Means(), [])


def test_pictures_are_decoded_in_pieces(judged_by, run_or_copy, monkeypatch):
    plan = judged_by(CLASSIFIER)
    fit = plan.stages[0]
    run_or_copy([fit])
    tokenizer = trained_tokenizer(fit)
    latents = torch.randn(10, 4, 8, 8, generator=torch.Generator().manual_seed(0))[:, :, :4, :4]
    sizes, decode = [], Autoencoder.decode
    monkeypatch.setattr(Autoencoder, "decode", lambda self, z: sizes.append(len(z)) or decode(self, z))
    with torch.inference_mode():
        whole = decoding.decoded(tokenizer, latents)
        monkeypatch.setattr(decoding, "PIECE_PIXELS", 4 * 16 * 16)
        parts = decoding.decoded(tokenizer, latents)
    assert sizes == [10, 4, 4, 2]
    assert (whole.int() - parts.int()).abs().max() <= 1 and whole.shape == parts.shape == (10, 3, 16, 16)
    assert decoding.piece(256) == 1
