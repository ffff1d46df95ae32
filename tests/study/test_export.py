"""Exports of finished runs: our loaders and diffusers give their outputs again; what has no form is refused."""

import dataclasses
import re
from contextlib import nullcontext

import pytest
import torch
from made_up import COMPUTE, Asking

from models import load_generator, load_latent_statistics, load_tokenizer
from results import table as results
from study import export, sample
from study.core import compute
from study.core.files import read_json
from study.data.latents import denormalise
from study.plan.networks import network_config
from study.plan.resolve import make_plan
from study.plan.runs import Pretrained, Run
from study.plan.scales import SCALES
from study.report.table_rows import update_table
from study.stages.fit_generator import trained_generator
from study.stages.fit_tokenizer import trained_tokenizer
from study.submit.jobs import run_stage

RUN = "f4d4 + LightningDiT-XXS/2"


@pytest.fixture
def judged_scale(tiny_scale):
    return dataclasses.replace(tiny_scale, judges=(("classifier", 0), ("efficientnet_lite2", 64)))


@pytest.fixture
def folded(tiny_plan, judged_scale):
    """A plan whose tokenizer folds pixels into channels and has norms of 4 groups."""
    return tiny_plan(judged_scale)


@pytest.fixture
def unfolded(tiny_plan, judged_scale):
    """The same with a tokenizer that diffusers has: attention at its coarsest level, three levels of two widths."""
    shape = dataclasses.replace(
        judged_scale.autoencoder, unshuffle=1, ch_mult=(1, 2, 2), num_res_blocks=2, attention_grids=(4,)
    )
    return tiny_plan(dataclasses.replace(judged_scale, autoencoder=shape))


@pytest.fixture
def trained(run_or_copy, tmp_path, monkeypatch):
    """`trained(plan)`: its tokenizer, latents and generator are there, and its rows in the table of study desk."""
    monkeypatch.setattr(compute, "resolve", lambda: COMPUTE)

    def train(plan):
        stages = (*plan.jobs[0].stages, plan.jobs[1].stages[0])
        run_or_copy(stage for stage in stages if stage.kind not in ("reconstruct", "judge"))
        update_table(dataclasses.replace(plan, study="desk"), tmp_path)
        return plan.jobs[0].stages[0], plan.jobs[1].stages[0]

    return train


@pytest.fixture
def exported(tmp_path, capsys):
    """`exported(run, form, *options)`: the folder of an export that must succeed."""

    def write(run, form, *options):
        folder = tmp_path / f"export-{form}"
        call = [run, str(folder), "--as", form, "--results", str(tmp_path / "results"), *map(str, options)]
        assert export.main(call) == 0, capsys.readouterr().err
        assert sorted(capsys.readouterr().out.split()) == sorted(map(str, folder.iterdir()))
        return folder

    return write


def refused(capsys, tmp_path, *arguments):
    code = export.main([*map(str, arguments), "--results", str(tmp_path / "results")])
    errors = capsys.readouterr().err
    assert code == 2, errors
    (line,) = errors.strip().splitlines()
    return line.removeprefix("study.export: ")


def pictures():
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def assert_same_tokenizer(found, own):
    """Moments and pictures up to rounding: what comes back may lie in memory in another order."""
    with torch.no_grad():
        expected, posterior = own.encode(pictures()), found.encode(pictures())
        assert expected.mean.std() > 0
        for name in ("mean", "logvar"):
            torch.testing.assert_close(getattr(posterior, name), getattr(expected, name), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found.decode(expected.mean), own.decode(expected.mean), rtol=1e-6, atol=1e-6)


def test_the_released_form_comes_back(folded, trained, exported):
    tokenizer, generator = trained(folded)
    folder = exported(RUN, "released")
    names = {path.name for path in folder.iterdir()}
    assert names == {"README.md", "tokenizer.safetensors", "generator.safetensors", "latents_stats.safetensors"}
    own = trained_tokenizer(tokenizer)
    found = load_tokenizer("f4d4", folder / "tokenizer.safetensors").network
    assert found.config == own.config
    assert_same_tokenizer(found, own)

    drawn, again = trained_generator(generator, 64, "ema"), load_generator(
        "LightningDiT-XXS/2", folder / "generator.safetensors"
    ).network  # fmt: skip
    assert again.config == drawn.config
    latent, labels = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 3])
    with torch.no_grad():
        expected = drawn(latent, torch.tensor([0.2, 0.7]), labels)
        torch.testing.assert_close(again(latent, torch.tensor([0.2, 0.7]), labels), expected, rtol=1e-6, atol=1e-6)
    assert expected.std() > 0

    statistics = load_latent_statistics(folder / "latents_stats.safetensors")
    raw = latent * statistics.std + statistics.mean
    torch.testing.assert_close(raw, denormalise(latent, generator.inputs["latents"]), rtol=0, atol=1e-6)


def test_a_snapshot_is_chosen_and_drawn_from(folded, trained, exported, tmp_path):
    _, generator = trained(folded)
    folder = exported(RUN, "released", "--images-seen", 32)
    weights = load_generator("LightningDiT-XXS/2", folder / "generator.safetensors").network.state_dict()
    assert all(torch.equal(weights[n], v) for n, v in trained_generator(generator, 32, "ema").state_dict().items())
    sheet = tmp_path / "sheet.png"
    call = [
        f"LightningDiT-XXS/2={folder}/generator.safetensors", "--tokenizer", f"f4d4={folder}/tokenizer.safetensors",
        "--statistics", f"{folder}/latents_stats.safetensors", "--steps", "2", "--each", "1", "--out", str(sheet),
    ]  # fmt: skip
    assert sample.main(call) == 0
    assert sheet.exists()


def test_an_exported_tokenizer_is_the_pretrained_one_of_a_run(folded, trained, exported, monkeypatch):
    tokenizer, _ = trained(folded)
    folder = exported("f4d4", "released")
    monkeypatch.setenv("STUDY_WEIGHTS", str(folder))
    given = Run(tokenizer="f4d4", pretrained_tokenizer=Pretrained(name="tokenizer.safetensors", images_seen=64))
    plan = make_plan("given", Asking(given), folded.scale, folded.data, COMPUTE, "test")
    fit = plan.jobs[0].stages[0]
    assert fit.fingerprint != tokenizer.fingerprint
    run_stage(fit)
    own, weights = trained_tokenizer(tokenizer).state_dict(), trained_tokenizer(fit).state_dict()
    assert all(torch.equal(weights[name], value) for name, value in own.items())


def test_what_weights_do_not_say_is_stated(tiny_plan, judged_scale, trained, exported, capsys, tmp_path):
    """Without label dropout there is no null label: the last row of the label table is a class."""
    _, generator = trained(tiny_plan(dataclasses.replace(judged_scale, generator_options=("label_dropout=0.0",))))
    path = exported(RUN, "released") / "generator.safetensors"
    assert load_generator("LightningDiT-XXS/2", path).network.config == generator.spec.architecture
    assert "it cannot be guided" in (path.parent / "README.md").read_text()
    call = [f"LightningDiT-XXS/2={path}", "--tokenizer", f"f4d4={path.parent}/tokenizer.safetensors", "--statistics"]
    guided = [*call, f"{path.parent}/latents_stats.safetensors", "--guidance", "2", "--out", str(tmp_path / "s.png")]
    assert sample.main(guided) == 2
    assert "without label dropout, so it cannot be guided" in capsys.readouterr().err


def test_the_form_of_diffusers_comes_back(unfolded, trained, exported):
    tokenizer, _ = trained(unfolded)
    folder = exported(RUN, "diffusers")
    own = trained_tokenizer(tokenizer)
    found = load_tokenizer("f4d4", folder / "diffusion_pytorch_model.safetensors").network
    assert found.config == own.config
    assert_same_tokenizer(found, own)
    assert load_generator("LightningDiT-XXS/2", folder / "generator.safetensors").network.config.depth == 4
    statistics = load_latent_statistics(folder / "latents_stats.safetensors")
    config = read_json(folder / "config.json")
    for name, values in (("latents_mean", statistics.mean), ("latents_std", statistics.std)):
        assert config[name] == pytest.approx(values.flatten().tolist(), rel=1e-6)


def test_diffusers_gives_our_pictures(unfolded, trained, exported):
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    tokenizer, _ = trained(unfolded)
    folder = exported("f4d4", "diffusers")
    assert not (folder / "generator.safetensors").exists()
    own = trained_tokenizer(tokenizer).double()
    theirs = diffusers.AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float64).eval()
    assert len(theirs.config.latents_mean) == len(theirs.config.latents_std) == 4
    assert theirs.config.scaling_factor == 1
    with torch.no_grad():
        expected, posterior = own.encode(pictures().double()), theirs.encode(pictures().double()).latent_dist
        assert expected.mean.std() > 0
        for name in ("mean", "logvar"):
            torch.testing.assert_close(getattr(posterior, name), getattr(expected, name), rtol=0, atol=1e-6)
        drawn, pixels = theirs.decode(expected.mean).sample, own.decode(expected.mean)
        torch.testing.assert_close(drawn, pixels, rtol=0, atol=1e-6)
        single = diffusers.AutoencoderKL.from_pretrained(folder).eval()  # two implementations round in other places
        torch.testing.assert_close(single.decode(expected.mean.float()).sample.double(), pixels, rtol=0, atol=2e-5)


def test_a_tokenizer_without_latents_has_no_statistics(unfolded, trained, exported):
    tokenizer, generator = trained(unfolded)
    (generator.inputs["latents"].folder / "record.json").unlink()
    assert {path.name for path in exported(tokenizer.fingerprint, "released").iterdir()} == {
        "README.md",
        "tokenizer.safetensors",
    }
    assert "latents_mean" not in read_json(exported("f4d4", "diffusers") / "config.json")


def test_the_card_has_the_numbers_of_both_judges_and_lines_that_run(folded, trained, exported, tmp_path, monkeypatch):
    trained(folded)
    path = tmp_path / "results" / "desk" / "table.csv"
    table = results.load(path)
    made = {"state": "done", "reason": "", "rfid": 12.5, "comparable": False}
    table = table.assign(**{name: value for name, value in made.items() if name != "rfid"})
    own = table["kind"] == "tokenizer"
    table.loc[own, "rfid"] = [12.5, 987.0]
    table.loc[~own & (table["images_seen"] == 32), "gfid"] = 777.0
    table.loc[~own & (table["images_seen"] == 64), "gfid"] = [34.0, 2345.6]
    results.write(table, path)
    folder = exported(RUN, "released")
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\n")
    for number in ("12.5", "987", "34.0", "2,346"):
        assert f"| {number} |" in card
    assert "777" not in card  # of another snapshot
    for judge in ("classifier", "efficientnet_lite2"):
        assert card.count(f"| {judge} |") == 2
    for text in (
        "- `solver`",
        "- `steps` (solver steps; empty for adaptive solvers): 2",
        "; fingerprint `",
        "EMA weights after 64",
    ):
        assert text in card
    assert "`hustvl/LightningDiT` cannot hold this tokenizer: they have no layer that folds 2 x 2 pixels" in card
    (ours,) = re.findall(r"In the harness:\n\n```python\n(.*?)```", card, re.S)
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    exec(ours, names)
    assert {"tokenizer", "generator", "statistics"} <= set(names)


def test_what_no_form_can_hold_is_one_line(folded, trained, tmp_path, capsys):
    _, generator = trained(folded)
    target = tmp_path / "folder"
    for arguments, message in (
        (["f4d4", target, "--as", "diffusers"], "f4d4 has no form in diffusers: it folds 2 x 2 pixels into channels"),
        ([RUN, target, "--as", "diffusers"], "(unshuffle 2), for which AutoencoderKL has no layer; --as released has"),
        (["f4d8", target], "no run 'f4d8' in study 'desk'; nearest: f4d4"),
        ([RUN, target, "--images-seen", 48], "no snapshot at 48 images seen; there are 32, 64"),
        (["f4d4", target, "--images-seen", 32], "'f4d4' is a tokenizer"),
        ([RUN, target, "--study", "dekc"], "no study 'dekc'"),
        ([RUN, tmp_path / "results"], "results is there already, and is no empty folder: give a new one"),
    ):
        assert message in refused(capsys, tmp_path, *arguments)
    assert not target.exists()
    target.write_text("")
    assert "is there already" in refused(capsys, tmp_path, RUN, target)
    weights = generator.folder / "ema-000000000064.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert "is damaged" in refused(capsys, tmp_path, RUN, tmp_path / "torn")
    assert not (tmp_path / "torn").exists()


def test_a_frozen_encoder_has_no_form(folded):
    layout = folded.jobs[0].stages[0].spec.architecture
    with pytest.raises(ValueError, match="rae-lite0 cannot be exported: it encodes with the frozen lite0"):
        export.check_form("rae-lite0", dataclasses.replace(layout, frozen_encoder="lite0"), "released")


@pytest.mark.parametrize(
    ("name", "fits"),
    [("smoke", False), ("desk", False), ("desk-full", False), ("imagenet256", True), ("imagenet256-system", True)],
)
def test_scales_whose_tokenizers_diffusers_has(name, fits):
    """As docs/checkpoints.md lists them."""
    scale = SCALES[name]()
    layout = network_config(scale.autoencoder, channels=3, resolution=scale.resolution, latent_channels=16)
    export.check_form("a tokenizer", layout, "released")
    with nullcontext() if fits else pytest.raises(ValueError, match="it folds 2 x 2 pixels into channels"):
        export.check_form("a tokenizer", layout, "diffusers")
