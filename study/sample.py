"""python -m study.sample: draw a sheet of pictures from a finished generator of a study, or from a checkpoint."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from safetensors import SafetensorError
from tyro.conf import arg

from models.specs import parse_generator
from results.runs import SEARCH
from results.schema import FOREIGN
from results.table import load
from study.core import compute
from study.core.paths import CHECKOUT, study_root
from study.core.settings import nearest
from study.data.datasets import packed_data
from study.plan.ablation_files import ablation
from study.plan.resolve import make_plan
from study.plan.scales import SCALES, imagenet256_system
from study.plan.specs import Encode, FitGenerator, Generate, Sampling
from study.plan.stage import Stage, stage_from_record

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor


DEFAULT_CLASSES = 10  # at most, in a sheet that names none
COLUMNS = 8  # of a sheet of one class
CHECKPOINT_CHUNK = 50  # pictures drawn at once from a checkpoint; with its solvers it moves no picture


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Draw a sheet of pictures from a finished generator: a column per class, its pictures below one another.

    Picture i of the sheet depends on i, its class and the seed alone, and is drawn as the run's own samples were: with
    all classes in turn and nothing changed, it is sample i of the sweep. A published checkpoint is drawn from as its
    authors do: by default with 249 steps of Euler and timestep shift 0.3 (250 ancestral steps for DiT), and where it is
    guided, on three channels and from t = 0.1 on.
    """

    run: Annotated[tyro.conf.Positional[str], arg(metavar="RUN|GENERATOR=FILE")]
    """Fingerprint of a generator, or its name where that is unique, as results/STUDY/table.csv has them; or a
    checkpoint in the published form, such as LightningDiT-XL/1=lightningdit-xl-imagenet256-64ep.pt."""
    tokenizer: Annotated[str | None, arg(metavar="TOKENIZER=FILE", help_behavior_hint="")] = None
    """Of a checkpoint: its tokenizer, such as f16d32-dinov2=vavae-imagenet256-f16d32-dinov2.pt."""
    statistics: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Of a checkpoint: mean and spread of the latents that it was trained on, such as latents_stats.pt."""
    study: Annotated[str, arg(metavar="NAME")] = "desk"
    """A folder of results/."""
    classes: Annotated[str | None, arg(metavar="N,N,...", help_behavior_hint="")] = None
    """Numbers of the classes, from 0, a column each. Default: all of them, at most the first 10."""
    each: Annotated[int, arg(metavar="N")] = 6
    """Pictures of each class."""
    images_seen: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Which snapshot, by the images it had seen. Default: the last."""
    steps: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Steps of the solver. Default: those that the run was judged with, as for the two below."""
    guidance: Annotated[float | None, arg(metavar="SCALE", help_behavior_hint="")] = None
    """Scale of classifier-free guidance; 1 is none."""
    seed: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Seed of the noise."""
    out: Annotated[Path, arg(metavar="FILE")] = Path("sheet.png")
    """The PNG to write."""
    results: Annotated[Path, arg(metavar="FOLDER", help_behavior_hint="")] = CHECKOUT / "results"
    """Folder of the results tables. Default: that of the checkout."""


def _rows(options: Sample) -> pd.DataFrame:
    """The table's rows of the run asked for; ValueError, with the nearest names, unless it is one generator's."""
    studies = sorted(path.parent.name for path in options.results.glob("*/table.csv"))
    if options.study not in studies:
        near = nearest(options.study, studies) if studies else "there is none, run python -m study.sweep first"
        raise ValueError(f"no study {options.study!r} in {options.results}; {near}")
    table = load(options.results / options.study / "table.csv")
    asked = table[(table["fingerprint"] == options.run) | (table["run"] == options.run)]
    ours = table[(table["kind"] == "generator") & ~table["fingerprint"].str.startswith(FOREIGN)]
    found = asked[asked.index.isin(ours.index)]
    if len(found) == 0:
        if len(asked):
            made = asked["fingerprint"].iloc[0].startswith(FOREIGN)
            what = "was made elsewhere: there is only its score" if made else "is a tokenizer, which draws nothing"
            raise ValueError(f"{options.run!r} {what}; generators: {_listed(ours['run'])}")
        names = sorted(set(ours["fingerprint" if set(options.run) <= set("0123456789abcdef") else "run"]))
        near = nearest(options.run, names) if names else "it has no generator"
        raise ValueError(f"no run {options.run!r} in study {options.study!r}; {near}")
    fingerprints = sorted(set(found["fingerprint"]))
    if len(fingerprints) > 1:
        raise ValueError(
            f"{options.run!r} names {len(fingerprints)} runs: give a fingerprint, {', '.join(fingerprints)}"
        )
    # its own protocol before that of a sweep over guidance
    return found.sort_values(["sampling_seed", "guidance_scale"], kind="stable")


def _listed(names: Any) -> str:
    return ", ".join(sorted(set(names))) or "none"


def _training(row: pd.Series) -> Stage:
    """The fit_generator stage of a row, with the tokenizer and the latents it was trained on, all of them done.

    Raises:
        ValueError: a folder of theirs is not under `$STUDY_ROOT`, or cannot be told to be theirs.
    """
    try:
        found = stage_from_record("fit_generator", row["fingerprint"]) or _planned_again(row)
        waiting = [found]
        while waiting:  # a record that was read above may be gone, and one that was planned may never have been
            stage = waiting.pop()
            if stage.record() is None:
                raise ValueError(f"no finished {stage.kind} in {stage.folder}")
            waiting += stage.inputs.values()
    except ValueError as error:
        raise ValueError(
            f"{row['run']!r} is in the table of {row['study']}, but what it was made of is not at hand: {error}. "
            f"Set STUDY_ROOT (now {study_root()}) to where it was trained, or train it here with study.sweep"
        ) from error
    return found


def _planned_again(row: pd.Series) -> Stage:
    """The same from the row's ablation and scale, for records that do not hold their spec: those written at first.

    Raises:
        ValueError: the plan of no ablation has it, as when settings of the scale were changed.
    """
    names = [name for name in row["ablations"].split() if not name.startswith(SEARCH)]
    for name in names if row["scale"] in SCALES else ():
        for data in packed_data(row["data"], int(row["resolution"])):
            plan = make_plan(name, ablation(name), SCALES[row["scale"]](), data, compute.resolve(), row["study"])
            for planned in plan.runs:
                if planned.fit.fingerprint == row["fingerprint"]:
                    return planned.fit
    raise ValueError(
        f"its record does not hold its settings, and {row['ablations'] or 'no ablation'} at scale {row['scale']} "
        "does not ask for it"
    )


def _sampling(row: pd.Series, options: Sample, pictures: int) -> Sampling:
    """The run's own protocol with what the options change."""
    if options.steps is not None and row["solver"] == "dopri5":
        raise ValueError(f"--steps {options.steps}: dopri5 chooses its own")
    low, high = map(float, row["guidance_interval"].split())
    own = Sampling(
        samples=pictures,
        chunk=int(row["chunk"]),
        solver=row["solver"],
        steps=1 if row["solver"] == "dopri5" else int(row["steps"]),
        timestep_shift=float(row["timestep_shift"]),
        guidance_scale=float(row["guidance_scale"]),
        guidance_interval=(low, high),
        guidance_channels=0 if row["guidance_channels"] == "all" else int(row["guidance_channels"]),
        label_scheme=row["label_scheme"],
        weights=row["weights"],
        seed=int(row["sampling_seed"]),
    )
    asked: dict[str, Any] = {"steps": options.steps, "guidance_scale": options.guidance, "seed": options.seed}
    return dataclasses.replace(own, **{name: value for name, value in asked.items() if value is not None})


def _classes(text: str | None, names: tuple[str, ...]) -> list[int]:
    """Numbers of the classes that were asked for; ValueError for one that there is not."""
    if text is None:
        return list(range(min(len(names), DEFAULT_CLASSES)))
    parts = [part.strip() for part in text.split(",")]
    wrong = [part for part in parts if not part.isdecimal() or int(part) >= len(names)]
    if wrong:
        some = ", ".join(f"{number} {name}" for number, name in list(enumerate(names))[:12])
        more = " ..." if len(names) > 12 else ""
        raise ValueError(f"--classes takes numbers from 0 to {len(names) - 1}, got {wrong[0]!r}; they are {some}{more}")
    return [int(part) for part in parts]


def _check(options: Sample) -> None:
    if options.each < 1:
        raise ValueError(f"--each must be at least 1, got {options.each}")
    if options.steps is not None and options.steps < 1:
        raise ValueError(f"--steps {options.steps}: at least 1 is needed")
    if options.guidance is not None and not 0 <= options.guidance < math.inf:
        raise ValueError(f"--guidance must be 0 or more (1 is none), got {options.guidance}")
    if options.out.suffix.lower() != ".png" or options.out.is_dir():
        raise ValueError(f"--out must be a file that ends in .png, got {options.out}")


def prepare(options: Sample) -> tuple[Generate, dict[str, Stage], list[int]]:
    """What to draw: spec and inputs of a generate stage that is never recorded, and the classes in turn.

    Raises:
        ValueError: one clear line.
    """
    rows = _rows(options)
    training = _training(rows.iloc[0])
    latents = training.inputs["latents"]
    fit, encode = training.spec, latents.spec
    assert isinstance(fit, FitGenerator) and isinstance(encode, Encode)
    if fit.compute.device == "cuda" and compute.resolve().device != "cuda":
        raise ValueError(f"{rows.iloc[0]['run']!r} was trained on a GPU, and there is none here")
    marks = fit.recipe.snapshot_images
    mark = max(marks) if options.images_seen is None else options.images_seen
    if mark not in marks:
        raise ValueError(f"no snapshot at {mark} images seen; there are {', '.join(map(str, sorted(marks)))}")
    judged = rows[rows["images_seen"] == mark]
    classes = _classes(options.classes, encode.data.class_names)
    sampling = _sampling((judged if len(judged) else rows).iloc[0], options, len(classes) * options.each)
    if sampling.guidance_scale != 1 and not fit.architecture.label_dropout:
        raise ValueError(f"{rows.iloc[0]['run']!r} was trained without label dropout, so it cannot be guided")
    spec = Generate(
        data=encode.data, images_seen=mark, sampling=sampling, reference_images=0, judges=(), compute=fit.compute
    )
    return spec, {"generator": training, "latents": latents, "tokenizer": latents.inputs["tokenizer"]}, classes


def _is_checkpoint(run: str) -> bool:
    name, equals, _ = run.partition("=")
    try:
        parse_generator(name)
    except ValueError:
        return False
    return bool(equals)


def _of_checkpoint(options: Sample) -> tuple[Callable[[int], Tensor], Sampling, list[int]]:
    """Function from a chunk's number to its images, how they are drawn, and the classes in turn.

    Raises:
        ValueError: what is missing, cannot be read or does not belong together; in one line.
    """
    # here, because they load torch, which takes seconds that --help does not need
    from models import load_generator, load_latent_statistics, load_tokenizer
    from study.stages.generate import make_sampler

    if options.tokenizer is None or options.statistics is None or "=" not in options.tokenizer:
        raise ValueError("a checkpoint is drawn from with --tokenizer TOKENIZER=FILE and --statistics FILE")
    if options.images_seen is not None:
        raise ValueError("--images-seen chooses among the snapshots of a run; a checkpoint is one")
    name, _, path = options.run.partition("=")
    network = load_generator(name, path).network
    tokenizer_name, _, tokenizer_path = options.tokenizer.partition("=")
    tokenizer = load_tokenizer(tokenizer_name, tokenizer_path).network
    latents = load_latent_statistics(options.statistics)
    channels = (network.config.in_channels, tokenizer.config.z_channels, latents.mean.numel())
    if len(set(channels)) > 1:
        raise ValueError(f"generator, tokenizer and statistics have {channels} latent channels: they belong together?")
    classes = _classes(options.classes, tuple("" for _ in range(network.config.num_classes)))
    pictures = len(classes) * options.each
    sampling = dataclasses.replace(
        imagenet256_system().sampling,
        samples=pictures,
        chunk=min(pictures, CHECKPOINT_CHUNK),
        guidance_scale=1.0 if options.guidance is None else options.guidance,
        guidance_interval=(0.1, 1.0),
        guidance_channels=3,
        seed=options.seed or 0,
    )
    if network.config.learned_variance:
        sampling = dataclasses.replace(
            sampling, solver="ddpm", steps=250, timestep_shift=1.0, guidance_interval=(0.0, 1.0)
        )
    if options.steps is not None:
        sampling = dataclasses.replace(sampling, steps=options.steps)
    machine = compute.resolve()
    compute.apply(machine)
    mean, std = latents.mean.to(machine.device), latents.std.to(machine.device)
    chunk = make_sampler(
        network.to(machine.device).requires_grad_(False),
        tokenizer.to(machine.device).requires_grad_(False),
        lambda latent: latent * std + mean,
        sampling,
        machine,
        classes,
    )
    return chunk, sampling, classes


def draw(options: Sample) -> tuple[Sampling, str]:
    """Write the sheet; returns how it was drawn, and from what.

    Raises:
        ValueError: see `prepare`.
    """
    _check(options)
    # here, because they load torch, which takes seconds that --help does not need
    import torch

    from study.judge.sheets import save_sheet
    from study.stages.generate import chunks_of, sampler

    if _is_checkpoint(options.run):
        chunk, sampling, classes = _of_checkpoint(options)
        source = options.run
    else:
        if options.tokenizer is not None or options.statistics is not None:
            raise ValueError("--tokenizer and --statistics are a checkpoint's; a run has its own")
        spec, inputs, classes = prepare(options)

        compute.apply(spec.compute)
        chunk, sampling = sampler(spec, inputs, classes), spec.sampling
        source = f"{options.run} after {spec.images_seen:,} images"

    images = torch.cat([chunk(number) for number in chunks_of(sampling)])[: sampling.samples]
    save_sheet(options.out, images, columns=len(classes) if len(classes) > 1 else min(COLUMNS, len(images)))
    return sampling, source


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point: 0 drawn; 2 and one line on standard error for bad input."""
    options = tyro.cli(Sample, prog="python -m study.sample", args=arguments, config=(tyro.conf.FlagCreatePairsOff,))
    try:
        sampling, source = draw(options)
    except (ValueError, OSError, SafetensorError) as error:
        print(f"study.sample: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    steps = "" if sampling.solver == "dopri5" else f" {sampling.steps} steps"
    guidance = "no guidance" if sampling.guidance_scale == 1 else f"guidance {sampling.guidance_scale:g}"
    print(
        f"{sampling.samples} pictures of {source}: "
        f"{sampling.solver}{steps}, {guidance}, {sampling.weights} weights, seed {sampling.seed}"
    )
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
