"""Weight files: found, downloaded from a real server, checked; a plan lists the missing ones."""

import dataclasses
import functools
import hashlib
import http.server
import os
import sys
import threading
from types import SimpleNamespace

import pytest
from made_up import COMPUTE, data_spec, draw_pictures

import ablations.frontier
import ablations.released
from study import prefetch
from study.core import cards
from study.core.files import read_json
from study.data import download
from study.plan import needs, weight_files
from study.plan.data_spec import GIVEN_AS_FOLDER
from study.plan.estimate import stage_flops
from study.plan.resolve import make_plan
from study.plan.scales import SCALES
from study.report import carry_out
from study.submit import prepare
from study.submit.options import Sweep
from study.train import pretrained


@pytest.fixture
def server(tmp_path):
    """Serves a folder; yields the folder and its address."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.fixture
def mae(server, monkeypatch, tmp_path):
    """A small file 'mae' on that server, and an empty weights folder; returns the path of the served file."""
    folder, address = server
    monkeypatch.setenv("STUDY_WEIGHTS", str(tmp_path / "weights"))
    name = weight_files.FILES["mae"].file
    (folder / name).write_bytes(b"some weights")
    monkeypatch.setitem(
        weight_files.FILES, "mae", dataclasses.replace(weight_files.FILES["mae"], url=f"{address}/{name}")
    )
    return folder / name


def test_a_file_is_known_by_its_bytes_and_one_of_another_plan_is_refused(mae):
    with pytest.raises(ValueError, match=r"'mae' needs vit_large_patch16_224\.mae\.safetensors.*study\.prefetch"):
        weight_files.require_weights("mae")
    path = download.fetch_weights("mae")
    assert path.read_bytes() == b"some weights" == weight_files.require_weights("mae").read_bytes()
    assert list(read_json(path.parent / weight_files.HASHES)) == [path.name]
    planned = weight_files.content_hash("mae")
    assert planned == hashlib.sha256(b"some weights").hexdigest()
    path.write_bytes(b"other weights")
    assert weight_files.content_hash("mae") == hashlib.sha256(b"other weights").hexdigest()
    assert weight_files.require_weights("mae") == download.fetch_weights("mae") == path
    with pytest.raises(ValueError, match=f"is not the planned file: .* planned {planned[:8]}; plan again"):
        weight_files.require_weights("mae", planned)


def test_a_file_that_did_not_change_is_hashed_once(mae, monkeypatch):
    path = download.fetch_weights("mae")
    digest = weight_files.content_hash("mae")
    monkeypatch.setattr(weight_files, "_sha256", lambda path: pytest.fail("hashed again"))
    assert weight_files.content_hash("mae") == digest
    os.utime(path, (1, 1))
    with pytest.raises(pytest.fail.Exception):
        weight_files.content_hash("mae")


def test_a_dry_run_hashes_without_keeping_the_hash_and_a_sweep_keeps_it(mae, tmp_path, study_root):
    path = download.fetch_weights("mae")
    kept = path.parent / weight_files.HASHES
    kept.unlink()
    weight_files.COMPUTED.clear()
    pictures = draw_pictures(tmp_path / "pictures", side=32)
    options = Sweep(scale="smoke", set=("foundation_models=mae",), data=str(pictures), out=tmp_path / "out")
    plan = prepare.prepare(dataclasses.replace(options, dry_run=True))
    digest = hashlib.sha256(b"some weights").hexdigest()
    assert digest in [getattr(stage.spec, "foundation_weights", "") for stage in plan.stages]
    assert not kept.exists() and not list(study_root.iterdir()) and not (tmp_path / "out").exists()
    prepare.prepare(options)
    assert read_json(kept)[path.name]["sha256"] == digest


def test_a_download_with_another_hash_than_published_is_discarded(mae, monkeypatch):
    monkeypatch.setitem(weight_files.FILES, "mae", dataclasses.replace(weight_files.FILES["mae"], sha256="00000000"))
    with pytest.raises(ValueError, match="expected 00000000"):
        download.fetch_weights("mae")
    assert weight_files.find_weights("mae") is None
    assert not list(weight_files.weights_folder().iterdir())


def planned(scale, module=ablations.frontier, data=None):
    return make_plan("made", module, scale, data or data_spec(), COMPUTE, "test")


def test_what_a_plan_needs():
    assert needs.needed_files(planned(SCALES["desk"]()).stages) == []
    paper = SCALES["imagenet256"]()
    assert needs.needed_files(planned(paper).stages) == ["inception", "vgg", "dinov2", "mae", "adm-imagenet256"]
    lighter = dataclasses.replace(SCALES["smoke"](), foundation_models=("clip",))
    assert needs.needed_files(planned(lighter).stages) == ["clip"]
    # pretrained weights need no foundation model; the perceptual net is needed for judging only
    released = needs.needed_files(planned(paper, ablations.released, GIVEN_AS_FOLDER["imagenet"]).stages)
    theirs = [name for name in weight_files.FILES if name.startswith((weight_files.VAVAE, "lightningdit"))]
    assert released == ["inception", "vgg", "adm-imagenet256", *(name for name in theirs if "50ep" not in name)]
    assert len(released) == 3 + 4


def test_prefetch_downloads_missing_files_once(mae, monkeypatch, capsys):
    plan = planned(dataclasses.replace(SCALES["smoke"](), foundation_models=("mae",)))
    monkeypatch.setattr(prefetch, "prepare", lambda options: plan)
    assert needs.missing_here(plan.stages) == [
        "the foundation model 'mae': vit_large_patch16_224.mae.safetensors (1213 MB; python -m study.prefetch "
        "downloads it from 127.0.0.1)"
    ]
    assert prefetch.run(prefetch.Prefetch()) == 0
    assert "fetched  vit_large_patch16_224.mae.safetensors" in capsys.readouterr().out
    assert needs.missing_here(plan.stages) == []
    mae.unlink()  # must not be downloaded again
    assert prefetch.run(prefetch.Prefetch()) == 0
    assert "there    vit_large_patch16_224.mae.safetensors" in capsys.readouterr().out


def test_prefetch_reports_failed_downloads_and_how_to_get_them_by_hand(mae, monkeypatch, capsys):
    mae.unlink()
    data = dataclasses.replace(data_spec(256), content="", name="imagenet")
    plan = planned(dataclasses.replace(SCALES["smoke"](), foundation_models=("mae",)), data=data)
    monkeypatch.setattr(prefetch, "prepare", lambda options: plan)
    assert prefetch.run(prefetch.Prefetch()) == 1
    out = capsys.readouterr().out
    assert "missing  data imagenet at 256 px" in out
    assert "by hand: http://127.0.0.1" in out


@pytest.fixture
def bare(monkeypatch, study_root, tmp_path):
    """A machine without GPU and weights."""
    monkeypatch.delenv("STUDY_WEIGHTS", raising=False)
    monkeypatch.setattr(cards, "_found", lambda: ((), "there is no device file of one"))
    return tmp_path


def test_the_papers_plan_says_what_it_costs_and_what_is_missing(bare, capsys):
    options = Sweep(scale="imagenet256", dry_run=True, out=bare)
    plan = prepare.prepare(options)
    assert carry_out.run(options, plan) == 3
    out = capsys.readouterr().out
    for text in (
        "f16d64-dinov2 + LightningDiT-XL/1",
        "675M",
        "GPU hours",
        "one H100",
        "GB of data",
        "on cuda in bfloat16, tokenizers in tf32",
    ):
        assert text in out
    for text in (
        "the data: give imagenet as a folder", "weights-inception", "vgg16-397923af.pth", "dinov2", "a GPU",
        "the reference 'adm-imagenet256': VIRTUAL_imagenet256_labeled.npz (2000 MB; python -m study.prefetch "
        "downloads it from openaipublic.blob.core.windows.net)",
    ):  # fmt: skip
        assert any(text in line for line in plan.missing), text
    assert len(plan.runs) == 9 + 27
    assert carry_out.run(dataclasses.replace(options, dry_run=False), plan) == 3  # and nothing was started
    assert not (bare / "results" / "imagenet256" / "table.csv").exists()


def test_a_plan_of_published_checkpoints_names_their_files_and_trains_nothing(bare, capsys):
    options = Sweep(ablation="released", scale="imagenet256", dry_run=True, out=bare)
    plan = prepare.prepare(options)
    assert carry_out.run(options, plan) == 3
    for text in (
        "vavae-imagenet256-f16d32-dinov2.pt", "vavae-imagenet256-f16d32-dinov2-latents_stats.pt",
        "lightningdit-xl-imagenet256-64ep.pt", "lightningdit-xl-imagenet256-800ep.pt", "VIRTUAL_imagenet256_labeled",
    ):  # fmt: skip
        assert any(text in line and "study.prefetch" in line for line in plan.missing), text
    drawn = [stage.spec.sampling for stage in plan.stages if stage.kind == "sample"]
    assert {(s.samples, s.solver, s.steps, s.timestep_shift) for s in drawn} == {(50_000, "euler", 249, 0.3)}
    guided = [(s.guidance_scale, s.guidance_interval, s.guidance_channels) for s in drawn if s.guidance_scale != 1]
    assert guided == [(10.0, (0.1, 1.0), 3), (6.7, (0.125, 1.0), 3)]
    computed = [stage for stage in plan.stages if stage.kind in ("fit_tokenizer", "encode", "fit_generator")]
    assert {stage_flops(stage) for stage in computed} == {0}


def test_a_plan_of_baselines_names_every_tokenizer_and_where_it_comes_from(bare, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    options = Sweep(ablation="baselines", scale="imagenet256", dry_run=True, out=bare)
    plan = prepare.prepare(options)
    assert carry_out.run(options, plan) == 3
    assert "python -m study.prefetch baselines --scale imagenet256" in capsys.readouterr().out
    for text in (
        "the tokenizer sd-vae-f8d4: sd-vae-ft-ema.safetensors (335 MB; python -m study.prefetch downloads it from hugg",
        "the tokenizer mar-vae-f16d16: mar-vae-kl16.ckpt (266 MB; python -m study.prefetch downloads it from www.drop",
        "SD-VAE: the package diffusers",
    ):  # fmt: skip
        assert any(line.startswith(text) for line in plan.missing), text
    fits = {stage.spec.tokenizer: stage.spec for stage in plan.stages if stage.kind == "fit_tokenizer"}
    assert len(fits) == 10 == len({spec.pretrained.name for spec in fits.values()})
    assert all(spec.pretrained.name in weight_files.FILES and spec.pretrained.sha256 == "" for spec in fits.values())
    networks = {stage.spec.tokenizer: stage.spec.architecture for stage in plan.stages if stage.kind == "fit_generator"}
    sd_vae = networks["sd-vae-f8d4"]
    assert (sd_vae.name, sd_vae.grid, sd_vae.in_channels) == ("LightningDiT-B/2", 32, 4)
    assert {network.tokens for network in networks.values()} == {256}
    fit = next(stage for stage in plan.stages if stage.kind == "fit_tokenizer")
    fit.folder.mkdir(parents=True)
    with pytest.raises(ValueError, match=r"needs sd-vae-ft-ema\.safetensors .* python -m study\.prefetch downloads it"):
        pretrained.write_tokenizer(fit.spec, SimpleNamespace(folder=fit.folder))


def test_a_plan_for_a_cluster_does_not_ask_for_a_gpu_here(bare, monkeypatch):
    monkeypatch.setattr("study.submit.prepare.require_slurm", lambda: None)
    plan = prepare.prepare(Sweep(scale="imagenet256", executor="slurm", out=bare))
    assert not any(line.startswith("a GPU") for line in plan.missing)
    assert plan.compute.device == "cuda"
