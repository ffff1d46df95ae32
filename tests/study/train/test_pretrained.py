"""Runs with pretrained weights: files in the released form go the whole way, and one line for what does not fit."""

import dataclasses
import re
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from made_up import COMPUTE, Asking
from PIL import Image
from safetensors.torch import save_file

from figures.render import render
from models.autoencoder import Autoencoder, initialize
from models.configs import EXTERNAL_TOKENIZERS, AutoencoderConfig, ExternalTokenizer
from models.lightningdit import LightningDiT
from models.sd_vae import SDVAE
from results import table as results
from study import export, sample
from study.core.files import load_tensors
from study.core.workspace import Workspace
from study.data import latents as stored_latents
from study.data.datasets import resolve_data
from study.data.external_images import STATISTICS
from study.data.picture_chunks import chunk_rows
from study.judge import references
from study.plan import needs, weight_files
from study.plan.resolve import make_plan
from study.plan.runs import Pretrained, Run
from study.plan.stage import snapshot_file, stage_from_record
from study.plan.weight_files import REFERENCES, ReferenceFile, WeightFile
from study.report.table_rows import update_table
from study.stages import fit_generator, fit_tokenizer
from study.stages import judge as judge_stage
from study.submit.jobs import run_stage
from study.train import pretrained

RUN = Run(
    tokenizer="f2d4",
    generator="LightningDiT-XXS/2",
    pretrained_tokenizer=Pretrained(name="tokenizer.pt", images_seen=1300),
    pretrained_generator=Pretrained(name="generator.pt", images_seen=640),
    pretrained_statistics="latents_stats.pt",
)
MEAN, STD = [0.5, -1.0, 0.0, 2.0], [1.5, 2.0, 0.5, 1.0]


@pytest.fixture
def scale(tiny_scale):
    """The released tokenizer's form, shrunk: no unshuffling, 32 groups."""
    shape = dataclasses.replace(tiny_scale.autoencoder, ch=32, ch_mult=(1, 1), unshuffle=1, norm_groups=32)
    return dataclasses.replace(tiny_scale, downsampling=2, autoencoder=shape, judges=(("classifier", 0),))


@pytest.fixture
def planned(scale, pictures):
    """Plan of these runs on made pictures of 16 px."""

    def plan(*runs, scale=scale):
        return make_plan("released", Asking(*(runs or [RUN])), scale, resolve_data(str(pictures), 16), COMPUTE, "test")

    return plan


@pytest.fixture
def published(planned, tmp_path, monkeypatch):
    """The weights folder, with files of random weights as their authors publish them."""
    monkeypatch.setenv("STUDY_WEIGHTS", str(tmp_path / "weights"))
    folder = weight_files.weights_folder()
    folder.mkdir()
    plan = planned()
    fit, fitted = plan.jobs[0].stages[0].spec, plan.jobs[1].stages[0].spec
    rng = torch.Generator().manual_seed(0)
    tokenizer = Autoencoder(fit.architecture)
    initialize(tokenizer, rng)
    beside = {"loss.logvar": torch.zeros(()), "linear_proj.weight": torch.zeros(8, 4, 1, 1)}
    torch.save({"state_dict": {**tokenizer.state_dict(), **beside}, "epoch": 3}, folder / "tokenizer.pt")
    generator = LightningDiT(fitted.architecture, rng)
    torch.nn.init.normal_(generator.final_layer.linear.weight, std=0.1, generator=rng)
    raw = {name: value + 1 for name, value in generator.state_dict().items()}
    torch.save({"model": raw, "ema": generator.state_dict()}, folder / "generator.pt")
    statistics = {name: torch.tensor(values).view(1, 4, 1, 1) for name, values in (("mean", MEAN), ("std", STD))}
    torch.save(statistics, folder / "latents_stats.pt")
    return folder


@pytest.mark.usefixtures("figures_unsaved")
def test_given_weights_go_the_whole_way_without_a_training_or_an_encoding(published, planned, tmp_path):
    plan = planned()
    assert needs.missing_here(plan.stages) == []
    for stage in plan.stages:
        run_stage(stage)
    fit, _, latents, _ = plan.jobs[0].stages
    fitted, drawn, judged = plan.jobs[1].stages
    # what others read is what was given, the moving average of the generator
    state = torch.load(published / "tokenizer.pt", weights_only=True)["state_dict"]
    own = fit_tokenizer.trained_tokenizer(fit).state_dict()
    assert all(torch.equal(value, state[name]) for name, value in own.items())
    ema = torch.load(published / "generator.pt", weights_only=True)["ema"]
    own = fit_generator.trained_generator(fitted, 640, "ema").state_dict()
    assert all(torch.equal(value, ema[name]) for name, value in own.items())
    ones = stored_latents.denormalise(torch.ones(1, 4, 1, 1), latents)
    torch.testing.assert_close(ones.flatten(), torch.tensor(MEAN) + torch.tensor(STD))
    assert not list(latents.folder.glob("*.safetensors"))
    assert fit.record()["pretrained"] == {"file": "tokenizer.pt", "sha256": weight_files.content_hash("tokenizer.pt")}

    table = results.load(update_table(plan, tmp_path))
    assert table["state"].tolist() == ["done", "done"]
    rows = table.set_index("kind")
    assert rows.loc["tokenizer", "rfid"] > 0 and rows.loc["generator", "gfid"] > 0
    assert rows["images_seen"].to_dict() == {"tokenizer": 1300, "generator": 640}
    assert rows.loc["generator", "run"] == "pretrained tokenizer.pt + pretrained generator.pt"
    for kind, name in (("tokenizer", "tokenizer.pt"), ("generator", "generator.pt")):
        assert rows.loc[kind, "pretrained_weights"] == f"{name} {weight_files.content_hash(name)[:12]}"
        assert rows.loc[kind, "parameters"] > 0
        for nobodys in ("seed", "tokenizer_seed", "train_seconds", "train_images_per_second", "train_precision"):
            assert pd.isna(rows.loc[kind, nobodys]) or rows.loc[kind, nobodys] == "", nobodys
    rendering = render(tmp_path / "results" / "test", tmp_path / "figures")
    assert rendering.refused == {}
    assert rendering.skipped.keys() == {"convergence", "uniformity", "latent_maps"}
    assert rendering.skipped["convergence"] == "pretrained weights have no learning curve"

    # a sheet from the row alone, and the stage as its record tells it
    assert stage_from_record("judge", judged.fingerprint) == judged and drawn == judged.inputs["samples"]
    sheet = [rows.loc["generator", "run"], "--study", "test", "--results", tmp_path / "results", "--each", 2]
    assert sample.main([*map(str, sheet), "--out", str(tmp_path / "sheet.png")]) == 0
    assert Image.open(tmp_path / "sheet.png").size == (3 * 16, 2 * 16)


def test_a_generator_is_trained_on_a_given_tokenizer(published, planned, tmp_path, capsys):
    run = Run(tokenizer="f2d4", generator=RUN.generator, pretrained_tokenizer=RUN.pretrained_tokenizer)
    plan = planned(run)
    for stage in plan.stages:
        run_stage(stage)
    rows = results.load(update_table(plan, tmp_path)).set_index("kind")
    assert rows.loc["tokenizer", "pretrained_weights"] != ""
    trained = rows.loc["generator"]
    assert set(trained["pretrained_weights"]) == {""} and set(trained["seed"]) == {0}
    assert (trained["train_seconds"] > 0).all()

    # what was trained here is exported, the given tokenizer is named
    asked = [trained["fingerprint"].iloc[0], "--study", "test", "--results", str(tmp_path / "results")]
    assert export.main([*asked, str(tmp_path / "diffusers"), "--as", "diffusers"]) == 2
    assert "the tokenizer f2d4 was not trained here" in capsys.readouterr().err
    assert export.main([*asked, str(tmp_path / "released")]) == 0
    names = {path.name for path in (tmp_path / "released").iterdir()}
    assert names == {"README.md", "generator.safetensors", "latents_stats.safetensors"}
    card = (tmp_path / "released" / "README.md").read_text()
    assert f"`tokenizer.pt`, SHA-256 `{weight_files.content_hash('tokenizer.pt')}`" in card
    assert "load_tokenizer" not in card and "load_generator" in card
    assert export.main([rows.loc["tokenizer", "fingerprint"], *asked[1:], str(tmp_path / "given")]) == 2
    assert "was not trained here: its weights are those of the file tokenizer.pt" in capsys.readouterr().err


@pytest.mark.usefixtures("figures_unsaved")
def test_a_tokenizer_of_diffusers_goes_the_whole_way(published, planned, scale, tmp_path, monkeypatch):
    pytest.importorskip("diffusers")
    config = AutoencoderConfig(
        resolution=16, ch=32, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(), z_channels=4, library="diffusers"
    )
    monkeypatch.setitem(EXTERNAL_TOKENIZERS, "sd-vae-f8d4", ExternalTokenizer(config=config))
    made = SDVAE(config)
    save_file(made.state_dict(), published / "sd.safetensors")
    run = Run(
        tokenizer="sd-vae-f8d4",
        generator=RUN.generator,
        pretrained_tokenizer=Pretrained(name="sd.safetensors", images_seen=1300),
    )
    plan = planned(run)
    for stage in plan.stages:
        run_stage(stage)
    fit = plan.jobs[0].stages[0]
    own = fit_tokenizer.trained_tokenizer(fit).state_dict()
    assert all(torch.equal(value, own[name]) for name, value in made.state_dict().items())
    assert stage_from_record("fit_tokenizer", fit.fingerprint) == fit
    rows = results.load(update_table(plan, tmp_path)).set_index("kind")
    assert set(rows["tokenizer"]) == {"sd-vae-f8d4"} and set(rows["state"]) == {"done"}
    assert rows.loc["tokenizer", "pretrained_weights"].startswith("sd.safetensors ")
    assert rows.loc["tokenizer", "parameters"] == sum(p.numel() for p in made.parameters())
    assert (rows.loc["generator", "gfid"] > 0).all()
    assert render(tmp_path / "results" / "test", tmp_path / "figures").refused == {}
    # on a machine without the package the stages that need it say so in one line
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert any("the package diffusers" in line for line in needs.missing_here(plan.stages))
    with pytest.raises(ValueError, match=r"package diffusers, which is not installed: pip install diffusers"):
        fit_tokenizer.trained_tokenizer(fit)


def test_a_tokenizer_that_others_made_is_not_trained_here():
    with pytest.raises(ValueError, match=r"^sd-vae-f8d4: .* trained here, so pretrained_tokenizer must be set$"):
        Run(tokenizer="sd-vae-f8d4")


def test_a_run_is_known_by_what_its_files_hold(published, planned):
    before = planned()
    shutil.copy(published / "generator.pt", published / "copy.pt")
    renamed = dataclasses.replace(RUN, pretrained_generator=Pretrained(name="copy.pt", images_seen=640))
    assert planned(renamed).stages == before.stages
    content = torch.load(published / "generator.pt", weights_only=True)
    torch.save({"ema": content["model"]}, published / "copy.pt")
    other = planned(renamed)
    assert other.jobs[0].stages == before.jobs[0].stages
    assert not set(other.jobs[1].stages) & set(before.jobs[1].stages)
    # how a training would have gone moves nothing
    recipe = dataclasses.replace(RUN, changes={"tokenizer.learning_rate": 1.0, "generator.learning_rate": 1.0})
    assert planned(recipe).stages == before.stages


def test_a_file_that_is_not_there_is_named_by_the_plan(planned, tmp_path, monkeypatch):
    monkeypatch.setenv("STUDY_WEIGHTS", str(tmp_path / "weights"))
    lines = needs.missing_here(planned().stages)
    assert len(lines) == 3
    assert lines[0] == ("a run with pretrained weights: tokenizer.pt (put it into the folder named by STUDY_WEIGHTS)")
    with pytest.raises(ValueError, match=r"needs generator\.pt in the folder .*: put it there"):
        run_stage_of(planned(), "fit_generator")


def run_stage_of(plan, kind):
    """Run a stage by itself; its inputs are not looked at."""
    stage = next(stage for stage in plan.stages if stage.kind == kind)
    stage.folder.mkdir(parents=True, exist_ok=True)
    out = Workspace(stage.folder, None, kind, write_record=print)
    if kind == "fit_generator":
        return pretrained.write_generator(stage.spec, {}, out)
    return pretrained.write_tokenizer(stage.spec, out)


def test_what_does_not_fit_is_one_line(published, planned, scale):
    def wide(**changes):
        return dataclasses.replace(scale, autoencoder=dataclasses.replace(scale.autoencoder, **changes))

    unrotated = dataclasses.replace(RUN, options={"rope": False})
    for plan, kind, message in (
        (planned(scale=wide(ch=64)), "fit_tokenizer", "tokenizer.pt holds another autoencoder than planned: ch 32, p"),
        (planned(scale=wide(attention_grids=(8,))), "fit_tokenizer", "levels with attention [], planned [1]"),
        (planned(unrotated), "fit_generator", "another generator than planned: rope True, planned False"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=re.escape(message)) as error:
            run_stage_of(plan, kind)
        assert "\n" not in str(error.value)
    torch.save({"mean": torch.zeros(1, 5, 1, 1), "std": torch.ones(1, 5, 1, 1)}, published / "latents_stats.pt")
    latents = planned().jobs[0].stages[2]
    with pytest.raises(
        ValueError, match=r"latents_stats\.pt holds another latents than planned: channels 5, planned 4"
    ):
        pretrained.statistics_record(latents.spec, latents.inputs)


def test_a_file_that_was_exchanged_after_the_plan_is_refused(published, planned):
    plan = planned()
    content = torch.load(published / "generator.pt", weights_only=True)
    torch.save({"ema": content["model"]}, published / "generator.pt")
    with pytest.raises(ValueError, match=r"generator\.pt is not the planned file: its SHA-256 starts"):
        run_stage_of(plan, "fit_generator")
    # one that came after the plan would be recorded under the hash of none
    path = published / "generator.pt"
    path.rename(published / "away.pt")
    plan = planned()
    (published / "away.pt").rename(path)
    with pytest.raises(ValueError, match="planned when the file was missing"):
        run_stage_of(plan, "fit_generator")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pretrained_statistics": ""}, "pretrained_generator and pretrained_statistics must be set together"),
        ({"pretrained_generator": None}, "pretrained_generator and pretrained_statistics must be set together"),
        ({"pretrained_tokenizer": None}, "pretrained_generator needs generator and pretrained_tokenizer too"),
        ({"seed": 1}, "pretrained weights have no seed"),
    ],
)
def test_inconsistent_runs_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(RUN, **fields)


def test_plans_that_mean_nothing_are_refused(published, planned):
    for run, message in (
        (dataclasses.replace(RUN, changes={"sampling.weights": "raw"}), "sampling.weights must be ema"),
        (
            dataclasses.replace(RUN, pretrained_statistics="../latents_stats.pt"),
            "must be the name of a file in the folder",
        ),
        (dataclasses.replace(RUN, judged_at=(5,)), "no snapshot at 5 images seen; there are 640"),
    ):
        with pytest.raises(ValueError, match=message):
            planned(run)


# References


@pytest.fixture
def adm(published, monkeypatch):
    """A file in the form of ADM's, of 6 made pictures of 16 px and 3 classes."""
    content = {name: np.zeros(shape, np.float32) for name, shape in STATISTICS.items()}
    content |= {name: np.eye(len(content[name]), dtype=np.float32) for name in ("sigma", "sigma_s")}
    pixels = np.random.default_rng(6).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    np.savez(published / "VIRTUAL_made.npz", arr_0=pixels, **content)
    file = WeightFile(file="VIRTUAL_made.npz", url="http://nowhere", purpose="the reference 'adm-imagenet256'")
    monkeypatch.setitem(weight_files.FILES, "adm-imagenet256", file)
    monkeypatch.setitem(REFERENCES, "adm-imagenet256", ReferenceFile(resolution=16, classes=3, images=6))
    return published / "VIRTUAL_made.npz"


@pytest.fixture
def against_adm(scale, planned):
    """The plan with Inception as judge, which compares with that file."""

    def plan(**fields):
        evaluation = dataclasses.replace(scale.evaluation, reference="adm-imagenet256")
        return planned(scale=dataclasses.replace(scale, evaluation=evaluation, judges=(("inception", 0),), **fields))

    return plan


def test_samples_are_compared_with_adms_statistics_and_reconstructions_with_their_inputs(
    adm, against_adm, tmp_path, monkeypatch
):
    """Features are planted: no network with random weights may give a row."""
    seen = []

    def reference(spatial):
        unit = {"mu": torch.zeros(8, dtype=torch.float64), "sigma": torch.eye(8, dtype=torch.float64)}
        unit["root"] = unit["sigma"]
        found = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
        return references.Reference(features=found, **unit, head=torch.eye(8), hash="f" * 16, count=12, spatial=spatial)

    def reference_of(judge, images, digest, device, statistics):
        seen.append((judge.name, images.shape, sorted(statistics)))
        return dataclasses.replace(reference(None), hash="a" * 16)

    def features(extractor, parts):
        return torch.randn(sum(map(len, parts)), 8, generator=torch.Generator().manual_seed(1)), None

    monkeypatch.setattr(references, "pictures_reference", reference_of)
    monkeypatch.setattr(judge_stage, "dataset_reference", lambda judge, data, split, count, device: reference(None))
    monkeypatch.setattr(judge_stage, "build_judge", lambda judge, data, device: judge.name)
    monkeypatch.setattr(judge_stage, "all_features", features)
    plan = against_adm()
    assert any(line.startswith("the judge 'inception'") for line in needs.missing_here(plan.stages))
    assert not any("VIRTUAL" in line for line in needs.missing_here(plan.stages))
    for stage in plan.stages:
        run_stage(stage)
    rows = results.load(update_table(plan, tmp_path)).set_index("kind")
    assert seen == [("inception", (6, 3, 16, 16), ["mu", "mu_s", "sigma", "sigma_s"])]
    assert rows.loc["generator", "reference"] == "VIRTUAL_made, its statistics and 6 images"
    assert (rows.loc["generator", "reference_hash"], rows.loc["tokenizer", "reference_hash"]) == ("a" * 12, "f" * 12)
    assert rows.loc["tokenizer", "reference"] == "own inputs"
    assert rows.loc["generator", "inception_score"] >= 1
    assert bool(rows.loc["generator", "comparable"]) is False  # 10 samples


def test_another_reference_is_another_stage(adm, against_adm, planned):
    plan = against_adm()
    stage = plan.jobs[1].stages[2]
    assert stage.spec.reference.sha256 == weight_files.content_hash("adm-imagenet256") != ""
    assert stage.spec.reference_images == 0
    adm.unlink()
    missing = against_adm()
    assert missing.jobs[1].stages[2] != stage
    assert (
        "the reference 'adm-imagenet256': VIRTUAL_made.npz (python -m study.prefetch downloads it from nowhere)"
        in needs.missing_here(missing.stages)
    )


def test_a_reference_of_other_pictures_is_one_line(adm, against_adm, monkeypatch):
    stage = against_adm().jobs[1].stages[2]
    monkeypatch.setitem(REFERENCES, "adm-imagenet256", ReferenceFile(resolution=16, classes=3, images=7))
    with pytest.raises(ValueError, match=r"statistics and 7 pictures of 16 px; it holds its statistics and 6 pictures"):
        references.published_reference(stage.spec.judge, stage.spec.reference, "cpu")


def test_a_scale_that_cannot_use_a_reference_is_refused(adm, scale, pictures):
    from study.plan.checks import check_reference, check_scale

    def with_reference(name, judge="inception"):
        evaluation = dataclasses.replace(scale.evaluation, reference=name)
        return dataclasses.replace(scale, evaluation=evaluation, judges=((judge, 0),))

    check_scale(with_reference("adm-imagenet256"))
    data = resolve_data(str(pictures), 16)
    check_reference(with_reference("adm-imagenet256"), data)
    with pytest.raises(ValueError, match="statistics of Inception features, which the judge classifier cannot use"):
        check_scale(with_reference("adm-imagenet256", "classifier"))
    with pytest.raises(ValueError, match=r"evaluation\.reference must be one of adm-imagenet256, or empty"):
        check_scale(with_reference("adm-imagenet"))
    with pytest.raises(ValueError, match="has 3 classes at 16 px, pictures has 3 at 32 px"):
        check_reference(with_reference("adm-imagenet256"), resolve_data(str(pictures), 32))


def test_released_safetensors_are_read_too(published, planned):
    """A file that was converted by hand."""
    from safetensors.torch import save_file

    save_file(torch.load(published / "generator.pt", weights_only=True)["ema"], published / "generator.safetensors")
    run = dataclasses.replace(RUN, pretrained_generator=Pretrained(name="generator.safetensors", images_seen=640))
    plan = planned(run)
    run_stage_of(plan, "fit_generator")
    stage = plan.jobs[1].stages[0]
    assert load_tensors(snapshot_file(stage.folder, "ema", 640)).keys()
    assert len(chunk_rows(plan.jobs[1].stages[1].spec)) == 3


def test_a_sheet_is_drawn_from_published_files_alone(published, tmp_path, capsys):
    def drawn(*arguments):
        out = tmp_path / "sheet.png"
        call = ["LightningDiT-XXS/2=" + str(published / "generator.pt"), *arguments]
        code = sample.main([*call, "--classes", "0,2", "--each", "3", "--out", str(out)])
        said = capsys.readouterr()
        return np.asarray(Image.open(out)) if code == 0 else said.err.strip()

    held = torch.load(published / "generator.pt", weights_only=True)
    for name, weight in held["ema"].items():
        if "adaLN" in name:  # so that the class matters
            weight.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    torch.save(held, published / "generator.pt")
    tokenizer, latents = f"f2d4={published / 'tokenizer.pt'}", str(published / "latents_stats.pt")
    sheet = drawn("--tokenizer", tokenizer, "--statistics", latents, "--steps", "4")
    assert sheet.shape == (3 * 16, 2 * 16, 3)
    guided = drawn("--tokenizer", tokenizer, "--statistics", latents, "--steps", "4", "--guidance", "3")
    assert guided.shape == sheet.shape
    assert (guided != sheet).any()
    assert drawn() == "study.sample: a checkpoint needs --tokenizer TOKENIZER=FILE and --statistics FILE"
    torch.save({"mean": torch.zeros(1, 5, 1, 1), "std": torch.ones(1, 5, 1, 1)}, published / "other.pt")
    assert "have different latent channels: (4, 4, 5)" in drawn(
        "--tokenizer", tokenizer, "--statistics", str(published / "other.pt")
    )
    assert "no weights at /nowhere.pt" in drawn("--tokenizer", "f2d4=/nowhere.pt", "--statistics", latents)
