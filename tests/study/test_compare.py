"""Comparison of two studies: which rows match, which may be subtracted, and what is printed about the others."""

from __future__ import annotations

import csv

import pytest
from made_tables import study

from ablations import released
from results import table as results
from results.published import load_published
from results.ranks import EXACT, rank_agreement
from results.schema import Row
from study.claims.effects import Contrast, effects, shared
from study.claims.paper_claims import judge_claims
from study.compare import compare, main, tables
from study.plan.scales import SCALES

PAPER = load_published("paper")
ROW = {
    "ablations": ("frontier",), "kind": "generator", "tokenizer": "f16d32", "foundation_model": "none",
    "latent_channels": 32, "generator": "LightningDiT-B/1", "tokenizer_seed": 0, "seed": 0, "images_seen": 1000,
    "protocol": "p", "state": "done", "samples": 10_000, "solver": "dopri5", "guidance_scale": 1.0,
    "extractor": "inception", "extractor_size": 299, "comparable": True, "data": "imagenet", "resolution": 256,
}  # fmt: skip


def made(*rows, **everywhere):
    """Generators by tokenizer and gFID, with what else differs."""
    return results.table_of(
        Row(**{
            **ROW, "run": f"{spec} + LightningDiT-B/1", "fingerprint": f"{spec}-{number}", "tokenizer": spec,
            "tokenizer_fingerprint": spec, "gfid": gfid, **everywhere, **changed,
        })
        for number, (spec, gfid, changed) in enumerate(rows)
    )  # fmt: skip


@pytest.fixture
def studies(tmp_path):
    """A folder with results/: `many` has one width more than `few`, and two seeds instead of one."""
    results.write(study(), tmp_path / "results" / "few" / "table.csv")
    results.write(study(widths=(4, 8, 16), seeds=(0, 1), floor=200.0), tmp_path / "results" / "many" / "table.csv")
    return tmp_path


def lines(a, b):
    found = compare(a, b, ("a", "b")).lines
    return {(line.point.run, line.a.images, line.b.images): line.difference for line in found}


def test_rows_match_the_paper_where_it_says_what_they_are():
    ours = made(("f16d32", 23.0, {"seed": 0}), ("f16d32", 25.0, {"seed": 1}), ("f16d128", 9.0, {}))
    found = compare(ours, PAPER, ("ours", "paper"))
    (line,) = found.lines
    assert line.point.run == "f16d32 + LightningDiT-B/1"
    assert line.a.values == (23.0, 25.0) and line.b.values == (22.62,)
    assert line.difference == pytest.approx(24.0 - 22.62)  # of the mean
    assert "f16d128 + LightningDiT-B/1" in {one.point.run for one in found.unmatched if one.a}
    assert ("generator", "extractor_size", ["299"], ["not stated"]) in found.differs
    assert not {"solver", "samples", "data"} & {name for _, name, _, _ in found.differs}


def test_equal_images_match_and_else_the_last_stand_beside_each_other():
    curve = made(("f16d32", 30.0, {"images_seen": 500}), ("f16d32", 20.0, {"images_seen": 1000}))
    run = "f16d32 + LightningDiT-B/1"
    assert lines(curve, made(("f16d32", 28.0, {"images_seen": 503}))) == {(run, 500, 503): 2.0}  # within 1%
    assert lines(curve, made(("f16d32", 18.0, {"images_seen": 2000}))) == {(run, 1000, 2000): 2.0}
    assert lines(curve, curve) == {(run, 500, 500): 0.0, (run, 1000, 1000): 0.0}


def test_numbers_of_other_judges_are_not_subtracted():
    ours = made(("f16d32", 500.0, {}), extractor="efficientnet_lite2", extractor_size=64)
    (difference,) = lines(ours, PAPER).values()
    assert difference is None
    both = made(("f16d32", 500.0, {}), ("f16d32", 20.0, {"extractor_size": 64, "protocol": "q"}))
    assert list(lines(both, made(("f16d32", 19.0, {}))).values()) == [481.0]  # the one they share


def test_guided_runs_and_changed_ones_match_only_their_like():
    plain = made(("f16d32", 20.0, {}))
    assert not lines(plain, made(("f16d32", 20.0, {"guidance_scale": 2.0})))
    assert not lines(plain, made(("f16d32", 20.0, {"changes": {"swiglu": False}})))
    assert not lines(plain, made(("f16d32", 20.0, {"changes": {"generator.betas": (0.9, 0.99)}})))
    assert lines(plain, made(("f16d32", 20.0, {"run": "another name"})))
    assert lines(plain, made(("f16d32", 20.0, {"solver": "euler"})))  # protocol, which is named


def test_the_released_checkpoints_meet_their_published_numbers():
    rows = []
    runs = released.runs(SCALES["imagenet256"]())
    for number, (run, gfid) in enumerate(zip(runs, [5.1, 2.1, 2.2, 1.4], strict=True)):
        changed = {
            "run": run.name, "images_seen": run.pretrained_generator.images_seen, "generator": run.generator,
            "foundation_model": "dinov2", "guidance_scale": run.changes.get("sampling.guidance_scale", 1.0),
            "samples": 50_000, "solver": "euler", "steps": 249, "timestep_shift": 0.3, "protocol": f"p{number}",
            "pretrained_weights": "a file", "tokenizer_seed": None, "seed": None,
        }  # fmt: skip
        rows.append(("f16d32-dinov2", gfid, changed))
    table = made(*rows)
    found = compare(table, PAPER, ("released", "paper"))
    met = {(line.a.values[0], line.b.values[0]) for line in found.lines}
    assert met == {(5.1, 5.14), (2.2, 2.17), (2.1, 2.11), (1.4, 1.35)}
    assert len(found.lines) == 4
    verdicts = {one.claim.name: one.verdict for one in judge_claims(table)}
    assert verdicts["headline-64"] == "indicated"
    assert verdicts["headline-800"] == "undecided"  # 1.4 against 1.42


def test_the_order_of_runs_is_compared_by_judge():
    specs = [f"f16d{width}" for width in (4, 8, 16, 32, 64)]
    a = made(*((spec, 10.0 * rank, {}) for rank, spec in enumerate(specs, 1)))
    b = made(*((spec, 3.0 * rank, {}) for rank, spec in enumerate(specs, 1)))
    ((kind, judge, agreement),) = compare(a, b, ("a", "b")).ranks
    assert (kind, judge, agreement.rho, agreement.n) == ("generator", "inception @ 299 px", 1.0, 5)
    assert agreement.chance == pytest.approx(1 / 120)
    assert "few pairs" in str(agreement)


def test_rank_agreement_by_hand():
    cv, gfid = [0.263, 0.193, 0.178, 0.296, 0.256, 0.251], [22.62, 19.89, 15.82, 36.83, 23.58, 24.0]
    assert rank_agreement(cv, gfid).rho == pytest.approx(1 - 6 * 8 / (6 * 35))
    assert rank_agreement(cv, gfid).chance == pytest.approx(37 / 720, abs=1e-3)
    assert rank_agreement([1, 2, 2, 3], [1, 2, 2, 3]).rho == pytest.approx(1)  # ties at their mean
    assert rank_agreement([1, 2], [1, 2]).rho is None
    many = rank_agreement(range(EXACT + 4), range(EXACT + 4))
    assert many.rho == pytest.approx(1) and 0 < many.chance < 0.001
    assert str(many) == str(rank_agreement(range(EXACT + 4), range(EXACT + 4)))


def test_two_studies_side_by_side(studies, tmp_path, capsys):
    assert main(["few", "many"], csv_=tmp_path / "both.csv", out=studies) == 0
    assert "rank correlation" in " ".join(capsys.readouterr().out.split())
    with open(tmp_path / "both.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    few = study().set_index(["run", "extractor"])
    for row in rows:
        if row["kind"] == "tokenizer" and row["mean_a"]:
            assert float(row["mean_a"]) == few.loc[(row["run"], row["judge_a"].split(" @ ")[0]), "rfid"]
        assert bool(row["difference"]) == bool(row["mean_a"] and row["mean_b"])
    assert {row["mean_a"] for row in rows if row["run"] == "f4d8"} == {""}  # only in the other


def test_nothing_in_common_is_said(studies, capsys):
    assert main(["many", "paper"], markdown_=True, out=studies) == 0
    printed = capsys.readouterr().out
    assert "No run of many matches one of paper: there are no differences to show." in printed
    assert "| generator | data | fashion-mnist | imagenet |" in printed
    assert (
        "narrowest width | Table 2 | indicated (2 repeats; would decide: 3 repeats) | holds (published, single) |"
        in printed
    )
    assert main(["many", "papers"], out=studies) == 2
    assert "nearest: paper" in capsys.readouterr().err


def test_which_study_is_lower_is_said_by_the_rule_of_claims():
    def lower(*gfids, spread=0.0):
        shown = [
            made(*(("f16d32", gfid * (1 + spread * (seed - 1)), {"seed": seed}) for seed, gfid in enumerate(side)))
            for side in gfids
        ]
        ((_, _, rows),) = [table for table in tables(compare(*shown, ("a", "b"))) if table[0] == "Rows of both"]
        return rows[0][-1]

    assert lower((20.0,) * 3, (23.0,) * 3, spread=0.02) == "a"
    assert lower((23.0,) * 3, (20.0,) * 3, spread=0.02) == "b"
    assert lower((20.0,) * 3, (20.7,) * 3, spread=0.02) == "undecided"
    assert lower((20.0,) * 3, (20.1,) * 3, spread=0.001) == "equal"
    assert lower((20.0,) * 2, (23.0,) * 2) == "a, indicated"
    assert lower((20.0,), (20.3,)) == "undecided"
    ours = compare(made(("f16d32", 24.0, {"seed": 0}), ("f16d32", 25.0, {"seed": 1})), PAPER, ("ours", "paper"))
    ((_, _, rows),) = [table for table in tables(ours) if table[0] == "Rows of both"]
    assert rows[0][-1] == "paper, indicated"
    ((_, _, rows), *_) = tables(compare(PAPER, PAPER, ("paper", "again")))
    assert {row[-1] for row in rows} == {"undecided (published, single)"}


def of(kind, place, found):
    """The effects of one contrast."""
    return [one for one in found if one.contrast == Contrast(kind, place)]


def aligned(low, high, seeds=3, spread=0.01):
    """A study of one width whose alignment brings a gFID of `high` to `low`."""
    wobble = [1 + spread * (seed - 1) for seed in range(seeds)]
    return made(
        *(("f16d32-lite0", low * factor, {"foundation_model": "lite0", "seed": seed})
          for seed, factor in enumerate(wobble)),
        *(("f16d32", high * factor, {"seed": seed}) for seed, factor in enumerate(wobble)),
    )  # fmt: skip


def test_contrasts_of_studies_match_by_rank_and_name_the_widths_behind_them():
    few = effects(study(widths=(4, 8, 16), judges=(("classifier", 32),)))
    many = effects(study(widths=(4, 8, 16, 32), judges=(("classifier", 32),)))
    lines = {line.contrast: line for line in shared({"few": few, "many": many, "paper": effects(PAPER)})}
    widest = lines[Contrast("Wider plain latent: rFID", "narrowest to widest")]
    assert [found[0].behind for found in widest.by_study.values()] == ["d4 to d16", "d4 to d32", "d16 to d64"]
    second = lines[Contrast("Alignment: rFID", "second latent")]
    assert [one[0].behind for one in second.by_study.values()] == [
        "d8 to d8-lite0",
        "d8 to d8-lite0",
        "d32 to d32-dinov2",
    ]
    assert not any("third" in contrast.place for contrast in lines)  # only one study has four widths
    (one,) = of("Wider plain latent: rFID", "narrowest to widest", few)
    assert one.change == pytest.approx((16 / 4) ** -0.45 - 1)  # as the made table has it


def test_published_effects_are_single_and_the_papers_factors_are_changes():
    found = effects(PAPER)
    (one,) = of(
        "Alignment: images that it takes to the plain run's last gFID", "widest latent, smallest generator", found
    )
    assert one.change == pytest.approx(1 / 2.76 - 1)
    assert str(one) == "−64%, published"
    (gfid,) = of("Alignment: gFID", "second latent, smallest generator", found)
    assert gfid.behind == "d32 to d32-dinov2, B" and gfid.change == pytest.approx(15.82 / 22.62 - 1)
    (larger,) = of("Larger generator: gFID", "widest latent, plain, smallest to largest", found)
    assert larger.behind == "d64, B to XL" and larger.sign == "falls"


def test_intervals_need_three_repeats_and_hold_the_change():
    place = "Alignment: gFID", "narrowest latent, smallest generator"
    (three,) = of(*place, effects(aligned(20.0, 25.0)))
    low, high = three.comparison.decision.interval
    assert three.change == pytest.approx(-0.2) and low < -0.2 < high < 0
    assert str(three).startswith("−20% [") and three.sign == "falls"
    (two,) = of(*place, effects(aligned(20.0, 25.0, seeds=2)))
    assert str(two) == "−20%, 2 repeats" and two.sign == "falls"


def test_studies_agree_in_sign_and_by_how_much():
    def agreement(*changes, **changed):
        studies = {str(i): effects(aligned(100 * change, 100.0, **changed)) for i, change in enumerate(changes)}
        return next(line.agreement for line in shared(studies) if line.contrast.kind == "Alignment: gFID")

    assert agreement(0.64, 0.8) == "same sign, 2.0 times"  # 0.8 twice
    assert agreement(0.64, 0.8, 0.512) == "same sign, 3.0 times"
    assert agreement(0.64, 1.5) == "signs differ"
    assert agreement(0.64, 0.99) == "sign unclear"
    assert agreement(1.0, 1.0, spread=0.001) == "no change"


def test_an_effect_that_a_repeat_never_shows_is_unclear():
    table = study(widths=(4, 16), judges=(("classifier", 32),), seeds=(0, 1, 2))
    worse = (table["tokenizer"] == "f4d16-lite0") & (table["seed"] == 1) & (table["kind"] == "generator")
    table.loc[worse, "gfid"] *= 50
    kind = "Alignment: images that it takes to the plain run's last gFID"
    for one in of(kind, "widest latent, smallest generator", effects(table)):
        assert one.change is None and one.sign == "unclear" and str(one) == "never in 1 of 3"


def test_studies_of_other_scales_are_compared_by_effects_and_a_figure(studies, tmp_path, capsys):
    assert main(["few", "many", "paper"], markdown_=True, figure=tmp_path / "drawn", out=studies) == 0
    printed = capsys.readouterr().out
    assert "| narrowest to widest<br>same sign, " in printed and "**Larger generator: gFID**" not in printed
    assert "Rows of both" not in printed
    with open(tmp_path / "drawn" / "effects.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["study"] for row in rows} == {"few", "many", "paper"}
    assert {row["repeats"] for row in rows if row["study"] == "paper"} == {""}
    assert (tmp_path / "drawn" / "effects.png").stat().st_size and (tmp_path / "drawn" / "effects.pdf").stat().st_size
    assert main(["few", "many", "paper"], csv_=tmp_path / "rows.csv", out=studies) == 2
    assert main(["few"], out=studies) == main(["few", "few"], out=studies) == 2


@pytest.mark.parametrize("columns", [70, 100])
def test_what_belongs_together_stands_on_one_line_of_the_terminal(columns, studies, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["few", "many", "paper"], out=studies) == 0
    printed = capsys.readouterr().out.splitlines()
    assert max(map(len, printed)) <= columns
    (line,) = [line for line in printed if "d16 to d64 " in line]
    assert "paper" in line and "−65%" in line


def test_studies_of_one_scale_are_compared_run_by_run(studies, capsys):
    assert main(["few", "many"], markdown_=True, out=studies) == 0
    printed = capsys.readouterr().out
    assert "**Rows of both**" in printed and "Effects" not in printed


def test_runs_without_a_counterpart_are_counted_and_listed_on_request(studies, capsys):
    assert main(["few", "many"], markdown_=True, out=studies) == 0
    printed = capsys.readouterr().out
    assert "which --all lists" in printed and "| many | 4 |" in printed and "| f4d8 |" not in printed
    assert main(["few", "many"], markdown_=True, all_=True, out=studies) == 0
    assert "| many | f4d8 | " in capsys.readouterr().out
    assert main(["paper", "since"], markdown_=True, all_=True, out=studies) == 0
    assert "| since | SFD-XXL, guided | inception | 1.04 | 1,024,933,600 |" in capsys.readouterr().out
