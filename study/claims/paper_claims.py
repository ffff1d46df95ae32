"""The paper's claims and some on latents, with their thresholds, and their verdicts in a study, judged from its table
alone.

A claim says which rows it compares and how much their numbers must differ. study/claims/evidence.py and latents.py find
the rows in a table; results/verdicts.py is the rule.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

from results.published import SPEED_UPS
from results.verdicts import DECIDED, FEWEST, MARGIN, MOST, Verdict, at_places, over_places
from study.claims import evidence, latents
from study.claims.evidence import Scores, read_scores
from study.claims.verdicts import NO_RHO, Evidence
from study.plan.ablation_files import ablation

if TYPE_CHECKING:
    import pandas as pd


MAX_RFID_RATIO = 1.15  # largest accepted ratio of aligned to plain rFID; the paper's wide tokenizers have at most 1.08
MIN_SPEED_UP = 2.0  # factor of fewer images; the paper has SPEED_UPS


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A statement, where it is made, and a function that finds its evidence in scores."""

    name: str
    text: str
    where: str
    evidence: Callable[[Scores], Iterable[Evidence]]


# which of several places is shown for each of the verdicts
CHOSEN: dict[Verdict, str] = {
    "holds": "least clearly", "indicated": "least clearly", "fails": "most clearly",
    "indicated against": "most clearly", "equal": "such as", "undecided": "such as",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A claim with its evidence, by place: what is compared there, such as two tokenizers under one generator."""

    claim: Claim
    places: dict[str, list[Evidence]]

    @cached_property
    def verdicts(self) -> dict[str, Verdict]:
        found = at_places([[one.decision for one in found] for found in self.places.values()])
        return dict(zip(self.places, found, strict=True))

    @property
    def verdict(self) -> Verdict:
        return over_places(list(self.verdicts.values()))

    @property
    def repeats(self) -> str:
        """'published, single', 'single run', or the smallest number of repeats of a comparison."""
        if not self.places:
            return ""
        fewest = min(one.repeats for found in self.places.values() for one in found)
        return {0: "published, single", 1: "single run"}.get(fewest, f"{fewest} repeats")

    @property
    def enough(self) -> str:
        """How many repeats would decide every place, at the means and the spread found, or why none would."""
        if self.verdict in DECIDED or not any(one.repeats for found in self.places.values() for one in found):
            return ""  # nothing is open, or nothing can be repeated
        open_places = [self.places[place] for place, verdict in self.verdicts.items() if verdict not in DECIDED]
        decisions = [[one.decision for one in found] for found in open_places]
        if any(len({decision.expected for decision in found} - {"undecided"}) > 1 for found in decisions):
            return "judges disagree"
        if any(decision.expected == "undecided" for found in decisions for decision in found):
            return "not by repeats"
        if any(decision.enough is None for found in decisions for decision in found):
            return "spread unknown"
        more = 1 + min(one.repeats for found in open_places for one in found)
        needed = max(more, *(decision.enough or 0 for found in decisions for decision in found))
        return f"> {MOST} repeats" if needed > MOST else f"{needed} repeats"

    def numbers(self) -> list[str]:
        """A line per verdict that occurs: at how many places, and the place with the weakest support for the claim."""
        lines = []
        for verdict, chosen in CHOSEN.items():
            places = [place for place, at_place in self.verdicts.items() if at_place == verdict]
            if not places:
                continue
            weakest = min(places, key=lambda place: min(one.strength for one in self.places[place]))
            judges = {one.judge for one in self.places[weakest]}
            shown = [f"{one}{f' ({one.judge})' if len(judges) > 1 else ''}" for one in self.places[weakest]]
            count = f"{verdict} in {len(places)} of {len(self.places)}" if len(self.places) > 1 else ""
            which = f", {chosen}" if len(places) > 1 else ""
            lines.append(": ".join(filter(None, (f"{count}{which}", weakest, "; ".join(shown)))))
        return lines


def judge_claims(table: pd.DataFrame) -> list[Judged]:
    """Every claim of CLAIMS with its evidence in a results table.

    Raises:
        ValueError: two runs of the table are indistinguishable.
    """
    scores = read_scores(table)
    judged = []
    for claim in CLAIMS:
        places = defaultdict(list)
        for one in claim.evidence(scores):
            places[one.place].append(one)
        judged.append(Judged(claim=claim, places=dict(places)))
    return judged


CLAIMS = (
    Claim(
        name="dilemma-rfid",
        text="A wider plain latent reconstructs better: rFID falls",
        where="Table 2",
        evidence=lambda scores: evidence.wider_against_narrower(scores.tokenizers, rises=False),
    ),
    Claim(
        name="dilemma-gfid",
        text="A wider plain latent generates worse: gFID rises",
        where="Table 2",
        evidence=lambda scores: evidence.wider_against_narrower(scores.generators, rises=True),
    ),
    Claim(
        name="vf-gfid",
        text="VF loss lowers gFID above the narrowest width",
        where="Table 2",
        evidence=lambda scores: evidence.aligned_against_plain(scores.generators),
    ),
    Claim(
        name="vf-rfid",
        text=f"Above the narrowest width VF loss costs less than {MAX_RFID_RATIO - 1:.0%} of rFID",
        where="Table 2",
        evidence=lambda scores: evidence.aligned_against_plain(scores.tokenizers, MAX_RFID_RATIO),
    ),
    Claim(
        name="vf-faster",
        text="Above it, fewer images give the gFID that the plain tokenizer ends with",
        where="Figure 4",
        evidence=lambda scores: evidence.images_to_plain_gfid(scores, 1.0),
    ),
    Claim(
        name="vf-twice-as-fast",
        text=f"At least {MIN_SPEED_UP:g} times fewer (the paper: {' and '.join(map(str, SPEED_UPS.values()))})",
        where="Figure 4",
        evidence=lambda scores: evidence.images_to_plain_gfid(scores, MIN_SPEED_UP),
    ),
    Claim(
        name="gap-closes",
        text="The gap in gFID between plain and aligned narrows as the generator grows",
        where="Figure 4",
        evidence=evidence.gap_against_smaller_generator,
    ),
    Claim(
        name="best-foundation-model",
        text="DINOv2 gives the lowest gFID of the foundation models",
        where="Table 4",
        evidence=evidence.dinov2_against_others,
    ),
    Claim(
        name="vf-cosine",
        text="Without its cosine part VF loss gives a higher gFID",
        where="Table 5",
        evidence=lambda scores: evidence.full_vf_loss_against_part(scores, "cosine_weight"),
    ),
    Claim(
        name="vf-distance",
        text="Without its distance part VF loss gives a higher gFID",
        where="Table 5",
        evidence=lambda scores: evidence.full_vf_loss_against_part(scores, "distance_weight"),
    ),
    Claim(
        name="vf-margins",
        text="Without its margins VF loss gives a higher gFID",
        where="Table 5",
        evidence=lambda scores: evidence.full_vf_loss_against_part(scores, "cosine_margin", "distance_margin"),
    ),
    *(
        Claim(
            name=f"recipe-{rung}",
            text=text,
            where=f"Table 1, row {rung}",
            evidence=partial(evidence.rung_against_previous, rung=rung),
        )
        for rung, (_, text) in enumerate(ablation(evidence.LADDER).STEPS, start=1)
    ),
    Claim(
        name="uniformity",
        text="The more even a latent's density, the lower gFID",
        where="Table 6",
        evidence=evidence.density_cv_against_gfid,
    ),
    Claim(
        name="headline-64",
        text="After 64 epochs the guided system (2.11) is ahead of DiT after 1,400 (2.27)",
        where="Abstract",
        evidence=lambda scores: evidence.system_against_published(scores, 64, lambda score: score.generator == "DiT"),
    ),
    Claim(
        name="headline-800",
        text="After 800 epochs (1.35) it is ahead of all other systems of Table 3",
        where="Abstract",
        evidence=lambda scores: evidence.system_against_published(scores, 800, lambda score: True),
    ),
    # not the paper's: what another study claims of latents, and what ours asks
    Claim(
        name="viv-over-rfid",
        text="VIV foretells gFID better than rFID does, within each family of tokenizers",
        where="arXiv 2606.03578",
        evidence=lambda scores: latents.foretells_better(scores, "viv", "rfid"),
    ),
    Claim(
        name="viv-over-density",
        text="VIV foretells gFID better than the spread of density, which the paper looks at",
        where="arXiv 2606.03578",
        evidence=lambda scores: latents.foretells_better(scores, "viv", "density_cv"),
    ),
    Claim(
        name="eq-foretells-nothing",
        text=f"The EQ error foretells nothing: its rank correlation with gFID is within ±{NO_RHO:g}",
        where="arXiv 2606.03578",
        evidence=lambda scores: latents.foretells_nothing(scores, "eq_error"),
    ),
    Claim(
        name="align-both",
        text="Aligning tokenizer and generator lowers gFID below aligning one of them",
        where="ablation where_to_align",
        evidence=latents.both_against_one,
    ),
)


# Output


RULE = (
    f"{FEWEST} repeats decide, by the 90% interval of the mean difference (in brackets) and a margin of {MARGIN:.0%}; "
    "fewer only indicate, and published numbers have the margin alone. All judges must agree; a claim holds where all "
    "of its places do and fails where one does, corrected for their number."
)
HEADER = ("claim", "where", "verdict", "numbers", "runs", "would decide")


def rows_of(judged: Sequence[Judged]) -> list[tuple[str, str, str, str, str, str]]:
    """A row per claim as HEADER has it: `numbers` are those behind it, `runs` its repeats."""
    return [
        (one.claim.text, one.claim.where, one.verdict, "\n".join(one.numbers()), one.repeats, one.enough)
        for one in judged
    ]


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; line breaks within cells are kept."""
    lines = [header, ["---"] * len(header), *rows]
    cells = ((cell.replace("|", "\\|").replace("\n", "<br>") for cell in line) for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
