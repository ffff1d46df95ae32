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
from tyro.conf import arg

from models.configs import parse_generator
from study.core import compute
from study.core.command_line import exit_code, options_of
from study.core.paths import CHECKOUT
from study.plan import specs
from study.plan.scales import imagenet256_system
from study.plan.specs import Encode, FitGenerator, Sampling
from study.plan.stage import Stage
from study.report.finished_runs import finished_training, rows_of_run, study_table

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor


DEFAULT_CLASSES = 10  # largest number of classes in a sheet if none are named
COLUMNS = 8  # of a sheet with one class
CHECKPOINT_CHUNK = 50  # pictures drawn at once from a checkpoint; does not change pictures with its solvers


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Draw a sheet of pictures from a finished generator, with one column per class.

    Picture i of the sheet depends only on i, its class and the seed, and is drawn like the run's own samples: with all
    classes in turn and no option changed, it is sample i of the sweep. A published checkpoint is sampled as by its
    authors: by default with 249 Euler steps and timestep shift 0.3 (250 ancestral steps for DiT), and guidance, if
    any, on three channels and from t = 0.1 on.
    """

    run: Annotated[tyro.conf.Positional[str], arg(metavar="RUN|GENERATOR=FILE")]
    """Fingerprint of a generator in results/STUDY/table.csv, or its name; or a published checkpoint, such as
    LightningDiT-XL/1=lightningdit-xl-imagenet256-64ep.pt."""
    tokenizer: Annotated[str | None, arg(metavar="TOKENIZER=FILE", help_behavior_hint="")] = None
    """For a checkpoint: its tokenizer, such as f16d32-dinov2=vavae-imagenet256-f16d32-dinov2.pt."""
    statistics: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """For a checkpoint: mean and std of the latents that it was trained on, such as latents_stats.pt."""
    study: Annotated[str, arg(metavar="NAME")] = "desk"
    """A folder of results/."""
    classes: Annotated[str | None, arg(metavar="N,N,...", help_behavior_hint="")] = None
    """Numbers of the classes, from 0, one column each. Default: all of them, at most the first 10."""
    each: Annotated[int, arg(metavar="N")] = 6
    """Pictures of each class."""
    images_seen: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Snapshot to use, by its images seen. Default: the last one."""
    steps: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Steps of the solver. Default for this and the next two options: as the run was judged."""
    guidance: Annotated[float | None, arg(metavar="SCALE", help_behavior_hint="")] = None
    """Scale of classifier-free guidance; 1 is none."""
    seed: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Seed of the noise."""
    out: Annotated[Path, arg(metavar="FILE")] = Path("sheet.png")
    """The PNG to write."""
    results: Annotated[Path, arg(metavar="FOLDER", help_behavior_hint="")] = CHECKOUT / "results"
    """Folder of the results tables. Default: that of the checkout."""


def _sampling(row: pd.Series, options: Sample, pictures: int) -> Sampling:
    """The run's own sampling protocol, with the changes that the options ask for."""
    if options.steps is not None and row["solver"] == "dopri5":
        raise ValueError(f"--steps {options.steps}: the solver dopri5 chooses its own steps")
    own = Sampling(
        samples=pictures,
        chunk=int(row["chunk"]),
        solver=row["solver"],
        steps=1 if row["solver"] == "dopri5" else int(row["steps"]),
        timestep_shift=float(row["timestep_shift"]),
        guidance_scale=float(row["guidance_scale"]),
        guidance_interval=(float(row["guidance_start"]), float(row["guidance_end"])),
        guidance_channels=int(row["guidance_channels"]),
        label_scheme=row["label_scheme"],
        weights=row["weights"],
        seed=int(row["sampling_seed"]),
    )
    changes: dict[str, Any] = {"steps": options.steps, "guidance_scale": options.guidance, "seed": options.seed}
    return dataclasses.replace(own, **{name: value for name, value in changes.items() if value is not None})


def _classes(text: str | None, names: tuple[str, ...]) -> list[int]:
    """The class numbers in the option's text; ValueError for a class that does not exist."""
    if text is None:
        return list(range(min(len(names), DEFAULT_CLASSES)))
    numbers = [number.strip() for number in text.split(",")]
    invalid = [number for number in numbers if not number.isdecimal() or int(number) >= len(names)]
    if invalid:
        first = ", ".join(f"{number} {name}" for number, name in list(enumerate(names))[:12])
        more = " ..." if len(names) > 12 else ""
        raise ValueError(
            f"--classes takes numbers from 0 to {len(names) - 1}, got {invalid[0]!r}; they are {first}{more}"
        )
    return [int(number) for number in numbers]


def _check(options: Sample) -> None:
    if options.each < 1:
        raise ValueError(f"--each must be at least 1, got {options.each}")
    if options.steps is not None and options.steps < 1:
        raise ValueError(f"--steps {options.steps}: at least 1 is needed")
    if options.guidance is not None and not 0 <= options.guidance < math.inf:
        raise ValueError(f"--guidance must be 0 or more (1 is none), got {options.guidance}")
    if options.out.suffix.lower() != ".png" or options.out.is_dir():
        raise ValueError(f"--out must be a file that ends in .png, got {options.out}")


def prepare(options: Sample) -> tuple[specs.Sample, dict[str, Stage], list[int]]:
    """Spec and inputs of a sample stage that is never recorded, and the classes in turn.

    Raises:
        ValueError: an option is invalid; the message is one line.
    """
    table = study_table(options.results, options.study)
    rows = rows_of_run(table, options.study, options.run, ["generator"])
    training = finished_training(rows.iloc[0], options.images_seen)
    latents = training.inputs["latents"]
    fit, encode = training.spec, latents.spec
    assert isinstance(fit, FitGenerator) and isinstance(encode, Encode)
    (mark,) = training.marks
    judged = rows[rows["images_seen"] == mark]
    classes = _classes(options.classes, encode.data.class_names)
    sampling = _sampling((judged if len(judged) else rows).iloc[0], options, len(classes) * options.each)
    if sampling.guidance_scale != 1 and not fit.architecture.label_dropout:
        raise ValueError(f"{rows.iloc[0]['run']!r} was trained without label dropout, so it cannot be guided")
    eager = dataclasses.replace(fit.compute, compile=False)  # a sheet is drawn before blocks are compiled
    spec = specs.Sample(images_seen=mark, sampling=sampling, compute=eager)
    return spec, {"generator": training, "latents": latents, "tokenizer": latents.inputs["tokenizer"]}, classes


def _is_checkpoint(run: str) -> bool:
    name, equals, _ = run.partition("=")
    try:
        parse_generator(name)
    except ValueError:
        return False
    return bool(equals)


def _checkpoint_sampler(options: Sample) -> tuple[Callable[[int], Tensor], Sampling, list[int]]:
    """A function from the number of a chunk to its images, the sampling protocol, and the classes in turn.

    Raises:
        ValueError: a file is missing, unreadable or does not fit the others; the message is one line.
    """
    # imported here: they load torch, which takes seconds that --help does not need
    from models import load_generator, load_latent_statistics, load_tokenizer
    from study.stages.sample import make_sampler

    if options.tokenizer is None or options.statistics is None or "=" not in options.tokenizer:
        raise ValueError("a checkpoint needs --tokenizer TOKENIZER=FILE and --statistics FILE")
    if options.images_seen is not None:
        raise ValueError("--images-seen selects a snapshot of a run; a checkpoint has only one")
    name, _, path = options.run.partition("=")
    network = load_generator(name, path).network
    tokenizer_name, _, tokenizer_path = options.tokenizer.partition("=")
    tokenizer = load_tokenizer(tokenizer_name, tokenizer_path).network
    latents = load_latent_statistics(options.statistics)
    channels = (network.config.in_channels, tokenizer.config.z_channels, latents.mean.numel())
    if len(set(channels)) > 1:
        raise ValueError(f"generator, tokenizer and statistics have different latent channels: {channels}")
    if options.guidance not in (None, 1.0) and not network.config.label_dropout:
        raise ValueError(f"{path} was trained without label dropout, so it cannot be guided")
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
    """Write the sheet; returns the sampling protocol, and a text that names the network.

    Raises:
        ValueError: see `prepare`.
    """
    _check(options)
    # imported here: they load torch, which takes seconds that --help does not need
    import torch

    from study.judge.sheets import save_sheet
    from study.stages.sample import sampler

    if _is_checkpoint(options.run):
        chunk, sampling, classes = _checkpoint_sampler(options)
        source = options.run
    else:
        if options.tokenizer is not None or options.statistics is not None:
            raise ValueError("--tokenizer and --statistics are for a checkpoint; a run has its own")
        spec, inputs, classes = prepare(options)
        compute.apply(spec.compute)
        chunk, sampling = sampler(spec, inputs, classes), spec.sampling
        source = f"{options.run} after {spec.images_seen:,} images"

    chunks = range(-(-sampling.samples // sampling.chunk))
    images = torch.cat([chunk(number) for number in chunks])[: sampling.samples]
    save_sheet(options.out, images, columns=len(classes) if len(classes) > 1 else min(COLUMNS, len(images)))
    return sampling, source


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point: the exit code."""
    options = options_of(Sample, "study.sample", arguments)

    def run() -> None:
        sampling, source = draw(options)
        steps = "" if sampling.solver == "dopri5" else f" {sampling.steps} steps"
        guidance = "no guidance" if sampling.guidance_scale == 1 else f"guidance {sampling.guidance_scale:g}"
        print(
            f"{sampling.samples} pictures of {source}: "
            f"{sampling.solver}{steps}, {guidance}, {sampling.weights} weights, seed {sampling.seed}"
        )
        print(options.out)

    return exit_code("study.sample", run)


if __name__ == "__main__":
    sys.exit(main())
