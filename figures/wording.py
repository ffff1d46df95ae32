"""Words as figures print them: names of judges, axis labels, captions. Numbers: results/numbers.py."""

from collections.abc import Sequence

import pandas as pd

from figures import paper_values
from results.numbers import count
from results.table import mixed_provenance

JUDGES = {
    "efficientnet_lite2": "EfficientNet-Lite2",
    "efficientnet_lite0": "EfficientNet-Lite0",
    "inception": "Inception-v3",
    "classifier": "trained classifier",
}
DATA = {
    "fashion-mnist": "Fashion-MNIST",
    "fashion_mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "imagenet": "ImageNet",
}
BETTER = "↓ lower is better"
METRICS = {"tokenizer": "rFID", "generator": "gFID"}


def images(mark: int | None) -> str:
    """'128k images'; None is an unstated number."""
    return "an unstated number of images" if mark is None else f"{count(mark)} images"


def factor(name: str) -> str:
    """A setting, given by its dotted name, or a factor as text: 'generator.ema_decay' is 'ema decay'."""
    return name.split(".")[-1].replace("_", " ")


def counted(metric: str, samples: Sequence[int]) -> str:
    """A metric with its number of samples, such as gFID-5K, or with all numbers if there are several."""
    sizes = [f"{n // 1000}K" if n and n % 1000 == 0 else str(n) for n in sorted(set(samples))]
    return f"{metric}-{'/'.join(sizes)}" if sizes else metric


def judge(extractor: str, size: int | None) -> str:
    """The network behind a Fréchet distance and the side of the images it sees."""
    name = JUDGES.get(extractor, extractor)
    return f"{name} @ {size} px" if size else name


def axis(metric: str, rows: pd.DataFrame) -> str:
    """An axis label of two lines: the metric with its sample count and which direction is better; the judge.

    Expects done rows of one judge. Says 'not comparable' if too few samples were scored.
    """
    first = rows.iloc[0]
    samples = [int(n) for n in rows["samples"].dropna()]
    size = None if pd.isna(first["extractor_size"]) else int(first["extractor_size"])
    note = f", not comparable ({BETTER[0]})" if uncomparable(rows) else f" ({BETTER})"
    return f"{counted(metric, samples)}{note}\n{judge(first['extractor'], size)}"


def published_note(rows: pd.DataFrame | None) -> str:
    """A note on published rows: their source and how they were measured; empty if there are no rows."""
    if rows is None:
        return ""
    generated = rows[(rows["kind"] == "generator") & (rows["state"] == "done")]
    first = generated.iloc[0]
    how = ", ".join(_sampling(generated))
    return (
        f"Published, not measured here ({paper_values.source(rows)}): {DATA[first['data']]} {first['resolution']} px, "
        f"{judge(first['extractor'], None)}, {how}. Axes of its own: compare shapes, not numbers."
    )


def uncomparable(rows: pd.DataFrame) -> bool:
    """Whether any row has fewer samples than twice the judge's feature width."""
    return bool(_of_too_few(rows).any())


def _of_too_few(rows: pd.DataFrame) -> "pd.Series[bool]":
    return rows["comparable"].fillna(True) == False  # noqa: E712 (nullable)


def _which_are_not(rows: pd.DataFrame) -> str:
    """Which scores of these rows are not comparable, in brackets; empty if all are not."""
    few = _of_too_few(rows)
    if few.all():
        return ""
    names = [f"{metric} by {JUDGES.get(extractor, extractor)}"
             for kind, metric in METRICS.items()
             for extractor in dict.fromkeys(rows.loc[few & (rows["kind"] == kind), "extractor"])]  # fmt: skip
    return f" ({', '.join(names)})"


def caption(rows: pd.DataFrame) -> list[str]:
    """Protocol, data, seeds and mixed provenance of done rows, one sentence each."""
    generated = rows[rows["kind"] == "generator"]
    lines = []
    if paper_values.is_published(rows):
        lines.append(f"Published ({paper_values.source(rows)}), not measured here; seeds are not stated.")
    if len(generated):
        lines.append("Sampling: " + ", ".join(_sampling(generated)) + ".")
    first = rows.iloc[0]
    size = "" if pd.isna(first["resolution"]) else f" {first['resolution']} px"
    facts = [f"{DATA.get(first['data'], first['data'])}{size}".strip(), _labelled("scale", first["scale"])]
    facts += [_labelled("reference", " and ".join(sorted(set(rows["reference"]) - {""})))]
    lines.append("Data: " + ", ".join(fact for fact in facts if fact) + ".")
    if uncomparable(rows):
        lines.append(f"Not comparable{_which_are_not(rows)}: fewer samples than twice the feature width.")
    seeds = {"tokenizers": rows["tokenizer_seed"], "generators": generated["seed"]}
    if any(column.nunique() > 1 for column in seeds.values()):
        known = {name: sorted(set(column.dropna())) for name, column in seeds.items()}  # pretrained weights: no seed
        texts = [f"{name} {', '.join(map(str, values))}" for name, values in known.items() if values]
        lines.append(f"Seeds: {'; '.join(texts)}.")
    mixed = [_short(text) for text in mixed_provenance(rows) if not text.startswith(("seed:", "tokenizer_seed:"))]
    if mixed:
        lines.append("Mixed: " + "; ".join(mixed) + ".")
    return lines


def _sampling(rows: pd.DataFrame) -> list[str]:
    first = rows.iloc[0]
    facts = [f"{int(n):,} samples" for n in sorted(set(rows["samples"].dropna()))]
    solvers = rows[["solver", "steps"]].drop_duplicates().sort_values("solver", kind="stable").to_dict("records")
    named = [s["solver"] + ("" if pd.isna(s["steps"]) else f" {s['steps']} steps") for s in solvers if s["solver"]]
    facts.append(" or ".join(named))
    if first["timestep_shift"] not in (0, 1) and not pd.isna(first["timestep_shift"]):
        facts.append(f"timestep shift {first['timestep_shift']:g}")
    scale = first["guidance_scale"]
    if rows["guidance_scale"].nunique() > 1:
        facts.append("guidance as drawn" + _where_guided(first))
    elif pd.isna(scale) or scale == 1:
        facts.append("no guidance")
    else:
        facts.append(f"guidance {scale:g}" + _where_guided(first))
    facts.append({"ema": "EMA weights", "raw": "raw weights"}.get(first["weights"], first["weights"]))
    return [fact for fact in facts if fact]


def _where_guided(row: pd.Series) -> str:
    start, end, channels = row["guidance_start"], row["guidance_end"], row["guidance_channels"]
    where = "" if pd.isna(start) else f" for t in {start:g} to {end:g}"
    return where + ("" if pd.isna(channels) or not channels else f", on {channels} channels")


def _labelled(name: str, text: str) -> str:
    return f"{name} {text}" if text else ""


def _short(text: str, limit: int = 60) -> str:
    """'commit: 1a, 2b' as 'commit 1a, 2b', or only the name if the values are long."""
    name, values = text.split(": ", 1)
    name = name.replace("_", " ")
    return f"{name} {values}" if len(values) <= limit else name
