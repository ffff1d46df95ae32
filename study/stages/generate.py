"""Stage generate: snapshot, tokenizer, protocol -> gFID and further metrics, and a sheet of samples.

Sample i depends on i alone: its label and its noise (with an ancestral sampler, the noise of every step) are seeded by
its index, and samples are always drawn in the same aligned chunks (the last one padded), because an adaptive solver
couples the samples of a batch. So metrics depend neither on the number of processes nor on their order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.autoencoder import Autoencoder
from models.diffusion import ancestral, noise_function
from models.lightningdit import LightningDiT
from models.sampler import Guidance, integrate, velocity_function
from study.core.compute import Compute, apply, autocast
from study.core.distributed import all_gather, on_rank_zero, own_share
from study.core.files import load_tensors, read_tensors, save_tensors
from study.core.randomness import derive_seed, make_rng
from study.core.stopping import Interrupted
from study.core.workspace import Record, Workspace, peak_memory_gib
from study.data.latents import denormalise
from study.judge.judges import all_features, build_judge
from study.judge.metrics import comparable, generation_metrics
from study.judge.references import dataset_reference, published_reference
from study.judge.sheets import save_sheet
from study.plan.specs import Generate, Sampling
from study.plan.stage import Stage
from study.stages import fit_generator, fit_tokenizer

SHEET = "samples.png"
SHEET_COLUMNS, SHEET_ROWS = 8, 6


def label_of(index: int, sampling: Sampling, classes: int) -> int:
    """Class of sample `index`: classes in turn ("equal"), or drawn at random with a seed from the index ("random")."""
    if sampling.label_scheme == "equal":
        return index % classes
    return int(np.random.default_rng(derive_seed(sampling.seed, "label", index)).integers(classes))


def chunks_of(sampling: Sampling) -> range:
    """Numbers of the chunks that make all samples."""
    return range(-(-sampling.samples // sampling.chunk))


def sampler(spec: Generate, inputs: dict[str, Stage], classes: Sequence[int] | None = None) -> Callable[[int], Tensor]:
    """Function from a chunk's number to its images, uint8 (chunk, C, H, W).

    Args:
        spec, inputs: of a generate stage; its reference and its judges are not used.
        classes: of the samples, in turn; None applies the protocol's label scheme.
    """
    network = fit_generator.trained_generator(inputs["generator"], spec.images_seen, spec.sampling.weights)
    tokenizer = fit_tokenizer.trained_tokenizer(inputs["tokenizer"])
    return make_sampler(
        network, tokenizer, lambda latent: denormalise(latent, inputs["latents"]), spec.sampling, spec.compute, classes
    )


def make_sampler(
    network: LightningDiT,
    tokenizer: Autoencoder,
    to_raw: Callable[[Tensor], Tensor],
    sampling: Sampling,
    compute: Compute,
    classes: Sequence[int] | None = None,
) -> Callable[[int], Tensor]:
    """As `sampler`, for networks that are already loaded, on their device.

    Args:
        to_raw: from a normalised latent (B, d, h, w) to the raw latent that the tokenizer decodes.
    """
    device, architecture = compute.device, network.config
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
            pixels = tokenizer.decode(to_raw(latent.float()))  # decoded in float32
        return ((pixels + 1) * 127.5).round_().clamp_(0, 255).to(torch.uint8).cpu().contiguous()

    return draw


def _file(folder: Path, chunk: int) -> Path:
    return folder / f"chunk-{chunk:06d}.safetensors"


def _read(folder: Path, chunk: int) -> Tensor | None:
    tensors = read_tensors(_file(folder, chunk))
    return None if tensors is None else tensors["images"]


def draw_chunks(spec: Generate, inputs: dict[str, Stage], folder: Path, chunks: Iterable[int]) -> Iterable[int]:
    """Draw these chunks into files of `folder`, skipping those that exist; yields each chunk when it is done."""
    draw = None
    for chunk in chunks:
        if _read(folder, chunk) is None:
            draw = draw or sampler(spec, inputs)
            save_tensors(_file(folder, chunk), {"images": draw(chunk)})
        yield chunk


def run(spec: Generate, inputs: dict[str, Stage], out: Workspace) -> Record:
    """Draw the samples, compare them with the reference, save a sheet of the first ones."""
    apply(spec.compute)
    sampling = spec.sampling
    stopped = False
    try:
        for chunk in draw_chunks(spec, inputs, out.folder, own_share(chunks_of(sampling))):
            out.progress(min((chunk + 1) * sampling.chunk, sampling.samples), sampling.samples, "samples")
            out.stop_if_asked()
    except Interrupted:
        stopped = True
    if any(all_gather(stopped)):  # no process continues before all chunks are written
        raise Interrupted(f"{out.title} was asked to stop")
    return on_rank_zero(lambda: _judge(spec, out))


def _judge(spec: Generate, out: Workspace) -> Record:
    sampling = spec.sampling
    drawn = [load_tensors(_file(out.folder, chunk))["images"] for chunk in chunks_of(sampling)]
    images = torch.cat(drawn)[: sampling.samples]
    metrics = {}
    for judge in spec.judges:
        out.preparing(f"judged by {judge.name}")
        if spec.reference is not None:
            target = published_reference(judge, spec.reference, spec.compute.device)
        else:
            target = dataset_reference(judge, spec.data, "train", spec.reference_images, spec.compute.device)
        pooled, spatial = all_features(build_judge(judge, spec.data, spec.compute.device), images)
        values = generation_metrics(pooled, target, spatial)
        metrics[judge.name] = {
            **values,
            "comparable": comparable(sampling.samples, judge.width),
            "reference": target.hash,
        }
    save_sheet(out.folder / SHEET, images[: SHEET_COLUMNS * SHEET_ROWS], columns=SHEET_COLUMNS)
    return {
        "metrics": metrics,
        "sheet": SHEET,
        "cost": {"peak_memory_gib": round(peak_memory_gib(spec.compute.device), 3)},
    }
