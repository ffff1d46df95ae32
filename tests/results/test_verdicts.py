"""How often equal things pass the rule, how often a real difference is found, and that no repeat makes it looser."""

from __future__ import annotations

import math

import numpy as np
import pytest
from made_tables import JUDGES, study

from results import verdicts
from results.verdicts import FEWEST, LEVEL, MOST, Decision, Spread, at_places, decide, difference, over_places, pooled

STUDIES = 100_000
SPREADS = {
    "equal": (1, 1, 1, 1, 1, 1, 1, 1),
    "two cells alone": (1, 1),
    "two cells, one five times the other": (1, 5),
    "both three times the others": (3, 3, 1, 1, 1, 1, 1, 1),
    "one three times the others": (1, 3, 1, 1, 1, 1, 1, 1),
    "one seven times the others": (7, 1, 1, 1, 1, 1, 1, 1),
    "all different": (2, 4, 1, 1, 1.5, 2, 3, 0.5),
}


def drawn(sds, repeats: int, studies: int = STUDIES, alike: float = 0.0) -> tuple[np.ndarray, Spread]:
    """Values without a difference, (studies, cells, repeats), and the spread pooled over the cells of each study.

    alike: correlation of the runs of one seed.
    """
    rng = np.random.default_rng(repeats)
    own, shared = (rng.normal(size=(studies, cells, repeats)) for cells in (len(sds), 1))
    values = (math.sqrt(1 - alike) * own + math.sqrt(alike) * shared) * np.array(sds)[:, None]
    spread = Spread(sd=np.sqrt(values.var(-1, ddof=1).mean(-1)), df=len(sds) * (repeats - 1))
    return values, spread


@pytest.mark.parametrize("repeats", [3, 4, 5, 8])
@pytest.mark.parametrize("sds", SPREADS.values(), ids=SPREADS)
def test_equal_things_hold_in_at_most_one_of_twenty(sds, repeats):
    values, spread = drawn(sds, repeats)
    held = np.mean(difference(values[:, 0], values[:, 1], spread).chance() <= LEVEL)
    chance_of_the_draw = 2 * math.sqrt(LEVEL * (1 - LEVEL) / STUDIES)
    assert 0.015 < held < LEVEL + chance_of_the_draw


def test_the_pooled_spread_alone_would_let_equal_things_pass():
    values, spread = drawn(SPREADS["both three times the others"], 3)
    found = difference(values[:, 0], values[:, 1], spread)
    assert np.mean(found._replace(errors=found.errors[1:]).chance() <= LEVEL) > 3 * LEVEL


def test_runs_of_one_seed_that_are_alike_make_it_no_looser():
    values, spread = drawn(SPREADS["equal"], 3, alike=0.3)
    assert np.mean(difference(values[:, 0], values[:, 1], spread).chance() <= LEVEL) < LEVEL


@pytest.mark.parametrize(("repeats", "found"), [(3, 0.9), (4, 0.98)])
def test_a_tenth_is_found_at_a_spread_of_3_percent(repeats, found):
    values, spread = drawn([0.03] * 8, repeats)
    measured = difference(values[:, 0] + math.log(0.9), values[:, 1], spread)
    assert np.mean((measured.chance() <= LEVEL) & (measured.mean < -math.log1p(verdicts.MARGIN))) > found


@pytest.mark.parametrize("repeats", [3, 5])
def test_one_place_of_six_fails_by_chance_in_at_most_one_of_twenty(repeats):
    values, spread = drawn([1] * 12, repeats, studies=20_000)
    places = [difference(values[:, 2 * i + 1], values[:, 2 * i], spread).chance() for i in range(6)]
    failed = [
        over_places(at_places([[Decision(verdict="fails" if p <= LEVEL else "undecided", against=p)] for p in chances]))
        for chances in np.transpose(places)
    ]
    assert 0 < failed.count("fails") / len(failed) <= LEVEL


def test_a_decision_is_that_of_its_chance(monkeypatch):
    monkeypatch.setattr(verdicts, "MARGIN", 0.0)
    values, spread = drawn([0.05] * 4, 3, studies=300)
    found = difference(values[:, 0], values[:, 1], spread)
    expected = np.select([found.chance() <= LEVEL, found.reversed().chance() <= LEVEL], ["holds", "fails"], "undecided")
    decided = [
        decide(np.exp(low), np.exp(high), Spread(sd=sd, df=spread.df))
        for low, high, sd in zip(values[:, 0], values[:, 1], spread.sd, strict=True)
    ]
    assert [one.verdict for one in decided] == expected.tolist()
    assert {"holds", "fails", "undecided"} == set(expected)
    for one in decided:
        low, high = one.interval
        assert (high < 0, low > 0) == (one.verdict == "holds", one.verdict == "fails")


KNOWN = Spread(sd=0.02, df=16)


@pytest.mark.parametrize(
    ("low", "high", "options", "verdict"),
    [
        ((90.0, 91.0, 92.0), (100.0, 101.0, 102.0), {}, "holds"),
        ((100.0, 101.0, 102.0), (90.0, 91.0, 92.0), {}, "fails"),
        ((97.9, 98.0, 98.1), (99.9, 100.0, 100.1), {"spread": Spread(sd=0.001, df=16)}, "equal"),  # clear, but 2%
        ((98.0, 99.0, 97.0), (100.0, 100.0, 99.0), {}, "undecided"),
        ((90.0, 91.0, 92.0), (100.0, 101.0, 130.0), {}, "undecided"),  # one of the two is far less sure than the study
        ((100.0, 101.0, 102.0), (100.0, 101.0, 102.0), {"factor": 1.15}, "holds"),
        ((117.0, 118.0, 119.0), (100.0, 101.0, 102.0), {"factor": 1.15}, "undecided"),
        ((125.0, 126.0, 127.0), (100.0, 101.0, 102.0), {"factor": 1.15}, "fails"),
        ((9.0, 9.1, 9.2), (19.0, 19.0, 19.0), {"factor": 0.5, "exact": (False, True)}, "holds"),
        ((math.inf, 5.0, 5.0), (10.0, 10.0, 10.0), {"exact": (False, True)}, "undecided"),  # one never got there
        ((math.inf,) * 3, (10.0,) * 3, {"exact": (False, True)}, "undecided"),
        ((2.0, 2.1, 1.9), (4.0, 4.1, 3.9), {"relative": False, "spread": Spread(sd=0.1, df=8)}, "holds"),
        ((-0.1, 0.1, 0.0), (4.0, 4.1, 3.9), {"relative": False, "spread": Spread(sd=0.1, df=8)}, "holds"),
        ((-3.0, -3.0, -3.0), (-1.0, -1.0, -1.0), {"relative": False}, "undecided"),  # no gap that could narrow
        ((2.11, 2.10, 2.12), (2.27,), {"exact": (False, True)}, "holds"),
        ((2.11,), (2.27,), {"exact": (False, True)}, "indicated"),
        ((2.11,), (2.27,), {"exact": (True, True)}, "holds"),  # published, single: the margin alone
        ((2.24,), (2.27,), {"exact": (True, True)}, "undecided"),
        ((2.5,), (2.27,), {"exact": (True, True)}, "fails"),
    ],
)
def test_the_rule(low, high, options, verdict):
    assert decide(low, high, options.pop("spread", KNOWN), **options).verdict == verdict


@pytest.mark.parametrize("repeats", [1, 2])
def test_fewer_than_three_repeats_only_indicate(repeats):
    low, high = [90.0, 90.1][:repeats], [100.0, 100.1][:repeats]
    assert decide(low, high, KNOWN).verdict == "indicated"
    assert decide(high, low, KNOWN).verdict == "indicated against"
    assert decide([98.0] * repeats, high, KNOWN).verdict == "undecided"  # within the margin
    assert decide([90.0] * 3, high, KNOWN).verdict == "indicated"  # the fewer count
    assert decide(low, high, None).verdict == "indicated"


def test_no_repeat_makes_the_rule_looser():
    rng = np.random.default_rng(5)
    values = np.exp(rng.normal(0, 0.03, size=(4000, 2, FEWEST)))
    spread = Spread(sd=0.03, df=16)
    found = [
        [decide(low[:n], high[:n], spread).verdict for low, high in values[: 4000 if n < 3 else None]]
        for n in (1, 2, FEWEST)
    ]
    assert set(found[0]) | set(found[1]) == {"indicated", "indicated against", "undecided"}
    spoke = [np.mean([one in ("indicated", "indicated against", "holds", "fails") for one in n]) for n in found]
    assert spoke[0] > spoke[1] > spoke[2]  # of equal things
    assert spoke[2] < 2 * LEVEL


def test_the_repeats_that_would_decide_do():
    small, large = (decide((100.0, 103.0, 97.0), (high,) * 3, Spread(sd=0.03, df=16)) for high in (105.0, 115.0))
    assert small.verdict == "undecided" and large.verdict == "holds"
    assert small.expected == large.expected == "holds"
    assert large.enough == FEWEST < small.enough <= MOST
    expected = np.log(1.05) - np.array([-0.03, 0.03] * (small.enough // 2) + [0.0] * (small.enough % 2))
    again = decide(np.exp(-expected), (1.0,) * small.enough, Spread(sd=0.03, df=16), exact=(False, True))
    assert again.verdict == "holds"
    assert decide((100.0, 110.0), (103.2, 113.0), Spread(sd=0.1, df=2)).enough == MOST + 1
    assert decide((100.0,), (110.0,), None).enough is None


def test_judges_must_agree_and_one_place_fails_a_claim():
    def verdict(*places):
        return over_places(at_places(places))

    holds, undecided = Decision(verdict="holds"), Decision(verdict="undecided")
    clear, unclear = (Decision(verdict="fails", against=p) for p in (0.001, 0.04))
    indicated, against = Decision(verdict="indicated"), Decision(verdict="indicated against")
    assert verdict([holds, clear]) == "undecided"
    assert verdict([holds], [undecided], [clear]) == "fails"
    assert verdict([holds], [undecided], [unclear]) == "undecided"  # one of three places, by chance
    assert verdict([unclear]) == "fails"
    assert at_places([[clear], [unclear], [clear, clear]]) == ["fails", "fails", "fails"]  # by Holm, not Bonferroni
    assert verdict([clear, unclear], [holds]) == "undecided"  # the judge that is less sure counts
    assert verdict([holds], [undecided]) == "undecided"
    assert verdict([holds], [indicated]) == "indicated"
    assert verdict([against], [against]) == "indicated against"
    assert verdict([indicated], [against]) == "undecided"
    assert verdict([Decision(verdict="equal")]) == "equal"
    assert verdict() == "not measured"


def test_the_spread_is_pooled_over_runs_at_their_last_mark():
    table = study(widths=(4, 16), seeds=(0, 1, 2), judges=JUDGES[:1])
    (judge, size), last = JUDGES[0], table["images_seen"].max()
    found = verdicts.cells(table)[("gfid", judge, size)]
    mine = table[(table["kind"] == "generator") & (table["images_seen"] == last)]
    assert sorted(len(cell) for cell in found) == [3] * 4
    assert sorted(np.concatenate(found)) == pytest.approx(sorted(np.log(mine["gfid"].astype(float))))
    spread = verdicts.spreads(table)[("gfid", judge, size)]
    assert spread.df == 8
    assert spread.sd == pytest.approx(np.sqrt(np.mean([np.var(cell, ddof=1) for cell in found])))
    assert verdicts.spreads(table)[("rfid", judge, size)] is None  # one seed
    uncomparable = verdicts.spreads(table.assign(comparable=False))
    assert not uncomparable
    assert pooled([[1.0], [2.0, math.inf], [3.0, 3.0]]).df == 1
