"""Stage sample: snapshot, tokenizer, protocol -> samples, and a sheet of the first ones.

Sample i depends on i alone: its label and its noise (with an ancestral sampler, the noise of every step) are seeded by
its index, and samples are always drawn in the same aligned chunks (the last one padded), because an adaptive solver
couples the samples of a batch. So metrics depend neither on the number of processes nor on their order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from models.autoencoder import Autoencoder
from models.diffusion import ancestral, noise_function
from models.lightningdit import LightningDiT
from models.sampler import Guidance, integrate, velocity_function
from study.core.compute import Compute, apply, autocast
from study.core.distributed import all_gather, on_rank_zero, own_share
from study.core.randomness import derive_seed, make_rng
from study.core.stopping import Interrupted
from study.core.workspace import Record, Workspace, peak_memory_gib
from study.data.latents import denormalise
from study.data.picture_chunks import chunk_rows, first_pictures, read_chunk, write_chunk
from study.judge.sheets import save_sheet
from study.plan.specs import FitGenerator, Sample, Sampling
from study.plan.stage import Stage
from study.stages import fit_generator, fit_tokenizer
from study.stages.decoding import decoded

SHEET = "samples.png"
SHEET_COLUMNS, SHEET_ROWS = 8, 6


def label_of(index: int, sampling: Sampling, classes: int) -> int:
    """Class of sample `index`: classes in turn ("equal"), or drawn at random with a seed from the index ("random")."""
    if sampling.label_scheme == "equal":
        return index % classes
    return int(np.random.default_rng(derive_seed(sampling.seed, "label", index)).integers(classes))


def sampler(spec: Sample, inputs: dict[str, Stage], classes: Sequence[int] | None = None) -> Callable[[int], Tensor]:
    """Function from a chunk's number to its images, uint8 (chunk, C, H, W); the last chunk is padded with more.

    Args:
        spec, inputs: of a sample stage.
        classes: of the samples, in turn; None applies the protocol's label scheme.
    """
    network = fit_generator.trained_generator(inputs["generator"], spec.images_seen, spec.sampling.weights)
    tokenizer = fit_tokenizer.trained_tokenizer(inputs["tokenizer"])
    fit = inputs["generator"].spec
    assert isinstance(fit, FitGenerator)
    # two shifts in turn are one by their product
    sampling = replace(spec.sampling, timestep_shift=spec.sampling.timestep_shift * fit.timestep_shift)
    return make_sampler(
        network, tokenizer, lambda latent: denormalise(latent, inputs["latents"]), sampling, spec.compute, classes
    )


def for_sampling(network: LightningDiT, compute: Compute) -> LightningDiT:
    """The network as it draws samples, changed in place: compiled if that is asked, and in bfloat16 with matrices of
    that dtype. Autocast would cast frozen ones anew in every forward pass, to the same values.

    Raises:
        ValueError: see `fit_generator.compile_blocks`.
    """
    if compute.precision == "bfloat16":
        for module in network.modules():
            if isinstance(module, nn.Linear):
                module.to(torch.bfloat16)
    if compute.compile:
        fit_generator.compile_blocks(network, compute.device)
    return network


def make_sampler(
    network: LightningDiT,
    tokenizer: Autoencoder,
    to_raw: Callable[[Tensor], Tensor],
    sampling: Sampling,
    compute: Compute,
    classes: Sequence[int] | None = None,
) -> Callable[[int], Tensor]:
    """As `sampler`, for networks that are already loaded, on their device; the generator is changed by `for_sampling`.

    Args:
        to_raw: from a normalised latent (B, d, h, w) to the raw latent that the tokenizer decodes.
    """
    device, architecture = compute.device, network.config
    network = for_sampling(network, compute)
    shape = (architecture.in_channels, architecture.grid, architecture.grid)
    guidance = Guidance(
        scale=sampling.guidance_scale,
        interval=sampling.guidance_interval,
        channels=sampling.guidance_channels or None,
    )

    def label(index: int) -> int:
        if classes is None:
            return label_of(index, sampling, architecture.num_classes)
        return classes[index % len(classes)]

    def draw(chunk: int) -> Tensor:
        indices = range(chunk * sampling.chunk, (chunk + 1) * sampling.chunk)
        rngs = [make_rng(sampling.seed, "noise", i) for i in indices]
        labels = torch.tensor([label(i) for i in indices]).to(device)

        def fresh_noise() -> Tensor:
            return torch.stack([torch.randn(shape, generator=rng) for rng in rngs]).to(device)

        with torch.inference_mode():
            with autocast(compute):
                if sampling.solver == "ddpm":
                    predict = noise_function(network, labels, architecture.num_classes, guidance)
                    latent = ancestral(predict, fresh_noise(), steps=sampling.steps, fresh_noise=fresh_noise)
                else:
                    velocity = velocity_function(network, labels, architecture.num_classes, guidance)
                    latent = integrate(
                        velocity, fresh_noise(), solver=sampling.solver, steps=sampling.steps,
                        shift=sampling.timestep_shift,
                    )  # fmt: skip
            return decoded(tokenizer, to_raw(latent.float()))  # decoded in float32

    return draw


def run(spec: Sample, inputs: dict[str, Stage], out: Workspace) -> Record:
    """Draw the samples that are not there, save a sheet of the first ones."""
    apply(spec.compute)
    rows, draw, stopped = chunk_rows(spec), None, False
    try:
        for chunk in own_share(range(len(rows))):
            if read_chunk(out.folder, chunk) is None:
                draw = draw or sampler(spec, inputs)
                write_chunk(out.folder, chunk, draw(chunk)[: len(rows[chunk])].clone())
            out.progress(rows[chunk].stop, rows[-1].stop, "samples")
            out.stop_if_asked()
    except Interrupted:
        stopped = True
    if any(all_gather(stopped)):  # no process continues before all chunks are written
        raise Interrupted(f"{out.title} was asked to stop")
    on_rank_zero(lambda: _save_sheet(spec, out.folder))
    return {"sheet": SHEET, "cost": {"peak_memory_gib": round(peak_memory_gib(spec.compute.device), 3)}}


def _save_sheet(spec: Sample, folder: Path) -> None:
    save_sheet(folder / SHEET, first_pictures(spec, folder, SHEET_COLUMNS * SHEET_ROWS), columns=SHEET_COLUMNS)
