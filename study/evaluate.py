"""python -m study.evaluate: score pictures made elsewhere, and add them to the table of a study's own runs.

For a data set that sweeps use, the reference is that of a sweep, with the same hash, so that both can share an axis if
the rest of the protocol is the same. Rows of this command have a fingerprint that begins with `images-`
(results/schema.py); their unknown columns, such as solver, steps or images seen, are empty.
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

from models.names import nearest
from results.schema import FOREIGN, METRICS, Row, measured_alike
from results.table import load, merge, table_of, write
from study.core import compute
from study.core.command_line import options_of
from study.core.files import fingerprint
from study.core.lease import locked
from study.core.paths import CHECKOUT, require_writable, study_root
from study.core.provenance import provenance
from study.data.datasets import NAMED_RESOLUTION, resolve_data
from study.data.external_images import SUFFIXES, Pictures, read_pictures, read_statistics
from study.data.left_out import data_notes, left_out_of_pictures
from study.data.named_datasets import NAMED_DATASETS
from study.plan.checks import FEWEST_SAMPLES, check_study
from study.plan.data_spec import DataSpec
from study.plan.judge_spec import WIDTHS, JudgeSpec, judge_spec, reference_name
from study.plan.scales import Scale, desk, named_scale
from study.plan.weight_files import require_weights

if TYPE_CHECKING:
    import numpy as np

    from study.judge.references import Reference


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Score pictures made elsewhere with the judges of a study, and add the numbers to its results table.

    PATH is a folder of lossless pictures (PNG, BMP, TIFF, lossless WebP; with subfolders), or an .npz whose arr_0 is
    uint8 (N, H, W, 3), as ADM writes samples. JPEG is refused, because its artefacts change a Frechet distance. All
    pictures must have the size of the reference; nothing is resized and no value range is guessed.

    The reference is one of these:
    - a data set by name, or a folder with one subfolder per class, as for study.sweep --data: its training images,
      chosen as in a sweep;
    - a folder of lossless pictures without classes, or such an .npz: those pictures;
    - one of ADM's files, such as VIRTUAL_imagenet256_labeled.npz: its statistics for Inception, its pictures for the
      other judges.

    The default judges are those of the scale, or inception with ADM's statistics. The classifier is trained on the
    reference, which must be a data set; inception needs its weights (study.prefetch).

    The numbers are printed and stored in results/STUDY/table.csv as rows of the run NAME, one per judge.
    """

    path: Annotated[tyro.conf.Positional[Path], arg(metavar="PATH", help_behavior_hint="")]
    """The pictures: a folder or an .npz."""
    reference: Annotated[str, arg(metavar="NAME|FOLDER|NPZ")] = "fashion-mnist"
    """The reference: fashion-mnist, cifar10, a folder or an .npz."""
    judge: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, arg(metavar="NAME[@PIXELS]", help_behavior_hint="")
    ] = ()
    """A judge: efficientnet_lite2 (at 64 px, as in the scales), classifier, inception; may be repeated."""
    scale: Annotated[str, arg(metavar="NAME")] = "desk"
    """The scale whose judges and number of reference images are the defaults, and by whose rule the pictures of a data
    set are read: they are turned by their EXIF orientation, but at imagenet256 and imagenet256-system they are not."""
    name: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """Name of the run in the table. Default: the name of the folder or file."""
    samples: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Score the first N pictures, in the order of their paths. Default: all."""
    reference_images: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Compare with N images of the reference. Default: for a data set as many as at the scale, otherwise all."""
    study: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """Study whose table gets the rows: a folder of results/, created if missing. Default: the name of the scale."""
    out: Annotated[Path, arg(metavar="FOLDER", help_behavior_hint="")] = CHECKOUT
    """Folder that holds results/. Default: the checkout."""

    @property
    def table(self) -> Path:
        """The table that gets the rows."""
        return self.out / "results" / (self.scale if self.study is None else self.study) / "table.csv"


@dataclass(frozen=True, kw_only=True)
class Target:
    """The reference: the training images of `data`, or `pictures`, which may have ADM's `statistics`."""

    text: str  # its name in the table; a judge that uses the statistics has another one, see `_reference`
    count: int
    size: tuple[int, int]  # height and width, pixels
    data: DataSpec | None = None
    pictures: Pictures | None = None
    statistics: dict[str, np.ndarray] | None = None


def _judges(options: Sequence[str], scale: Scale) -> list[tuple[str, int]]:
    """Names and input sizes of the judges; ValueError for an unknown or repeated name or an invalid size."""
    sizes = dict(desk().judges + scale.judges)
    judges: dict[str, int] = {}
    for text in options:
        name, at, size = text.partition("@")
        if name not in WIDTHS:
            raise ValueError(f"no judge {name!r}; {nearest(name, WIDTHS)}")
        if at and not size.isdecimal():
            raise ValueError(f"--judge takes NAME or NAME@PIXELS, got {text!r}")
        if name in judges:
            raise ValueError(f"--judge names {name} twice")
        judges[name] = int(size) if at else sizes.get(name, 0)
    if "inception" in judges:
        require_weights("inception")
    return list(judges.items())


def _target(options: Evaluate, scale: Scale, size: tuple[int, int]) -> Target:
    """The reference for pictures of this height and width."""
    path, limit = Path(options.reference).expanduser(), options.reference_images
    named = options.reference in NAMED_DATASETS
    flat = path.is_dir() and any(entry.name.lower().endswith(SUFFIXES) for entry in os.scandir(path))
    if named or (path.is_dir() and not flat):
        side = NAMED_RESOLUTION if named else size[0]
        if size != (side, side):
            raise ValueError(_sizes(size, (side, side) if named else None, options.reference))
        data = resolve_data(options.reference if named else str(path), side, upright=scale.turns_pictures)
        count = min(scale.evaluation.reference_images, data.train_images) if limit is None else limit
        if count > data.train_images:
            raise ValueError(f"asked for {count} of the {data.train_images} training images of {data.name}")
        return Target(text=reference_name(data, "train", count), count=count, size=size, data=data)
    if not path.exists():
        raise ValueError(
            f"no data set, folder or .npz {options.reference!r}; {nearest(options.reference, NAMED_DATASETS)}"
        )
    statistics = read_statistics(path) if path.suffix == ".npz" else None
    if statistics is not None and limit is not None:
        raise ValueError(f"--reference-images does not go with {path.name}: its statistics are of a whole data set")
    pictures = read_pictures(path, limit)
    if pictures.size != size:
        raise ValueError(_sizes(size, pictures.size, options.reference))
    count = len(pictures.pixels)
    text = f"{pictures.name}, {count} images"
    return Target(text=text, count=count, size=size, pictures=pictures, statistics=statistics)


def _sizes(size: tuple[int, int], other: tuple[int, int] | None, reference: str) -> str:
    """The error message for pictures and a reference of different sizes (`other` None: any square)."""
    theirs = f"those of {reference} {other[0]} x {other[1]}" if other else f"those of {reference} become square"
    return (
        f"sizes differ: the pictures are {size[0]} x {size[1]} px, {theirs}; "
        "resizing would change the score, so make the sizes equal first"
    )


def _reference(judge: JudgeSpec, target: Target, device: str) -> tuple[Reference, str]:
    """The reference for a judge, and its name in the table."""
    # imported here: they load torch, which takes seconds that --help does not need
    from study.judge.references import dataset_reference, pictures_reference

    if target.data is not None:
        return dataset_reference(judge, target.data, "train", target.count, device), target.text
    assert target.pictures is not None
    statistics = target.statistics if judge.name == "inception" else None
    text = f"{target.pictures.name}, its statistics and {target.count} images" if statistics else target.text
    return pictures_reference(judge, target.pictures.pixels, target.pictures.digest, device, statistics), text


def prepare(options: Evaluate) -> tuple[str, Pictures, Target, list[JudgeSpec]]:
    """Check the options before a picture is judged; returns the run's name, pictures, reference and judges.

    Raises:
        ValueError: an option is invalid; the message is one line.
    """
    scale = named_scale(options.scale)
    if options.study is not None:
        check_study(options.study)
    judges = _judges(options.judge, scale)
    for folder in (study_root(), options.out / "results"):
        require_writable(folder)
    pictures = read_pictures(options.path.expanduser(), options.samples)
    name = pictures.name if options.name is None else options.name
    if not name.strip():
        raise ValueError(f"--name must not be empty, got {name!r}")
    target = _target(options, scale, pictures.size)
    for purpose, count in (("scored", len(pictures.pixels)), ("compared with", target.count)):
        if count < FEWEST_SAMPLES:
            raise ValueError(f"too few pictures to be {purpose}: {count}; at least {FEWEST_SAMPLES} are needed")
    if not judges and target.statistics is not None:
        judges = _judges(["inception"], scale)
    if not judges:
        without_data = target.data is None
        judges = _judges([name for name, _ in scale.judges if not (name == "classifier" and without_data)], scale)
    return name, pictures, target, [judge_spec(judge, size, target.data) for judge, size in judges]


def _left_out(options: Evaluate, target: Target) -> list[str]:
    """Files in the folders of the pictures and of the reference that are not used, a line per kind."""
    path, reference = options.path.expanduser(), Path(options.reference).expanduser()
    lines = [f"{path}: {line}" for line in (left_out_of_pictures(path) if path.is_dir() else [])]
    if target.data is not None:
        return lines + [f"{reference}: {line}" for line in data_notes(options.reference, target.data)]
    return lines + [f"{reference}: {line}" for line in (left_out_of_pictures(reference) if reference.is_dir() else [])]


def score(options: Evaluate) -> list[Row]:
    """Judge the pictures and write the table; returns the new rows, in the order of the judges.

    Raises:
        ValueError: see `prepare`.
        MetricError: a metric is not reliable, for instance not finite.
    """
    name, pictures, target, judges = prepare(options)
    for line in _left_out(options, target):
        print(line, flush=True)
    # imported here: they load torch, which takes seconds that --help does not need
    from study.judge.judges import all_features, build_judge
    from study.judge.metrics import comparable, generation_metrics

    machine = compute.resolve()
    compute.apply(machine)  # the number of threads changes the last bits of a classifier that is trained here
    origin, samples = provenance(machine), len(pictures.pixels)
    rows = []
    for judge in judges:
        started = time.monotonic()
        print(f"{judge.name}: comparing {samples:,} pictures with {target.count:,} of the reference ...", flush=True)
        reference, text = _reference(judge, target, machine.device)
        features, spatial = all_features(build_judge(judge, target.data, machine.device), [pictures.pixels])
        protocol: dict[str, Any] = {
            "samples": samples,
            "extractor": judge.name,
            "extractor_size": judge.size,
            "reference": text,
            "reference_hash": reference.hash[:12],
        }
        measured: dict[str, Any] = {**generation_metrics(features, reference, spatial), **protocol}
        measured |= {name: origin[name] for name in ("commit", "versions", "device", "threads")}
        rows.append(
            Row(
                kind="generator",
                run=name,
                fingerprint=FOREIGN + pictures.digest,
                protocol=fingerprint(measured_alike(protocol), 12),
                state="done",
                **measured,
                comparable=comparable(samples, judge.width),
                study=options.table.parent.name,
                resolution=pictures.size[0],
                evaluate_seconds=round(time.monotonic() - started, 3),
            )
        )
    _add(rows, options.table)
    return rows


def _add(rows: list[Row], path: Path) -> None:
    """Merge the rows into the table; they replace earlier rows of the same pictures with the same protocol."""
    with locked(path.parent):
        new = table_of(rows)
        write(merge(load(path), new) if path.exists() else new, path)


def _print(rows: list[Row], table: Path) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    metrics = [metric for metric in METRICS if any(getattr(row, metric) is not None for row in rows)]
    scores = Table(box=None, pad_edge=False, header_style="bold", title=None)
    scores.add_column("judge")
    for metric in metrics:
        scores.add_column(metric, justify="right")
    for row in rows:
        mark = "" if row.comparable else " *"
        values = [getattr(row, metric) for metric in metrics]
        scores.add_row(
            f"{row.extractor} @ {row.extractor_size} px{mark}",
            *("" if value is None else f"{value:.4g}" for value in values),
        )
    console.print(f"[bold]{escape(rows[0].run)}[/bold]: {rows[0].samples:,} pictures")
    console.print(scores)
    for text in dict.fromkeys(f"{row.reference} ({row.reference_hash})" for row in rows):
        console.print(f"compared with {text}", markup=False)
    if not all(row.comparable for row in rows):
        console.print("* not comparable: fewer pictures than twice the judge's feature width")
    console.print(f"table {table}", markup=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point: 0 scored; 2 and one line on standard error for bad input; 1 for an unreliable metric."""
    options = options_of(Evaluate, "study.evaluate", arguments)
    try:
        rows = score(options)
    except (ValueError, OSError) as error:
        print(f"study.evaluate: {error}", file=sys.stderr)
        return 2
    except (ArithmeticError, SafetensorError) as error:  # MetricError (its module imports torch); a damaged reference
        print(f"study.evaluate: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    _print(rows, options.table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
