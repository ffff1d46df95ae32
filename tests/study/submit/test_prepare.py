"""What a plan lacks on this machine."""

import shlex

import pytest
import tyro
from made_up import TINY, draw_pictures, made_cards

from study.core import cards
from study.plan.estimate import note_cluster
from study.plan.weight_files import weight_file
from study.prefetch import Prefetch
from study.report import carry_out
from study.submit import prepare as prepare_module
from study.submit.options import Sweep
from study.submit.prepare import prepare, prepare_setting, resolve_scale


@pytest.mark.parametrize(("gpus", "processes", "missing"), [(1, 2, True), (2, 2, False), (4, 2, False), (1, 1, False)])
def test_more_processes_than_gpus_are_missing_gpus(gpus, processes, missing, tmp_path, monkeypatch):
    monkeypatch.setattr(cards, "_found", lambda: (made_cards(gpus), ""))
    tiny = [text for text in TINY[3::2]]
    options = Sweep(
        scale="smoke",
        data=str(draw_pictures(tmp_path / "pictures")),
        set=(*tiny, "device=cuda", f"execution.processes={processes}"),
        out=tmp_path / "out",
    )
    lines = [line for line in prepare_setting(options).missing if "GPU" in line]
    assert bool(lines) == missing
    if missing:
        assert lines[0].startswith("a GPU for each of execution.processes 2: this machine has 1 ")


# What a scale falls back to


def scale_here(monkeypatch, *options, found=()):
    monkeypatch.setattr(cards, "_found", lambda: (tuple(found), "none"))
    return resolve_scale(Sweep(scale="gpu", set=options))


@pytest.mark.parametrize(
    ("found", "options", "precision"),
    [
        ((), (), "bfloat16"),  # planned elsewhere
        (made_cards(2), (), "bfloat16"),
        (made_cards(1, bfloat16=False), (), "float32"),
        ((*made_cards(1), *made_cards(1, bfloat16=False)), (), "float32"),
        (made_cards(1, bfloat16=False), ("precision=bfloat16",), "bfloat16"),  # as it was asked
    ],
)
def test_generators_are_float32_where_a_card_does_not_multiply_in_bfloat16(monkeypatch, found, options, precision):
    assert scale_here(monkeypatch, *options, found=found).precision == precision


def test_tokenizers_are_aligned_with_what_has_weights_here(monkeypatch, tmp_path):
    monkeypatch.setenv("STUDY_WEIGHTS", str(tmp_path))
    assert scale_here(monkeypatch).foundation_models == ("lite0",)
    assert scale_here(monkeypatch, "foundation_models=dinov2").foundation_models == ("dinov2",)
    (tmp_path / weight_file("dinov2").file).touch()
    assert scale_here(monkeypatch).foundation_models == ("dinov2",)


def test_a_plan_says_what_it_falls_back_to(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("STUDY_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(cards, "_found", lambda: (made_cards(1, name="Tesla T4", bfloat16=False), ""))
    options = Sweep(scale="gpu", data="imagenet", resolution=64, dry_run=True, out=tmp_path)
    carry_out.run(options, prepare(options))
    out = capsys.readouterr().out
    assert "Tesla T4 does not multiply in bfloat16: generators in float32" in out
    assert "weights of dinov2 are not here (python -m study.prefetch --scale gpu --set foundation_models=dinov2)" in out
    assert "on cuda in float32" in out and "1000 classes" in out


def test_a_folder_is_not_trained_on_at_its_own_size_at_a_scale_for_gpus(tmp_path):
    """That of ImageNet would be 400 px; a desk's pictures are small, or asked for."""
    pictures = str(draw_pictures(tmp_path / "pictures", side=40))
    at_gpu, at_desk = (Sweep(scale=name, data=pictures, dry_run=True, out=tmp_path) for name in ("gpu", "smoke"))
    assert prepare_setting(at_gpu).data.resolution == 32
    assert prepare_setting(at_desk).data.resolution == 40


@pytest.mark.parametrize(
    ("gib", "hint"),
    [
        (80.0, "; Made GPU has 80 GiB: --set execution.processes=8 --set execution.microbatch_images=64 would fit"),
        (4.0, "; Made GPU has 4 GiB: python -m study.doctor tries what fits"),
        (2_000.0, ""),
    ],
)
def test_a_plan_says_how_much_memory_it_takes_and_what_helps_where_there_is_less(
    gib, hint, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(cards, "_found", lambda: (made_cards(1, gib), ""))
    # where this machine can compile, a generator takes less and a tokenizer is the largest
    options = Sweep(scale="imagenet256", set=("execution.compile=False",), dry_run=True, out=tmp_path)
    carry_out.run(options, prepare(options))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "GiB of GPU memory" in line]
    assert "by the estimate, for fit_generator LightningDiT-XL/1" in line
    assert hint in line
    assert ("; " in line) == bool(hint)


def test_without_a_gpu_a_plan_has_to_fit_the_clusters(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cards, "_found", lambda: ((), "none"))
    options = Sweep(scale="gpu", dry_run=True, out=tmp_path)
    for name, gib in (("Small GPU", 4.0), ("Large GPU", 80.0)):
        note_cluster(name, gib)
        carry_out.run(options, prepare(options))
        assert (f"{name} has 4 GiB" in capsys.readouterr().out) == (gib == 4.0)


@pytest.mark.parametrize(
    ("scale", "ablation", "profile", "at_once", "time"),
    [
        ("imagenet256", "frontier", "parallel = 4", "at most 4 jobs at once", " hours on 8 GPUs)"),
        ("imagenet256-system", "system", "parallel = 4", "at most 4 jobs at once", " hours on 2 GPUs)"),  # in turn
        ("imagenet256-system", "system", "parallel = 1", "at most 1 job at once", " hours on 2 GPUs)"),
    ],
)
def test_a_plan_says_how_long_it_takes_on_the_gpus_of_a_cluster(
    scale, ablation, profile, at_once, time, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(cards, "_found", lambda: ((), "none"))
    monkeypatch.setattr(prepare_module, "require_slurm", lambda: None)
    (tmp_path / "profile.toml").write_text(profile)
    options = Sweep(
        ablation=ablation, scale=scale, set=("execution.processes=2",), executor="slurm",
        cluster=tmp_path / "profile.toml", dry_run=True, out=tmp_path,
    )  # fmt: skip
    carry_out.run(options, prepare(options))
    out = capsys.readouterr().out
    assert at_once in out
    assert time in out


@pytest.mark.parametrize(("gpus", "time"), [(0, "GPU hours; "), (1, " hours on 1 GPU); "), (8, " hours on 8 GPUs); ")])
def test_a_plan_says_how_long_it_takes_on_the_gpus_of_this_machine(gpus, time, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cards, "_found", lambda: (made_cards(gpus), ""))
    options = Sweep(scale="gpu", dry_run=True, out=tmp_path)
    carry_out.run(options, prepare(options))
    assert time in capsys.readouterr().out


def test_what_downloads_is_asked_for_what_the_plan_asks(monkeypatch, tmp_path, capsys):
    """Other settings need other files."""
    monkeypatch.setenv("STUDY_WEIGHTS", str(tmp_path))
    options = Sweep(
        ablation="where_to_align", scale="imagenet256", data="imagenet", resolution=256,
        set=("foundation_models=clip", "judges=('inception', 0),"), dry_run=True, out=tmp_path,
    )  # fmt: skip
    carry_out.run(options, prepare(options))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("to download: ")]
    words = shlex.split(line.removeprefix("to download: "))
    assert words[:3] == ["python", "-m", "study.prefetch"]
    asked = tyro.cli(Prefetch, args=words[3:])
    assert all(getattr(asked, name) == getattr(options, name) for name in ("ablation", "scale", "data", "resolution"))
    assert asked.set == options.set
