"""The command study.sweep: user errors are one line, sweeps end with a table and figures, and nothing runs twice."""

import os
import pkgutil
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
from interrupting import weights
from made_up import TINY, draw_pictures

import ablations
from results.table import load
from study.core.files import read_json
from study.sweep import main


def sweep(*arguments, **options):
    command = [sys.executable, "-m", "study.sweep", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


def start(*arguments):
    command = [sys.executable, "-m", "study.sweep", *map(str, arguments)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in the background
    )


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return draw_pictures(tmp_path_factory.mktemp("data") / "shapes", side=96)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frontir"], "unknown ablation 'frontir'; nearest: frontier"),
        (["--scale", "dekc"], "unknown scale 'dekc'; nearest: desk"),
        (["--scale", "smoke", "--data", "/nowhere"], "no data set and no folder '/nowhere'"),
        (["--scale", "smoke", "--set", "tokenizer.raet=1"], "no field 'raet' in TokenizerRecipe"),
        (["--scale", "smoke", "--set", "tokenizer.budget_images=many"], "must be a whole number, got 'many'"),
        (["--scale", "smoke", "--set", "tokenizer"], "--set takes FIELD=VALUE"),
        (["--scale", "smoke", "--jobs", "0"], "--jobs must be at least 1"),
        (["--scale", "smoke", "--study", "../x"], "--study must be a plain folder name"),
        (["--scale", "smoke", "--out", "/proc/none"], "cannot write to /proc/none"),
        (["--scale", "smoke", "--dry-run", "--out", "/proc/version/none"], "cannot write to /proc/version/none"),
        (["--scale", "smoke", "--executor", "slurm"], "needs the command sbatch"),
    ],
)
def test_bad_input_is_one_clear_line_before_any_job(arguments, message, called, study_root, tmp_path, monkeypatch):
    if "--out" not in arguments:
        arguments = [*arguments, "--out", tmp_path]
    if "slurm" in arguments:
        monkeypatch.setenv("PATH", "/nonexistent")
    done = called(main, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (study_root / "jobs").exists()


def test_a_process_ends_with_that_line_and_nothing_else(tmp_path):
    done = sweep("frontir", "--out", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("study.sweep: unknown ablation 'frontir'")


def test_a_size_that_does_not_fit_is_refused_with_those_that_do(called, pictures, tmp_path):
    done = called(main, "--scale", "smoke", "--data", pictures, "--resolution", "30", "--out", tmp_path)
    assert done.returncode == 2
    assert "nearest that fit: 24, 32, 40" in done.stderr


def test_help_names_the_options_and_what_they_do(called):
    done = called(main, "--help")
    assert done.returncode == 0
    for text in ("--data", "--executor", "--dry-run", "Slurm", "run the same command again"):
        assert text.lower() in done.stdout.lower()


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["--data", "PICTURES"], ["data shapes, 3 classes, 48 training images of 96 px", "0 done before"]),
        (["--data", "fashion-mnist"], ["data fashion-mnist, 10 classes, 48 training images of 32 px"]),
        (["--data", "cifar10", "--executor", "inline"], ["data cifar10, 10 classes, 48 training images of 32 px"]),
    ],
)
def test_a_dry_run_writes_nothing_and_plans_what_is_not_packed(
    arguments, texts, called, pictures, tmp_path, study_root
):
    arguments = [pictures if argument == "PICTURES" else argument for argument in arguments]
    done = called(main, *TINY, *arguments, "--out", tmp_path / "out", "--dry-run")
    assert done.returncode == 0, done.stdout + done.stderr
    line = "What is done already is not known: runs are identified by the content of the data, which is read when it is"
    for text in (*texts, line, "f4d4 + LightningDiT-XXS/2"):
        assert text in done.stdout
    assert "missing here" not in done.stdout
    assert not list(study_root.iterdir()) and not (tmp_path / "out").exists()


def test_a_list_writes_nothing(called, pictures, tmp_path, study_root):
    done = called(main, "--list", "--scale", "smoke", "--data", pictures, "--out", tmp_path / "out")
    assert done.returncode == 0 and "frontier (default)" in done.stdout
    assert not list(study_root.iterdir()) and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_your_own_pictures_become_a_table_and_figures_and_a_second_sweep_computes_nothing(
    pictures, tmp_path, study_root
):
    arguments = [*TINY, "--data", pictures, "--out", tmp_path]
    done = sweep(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (tmp_path / "results").iterdir()
    assert folder.name.startswith("smoke-shapes-96-")
    table = pd.read_csv(folder / "table.csv")
    assert set(table["state"]) == {"done"}
    assert len(table) == 2 + 2 * 2
    assert set(table["resolution"]) == {96}
    assert table.loc[table["kind"] == "generator", "gfid"].notna().all()
    for name in ("frontier", "convergence", "scaling", "reconstructions", "samples"):
        for suffix in ("png", "pdf", "csv"):
            assert (tmp_path / "figures" / folder.name / f"{name}.{suffix}").stat().st_size > 100
    report = (folder / "report.html").read_text()
    assert report.count("data:image/png") > 5
    assert "report   " in done.stdout
    before = {path: path.stat().st_mtime_ns for path in study_root.rglob("*") if path.is_file()}
    began = time.monotonic()
    again = sweep(*arguments)
    assert time.monotonic() - began < 5
    assert again.returncode == 0
    assert "nothing to do" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in study_root.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_a_sweep_over_guidance_ends_with_none_and_best_and_its_figure(pictures, tmp_path):
    small = ["--set", "foundation_models=()", "--set", "guidance_scales=1,3", "--resolution", 32, "--study", "swept"]
    done = sweep("guidance", *TINY, *small, "--data", pictures, "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    heading, numbers = (line.split() for line in done.stdout.split("chosen on other samples\n")[1].splitlines()[:2])
    assert heading == ["generator", "judge", "none", "best", "at", "scale"]
    assert numbers[:4] == ["f4d4", "+", "LightningDiT-XXS/2", "classifier"] and len(numbers) == 7
    table = pd.read_csv(tmp_path / "results" / "swept" / "table.csv")
    drawn = table[table["kind"] == "generator"]
    assert set(drawn["state"]) == {"done"} and len(drawn) == 2 * 2
    left = [line.split(":")[0].strip() for line in done.stdout.splitlines() if "not drawn" in line]
    # too few latents for their distribution
    assert left == ["figure uniformity not drawn", "figure latent_maps not drawn"]
    assert (tmp_path / "figures" / "swept" / "guidance.png").stat().st_size > 100


# The test above sweeps over guidance; the others need published tokenizers, which no small scale builds
ELSEWHERE = ("guidance", "released", "baselines")
RUNS = """
import sys, tyro
from figures.render import Rendered
from study.report import refresh
from study.report.carry_out import run
from study.submit.options import Sweep
from study.submit.prepare import prepare
draw = refresh.render
for name in sys.argv[1].split():  # drawn once, at the end: after each it would take most of the time
    last = name == sys.argv[1].split()[-1]
    refresh.render = draw if last else lambda study, out: Rendered([], {}, {})
    options = tyro.cli(Sweep, args=[name, *sys.argv[2:]])
    assert run(options, prepare(options)) == 0, name
"""


@pytest.mark.slow
def test_every_ablation_that_the_scale_can_ask_runs_and_their_tables_are_one(pictures, tmp_path):
    names = " ".join(
        each.name for each in pkgutil.iter_modules(ablations.__path__) if not each.ispkg and each.name not in ELSEWHERE
    )
    settings = ["--resolution", 16, "--study", "all", "--set", "generators=LightningDiT-XXS/2,LightningDiT-XXS/1"]
    settings += ["--set", "generator.snapshot_images=64"]
    options = [*TINY, *settings, "--executor", "inline", "--data", pictures, "--out", tmp_path]
    command = [sys.executable, "-c", RUNS, names, *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    table = load(tmp_path / "results" / "all" / "table.csv")
    assert set(table["state"]) == {"done"}
    assert " ".join(sorted({name for asked in table["ablations"] for name in asked})) == names
    shared = table[(table["run"] == "f4d4 + LightningDiT-XXS/2") & (table["images_seen"] == 64)]  # named as ever
    called = [
        "alignment 0: none [foundation_model]", "foundation_models 0: none", "latents 0: f4d4",
        "recipe 8: + rotary positions [rope]", "repa 0: none",
        "tokenizer_budget 2: f4d4 of 64 images [tokenizer.budget_images]", "tokenizer_settings 0: as the scale",
        "vf_loss 0: none [foundation_model]", "where_to_align 0: d4: none",
    ]  # fmt: skip
    assert list(map(str, shared["labels"].item())) == called
    assert " ".join(shared["ablations"].item()) == names.replace(" system", "")  # which has the aligned tokenizer alone
    folder = tmp_path / "figures" / "all"
    assert {path.stem for path in folder.glob("*.png")} >= {
        "scaling", "ladder", "foundation_models", "vf_loss", "where_to_align", "latents", "foretell",
    }  # fmt: skip


# The paper's scale with small budgets and networks, and the pretrained networks of the desk scale. Every component is
# in use: attention, discriminator, perceptual term, VF loss, mirrored latents, dopri5
SHRUNK = {
    "device": "cpu", "latent_channels": "4", "foundation_models": "lite0", "generators": "LightningDiT-XXS/1",
    "judges": "('efficientnet_lite2', 64),", "autoencoder.ch": 8, "autoencoder.norm_groups": 8,
    "autoencoder.attention_grids": 4, "foundation.input_size": 64, "tokenizer.budget_images": 64,
    "tokenizer.batch_images": 8, "tokenizer.perceptual_net": "lite0", "tokenizer.gan_start_images": 32,
    "tokenizer.gan_width": 8, "generator.budget_images": 64, "generator.snapshot_images": "32,64",
    "generator.batch_images": 8, "sampling.samples": 12, "sampling.chunk": 6, "evaluation.reference_images": 24,
    "evaluation.reconstruct_images": 8, "evaluation.perceptual_net": "lite2",
    "evaluation.reference": "",
}  # fmt: skip


@pytest.mark.slow
def test_the_papers_scale_runs_with_all_components_when_it_is_shrunk(pictures, tmp_path, study_root):
    settings = [part for name, value in SHRUNK.items() for part in ("--set", f"{name}={value}")]
    command = ["--scale", "imagenet256", "--data", pictures, "--resolution", 64, "--study", "shrunk", *settings]
    done = sweep(*command, "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    table = pd.read_csv(tmp_path / "results" / "shrunk" / "table.csv")
    assert set(table["state"]) == {"done"}
    assert set(table["tokenizer"]) == {"f16d4", "f16d4-lite0"}
    assert set(table["extractor"]) == {"efficientnet_lite2"} and set(table["comparable"]) == {False}
    assert set(table["solver"].dropna()) == {"dopri5"}
    assert {path.stem for path in (tmp_path / "figures" / "shrunk").glob("*.png")} >= {"frontier", "samples"}


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError("did not happen in time")


def training(study_root):
    """Folder and lease of a tokenizer that is training, or None."""
    for path in study_root.glob("stages/fit_tokenizer/*/lease.json"):
        lease = read_json(path)
        if lease and lease["progress"].get("done"):
            return path.parent, lease
    return None


LONG = [*TINY, "--set", "tokenizer.budget_images=6400", "--set", "foundation_models=()", "--resolution", "32"]


@pytest.mark.slow
def test_a_job_whose_sweep_was_killed_is_adopted_and_no_second_writer_starts(pictures, tmp_path, study_root):
    arguments = [*LONG, "--data", pictures, "--out", tmp_path]
    first = start(*arguments)
    folder, lease = wait_for(lambda: training(study_root))
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert os.path.exists(f"/proc/{lease['pid']}")  # the job itself is still running
    second = start(*arguments)
    holders = set()

    def finished():
        now = read_json(folder / "lease.json")
        if now:
            holders.add(now["token"])
        return second.poll() is not None

    wait_for(finished, 200)
    assert second.returncode == 0, second.stdout.read()
    assert holders == {lease["token"]}  # the same writer from beginning to end
    assert len(list((study_root / "jobs").glob("tokenizer-*/*_submitted.pkl"))) == 1
    assert (folder / "record.json").exists()


@pytest.mark.slow
def test_an_adopted_job_that_dies_goes_on(pictures, tmp_path, study_root):
    arguments = [*LONG, "--data", pictures, "--out", tmp_path]
    first = start(*arguments)
    _, lease = wait_for(lambda: training(study_root))
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = start(*arguments)
    wait_for(lambda: "fit_tokenizer" in second.stdout.readline())  # it watches the job of the first
    os.kill(lease["pid"], signal.SIGKILL)
    output, _ = second.communicate(timeout=200)
    assert second.returncode == 0, output


@pytest.mark.slow
def test_a_job_that_was_killed_itself_says_so_and_the_same_command_ends_with_the_same_bits(
    pictures, tmp_path, study_root
):
    arguments = [*LONG, "--data", pictures, "--out", tmp_path]
    first = start(*arguments)
    folder, lease = wait_for(lambda: training(study_root))
    os.kill(lease["pid"], signal.SIGKILL)
    output, _ = first.communicate(timeout=120)
    assert first.returncode == 1
    assert "the process ended without a record" in output
    table = pd.read_csv(next((tmp_path / "results").iterdir()) / "table.csv")
    assert set(table["state"]) == {"failed", "blocked"}
    assert table["log"].str.contains("_log.out").all()
    done = sweep(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    resumed = (folder / "tokenizer.safetensors").read_bytes()
    os.environ["STUDY_ROOT"] = str(study_root / "again")
    whole = sweep(*arguments, "--out", tmp_path / "again")
    assert whole.returncode == 0
    assert (study_root / "again" / folder.relative_to(study_root) / "tokenizer.safetensors").read_bytes() == resumed


@pytest.mark.slow
def test_a_sweep_whose_disk_fills_says_so_and_the_same_command_goes_on_when_there_is_room(
    pictures, tmp_path, study_root, monkeypatch
):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)]  # not enough for a generator's snapshots
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here, which needs root: {mounted.stderr.strip()}")
    arguments = [*TINY, "--set", "foundation_models=()", "--resolution", 32, "--data", pictures]
    try:
        monkeypatch.setenv("STUDY_ROOT", str(disk / "root"))
        full = sweep(*arguments, "--out", tmp_path)
        assert full.returncode == 1, full.stdout + full.stderr
        table = pd.read_csv(next((tmp_path / "results").iterdir()) / "table.csv")
        assert table.set_index("kind").loc["tokenizer", "state"] == "done"
        generators = table[table["kind"] == "generator"].set_index("images_seen")
        assert generators["state"][64] == "failed"  # the first mark may have found room
        failed = generators.query("state == 'failed'")["reason"]
        assert failed.str.contains("No space left on device").all(), failed.tolist()
        (folder,) = (disk / "root" / "stages" / "fit_generator").iterdir()
        assert not list(folder.glob(".*.safetensors.*"))
        subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
        done = sweep(*arguments, "--out", tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        found = weights(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
    monkeypatch.setenv("STUDY_ROOT", str(study_root))
    assert sweep(*arguments, "--out", tmp_path / "undisturbed").returncode == 0
    folder = study_root / "stages" / "fit_generator" / folder.name
    assert weights(folder) == found
    assert len(found) == 4


@pytest.mark.slow
def test_a_sweep_that_is_interrupted_saves_and_says_how_to_go_on(pictures, tmp_path, study_root):
    arguments = [*LONG, "--data", pictures, "--out", tmp_path]
    first = start(*arguments)
    folder, lease = wait_for(lambda: training(study_root))
    first.send_signal(signal.SIGINT)
    output, _ = first.communicate(timeout=60)
    assert first.returncode == 130
    assert "run the same command again to continue" in output
    assert not os.path.exists(f"/proc/{lease['pid']}")
    assert list(folder.glob("checkpoint-*"))
    assert not (folder / "failure.json").exists()
    assert (tmp_path / "results").exists()
