"""The effect of guidance: gFID without it ('none') and at the best scale, which is chosen on other samples ('best')."""

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from results.runs import GUIDANCE, asked_by, choosing
from results.table import check_protocol


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The guidance scale chosen for one generator by one judge. A number is None while a row that it needs is missing.

    none: gFID without guidance. best: gFID at `scale`, which had the lowest gFID on the choosing seed. Both numbers are
    on the scoring seed.
    """

    run: str
    fingerprint: str
    images_seen: int
    extractor: str
    none: float | None
    best: float | None
    scale: float | None


def swept(table: pd.DataFrame) -> pd.DataFrame:
    """The generators' rows of the guidance ablation, with both seeds."""
    return table[asked_by(table, GUIDANCE) & (table["kind"] == "generator")]


def choices(table: pd.DataFrame) -> list[Choice]:
    """'none' and 'best' of every generator by every judge, narrow latents first.

    Raises:
        ProtocolError: a generator's rows differ in more than the guidance scale and the number of samples.
    """
    return list(_choices(swept(table).sort_values(["latent_channels", "tokenizer", "generator", "guidance_scale"])))


def _choices(rows: pd.DataFrame) -> Iterator[Choice]:
    by = ["fingerprint", "images_seen", "extractor", "extractor_size"]
    for _, group in rows.groupby(by, sort=False, dropna=False):
        check_protocol(group, ("guidance_scale", "samples", "comparable"))
        chosen, scored = group[choosing(group)], group[~choosing(group)]
        scores = scored.set_index("guidance_scale")["gfid"].dropna()
        scale = None
        if len(chosen) and (chosen["state"] == "done").all():  # otherwise the best one may be missing
            lowest = chosen[chosen["gfid"] == chosen["gfid"].min()]
            scale = float(lowest["guidance_scale"].min())
        plain = scored[scored["guidance_scale"] == 1]
        first = (plain if len(plain) else group).iloc[0]
        yield Choice(
            run=first["run"],
            fingerprint=first["fingerprint"],
            images_seen=int(first["images_seen"]),
            extractor=first["extractor"],
            none=_number(scores, 1.0),
            best=_number(scores, scale),
            scale=scale,
        )


def _number(scores: pd.Series, scale: float | None) -> float | None:
    return float(scores[scale]) if scale is not None and scale in scores.index else None
