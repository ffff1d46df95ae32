"""Rank correlations of few points: values computed by hand, intervals, and probabilities by chance."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from results.foretell import correlations, predictor_points
from results.ranks import by_chance, rank_agreement
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
