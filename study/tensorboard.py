"""python -m study.tensorboard: curves, scores and picture sheets of studies as TensorBoard event files.

A copy of data that the harness writes anyway: the histories in the folders of trainings, the results table and its
picture sheets. Only this command reads the event files again, so that no point is added twice.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import numpy as np
from PIL import Image
from tyro.conf import arg

from models.names import nearest
from results.runs import choosing
from results.schema import METRICS
from results.table import load
from study.core.command_line import exit_code, options_of
from study.core.paths import CHECKOUT, stage_folder, study_root
from study.core.study_name import StudyArgument, StudyOption, one_study
from study.train import history

if TYPE_CHECKING:
    import pandas as pd
    from torch.utils.tensorboard import SummaryWriter

WATCH_SECONDS = 30.0
NO_CURVE = ("images_seen", "time")  # fields of a history's points that are not drawn as curves


@dataclass(frozen=True, kw_only=True)
class TensorBoard:
    """Copy studies into event files, a folder per run: tensorboard --logdir FOLDER shows them.

    Contents: for trainings the loss and its terms, learning rate, gradient norm and images/s; from the table every
    metric, by judge and protocol; the picture sheets. Steps are images seen. Run it again to add what is new.
    """

    study: StudyArgument = ""
    """A folder of results/ that holds a table.csv. Default: all of them."""
    named: StudyOption = ""
    """The same as STUDY."""
    logdir: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")] = None
    """Folder for the event files. Default: tensorboard/ under $STUDY_ROOT."""
    out: Annotated[Path, arg(metavar="FOLDER", help_behavior_hint="")] = CHECKOUT
    """Folder that holds results/. Default: the checkout."""
    watch: Annotated[bool, arg(help_behavior_hint="")] = False
    """Keep running and add new points, until Ctrl-C."""


class Point(NamedTuple):
    """A value of a curve, or a picture (the path of a PNG). seconds: Unix time of the measurement, None if unknown."""

    tag: str
    images_seen: int
    value: float | Path
    seconds: float | None = None


class Mirror:
    """Event files under one folder, which hold each point once.

    Raises:
        ValueError: TensorBoard is not installed.
    """

    def __init__(self, logdir: Path) -> None:
        try:
            # needs the optional package tensorboard, and imports torch, which --help and mistakes do not wait for
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError(
                "event files need the package tensorboard, which is not installed: pip install tensorboard (the extra "
                "tensorboard)"
            ) from error
        self.logdir = logdir
        self._new_writer = SummaryWriter
        self._known: dict[Path, set[tuple[str, int]]] = {}
        self._writers: dict[Path, SummaryWriter] = {}

    def add(self, study: str, run: str, fingerprint: str, points: Iterator[Point]) -> int:
        """Write the points of a run that its event files lack; returns how many.

        The folder keeps its first name, even if another ablation later gives the same training another name.
        """
        name = re.sub(r"[^\w.=,+()-]+", "-", run)[:120]
        folder = self.logdir / study / f"{name}-{fingerprint[:8]}"
        folder = next(iter(sorted(folder.parent.glob(f"*-{fingerprint[:8]}"))), folder)
        if folder not in self._known:
            self._known[folder] = _written(folder)
        known, new = self._known[folder], 0
        for point in points:
            if (point.tag, point.images_seen) in known:
                continue
            if folder not in self._writers:
                self._writers[folder] = self._new_writer(str(folder))
            _write(point, self._writers[folder])
            known.add((point.tag, point.images_seen))
            new += 1
        if new:
            self._writers[folder].flush()
        return new

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


def _written(folder: Path) -> set[tuple[str, int]]:
    """Tag and step of all points in a run's event files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not folder.is_dir():
        return set()
    everything = {"scalars": 0, "images": 0}  # the default keeps a sample of each curve
    events = EventAccumulator(str(folder), everything, purge_orphaned_data=False).Reload()
    tags = events.Tags()
    scalars = {(tag, event.step) for tag in tags["scalars"] for event in events.Scalars(tag)}
    return scalars | {(tag, event.step) for tag in tags["images"] for event in events.Images(tag)}


def _write(point: Point, writer: SummaryWriter) -> None:
    if isinstance(point.value, Path):
        with Image.open(point.value) as sheet:
            pixels = np.asarray(sheet.convert("RGB"))  # (H, W, 3), uint8
        writer.add_image(point.tag, pixels, point.images_seen, point.seconds, dataformats="HWC")
    else:
        writer.add_scalar(point.tag, point.value, point.images_seen, point.seconds)


def runs_of(table: pd.DataFrame, sheets: Path) -> Iterator[tuple[str, str, Iterator[Point]]]:
    """A study's runs: name, fingerprint, and all their points.

    Args:
        table: of the study.
        sheets: folder of its picture sheets.
    """
    for fingerprint, rows in table.groupby("fingerprint", sort=False):
        first = rows.iloc[0]
        folder = stage_folder(f"fit_{first['kind']}", str(fingerprint))
        yield first["run"], str(fingerprint), _points(folder, rows, sheets)


def _points(folder: Path, rows: pd.DataFrame, sheets: Path) -> Iterator[Point]:
    for point in history.read_history(folder):
        for name, value in point.items():
            if name not in NO_CURVE and value is not None:
                yield Point(f"train/{name}", point["images_seen"], value, point["time"])
    done = rows[(rows["state"] == "done") & rows["images_seen"].notna() & ~choosing(rows)]
    for row in done.astype(object).where(done.notna(), None).to_dict("records"):
        guided = row["guidance_scale"] not in (None, 1)
        guidance = f"-guidance-{row['guidance_scale']:g}" if guided else ""
        # rows with the same protocol share a curve
        judge = f"{row['extractor']}{guidance}-{row['protocol'][:6]}"
        for metric in METRICS:
            if row[metric] is not None:
                yield Point(f"{metric}/{judge}", int(row["images_seen"]), float(row[metric]))
        if row["sheet"] and (sheets / row["sheet"]).is_file():
            kind = f"{row['sheet'].partition('-')[0]}{guidance}-{row['protocol'][:6]}"
            yield Point(f"sheets/{kind}", int(row["images_seen"]), sheets / row["sheet"])


def mirror(options: TensorBoard) -> None:
    """Copy the named study, or all studies, and print a line for each that has new points.

    Raises:
        ValueError: there is no such study, two were named, or TensorBoard is not installed.
    """
    named, results = one_study(options.study, options.named), options.out / "results"
    studies = sorted(path.parent.name for path in results.glob("*/table.csv"))
    if named and named not in studies:
        near = nearest(named, studies) if studies else "there is none, run python -m study.sweep first"
        raise ValueError(f"no study {named!r} in {results}; {near}")
    logdir = (options.logdir or study_root() / "tensorboard").expanduser()
    event_files = Mirror(logdir)
    try:
        while True:
            for study in [named] if named else studies:
                table = load(results / study / "table.csv")
                runs = runs_of(table, results / study / "sheets")
                new = sum(event_files.add(study, *run) for run in runs)
                if new or not options.watch:
                    print(f"{study}: {new:,} new points in {logdir / study}", flush=True)
            if not options.watch:
                return
            time.sleep(WATCH_SECONDS)
    finally:
        event_files.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point: the exit code; 130, stopped, is how --watch ends."""
    options = options_of(TensorBoard, "study.tensorboard", arguments)
    return exit_code("study.tensorboard", lambda: mirror(options))


if __name__ == "__main__":
    sys.exit(main())
