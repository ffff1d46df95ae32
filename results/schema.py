"""The columns of a results table, declared once; loading, writing and documentation use this list."""

from dataclasses import dataclass
from typing import Literal

Type = Literal["text", "int", "float", "bool"]


@dataclass(frozen=True)
class Column:
    """One column: its name, the type of its cells (every cell may be empty), its group and its meaning."""

    name: str
    type: Type
    group: str
    meaning: str


COLUMNS = (
    Column("ablations", "text", "identity", "ablations that asked, space-separated; empty: no longer asked"),
    Column(
        "labels",
        "text",
        "identity",
        "what ablations call the run, its place there and what it changes, see results/labels.py",
    ),
    Column("kind", "text", "identity", "tokenizer or generator"),
    Column("run", "text", "identity", "readable name of the run"),
    Column(
        "fingerprint",
        "text",
        "identity",
        "fingerprint of the training stage; for pictures made elsewhere images- and the hash of their pixels, for "
        "published numbers published- and a name",
    ),
    Column("tokenizer", "text", "identity", "tokenizer spec, e.g. f4d16-lite0"),
    Column("foundation_model", "text", "identity", "model the tokenizer is aligned with, or none"),
    Column("latent_channels", "int", "identity", "channels of the latent"),
    Column("generator", "text", "identity", "generator spec, e.g. LightningDiT-B/1; empty for tokenizers"),
    Column("tokenizer_seed", "int", "identity", "seed of the tokenizer's training"),
    Column("seed", "int", "identity", "seed of the run's own training"),
    Column("tokenizer_fingerprint", "text", "identity", "fingerprint of the tokenizer (own, for tokenizers)"),
    Column("images_seen", "int", "identity", "training images seen when evaluated; empty where nobody says"),
    Column("protocol", "text", "identity", "hash of the evaluation protocol; of published numbers, in words"),
    Column("state", "text", "state", "done, pending, running, failed, timed out, diverged, pruned or blocked"),
    Column("reason", "text", "state", "why the run is not done, in one line"),
    Column("log", "text", "state", "where its log is"),
    Column("rfid", "float", "metrics", "Fréchet distance of reconstructions to their own inputs"),
    Column("psnr", "float", "metrics", "peak signal-to-noise ratio of reconstructions, dB"),
    Column("ssim", "float", "metrics", "structural similarity of reconstructions"),
    Column("perceptual", "float", "metrics", "perceptual distance of reconstructions"),
    Column("gfid", "float", "metrics", "Fréchet distance of samples to the reference"),
    Column("sfid", "float", "metrics", "Fréchet distance of Inception's spatial features; empty for other judges"),
    Column("kid", "float", "metrics", "kernel distance of samples to the reference"),
    Column("precision", "float", "metrics", "share of samples inside the reference's manifold"),
    Column("recall", "float", "metrics", "share of the reference inside the samples' manifold"),
    Column("inception_score", "float", "metrics", "inception score of the samples"),
    Column("density_cv", "float", "diagnostics", "latent tokens: spread over mean of their density on a t-SNE map"),
    Column("gini", "float", "diagnostics", "latent tokens: Gini coefficient of the same densities"),
    Column("normalized_entropy", "float", "diagnostics", "latent tokens: entropy of the same densities over log N"),
    Column("effective_rank", "float", "diagnostics", "latent tokens: exp of the entropy of their spectrum"),
    Column("ifid", "float", "diagnostics", "interpolated FID: decoded midpoints of neighbouring latents"),
    Column("diagnostic_points", "int", "diagnostics", "latent tokens behind these, one per image; ifid is of samples"),
    Column("samples", "int", "protocol", "images scored"),
    Column("chunk", "int", "protocol", "samples generated together"),
    Column("solver", "text", "protocol", "ODE solver, or ddpm: ancestral sampling of Gaussian diffusion"),
    Column("steps", "int", "protocol", "solver steps; empty for adaptive solvers"),
    Column("timestep_shift", "float", "protocol", "shift of the sampling times; 1 is none"),
    Column("guidance_scale", "float", "protocol", "classifier-free guidance; 1 is none"),
    Column("guidance_interval", "text", "protocol", "t where guidance is on, e.g. 0 1"),
    Column("guidance_channels", "text", "protocol", "latent channels guided: all, or how many"),
    Column("label_scheme", "text", "protocol", "how labels of samples are chosen"),
    Column("weights", "text", "protocol", "ema or raw"),
    Column("reference", "text", "protocol", "images the samples are compared with"),
    Column("reference_hash", "text", "protocol", "hash of the reference's statistics"),
    Column("extractor", "text", "protocol", "network whose features are compared (the judge)"),
    Column("extractor_size", "int", "protocol", "side of the images it sees, pixels"),
    Column("perceptual_net", "text", "protocol", "network of the perceptual distance"),
    Column("decode_precision", "text", "protocol", "precision of decoding"),
    Column("comparable", "bool", "protocol", "False: fewer samples than twice the feature width"),
    Column(
        "sampling_seed",
        "int",
        "provenance",
        "seed of the samples' noise and labels; from 1,000,000 on these samples only choose a setting",
    ),
    Column("study", "text", "provenance", "study the row belongs to"),
    Column("scale", "text", "provenance", "scale, e.g. desk"),
    Column("data", "text", "provenance", "data set"),
    Column(
        "resolution",
        "int",
        "provenance",
        "side of the training images, pixels; of the pictures themselves where they were made elsewhere",
    ),
    Column("commit", "text", "provenance", "commit of the code"),
    Column("versions", "text", "provenance", "versions of the libraries that move numbers"),
    Column("device", "text", "provenance", "device"),
    Column("train_precision", "text", "provenance", "number format of the training, e.g. bf16"),
    Column("threads", "int", "provenance", "threads per process"),
    Column(
        "given_weights",
        "text",
        "provenance",
        "file of the weights that were given, and its hash; empty: trained here. Given ones have no seed and no cost",
    ),
    Column("source", "text", "provenance", "publication that a number is copied from; empty: measured here"),
    Column("train_seconds", "float", "cost", "seconds of training"),
    Column("evaluate_seconds", "float", "cost", "seconds of evaluation"),
    Column("peak_memory_gib", "float", "cost", "peak memory, GiB"),
    Column("train_images_per_second", "float", "cost", "training throughput"),
    Column("parameters", "int", "cost", "trained parameters of the run's own network"),
    Column("flops_per_image", "float", "cost", "FLOPs of one training image, forward and backward"),
    Column("sheet", "text", "cost", "picture sheet in results/<study>/sheets/, or empty"),
)
NAMES = tuple(column.name for column in COLUMNS)
TYPES = {column.name: column.type for column in COLUMNS}
METRICS = tuple(column.name for column in COLUMNS if column.group == "metrics")
# measures of a tokenizer, in the tokenizer's rows; each may be empty even if the row is done
DIAGNOSTICS = ("density_cv", "gini", "normalized_entropy", "effective_rank", "ifid")
PROTOCOL = tuple(column.name for column in COLUMNS if column.group == "protocol")
PROVENANCE = tuple(column.name for column in COLUMNS if column.group == "provenance")
KEY = ("fingerprint", "images_seen", "protocol")
KINDS = ("tokenizer", "generator")
# columns added after the first tables were written: a file without them is read as if they were empty
ADDED = ("labels", "sfid", "given_weights", "diagnostic_points", *DIAGNOSTICS, "source")
SELECTION_SEED = 1_000_000  # sampling seeds from here on only choose a setting, see results/guidance.py
FOREIGN = "images-"  # prefix of the fingerprint of pictures made elsewhere, see study/evaluate.py
PUBLISHED = "published-"  # prefix of the fingerprint of a row of results/paper/, see results/published.py
PUBLISHED_STUDIES = ("paper", "since")  # the studies of those rows; a measured study must not have these names
STATES = ("done", "pending", "running", "failed", "timed out", "diverged", "pruned", "blocked")


def latents_file(tokenizer_fingerprint: str, suffix: str) -> str:
    """Name of a file in the folder of picture sheets: a tokenizer's map of latents (.csv) or latent pictures (.png)."""
    return f"latents-{tokenizer_fingerprint}{suffix}"


def describe() -> str:
    """The columns as a Markdown table."""
    lines = ["| column | type | group | meaning |", "| --- | --- | --- | --- |"]
    lines += [f"| {c.name} | {c.type} | {c.group} | {c.meaning} |" for c in COLUMNS]
    return "\n".join(lines) + "\n"
