"""A fingerprint says what was asked, never where and how it ran; and it knows weights by their bytes."""

import dataclasses
import logging

import pytest
from interrupting import interrupted_after
from made_up import COMPUTE, Asking, data_spec

import ablations.frontier
from study.core import cards, compute
from study.core.compute import Compute, Execution
from study.core.stopping import Interrupted, stop_requested
from study.plan import weight_files
from study.plan.needs import identity_unknown
from study.plan.resolve import make_plan
from study.plan.runs import Pretrained, Run
from study.plan.scales import SCALES
from study.report.table_rows import rows_of
from study.submit.jobs import run_stage

OTHERWISE = ({"processes": 2}, {"microbatch_images": 4}, {"checkpointing": True}, {"compile": True})


def planned(scale, machine=COMPUTE, module=ablations.frontier, data=None):
    return make_plan("made", module, scale, data or data_spec(), machine, "test")


def fingerprints(plan):
    return {(stage.kind, getattr(stage.spec, "images_seen", 0), str(i)): stage.fingerprint
            for i, stage in enumerate(plan.stages)}  # fmt: skip


@pytest.fixture
def finished(tiny_plan, run_or_copy):
    """The tiny study, all of it run."""
    run_or_copy((plan := tiny_plan()).stages)
    return plan


def test_a_finished_study_has_nothing_to_do_when_it_is_carried_out_otherwise_or_on_another_machine(
    finished, tiny_scale
):
    def left(execution, machine):
        scale = dataclasses.replace(tiny_scale, execution=Execution(**execution))
        here = dataclasses.replace(COMPUTE, **machine)
        again = make_plan("frontier", ablations.frontier, scale, finished.data, here, "test")
        return [stage for job in again.jobs for stage in job.missing()]

    assert not any(left(execution, {}) for execution in OTHERWISE)
    assert not left({}, {"threads": 7}) and not left({}, {"device": "cuda", "threads": 4})


@pytest.mark.parametrize("cores", [1, 2, 64])
@pytest.mark.parametrize("flags", ["", "avx512_bf16 amx_bf16"])
def test_a_desk_scale_is_the_same_study_on_every_processor(monkeypatch, cores, flags):
    monkeypatch.setattr(compute, "cores", lambda: cores)
    monkeypatch.setattr(compute, "_cpuinfo", lambda: flags)
    monkeypatch.setattr(cards, "_found", lambda: ((), "no GPU"))
    compute.resolve.cache_clear()
    scale = SCALES["desk"]()
    try:
        here = compute.resolve(scale.device, scale.precision)
    finally:
        compute.resolve.cache_clear()
    assert here.precision == "float32"
    assert fingerprints(planned(scale, here)) == fingerprints(planned(scale))


def moved_kinds(before, after):
    return {kind for (kind, *_), fingerprint in (fingerprints(after).items() - fingerprints(before).items())}


def test_another_precision_is_another_study_where_it_moves_a_number():
    scale = SCALES["smoke"]()
    halves = dataclasses.replace(COMPUTE, precision="bfloat16")
    assert moved_kinds(planned(scale), planned(scale, halves)) == {"fit_generator", "sample", "judge"}
    for precision in ("tf32", "bfloat16"):
        other = dataclasses.replace(scale, tokenizer_precision=precision)
        assert moved_kinds(planned(scale), planned(other)) == OF_TOKENIZER  # by their inputs


@pytest.mark.parametrize("name", SCALES)
def test_tokenizers_train_as_released_and_encode_in_float32(name):
    scale = SCALES[name]()
    plan = planned(scale, dataclasses.replace(COMPUTE, precision=scale.precision), data=data_spec(scale.resolution))
    precisions = {stage.kind: stage.spec.compute.precision for stage in plan.stages}
    desk = scale.device != "cuda"
    assert precisions == {
        "fit_tokenizer": "float32" if desk else "tf32",
        "reconstruct": "float32",
        "encode": "float32",
        "fit_generator": "float32" if desk else "bfloat16",
        "sample": "float32" if desk else "bfloat16",
        "judge": "float32",
    }


def test_a_training_that_goes_on_with_other_threads_says_so_and_ends(
    tiny_plan, tiny_scale, caplog, tmp_path, monkeypatch
):
    scale = dataclasses.replace(tiny_scale, judges=(("classifier", 0),))  # a row is by a judge, which need not judge
    plan = tiny_plan(scale)
    fit = plan.jobs[0].stages[0]
    with monkeypatch.context() as stopping:
        interrupted_after(stopping, 32)
        with pytest.raises(Interrupted):
            run_stage(fit)
    stop_requested.clear()
    wider = make_plan("frontier", ablations.frontier, scale, plan.data,
                      Compute(device="cpu", precision="float32", threads=2), "test")  # fmt: skip
    with caplog.at_level(logging.INFO, logger="study"):
        run_stage(wider.stages[0])
    assert "goes on otherwise than it began: threads 1 then 2" in caplog.text
    assert [attempt["threads"] for attempt in fit.record()["attempts"]] == [1, 2]
    rows = [row for row in rows_of(plan, tmp_path) if row.kind == "tokenizer"]
    assert {(row.resumed, row.train_threads, row.processes) for row in rows} == {("threads 1 then 2", 2, 1)}


# Weights


@pytest.fixture
def weights(monkeypatch, tmp_path):
    """Function that writes a file of the weights folder, whatever its publisher's hash."""
    monkeypatch.setenv("STUDY_WEIGHTS", str(tmp_path / "weights"))
    (tmp_path / "weights").mkdir()

    def write(name, content):
        if name in weight_files.FILES:
            known = dataclasses.replace(weight_files.FILES[name], sha256="")
            monkeypatch.setitem(weight_files.FILES, name, known)
        (tmp_path / "weights" / weight_files.weight_file(name).file).write_bytes(content)

    return write


OF_TOKENIZER = {"fit_tokenizer", "reconstruct", "encode", "fit_generator", "sample", "judge"}
USED = {
    "mae": OF_TOKENIZER,
    "vgg": OF_TOKENIZER,
    "inception": {"judge"},
    "adm-imagenet256": {"judge"},
}


def with_all_kinds():
    """A scale whose one aligned tokenizer needs a file of each kind."""
    scale = SCALES["smoke"]()
    return dataclasses.replace(
        scale,
        foundation_models=("mae",),
        tokenizer=dataclasses.replace(scale.tokenizer, perceptual_weight=1.0, perceptual_net="vgg"),
        evaluation=dataclasses.replace(scale.evaluation, perceptual_net="vgg", reference="adm-imagenet256"),
        judges=(("inception", 0),),
    )


@pytest.mark.parametrize("swapped", USED)
def test_another_weight_file_of_the_same_name_computes_anew_what_depends_on_it(weights, swapped):
    aligned = Asking(Run(tokenizer="f4d4-mae", generator="LightningDiT-XXS/2"))
    for name in USED:
        weights(name, b"first")
    before = planned(with_all_kinds(), module=aligned).stages
    assert not identity_unknown(before)
    weights(swapped, b"other")
    after = planned(with_all_kinds(), module=aligned).stages
    assert {a.kind for a, b in zip(after, before, strict=True) if a != b} == USED[swapped]
    weights(swapped, b"first")
    assert planned(with_all_kinds(), module=aligned).stages == before


def test_another_pretrained_file_of_the_same_name_is_another_run(weights):
    weights("mine.pt", b"first")
    released = {"unshuffle": 1, "ch": 32, "ch_mult": (1, 1, 1), "norm_groups": 32}
    shape = {f"autoencoder.{name}": value for name, value in released.items()}
    file = Pretrained(name="mine.pt", images_seen=64)
    run = Asking(Run(tokenizer="f4d4", pretrained_tokenizer=file, changes=shape))
    before = planned(SCALES["smoke"](), module=run).stages
    weights("mine.pt", b"other")
    assert not set(before) & set(planned(SCALES["smoke"](), module=run).stages)


@pytest.mark.parametrize(("package", "anew"), [("lite0", OF_TOKENIZER), ("lite2", {"reconstruct", "judge"})])
def test_other_weights_in_a_package_compute_anew_what_depends_on_them(monkeypatch, tmp_path, package, anew):
    aligned = Asking(Run(tokenizer="f4d4-lite0", generator="LightningDiT-XXS/2"))
    before = planned(SCALES["smoke"](), module=aligned).stages
    own = weight_files._lite_file
    (tmp_path / "other.pth").write_bytes(b"other")
    monkeypatch.setattr(weight_files, "_lite_file", lambda n: tmp_path / "other.pth" if n == package else own(n))
    after = planned(SCALES["smoke"](), module=aligned).stages
    assert {a.kind for a, b in zip(after, before, strict=True) if a != b} == anew


def test_without_its_files_a_plans_identity_is_not_known_yet(weights):
    assert "of weights that are missing." in identity_unknown(planned(with_all_kinds()).stages)
    assert not identity_unknown(planned(SCALES["smoke"]()).stages)
    unpacked = planned(SCALES["smoke"](), data=dataclasses.replace(data_spec(), content="")).stages
    assert identity_unknown(unpacked).endswith("of the data, which is read when it is packed.")


def test_weights_that_are_not_those_of_the_plan_are_not_loaded(weights):
    with pytest.raises(ValueError, match="'lite2' is not the planned file: its SHA-256 starts with"):
        from study.train.perceptual_net import perceptual_net

        perceptual_net("lite2", 32, "0" * 64)


# Fields that a run does not use


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("sampling", {"guidance_interval": (0.1, 0.9)}),
        ("sampling", {"guidance_channels": 2}),
        ("tokenizer", {"perceptual_size": 128, "perceptual_net": "lite2"}),
        ("tokenizer", {"gan_width": 8, "gan_start_images": 64}),
        ("evaluation", {"perceptual_size": 16}),
    ],
)
def test_a_field_that_a_run_does_not_use_moves_no_fingerprint(part, change):
    scale = SCALES["smoke"]()
    scale = dataclasses.replace(scale, evaluation=dataclasses.replace(scale.evaluation, perceptual_size=32))
    changed = dataclasses.replace(scale, **{part: dataclasses.replace(getattr(scale, part), **change)})
    assert fingerprints(planned(changed)) == fingerprints(planned(scale))


def test_a_margin_of_a_part_without_weight_moves_no_fingerprint_and_with_weight_it_does():
    def asked(**changes):
        scale = SCALES["smoke"]()
        return fingerprints(
            planned(dataclasses.replace(scale, tokenizer=dataclasses.replace(scale.tokenizer, **changes)))
        )

    without = asked(vf_cosine_weight=0.0)
    assert asked(vf_cosine_weight=0.0, vf_cosine_margin=0.9) == without
    assert asked(vf_cosine_margin=0.9) != asked()
