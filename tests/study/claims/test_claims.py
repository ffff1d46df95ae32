"""Verdicts on the paper's own tables and on the committed study, and that they depend on numbers, not on names."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_tables import asked, latents, study, where_to_align

from ablations import recipe
from models.configs import parse_tokenizer
from results import table as results
from results.foretell import estimate
from results.published import load_published, load_study
from results.ranks import pearson
from results.schema import Label, Row
from study.claims.__main__ import main
from study.claims.paper_claims import CLAIMS, judge_claims
from study.claims.verdicts import ForetellsNothing, RankCorrelation
from study.plan.scales import SCALES

CHECKOUT = Path(__file__).resolve().parents[3]
GOLDEN = json.loads(Path(__file__).with_name("claims_golden.json").read_text())
PAPER = load_published("paper")


def verdicts(table):
    return {one.claim.name: one.verdict for one in judge_claims(table)}


def test_the_published_tables_give_the_expected_verdicts():
    assert verdicts(PAPER) == GOLDEN
    assert GOLDEN["recipe-3"] == "undecided"  # beta2: 16.59 to 16.61
    assert GOLDEN["uniformity"] == "undecided"  # by chance 5.1%
    assert {one.repeats for one in judge_claims(PAPER) if one.places} == {"published, single"}


def test_the_committed_study_gives_what_the_readme_says(committed):
    found = {one.claim.name: one for one in judge_claims(load_study("desk-full", committed / "results"))}
    measured = {name: one.verdict for name, one in found.items() if one.places}
    assert measured == {
        "dilemma-rfid": "undecided",
        "dilemma-gfid": "undecided",
        "vf-gfid": "holds",
        "vf-rfid": "undecided",
        "vf-faster": "holds",
        "vf-twice-as-fast": "undecided",
        "gap-closes": "undecided",
        "uniformity": "undecided",
    }
    small, large = "LightningDiT-XXS/2", "LightningDiT-XS/2"
    held = {
        name: {place for place, verdict in one.verdicts.items() if verdict == "holds"} for name, one in found.items()
    }
    assert held["dilemma-rfid"] == {"f4d8 against f4d4", "f4d16 against f4d4", "f4d32 against f4d4"}
    assert held["dilemma-gfid"] == {
        f"f4d8 against f4d32, {small}", f"f4d8 against f4d32, {large}",
        f"f4d4 against f4d32, {small}", f"f4d16 against f4d32, {large}",
    }  # fmt: skip
    assert held["vf-rfid"] == {"f4d16-lite0 against f4d16", "f4d32-lite0 against f4d32"}
    assert len(held["vf-twice-as-fast"]) == 3 and len(found["vf-twice-as-fast"].verdicts) == 6
    assert {one.repeats for one in found.values() if one.places} == {"3 repeats"}
    assert {name: one.enough for name, one in found.items() if one.places and one.enough} == {
        "dilemma-rfid": "22 repeats", "dilemma-gfid": "judges disagree", "vf-rfid": "10 repeats",
        "vf-twice-as-fast": "11 repeats", "gap-closes": "judges disagree", "uniformity": "not by repeats",
    }  # fmt: skip


def test_two_repeats_of_the_grey_pictures_only_indicate(committed):
    found = {one.claim.name: one for one in judge_claims(load_study("desk-full-fashion-mnist", committed / "results"))}
    measured = {name: one.verdict for name, one in found.items() if one.places}
    assert measured == {
        "dilemma-rfid": "undecided",
        "dilemma-gfid": "indicated",
        "vf-gfid": "indicated",
        "vf-rfid": "indicated against",
        "vf-faster": "indicated",
        "vf-twice-as-fast": "indicated against",
        "gap-closes": "indicated",
    }
    assert {one.repeats for one in found.values() if one.places} == {"2 repeats"}
    assert {one.enough for one in found.values() if one.places} == {
        "judges disagree", "3 repeats", "4 repeats", "16 repeats", "17 repeats",
    }  # fmt: skip


def test_three_seeds_of_a_made_study_decide_and_fewer_indicate():
    found = {seeds: {one.claim.name: one for one in judge_claims(study(seeds=range(seeds)))} for seeds in (1, 2, 3)}
    assert [found[seeds]["vf-gfid"].verdict for seeds in found] == ["indicated", "indicated", "holds"]
    assert [found[seeds]["vf-gfid"].enough for seeds in found] == ["spread unknown", "3 repeats", ""]
    assert [found[seeds]["vf-gfid"].repeats for seeds in found] == ["single run", "2 repeats", "3 repeats"]


def test_tokenizers_of_others_say_nothing_about_the_studied_family():
    table = study(widths=(4, 8, 16))
    about_the_family = ("dilemma-rfid", "dilemma-gfid", "vf-gfid", "vf-faster")
    found = verdicts(asked(table, "baselines"))
    assert {found[name] for name in about_the_family} == {"indicated"}
    names = {"f4d4": "sd-vae-f8d4", "f4d8": "mar-vae-f16d16", "f4d16": "va-vae"}
    others = asked(table, "baselines").assign(tokenizer=table["tokenizer"].replace(names))
    found = verdicts(others)
    assert {found[name] for name in about_the_family} == {"not measured"}
    regularised = table.assign(tokenizer=table["tokenizer"] + "+eq")
    assert {verdicts(regularised)[name] for name in about_the_family} == {"not measured"}
    representation = study(widths=(112,), models=("rae-lite0",)).assign(tokenizer="rae-lite0")
    assert verdicts(pd.concat([table, representation], ignore_index=True)) == verdicts(table)


def test_the_order_of_rows_moves_nothing_and_their_numbers_do():
    rng = np.random.default_rng(0)
    assert verdicts(PAPER.sample(frac=1, random_state=1)) == GOLDEN
    shuffled = PAPER.copy()
    scored = shuffled["gfid"].notna()
    shuffled.loc[scored, "gfid"] = rng.permutation(shuffled.loc[scored, "gfid"])
    assert sum(GOLDEN[name] != verdict for name, verdict in verdicts(shuffled).items()) > len(GOLDEN) / 3


def test_the_opposite_numbers_give_the_opposite_verdicts():
    turned = verdicts(PAPER.assign(gfid=100 / PAPER["gfid"], rfid=1 / PAPER["rfid"]))
    for name, verdict in GOLDEN.items():
        about_sizes = name in ("gap-closes", "vf-rfid") or name.startswith("headline")  # not about an order of rows
        if not about_sizes:
            assert turned[name] == {"holds": "fails", "fails": "holds"}.get(verdict, verdict), name


ROW = {
    "ablations": ("frontier",), "kind": "generator", "foundation_model": "none", "generator": "LightningDiT-XXS/2",
    "tokenizer_seed": 0, "seed": 0, "images_seen": 1000, "protocol": "p", "state": "done", "samples": 5000,
    "guidance_scale": 1.0, "extractor": "efficientnet_lite2", "extractor_size": 64, "comparable": True,
}  # fmt: skip


def made(*rows):
    """Generators from tuples of tokenizer, gFID and further changed cells."""
    return results.table_of(
        Row(**{
            **ROW, "run": f"{spec} + XXS", "fingerprint": f"{spec}-{number}", "tokenizer": spec, "gfid": gfid,
            "latent_channels": parse_tokenizer(spec).channels, "tokenizer_fingerprint": spec, **changed,
        })
        for number, (spec, gfid, changed) in enumerate(rows)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({}, "indicated"),
        ({"comparable": False}, "not measured"),
        ({"ablations": ()}, "not measured"),
        ({"state": "failed", "gfid": None}, "not measured"),
        ({"guidance_scale": 2.0}, "not measured"),
        ({"samples": 3000}, "not measured"),
        ({"images_seen": 2000}, "not measured"),
        ({"changes": {"swiglu": False}}, "not measured"),
        ({"sampling_seed": 1_000_000}, "not measured"),
    ],
)
def test_rows_that_cannot_be_compared_prove_nothing(changed, verdict):
    assert verdicts(made(("f4d4", 10.0, {}), ("f4d16", 20.0, changed)))["dilemma-gfid"] == verdict


def test_runs_that_nothing_tells_apart_are_refused():
    with pytest.raises(ValueError, match="cannot tell f4d16"):
        judge_claims(made(("f4d4", 10.0, {}), ("f4d16", 20.0, {}), ("f4d16", 21.0, {})))


def test_two_judges_that_disagree_decide_nothing():
    other = {"extractor": "classifier", "extractor_size": 32, "protocol": "q"}
    table = made(("f4d4", 10.0, {}), ("f4d16", 20.0, {}), ("f4d4", 3.0, other), ("f4d16", 2.0, other))
    assert verdicts(table)["dilemma-gfid"] == "undecided"


def test_the_system_is_held_against_published_numbers():
    ours = {
        "ablations": ("released",), "generator": "LightningDiT-XL/1", "foundation_model": "dinov2", "data": "imagenet",
        "resolution": 256, "samples": 50_000, "guidance_scale": 10.0, "extractor": "inception",
        "extractor_size": 299, "images_seen": 81_920_000,
    }  # fmt: skip
    found = verdicts(made(("f16d32-dinov2", 2.11, ours)))
    assert found["headline-64"] == "indicated" and found["headline-800"] == "not measured"
    assert verdicts(made(("f16d32-dinov2", 2.5, ours)))["headline-64"] == "indicated against"
    assert verdicts(made(("f16d32-dinov2", 2.11, {**ours, "data": "birds"})))["headline-64"] == "not measured"


def test_a_rung_is_known_by_its_place_in_the_recipe():
    labels = [run.label for run in recipe.runs(SCALES["smoke"]())]
    rows = [
        (f"f4d{number + 1}", 20.0 - number, {"labels": (Label(ablation="recipe", place=number, text=text),)})
        for number, text in enumerate(labels)
    ]
    assert {f"recipe-{rung}" for rung in range(1, 10)} <= {
        name for name, verdict in verdicts(made(*rows)).items() if verdict == "indicated"
    }


def test_ranks_owe_little_to_chance():
    from results.ranks import rank_agreement

    def verdict(x, y):
        return RankCorrelation(place="", judge="", agreement=rank_agreement(x, y), repeats=1).decision.verdict

    assert verdict([1, 2, 3], [1, 2, 3]) == "undecided"  # one order of six
    assert verdict([1, 2, 3, 4], [1, 2, 3, 4]) == "holds"  # one of 24
    assert verdict([1, 2, 3, 4], [4, 3, 2, 1]) == "fails"
    assert verdict([1, 2, 3, 4], [1, 2, 4, 3]) == "undecided"
    assert verdict([1, 1, 1, 1], [1, 3, 2, 4]) == "undecided"


LATENTS = ("viv-over-rfid", "viv-over-density", "eq-foretells-nothing")


def test_what_foretells_is_judged_within_each_family():
    found = {one.claim.name: one for one in judge_claims(latents())}
    assert [found[name].verdict for name in LATENTS] == ["holds", "undecided", "undecided"]
    density = found["viv-over-density"]
    aligned, plain = (f"{family} tokenizers, LightningDiT-XXS/2" for family in ("aligned", "plain"))
    assert density.verdicts == {aligned: "holds", plain: "undecided"}
    assert density.places[aligned][0].found.value > 1 and density.places[aligned][0].n == 14
    assert {one.repeats for name in LATENTS for one in found[name].places[plain]} == {1}
    turned = latents()
    turned[["viv", "rfid"]] = turned[["rfid", "viv"]]
    assert verdicts(turned)["viv-over-rfid"] == "fails"


def test_many_tokenizers_decide_that_a_number_foretells_nothing_or_something():
    x, noise = np.random.default_rng(0).normal(size=(2, 150))

    def verdict(x, y):
        found = estimate(pearson, x, y)
        return ForetellsNothing(place="", judge="", text="", n=len(x), found=found, repeats=1).decision.verdict

    assert verdict(x, noise) == "holds"
    assert verdict(x[:30], noise[:30]) == "undecided"
    assert verdict(x, x + noise) == verdict(x, noise - x) == "fails"
    assert verdict(x, 0.35 * x + noise) == "undecided"


def test_without_such_runs_nothing_is_measured_of_latents():
    few = latents(strengths=["", "+noise", "+eq", "+mask"])  # eight of a family
    for table in (
        PAPER,
        study(seeds=(0, 1, 2)),
        few,
        asked(latents(), "frontier").assign(labels=[()] * len(latents())),
    ):
        found = verdicts(table)
        assert {found[name] for name in (*LATENTS, "align-both")} == {"not measured"}
    unknown = latents().assign(eq_error=np.nan)
    assert verdicts(unknown)["eq-foretells-nothing"] == "not measured"
    assert verdicts(unknown)["viv-over-rfid"] == "holds"


def test_aligning_both_is_held_against_each_alone():
    found = {one.claim.name: one for one in judge_claims(where_to_align(study(seeds=(0, 1, 2))))}
    assert found["align-both"].verdict == "undecided"  # iREPA gains nothing on an aligned tokenizer there
    of_wide = {place: verdict for place, verdict in found["align-both"].verdicts.items() if "d16" in place}
    assert of_wide == {
        "f4d16-lite0 and REPA against the tokenizer alone, LightningDiT-XXS/2": "holds",
        "f4d16-lite0 and REPA against the generator alone, LightningDiT-XXS/2": "holds",
        "f4d16-lite0 and iREPA against the tokenizer alone, LightningDiT-XXS/2": "undecided",  # the same numbers
        "f4d16-lite0 and iREPA against the generator alone, LightningDiT-XXS/2": "holds",
    }
    once = where_to_align(study())
    without = once[[changes != {"generator.repa": "irepa"} for changes in once["changes"]]]
    assert verdicts(without)["align-both"] == "indicated"


def test_every_claim_has_a_name_of_its_own():
    assert len({claim.name for claim in CLAIMS}) == len(CLAIMS) == len(GOLDEN)


@pytest.mark.parametrize("study", ["desk-full", "desk-full-fashion-mnist"])
def test_the_results_page_has_what_the_command_prints(study, committed, capsys):
    assert main(study, markdown_=True, out=committed) == 0
    assert capsys.readouterr().out.strip() in (CHECKOUT / "docs" / "results.md").read_text()


def test_the_command(tmp_path, capsys):
    assert main("paper", markdown_=True) == 0
    printed = capsys.readouterr().out
    assert "Table 1, row 3 | undecided | 16.61 against 16.59, +0.1% | published, single |  |" in printed
    assert "Not measured: Figure 4, arXiv 2606.03578, ablation where_to_align." in printed
    assert main("papers", out=tmp_path) == 2
    assert "nearest: paper" in capsys.readouterr().err


def test_a_study_of_another_folder_is_judged_there(tmp_path, capsys):
    results.write(made(("f4d4", 10.0, {}), ("f4d16", 20.0, {})), tmp_path / "results" / "birds" / "table.csv")
    assert main("birds", markdown_=True, out=tmp_path) == 0
    expected = capsys.readouterr().out
    assert "gFID rises | Table 2 | indicated | f4d4 against f4d16" in expected
    assert main(named="birds", markdown_=True, out=tmp_path) == 0
    assert capsys.readouterr().out == expected
    assert main("birds", named="paper", out=tmp_path) == 2
    assert capsys.readouterr().err == "two studies were named, 'birds' and --study 'paper': give one of them\n"
    assert main("bird", out=tmp_path) == 2
    assert capsys.readouterr().err == f"no study 'bird' in {tmp_path / 'results'}; nearest: birds\n"
    assert main("since", markdown_=True, out=tmp_path) == 0  # published, wherever studies are


def test_no_torch_is_loaded():
    code = (
        "import sys, study.compare, study.claims.__main__ as claims\n"
        "claims.main('paper')\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True).returncode == 0
