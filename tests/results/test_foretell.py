"""Correlations over tokenizers: values computed by hand and by scipy, intervals, and probabilities by chance."""

import numpy as np
import pandas as pd
import pytest
from made_tables import asked, latents, study
from scipy import stats
from scipy.stats import spearmanr

from results.foretell import (
    PREDICTORS,
    correlations,
    estimate,
    foretold,
    gap,
    latent_points,
    noise,
    partial,
    predictor_points,
)
from results.ranks import by_chance, pearson, rank_agreement
from results.schema import DIAGNOSTICS, Row
from results.table import ProtocolError, table_of


def test_ranks_and_not_distances_count():
    x = np.array([1.0, 2, 3, 4, 5])
    assert rank_agreement(x, np.exp(x)).rho == pytest.approx(1)
    assert rank_agreement(x, -(x**3)).rho == pytest.approx(-1)
    # squared differences of ranks 0, 0, 0, 1, 1: 1 - 6 * 2 / (5 * 24)
    assert rank_agreement(x, np.array([1.0, 2, 3, 5, 4])).rho == pytest.approx(0.9)


def test_ties_share_their_rank_as_elsewhere():
    rng = np.random.default_rng(0)
    x, y = rng.integers(4, size=20).astype(float), rng.integers(4, size=20).astype(float)
    assert rank_agreement(x, y).rho == pytest.approx(spearmanr(x, y).statistic)


def test_the_interval_holds_the_value_narrows_with_more_points_and_repeats():
    rng = np.random.default_rng(0)
    x = rng.normal(size=200)
    y = x + rng.normal(size=200)
    few, many = rank_agreement(x[:8], y[:8]), rank_agreement(x, y)
    for found in (few, many):
        assert -1 <= found.low <= found.rho <= found.high <= 1
    assert many.high - many.low < (few.high - few.low) / 2
    assert rank_agreement(x[:8], y[:8]) == few


def test_too_few_or_constant_values_have_no_correlation():
    assert rank_agreement(np.array([1.0, 2]), np.array([1.0, 2])).rho is None
    assert rank_agreement(np.ones(5), np.arange(5.0)).rho is None


def test_chance_is_what_tables_of_critical_values_say():
    # two-sided, 5%: 1.000 for 5, 0.886 for 6, 0.786 for 7, 0.648 for 10
    assert [by_chance(n) for n in (5, 6, 7)] == pytest.approx([1, 31 / 35, 11 / 14])
    assert by_chance(10) == pytest.approx(0.648, abs=0.02)
    assert by_chance(4) is None  # a perfect order comes up in 2 of 24


def rows(points=(1500, 1500, 1500)):
    """Three tokenizers, two seeds of each generator; the second tokenizer's effective rank is unknown."""
    records = []
    for number, count in enumerate(points):
        tokenizer = {"tokenizer": f"f4d{number}", "foundation_model": "none", "latent_channels": number,
                     "state": "done", "extractor": "lite2", "extractor_size": 64,
                     "tokenizer_fingerprint": f"t{number}"}  # fmt: skip
        records.append({**tokenizer, "kind": "tokenizer", "fingerprint": f"t{number}", "images_seen": 9,
                        "protocol": "r", "rfid": 5.0 - number, "density_cv": 0.1 * number, "diagnostic_points": count,
                        "effective_rank": None if number == 1 else 2.0 * number})  # fmt: skip
        for seed in (0, 1):
            records.append({**tokenizer, "kind": "generator", "fingerprint": f"g{number}{seed}", "generator": "XS",
                            "images_seen": 7, "protocol": "g", "gfid": 10.0 * number + seed})  # fmt: skip
    table = table_of(Row(**record) for record in records)
    return table[table["kind"] == "tokenizer"], table[table["kind"] == "generator"]


def test_repeats_are_averaged_and_what_is_missing_is_left_out():
    points = predictor_points(*rows())
    assert len(points) == 3 * (1 + len(DIAGNOSTICS))
    one = points[points["diagnostic"] == "density_cv"].set_index("tokenizer").loc["f4d2"]
    assert (one["gfid"], one["gfid_min"], one["gfid_max"], one["gfid_runs"]) == (20.5, 20, 21, 2)
    assert (one["value"], one["value_runs"]) == (0.2, 1)
    found = correlations(points).set_index("diagnostic")
    assert (found.loc["density_cv", "rho"], found.loc["rfid", "rho"]) == pytest.approx((1, -1))
    assert found["n"].to_dict() == dict.fromkeys(DIAGNOSTICS, 0) | {"rfid": 3, "density_cv": 3, "effective_rank": 2}
    assert pd.isna(found.loc["effective_rank", "rho"])


def test_tokenizers_described_with_different_numbers_of_points_are_not_compared():
    with pytest.raises(ProtocolError, match=r"differ in diagnostic_points: 1500, 10000.*--points 1500"):
        predictor_points(*rows(points=(1500, 10_000, 1500)))


RNG = np.random.default_rng(3)
X, Z = RNG.normal(size=(2, 40)).round(1)  # rounded: with ties
Y = (X + 0.5 * Z + RNG.normal(size=40)).round(1)


def test_correlations_are_those_of_scipy():
    assert estimate(pearson, X, Y).value == pytest.approx(stats.spearmanr(X, Y).statistic)
    assert estimate(pearson, X, Y, ranked=False).value == pytest.approx(stats.pearsonr(X, Y).statistic)


def test_a_partial_correlation_is_that_of_what_a_line_leaves():
    def left(values, given):
        line = stats.linregress(given, values)
        return values - line.slope * given - line.intercept

    found = estimate(partial, X, Z, Y, ranked=False).value
    assert found == pytest.approx(stats.pearsonr(left(X, Z), left(Y, Z)).statistic)
    ranks = [stats.rankdata(column) for column in (X, Z, Y)]
    of_ranks = stats.pearsonr(left(ranks[0], ranks[1]), left(ranks[2], ranks[1])).statistic
    assert estimate(partial, X, Z, Y).value == pytest.approx(of_ranks)
    # by hand: r of x and y 0.8, of each with z 0.6: (0.8 - 0.36) / (1 - 0.36)
    basis = np.array([[1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]])  # without mean, of one length, at right angles
    x, z, y = np.linalg.cholesky([[1, 0.6, 0.8], [0.6, 1, 0.6], [0.8, 0.6, 1]]) @ basis
    assert partial(x, z, y) == pytest.approx(0.6875)
    assert np.isnan(estimate(partial, X, X, Y).value)  # nothing is left of x


def test_the_interval_is_the_bootstraps_and_the_same_each_time():
    ours = estimate(pearson, X, Y).interval
    theirs = stats.bootstrap(
        (X, Y), lambda x, y, axis: np.array([spearmanr(a, b).statistic for a, b in zip(x, y, strict=True)])
        if x.ndim > 1 else spearmanr(x, y).statistic,
        paired=True, n_resamples=2_000, method="percentile", confidence_level=0.9, rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    assert ours == pytest.approx(tuple(theirs), abs=0.03)
    assert estimate(pearson, X, Y).interval == ours
    assert np.isnan(estimate(pearson, X[:4], Y[:4]).interval).all()  # too few
    assert np.isnan(estimate(pearson, X[:2], Y[:2]).value)
    narrow = estimate(pearson, X, X).interval
    assert narrow == pytest.approx((1, 1))


def test_one_predictor_is_better_than_another_by_the_difference_on_the_same_tokenizers():
    better = estimate(gap, Y, X, Y)
    assert better.value == pytest.approx(1 - spearmanr(X, Y).statistic)
    assert better.interval[0] > 0
    assert estimate(gap, X, Y, Y).interval == pytest.approx(tuple(-end for end in reversed(better.interval)))
    assert estimate(gap, X, X, Y).interval == (0, 0)
    assert better.share_up_to(0) == pytest.approx(1 / 2001)  # of no draw, and one for what was not drawn
    assert better.share_up_to(0, side=-1) == 1


def test_how_often_a_difference_is_found_and_equal_ones_are_told_apart():
    def found(one, other, studies=150, tokenizers=34):
        rng = np.random.default_rng(0)
        root = np.linalg.cholesky([[1, one, other], [one, 1, one * other], [other, one * other, 1]])
        drawn = root @ rng.normal(size=(studies, 3, tokenizers))
        lows = [estimate(gap, x, z, y).interval[0] for y, x, z in drawn]
        return np.mean(np.array(lows) > 0)

    assert 0.5 < found(0.87, 0.64) < 0.8  # docs/latents.md: 66%
    assert found(0.7, 0.7) < 0.1


def test_tokenizers_of_latents_are_told_apart_by_strength_and_averaged_over_repeats():
    table = latents()
    points = latent_points(table)
    by_label = points[points["extractor"] == "classifier"].set_index("label")
    assert by_label["family"].value_counts().to_dict() == {"plain": 14, "aligned": 14, "neither": 1}
    assert by_label.loc["rae-lite0", "family"] == "neither"
    assert by_label.loc["f4d4+noise", "gfid"] != by_label.loc["f4d4+noise, up to 0.2", "gfid"]
    rows = table[(table["tokenizer"] == "f4d4") & (table["extractor"] == "classifier") & (table["kind"] == "generator")]
    last = rows[rows["images_seen"] == rows["images_seen"].max()]
    assert by_label.loc["f4d4", "gfid"] == pytest.approx(last["gfid"].mean()) and len(last) == 3
    assert by_label["gfid_runs"].value_counts().to_dict() == {1: 25, 3: 4}
    late = (table["tokenizer"] == "f4d4+eq") & (table["images_seen"] == table["images_seen"].max())
    stopped = table.assign(state=table["state"].mask(late & (table["kind"] == "generator"), "failed"))
    assert set(points["label"]) - set(latent_points(stopped)["label"]) == {"f4d4+eq"}
    assert latent_points(asked(study(), "frontier")).empty


def test_each_family_has_correlations_of_its_own():
    found = foretold(latent_points(latents())).set_index(["extractor", "scope", "diagnostic"]).loc["classifier"]
    assert found["n"].loc["pooled"].to_dict() == {
        name: 29 if name in ("rfid", "viv", "lnc_5", "lnc_10", "eq_error", "density_cv", "gini", "normalized_entropy",
                             "effective_rank", "ifid") else 0 for name in PREDICTORS
    }  # fmt: skip
    density = found["r"].loc[:, "density_cv"]  # goes the wrong way in each family, and the right way between them
    assert density["plain"] < 0 and density["aligned"] < 0 < density["pooled"]
    aligned = found.loc["aligned"]
    assert aligned.loc["viv", "rho"] > 0.9 and aligned.loc["lnc_10", "r"] == pytest.approx(
        aligned.loc["viv", "r"], abs=0.1
    )
    assert aligned.loc["viv", "rho_low"] < aligned.loc["viv", "rho"] < aligned.loc["viv", "rho_high"]
    assert np.isnan(aligned.loc["rfid", "rho_given_rfid"]) and not np.isnan(aligned.loc["viv", "r_given_rfid"])


def test_a_number_that_shall_be_high_is_turned():
    points = latent_points(latents())
    turned = points.assign(lnc_10=points["viv"], viv=points["lnc_10"])
    found, other = (foretold(one).set_index(["extractor", "scope", "diagnostic"])["rho"] for one in (points, turned))
    key = ("classifier", "aligned")
    assert other[(*key, "lnc_10")] == pytest.approx(-found[(*key, "viv")])
    assert other[(*key, "viv")] == pytest.approx(-found[(*key, "lnc_10")])


def test_noise_leaves_room_for_a_correlation():
    def rows(*runs):
        return pd.DataFrame(
            [{"label": label, "foundation_model": "none", "gfid": gfid} for label, gfids in runs for gfid in gfids]
        )

    # logarithms 0 and 2, and 4: within a variance of 2, means 1 and 4 with a variance of 4.5;
    # of that 2 * (1 / 2 + 1) / 2 = 1.5 is noise
    found = noise(rows(("a", np.exp([0, 2])), ("b", np.exp([4]))))
    assert found["plain"].repeats == pytest.approx(np.sqrt(2))
    assert found["plain"].tokenizers == pytest.approx(np.sqrt(4.5))
    assert found["plain"].ceiling == pytest.approx(np.sqrt(1 - 1.5 / 4.5))
    assert "aligned" not in found and noise(rows(("a", [1.0]), ("b", [2.0]))) == {}
