"""The card of an exported run, its README.md: what it is, its numbers with their protocol, how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from models.configs import AutoencoderConfig, GeneratorConfig, parse_tokenizer
from results.numbers import counted, three_digits
from results.runs import choosing
from results.schema import COLUMNS, METRICS, PROTOCOL
from study.plan.specs import Encode, FitGenerator, FitTokenizer
from study.plan.stage import Stage
from study.plan.weight_files import weight_file

# Files of an export
CARD = "README.md"
RELEASED_TOKENIZER = "tokenizer.safetensors"
DIFFUSERS_TOKENIZER, DIFFUSERS_CONFIG = "diffusion_pytorch_model.safetensors", "config.json"
GENERATOR, STATISTICS = "generator.safetensors", "latents_stats.safetensors"

CLASSES = 20  # that are named
MEANING = {column.name: column.meaning for column in COLUMNS}


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What an export holds.

    Args:
        form: of the tokenizer, "released" or "diffusers"; empty where it is not part of the export.
        latents: the stage whose channel statistics are exported; None: the tokenizer's latents were never made.
        generator: its training up to the one mark that is exported; None: the tokenizer alone.
    """

    run: str
    form: str
    tokenizer: Stage
    latents: Stage | None
    generator: Stage | None

    @property
    def files(self) -> dict[str, str]:
        """Names of the files beside the card, and what is in them."""
        statistics = "`mean` and `std` of the raw latents per channel, (1, C, 1, 1), which normalise them"
        tokenizer = {
            "released": {RELEASED_TOKENIZER: "the tokenizer, under the parameter names of `hustvl/LightningDiT`"},
            "diffusers": {
                DIFFUSERS_CONFIG: "the layout of the tokenizer, with the statistics of its latents",
                DIFFUSERS_TOKENIZER: "the tokenizer, as `AutoencoderKL` of diffusers",
            },
            "": {},
        }[self.form]
        generator = {GENERATOR: "the generator, EMA weights, under the parameter names of `hustvl/LightningDiT`"}
        return {
            **tokenizer,
            **(generator if self.generator else {}),
            **({STATISTICS: statistics} if self.latents else {}),
        }


def model_card(exported: Exported, table: pd.DataFrame) -> str:
    """The card as Markdown, with the header that the Hugging Face hub reads.

    Args:
        table: of the study; its finished rows of the tokenizer and of the generator at its mark are the numbers.
    """
    library = ["library_name: diffusers"] if exported.form == "diffusers" else []
    parts = [
        "\n".join(["---", "license: mit", *library, "tags:", "- latent-diffusion", "---"]),
        f"# {exported.run}",
        _description(exported, table),
        "| file | holds |\n| --- | --- |\n"
        + "\n".join(f"| `{name}` | {what} |" for name, what in exported.files.items()),
        "Pixels lie in [-1, 1]. The generator sees and draws normalised latents, (raw - mean) / std per channel.",
        "## Numbers",
        *_numbers(exported, table),
        "## Loading",
        *_loading(exported),
        "## Licence",
        "MIT, for these weights and this card. Pictures that they were trained on have terms of their own.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _description(exported: Exported, table: pd.DataFrame) -> str:
    own = exported.generator or exported.tokenizer
    first = table[table["fingerprint"] == own.fingerprint].iloc[0]
    changes = ", ".join(f"`{name}={value}`" for name, value in first["changes"].items())
    lines = [
        _of_tokenizer(exported.tokenizer),
        *([] if exported.generator is None else _of_generator(exported.generator)),
        f"- From study `{first['study']}` of the latent-diffusion-study harness, at its scale `{first['scale']}`"
        + (f" with {changes}." if changes else "."),
    ]
    return "\n".join(lines)


def _of_tokenizer(tokenizer: Stage) -> str:
    fit = tokenizer.spec
    assert isinstance(fit, FitTokenizer)
    layout, foundation = fit.architecture, parse_tokenizer(fit.tokenizer).foundation
    line = (
        f"- Tokenizer `{fit.tokenizer}`: pictures of {layout.resolution} x {layout.resolution} pixels in "
        f"{counted(layout.in_channels, 'channel')} to {layout.grid} x {layout.grid} cells of {layout.z_channels}"
        + (f", aligned with {foundation}" if foundation else "")
    )
    if fit.pretrained:
        file = weight_file(fit.pretrained.name).file
        return f"{line}. Not trained here and no part of this folder: `{file}`, SHA-256 `{fit.pretrained.sha256}`."
    return (
        f"{line}. Trained on the first {counted(fit.train_images, 'image')} of `{fit.data.name}`, "
        f"{fit.recipe.budget_images:,} images seen, seed {fit.seed}{_origin(tokenizer)}."
    )


def _origin(training: Stage) -> str:
    origin = (training.record() or {})["provenance"]
    commit = f", commit `{origin['commit']}`" if origin["commit"] else ""
    return f"; {origin['precision']} on {origin['device']}{commit}; fingerprint `{training.fingerprint}`"


def _of_generator(generator: Stage) -> list[str]:
    fit, encode = generator.spec, generator.inputs["latents"].spec
    assert isinstance(fit, FitGenerator) and isinstance(encode, Encode)
    (mark,), layout, names = generator.marks, fit.architecture, encode.data.class_names
    named = ", ".join(f"{number} {name}" for number, name in list(enumerate(names))[:CLASSES])
    null = f"; {layout.num_classes} is the null label of guidance" if layout.label_dropout else "; it cannot be guided"
    if fit.recipe.objective == "rectified-flow":
        what = "velocity (data minus noise) of a noisy latent, at t = 0 noise and at t = 1 data"
    else:
        what = (
            "noise and variance of a noisy latent by its timestep, as DiT (LightningDiT's class gives the noise alone)"
        )
    factor = fit.timestep_shift
    shift = "" if factor == 1 else f" Times are shifted, t to s t / (1 + (s - 1) t) with s = {factor:.4g}."
    return [
        f"- Generator `{layout.name}`: {what}. EMA weights after {mark:,} images seen, seed "
        f"{fit.seed}{_origin(generator)}.{shift}",
        f"- Labels: {named or f'0 to {layout.num_classes - 1}'}{', ...' if len(names) > CLASSES else ''}{null}.",
    ]


def _numbers(exported: Exported, table: pd.DataFrame) -> list[str]:
    done = table[(table["state"] == "done") & ~choosing(table)]
    of_tokenizer = done[(done["fingerprint"] == exported.tokenizer.fingerprint) & (done["kind"] == "tokenizer")]
    parts = _measured("The tokenizer's reconstructions", of_tokenizer)
    if exported.generator is not None:
        (mark,) = exported.generator.marks
        own = done[(done["fingerprint"] == exported.generator.fingerprint) & (done["weights"] == "ema")]
        parts += _measured("Samples of the generator", own[own["images_seen"] == mark])
    return parts


def _measured(what: str, rows: pd.DataFrame) -> list[str]:
    """A table of all metrics by judge and by what else differs, and as a list what all rows share."""
    if rows.empty:
        return [f"{what} have not been judged."]
    metrics = [name for name in METRICS if rows[name].notna().any()]
    cells = {name: [_cell(value) for value in rows[name]] for name in (*PROTOCOL, *metrics)}
    stated = [name for name in PROTOCOL if any(cells[name])]
    differing = [name for name in stated if name == "extractor" or len(set(cells[name])) > 1]
    differing.sort(key=lambda name: name not in ("extractor", "extractor_size"))
    head = (*differing, *metrics)
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    lines += [f"| {' | '.join(cells[name][row] for name in head)} |" for row in range(len(rows))]
    shared = [f"- `{name}` ({MEANING[name]}): {cells[name][0]}" for name in stated if name not in differing]
    meaning = [f"- `{name}`: {MEANING[name]}" for name in head]
    return [f"{what}:", "\n".join(lines), "\n".join(meaning), "All by this protocol:", "\n".join(shared)]


def _cell(value: object) -> str:
    if value is None or value is pd.NA or value != value:
        return ""
    if isinstance(value, float):
        return three_digits(value)
    return str(value)


def _loading(exported: Exported) -> list[str]:
    parts = ["In the harness:", _ours(exported)]
    if exported.form == "diffusers":
        lines = ("from diffusers import AutoencoderKL", "", 'vae = AutoencoderKL.from_pretrained(".")  # this folder')
        parts += ["In diffusers:", _python(*lines)]
        if exported.latents is not None:
            parts.append("Its `config.latents_mean` and `config.latents_std` are those statistics.")
    fit = exported.tokenizer.spec
    assert isinstance(fit, FitTokenizer)
    layout, scripts = fit.architecture, []
    if exported.form == "released":
        if lacking := _lacking(layout):
            parts.append(f"The classes of `hustvl/LightningDiT` cannot hold this tokenizer: {lacking}.")
        else:
            parts += ["The tokenizer in a checkout of `hustvl/LightningDiT`:", _released_tokenizer(layout)]
        if layout.layout() == AutoencoderConfig(z_channels=layout.z_channels).layout():  # which they build
            scripts.append(f'torch.save(load_file("{RELEASED_TOKENIZER}"), "tokenizer.pt")')
    if exported.generator is not None:
        assert isinstance(exported.generator.spec, FitGenerator)
        architecture = exported.generator.spec.architecture
        parts += ["The generator in a checkout of `hustvl/LightningDiT`:", _released_generator(architecture)]
        scripts += [
            f'torch.save({{"ema": load_file("{GENERATOR}")}}, "generator.pt")',
            f'torch.save(load_file("{STATISTICS}"), "latents_stats.pt")',
        ]
        if architecture.label_dropout and architecture.num_classes != 1000:
            parts.append(f"Its `inference.py` guides with label 1000: write {architecture.num_classes} there.")
    if scripts:
        parts += [
            "Its scripts read pickled files. None is shipped; these lines make them from what is here:",
            _python("import torch", "from safetensors.torch import load_file", "", *scripts),
        ]
    return parts


def _python(*lines: str) -> str:
    return "\n".join(["```python", *lines, "```"])


def _call(name: str, arguments: Mapping[str, object]) -> list[str]:
    return [f"{name}(", *(f"    {key}={value!r}," for key, value in arguments.items()), ")"]


def _ours(exported: Exported) -> str:
    """The lines by which the harness takes the export back."""
    fit, calls = exported.tokenizer.spec, {}
    assert isinstance(fit, FitTokenizer)
    if exported.form:
        file = RELEASED_TOKENIZER if exported.form == "released" else DIFFUSERS_TOKENIZER
        calls["load_tokenizer"] = f'tokenizer = load_tokenizer("{fit.tokenizer}", "{file}").network'
    if exported.generator is not None:
        assert isinstance(exported.generator.spec, FitGenerator)
        name = exported.generator.spec.architecture.name
        calls["load_generator"] = f'generator = load_generator("{name}", "{GENERATOR}").network'
    if exported.latents is not None:
        calls["load_latent_statistics"] = f'statistics = load_latent_statistics("{STATISTICS}")'
    return _python(f"from models import {', '.join(sorted(calls))}", "", *calls.values())


def _lacking(layout: AutoencoderConfig) -> str:
    """What of this network the released tokenizer's classes have no argument for; empty if nothing."""
    if layout.unshuffle != 1:
        return f"they have no layer that folds {layout.unshuffle} x {layout.unshuffle} pixels into channels"
    return "" if layout.norm_groups == 32 else f"their norms have 32 groups, its {layout.norm_groups}"


def _released_tokenizer(layout: AutoencoderConfig) -> str:
    arguments = {
        "ch": layout.ch,
        "ch_mult": layout.ch_mult,
        "num_res_blocks": layout.num_res_blocks,
        "attn_resolutions": layout.attn_resolutions,
        "resolution": layout.resolution,
        "in_channels": layout.in_channels,
        "out_ch": layout.in_channels,
        "z_channels": layout.z_channels,
    }
    return _python(
        "from safetensors.torch import load_file",
        "from tokenizer.autoencoder import AutoencoderKL, Decoder, Encoder",
        "",
        *_call("layout = dict", arguments),
        f"tokenizer = AutoencoderKL(embed_dim={layout.z_channels}, ch_mult={layout.ch_mult!r})",
        "tokenizer.encoder, tokenizer.decoder = Encoder(**layout), Decoder(**layout)",
        f'tokenizer.load_state_dict(load_file("{RELEASED_TOKENIZER}"))',
        "tokenizer.eval()",
    )


def _released_generator(layout: GeneratorConfig) -> str:
    arguments = {
        "input_size": layout.grid,
        "patch_size": layout.patch,
        "in_channels": layout.in_channels,
        "hidden_size": layout.width,
        "depth": layout.depth,
        "num_heads": layout.heads,
        "mlp_ratio": layout.mlp_ratio,
        "class_dropout_prob": layout.label_dropout,
        "num_classes": layout.num_classes,
        "learn_sigma": layout.learned_variance,
        "use_qknorm": layout.qk_norm,
        "use_swiglu": layout.swiglu,
        "use_rope": layout.rope,
        "use_rmsnorm": layout.rms_norm,
        "wo_shift": not layout.adaln_shift,
    }
    return _python(
        "from models.lightningdit import LightningDiT",
        "from safetensors.torch import load_file",
        "",
        *_call("generator = LightningDiT", arguments),
        f'generator.load_state_dict(load_file("{GENERATOR}"))',
        "generator.eval()",
    )
