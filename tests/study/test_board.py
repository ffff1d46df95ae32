"""The board: what is entered comes from a table, what was edited is refused, and a check runs the command again."""

import csv
import dataclasses
import os
import re

import pytest
import tyro
from made_up import TINY, draw_pictures, finish

from figures import board as figure
from results import board
from results.table import load as load_table
from results.table import write as write_table
from study import board as command
from study.core.files import read_json, write_json
from study.core.paths import CHECKOUT, study_root
from study.plan.specs import FitGenerator
from study.plan.stage import RECORD
from study.report import carry_out
from study.report.table_rows import update_table
from study.submit.launches import note_sweep
from study.submit.options import Sweep
from study.submit.prepare import prepare

JUDGES = ("efficientnet_lite2", "classifier")
TRACK = board.Track(
    title="A test", data="pictures", resolution=32, tokenizer_images=64, generator_images=64, cores=256, minutes=1.0,
    judges=JUDGES, samples=12,
)  # fmt: skip
ASKED = [
    "system", *TINY, "--set", "generator.snapshot_images=64", "--set", "foundation_models=()",
    "--set", "judges=(('efficientnet_lite2', 64), ('classifier', 0))",
]  # fmt: skip
SEEDS = ["--set", "seeds=1000,1001,1002", "--set", "tokenizer_seeds=1000,1001,1002"]
GFID = {1000: 100.0, 1001: 101.0, 1002: 102.0}


@pytest.fixture(autouse=True)
def track(monkeypatch):
    monkeypatch.setitem(board.TRACKS, "test", TRACK)


@pytest.fixture(autouse=True)
def undrawn(request, monkeypatch):
    """No test but those that look at figures draws one."""
    if "drawn" not in request.node.name:
        monkeypatch.setattr(command, "_draw", lambda records, folder: None)


@pytest.fixture
def pictures(tmp_path):
    return draw_pictures(tmp_path / "pictures", side=32)


def measure(plan, out, gfid=GFID, commit="1a2b3c4d5e6f", **metrics):
    """Leave records as the stages would, with these gFIDs by seed (the classifier's a tenth), and write the table."""
    for stage in plan.stages:
        finish(stage)
        content = read_json(stage.folder / RECORD)
        if content is None:
            continue
        content["provenance"] = {**content["provenance"], "commit": commit}
        if stage.kind == "judge":
            (pictures,) = stage.inputs.values()
            made = pictures.inputs["generator"].spec if "samples" in stage.inputs else None
            scale = 0.1 if stage.spec.judge.name == "classifier" else 1.0
            number = {"gfid": scale * gfid[made.seed]} if isinstance(made, FitGenerator) else {}
            content["metrics"] |= {"comparable": True, **number, **metrics}
        write_json(stage.folder / RECORD, content)
    update_table(plan, out)


@pytest.fixture
def swept(pictures, tmp_path):
    """`swept(name, *options)`: a study of this name, measured under its options, and noted as launched."""

    def sweep(name, *options, **measured):
        arguments = [*ASKED, *(options or SEEDS), "--data", str(pictures), "--study", name, "--out", str(tmp_path)]
        asked = tyro.cli(Sweep, args=arguments, config=(tyro.conf.FlagCreatePairsOff,))
        plan = prepare(asked)
        note_sweep(asked, plan, starts=True)
        measure(plan, tmp_path, **measured)
        return plan

    (tmp_path / "docs").mkdir()
    return sweep


def told(capsys, tmp_path, *arguments, code=0):
    """What the command writes; it must end with this code, and a refusal is one line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["board", *map(str, arguments), "--out", str(tmp_path)])
        ended = command.main()
    said = capsys.readouterr()
    assert ended == code, said.out + said.err
    assert code != 2 or len(said.err.splitlines()) == 1
    return said.err if code == 2 else said.out


def add(capsys, tmp_path, name="mine", **expected):
    arguments = ["add", name, "--new", "Nothing is new.", "--track", "test"]
    return told(capsys, tmp_path, *arguments, **expected)


def edit_table(tmp_path, name, which, **changed):
    """Change cells in some rows of a study's table; `which` is a function of the table."""
    path = tmp_path / "results" / name / "table.csv"
    table = load_table(path)
    for column, value in changed.items():
        table.loc[which(table), column] = value
    write_table(table, path)


# A record


def test_a_study_that_was_swept_is_entered_by_its_table_and_its_launch_and_drawn(swept, tmp_path, capsys, monkeypatch):
    swept("mine")
    said = add(capsys, tmp_path)
    assert said.startswith(
        "added mine to track test: python -m study.sweep system --scale smoke --data pictures --set "
    )
    assert str(tmp_path) not in (tmp_path / "results" / "board.csv").read_text()
    (entry,) = board.load(tmp_path / "results")
    record = entry.record
    assert record.gfid == pytest.approx({"efficientnet_lite2": 101.0, "classifier": 10.1})
    assert record.gfid_of_seeds["efficientnet_lite2"] == (100.0, 101.0, 102.0)
    assert record.seeds == ((1000, 1000), (1001, 1001), (1002, 1002))
    assert (record.run, record.commit) == ("f4d4 + LightningDiT-XXS/2", "1a2b3c4d5e6f")
    assert (record.tokenizer_images, record.generator_images) == (64, 64)
    assert record.wall_seconds == 2 * 1.0 + 2 * 3 * 2.0  # both trainings; pictures and two judges of each
    assert len(entry.rows) == 12  # tokenizers and generators, by two judges with three seeds
    written = {path.name for path in (tmp_path / "figures" / "board").iterdir()}
    assert written == {"board.png", "board.pdf", "board.csv"}
    page = (tmp_path / "docs" / "board.md").read_text()
    assert "| mine | Nothing is new. | 101 (100–102) | 10.10 (10.00–10.20) | 14 s on 1 core of d |" in page
    assert record.command in page and "![Records over time](../figures/board/board.png)" in page
    monkeypatch.setenv("COLUMNS", "200")
    listed = told(capsys, tmp_path, "list")
    assert "101 (100–102)" in listed and "gpu-hour: One GPU, an hour: no record stands yet" in listed
    assert "mine is on the board already" in add(capsys, tmp_path, code=2)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--set", "seeds=1000,1001", "--set", "tokenizer_seeds=1000,1001"], "a record needs 3 seeds"),
        (["--set", "seeds=1000,1001,1002", "--set", "tokenizer_seeds=1000,"], "seeds of tokenizers repeat, so that"),
        (["--set", "seeds=0,1,2", "--set", "tokenizer_seeds=0,1,2"], "seeds below 1000 are for choosing settings"),
        ([*SEEDS, "--set", "judges=('efficientnet_lite2', 64),"], "no score by classifier; track test needs"),
        ([*SEEDS, "--set", "sampling.samples=24"], "gFID of 24 samples; track test scores 12"),
        ([*SEEDS, "--set", "generator.budget_images=128", "--set", "generator.snapshot_images=128"],
         "the generator saw 128 images; track test allows 64"),
        ([*SEEDS, "--set", "tokenizer.budget_images=72"], "the tokenizer saw 72 images; track test allows 64"),
    ],
)  # fmt: skip
def test_what_a_track_does_not_allow_is_refused(swept, tmp_path, capsys, options, reason):
    swept("mine", *options, gfid={seed: 100.0 for seed in (0, 1, 2, *GFID)})
    assert reason in add(capsys, tmp_path, code=2)
    assert not (tmp_path / "results" / "board.csv").exists()


@pytest.mark.parametrize(
    ("which", "changed", "reason"),
    [
        (lambda t: t["seed"] == 1002, {"state": "failed", "reason": "no room", "gfid": None},
         "4 of 12 rows are not done, such as f4d4 (seed 1002)"),
        (lambda t: (t["seed"] == 1002) & (t["kind"] == "generator"), {"tokenizer": "f4d8"},
         "this study has 2: f4d4 + LightningDiT-XXS/2, f4d8 + LightningDiT-XXS/2; sweep one alone"),
        (lambda t: (t["seed"] == 1002) & (t["extractor"] == "classifier"), {"protocol": "another"},
         "scores by classifier mix several protocols"),
        (lambda t: t["extractor"] == "classifier", {"comparable": False}, "scores by classifier are not comparable"),
        (lambda t: t["seed"] == 1002, {"data": "photos"}, "trained on photos at 32 px; track test is on pictures"),
        (lambda t: t["seed"] == 1002, {"train_threads": 300}, "was trained on 300 cores; track test allows 256"),
        (lambda t: t["seed"] == 1002, {"train_seconds": 31.0}, "trained for 1.0 minutes; track test allows 1"),
        (lambda t: t["seed"] == 1002, {"pretrained_weights": "theirs.pt 0123"}, "pretrained weights are in no budget"),
        (lambda t: t["seed"] == 1002, {"commit": "1a2b+changes"}, "judged by 1a2b+changes and 1a2b3c4d5e6f"),
    ],
)  # fmt: skip
def test_rows_that_are_no_evidence_are_refused(swept, tmp_path, capsys, which, changed, reason):
    swept("mine")
    edit_table(tmp_path, "mine", which, **changed)
    assert reason in add(capsys, tmp_path, code=2)
    assert not (tmp_path / "results" / "board.csv").exists()


def test_a_study_without_table_launch_or_commit_is_refused(swept, tmp_path, capsys):
    assert "no table of study 'mine'" in add(capsys, tmp_path, code=2)
    plan = swept("mine", commit="1a2b3c4d5e6f+changes")
    assert "was computed by 1a2b3c4d5e6f+changes: commit the code" in add(capsys, tmp_path, code=2)
    measure(plan, tmp_path)
    (note,) = study_root().glob("sweeps/mine/*.json")
    note.unlink()
    assert "nothing was started under" in add(capsys, tmp_path, code=2)
    assert "no track 'tst'; nearest: test" in told(
        capsys, tmp_path, "add", "mine", "--new", "x", "--track", "tst", code=2
    )


def test_seeds_that_another_study_trained_with_are_not_held_out(swept, tmp_path, capsys):
    swept("tuning", "--set", "seeds=1002,", "--set", "tokenizer_seeds=7,")
    swept("mine")
    assert "seeds are not held out: study tuning trained with seed 1002" in add(capsys, tmp_path, code=2)
    (tmp_path / "results" / "tuning" / "table.csv").unlink()
    add(capsys, tmp_path)
    swept("next", *SEEDS, "--set", "generator.learning_rate=0.002", gfid={seed: 90.0 for seed in GFID})
    add(capsys, tmp_path, "next")  # records may share their seeds
    names = [record.name for record in board.of_track([one.record for one in board.load(tmp_path / "results")], "test")]
    assert names == ["next", "mine"]


def test_records_of_a_track_were_scored_alike(swept, tmp_path, capsys):
    swept("mine")
    add(capsys, tmp_path)
    swept("next", *SEEDS, "--set", "generator.learning_rate=0.002")
    edit_table(tmp_path, "next", lambda t: t["extractor"] == "classifier", reference_hash="trained here")
    edit_table(tmp_path, "next", lambda t: t["extractor"] != "classifier", reference_hash="other images")
    assert "reference_hash by efficientnet_lite2 is other images, and " in add(capsys, tmp_path, "next", code=2)
    same = load_table(tmp_path / "results" / "mine" / "table.csv")["reference_hash"].iloc[0]
    edit_table(tmp_path, "next", lambda t: t["extractor"] != "classifier", reference_hash=same)
    add(capsys, tmp_path, "next")


# What was edited


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("gfid", '{"efficientnet_lite2": 90.0, "classifier": 9.0}', "its gfid is"),
        ("gfid_of_seeds", "{}", "its gfid_of_seeds is {} in board.csv"),
        ("wall_seconds", "1.0", "its wall_seconds is 1.0 in board.csv, and 14.0 by its rows in board/mine/rows.csv"),
        ("commit", "0000", "its commit is 0000"),
        ("track", "gpu-hour", "gFID of 12 samples; track gpu-hour scores 5,000"),
        ("track", "none", "no track 'none'"),
        ("name", "other", "record other has no rows"),
    ],
)
def test_a_doctored_line_is_refused(swept, tmp_path, capsys, column, value, reason):
    swept("mine")
    add(capsys, tmp_path)
    path = tmp_path / "results" / "board.csv"
    header, line = list(csv.reader(path.read_text().splitlines()))
    line[header.index(column)] = value
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, line])
    page = (tmp_path / "docs" / "board.md").read_text()
    for arguments in (["list"], ["check", "mine"]):
        assert reason in told(capsys, tmp_path, *arguments, code=2)
    assert (tmp_path / "docs" / "board.md").read_text() == page


def test_rows_that_were_doctored_are_refused_with_the_line(swept, tmp_path, capsys):
    swept("mine")
    add(capsys, tmp_path)
    path = tmp_path / "results" / "board" / "mine" / "rows.csv"
    path.write_text(path.read_text().replace(",100.0,", ",50.0,"))
    assert "record mine was edited: its gfid is" in told(capsys, tmp_path, "list", code=2)


# A check


@pytest.fixture
def runs_again(monkeypatch):
    """`runs_again(gfid)`: sweeps come out with these gFIDs; what they were asked is returned."""
    asked = []

    def measured(gfid=GFID, code=0):
        def run(options, plan):
            asked.append((options, os.environ["STUDY_ROOT"]))
            if not code:
                measure(plan, options.out, gfid, commit="x+changes")
            return code

        monkeypatch.setattr(carry_out, "run", run)
        return asked

    return measured


@pytest.mark.parametrize(
    ("factor", "code", "words"),
    [(1.0, 0, "mine holds: the new runs against the recorded ones are equal"), (0.8, 0, "recorded ones are better"),
     (1.3, 1, "mine does not hold: the new runs against the recorded ones are worse")],
)  # fmt: skip
def test_a_check_runs_the_command_again_elsewhere(
    swept, tmp_path, capsys, pictures, runs_again, study_root, factor, code, words
):
    swept("mine")
    add(capsys, tmp_path)
    asked = runs_again({seed: factor * gfid for seed, gfid in GFID.items()})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    said = told(capsys, tmp_path, "check", "mine", "--data", pictures, code=code)
    assert words in said and "fingerprint" not in said
    assert f"gFID by classifier: {'13.10' if factor == 1.3 else ''}"[:20] in said
    ((options, root),) = asked
    assert root == str(study_root / "board" / "mine") and os.environ["STUDY_ROOT"] == str(study_root)
    assert options.ablation == "system" and set(SEEDS[1::2]) < set(options.set)
    assert {path: path.read_bytes() for path in before} == before  # nothing of the study or the board
    kept = study_root / "board" / "mine" / "stages"
    assert kept.exists()
    runs_again(code=130)
    assert told(capsys, tmp_path, "check", "mine", "--data", pictures, "--fresh", code=130) is not None
    assert not kept.exists()


def test_a_check_knows_a_command_that_asks_for_something_else(swept, tmp_path, capsys, pictures, runs_again):
    swept("mine")
    add(capsys, tmp_path)
    runs_again()
    path = tmp_path / "results" / "board.csv"
    whole = path.read_text()
    path.write_text(
        whole.replace("seeds=1000,1001,1002 --set tokenizer_seeds", "seeds=1000,1001,1003 --set tokenizer_seeds")
    )
    check = ["check", "mine", "--data", pictures]
    assert "its command has other seeds than its rows" in told(capsys, tmp_path, *check, code=2)
    path.write_text(whole.replace("generator.batch_images=8", "generator.batch_images=16"))
    assert "has another fingerprint than the record" in told(capsys, tmp_path, *check)
    for wrong in ("rm -rf results", "python -m study.sweep --out /tmp", "python -m study.sweep --nothing"):
        path.write_text(re.sub(r"python -m study.sweep [^\n\"]*", wrong, whole))
        assert "the command of a record must be a sweep" in told(capsys, tmp_path, *check, code=2)
    path.write_text(whole)
    assert "no record 'mne'; nearest: mine" in told(capsys, tmp_path, "check", "mne", code=2)


def test_a_judge_that_disagrees_leaves_a_record_undecided(swept, tmp_path, capsys):
    swept("mine")
    add(capsys, tmp_path)
    ((record, _),) = ((entry.record, entry.rows) for entry in board.load(tmp_path / "results"))
    again = {"efficientnet_lite2": (130.0, 131.0, 132.0), "classifier": (10.0, 10.1, 10.2)}
    verdict, lines = command.compared(record, again, [record])
    assert verdict == "undecided"
    assert [line.rpartition(": ")[2] for line in lines] == ["worse", "equal"]


# Figure and page


def made(name, date, gfid, track="test"):
    values = {judge: tuple(gfid * (1 + 0.02 * i) for i in range(3)) for judge in JUDGES}
    return board.Record(
        name=name, track=track, date=date, new="Something.", run="r", gfid={j: v[1] for j, v in values.items()},
        gfid_of_seeds=values, seeds=((1000, 1000), (1001, 1001), (1002, 1002)), tokenizer_images=1, generator_images=1,
        wall_seconds=1.0, cores=1, device="d", commit="c", protocol={}, reference_hash={}, command="c",
    )  # fmt: skip


def test_records_over_time_are_drawn_with_the_lowest_so_far(tmp_path):
    from figures.render import write

    dates = {
        "2026-01-03": {"first": 100.0, "second": 95.0},
        "2026-01-20": {"slip": 110.0},
        "2026-02-10": {"best": 80.0},
    }
    records = [made(name, date, gfid) for date, added in dates.items() for name, gfid in added.items()]
    drawing = figure.draw([made("else", "2026-01-05", 50.0, "gpu-hour"), *records])
    panels = [ax for ax in drawing.figure.axes if ax.has_data()]
    assert len(panels) == 4  # the order of TRACKS
    (step,) = [line for line in panels[2].lines if line.get_drawstyle() == "steps-post"]
    assert list(step.get_ydata()) == pytest.approx([102.0, 96.9, 81.6, 81.6])
    texts = {text.get_text() for text in panels[2].texts}
    assert {"first", "second", "best"} <= texts and "slip" not in texts
    assert len(drawing.plotted) == 5 * 2 * 3
    written = [write(figure.draw(records), tmp_path / name) for name in "ab"]
    for one, other in zip(*written, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_the_committed_page_is_that_of_the_committed_board(committed, monkeypatch):
    monkeypatch.delitem(board.TRACKS, "test")
    records = [entry.record for entry in board.load(committed / "results")]
    assert (CHECKOUT / "docs" / "board.md").read_text() == command.page(records)


@pytest.mark.slow  # a minute
def test_a_real_study_is_entered_and_holds(pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(board.TRACKS, "test", dataclasses.replace(TRACK, judges=("classifier",), samples=256))
    monkeypatch.setattr("study.core.provenance._git", lambda *arguments: "1a2b3c" if "rev-parse" in arguments else "")
    (tmp_path / "docs").mkdir()
    settings = ["--set", "judges=('classifier', 0),", "--set", "sampling.samples=256", "--set", "sampling.chunk=64"]
    arguments = [*ASKED, *SEEDS, *settings, "--data", str(pictures), "--study", "mine", "--out", str(tmp_path)]
    options = tyro.cli(Sweep, args=[*arguments, "--jobs", "1"], config=(tyro.conf.FlagCreatePairsOff,))
    assert carry_out.run(options, prepare(options)) == 0
    add(capsys, tmp_path)
    said = told(capsys, tmp_path, "check", "mine", "--data", pictures, "--jobs", 1)
    assert "mine holds: the new runs against the recorded ones are" in said
    (before,), (after,) = (
        [load_table(root / "results" / "mine" / "table.csv").query("kind == 'generator'")["gfid"].tolist()]
        for root in (tmp_path, study_root() / "board" / "mine" / "out")
    )
    assert before == after  # the same bits
