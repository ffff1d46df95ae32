"""python -m study.export: a finished run as files that other tools load, with a card."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import arg

from models.configs import AutoencoderConfig
from results.files import atomic
from study.core.command_line import exit_code, options_of
from study.core.paths import CHECKOUT
from study.plan.specs import FitGenerator, FitTokenizer
from study.plan.weight_files import weight_file

if TYPE_CHECKING:
    from torch import Tensor

    from study.report.model_card import Exported


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a finished run into a folder, for other tools: safetensors, and a card with its numbers.

    A tokenizer is exported alone, with the statistics of its latents if they were made; a generator with its EMA
    weights, its tokenizer and these statistics. Pretrained weights, as those that others publish, are not copied. The
    card says how each tool loads the files.
    """

    run: Annotated[tyro.conf.Positional[str], arg(metavar="RUN")]
    """Fingerprint of a tokenizer or generator in results/STUDY/table.csv, or its name."""
    folder: Annotated[tyro.conf.Positional[Path], arg(metavar="FOLDER")]
    """Folder to write; new, or empty."""
    form: Annotated[Literal["released", "diffusers"], arg(name="as")] = "released"
    """Form of the tokenizer: of hustvl/LightningDiT, or AutoencoderKL of diffusers where that class has its layout.
    Generator and statistics have the released form in both."""
    study: Annotated[str, arg(metavar="NAME")] = "desk"
    """A folder of results/."""
    images_seen: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Snapshot of a generator, by its images seen. Default: the last one."""
    results: Annotated[Path, arg(metavar="FOLDER", help_behavior_hint="")] = CHECKOUT / "results"
    """Folder of the results tables. Default: that of the checkout."""


def export(options: Export) -> list[Path]:
    """Write the files, the card last; returns their paths.

    Raises:
        ValueError: the folder is in use, there is no such finished run, or the form cannot hold it; in one line.
    """
    if options.folder.exists() and (not options.folder.is_dir() or any(options.folder.iterdir())):
        raise ValueError(f"{options.folder} is there already, and is no empty folder: give a new one")
    # imported here: they load pandas, which takes a second that --help does not need
    from study.report.finished_runs import finished_training, latents_of, rows_of_run, study_table
    from study.report.model_card import CARD, Exported, model_card

    table = study_table(options.results, options.study)
    row = rows_of_run(table, options.study, options.run, ["tokenizer", "generator"]).iloc[0]
    if row["kind"] == "tokenizer" and options.images_seen is not None:
        raise ValueError(f"--images-seen selects a snapshot of a generator; {row['run']!r} is a tokenizer")
    training = finished_training(row, options.images_seen)
    generator = training if isinstance(training.spec, FitGenerator) else None
    tokenizer = training if generator is None else generator.inputs["latents"].inputs["tokenizer"]
    latents = latents_of(tokenizer) if generator is None else generator.inputs["latents"]
    fit, own = tokenizer.spec, training.spec
    assert isinstance(fit, FitTokenizer) and isinstance(own, (FitTokenizer, FitGenerator))
    if own.pretrained is not None:
        file = weight_file(own.pretrained.name).file
        raise ValueError(f"{row['run']!r} was not trained here: its weights are those of the file {file}")
    if fit.pretrained is None:
        check_form(fit.tokenizer, fit.architecture, options.form)
    elif options.form == "diffusers":
        raise ValueError(
            f"the tokenizer {fit.tokenizer} was not trained here, so that nothing of {row['run']!r} has the form of "
            "diffusers: --as released exports the generator"
        )
    exported = Exported(
        run=row["run"],
        form="" if fit.pretrained else options.form,
        tokenizer=tokenizer,
        latents=latents,
        generator=generator,
    )
    _write(exported, options.folder)
    card = options.folder / CARD
    with atomic(card) as temporary:
        temporary.write_text(model_card(exported, table), encoding="utf-8")
    return [*(options.folder / name for name in exported.files), card]


def check_form(name: str, layout: AutoencoderConfig, form: str) -> None:
    """ValueError, with the reason, unless a tokenizer of this layout can be written in this form."""
    from models.diffusers_form import diffusers_config

    if layout.frozen_encoder:
        raise ValueError(
            f"{name} cannot be exported: it encodes with the frozen {layout.frozen_encoder}, which no form has"
        )
    if form == "diffusers":
        try:
            diffusers_config(layout)
        except ValueError as error:
            raise ValueError(f"{name} has no form in diffusers: {error}; --as released has one") from None


def _write(exported: Exported, folder: Path) -> None:
    """The files beside the card."""
    import torch

    from models.diffusers_form import diffusers_config, to_diffusers
    from models.released_checkpoints import stated_header
    from study.core.files import save_tensors, write_json
    from study.data.latents import latent_statistics
    from study.report import model_card as files
    from study.stages.fit_generator import trained_generator
    from study.stages.fit_tokenizer import trained_tokenizer

    statistics = None if exported.latents is None else latent_statistics(exported.latents)
    tensors: dict[str, tuple[dict[str, Tensor], dict[str, str]]] = {}  # of each file, and its header
    config: dict[str, Any] = {}
    if exported.form:
        tokenizer = trained_tokenizer(exported.tokenizer)
        weights, header = dict(tokenizer.state_dict()), stated_header(tokenizer.config)
        if exported.form == "released":
            tensors[files.RELEASED_TOKENIZER] = weights, header
        else:
            tensors[files.DIFFUSERS_TOKENIZER] = to_diffusers(weights), header
            config = {"_class_name": "AutoencoderKL", **diffusers_config(tokenizer.config), "scaling_factor": 1.0}
            if statistics is not None:
                config |= {"latents_mean": statistics["mean"], "latents_std": statistics["std"]}
    if exported.generator is not None:
        (mark,) = exported.generator.marks
        generator = trained_generator(exported.generator, mark, "ema")
        tensors[files.GENERATOR] = dict(generator.state_dict()), stated_header(generator.config)
    if statistics is not None:
        values = {name: torch.tensor(statistics[name]).view(1, -1, 1, 1) for name in ("mean", "std")}
        tensors[files.STATISTICS] = values, {}
    # written once all is read: a run that cannot be read leaves no folder
    for name, (content, header) in tensors.items():
        save_tensors(folder / name, content, {"format": "pt", **header})
    if config:
        write_json(folder / files.DIFFUSERS_CONFIG, config)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point: the exit code."""
    options = options_of(Export, "study.export", arguments)
    return exit_code("study.export", lambda: print("\n".join(map(str, export(options)))))


if __name__ == "__main__":
    sys.exit(main())
