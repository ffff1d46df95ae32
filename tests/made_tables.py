"""Small made-up tables with the shape of a real study, and their picture sheets."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pandas as pd

from results import table as results
from results.schema import SELECTION_SEED, Label, Row, latents_file

JUDGES = (("efficientnet_lite2", 96), ("classifier", 32))
MARKS = (16_000, 32_000, 64_000, 128_000)
SIZES = {"LightningDiT-XXS/2": 1_250_000}


def study(
    widths: Sequence[int] = (4, 16),
    models: Sequence[str] = ("none", "lite0"),
    sizes: dict[str, int] = SIZES,
    marks: Sequence[int] = MARKS,
    judges: Sequence[tuple[str, int]] = JUDGES,
    seeds: Iterable[int] = (0,),
    stride: int = 4,
    floor: float = 180.0,
    **changed: Any,
) -> pd.DataFrame:
    """Rows of a finished study: wide tokenizers reconstruct better, generate worse; aligned ones recover."""
    rows = []
    for width in widths:
        for number, model in enumerate(models):
            for seed in seeds:
                rows += _runs(width, number, model, sizes, marks, judges, seed, stride, floor)
    return results.table_of(Row(**{**row, **changed}) for row in rows)


def _runs(width, number, model, sizes, marks, judges, seed, stride, floor) -> list[dict[str, Any]]:  # type: ignore[no-untyped-def]
    tokenizer = f"f{stride}d{width}" + ("" if model == "none" else f"-{model}")
    own = f"t{seed}-{tokenizer}"
    wobble = 1 + 0.04 * (seed - 0.5) * (seed > 0)
    shared = {
        "ablations": ("frontier",), "tokenizer": tokenizer, "foundation_model": model, "latent_channels": width,
        "tokenizer_seed": 0, "tokenizer_fingerprint": f"t0-{tokenizer}", "state": "done", "samples": 5000,
        "reference": "test split", "label_scheme": "balanced", "decode_precision": "fp32", "comparable": True,
        "study": "desk", "scale": "desk", "data": "fashion-mnist", "resolution": 32, "commit": "1a2b3c4",
        "versions": "torch 2.9", "device": "cpu", "train_precision": "bf16", "threads": 2,
    }  # fmt: skip
    rows = []
    for extractor, side in judges:
        unit = 0.05 if extractor == "classifier" else 1.0
        judge = {"extractor": extractor, "extractor_size": side, "protocol": f"p-{extractor}",
                 "reference_hash": f"r-{extractor}"}  # fmt: skip
        rfid = unit * floor * width**-0.45 * (1 + 0.09 * number)
        if seed == 0:
            rows.append({**shared, **judge, "kind": "tokenizer", "run": tokenizer, "fingerprint": own,
                         "seed": 0, "images_seen": 96_000, "rfid": rfid,
                         "psnr": 24 + 2 * np.log2(width) - 0.4 * number,
                         "ssim": 0.9, "sheet": f"{tokenizer}.png", **_diagnostics(width, number),
                         "ifid": 1.7 * rfid})  # fmt: skip
        for size, parameters in sizes.items():
            for mark in marks:
                harder = width**0.5 if model == "none" else width ** (0.12 + 0.05 * number)
                gfid = rfid + unit * floor * harder * wobble * (marks[0] / mark) ** 0.45
                gfid *= (min(sizes.values()) / parameters) ** 0.12
                rows.append({**shared, **judge, "kind": "generator", "run": f"{size} on {tokenizer}",
                             "fingerprint": f"g{seed}-{tokenizer}-{size}", "generator": size, "seed": seed,
                             "images_seen": mark, "gfid": gfid, "solver": "euler", "steps": 50, "chunk": 250,
                             "timestep_shift": 1.0, "guidance_scale": 1.0, "guidance_start": 0.0,
                             "guidance_end": 1.0, "guidance_channels": 0, "weights": "ema",
                             "parameters": parameters + 128 * width,
                             "sheet": f"{tokenizer}-samples.png"})  # fmt: skip
    return rows


def _diagnostics(width: int, number: int) -> dict[str, float]:
    """Wide latents lie less evenly, aligned ones more."""
    cv = 0.2 + 0.002 * width - 0.03 * number
    return {"density_cv": cv, "gini": 0.55 * cv, "normalized_entropy": 1 - cv**2 / 13, "effective_rank": 0.7 * width,
            "diagnostic_points": 1500}  # fmt: skip


def asked(table: pd.DataFrame, *ablations: str) -> pd.DataFrame:
    """The same rows, asked for by these ablations."""
    return table.assign(ablations=[ablations] * len(table))


def without(table: pd.DataFrame, tokenizer: str, state: str, reason: str, kind: str = "generator") -> pd.DataFrame:
    """The same table after a run of one tokenizer came to nothing."""
    table = table.copy()
    lost = (table["tokenizer"] == tokenizer) & (table["kind"] == kind)
    table.loc[lost, ["rfid", "gfid", "psnr"]] = np.nan
    table.loc[lost, "state"], table.loc[lost, "reason"], table.loc[lost, "sheet"] = state, reason, ""
    return table


def write_sheets(table: pd.DataFrame, folder: Path, side: int = 32) -> None:
    """A sheet for every row that names one: the same striped originals, noise that grows, grey samples."""
    (folder / "sheets").mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[:side, :side] / side
    originals = [np.hypot(x - 0.5, y - 0.5) < 0.15 + 0.04 * i for i in range(8)]
    for row in table[table["sheet"] != ""].drop_duplicates("sheet").itertuples():
        rng = np.random.default_rng(row.latent_channels)
        top = np.concatenate(originals, axis=1).astype(float)
        if row.kind == "tokenizer":
            sheet = np.concatenate([top, np.clip(top + rng.normal(0, 0.5 / row.latent_channels, top.shape), 0, 1)])
        else:
            sheet = np.concatenate([np.clip(top * 0.8 + rng.normal(0, 0.1, top.shape), 0, 1) for _ in range(8)])
        matplotlib.image.imsave(folder / "sheets" / row.sheet, np.repeat(sheet[:, :, None], 3, axis=2))


def write_latents(table: pd.DataFrame, folder: Path, points: int = 120) -> None:
    """Maps of the latents of every tokenizer, wide ones with a crowd, and sheets of pictures above their latents."""
    (folder / "sheets").mkdir(parents=True, exist_ok=True)
    for row in table[table["kind"] == "tokenizer"].drop_duplicates("fingerprint").itertuples():
        rng = np.random.default_rng(row.latent_channels)
        density = 1 + 0.02 * row.latent_channels * rng.normal(size=points)
        numbers = np.column_stack([rng.normal(size=(points, 2)), density])
        path = folder / "sheets" / latents_file(row.fingerprint, ".csv")
        np.savetxt(path, numbers, "%.5g", ",", header="x,y,density", comments="")
        matplotlib.image.imsave(path.with_suffix(".png"), rng.random((64, 256, 3)))


def write_study(table: pd.DataFrame, folder: Path) -> Path:
    """A results/<study> folder with the table and its sheets."""
    write_sheets(table, folder)
    write_latents(table, folder)
    results.write(table, folder / "table.csv")
    return folder


def guided(table: pd.DataFrame, scales: Sequence[float] = (1.0, 1.5, 2.0, 4.0), lucky: float = 0.9) -> pd.DataFrame:
    """The table with a sweep over guidance at its last mark: lowest at 2 where it is chosen, `lucky` at 1.5 where it
    is scored. The unguided scores are rows that were there."""
    table = table.assign(sampling_seed=pd.Series(0, table.index, "Int64").where(table["kind"] == "generator"))
    last = table[(table["kind"] == "generator") & (table["images_seen"] == table["images_seen"].max())]
    drawn = []
    for scale in scales:
        factor = 0.8 + 0.1 * (scale - 2) ** 2
        for seed in (0, SELECTION_SEED):
            luck = lucky if (scale, seed) == (1.5, 0) else 1.0
            if (scale, seed) != (1, 0):
                protocol = [f"{name}-{scale}-{seed}" for name in last["protocol"]]
                drawn.append(asked(last, "guidance").assign(
                    guidance_scale=scale, sampling_seed=seed, protocol=protocol,
                    gfid=last["gfid"] * factor * luck, run=last["run"] + f" + guidance {scale:g}",
                ))  # fmt: skip
    unguided = asked(last, "frontier", "guidance")
    return pd.concat([table.drop(last.index), unguided, *drawn], ignore_index=True)


RUNGS = (
    ("DiT-XXS/2", ()), ("+ rectified flow", ("objective",)),
    ("+ batch size x4 and learning rate x2", ("batch and learning rate",)), ("+ SwiGLU", ("swiglu",)),
    ("+ patch 1 and aligned tokenizer", ("foundation_model", "patch")),
)  # fmt: skip
MODELS = (("none", ()), ("mae", ("foundation_model",)), ("dinov2", ("foundation_model",)))
PARTS = (
    ("none", ("foundation_model",)), ("full", ()), ("without cosine part", ("tokenizer.vf_cosine_weight",)),
    ("without margins", ("margins",)),
)  # fmt: skip
SETTINGS = (("as the scale", ()), ("learning rate 0.001", ("tokenizer.learning_rate",)))
ALIGNMENTS = (("none", ("foundation_model",)), ("as the scale", ()), ("weight 2", ("tokenizer.vf_weight",)))
BUDGETS = (24_000, 48_000, 96_000)  # of tokenizers, each plain and aligned
ALIGNED = (
    ("none", ()), ("REPA", ("alignment",)), ("tokenizer", ("alignment",)), ("tokenizer and iREPA", ("alignment",)),
)  # fmt: skip
LABELLED = {"recipe": RUNGS, "foundation_models": MODELS, "vf_loss": PARTS, "tokenizer_settings": SETTINGS,
            "alignment": ALIGNMENTS, "repa": ALIGNED}  # fmt: skip


def labelled(table: pd.DataFrame, ablation: str, base: str = "f4d16") -> pd.DataFrame:
    """Rows of an ablation with labels, to stand beside the table's: each run a little better than the one before.

    The ladder is on the plain tokenizer `base` but for its last rung; runs of the others have a tokenizer each, on the
    aligned one's rows but for the first.
    """
    made = []
    for place, (label, changed) in enumerate(LABELLED[ablation]):
        aligned = "patch" in changed if ablation == "recipe" else place > 0
        rows = table[table["tokenizer"] == (f"{base}-lite0" if aligned else base)].copy()
        generator = rows["kind"] == "generator"
        rows["run"] = [f"{run} as {label}" for run in rows["run"]]
        own = Label(ablation=ablation, place=place, text=label, changed=changed)
        rows["labels"] = [(own,) if yes else () for yes in generator]
        rows[["gfid", "rfid"]] *= 1 - 0.05 * place
        rows["fingerprint"] += f"-{ablation}-{place}"
        if ablation == "recipe":
            rows = rows[generator]
        else:
            rows["tokenizer_fingerprint"] += f"-{ablation}-{place}"
        made.append(asked(rows, ablation))
    return pd.concat(made, ignore_index=True)


def budgets(table: pd.DataFrame, base: str = "f4d16") -> pd.DataFrame:
    """Rows of the ablation tokenizer_budget, to stand beside the table's: the longer, the better."""
    made = []
    for place, images in enumerate(BUDGETS):
        rows = table[table["tokenizer"].isin([base, f"{base}-lite0"])].copy()
        generator = rows["kind"] == "generator"
        names = [f"{tokenizer} of {images:,} images" for tokenizer in rows["tokenizer"]]
        rows["labels"] = [
            (Label(ablation="tokenizer_budget", place=2 * place + (name[5] == "-"), text=name),) if yes else ()
            for name, yes in zip(names, generator, strict=True)
        ]
        rows[["gfid", "rfid"]] *= 1 - 0.1 * place
        rows["images_seen"] = rows["images_seen"].where(generator, images)
        rows["effective_rank"] *= 0.5 + 0.2 * place
        rows["chroma_r2"] = np.where(generator, np.nan, 0.7 + 0.1 * place)
        for column in ("fingerprint", "tokenizer_fingerprint", "run"):
            rows[column] += f" after {images}"
        made.append(asked(rows, "tokenizer_budget"))
    return pd.concat(made, ignore_index=True)


def with_labelled(table: pd.DataFrame, *ablations: str) -> pd.DataFrame:
    """The table with these ablations, or all that have labels."""
    return pd.concat([table, *(labelled(table, name) for name in ablations or LABELLED)], ignore_index=True)


STRENGTHS = ("", "+spectrum", "+mask", "+mask, more", "+noise", "+noise, up to 0.2", "+eq")


def latents(
    widths: Sequence[int] = (4, 16), strengths: Sequence[str] = STRENGTHS, repeats: int = 3, **options: Any
) -> pd.DataFrame:
    """Rows of the ablation latents, to stand beside others: VIV foretells gFID, EQ error nothing, density the reverse
    within a family. The tokenizers without regularisers have `repeats`.

    options: of `study`.
    """
    rng, made, place = np.random.default_rng(0), [], 0
    for width in widths:
        for model in ("none", "lite0"):
            rows = study(widths=(width,), models=(model,), **options)
            for text in strengths:
                ease, other = rng.uniform(-0.3, 0.3, 2)
                for seed in range(repeats if not text else 1):
                    label = f"f4d{width}{'' if model == 'none' else '-lite0'}{text}"
                    made.append(_latent(rows, label, place, seed, ease, other))
                place += 1
    own = _latent(study(widths=(24,), models=("none",), **options), "rae-lite0", place, 0, -0.2, 0.0)
    own["foundation_model"] = own["tokenizer"] = "rae-lite0"
    return pd.concat([*made, own], ignore_index=True)


def _latent(rows: pd.DataFrame, label: str, place: int, seed: int, ease: float, other: float) -> pd.DataFrame:
    rows = rows.copy()
    generator, tokenizer = rows["kind"] == "generator", rows["kind"] == "tokenizer"
    rows["tokenizer"], rows["tokenizer_seed"], rows["seed"] = label.split(",")[0], seed, seed
    rows["fingerprint"] = [f"{kind}-{label}-{seed}" for kind in rows["kind"]]
    rows["tokenizer_fingerprint"] = f"tokenizer-{label}-{seed}"
    rows["run"] = [f"{label} {generator}".strip() for generator in rows["generator"]]
    rows["changes"] = [{"regularisation": label.split(",")[1].strip()} if "," in label else {}] * len(rows)
    aligned = rows["foundation_model"].iloc[0] == "lite0"
    rows["gfid"] *= (1 + ease) * (0.8 if aligned else 1) * (1 + 0.01 * seed)
    rows["rfid"] *= 1 + other
    rows.loc[tokenizer, "viv"] = 0.8 * (1 + ease + 0.1 * other)
    rows.loc[tokenizer, "lnc_10"] = 0.3 - 0.2 * ease
    rows.loc[tokenizer, "lnc_5"] = 0.35 - 0.2 * ease + 0.1 * other
    rows.loc[tokenizer, "eq_error"] = 0.5 + other
    rows.loc[tokenizer, "density_cv"] = 0.2 - 0.1 * ease - 0.05 * aligned
    own = Label(ablation="latents", place=place, text=label)
    rows["labels"] = [(own,) if yes else () for yes in generator]
    return asked(rows, "latents")


def where_to_align(table: pd.DataFrame, widths: Sequence[int] = (4, 16)) -> pd.DataFrame:
    """Rows of the ablation where_to_align, to stand beside the table's: REPA gains on both tokenizers, iREPA on the
    plain one alone."""
    ways = {"none": (None, 1.0), "REPA": ("repa", 0.9), "iREPA": ("irepa", 0.8)}
    made = []
    for first, width in enumerate(widths):
        for second, base in enumerate((f"f4d{width}", f"f4d{width}-lite0")):
            for third, (name, (repa, factor)) in enumerate(ways.items()):
                rows = table[table["tokenizer"] == base].copy()
                generator = rows["kind"] == "generator"
                way = " and ".join(["tokenizer"] * second + [name] * (third > 0)) or "none"
                own = Label(ablation="where_to_align", place=6 * first + 3 * second + third, text=f"d{width}: {way}")
                rows["labels"] = [(own,) if yes else () for yes in generator]
                rows["changes"] = [{"generator.repa": repa} if yes and repa else {} for yes in generator]
                rows["gfid"] *= 1.0 if second and repa == "irepa" else factor
                rows["run"] = [
                    f"{run} as {way}" if yes else run for run, yes in zip(rows["run"], generator, strict=True)
                ]
                rows["fingerprint"] += generator.map({True: f"-{repa}", False: "-where"})
                rows["tokenizer_fingerprint"] += "-where"
                made.append(asked(rows, "where_to_align"))
    return pd.concat(made, ignore_index=True).drop_duplicates(["fingerprint", "images_seen", "protocol"])
