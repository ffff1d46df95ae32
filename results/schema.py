"""The columns of a results table, declared once as the fields of a row; loading, writing and docs use this list."""

import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

Type = Literal["text", "int", "float", "bool", "JSON"]

KINDS = ("tokenizer", "generator")
STATES = ("done", "pending", "running", "failed", "timed out", "diverged", "pruned", "blocked")
HEADLINE = {"tokenizer": "rfid", "generator": "gfid"}  # the metric that every done row has
SELECTION_SEED = 1_000_000  # sampling seeds from here on only choose a setting, see results/guidance.py
FOREIGN = "images-"  # prefix of the fingerprint of pictures made elsewhere, see study/evaluate.py
PUBLISHED = "published-"  # prefix of the fingerprint of a row of results/paper/, see results/published.py
PUBLISHED_STUDIES = ("paper", "since")  # the studies of those rows; a measured study must not have these names


@dataclass(frozen=True, kw_only=True)
class Label:
    """A run's place and name in one ablation, and the factors in which it differs from the run it is compared with."""

    ablation: str
    place: int
    text: str
    changed: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.ablation} {self.place}: {self.text}" + (f" [{', '.join(self.changed)}]" if self.changed else "")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a number was copied from: a publication, its table, and which row or words of it."""

    publication: str
    table: str = ""
    detail: str = ""

    def __str__(self) -> str:
        return ", ".join(filter(None, (self.publication, self.table, self.detail)))


def _column(group: str, meaning: str, empty: Any = None) -> Any:
    """A field of a row. empty: its value, or a function that makes it, where nothing is stated."""
    metadata = {"group": group, "meaning": meaning}
    if callable(empty):
        return field(default_factory=empty, metadata=metadata)
    return field(default=empty, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the results table: a run, judged at a number of images seen by one judge, or the reason why it is not.

    A field that is not stated has its empty value: None for numbers, "" for text, () or {} for what the file has as
    JSON.

    Raises:
        ValueError: a value of another type, a number that is not finite (a computed NaN is a failed run, not a missing
            number), an empty key, an unknown kind or state, a done row without its headline metric (rfid or gfid).
        TypeError: a name that is no column.
    """

    ablations: tuple[str, ...] = _column("identity", "ablations that asked; empty: no longer asked", ())
    labels: tuple[Label, ...] = _column(
        "identity",
        "what ablations call the run, its place there and what it changes",
        (),
    )
    kind: str = _column("identity", "tokenizer or generator", "")
    run: str = _column("identity", "readable name of the run", "")
    changes: Mapping[str, Any] = _column(
        "identity", "changed settings of the training, by name; those of the sampling are in the protocol", empty=dict
    )
    fingerprint: str = _column(
        "identity",
        "fingerprint of the training stage; for pictures made elsewhere images- and the hash of their pixels, "
        "for published numbers published- and a name",
        "",
    )
    tokenizer: str = _column("identity", "tokenizer spec, e.g. f4d16-lite0", "")
    foundation_model: str = _column(
        "identity", "model the tokenizer is aligned with, or none; of a representation autoencoder its own spec", ""
    )
    latent_channels: int | None = _column("identity", "channels of the latent")
    generator: str = _column("identity", "generator spec, e.g. LightningDiT-B/1; empty for tokenizers", "")
    tokenizer_seed: int | None = _column("identity", "seed of the tokenizer's training")
    seed: int | None = _column("identity", "seed of the run's own training")
    tokenizer_fingerprint: str = _column("identity", "fingerprint of the tokenizer (own, for tokenizers)", "")
    images_seen: int | None = _column("identity", "training images seen when evaluated; empty where nobody says")
    protocol: str = _column("identity", "hash of the evaluation protocol; of published numbers, in words", "")
    state: str = _column("state", "done, pending, running, failed, timed out, diverged, pruned or blocked", "")
    reason: str = _column("state", "why the run is not done, in one line", "")
    log: str = _column("state", "where its log is", "")
    rfid: float | None = _column("metrics", "Fréchet distance of reconstructions to their own inputs")
    psnr: float | None = _column("metrics", "peak signal-to-noise ratio of reconstructions, dB")
    ssim: float | None = _column("metrics", "structural similarity of reconstructions")
    perceptual: float | None = _column("metrics", "perceptual distance of reconstructions")
    colour_shift: float | None = _column(
        "metrics", "mean of reconstruction less image over all pixels of a channel, the largest without sign, in 1/255"
    )
    chroma_r2: float | None = _column(
        "metrics", "share of the variance of chroma (Cb, Cr) that reconstructions explain; empty for grey pictures"
    )
    gfid: float | None = _column("metrics", "Fréchet distance of samples to the reference")
    sfid: float | None = _column("metrics", "Fréchet distance of Inception's spatial features; empty for other judges")
    kid: float | None = _column("metrics", "kernel distance of samples to the reference")
    precision: float | None = _column("metrics", "share of samples inside the reference's manifold")
    recall: float | None = _column("metrics", "share of the reference inside the samples' manifold")
    inception_score: float | None = _column("metrics", "inception score of the samples")
    density_cv: float | None = _column("diagnostics", "latent tokens: spread over mean of their density on a t-SNE map")
    gini: float | None = _column("diagnostics", "latent tokens: Gini coefficient of the same densities")
    normalized_entropy: float | None = _column("diagnostics", "latent tokens: entropy of the same densities over log N")
    effective_rank: float | None = _column("diagnostics", "latent tokens: exp of the entropy of their spectrum")
    viv: float | None = _column(
        "diagnostics",
        "velocity irreducible variance within classes, times pi / 2 over that of white noise measured alike",
    )
    lnc_5: float | None = _column("diagnostics", "share of a mean latent's 5 nearest neighbours that have its label")
    lnc_10: float | None = _column("diagnostics", "the same of 10 nearest neighbours")
    sec_25: float | None = _column("diagnostics", "share of latents' energy above 0.25 of the highest DCT frequency")
    sec_50: float | None = _column("diagnostics", "the same above 0.5")
    lds: float | None = _column("diagnostics", "mean cosine of neighbouring tokens less that of distant ones")
    cds: float | None = _column("diagnostics", "fall of tokens' mean cosine per sixteenth of the side of the picture")
    eq_error: float | None = _column(
        "diagnostics", "latents of turned or halved pictures less turned or halved latents, in standard deviations"
    )
    ifid: float | None = _column("diagnostics", "interpolated FID: decoded midpoints of neighbouring latents")
    ifid_released: float | None = _column(
        "diagnostics", "interpolated FID as its authors' code: neighbours are training images, drawn, on an arc"
    )
    diagnostic_points: int | None = _column(
        "diagnostics",
        "latent tokens behind density_cv, gini, normalized_entropy and effective_rank, one per image",
    )
    samples: int | None = _column("protocol", "images scored")
    chunk: int | None = _column("protocol", "samples generated together")
    solver: str = _column("protocol", "ODE solver, or ddpm: ancestral sampling of Gaussian diffusion", "")
    steps: int | None = _column("protocol", "solver steps; empty for adaptive solvers")
    timestep_shift: float | None = _column("protocol", "shift of the sampling times; 1 is none")
    guidance_scale: float | None = _column("protocol", "classifier-free guidance; 1 is none")
    guidance_start: float | None = _column("protocol", "t from which on guidance is on")
    guidance_end: float | None = _column("protocol", "t up to which guidance is on")
    guidance_channels: int | None = _column("protocol", "latent channels guided, from the first on; 0 is all")
    label_scheme: str = _column("protocol", "how labels of samples are chosen", "")
    weights: str = _column("protocol", "ema or raw", "")
    reference: str = _column("protocol", "images the samples are compared with", "")
    reference_hash: str = _column("protocol", "hash of the reference's statistics", "")
    extractor: str = _column("protocol", "network whose features are compared (the judge)", "")
    extractor_size: int | None = _column("protocol", "side of the images it sees, pixels")
    perceptual_net: str = _column("protocol", "network of the perceptual distance", "")
    decode_precision: str = _column("protocol", "precision of decoding", "")
    comparable: bool | None = _column("protocol", "False: fewer samples than twice the feature width")
    sampling_seed: int | None = _column(
        "provenance",
        "seed of the samples' noise and labels; from 1,000,000 on these samples only choose a setting",
    )
    study: str = _column("provenance", "study the row belongs to", "")
    scale: str = _column("provenance", "scale, e.g. desk", "")
    data: str = _column("provenance", "data set", "")
    resolution: int | None = _column(
        "provenance",
        "side of the training images, pixels; of the pictures themselves where they were made elsewhere",
    )
    commit: str = _column("provenance", "commit of the code", "")
    versions: str = _column("provenance", "versions of the libraries that move numbers", "")
    device: str = _column("provenance", "device, when it was judged", "")
    train_precision: str = _column(
        "provenance", "precision of the training: float32, tf32 (float32 with TF32 convolutions) or bfloat16", ""
    )
    threads: int | None = _column("provenance", "threads per process, when it was judged")
    train_device: str = _column("provenance", "device of the training; as the next ones, of its last attempt", "")
    train_threads: int | None = _column("provenance", "threads of each process that trained")
    processes: int | None = _column("provenance", "processes that trained together")
    microbatch_images: int | None = _column("provenance", "images in a microbatch; 0: the whole share of a batch")
    checkpointing: bool | None = _column("provenance", "whether gradients were checkpointed")
    compile: bool | None = _column("provenance", "whether blocks were compiled")
    attention: str = _column("provenance", "kernel of the generator's attention", "")
    resumed: str = _column("provenance", "what differed between the attempts of the training, in words", "")
    pretrained_weights: str = _column(
        "provenance",
        "file of the pretrained weights, and its hash; empty: trained here. They have no seed and no cost",
        "",
    )
    source: tuple[Source, ...] = _column(
        "provenance",
        "publications that a number is copied from; empty: measured here",
        (),
    )
    train_seconds: float | None = _column("cost", "seconds of training")
    evaluate_seconds: float | None = _column("cost", "seconds of evaluation")
    peak_memory_gib: float | None = _column("cost", "peak memory, GiB")
    train_images_per_second: float | None = _column("cost", "training throughput")
    parameters: int | None = _column("cost", "trained parameters of the run's own network")
    flops_per_image: float | None = _column("cost", "FLOPs of one training image, forward and backward")
    sheet: str = _column("cost", "picture sheet in results/<study>/sheets/, or empty", "")

    def __post_init__(self) -> None:
        for name, type_ in TYPES.items():
            object.__setattr__(self, name, _value(self, name, type_))
        for name in KEY:
            not_measured_here = self.fingerprint.startswith((FOREIGN, PUBLISHED))
            may_be_unknown = name == "images_seen" and not_measured_here
            if getattr(self, name) in (None, "") and not may_be_unknown:
                raise ValueError(f"{self.where}: {name} is empty, and it is part of the row's key")
        for name, valid in (("kind", KINDS), ("state", STATES)):
            if getattr(self, name) not in valid:
                raise ValueError(f"{self.where}: {name} is {getattr(self, name)!r}; valid are {', '.join(valid)}")
        headline = HEADLINE[self.kind]
        if self.fingerprint.startswith(PUBLISHED):  # has only the numbers that its publication states
            if not self.source or all(getattr(self, name) is None for name in (*METRICS, *DIAGNOSTICS)):
                raise ValueError(f"{self.where}: published, but without a number or its source")
        elif self.source:
            raise ValueError(f"{self.where}: has a source, but its fingerprint does not begin with {PUBLISHED}")
        elif self.state == "done" and getattr(self, headline) is None:
            raise ValueError(f"{self.where}: done, but {headline} is NaN or missing")

    @property
    def key(self) -> tuple[str, int | None, str]:
        """What identifies the row in a table: the values of KEY."""
        return self.fingerprint, self.images_seen, self.protocol

    @property
    def where(self) -> str:
        """The row in an error message."""
        return f"{self.run or '?'} at {self.images_seen} images"


def _value(row: Row, name: str, type_: Type) -> Any:
    """The value of a field with exactly the declared type; ValueError if it has another one."""
    value = getattr(row, name)
    if value is None and type_ in ("int", "float", "bool"):
        return None
    match type_:
        case "text" if isinstance(value, str):
            return " ".join(value.split())
        case "bool" if isinstance(value, bool):
            return value
        case "int" if isinstance(value, int) and not isinstance(value, bool):
            return value
        case "float" if isinstance(value, (int, float)) and not isinstance(value, bool):
            if not math.isfinite(value):
                raise ValueError(f"{row.where}: {name} is {value}; leave out what is missing")
            return float(value)
        case "JSON" if isinstance(value, (tuple, Mapping)):
            return value
    raise ValueError(f"{row.where}: {name} should be {type_}, found {value!r}")


@dataclass(frozen=True)
class Column:
    """One column: its name, the type of its cells (every cell may be empty), its group and its meaning."""

    name: str
    type: Type
    group: str
    meaning: str


_TYPES: dict[Any, Type] = {str: "text", int | None: "int", float | None: "float", bool | None: "bool"}
_HINTS = typing.get_type_hints(Row)
COLUMNS = tuple(Column(one.name, _TYPES.get(_HINTS[one.name], "JSON"), **one.metadata) for one in fields(Row))
NAMES = tuple(column.name for column in COLUMNS)
TYPES = {column.name: column.type for column in COLUMNS}
METRICS = tuple(column.name for column in COLUMNS if column.group == "metrics")
# measures of a tokenizer, in the tokenizer's rows; each may be empty even if the row is done
DIAGNOSTICS = tuple(
    column.name for column in COLUMNS if column.group == "diagnostics" and column.name != "diagnostic_points"
)
PROTOCOL = tuple(column.name for column in COLUMNS if column.group == "protocol")
PROVENANCE = tuple(column.name for column in COLUMNS if column.group == "provenance")
KEY = ("fingerprint", "images_seen", "protocol")


def latents_file(tokenizer_fingerprint: str, suffix: str) -> str:
    """Name of a file in the folder of picture sheets: a tokenizer's map of latents (.csv) or latent pictures (.png)."""
    return f"latents-{tokenizer_fingerprint}{suffix}"


def measured_alike(columns: Mapping[str, Any]) -> dict[str, Any]:
    """The protocol columns of a row but the name of its reference if that has a hash: equal data may have two names."""
    unnamed = ("reference",) if columns["reference_hash"] else ()
    return {name: columns[name] for name in PROTOCOL if name in columns and name not in unnamed}


def describe() -> str:
    """The columns as a Markdown table."""
    lines = ["| column | type | group | meaning |", "| --- | --- | --- | --- |"]
    lines += [f"| {c.name} | {c.type} | {c.group} | {c.meaning} |" for c in COLUMNS]
    return "\n".join(lines) + "\n"
