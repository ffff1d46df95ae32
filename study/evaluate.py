"""python -m study.evaluate: score pictures that someone else made, into the same table as a study's own runs.

Against a data set of ours the reference is the one of the sweep, under the same hash, so that both may share an axis
where the rest of the protocol is the same. A row of this command is known by its fingerprint, which begins with
`images-` (results/schema.py); what nobody told us, such as solver, steps or images seen, stays empty in it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from safetensors import SafetensorError
from tyro.conf import arg

from results.schema import FOREIGN, METRICS
from results.table import from_records, load, merge, write
from study.core import compute
from study.core.files import fingerprint
from study.core.lease import locked
from study.core.paths import CHECKOUT, require_writable, study_root
from study.core.provenance import provenance
from study.core.settings import nearest
from study.data.datasets import NAMED_RESOLUTION, resolve_data
from study.data.external_images import SUFFIXES, Pictures, read_pictures, read_statistics
from study.data.left_out import left_out_of_data, left_out_of_pictures
from study.data.named_datasets import NAMED_DATASETS
from study.plan.checks import FEWEST_SAMPLES, check_study
from study.plan.data_spec import DataSpec
from study.plan.judge_spec import WIDTHS, JudgeSpec, judge_spec, reference_name
from study.plan.scales import desk
from study.plan.weight_files import require_weights

if TYPE_CHECKING:
    import numpy as np

    from study.judge.references import Reference


Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Score pictures that someone else made, by the judges of a study, and add the numbers to its results table.

    PATH is a folder of lossless pictures (PNG, BMP, TIFF, lossless WebP; subfolders too), or an .npz whose arr_0 is
    uint8 (N, H, W, 3), as ADM writes samples. JPEG is refused: its artefacts move a Frechet distance. All pictures
    have one size, which is that of the reference; nothing is resized and no range is guessed.

    The reference is a data set by name, or a folder with one subfolder per class, as study.sweep --data takes it:
    then its training images, chosen as the sweep chooses them. Or it is a folder of loose lossless pictures, or such
    an .npz: then those. Or it is one of ADM's files, VIRTUAL_imagenet256_labeled.npz for instance: then its statistics
    for Inception, and its pictures for the rest.

    Judges are by default those of the desk scale, or inception with ADM's statistics. The classifier is trained on
    the reference, which must be a data set; inception needs its weights (study.prefetch).

    The numbers are printed, and kept in results/STUDY/table.csv as rows of the run NAME, one per judge.
    """

    path: Annotated[tyro.conf.Positional[Path], arg(metavar="PATH", help_behavior_hint="")]
    """The pictures: a folder or an .npz."""
    reference: Annotated[str, arg(metavar="NAME|FOLDER|NPZ")] = "fashion-mnist"
    """What they are compared with: fashion-mnist, cifar10, a folder or an .npz."""
    judge: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, arg(metavar="NAME[@PIXELS]", help_behavior_hint="")
    ] = ()
    """Who judges: efficientnet_lite2 (at 64 px, as the scales say), classifier, inception; may be given again."""
    name: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """What the run is called in the table. Default: the name of the folder or file."""
    samples: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Score the first N pictures, in the order of their paths. Default: all."""
    reference_images: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Compare with N images of the reference. Default: of a data set as many as the desk scale, else all."""
    study: Annotated[str, arg(metavar="NAME")] = "desk"
    """Whose table the rows go to: a folder of results/, made when missing."""
    out: Annotated[Path, arg(metavar="FOLDER", help_behavior_hint="")] = CHECKOUT
    """Folder that holds results/. Default: the checkout."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """What pictures are compared with: the training images of `data`, or `pictures` with ADM's `statistics` or none."""

    text: str  # as the table names it, but for what differs by judge
    count: int
    size: tuple[int, int]  # height and width, pixels
    data: DataSpec | None = None
    pictures: Pictures | None = None
    statistics: dict[str, np.ndarray] | None = None


def _judges(asked: Sequence[str]) -> list[tuple[str, int]]:
    """Names and input sizes; ValueError for a name that is unknown or given twice, or a size that is no number."""
    sizes = dict(desk().judges)
    found: dict[str, int] = {}
    for text in asked:
        name, at, size = text.partition("@")
        if name not in WIDTHS:
            raise ValueError(f"no judge {name!r}; {nearest(name, WIDTHS)}")
        if at and not size.isdecimal():
            raise ValueError(f"--judge takes NAME or NAME@PIXELS, got {text!r}")
        if name in found:
            raise ValueError(f"--judge names {name} twice")
        found[name] = int(size) if at else sizes.get(name, 0)
    if "inception" in found:
        require_weights("inception")
    return list(found.items())


def _target(options: Evaluate, size: tuple[int, int]) -> Target:
    """The reference, resolved for pictures of this height and width."""
    path, asked = Path(options.reference).expanduser(), options.reference_images
    known = options.reference in NAMED_DATASETS
    loose = path.is_dir() and any(entry.name.lower().endswith(SUFFIXES) for entry in os.scandir(path))
    if known or (path.is_dir() and not loose):
        side = NAMED_RESOLUTION if known else size[0]
        if size != (side, side):
            raise ValueError(_sizes(size, (side, side) if known else None, options.reference))
        data = resolve_data(options.reference if known else str(path), side)
        count = min(desk().evaluation.reference_images, data.train_images) if asked is None else asked
        if count > data.train_images:
            raise ValueError(f"asked for {count} of the {data.train_images} training images of {data.name}")
        return Target(text=reference_name(data, "train", count), count=count, size=size, data=data)
    if not path.exists():
        raise ValueError(
            f"no data set, folder or .npz {options.reference!r}; {nearest(options.reference, NAMED_DATASETS)}"
        )
    statistics = read_statistics(path) if path.suffix == ".npz" else None
    if statistics is not None and asked is not None:
        raise ValueError(f"--reference-images does not go with {path.name}: its statistics are of a whole data set")
    pictures = read_pictures(path, asked)
    if pictures.size != size:
        raise ValueError(_sizes(size, pictures.size, options.reference))
    count = len(pictures.pixels)
    text = f"{pictures.name}, {count} images"
    return Target(text=text, count=count, size=size, pictures=pictures, statistics=statistics)


def _sizes(size: tuple[int, int], other: tuple[int, int] | None, reference: str) -> str:
    """The error for pictures and a reference that differ in size (None: not square)."""
    theirs = f"those of {reference} {other[0]} x {other[1]}" if other else f"those of {reference} become square"
    return (
        f"sizes differ: the pictures are {size[0]} x {size[1]} px, {theirs}; "
        "a resize would be measured too, so bring both to one size first"
    )


def _reference(judge: JudgeSpec, target: Target, device: str) -> tuple[Reference, str]:
    """The reference as a judge sees it, and what the table calls it."""
    # here, because they load torch, which takes seconds that --help does not need
    from study.judge.references import dataset_reference, pictures_reference

    if target.data is not None:
        return dataset_reference(judge, target.data, "train", target.count, device), target.text
    assert target.pictures is not None
    given = target.statistics if judge.name == "inception" else None
    text = f"{target.pictures.name}, its statistics and {target.count} images" if given else target.text
    return pictures_reference(judge, target.pictures.pixels, target.pictures.digest, device, given), text


def prepare(options: Evaluate) -> tuple[str, Pictures, Target, list[JudgeSpec]]:
    """Resolve everything that can be wrong before a picture is judged: name of the run, pictures, reference, judges.

    Raises:
        ValueError: one clear line.
    """
    check_study(options.study)
    asked = _judges(options.judge)
    for folder in (study_root(), options.out / "results"):
        require_writable(folder)
    pictures = read_pictures(options.path.expanduser(), options.samples)
    name = pictures.name if options.name is None else options.name
    if not name.strip():
        raise ValueError(f"--name must not be empty, got {name!r}")
    target = _target(options, pictures.size)
    for what, count in (("scored", len(pictures.pixels)), ("compared with", target.count)):
        if count < FEWEST_SAMPLES:
            raise ValueError(f"too few pictures to be {what}: {count}; at least {FEWEST_SAMPLES} are needed")
    if not asked and target.statistics is not None:
        asked = _judges(["inception"])
    if not asked:
        asked = [(judge, size) for judge, size in desk().judges if judge != "classifier" or target.data is not None]
    return name, pictures, target, [judge_spec(judge, size, target.data) for judge, size in asked]


def _left_out(options: Evaluate, target: Target) -> list[str]:
    """What the folders of the pictures and of the reference hold beside them, a line each."""
    ours, theirs = options.path.expanduser(), Path(options.reference).expanduser()
    found = [f"{ours}: {line}" for line in (left_out_of_pictures(ours) if ours.is_dir() else [])]
    if target.data is not None:
        return found + [f"{theirs}: {line}" for line in left_out_of_data(options.reference)]
    return found + [f"{theirs}: {line}" for line in (left_out_of_pictures(theirs) if theirs.is_dir() else [])]


def score(options: Evaluate) -> list[Row]:
    """Judge the pictures; returns the rows that went into the table, in the order of the judges.

    Raises:
        ValueError: see `prepare`.
        MetricError: a number that cannot be trusted.
    """
    name, pictures, target, judges = prepare(options)
    for line in _left_out(options, target):
        print(line, flush=True)
    # here, because they load torch, which takes seconds that --help does not need
    from study.judge.judges import all_features, build_judge
    from study.judge.metrics import comparable, generation_metrics

    machine = compute.resolve()
    compute.apply(machine)  # threads move the last bits of a classifier that is trained here
    origin, samples = provenance(machine), len(pictures.pixels)
    rows = []
    for judge in judges:
        started = time.monotonic()
        print(f"{judge.name} looks at {samples:,} pictures and {target.count:,} of the reference ...", flush=True)
        against, text = _reference(judge, target, machine.device)
        found, spatial = all_features(build_judge(judge, target.data, machine.device), pictures.pixels)
        protocol: Row = {
            "samples": samples,
            "extractor": judge.name,
            "extractor_size": judge.size,
            "reference": text,
            "reference_hash": against.hash[:12],
        }
        rows.append(
            {
                "kind": "generator",
                "run": name,
                "fingerprint": FOREIGN + pictures.digest,
                "protocol": fingerprint(protocol, 12),
                "state": "done",
                **generation_metrics(found, against, spatial),
                **protocol,
                "comparable": comparable(samples, judge.width),
                "study": options.study,
                "resolution": pictures.size[0],
                "commit": origin["commit"],
                "versions": origin["versions"],
                "device": origin["device"],
                "threads": origin["threads"],
                "evaluate_seconds": round(time.monotonic() - started, 3),
            }
        )
    _add(rows, options.out / "results" / options.study / "table.csv")
    return rows


def _add(rows: list[Row], path: Path) -> None:
    """Merge the rows into the table; the same pictures judged in the same way replace what they had."""
    with locked(path.parent):
        new = from_records(rows)
        write(merge(load(path), new) if path.exists() else new, path)


def _print(rows: list[Row], table: Path) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    metrics = [metric for metric in METRICS if any(metric in row for row in rows)]
    shown = Table(box=None, pad_edge=False, header_style="bold", title=None)
    shown.add_column("judge")
    for metric in metrics:
        shown.add_column(metric, justify="right")
    for row in rows:
        mark = "" if row["comparable"] else " *"
        numbers = [f"{row[metric]:.4g}" if metric in row else "" for metric in metrics]
        shown.add_row(f"{row['extractor']} @ {row['extractor_size']} px{mark}", *numbers)
    console.print(f"[bold]{escape(rows[0]['run'])}[/bold]: {rows[0]['samples']:,} pictures")
    console.print(shown)
    for text in dict.fromkeys(f"{row['reference']} ({row['reference_hash']})" for row in rows):
        console.print(f"compared with {text}", markup=False)
    if not all(row["comparable"] for row in rows):
        console.print("* not comparable: fewer pictures than twice the judge's feature width")
    console.print(f"table {table}", markup=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point: 0 scored; 2 and one line on standard error for bad input; 1 for a number that cannot be trusted."""
    options = tyro.cli(
        Evaluate, prog="python -m study.evaluate", args=arguments, config=(tyro.conf.FlagCreatePairsOff,)
    )
    try:
        rows = score(options)
    except (ValueError, OSError) as error:
        print(f"study.evaluate: {error}", file=sys.stderr)
        return 2
    except (ArithmeticError, SafetensorError) as error:  # a MetricError, whose module imports torch; a torn reference
        print(f"study.evaluate: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    _print(rows, options.out / "results" / options.study / "table.csv")
    return 0


if __name__ == "__main__":
    sys.exit(main())
