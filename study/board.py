"""python -m study.board: records of how low gFID gets within a budget: list them, add one, check one."""

from __future__ import annotations

import contextlib
import datetime
import os
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.conf import arg

from models.names import nearest
from study.core.command_line import exit_code
from study.core.paths import CHECKOUT, study_root
from study.submit.options import Sweep

if TYPE_CHECKING:
    from results.board import Record
    from results.schema import Row
    from results.verdicts import Verdict
    from study.plan.runs import Plan


DESCRIPTION = """Records of how low gFID gets within a budget, by track.

list: print the records, and write docs/board.md and the figure from results/board.csv.

add STUDY --new SENTENCE [--track NAME]: enter a swept study as a record.

check NAME [--data FOLDER] [--jobs N] [--fresh]: run the command of a record again, and say whether it holds.

Each has --help; docs/board.md says what a record is."""
OF_SWEEP = ("python", "-m", "study.sweep")
PLACES = ("out", "executor", "cluster", "detach", "jobs", "study", "dry_run", "list")  # options that ask nothing else

Out = Annotated[Path, arg(metavar="FOLDER", help_behavior_hint="")]


def show(out: Out = CHECKOUT) -> int:
    """Print the records of every track, lowest gFID first; write docs/board.md and figures/board/ from board.csv.

    Args:
        out: Folder that holds results/, figures/ and docs/. Default: the checkout.
    """
    from results.board import TRACKS, load

    entries = load(out / "results")
    _write_page([entry.record for entry in entries], out)
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    for name, track in TRACKS.items():
        header, *lines = _table([entry.record for entry in entries], name)
        grid = Table(title=f"{name}: {track.title}", title_justify="left", box=None)
        for title in header:
            grid.add_column(escape(title), overflow="fold")
        for line in lines:
            grid.add_row(*map(escape, line))
        console.print(grid if lines else f"{name}: {track.title}: no record stands yet")
    return 0


def add(
    study: Annotated[tyro.conf.Positional[str], arg(metavar="STUDY")],
    new: Annotated[str, arg(metavar="SENTENCE")],
    track: Annotated[str, arg(metavar="NAME")] = "two-cores",
    out: Out = CHECKOUT,
) -> int:
    """Enter a study that was swept here as a record, which gets its name.

    Numbers, seeds, time and commit are read from results/STUDY/table.csv, the command from the note of its sweep.
    Refused are rows that are not done, fewer than three seeds, seeds below 1000 or used by other studies, another
    protocol or judge than the track's, more images, cores or time than it allows, and code with uncommitted changes.

    Args:
        study: The study: one run with three held-out seeds of tokenizer and generator.
        new: What is new, in a sentence.
        track: The track that it enters.
        out: Folder that holds results/, figures/ and docs/. Default: the checkout.
    """
    from results.board import BoardError, Entry, check_alike, evidence, load, record_of, used_elsewhere, write
    from results.board import track as named_track
    from results.table import load as load_table
    from study.core.lease import locked

    table = out / "results" / study / "table.csv"
    new = " ".join(new.split())
    if not new:
        raise BoardError("--new is empty: say in a sentence what is new")
    about = named_track(track)
    if not table.exists():
        raise BoardError(f"no table of study {study!r}: there is no {table}")
    rows = evidence(load_table(table))
    options, plan = _launch(study, rows)
    if (plan.compute.device == "cpu") != bool(about.cores):
        raise BoardError(f"{study} was trained on {plan.compute.device}, which is not the machine of track {track}")
    _check_committed(plan)
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    record = record_of(
        rows, name=study, track=track, date=date, new=new, command=_command(options, rows[0].data, plan.scale.data)
    )
    with locked(out / "results" / "board"):
        entries = load(out / "results")
        if any(entry.record.name == study for entry in entries):
            raise BoardError(f"{study} is on the board already; a record is never replaced")
        for entry in entries:
            if entry.record.track == track:
                check_alike(rows, entry.rows, track, entry.record.name)
        names = [study, *(entry.record.name for entry in entries)]
        if reason := used_elsewhere((seed for pair in record.seeds for seed in pair), out / "results", names):
            raise BoardError(f"seeds are not held out: {reason}")
        entries.append(Entry(record, tuple(rows)))
        write(entries, out / "results")
        _write_page([entry.record for entry in entries], out)
    print(f"added {study} to track {track}: {record.command}")
    return 0


def check(
    name: Annotated[tyro.conf.Positional[str], arg(metavar="NAME")],
    data: Annotated[str | None, arg(metavar="FOLDER", help_behavior_hint="")] = None,
    jobs: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None,
    fresh: Annotated[bool, arg(help_behavior_hint="")] = False,
    out: Out = CHECKOUT,
) -> int:
    """Run the command of a record again with the code that is here, and say whether the record holds.

    Nothing of the record is found: everything but data and weights is made again, under $STUDY_ROOT/board/NAME, from
    where a check that was stopped goes on. The record holds unless the new gFID is worse by the rule of claims, by all
    judges, with the spread pooled over the records of its track. Exit codes: 0 it holds, 1 it does not or has no
    result, 2 bad input, 3 something is missing here, 130 stopped.

    Args:
        name: The record.
        data: Where its data set is, if it cannot be fetched, as for study.sweep.
        jobs: As for study.sweep.
        fresh: Forget an earlier check of this record.
        out: Folder that holds results/. Default: the checkout.
    """
    from results.board import TRACKS, TRAINED, BoardError, check_alike, evidence, gfids, load, scores
    from results.table import load as load_table
    from study.report.carry_out import run
    from study.submit.prepare import prepare

    entries = {entry.record.name: entry for entry in load(out / "results")}
    if name not in entries:
        raise BoardError(f"no record {name!r}; {nearest(name, entries) if entries else 'the board is empty'}")
    record, track = entries[name].record, TRACKS[entries[name].record.track]
    options = _options(record.command)
    with _own_root(name, fresh) as root:
        options = replace(options, study=name, out=root / "out", data=data or options.data, jobs=jobs)
        plan = prepare(options)
        if (plan.compute.device == "cpu") != bool(track.cores):
            raise BoardError(f"track {record.track} is not for the {plan.compute.device} of this machine")
        seeds = {(one.run.tokenizer_seed, one.run.seed) for one in plan.runs if one.kind == "generator"}
        if seeds != set(record.seeds):
            raise BoardError(f"record {name} was edited: its command has other seeds than its rows: {record.command}")
        if {one.fit.fingerprint for one in plan.runs} != {row.fingerprint for row in entries[name].rows}:
            print("what is trained has another fingerprint than the record: the code has changed, or the data")
        if code := run(options, plan):
            return code
        rows = evidence(load_table(root / "out" / "results" / name / "table.csv"))
    check_alike(rows, entries[name].rows, record.track, name)
    if any(_reference(rows, judge) != hash_ for judge, hash_ in record.reference_hash.items()):
        print(f"the {TRAINED} that judges was trained here, and has other weights than the one of the record")
    again = {judge: gfids(mine) for judge, mine in scores(rows, record.track).items()}
    others = [entry.record for entry in entries.values() if entry.record.track == record.track]
    verdict, lines = compared(record, again, others)
    for line in lines:
        print(line)
    holds = verdict != "fails"
    print(
        f"{name} {'holds' if holds else 'does not hold'}: the new runs against the recorded ones are {_WORDS[verdict]}"
    )
    return int(not holds)


_WORDS = {"holds": "better", "fails": "worse", "equal": "equal", "undecided": "undecided"}


def _reference(rows: Sequence[Row], judge: str) -> str:
    return next(row.reference_hash for row in rows if row.kind == "generator" and row.extractor == judge)


def compared(
    record: Record, again: Mapping[str, Sequence[float]], track: Sequence[Record]
) -> tuple[Verdict, list[str]]:
    """Whether the new numbers of a record are below the recorded ones, and a line per judge.

    Args:
        again: gFID of the new runs by judge.
        track: all records of its track, over which the spread is pooled, the new runs included.
    """
    from results.board import spread
    from results.verdicts import at_places
    from study.claims.verdicts import Comparison

    runs = [*(one.gfid_of_seeds for one in track), again]
    found = [
        Comparison(
            place="", judge=judge, low=tuple(values), high=record.gfid_of_seeds[judge], spread=spread(runs, judge)
        )
        for judge, values in again.items()
    ]
    (verdict,) = at_places([[one.decision for one in found]])
    return verdict, [f"gFID by {one.judge}: {one}: {_WORDS[one.decision.verdict]}" for one in found]


# A record and its command


def _launch(study: str, rows: Sequence[Row]) -> tuple[Sweep, Plan]:
    """Options and plan of the one sweep that asked for these rows; BoardError if no sweep here asked for them all."""
    from results.board import BoardError
    from study.submit.launches import launched_plans

    wanted = {row.fingerprint for row in rows}
    for options, plan in launched_plans(study):
        if wanted <= {one.fit.fingerprint for one in plan.runs}:
            return options, plan
    raise BoardError(f"no one sweep of {study} that was started under {study_root()} asked for all of its seeds")


def _check_committed(plan: Plan) -> None:
    """BoardError if a stage was computed by code with changes that are in no commit."""
    from results.board import BoardError

    for stage in plan.stages:
        record = stage.record()
        commit = record["provenance"]["commit"] if record else ""
        if record and (not commit or "+" in commit):
            raise BoardError(f"{stage.kind} was computed by {commit or 'unknown code'}: commit the code, then sweep")


def _command(options: Sweep, data: str, usual: str) -> str:
    """The command line that asks for the same on any machine; `data` by its name, unless it is the scale's."""
    words = [*OF_SWEEP, options.ablation, "--scale", options.scale]
    words += ["--data", data] if data != usual else []
    words += ["--resolution", str(options.resolution)] if options.resolution is not None else []
    return shlex.join([*words, *(word for setting in options.set for word in ("--set", setting))])


def _options(command: str) -> Sweep:
    """The options of a record's command; BoardError unless it is a sweep that says only what is asked."""
    from results.board import BoardError

    words = shlex.split(command)
    wrong = BoardError(f"the command of a record must be a sweep, without folders and places: {command}")
    if tuple(words[:3]) != OF_SWEEP:
        raise wrong
    try:
        with contextlib.redirect_stderr(None), contextlib.redirect_stdout(None):
            options = tyro.cli(Sweep, args=words[3:], config=(tyro.conf.FlagCreatePairsOff,))
    except SystemExit:
        raise wrong from None
    default = Sweep()
    if any(getattr(options, name) != getattr(default, name) for name in PLACES):
        raise wrong
    return options


@contextlib.contextmanager
def _own_root(name: str, fresh: bool) -> Iterator[Path]:
    """A $STUDY_ROOT for the checks of a record during the block; it shares data and weights with the usual one."""
    from study.plan.weight_files import weights_folder

    usual = study_root()
    root = usual / "board" / name
    if fresh:
        shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True, exist_ok=True)
    (usual / "data").mkdir(parents=True, exist_ok=True)
    if not (root / "data").is_symlink():
        (root / "data").symlink_to(usual / "data")
    before = dict(os.environ)
    os.environ.update(STUDY_ROOT=str(root), STUDY_WEIGHTS=str(weights_folder()))
    try:
        yield root
    finally:
        os.environ.clear()
        os.environ.update(before)


# docs/board.md


def _table(records: Sequence[Record], name: str) -> list[list[str]]:
    """Header and lines of a track, lowest gFID first."""
    from results.board import TRACKS, of_track
    from results.numbers import duration, mean_and_range

    judges = TRACKS[name].judges
    lines = [["record", "new", *(f"gFID by {judge}" for judge in judges), "a repeat takes", "commit", "added"]]
    for one in of_track(records, name):
        on = f"{one.cores} core{'s' * (one.cores != 1)} of {one.device}" if TRACKS[name].cores else one.device
        lines.append(
            [
                one.name,
                one.new,
                *(mean_and_range(one.gfid_of_seeds[judge]) for judge in judges),
                f"{duration(one.wall_seconds)} on {on}",
                one.commit,
                one.date,
            ]
        )
    return lines


def page(records: Sequence[Record]) -> str:
    """The text of docs/board.md."""
    from results.board import TRACKS
    from study.claims.paper_claims import markdown

    parts = [HEAD]
    if records:
        parts.append("![Records over time](../figures/board/board.png)")
    for name, track in TRACKS.items():
        limits = [
            f"{track.data} at {track.resolution} px",
            f"tokenizers see at most {track.tokenizer_images:,} images" if track.tokenizer_images else "",
            f"generators at most {track.generator_images:,}" if track.generator_images else "",
            f"trained on at most {track.cores} cores" if track.cores else "trained on one GPU",
            f"at most {track.minutes:g} minutes for both trainings" if track.minutes else "",
            f"gFID of {track.samples:,} samples",
        ]
        rules = textwrap.fill(f"Track `{name}`: {'; '.join(filter(None, limits))}.", 120)
        parts.append(f"## {track.title}\n\n{rules}")
        header, *lines = _table(records, name)
        parts.append(markdown(header, lines) if lines else "No record stands yet.")
        mine = [one for one in records if one.track == name]
        if mine:
            commands = "\n".join(f"# {one.name}: {one.run}\n{one.command}" for one in mine)
            parts.append(f"Their commands:\n\n```\n{commands}\n```")
    return "\n\n".join([*parts, FOOT]) + "\n"


HEAD = """# Board

How low does gFID get within a budget: records by track, how one is checked, and how to add yours. Written by
`python -m study.board list` from `results/board.csv`.

A record is a method that was run with three seeds of tokenizer and generator which nothing was chosen on. Its line has
the mean of gFID by both judges and, in brackets, the range of the seeds; the first judge orders a track."""

FOOT = """## Check a record

```
python -m study.board check NAME
```

runs the record's command with the code that is here. Everything but data and weights is made again, in a folder of its
own under `$STUDY_ROOT`, so that nothing of yours is touched, and a check that was stopped goes on. The record **holds**
unless the new gFID is worse by [the rule of claims](claims.md#the-rule): by all judges, by more than the margin, and
beyond the spread of repeats, which is pooled over the records of the track. `--data` names a folder where the data set
cannot be fetched, `--fresh` forgets an earlier check. Where the code has changed since, so that something else is
trained, the check says so; at the record's commit it is the same.

## Add a record

1. Choose settings as you like, by [searches](search.md) or by hand, with seeds below 1000.
2. Commit, then sweep the one run with three seeds from 1000 on that no other study has used. `system` is the ablation
   that asks for a single run; flags of the command decide everything:

   ```
   python -m study.sweep system --set latent_channels=16 --set generator.snapshot_images=19200 \\
       --set seeds=1000,1001,1002 --set tokenizer_seeds=1000,1001,1002 --study mine
   ```

3. `python -m study.board add mine --new "What is new, in a sentence."` enters it; with
   `--track two-cores-cifar10` if it was swept with `--data cifar10`.

The winner of a search is asked for by its run's name in the table, where each `name=value` is a `--set`; label dropout
is `--set generator_options=label_dropout=0.05`. On a machine with more cores than a track allows, begin the sweep with
`taskset --cpu-list 0,1`.

Numbers are read from the study's table, never typed in. Refused, in a line that says why: a study without a table, with
rows that are not done or with several runs; fewer than three seeds, seeds that repeat, seeds below 1000 or that
another study in `results/` trained with; another judge, number of samples, reference or label scheme than the track's,
scores that are [not comparable](protocol.md#what-not-comparable-means); more images, cores or minutes than the track
allows, or pretrained networks; code with uncommitted changes.

`results/board/<name>/rows.csv` keeps the rows that a line of the board was read from. Whenever the board is read, each
line is derived from them again, and one that was edited is refused. A track is an entry of `TRACKS` in
`results/board.py`."""


def _write_page(records: Sequence[Record], out: Path) -> None:
    """Write docs/board.md and the figure."""
    from results.files import atomic

    if records:
        _draw(records, out / "figures" / "board")
    with atomic(out / "docs" / "board.md") as temporary:
        temporary.write_text(page(records), encoding="utf-8")


def _draw(records: Sequence[Record], folder: Path) -> None:
    from figures import board as figure
    from figures.render import write

    folder.mkdir(parents=True, exist_ok=True)
    write(figure.draw(records), folder / figure.NAME)


def main() -> int:
    """Entry point: the exit code."""
    commands: dict[str, Callable[..., Any]] = {"list": show, "add": add, "check": check}

    def run() -> int:
        return tyro.extras.subcommand_cli_from_dict(
            commands, prog="python -m study.board", description=DESCRIPTION, config=(tyro.conf.FlagCreatePairsOff,)
        )

    return exit_code("study.board", run)


if __name__ == "__main__":
    sys.exit(main())
