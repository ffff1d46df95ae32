"""Rows of the table as figures need them: selected, checked, paired, averaged, or named as missing."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import pandas as pd

from figures import paper_values
from figures.drawing import NotAsked, NothingToDraw
from results.numbers import count
from results.runs import asked_by, choosing, of_searches
from results.table import check_protocol

BY_JUDGE = ("extractor", "extractor_size", "reference", "reference_hash", "comparable")


class Judge(NamedTuple):
    """A feature extractor and its input size; numbers of two judges never share an axis."""

    extractor: str
    size: int | None

    def of(self, rows: pd.DataFrame) -> pd.DataFrame:
        """The rows this judge scored."""
        sizes = rows["extractor_size"].fillna(-1)
        return rows[(rows["extractor"] == self.extractor) & (sizes == (self.size or -1))]


def rows_for_figure(table: pd.DataFrame, figure: str) -> pd.DataFrame:
    """The rows that a figure shows: those of its own ablation, else of `frontier`, else of all ablations.

    The rows of an ablation are used if one of its generators has a result; the rows of the tokenizers that its
    generators use are added. Rows whose samples only choose a setting, and rows of searches alone, are always left out.
    If all ablations are used, guided rows are left out (if there are unguided ones), and so are rows that belong only
    to ablations with labels: these have figures of their own, see `labelled`. Raises NothingToDraw if no row belongs to
    an ablation, NotAsked if all rows belong only to ablations with labels.
    """
    rows = table[table["ablations"].map(bool).astype(bool) & ~choosing(table) & ~of_searches(table)]
    if rows.empty:
        raise NothingToDraw("no row of the table is asked for by an ablation")
    for ablation in (figure, "frontier"):
        mine = asked_by(rows, ablation)
        if (mine & (rows["kind"] == "generator") & (rows["state"] == "done")).any():
            used = rows["tokenizer_fingerprint"].isin(rows[mine]["tokenizer_fingerprint"])
            return rows[mine | (used & (rows["kind"] == "tokenizer"))]
    own = {label.ablation for labels in rows["labels"] for label in labels}
    rows = rows[[not set(names) <= own for names in rows["ablations"]]]
    if rows.empty:
        raise NotAsked(f"all that was asked for has figures of its own: {', '.join(sorted(own))}")
    unguided = (rows["kind"] == "generator") & (rows["guidance_scale"] == 1)
    return rows[unguided | (rows["kind"] == "tokenizer")] if unguided.any() else rows


def labelled(table: pd.DataFrame, ablation: str) -> pd.DataFrame:
    """Rows of the generators that an ablation labels, and of the tokenizers that they use.

    Adds the columns `place`, `label` and `changed` (see results.schema.Label), empty for tokenizers. Raises NotAsked if
    there are no such generators.
    """
    own = {i: label for i, labels in table["labels"].items() for label in labels if label.ablation == ablation}
    generators = table[table.index.isin(own) & (table["kind"] == "generator") & ~choosing(table)]
    if generators.empty:
        raise NotAsked(f"the ablation {ablation} has not been asked")
    for field in ("place", "text", "changed"):
        column = "label" if field == "text" else field
        generators = generators.assign(**{column: [getattr(own[i], field) for i in generators.index]})
    used = (table["kind"] == "tokenizer") & table["tokenizer_fingerprint"].isin(generators["tokenizer_fingerprint"])
    return pd.concat([table[used].assign(place=-1, label="", changed=""), generators])


def done(rows: pd.DataFrame, kind: str, varies: tuple[str, ...] = (), also_by: tuple[str, ...] = ()) -> pd.DataFrame:
    """Finished rows of one kind, checked: one protocol per judge except in `varies`, one run per place in the figure.

    also_by: columns outside the protocol that also distinguish the places of runs.

    Raises NothingToDraw if there are no rows, ProtocolError if they cannot share an axis, and ValueError
    if two runs differ in something that the figure does not show.
    """
    chosen = rows[(rows["kind"] == kind) & (rows["state"] == "done")]
    # 0 images cannot be drawn on a logarithmic axis; the number may be unknown for published rows
    chosen = chosen[chosen["images_seen"].fillna(1) > 0]
    if chosen.empty:
        raise NothingToDraw(f"no {kind} has finished")
    check_protocol(chosen, (*BY_JUDGE, *varies))
    for judge in judges(chosen):
        check_protocol(judge.of(chosen), varies)
    place = ["tokenizer", "generator", "tokenizer_seed", "seed", "images_seen", "extractor", "extractor_size"]
    place += [*varies, *also_by]
    if (alike := chosen.duplicated(place, keep=False)).any():
        _, same = next(iter(chosen[alike].groupby(place, dropna=False)))
        a, b = same.iloc[0], same.iloc[1]
        raise ValueError(
            f"the figure cannot tell {a['run']} ({a['fingerprint']}) from {b['run']} "
            f"({b['fingerprint']}): same tokenizer, generator, seeds and images seen; "
            f"asked by {a['ablations']} and {b['ablations']}"
        )
    return chosen


def judges(rows: pd.DataFrame) -> list[Judge]:
    """The judges of the rows; a classifier trained for the study comes last."""
    pairs = rows[["extractor", "extractor_size"]].drop_duplicates().itertuples(index=False)
    found = [Judge(name, None if pd.isna(size) else int(size)) for name, size in pairs]
    return sorted(found, key=lambda j: (j.extractor == "classifier", j.extractor, j.size or 0))


def generators(rows: pd.DataFrame) -> list[str]:
    """Generator specs, smallest first."""
    sizes = rows.groupby("generator")["parameters"].min().fillna(0)
    return sorted(sizes.index, key=lambda name: (sizes[name], name))


def tokenizers(rows: pd.DataFrame) -> list[str]:
    """Tokenizer specs, by width; plain tokenizers before aligned ones."""
    specs = rows[["latent_channels", "foundation_model", "tokenizer"]].drop_duplicates("tokenizer")
    order = sorted(specs.itertuples(index=False), key=lambda s: (s[0], base(s[2], s[1]), s[1] != "none", s[2]))
    return [str(spec.tokenizer) for spec in order]


def cells(rows: pd.DataFrame) -> tuple[list[tuple[str, Judge]], int, int]:
    """Panels as (generator, judge), and the number of rows and columns of their grid.

    With one judge, generators are side by side; with several, there is a column per judge and a row per generator.
    """
    found = judges(rows)
    panels = [(generator, judge) for generator in generators(rows) for judge in found]
    columns = len(found) if len(found) > 1 else min(len(panels), 3)
    return panels, -(-len(panels) // columns), columns


def base(tokenizer: str, foundation_model: str) -> str:
    """The spec of the same tokenizer without alignment: f4d16-lite0+eq gives f4d16+eq."""
    name, plus, regularisers = tokenizer.partition("+")
    return name.removesuffix(f"-{foundation_model}") + plus + regularisers


def regularisers(tokenizer: str) -> str:
    """The regularisers in a tokenizer's spec: f4d16-lite0+noise+eq gives noise+eq; '' without any."""
    return tokenizer.partition("+")[2]


def pairs(data: pd.DataFrame) -> list[tuple[str, str]]:
    """Pairs (plain, aligned) of tokenizers that differ only in the alignment."""
    models = data.drop_duplicates("tokenizer").set_index("tokenizer")["foundation_model"]
    aligned = [name for name in tokenizers(data) if models[name] != "none"]
    found = [(base(name, models[name]), name) for name in aligned]
    return [(plain, name) for plain, name in found if models.get(plain) == "none"]


def at_common_mark(
    rows: pd.DataFrame, by: Sequence[str] = ("tokenizer", "generator")
) -> tuple[pd.DataFrame, int | None]:
    """Rows at the largest number of images seen at which every group has a result, and that number.

    Groups are pairs of tokenizer and generator by default. All rows and None if `images_seen` is empty everywhere.
    """
    if rows["images_seen"].isna().all():
        return rows, None
    marks = [set(seen) for _, seen in rows.groupby(list(by))["images_seen"]]
    shared = set.intersection(*marks)
    if not shared:
        raise NothingToDraw("no number of images seen is common to all tokenizers")
    mark = int(max(shared))
    return rows[rows["images_seen"] == mark], mark


def averaged(rows: pd.DataFrame, by: list[str], metric: str) -> pd.DataFrame:
    """Per group, the mean of a metric under its name, with `_min`, `_max` and number of `_runs`."""
    found = rows.dropna(subset=[metric]).groupby(by, sort=True, dropna=False)[metric]
    table = found.agg(["mean", "min", "max", "count"]).reset_index()
    return table.rename(
        columns={"mean": metric, "min": f"{metric}_min", "max": f"{metric}_max", "count": f"{metric}_runs"}
    )


def seeds_note(runs: Iterable[int], of: pd.DataFrame | None = None) -> list[str]:
    """A note on how many seeds each point averages; nothing for published rows (`of`), which do not state it."""
    if of is not None and paper_values.is_published(of):
        return []
    runs = sorted({int(n) for n in runs})
    if runs[-1] < 2:
        return ["One seed."]
    number = str(runs[-1]) if runs[0] == runs[-1] else f"{runs[0]}–{runs[-1]}"
    return [f"Mean of {number} seeds, with the range of all of them."]


def missing_note(rows: pd.DataFrame, kinds: Iterable[str]) -> list[str]:
    """One sentence that names every planned run without a result, with its state and reason."""
    waiting = rows[(rows["state"] != "done") & rows["kind"].isin(list(kinds))]
    several_generators = rows[rows["kind"] == "generator"]["generator"].nunique() > 1
    several_seeds = len(rows[["tokenizer_seed", "seed"]].drop_duplicates()) > 1
    lost_tokenizers = set(waiting[waiting["kind"] == "tokenizer"]["tokenizer_fingerprint"])
    by_cause: dict[str, list[str]] = {}
    for _, run in waiting.sort_values(["kind", "latent_channels", "run"], ascending=[False, True, True]).groupby(
        ["kind", "fingerprint"], sort=False
    ):
        row = run.sort_values("images_seen", kind="stable").iloc[0]
        if row["kind"] == "generator" and row["state"] == "blocked" and row["tokenizer_fingerprint"] in lost_tokenizers:
            continue  # the cause is its tokenizer, which is named already
        name = row["tokenizer"] + (" tokenizer" if row["kind"] == "tokenizer" else "")
        if "label" in row:  # names a generator; tokenizers are named by their run, as several may have one spec
            name = row["label"] or f"tokenizer {row['run']}"
        elif row["kind"] == "generator" and several_generators:
            name += f" with {row['generator']}"
        if several_seeds and not pd.isna(row["seed"]):  # pretrained weights have no seed
            name += f" seed {row['seed']}"
        results = rows[(rows["fingerprint"] == row["fingerprint"]) & (rows["state"] == "done")]
        if row["kind"] == "generator" and len(results):
            name += f" after {count(results['images_seen'].max())} images"
        names = by_cause.setdefault(_cause(row), [])
        if name not in names:
            names.append(name)
    if not by_cause:
        return []
    return ["Missing: " + "; ".join(f"{', '.join(names)} ({cause})" for cause, names in by_cause.items()) + "."]


def _cause(row: pd.Series, limit: int = 70) -> str:
    reason = row["reason"]
    cause = reason if reason.startswith(row["state"]) else f"{row['state']}: {reason}".removesuffix(": ")
    return cause if len(cause) <= limit else cause[: limit - 1].rstrip() + "…"
